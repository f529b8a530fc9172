import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiermusic.errors import UserError
from hiermusic.tokens.prompt import Prompt, compose, excess
from hiermusic.tokens.vocabulary import TextTokenizer, Vocabulary

IDS = Vocabulary.byte_level()
BYTES = TextTokenizer(IDS)


def raw(text):
    return list(text.encode())


def test_vocal_template():
    prompt = Prompt(tags="pop,piano", lyrics="[Verse]\nla la", seconds=120)
    assert compose(prompt, BYTES) == [
        IDS.bos,
        *raw("pop,piano"),
        IDS.eom,
        IDS.eom,
        IDS.bol,
        IDS.eol,
        *raw("[Verse]"),
        IDS.eol,
        *raw("la la"),
        IDS.eom,
        IDS.durations[2],
        IDS.eot,
        IDS.boa,
    ]


def test_instrumental_template_has_no_lyrics_block():
    prompt = Prompt(genre="jazz", lyrics="never sung", seconds=60, instrumental=True)
    assert compose(prompt, BYTES) == [
        IDS.bos,
        *raw("jazz"),
        IDS.eom,
        *raw("Instrumental"),
        IDS.eom,
        IDS.durations[1],
        IDS.eot,
        IDS.boa,
    ]


def test_one_slot_for_description_tags_and_genre():
    full = Prompt(description="D", tags="T", genre="G", seconds=9)
    for changed, keep, expected in (
        (full, True, "D"),
        (full, False, "T"),
        (Prompt(genre="G", seconds=9), True, "G"),
        (Prompt(description="D", genre="G", seconds=9), False, "G"),
    ):
        assert compose(changed, BYTES, keep_description=keep)[1:3] == [*raw(expected), IDS.eom]


def test_any_newline_ends_a_line():
    for newline in ("\n", "\r\n", "\r"):
        ids = compose(Prompt(lyrics=f"a{newline}b", seconds=9), BYTES)
        assert [IDS.eol, *raw("a"), IDS.eol, *raw("b"), IDS.eom] == ids[4:9]


@settings(max_examples=100, deadline=None)
@given(st.text(), st.text())
def test_any_text_is_only_text(tags, lyrics):
    ids = compose(Prompt(tags=tags, lyrics=lyrics, seconds=9), BYTES, limit=10**6)
    lines = lyrics.strip().replace("\r\n", "\n").replace("\r", "\n").count("\n") + 1
    assert [ids.count(i) for i in (IDS.bos, IDS.eom, IDS.bol, IDS.eol, IDS.eot, IDS.boa)] == [1, 3, 1, lines, 1, 1]
    first, last = 1, ids.index(IDS.eom)
    assert bytes(ids[first:last]) == tags.strip().encode("utf-8", "replace")


def test_a_lone_surrogate_does_not_break_a_prompt():
    assert compose(Prompt(lyrics="\ud83d", seconds=9), BYTES)[-1] == IDS.boa


def test_of_a_long_prompt_the_lyrics_are_cut_and_the_structure_kept():
    long = Prompt(tags="pop", language="English", lyrics="la " * 500 + "lu", seconds=60)
    whole, cut = compose(long, BYTES), compose(long, BYTES, limit=100)
    assert len(cut) == 100 and cut == whole[:96] + whole[-4:]
    assert cut[-4:] == [IDS.eom, IDS.duration_id(60), IDS.eot, IDS.boa]
    assert excess(long, BYTES, limit=100) == len(whole) - 100 and excess(long, BYTES) == 0


def test_metadata_is_cut_only_where_no_lyrics_are_left():
    for instrumental in (False, True):
        long = Prompt(tags="pop " * 50, language="English", lyrics="la", seconds=60, instrumental=instrumental)
        cut, language = compose(long, BYTES, limit=50), "Instrumental" if instrumental else "English"
        assert len(cut) == 50
        sung = [] if instrumental else [IDS.bol, IDS.eom]
        tail = [IDS.eom, *raw(language), IDS.eom, *sung, IDS.duration_id(60), IDS.eot, IDS.boa]
        assert cut == [IDS.bos, *raw("pop " * 50)[: 49 - len(tail)], *tail]
        assert excess(long, BYTES, limit=50) == len(compose(long, BYTES)) - 50


def test_words_are_stripped():
    bare, wide = (
        Prompt("a b", "t", "g", lyrics="la\nlu", seconds=9),
        Prompt(" a b\n", "t", "g", lyrics="\n la\nlu \n", seconds=9),
    )
    assert compose(wide, BYTES) == compose(bare, BYTES)
    assert compose(Prompt(" ", "\n", " g ", seconds=9), BYTES)[1:3] == [*raw("g"), IDS.eom]


def test_as_released_the_beginning_is_kept_and_tags_go_with_the_description():
    long = Prompt(tags="pop", lyrics="la " * 40, seconds=60)
    whole, cut = compose(long, BYTES), compose(long, BYTES, limit=50, as_released=True)
    assert cut == [*whole[:49], IDS.boa] and compose(long, BYTES, as_released=True) == whole
    assert excess(long, BYTES, limit=50, as_released=True) == len(whole) - 50
    assert excess(long, BYTES, as_released=True) == 0
    for prompt, expected in ((Prompt("D", "T", "G", seconds=9), "G"), (Prompt("", "T", "G", seconds=9), "T")):
        assert compose(prompt, BYTES, keep_description=False, as_released=True)[1:3] == [*raw(expected), IDS.eom]
    assert compose(Prompt("D", "T", seconds=9), BYTES, keep_description=False, as_released=True)[1] == IDS.eom
    assert compose(Prompt("D", "T", seconds=9), BYTES, as_released=True)[1:3] == [*raw("D"), IDS.eom]


@pytest.mark.parametrize("limit", range(1, 12))
def test_a_limit_below_the_structure_keeps_its_end(limit):
    cut = compose(Prompt(tags="pop", lyrics="la", seconds=60), BYTES, limit=limit)
    assert len(cut) <= limit and cut[-1] == IDS.boa


@pytest.mark.parametrize("seconds", [None, 0, -3.0, float("nan"), float("inf")])
def test_a_prompt_names_its_length(seconds):
    with pytest.raises(UserError, match="seconds"):
        compose(Prompt(tags="pop", seconds=seconds), BYTES)


def test_from_json():
    assert Prompt.from_json({"tags": "pop", "seconds": 30}) == Prompt(tags="pop", seconds=30)
    for bad in ({"tag": "pop"}, {"tags": ["pop"]}, {"seconds": "30"}, {"seconds": True}, ["pop"]):
        with pytest.raises(UserError):
            Prompt.from_json(bad)
