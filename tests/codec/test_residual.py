import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hiermusic.codec.codebook import CodebookConfig, first_codes, nearest
from hiermusic.codec.residual import QuantiserConfig, ResidualQuantiser, draw_depths

CONFIG = QuantiserConfig(levels=3, codes=8, kmeans_iterations=10)


_train = nnx.jit(lambda quantiser, x, key: quantiser(x, key=key, train=True))
_evaluate = nnx.jit(lambda quantiser, x: quantiser(x))
_encode = nnx.jit(lambda quantiser, x, levels: quantiser.encode(x, levels), static_argnums=2)
_decode = nnx.jit(lambda quantiser, codes, levels: quantiser.decode(codes, levels), static_argnums=2)


def _frames(seed, batch=4, frames=10, width=5):
    return np.random.default_rng(seed).normal(size=(batch, frames, width)).astype(np.float32)


def _fresh(config=CONFIG):
    return nnx.jit(lambda: ResidualQuantiser(5, config, rngs=nnx.Rngs(0)))()


def _quantiser(config=CONFIG):
    quantiser = _fresh(config)
    _train(quantiser, _frames(0), jax.random.key(0))
    return quantiser


def test_straight_through_is_the_identity_and_every_level_commits():
    quantiser, x, g = _quantiser(), _frames(7), _frames(8)

    @jax.jit
    def gradients(x):
        straight = jax.grad(lambda x: jnp.sum(quantiser(x).z_q_BTD * g))(x)
        return straight, jax.jacrev(lambda x: quantiser(x).stats["commitment_K"])(x)

    straight, commitment = gradients(x)
    np.testing.assert_allclose(straight, g)
    codes = _encode(quantiser, x, None)
    for level in range(CONFIG.levels):
        assert np.abs(commitment[level]).max() > 1e-4
        # The codes are constants: the gradient is that of the squared residual.
        residual = x - _decode(quantiser, codes, level + 1)
        np.testing.assert_allclose(commitment[level], 2 * residual / x.size, atol=1e-6)


def test_commitment_is_the_mean_squared_residual_per_level():
    quantiser, x = _quantiser(), _frames(7)
    out = _evaluate(quantiser, x)
    codes = _encode(quantiser, x, None)
    expected = [float(jnp.mean((x - _decode(quantiser, codes, k + 1)) ** 2)) for k in range(CONFIG.levels)]
    np.testing.assert_allclose(out.stats["commitment_K"], expected, rtol=1e-5)
    assert float(out.commitment) == pytest.approx(np.mean(expected), rel=1e-5)


def test_encode_and_decode_agree_with_the_forward_pass():
    quantiser, x = _quantiser(), _frames(7)
    out, codes = _evaluate(quantiser, x), _encode(quantiser, x, None)
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, out.codes_BPS)
    np.testing.assert_array_equal(codes, _encode(quantiser, x, None))
    np.testing.assert_allclose(_decode(quantiser, codes, None), out.z_q_BTD, atol=1e-6)
    np.testing.assert_array_equal(_encode(quantiser, x, 2), codes[..., :2])
    np.testing.assert_array_equal(_decode(quantiser, codes[..., :2], None), _decode(quantiser, codes, 2))


def test_nearest_is_euclidean():
    x, book = np.asarray(_frames(0)).reshape(-1, 5), np.asarray(_frames(1)).reshape(-1, 5)
    expected = np.argmin(((x[:, None] - book[None]) ** 2).sum(-1), axis=1)
    np.testing.assert_array_equal(jax.jit(nearest)(x, book), expected)


def test_kmeans_lowers_the_error_and_counts_every_point():
    points = np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)

    key = jax.random.key(0)

    def error(iterations):
        config = CodebookConfig(codes=16, kmeans_iterations=iterations)
        first = jax.jit(first_codes, static_argnums=0)(config, key, points)
        assert first.counts.sum() == 500
        return np.mean(np.min(((points[:, None] - np.asarray(first.book)) ** 2).sum(-1), axis=1))

    assert error(20) < 0.95 * error(1) < 0.95 * error(0)


def test_first_batch_initialises_level_by_level():
    quantiser = _fresh()
    x = _frames(0)
    out = _train(quantiser, x, jax.random.key(0))
    assert bool(quantiser.initialised[...])
    assert np.all(np.diff(out.stats["commitment_K"]) < 0)
    assert float(out.commitment) < 0.7 * np.mean(x**2)


def test_more_codes_than_vectors_gives_distinct_codes():
    quantiser = _fresh(dataclasses.replace(CONFIG, codes=64))
    out = _train(quantiser, _frames(0), jax.random.key(0))
    assert np.isfinite(out.z_q_BTD).all()
    book = np.asarray(quantiser.codebooks[0])
    assert len(np.unique(book.round(6), axis=0)) == 64


def test_ema_step_is_the_written_formula():
    config = dataclasses.replace(CONFIG, levels=1, dead_share=0.0)
    quantiser, x = _quantiser(config), _frames(3)
    book, sums, counts = (np.asarray(v[0]) for v in (quantiser.codebooks, quantiser.ema_sums, quantiser.ema_counts))
    points = np.asarray(x).reshape(-1, 5)
    codes = np.argmin(((points[:, None] - book[None]) ** 2).sum(-1), axis=1)
    hits = np.bincount(codes, minlength=8)
    counts = 0.99 * counts + 0.01 * hits
    sums = 0.99 * sums + 0.01 * np.stack([points[codes == v].sum(0) for v in range(8)])
    smooth = (counts + 1e-5) / (counts.sum() + 8e-5) * counts.sum()
    _train(quantiser, x, jax.random.key(0))
    np.testing.assert_allclose(quantiser.ema_counts[0], counts, rtol=1e-5)
    np.testing.assert_allclose(quantiser.codebooks[0], sums / smooth[:, None], rtol=1e-4, atol=1e-5)


def test_dead_codes_come_back_to_life():
    config = dataclasses.replace(CONFIG, levels=1, dead_share=0.1)
    quantiser = _quantiser(config)
    # Six of eight codes are sent far away and forgotten.
    for variable, value in ((quantiser.codebooks, 1e3), (quantiser.ema_sums, 0), (quantiser.ema_counts, 0)):
        changed = np.array(variable[...])
        changed[0, :6] = value
        variable[...] = jnp.asarray(changed)
    x = _frames(3)
    assert set(np.unique(_encode(quantiser, x, None))) <= {6, 7}
    out = _train(quantiser, x, jax.random.key(1))
    assert float(out.stats["usage_K"][0]) == pytest.approx(2 / 8)
    book, points = np.asarray(quantiser.codebooks[0]), np.asarray(x).reshape(-1, 5)
    # Where each vector's code has moved to; the two that are alive own every vector.
    between = points[:, None] + (1 - 5**-0.5) * (book[6:] - points[:, None])
    nearest_code, distinct = np.abs(between[None] - book[:6, None, None]).max(-1).min(-1).argmin(1), set()
    for code, vector in enumerate(nearest_code):
        assert np.abs(between[vector] - book[code]).max(-1).min() < 1e-6, "a replaced code is near a live one"
        distinct.add(vector)
    assert len(distinct) == 6, "and no vector replaces two"
    np.testing.assert_allclose(quantiser.ema_sums[0, :6], book[:6] * np.asarray(quantiser.ema_counts[0, :6])[:, None])
    assert len(np.unique(_encode(quantiser, x, None))) == 8
    for step in range(3):
        out = _train(quantiser, x, jax.random.key(step))
    assert float(out.stats["usage_K"][0]) == 1.0
    assert float(out.stats["perplexity_K"][0]) > 3


def test_evaluation_moves_nothing():
    quantiser = _quantiser()
    before = jax.tree.map(np.asarray, nnx.state(quantiser))
    _evaluate(quantiser, _frames(9))
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, nnx.state(quantiser)))


def test_depths_follow_the_dropout_mode():
    def share(mode):
        config = QuantiserConfig(levels=64, dropout=mode)
        depths = np.asarray(jax.jit(lambda key: draw_depths(config, key, 20_000))(jax.random.key(0)))
        return np.bincount(depths, minlength=65) / len(depths)

    assert share("off")[64] == 1
    uniform = share("uniform")
    assert abs(uniform[64] - (0.2 + 0.8 / 64)) < 0.01 and np.all(uniform[1:64] > 0.005) and uniform[0] == 0
    biased = share("low_biased")
    targets = [*range(1, 17), *range(18, 33, 2), *range(36, 65, 4)]
    assert abs(biased[64] - (0.5 + 0.5 / 32)) < 0.01
    assert set(np.flatnonzero(biased)) == set(targets)


def test_dropout_reconstructs_each_item_from_its_first_levels():
    config = dataclasses.replace(CONFIG, dropout="uniform")
    quantiser, x = _quantiser(config), _frames(7, batch=32)
    key = jax.random.key(5)
    depths = np.asarray(jax.jit(lambda key: draw_depths(config, jax.random.split(key)[0], 32))(key))
    assert set(depths) == {1, 2, 3}
    before = nnx.clone(quantiser)
    out = _train(quantiser, x, key)
    commitment = []
    for depth in (1, 2, 3):
        expected = np.asarray(_decode(before, out.codes_BPS, depth))
        np.testing.assert_allclose(out.z_q_BTD[depths == depth], expected[depths == depth], atol=1e-6)
        # an item pays for the levels that it is heard through, and for no other
        left_over = np.where((depths >= depth)[:, None, None], (x - expected) ** 2, 0)
        commitment.append(left_over.mean())
    np.testing.assert_allclose(out.stats["commitment_K"], commitment, rtol=1e-4)
    assert float(out.commitment) == pytest.approx(np.mean(commitment), rel=1e-4)


def test_a_sharded_batch_moves_the_codebooks_as_one_device_does():
    config = dataclasses.replace(CONFIG, codes=16, dead_share=0.5)
    graph, fresh = nnx.split(_fresh(config))

    @jax.jit
    def step(state, x, key):
        quantiser = nnx.merge(graph, state)
        out = quantiser(x, key=key, train=True)
        return nnx.state(quantiser), out.codes_BPS

    mesh = Mesh(np.array(jax.devices()), ("data",))
    placements = [
        (NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())),
        (jax.devices()[0], jax.devices()[0]),
    ]
    results = []
    for batch_place, state_place in placements:
        state = jax.device_put(fresh, state_place)
        for seed in range(4):
            state, codes = step(state, jax.device_put(_frames(seed, batch=8), batch_place), jax.random.key(seed))
        results.append((jax.tree.map(np.asarray, state), np.asarray(codes)))
    np.testing.assert_array_equal(results[0][1], results[1][1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), results[0][0], results[1][0])
