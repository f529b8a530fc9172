"""What PyramidCodec's generation asks of its models: levels, windows, stages, what is known; no codec is made."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from hiermusic.errors import UserError
from hiermusic.systems.lm import songs as drawing
from hiermusic.systems.pyramid import songs as pyramid
from hiermusic.tokens.facts import TokenFacts

from ..fakes import configuration, request

TOKENS = TokenFacts(8000, 200, "pyramid", 3, 32, 16, (1, 2, 4))  # packets of 0.1 s


@pytest.fixture
def engine(monkeypatch):
    """Decoding that keeps what is known and counts on from a hundred times the calls before; `calls` holds the rest."""
    it = SimpleNamespace(calls=[], produced=None, ended=False)
    configs = it.configs = {
        "whole": _config(),
        "words": _config(tokenizer="bytes", text_limit=30),
        "first": _config(levels=1),
        "second": _config(levels=2, given=1),
        "third": _config(given=2),
        "stranger": configuration("aar/lm:tiny"),
    }
    coder = SimpleNamespace(facts=TOKENS, sample_rate=8000, channels=1, slots=(1, 2, 4))

    def decode(model, prompts, layouts, *, given, **how):
        samples, number = [], 100 * (len(it.calls) + 1)
        it.calls.append({"model": model, "prompts": prompts, "layouts": layouts, "given": given, **how})
        for b, layout in enumerate(layouts):
            codes = [np.full(n, -1, np.int32) for n in layout.lengths]
            for k, codes_T in enumerate(codes):
                due = (layout.predicts_SK[:, k] >= 0).sum() or (len(codes_T) if k < layout.given else 0)
                codes_T[:due] = number + np.arange(due) % 100
                known_T = given[b][k] if given and k < len(given[b]) else ()
                codes_T[: len(known_T)] = known_T
            samples.append(drawing.Sample(tuple(codes), it.ended))
        return samples

    def produce(requests, out, make, runs, sampling, audio, versions, steps, rows, mesh, needs):
        facts = {"runs": runs, "sampling": sampling, "versions": versions, "rows": rows, "needs": needs}
        it.produced = SimpleNamespace(**facts, songs=make(requests))
        return ["told"]

    monkeypatch.setattr(pyramid.workdirs, "read", lambda run, *stages: configs[run])
    monkeypatch.setattr(pyramid.workdirs, "load", lambda run, *stages, mesh=None: (configs[run], run))
    monkeypatch.setattr(pyramid.workdirs, "load_codec", lambda run, step: coder)
    monkeypatch.setattr(pyramid.drawing, "ready", lambda config, model: model)
    monkeypatch.setattr(pyramid, "codec_of", lambda config: ("codec of tokens", 6))
    monkeypatch.setattr(drawing.autoregressive, "generate", decode)
    monkeypatch.setattr(pyramid.songs, "produce", produce)
    it.heard_PS = np.arange(5 * 7).reshape(5, 7) % 32
    monkeypatch.setattr(pyramid, "encode_long", lambda codec, wav_LC: it.heard_PS)
    monkeypatch.setattr(pyramid.files, "read", lambda path, rate, channels: (np.zeros((8, 1)), rate))
    return it


def _config(**model):
    config = configuration(
        "pyramid/lm:paper", asdict(TOKENS), length=86, **model
    )  # 12 packets, two marks and the start
    config.data.codec = "codec@6"
    return config


def levels(song):
    """The codes of each level of a song of packets."""
    return [part.reshape(-1) for part in np.split(song.codes_PS, [1, 3], 1) if part.size]


def test_a_song_is_made_level_by_level_with_marks(engine):
    assert pyramid.generate([request("a", 5, 1.0), request("b", 6, 0.5)], "out", lm="whole", options={"top_k": 7}) == [
        "told"
    ]
    (call,) = engine.calls
    assert call["model"] == "whole" and call["top_k"] == 7 and call["markers"] == [0, 1, 2] and call["eos"] is None
    assert [layout.lengths for layout in call["layouts"]] == [(10, 20, 40), (5, 10, 20)]
    assert [layout.marks for layout in call["layouts"]] == [((11, 1), (32, 2)), ((6, 1), (17, 2))]
    assert call["seeds"] == [5, 6] and call["prompts"] == [[0], [0]] and call["given"] is None
    assert [song.codes_PS.shape for song in engine.produced.songs] == [(10, 7), (5, 7)]
    assert engine.produced.runs == {"codec": "codec of tokens", "lm": "whole"} and engine.produced.versions == ()


def test_the_first_levels_alone_and_the_song_after_each(engine):
    pyramid.generate([request("a", 5, 1.0)], "out", lm="whole", options={"levels": 2}, levels_too=True)
    (call,), (song,) = engine.calls, engine.produced.songs
    assert call["layouts"][0].positions == 10 + 1 + 20 and "levels" not in call
    assert song.codes_PS.shape == (10, 3) and engine.produced.versions == ("levels_1",)
    np.testing.assert_array_equal(song.versions["levels_1"], song.codes_PS[:, :1])
    pyramid.generate([request("a", 5, 1.0)], "out", lm="whole", levels_too=True)
    (song,) = engine.produced.songs
    assert engine.produced.versions == ("levels_1", "levels_2") and list(song.versions) == ["levels_1", "levels_2"]
    assert [part.shape for part in song.versions.values()] == [(10, 1), (10, 3)]


@pytest.mark.parametrize(
    ("model", "levels", "said"),
    [
        ({}, 4, "levels=4: give 1 to 3, of which this model makes any"),
        ({"pattern": "flatten", "separators": False}, 2, "levels=2: a flatten model makes all of its levels together"),
    ],
)
def test_levels_that_a_model_does_not_make_alone_are_told_before_any_is_loaded(engine, model, levels, said):
    engine.configs["whole"] = _config(**model)
    with pytest.raises(UserError, match=said):
        pyramid.generate([request("a", 5, 1.0)], "out", lm="whole", options={"levels": levels})
    assert engine.produced is None


def test_a_model_that_goes_by_time_makes_songs_that_fit_its_context_and_may_end_them(engine):
    engine.configs["whole"], engine.ended = _config(pattern="flatten", separators=False), True
    pyramid.generate([request("a", 5, 1.0)], "out", lm="whole")
    assert [song.ended for song in engine.produced.songs] == [True]
    with pytest.raises(UserError, match=r"a: 2\.6 s do not fit this lm, whose context of 86 positions holds 1\.2 s"):
        pyramid.generate([request("a", 5, 2.6)], "out", lm="whole")


@pytest.mark.parametrize(
    ("flags", "guided", "asked", "said"),
    [
        ({"lm": "whole"}, "whole", {}, "a: guidance 2 of the lm has nothing to drop"),
        ({"lm": "words"}, "words", {}, "a: guidance 2 of the lm has nothing to drop"),
        ({"lm": "words"}, "words", {"tags": "slow"}, None),
        ({"lm": "first", "finer_lms": "second"}, "second", {}, "a: guidance 2 of the lm has nothing to drop"),
    ],
)
def test_a_song_of_whose_prompt_nothing_is_dropped_is_told_before_any_model_is_loaded(
    engine, flags, guided, asked, said
):
    engine.configs[guided].sampling.guidance = 2.0
    if said:
        with pytest.raises(UserError, match=said):
            pyramid.generate([request("a", 5, 1.0, **asked)], "out", **flags)
        assert engine.produced is None
    else:
        pyramid.generate([request("a", 5, 1.0, **asked)], "out", **flags)
        assert engine.calls[0]["guidance"] == 2.0 and engine.calls[0]["unprompted"] != engine.calls[0]["prompts"]


def test_how_many_songs_are_made_at_once_follows_from_what_each_model_needs(engine):
    engine.configs["words"].sampling.guidance = 2.0
    songs = [request("a", 5, 1.0, tags="slow"), request("b", 6, 3.0, tags="fast")]
    pyramid.generate(songs, "out", lm="words", rows=7)
    assert engine.produced.rows == 7 and engine.produced.needs() == [drawing.need(songs, engine.configs["words"], 2.0)]
    pyramid.generate([request("a", 5, 1.0)], "out", lm="first", finer_lms="second,third")
    wanted = [drawing.need([request("a", 5, 1.0)], engine.configs[run], 1.0) for run in ("first", "second", "third")]
    assert engine.produced.rows is None and engine.produced.needs() == wanted


def test_what_is_heard_stands_first_in_every_level(engine):
    pyramid.generate([request("a", 5, 1.0)], "out", lm="whole", audio="in.wav")
    (song,) = engine.produced.songs
    np.testing.assert_array_equal(song.codes_PS[:5], engine.heard_PS)
    assert (song.codes_PS[5:] >= 100).all() and song.codes_PS.shape == (10, 7)
    with pytest.raises(UserError, match=r"the audio lasts 0\.5 s: ask for more --seconds than that"):
        pyramid.generate([request("a", 5, 0.5)], "out", lm="whole", audio="in.wav")


def test_a_song_beyond_the_context_goes_on_from_its_last_third(engine):
    """Of twelve packets, four; the last window keeps more, since less is left to make. Songs that are done rest."""
    pyramid.generate([request("a", 2**32 - 1, 2.6), request("b", 6, 1.0)], "out", lm="whole")
    lengths = [[layout.lengths[0] for layout in call["layouts"]] for call in engine.calls]
    assert lengths == [[12, 10], [12], [12]]
    assert [call["seeds"] for call in engine.calls] == [[2**32 - 1, 6], [1_000_002], [2_000_005]]
    one, other = engine.produced.songs
    assert one.codes_PS.shape == (26, 7) and other.codes_PS.shape == (10, 7)
    for call, keep, there in zip(engine.calls[1:], (4, 6), (12, 20), strict=True):
        for codes_T, known_T, slot in zip(levels(one), call["given"][0], (1, 2, 4), strict=True):
            np.testing.assert_array_equal(known_T, codes_T[(there - keep) * slot : there * slot])
    for codes_T, slot in zip(levels(one), (1, 2, 4), strict=True):
        assert (codes_T // 100).tolist() == [1] * 12 * slot + [2] * 8 * slot + [3] * 6 * slot
    engine.calls.clear()
    pyramid.generate([request("a", 1, 1.6)], "out", lm="whole", audio="in.wav", options={"levels": 1})
    assert [[layout.positions for layout in call["layouts"]] for call in engine.calls] == [[12], [12]]
    assert engine.produced.songs[0].codes_PS.shape == (16, 1)


def test_a_prompt_asks_for_what_its_window_lasts(engine):
    pyramid.generate([request("a", 1, 2.0, tags="slow")], "out", lm="words")
    said = [call["prompts"][0] for call in engine.calls]
    assert len(said) > 2 and all(len(ids) == len(said[0]) for ids in said)
    with pytest.raises(UserError, match="a: whole was trained without words: leave all but the length out"):
        pyramid.generate([request("a", 1, 1.0, tags="slow")], "out", lm="whole")


def test_three_stages_are_each_given_all_that_stands_before(engine):
    pyramid.generate([request("a", 5, 1.0)], "out", lm="first", finer_lms="second,third", audio="in.wav")
    assert [call["model"] for call in engine.calls] == ["first", "second", "third"]
    for k, call in enumerate(engine.calls):
        (layout,), (known,) = call["layouts"], call["given"]
        assert layout.lengths == (10, 20, 40)[: k + 1] and layout.given == k
        assert [len(codes_T) for codes_T in known] == [*(10, 20)[:k], (5, 10, 20)[k]]
    (song,) = engine.produced.songs
    assert [set(codes_T[len(codes_T) // 2 :] // 100) for codes_T in levels(song)] == [{1}, {2}, {3}]
    np.testing.assert_array_equal(song.codes_PS[:5], engine.heard_PS)
    assert engine.produced.runs == {"codec": "codec of tokens", "lm": "first", "lm_2": "second", "lm_3": "third"}
    pyramid.generate([request("a", 5, 1.0)], "out", lm="first", finer_lms="second")
    assert engine.produced.songs[0].codes_PS.shape == (10, 3)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"lm": "second"}, "second predicts levels behind 1 that it is given, and stands first: give it by"),
        (
            {"lm": "first", "finer_lms": "third"},
            "third predicts levels behind 2 that it is given, and those before it make 1",
        ),
        ({"lm": "whole", "finer_lms": "third"}, "behind 2 that it is given, and those before it make 3"),
        ({"lm": "first", "finer_lms": "stranger"}, "stranger is of the system aar, first is of pyramid"),
        ({"lm": "first", "finer_lms": "second", "options": {"levels": 1}}, "levels=1 is of a single model"),
    ],
)
def test_models_that_do_not_follow_each_other_are_told(engine, flags, said):
    with pytest.raises(UserError, match=said):
        pyramid.generate([request("a", 5, 1.0)], "out", **flags)


def test_a_level_of_several_codebooks_is_one_version():
    assert pyramid._ends((1, 1, 2, 2, 4)) == [2, 4, 5] and pyramid._versions((1, 1, 2, 2, 4)) == (
        "levels_1",
        "levels_2",
    )
    assert pyramid._ends((1,)) == [1] and pyramid._versions((1, 1)) == ()
