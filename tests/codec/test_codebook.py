"""Codes out of use come back where they are chosen, at every level of a deep quantiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.codec.codebook import Averages, reborn
from hiermusic.codec.multiscale import MultiscaleConfig
from hiermusic.codec.residual import QuantiserConfig

CODES, STEPS = 64, 80
LEARNING = dict(codes=CODES, decay=0.95, dead_share=0.5, kmeans_iterations=5)


def _perplexities(config, width, frames):
    """Of the codes of each level in the last batches of a stream, 176 vectors each, whose channels weaken slowly."""
    x = np.random.default_rng(0).normal(size=(STEPS, 176 // frames, frames, width)) * np.exp(-np.arange(width) / 64)
    graph, state = nnx.split(nnx.jit(lambda: config.make(width, rngs=nnx.Rngs(0)))())

    @jax.jit
    def run(state, xs):
        def step(state, inputs):
            x, key = inputs
            quantiser = nnx.merge(graph, state)
            out = quantiser(x, key=key, train=True)
            return nnx.state(quantiser), out.codes_BPS

        return jax.lax.scan(step, state, (xs, jax.random.split(jax.random.key(0), STEPS)))[1]

    codes_MS = np.asarray(run(state, x.astype(np.float32))[-20:]).reshape(-1, sum(config.slots))
    found = []
    for codes in np.split(codes_MS, np.cumsum(config.slots)[:-1], axis=1):
        share = np.bincount(codes.ravel(), minlength=CODES) / codes.size
        found.append(np.exp(-np.sum(share * np.log(share + 1e-12))))
    return np.array(found)


@pytest.mark.parametrize("width", [8, 128])
def test_every_level_of_a_deep_residual_quantiser_keeps_its_codes(width):
    assert _perplexities(QuantiserConfig(levels=16, **LEARNING), width, frames=22).min() > CODES / 4


def test_every_level_of_a_multiscale_quantiser_keeps_its_codes():
    sizes = dict(scales=(2, 4, 6, 8, 9, 10, 11), latent=128, phi="shared", kernel=3, gamma=0.1)
    assert _perplexities(MultiscaleConfig(**sizes, **LEARNING), 128, frames=11).min() > CODES / 4


def test_a_new_code_stands_between_its_owner_and_its_vector_and_the_owner_stays():
    book = jnp.asarray([[0.0] * 4, [8.0] * 4, [1.0] * 4, [2.0] * 4])
    now = Averages(book, book * jnp.asarray([[0.0], [5.0], [3.0], [0.0]]), jnp.asarray([0.0, 5.0, 3.0, 0.0]))
    vectors, owners = jnp.asarray([[10.0] * 4, [9.0] * 4, [9.0] * 4, [6.0] * 4]), jnp.asarray([1, 1, 1, 1])
    book, sums, counts = jax.jit(reborn)(now, jnp.asarray([True, False, False, True]), vectors, owners, 0.5)
    np.testing.assert_allclose(book[:, 0], [9.0, 8.0, 1.0, 7.0], err_msg="half of the way in four dimensions")
    np.testing.assert_allclose(counts, [0.5, 5.0, 3.0, 0.5])
    np.testing.assert_allclose(sums, book * counts[:, None])
