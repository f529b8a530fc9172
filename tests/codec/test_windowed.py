"""A codec whose rows are windows: trunk on one window at a time or across them, and past the quantiser."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.codec.chunked import decode_long, encode_long
from hiermusic.codec.codec import Codec, CodecConfig
from hiermusic.codec.multiscale import MultiscaleConfig
from hiermusic.codec.seanet import SeanetConfig

WINDOWED = CodecConfig(
    sample_rate=60,
    channels=1,
    trunk=SeanetConfig(strides=(2, 3), width=4, latent=6),
    quantiser=MultiscaleConfig(scales=(1, 3, 5), codes=8, latent=4, phi="shared", kernel=3, kmeans_iterations=2),
    windowed=True,
)
ROW, WINDOWS = 30, 3

_encode = nnx.jit(lambda codec, wav: codec.encode(wav))
_decode = nnx.jit(lambda codec, codes: codec.decode(codes))
_past_gradient = nnx.jit(nnx.grad(lambda codec, wav: jnp.mean((codec.forward(wav, quantise=False).wav_BLC - wav) ** 2)))


@pytest.fixture(scope="module")
def codec():
    codec = nnx.jit(lambda: Codec(WINDOWED, rngs=nnx.Rngs(0)))()
    nnx.jit(lambda codec, wav: codec.forward(wav, key=jax.random.key(0), train=True))(codec, _noise(3, batch=16))
    return codec


@pytest.fixture(scope="module")
def across(codec):
    """The same weights, trunk over all windows at once."""
    config = dataclasses.replace(WINDOWED, windowed=False)
    graph, _ = nnx.split(nnx.eval_shape(lambda: Codec(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, nnx.state(codec))


def _noise(seed, batch=2, windows=WINDOWS):
    return np.random.default_rng(seed).normal(size=(batch, windows * ROW, 1)).astype(np.float32)


def test_windows_are_coded_as_if_each_were_alone(codec, across):
    wav, codes = _noise(1), np.random.default_rng(2).integers(0, 8, (2, WINDOWS, 9))
    alone = np.concatenate([_encode(codec, wav[:, r * ROW : (r + 1) * ROW]) for r in range(WINDOWS)], 1)
    np.testing.assert_array_equal(_encode(codec, wav), alone)
    assert (alone != _encode(across, wav)).any()
    heard = np.concatenate([_decode(codec, codes[:, r : r + 1]) for r in range(WINDOWS)], 1)
    np.testing.assert_allclose(_decode(codec, codes), heard, atol=1e-5)
    assert np.abs(heard - _decode(across, codes)).max() > 1e-2 * np.abs(heard).max()
    for b in range(2):
        for seconds in (ROW / 60, 2 * ROW / 60, 30.0):
            np.testing.assert_array_equal(encode_long(codec, wav[b], chunk_seconds=seconds), alone[b])
            np.testing.assert_allclose(decode_long(codec, codes[b], chunk_seconds=seconds), heard[b], atol=1e-5)


def test_past_the_quantiser_every_weight_but_phi_learns(codec):
    """A trunk warmed up round the linear maps would meet them for the first time when the codebooks start."""
    gradients = nnx.to_flat_state(_past_gradient(codec, _noise(4)))
    assert {path[-1] for path, leaf in gradients if not np.abs(leaf[...]).max()} == {"phi", "phi_bias"}
