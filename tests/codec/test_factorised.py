import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.codec.factorised import FactorisedConfig, alike
from hiermusic.errors import UserError

CONFIG = FactorisedConfig(levels=3, codes=16, width=4)
WIDTH = 6


def make(config=CONFIG, width=WIDTH):
    return nnx.jit(lambda: config.make(width, rngs=nnx.Rngs(0)))()


def frames(batch=2, count=10, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, count, WIDTH)).astype(np.float32)


run = nnx.jit(lambda quantiser, x: quantiser(x))
train = nnx.jit(lambda quantiser, x, key: quantiser(x, key=key, train=True))


def mapped(x, v, gain, bias):
    """A weight-normed linear map, in double precision."""
    v = np.asarray(v, np.float64)
    return x @ (gain * v / np.sqrt(np.sum(v**2, axis=0))) + bias


def by_hand(quantiser, x):
    """DAC's residual quantiser, level after level: codes, the sum, and per level both losses of each item."""
    names = ("codebooks", "in_proj", "in_gain", "in_bias", "out_proj", "out_gain", "out_bias")
    weights = [np.asarray(getattr(quantiser, name)[...], np.float64) for name in names]
    residual, total, codes, losses = x.astype(np.float64), 0.0, [], []
    for book, *maps in zip(*weights, strict=True):
        z_e = mapped(residual, *maps[:3])
        unit = [rows / np.linalg.norm(rows, axis=-1, keepdims=True) for rows in (z_e, book)]
        chosen = np.argmax(unit[0] @ unit[1].T, axis=-1)
        losses.append(np.mean((z_e - book[chosen]) ** 2, axis=(1, 2)))
        step = mapped(book[chosen], *maps[3:])  # the row itself, not its direction
        residual, total = residual - step, total + step
        codes.append(chosen)
    return np.stack(codes, -1), total, np.stack(losses)


def test_it_is_dacs_residual_quantiser():
    quantiser, x = make(), frames()
    codes, total, losses = by_hand(quantiser, x)
    out = run(quantiser, x)
    np.testing.assert_array_equal(out.codes_BPS, codes)
    np.testing.assert_allclose(out.z_q_BTD, total, atol=1e-5)
    assert float(out.commitment) == pytest.approx((1 + 0.25) * losses.mean(1).sum(), rel=1e-5)
    np.testing.assert_allclose(out.stats["commitment_K"], losses.mean(1), rtol=1e-5)
    np.testing.assert_array_equal(quantiser.encode(x), codes)
    np.testing.assert_array_equal(quantiser.encode(x, 2), codes[..., :2])
    np.testing.assert_allclose(quantiser.decode(codes), total, atol=1e-5)
    np.testing.assert_array_equal(quantiser.decode(codes, 2), quantiser.decode(np.where(np.arange(3) < 2, codes, -1)))


def test_a_code_is_chosen_by_its_direction_and_the_first_of_equals():
    book = np.array([[10.0, 0.0], [0.0, 0.1], [0.0, 7.0]])
    assert alike(jnp.array([[1.0, 0.9], [0.1, 5.0], [-1.0, 0.5]]), jnp.asarray(book)).tolist() == [0, 1, 1]


def test_the_gradient_is_that_of_codes_that_move_along():
    """By finite differences of the same sum in which every code is its vector and a constant."""
    quantiser, x = make(), frames(batch=1, count=3)
    names = ("in_proj", "in_gain", "in_bias", "out_proj", "out_gain", "out_bias")
    weights = [np.asarray(getattr(quantiser, name)[...], np.float64) for name in names]
    probe = np.random.default_rng(1).normal(size=x.shape)
    books, codes = np.asarray(quantiser.codebooks[...], np.float64), by_hand(quantiser, x)[0]

    def surrogate(x, offsets=None):
        residual, total, found = x, 0.0, []
        for k, maps in enumerate(zip(*weights, strict=True)):
            z_e = mapped(residual, *maps[:3])
            found.append(books[k][codes[..., k]] - z_e if offsets is None else offsets[k])
            step = mapped(z_e + found[-1], *maps[3:])
            residual, total = residual - step, total + step
        return np.sum(total * probe), found

    gradient = jax.grad(lambda x: jnp.sum(quantiser(x).z_q_BTD * probe))(jnp.asarray(x))
    offsets = surrogate(x.astype(np.float64))[1]
    for place in np.ndindex(x.shape):
        change = np.zeros(x.shape)
        change[place] = 1e-4
        slope = (surrogate(x + change, offsets)[0] - surrogate(x - change, offsets)[0]) / 2e-4
        assert float(gradient[place]) == pytest.approx(slope, rel=1e-3, abs=1e-4)


def test_codes_are_drawn_to_vectors_and_vectors_to_codes():
    """Four times as strongly the one way as the other; the maps behind the codes learn from the sound alone."""
    quantiser, x = make(FactorisedConfig(levels=1, codes=16, width=4)), frames()
    graph, weights, rest = nnx.split(quantiser, nnx.Param, ...)

    def loss(weights):
        return nnx.merge(graph, weights, rest)(x).commitment

    found = jax.grad(loss)(weights)
    codes, _, _ = by_hand(quantiser, x)
    z_e = mapped(x, *(np.asarray(getattr(quantiser, f"in_{name}")[0]) for name in ("proj", "gain", "bias")))
    apart = np.asarray(quantiser.codebooks[0])[codes[..., 0]] - z_e
    drawn = np.zeros((16, 4))
    np.add.at(drawn, codes[..., 0], 2 * apart / apart.size)
    np.testing.assert_allclose(found.codebooks[...][0], drawn, atol=1e-5)
    np.testing.assert_allclose(found.in_bias[...][0], -0.25 * 2 * apart.sum((0, 1)) / apart.size, atol=1e-5)
    assert not np.any(found.out_proj[...])
    through = jax.grad(lambda weights: jnp.sum(nnx.merge(graph, weights, rest)(x).z_q_BTD))(weights)
    assert not np.any(through.codebooks[...]) and np.any(through.out_proj[...]) and np.any(through.in_proj[...])


def test_past_the_codebooks_goes_what_the_maps_let_through():
    quantiser, x = make(), frames()
    residual, total = x.astype(np.float64), 0.0
    for k in range(3):
        maps = [[np.asarray(getattr(quantiser, f"{way}_{name}")[k]) for name in ("proj", "gain", "bias")]
                for way in ("in", "out")]  # fmt: skip
        step = mapped(mapped(residual, *maps[0]), *maps[1])
        residual, total = residual - step, total + step
    np.testing.assert_allclose(quantiser.bypass(x)[0], total, atol=1e-5)


def test_dropout_lets_some_items_hear_the_first_levels_alone():
    quantiser, x = make(FactorisedConfig(levels=3, codes=16, width=4, dropout=0.5)), frames(batch=400, count=2)
    out = train(quantiser, x, jax.random.key(0))
    codes, total, losses = by_hand(quantiser, x)
    np.testing.assert_array_equal(out.codes_BPS, codes)
    sums = [np.asarray(quantiser.decode(codes, depth)) for depth in (1, 2, 3)]
    apart = np.stack([np.abs(np.asarray(out.z_q_BTD) - one).max((1, 2)) for one in sums])
    assert apart.min(0).max() < 1e-4
    depth = apart.argmin(0) + 1
    shares = np.bincount(depth, minlength=4)[1:] / 400
    np.testing.assert_allclose(shares, [1 / 6, 1 / 6, 2 / 3], atol=0.07)
    heard = np.arange(1, 4)[:, None] <= depth
    assert float(out.commitment) == pytest.approx(1.25 * np.where(heard, losses, 0).mean(1).sum(), rel=1e-4)
    np.testing.assert_allclose(run(quantiser, x).z_q_BTD, total, atol=1e-4)  # none but in training


def test_counts_follow_the_codes_and_nothing_else_moves():
    quantiser, x = make(), frames()
    before = np.asarray(quantiser.codebooks[...])
    out = train(quantiser, x, jax.random.key(0))
    hits = np.stack([np.bincount(np.asarray(out.codes_BPS)[..., k].ravel(), minlength=16) for k in range(3)])
    np.testing.assert_allclose(quantiser.ema_counts[...], 0.01 * hits, rtol=1e-5)
    np.testing.assert_array_equal(quantiser.codebooks[...], before)
    stats = run(quantiser, x).stats
    share = hits / hits.sum(1, keepdims=True)
    entropy = -np.sum(share * np.log(np.maximum(share, 1e-12)), 1)
    np.testing.assert_allclose(stats["perplexity_K"], np.exp(entropy), rtol=1e-4)
    np.testing.assert_allclose(stats["usage_K"], np.mean(hits > 0, 1))


def test_codes_begin_and_begin_again_where_vectors_are():
    config = FactorisedConfig(levels=2, codes=16, width=4, kmeans_iterations=5, dead_share=0.3, decay=0.5)
    quantiser, x = make(config), frames(batch=8, count=40)
    drawn = np.asarray(quantiser.codebooks[...])
    train(quantiser, x, jax.random.key(0))
    assert bool(quantiser.initialised[...])
    begun = np.asarray(quantiser.codebooks[...])
    assert np.all(np.any(begun != drawn, axis=-1))
    assert np.all(np.asarray(run(quantiser, x).stats["commitment_K"]) < 0.5)  # of vectors of variance about one
    quantiser.codebooks[0, 5] = quantiser.codebooks[0, 6] * 1e-6  # never chosen before its twin of lower index
    quantiser.codebooks[0, 6] = quantiser.codebooks[0, 4]
    for seed in range(4):
        train(quantiser, x, jax.random.key(seed))
    assert np.any(np.asarray(quantiser.codebooks[0, 6]) != np.asarray(quantiser.codebooks[0, 4]))


def test_gradients_reach_the_codes_that_a_step_begins_with():
    """A step may write its codes; the optimiser then moves what was written."""
    config = FactorisedConfig(levels=1, codes=16, width=4, kmeans_iterations=2)
    quantiser, x = make(config), frames()

    @nnx.jit
    def step(quantiser, x):
        def loss(quantiser):
            return quantiser(x, key=jax.random.key(0), train=True).commitment

        return nnx.value_and_grad(loss)(quantiser)

    first, _ = step(quantiser, x)
    begun = np.asarray(quantiser.codebooks[...])
    second, gradient = step(quantiser, x)
    assert float(second) == pytest.approx(float(first), rel=1e-4)
    np.testing.assert_array_equal(quantiser.codebooks[...], begun)
    assert np.any(gradient.codebooks[...])


def test_facts_are_those_of_residual_codes():
    facts = CONFIG.facts(22_050, 512, 1024)
    assert (facts.quantiser, facts.levels, facts.codes, facts.latent) == ("residual", 3, 16, 1024)
    assert facts.slots == CONFIG.slots == (1, 1, 1) and CONFIG.frames == 1


@pytest.mark.parametrize(
    ("wrong", "words"), [({"levels": 0}, "model.books=0"), ({"dropout": 1.5}, "model.quantiser_dropout=1.5")]
)
def test_what_cannot_be_is_one_line(wrong, words):
    with pytest.raises(UserError, match=words):
        FactorisedConfig(**wrong)
