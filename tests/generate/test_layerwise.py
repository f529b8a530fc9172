"""Layer-wise refinement against one unpadded pass after another, in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.errors import UserError
from hiermusic.generate import layerwise
from hiermusic.generate.layerwise import refine
from hiermusic.nn.token_lm import TokenLM
from hiermusic.tokens import pattern

SIZES, MARKERS = (12, 12, 12), (39, 38, 37)
PROMPTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15, 16, 17, 18, 19, 20, 21]]
FRAMES, SEEDS = (7, 12, 4), [3, 1, 4]
GIVEN = [np.random.default_rng(t).integers(0, 12, (t, 1)) for t in FRAMES]
CUT = {"top_k": 4, "top_p": 0.8}
BATCH = {"markers": MARKERS, "sizes": SIZES, **CUT}


@pytest.fixture(scope="module")
def plain(reference, model):
    """One sample in NumPy, pass by pass, at its own length."""
    config, w = model.config, reference.weights_of(model)

    def refined(prompt, codes_TK, seed, *, unprompted=None, guidance=1.0, **options):
        codes = [*codes_TK.T, *np.full((3 - codes_TK.shape[1], len(codes_TK)), -1)]
        for k in range(codes_TK.shape[1], 3):
            reads_TK = pattern.layer_pass((len(codes_TK),) * 3, k).build(codes)[0]
            logits = []
            for words in [prompt] if unprompted is None else [prompt, unprompted]:
                text_S = [*words[:-1], MARKERS[k], *[-1] * len(codes_TK)]
                reads_SK = np.concatenate([np.full((len(words), 3), -1), reads_TK])
                sees_SS = np.ones((len(text_S), len(text_S)), bool)
                hidden_TD = reference.row(config, w, text_S, reads_SK, sees_SS=sees_SS)[len(words) :]
                logits.append(reference.code_logits(config, w, hidden_TD, k))
            if len(logits) == 2:
                logits[0] = logits[1] + guidance * (logits[0] - logits[1])
            for t, row in enumerate(logits[0]):
                codes[k][t] = reference.draw(row, reference.key_of(seed, k, t), **options)
        return np.stack(codes, axis=1)

    return refined


def test_a_padded_batch_equals_plain_passes_of_each(model, plain):
    made = refine(model, PROMPTS, GIVEN, seeds=SEEDS, temperature=1.5, **BATCH)
    for one, *request in zip(made, PROMPTS, GIVEN, SEEDS, strict=True):
        np.testing.assert_array_equal(one, plain(*request, temperature=1.5, **CUT))
        assert one.dtype == np.int32


def test_none_of_the_cuts_is_idle(plain):
    """Leaving one out draws other tokens, so that passes which agree with all of them make all of them."""
    how, request = {"temperature": 1.5, **CUT}, (PROMPTS[1], GIVEN[1], SEEDS[1])
    for name in how:
        less = {key: value for key, value in how.items() if key != name}
        assert (plain(*request, **how) != plain(*request, **less)).any(), name


def test_greedy_and_guided(model, plain):
    options = {"temperature": 0.0, "guidance": 3.0, "unprompted": [2, 3]}
    each = options | {"unprompted": [[2, 3]] * len(PROMPTS)}
    made = refine(model, PROMPTS, GIVEN, seeds=SEEDS, **BATCH, **each)
    for one, *request in zip(made, PROMPTS, GIVEN, SEEDS, strict=True):
        np.testing.assert_array_equal(one, plain(*request, **options))
    with pytest.raises(UserError, match="guidance"):
        refine(model, PROMPTS, GIVEN, seeds=SEEDS, guidance=3.0, **BATCH)


def test_fine_levels_can_be_drawn_cooler(model):
    """From the first level's temperature to the last one's, which here takes the likeliest code."""
    warm = refine(model, PROMPTS, GIVEN, seeds=SEEDS, **BATCH)
    cooling = refine(model, PROMPTS, GIVEN, seeds=SEEDS, final_temperature=0.0, **BATCH)
    best = refine(model, PROMPTS, [one[:, :2] for one in warm], seeds=SEEDS, temperature=0.0, **BATCH)
    for one, other, greedy in zip(warm, cooling, best, strict=True):
        np.testing.assert_array_equal(other[:, :2], one[:, :2])
        np.testing.assert_array_equal(other, greedy)
    assert any((one != other).any() for one, other in zip(warm, cooling, strict=True))


def test_a_song_may_stop_at_a_level(model):
    whole = refine(model, PROMPTS, GIVEN, seeds=SEEDS, **BATCH)
    for one, other in zip(whole, refine(model, PROMPTS, GIVEN, seeds=SEEDS, levels=2, **BATCH), strict=True):
        np.testing.assert_array_equal(other, one[:, :2])
    for levels in (1, 4):
        with pytest.raises(UserError, match="choose from 2 to 3"):
            refine(model, PROMPTS, GIVEN, seeds=SEEDS, levels=levels, **BATCH)


def test_batch_members_and_longer_padding_change_nothing(model):
    together = refine(model, PROMPTS, GIVEN, seeds=SEEDS, **BATCH)
    long = np.zeros((150, 1), int)
    wide = refine(model, [*PROMPTS, [2] * 60], [*GIVEN, long], seeds=[*SEEDS, 0], **BATCH)
    for b in range(3):
        alone = refine(model, PROMPTS[b : b + 1], GIVEN[b : b + 1], seeds=SEEDS[b : b + 1], **BATCH)
        np.testing.assert_array_equal(alone[0], together[b])
        np.testing.assert_array_equal(wide[b], together[b])


def test_the_seed_decides_and_the_given_levels_stay(model):
    given = np.random.default_rng(0).integers(0, 12, (9, 2))
    made = refine(model, [PROMPTS[0]] * 3, [given] * 3, seeds=[7, 8, 7], **BATCH)
    np.testing.assert_array_equal(made[0], made[2])
    assert (made[0] != made[1]).any()
    for one in made:
        np.testing.assert_array_equal(one[:, :2], given)


def test_every_pass_carries_its_own_marker(model):
    given = np.zeros((20, 1), int)
    made = refine(model, [PROMPTS[0]], [given], seeds=[0], temperature=0.0, **BATCH)[0]
    other = refine(model, [PROMPTS[0]], [given], seeds=[0], temperature=0.0, **BATCH | {"markers": (39, 38, 30)})[0]
    np.testing.assert_array_equal(made[:, :2], other[:, :2])
    assert (made[:, 2] != other[:, 2]).any()


class Greedy(TokenLM):
    """Wants codes that levels 1 and 2 do not have."""

    def level_logits(self, x, level):
        logits = super().level_logits(x, level)
        return logits + jnp.where(jnp.arange(logits.shape[-1]) >= 5, 1e4, 0)


def test_an_adversarial_head_draws_nothing_illegal(model):
    greedy = Greedy(model.config, rngs=nnx.Rngs(0))
    for one in refine(greedy, PROMPTS, GIVEN, seeds=SEEDS, **BATCH | {"sizes": (12, 3, 4)}):
        assert (one >= 0).all() and (one < (12, 3, 4)).all()


def test_one_program_for_all_passes_and_nearby_lengths(model):
    heard = []
    before = layerwise._pass._cache_size()
    for frames in (21, 33, 40):
        refine(
            model,
            [PROMPTS[0]],
            [np.zeros((frames, 1), int)],
            seeds=[0],
            progress=lambda *done: heard.append(done),
            **BATCH,
        )
    assert layerwise._pass._cache_size() - before <= 1
    assert heard == [(1, 2), (2, 2)] * 3


def test_what_cannot_work_is_refused(model):
    for prompts, codes in (
        ([[]], GIVEN[:1]),
        ([[1]], [np.zeros((4, 3), int)]),
        ([[1]], GIVEN[:2]),
        ([[1]] * 2, [np.zeros((4, 1), int), np.zeros((4, 2), int)]),
    ):
        with pytest.raises(ValueError):
            refine(model, prompts, codes, seeds=[0] * len(prompts), **BATCH)


def test_known_frames_are_kept_and_read(model):
    K = len(BATCH["sizes"])
    first = refine(model, PROMPTS[:1], GIVEN[:1], seeds=SEEDS[:1], **BATCH)[0]
    known = (first[:5] + 1) % min(BATCH["sizes"])
    made = refine(model, PROMPTS[:1], GIVEN[:1], seeds=SEEDS[:1], known=known, **BATCH)[0]
    np.testing.assert_array_equal(made[:5], known)
    assert made.shape == (len(GIVEN[0]), K) and (made[5:] != first[5:]).any()


UNEVEN = [(2, 4, 8), (3, 6, 12), (1, 2, 4)]


def test_levels_of_different_lengths_read_the_coarser_tokens_that_sound_there(model, reference):
    """From nothing: the first level reads the marker wherever it predicts; samples beside each other change nothing."""
    config, w = model.config, reference.weights_of(model)
    made = refine(model, PROMPTS, [np.zeros((1, 0), int)] * 3, lengths=UNEVEN, seeds=SEEDS, temperature=1.5, **BATCH)
    for codes, prompt, lengths, seed in zip(made, PROMPTS, UNEVEN, SEEDS, strict=True):
        assert isinstance(codes, tuple) and tuple(len(codes_T) for codes_T in codes) == lengths
        known = [np.full(length, -1) for length in lengths]
        for k, length in enumerate(lengths):
            reads_TK = pattern.layer_pass(lengths, k).build(known)[0]
            front = [*prompt[:-1], MARKERS[k]]
            text_S = np.array(front + [MARKERS[k] if k == 0 else -1] * length)
            reads_SK = np.concatenate([np.full((len(front), 3), -1), reads_TK])
            sees_SS = np.ones((len(text_S), len(text_S)), bool)
            hidden_TD = reference.row(config, w, text_S, reads_SK, sees_SS=sees_SS)[len(front) :]
            for t, row_V in enumerate(reference.code_logits(config, w, hidden_TD, k)):
                known[k][t] = reference.draw(row_V, reference.key_of(seed, k, t), temperature=1.5, **CUT)
            np.testing.assert_array_equal(codes[k], known[k])
    with pytest.raises(ValueError, match="lengths of its levels"):
        refine(model, PROMPTS, [np.zeros((1, 0), int)] * 3, seeds=SEEDS, **BATCH)
