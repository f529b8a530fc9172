import math

import jax
import librosa
import numpy as np
import pytest
from flax import nnx

from hiermusic.codec.discriminator import GOLDEN_SIZES, Discriminator, DiscriminatorConfig


def _build(sizes, hop=0.5, channels=2):
    config = DiscriminatorConfig(sizes=sizes, filters=2, hop=hop)
    return nnx.jit(lambda: Discriminator(channels, config, rngs=nnx.Rngs(0)))()


def _noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _parameters(config):
    model = nnx.eval_shape(lambda: Discriminator(2, config, rngs=nnx.Rngs(0)))
    return sum(math.prod(v.shape) for _, v in nnx.to_flat_state(nnx.state(model)))


def test_sizes_are_khalas_and_encodecs():
    assert _parameters(DiscriminatorConfig()) == pytest.approx(11.93e6, rel=0.002)
    assert _parameters(DiscriminatorConfig(sizes=GOLDEN_SIZES[:5], filters=32)) == pytest.approx(0.481e6, rel=0.005)


@pytest.mark.parametrize("length", [1, 700])  # shorter than any window, longer than all
def test_every_scale_judges_clips_of_any_length(length):
    logits, features = nnx.jit(lambda model, wav: tuple(model(wav)))(_build((78, 334)), _noise(3, length, 2))
    assert [len(maps) for maps in features] == [5, 5]
    for size, scale, maps in zip((78, 334), logits, features, strict=True):
        frames = 1 + max(length - size, 0) // (size // 2)
        assert scale.shape[:2] == (3, frames) and scale.shape[-1] == 1
        # Three convolutions of stride 2 run over frequency only.
        assert maps[0].shape == (3, frames, size // 2 + 1, 2)
        assert maps[-1].shape[1] == frames and maps[-1].shape[2] == -(-(size // 2 + 1) // 8)
        assert np.isfinite(scale).all()


def _convolved(conv, x_BTFI, stride=1, dilation=1):
    """Tap by tap, weights normed per output channel; the stride is over frequency, the dilation over time."""
    v, g, bias = (np.asarray(p[...], np.float64) for p in (conv.weight_v, conv.weight_g, conv.bias))
    w_KMIO = g * v / np.sqrt(np.sum(v**2, axis=(0, 1, 2)))
    times, frequencies = w_KMIO.shape[:2]
    before = (dilation * (times // 2), frequencies // 2)
    padded = np.pad(x_BTFI, ((0, 0), (before[0],) * 2, (before[1],) * 2, (0, 0)))
    y_BTFO = 0.0
    for i in range(times):
        for j in range(frequencies):
            shifted = padded[:, i * dilation : i * dilation + x_BTFI.shape[1], j : j + x_BTFI.shape[2]]
            y_BTFO = y_BTFO + shifted[:, :, ::stride] @ w_KMIO[i, j]
    return y_BTFO + bias


def test_a_scale_is_encodecs():
    wav, size = _noise(2, 700, 1), 128
    (scale,) = (discriminator := _build((size,), hop=0.25, channels=1)).scales
    got, maps = nnx.jit(lambda model, wav: tuple(model(wav)))(discriminator, wav)

    frames = librosa.stft(wav[..., 0].astype(np.float64), n_fft=size, hop_length=size // 4, center=False)
    x_BTFI = np.stack([frames.real, frames.imag], -1).swapaxes(1, 2) / np.sqrt(np.sum(np.hanning(size + 1) ** 2))
    for conv, change, features in zip(
        scale.convs, ({}, *({"stride": 2, "dilation": d} for d in (1, 2, 4)), {}), maps[0], strict=True
    ):
        x_BTFI = _convolved(conv, x_BTFI, **change)
        x_BTFI = np.where(x_BTFI > 0, x_BTFI, 0.2 * x_BTFI)
        np.testing.assert_allclose(features, x_BTFI, atol=1e-4 * np.abs(x_BTFI).max())
    expected = _convolved(scale.judge, x_BTFI)
    np.testing.assert_allclose(got[0], expected, atol=1e-4 * np.abs(expected).max())


def test_both_channels_are_heard():
    discriminator = _build((78,))
    gradient = jax.jit(jax.grad(lambda wav: discriminator(wav).logits[0].sum()))(_noise(1, 300, 2))
    assert np.all(np.abs(gradient).max(axis=(0, 1)) > 0)
