"""Next-scale decoding against the plainest loop there is, in NumPy: the whole window anew for every level."""

import jax
import numpy as np
import pytest
from flax import nnx

from hiermusic.codec.multiscale import MultiscaleConfig
from hiermusic.errors import UserError
from hiermusic.generate import nextscale
from hiermusic.generate.nextscale import generate
from hiermusic.parallel.mesh import make_mesh, shardings
from hiermusic.tokens import pattern

SLOTS, CODES, LATENT = (1, 3, 6), 12, 5
SEEDS = [3, 1]
_DRAW = np.random.default_rng(1)
COND, UNCOND = _DRAW.normal(size=(2, 6)).astype(np.float32), _DRAW.normal(size=6).astype(np.float32)
CONTEXT = _DRAW.normal(size=(2, 3, LATENT)).astype(np.float32)
DRAWN = {"temperature": 4.0, "top_k": 6, "top_p": 0.7}
SAME = {"seeds": SEEDS, **DRAWN}
GUIDED = {"guidance": 4.0, "uncond_U": UNCOND}


@pytest.fixture(scope="module")
def quantiser():
    config = MultiscaleConfig(scales=SLOTS, codes=CODES, latent=LATENT, phi="shared", kernel=3)
    made = jax.jit(lambda: config.make(LATENT, rngs=nnx.Rngs(0)))()
    made.codebooks[...] = made.codebooks[...] * 50  # the size that trained latents have
    return made


@pytest.fixture(scope="module")
def lm(conditioned):
    return conditioned(
        sum(SLOTS) + CONTEXT.shape[1], levels=len(SLOTS), head="shared", reads=False, inputs=LATENT, level_embed=True
    )


@pytest.fixture(scope="module")
def plain(reference, lm, quantiser):
    """One sample of one window in NumPy, and the context of the next; the quantiser's sums alone are the package's."""
    config, w = lm.config, reference.weights_of(lm)
    inputs = jax.jit(lambda codes: quantiser.inputs(codes))

    def window_of(cond_U, seed, window, context_CE, *, guidance=1.0, uncond_U=None, **options):
        C, S = len(context_CE), sum(SLOTS)
        stretch_S = np.repeat(np.arange(4), (C, *SLOTS))  # the context, then level 0, ...
        row = {
            "text_S": np.where(stretch_S == 1, 0, -1),
            "levels_S": np.where(stretch_S == 0, 3, stretch_S - 1),
            "sees_SS": stretch_S[None] <= stretch_S[:, None],
        }
        codes_S = np.full(S, -1)
        for level in range(3):
            row["inputs_SE"] = np.concatenate([context_CE, inputs(codes_S[None])[0]])
            due_S = stretch_S == level + 1
            logits = [
                reference.code_logits(config, w, reference.row(config, w, cond_U=cond, **row)[due_S], level)
                for cond in ([cond_U] if uncond_U is None else [cond_U, uncond_U])
            ]
            if len(logits) == 2:
                logits[0] = logits[1] + (1 + (guidance - 1) * level / 2) * (logits[0] - logits[1])
            codes_S[due_S[C:]] = [
                reference.draw(row_V, reference.key_of(seed, window, level, i), **options)
                for i, row_V in enumerate(logits[0])
            ]
        # The trunk's frames are as wide as the codes here, so that decoding maps nothing.
        return codes_S, np.asarray(quantiser.decode(codes_S[None, None])[0, SLOTS[-1] - C :])

    return window_of


@pytest.mark.parametrize("context", [0, 3])
@pytest.mark.parametrize("guided", [False, True])
def test_chained_windows_equal_plain_decoding_of_each(lm, quantiser, plain, context, guided):
    options = GUIDED if guided else {}
    carried = CONTEXT[:, :context]
    made = generate(lm, quantiser, COND, windows=2, context=context, before_BcE=carried, **SAME, **options)
    assert made.shape == (2, 2, sum(SLOTS)) and made.dtype == np.int32
    for b, seed in enumerate(SEEDS):
        context_CE = carried[b]
        for window in range(2):
            expected, context_CE = plain(COND[b], seed, window, context_CE, **DRAWN, **options)
            np.testing.assert_array_equal(made[b, window], expected)


def test_none_of_the_cuts_is_idle(plain):
    """Leaving one out draws other codes, so that decoding which agrees with all of them makes all of them."""
    for name in DRAWN:
        less = {key: value for key, value in DRAWN.items() if key != name}
        one, other = (plain(COND[0], 3, 0, CONTEXT[0], **how)[0] for how in (DRAWN, less))
        assert (one != other).any(), name


def test_the_seed_decides_whatever_the_batch(lm, quantiser):
    cond = COND[[0, 0]]
    both = generate(lm, quantiser, cond, **SAME | {"seeds": [7, 8]}, **GUIDED)
    for b, seed in enumerate((7, 8)):
        alone = generate(lm, quantiser, cond[:1], **SAME | {"seeds": [seed]}, **GUIDED)
        np.testing.assert_array_equal(alone[0], both[b])
    assert (both[0] != both[1]).any()
    np.testing.assert_array_equal(*generate(lm, quantiser, cond, **SAME | {"seeds": [7, 7]}, **GUIDED))


def test_condition_guidance_and_context_are_heard(lm, quantiser):
    greedy = SAME | {"temperature": 0.0}
    plainly = generate(lm, quantiser, COND, **greedy)
    variants = (
        generate(lm, quantiser, COND[::-1], **greedy),
        generate(lm, quantiser, COND, **greedy, **GUIDED),
        generate(lm, quantiser, COND, **greedy, context=3, before_BcE=CONTEXT),
    )
    for other in variants:
        assert (other != plainly).any()
    # the first level is never moved
    np.testing.assert_array_equal(variants[1][..., 0], plainly[..., 0])
    np.testing.assert_array_equal(generate(lm, quantiser, COND, **greedy, guidance=1.0, uncond_U=UNCOND), plainly)


def test_windows_share_a_program_and_are_told_of(lm, quantiser):
    heard, before = [], nextscale._window._cache_size()
    made = generate(lm, quantiser, COND, windows=3, **SAME, progress=lambda *done: heard.append(done))
    assert heard == [(1, 3), (2, 3), (3, 3)] and nextscale._window._cache_size() - before <= 1
    assert (made[:, 0] != made[:, 1]).any()


def test_the_program_to_lower_is_the_one_that_runs(lm, quantiser):
    run, arguments = nextscale.program(lm.unstack(), quantiser, COND, **SAME, **GUIDED)
    np.testing.assert_array_equal(run(*arguments)[0], generate(lm, quantiser, COND, **SAME, **GUIDED)[:, 0])
    abstract = nnx.eval_shape(lambda: lm.unstack())
    run, arguments = nextscale.program(abstract, quantiser, COND, **SAME, **GUIDED)
    lowered = run.func.lower(*arguments, **run.keywords)
    assert jax.tree.leaves(lowered.out_info)[0].shape == (2, sum(SLOTS))


def test_eight_devices_draw_what_one_draws(lm, quantiser):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    graphdef, weights = nnx.split(lm)
    spread = nnx.merge(graphdef, jax.device_put(weights, shardings(weights, mesh)))
    with jax.set_mesh(mesh):
        many = generate(spread, quantiser, COND, **SAME, **GUIDED)
    np.testing.assert_array_equal(many, generate(lm, quantiser, COND, **SAME, **GUIDED))


def test_what_cannot_work_is_refused(lm, quantiser):
    with pytest.raises(UserError, match="guidance 3"):
        generate(lm, quantiser, COND, **SAME, guidance=3.0)
    with pytest.raises(UserError, match="condition of 4 numbers does not fit a model of 6"):
        generate(lm, quantiser, COND[:, :4], **SAME)
    for options in ({"context": 7}, {"context": 2, "before_BcE": CONTEXT}):
        with pytest.raises(ValueError, match=f"context of {options['context']} frames"):
            generate(lm, quantiser, COND, **SAME, **options)
    with pytest.raises(ValueError, match="batch"):
        generate(lm, quantiser, COND[:1], **SAME)


# MARK: models that read codes

WINDOW, PROMPTS = (2, 4, 8), [[5, 6, 7, 8], [9, 2, 2, 10]]
HOW = {"seeds": SEEDS, "sizes": (12, 12, 12), **DRAWN}


@pytest.fixture(scope="module")
def whole(reference, model):
    """One sample in NumPy: the whole row anew for every level, without a cache."""
    config, w = model.config, reference.weights_of(model)
    order = pattern.next_scale(WINDOW)

    def drawn(prompt, seed, lengths=WINDOW, given=(), *, unprompted=None, guidance=1.0, **options):
        codes = [np.full(n, -1) for n in WINDOW]
        for k, codes_T in enumerate(given):
            codes[k][: len(codes_T)] = codes_T
        rule = pattern.next_scale(WINDOW, len(given)).behind(len(prompt))
        first = sum(WINDOW[: len(given)])
        positions = np.arange(len(prompt) + sum(WINDOW) - first)
        for k in range(len(given), 3):
            reads_SK = order.build(codes)[0][first:]
            is_there_S = np.concatenate([np.arange(n) < m for n, m in zip(WINDOW, lengths, strict=True)])[first:]
            logits = []
            for words in [prompt] if unprompted is None else [prompt, unprompted]:
                text_S = np.where((reads_SK < 0).all(1) & is_there_S & (order.level_S[first:] <= k), words[-1], -1)
                row = {"sees_SS": np.asarray(rule.mask(positions, positions))}
                reads = np.concatenate([np.full((len(words), 3), -1), reads_SK])
                hidden_SD = reference.row(config, w, np.concatenate([words, text_S]), reads, **row)[len(words) :]
                logits.append(reference.code_logits(config, w, hidden_SD[order.level_S[first:] == k], k))
            if len(logits) == 2:
                logits[0] = logits[1] + guidance * (logits[0] - logits[1])
            for t in range(lengths[k]):
                codes[k][t] = reference.draw(logits[0][t], reference.key_of(seed, k, t), **options)
        return [codes_T[:length] for codes_T, length in zip(codes, lengths, strict=True)]

    return drawn


@pytest.mark.parametrize("guided", [False, True])
def test_cached_passes_over_codes_equal_whole_rows(model, whole, guided):
    lengths = [WINDOW, (1, 2, 4)]
    options = {"unprompted": [[3] * 4] * 2, "guidance": 2.0} if guided else {}
    made = nextscale.draw(model, PROMPTS, WINDOW, lengths=lengths, **HOW, **options)
    for b, codes in enumerate(made):
        one = {"unprompted": [3] * 4, "guidance": 2.0} if guided else {}
        for found, expected in zip(codes, whole(PROMPTS[b], SEEDS[b], lengths[b], **DRAWN, **one), strict=True):
            np.testing.assert_array_equal(found, expected)
    if guided:
        return
    alone = nextscale.draw(model, PROMPTS[1:], WINDOW, lengths=lengths[1:], **HOW | {"seeds": SEEDS[1:]})
    for found, expected in zip(alone[0], made[1], strict=True):
        np.testing.assert_array_equal(found, expected)


def test_given_levels_are_read_and_known_tokens_kept(model, whole):
    level_0 = np.array([[4, 7], [1, 2]])
    made = nextscale.draw(model, PROMPTS, WINDOW, given=1, known=[[one] for one in level_0], **HOW)
    for b, codes in enumerate(made):
        for found, expected in zip(codes, whole(PROMPTS[b], SEEDS[b], given=[level_0[b]], **DRAWN), strict=True):
            np.testing.assert_array_equal(found, expected)
    free = nextscale.draw(model, PROMPTS, WINDOW, **HOW)
    cooling = nextscale.draw(model, PROMPTS, WINDOW, **HOW, final_temperature=0.0)
    known = [[*one[:2], []] for one in cooling]
    likeliest = nextscale.draw(model, PROMPTS, WINDOW, known=known, **HOW | {"temperature": 0.0})
    for one, cooled, cold in zip(free, cooling, likeliest, strict=True):
        np.testing.assert_array_equal(cooled[0], one[0])
        np.testing.assert_array_equal(cooled[2], cold[2])
    assert any((one[2] != cooled[2]).any() for one, cooled in zip(free, cooling, strict=True))
    known = [[(codes_T[: len(codes_T) // 2] + 1) % 12 for codes_T in one] for one in free]
    kept = nextscale.draw(model, PROMPTS, WINDOW, known=known, **HOW)
    for codes, begun in zip(kept, known, strict=True):
        for codes_T, begun_T in zip(codes, begun, strict=True):
            np.testing.assert_array_equal(codes_T[: len(begun_T)], begun_T)
    assert nextscale.draw(model, PROMPTS, (4, 4, 4), **HOW)[0].shape == (4, 3)
    with pytest.raises(UserError, match="guidance 2"):
        nextscale.draw(model, PROMPTS, WINDOW, guidance=2.0, **HOW)
    with pytest.raises(ValueError, match="prompts of one length"):
        nextscale.draw(model, [[1], [1, 2]], WINDOW, **HOW)
