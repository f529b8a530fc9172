"""The accompaniment of a vocal in codes, by untrained stages of the smallest size."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from hiermusic.errors import UserError
from hiermusic.generate import windows
from hiermusic.systems.hafm import songs
from hiermusic.systems.hafm.models import make_model
from hiermusic.systems.hafm.songs import Accompanist
from hiermusic.systems.lm import songs as drawing

from .streams import LENGTHS, MEANING, SOUND, small, stages, track


@pytest.fixture(scope="module")
def trio(reference):
    return stages(reference)


@pytest.fixture(scope="module")
def accompanist(trio):
    return Accompanist(trio)


def vocal(seed: int, tokens: int) -> np.ndarray:
    return track(seed, tokens)["vocals/semantic"][:, 0]


@pytest.fixture(scope="module")
def made(accompanist):
    return accompanist.accompany([vocal(0, 29), vocal(1, 20)], seeds=[5, 6])


def same(one, other) -> bool:
    return all(np.array_equal(*pair) for pair in zip(one, other, strict=True))


def test_it_knows_its_tokens_and_how_long_a_window_is(accompanist):
    assert (accompanist.vocal, accompanist.codes) == (MEANING, SOUND)
    assert accompanist.window == 30 and accompanist.levels == 4
    assert [accompanist.frames(tokens) for tokens in (1, 2, 29, 30)] == [0, 1, 14, 15]
    assert {name: one["guidance"] for name, one in accompanist.sampling.items()} == {
        "semantic": 3.0, "coarse": 3.0, "fine": 1.0}  # fmt: skip


def test_each_window_has_its_lengths_and_is_what_it_would_be_alone(accompanist, made):
    for one, tokens in zip(made, (29, 20), strict=True):
        assert one.semantic_T.shape == (tokens,) and one.codes_TK.shape == (tokens // 2, 4)
        assert 0 <= one.codes_TK.min() and one.codes_TK.max() < 16 and one.semantic_T.max() < 12
    (alone,) = accompanist.accompany([vocal(1, 20)], seeds=[6], guidance={"coarse": None})
    assert same(alone, made[1])


def test_another_vocal_seed_or_guidance_is_another_accompaniment(accompanist, made):
    both = [vocal(0, 29), vocal(1, 20)]
    others = [
        accompanist.accompany([vocal(2, 29), both[1]], seeds=[5, 6]),
        accompanist.accompany(both, seeds=[7, 6]),
        accompanist.accompany(both, seeds=[5, 6], guidance={"semantic": 1.5}),
        accompanist.accompany(both, seeds=[5, 6], guidance={"coarse": 1.5}),
    ]
    assert not any(same(other[0], made[0]) for other in others)
    assert all(same(other[1], made[1]) for other in others[:2])
    np.testing.assert_array_equal(others[3][0].semantic_T, made[0].semantic_T)


def test_what_is_given_is_kept_and_gone_on_from(accompanist, made):
    """Another beginning makes another end; the same one the same."""
    both, seeds = [vocal(0, 29), vocal(1, 20)], [5, 6]
    given = {"given": [made[0].codes_TK[:6], None], "given_semantic": [made[0].semantic_T[:13], None]}
    again = accompanist.accompany(both, seeds=seeds, **given)
    assert same(again[0], made[0]) and same(again[1], made[1])
    given["given"][0] = (given["given"][0] + 3) % 16
    other = accompanist.accompany(both, seeds=seeds, **given)
    np.testing.assert_array_equal(other[0].codes_TK[:6], given["given"][0])
    assert (other[0].codes_TK[6:] != made[0].codes_TK[6:]).any() and same(other[1], made[1])


def test_without_a_fine_stage_coarse_levels_are_all_there_is(trio, made):
    two = Accompanist({name: trio[name] for name in ("semantic", "coarse")})
    assert two.levels == 2
    one, _ = two.accompany([vocal(0, 29), vocal(1, 20)], seeds=[5, 6])
    np.testing.assert_array_equal(one.codes_TK, made[0].codes_TK[:, :2])


def alone(config) -> None:
    """Makes a coarse stage one that reads the vocal alone."""
    config.data.prefix = config.data.prefix[:1]
    config.prefix = {"0": config.prefix["0"]}


def test_without_a_semantic_stage_the_vocal_is_all_that_is_read(reference, trio):
    config = small("coarse")
    alone(config)
    drawn = reference.drawn(nnx.eval_shape(make_model(config), nnx.Rngs(0)), 0.5)
    coarse = dataclasses.replace(trio["coarse"], config=config, model=drawing.ready(config, drawn))
    two = Accompanist({"coarse": coarse, "fine": trio["fine"]})
    assert two.window == 31 and two.levels == 4 and set(two.sampling) == {"coarse", "fine"}
    both = [vocal(0, 29), vocal(1, 20)]
    made = two.accompany(both, seeds=[5, 6])
    assert [len(one.semantic_T) for one in made] == [0, 0] and made[0].codes_TK.shape == (14, 4)
    (by_itself,) = two.accompany(both[1:], seeds=[6])
    assert same(by_itself, made[1])
    assert not same(two.accompany([vocal(2, 29)], seeds=[5])[0], made[0])
    (whole,) = windows.play(two, [vocal(0, 80)], seeds=[5], overlap=20)
    assert whole.codes_TK.shape == (40, 4) and len(whole.semantic_T) == 0 and len(whole.seams) == 5
    with pytest.raises(UserError, match=r"^given_semantic: there is no semantic stage here to go on from"):
        two.accompany(both[1:], seeds=[6], given_semantic=[np.zeros(2, int)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"vocals": [np.full(9, 12)]},
            r"the vocal of window 0 holds 12, which is no token of 12 codes: take the token",
        ),
        ({"vocals": [np.ones(9)]}, r"the vocal of window 0 is an array \(9, 1\) of float64: give tokens"),
        ({"vocals": [np.zeros(31, int)]}, r"the vocal of window 0 has 31 tokens: these stages take 1 to 30"),
        ({"vocals": [np.zeros(1, int)]}, r"the vocal of window 0 has 1 tokens: these stages take 1 to 30"),
        ({"given": [np.zeros((3, 2), int)]}, r"what is given of window 0 has 3 frames of 2 levels: give at most the 4"),
        ({"given": [np.zeros((5, 4), int)]}, r"what is given of window 0 has 5 frames of 4 levels: give at most the 4"),
        ({"given_semantic": [np.full(2, -1)]}, r"what is given of window 0 holds -1, which is no token of 12 codes"),
        ({"temperature": float("nan")}, r"^the semantic stage's temperature=nan: give a finite number of at least 0$"),
        ({"top_k": {"fine": -1}}, r"^the fine stage's top_k=-1: give a whole number of at least 0$"),
        ({"guidance": {"middle": 2.0}}, r"guidance of a stage 'middle': there are semantic, coarse, fine"),
    ],
)
def test_what_is_no_vocal_of_these_stages_is_one_line(accompanist, change, words):
    with pytest.raises(UserError, match=words) as told:
        accompanist.accompany(**{"vocals": [vocal(0, 9)], "seeds": [0]} | change)
    assert "\n" not in str(told.value)


def test_guidance_with_nothing_to_drop_is_refused(trio):
    config = small("fine", prefix_dropout=0.0)
    bare = Accompanist(trio | {"fine": dataclasses.replace(trio["fine"], config=config)})
    words = r"^guidance 2 of the fine stage has nothing to drop: out/fine was trained with model\.prefix_dropout=0; set"
    with pytest.raises(UserError, match=words):
        bare.accompany([vocal(0, 9)], seeds=[0], guidance={"fine": 2.0})


def test_stages_that_were_not_made_for_each_other_are_told(trio):
    def chain(stage: str, change) -> None:
        config = trio[stage].config.copy_and_resolve_references()
        change(config)
        Accompanist(trio | {stage: dataclasses.replace(trio[stage], config=config)})

    with pytest.raises(UserError, match=r"out/coarse reads other tokens than those of out/semantic \(codes is 12 and"):
        chain("coarse", lambda config: config.prefix["1"].update({"codes": 11}))
    with pytest.raises(
        UserError, match=r"out/fine reads other tokens than those of out/coarse \(hop is 640 and not 32"
    ):
        chain("fine", lambda config: config.tokens.update({"hop": 320}))
    with pytest.raises(UserError, match=r"out/fine reads 1 coarse levels and out/coarse makes 2: take stages that"):
        chain("fine", lambda config: config.model.update({"given": 1}))
    with pytest.raises(UserError, match=r"out/coarse does not say what made its vocal tokens"):
        _ = Accompanist(trio).tokenizers
    with pytest.raises(UserError, match=r"out/coarse reads what the accompaniment means, and there is no semantic"):
        Accompanist({name: trio[name] for name in ("coarse", "fine")})
    with pytest.raises(UserError, match=r"out/coarse reads the vocal alone: leave out/semantic out, or take a coarse"):
        chain("coarse", alone)


@pytest.mark.parametrize("stage", songs.STAGES)
def test_what_is_compiled_to_play_is_a_chunk_of_guided_steps(stage):
    """In shapes alone: lowered, as what `accompany` runs, with the null and the places of a window that is full."""
    made = songs.program(small(stage), 2)
    steps = 64
    assert made.name == f"generate: {steps} steps" and made.seconds > 0
    share = made.tokens / 2 / 30  # what each of these predicts
    assert share == pytest.approx(steps / LENGTHS[stage], rel=0.02)  # a row holds one position that begins
    made.function.lower(*made.arguments, **made.static)


def test_no_song_begins_with_a_prompt():
    with pytest.raises(UserError, match="these stages play to a vocal: `hiermusic accompany` makes songs with them"):
        songs.generate([], None)
