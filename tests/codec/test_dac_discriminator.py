import math

import jax
import librosa
import numpy as np
import pytest
from flax import nnx

from hiermusic.codec.dac_discriminator import DacDiscriminator, DacDiscriminatorConfig
from hiermusic.errors import UserError

CONFIG = DacDiscriminatorConfig(periods=(3,), period_widths=(2, 3, 4), sizes=(64,), bands=(0.0, 0.3, 1.0), filters=2)


@pytest.fixture(scope="module")
def discriminator():
    return nnx.jit(lambda: DacDiscriminator(1, CONFIG, rngs=nnx.Rngs(0)))()


judge = nnx.jit(lambda model, wav: tuple(model(wav)))


def noise(length, batch=2):
    return np.random.default_rng(0).normal(size=(batch, length, 1)).astype(np.float32)


def convolved(conv, x, strides):
    """Tap by tap in double precision, over one dimension or two, the last first; zeros at the ends."""
    v, g, bias = (np.asarray(p[...], np.float64) for p in (conv.weight_v, conv.weight_g, conv.bias))
    taps = v.shape[:-2]
    w = g * v / np.sqrt(np.sum(v**2, axis=tuple(range(v.ndim - 1))))
    padded = np.pad(x, [(0, 0), *((n // 2, n // 2) for n in taps), (0, 0)])
    y = 0.0
    for tap in np.ndindex(taps):
        place = [slice(t, t + n, s) for t, n, s in zip(tap, x.shape[1:-1], strides, strict=True)]
        y = y + padded[:, *place] @ w[tap]
    return y + bias


def rectified(x):
    return np.where(x > 0, x, 0.1 * x)


def prepared(wav):
    wav = wav.astype(np.float64) - wav.mean(axis=1, keepdims=True)
    return 0.8 * wav / np.abs(wav).max(axis=1, keepdims=True)


def test_sizes_are_dacs():
    model = nnx.eval_shape(lambda: DacDiscriminator(1, DacDiscriminatorConfig(), rngs=nnx.Rngs(0)))
    counts = [
        sum(math.prod(v.shape) for _, v in nnx.to_flat_state(nnx.state(part)))
        for part in (*model.periods, *model.scales)
    ]
    np.testing.assert_allclose(np.array(counts) / 1e6, [8.22] * 5 + [0.47] * 3, atol=0.01)
    assert sum(counts) == pytest.approx(42.52e6, rel=1e-4)


@pytest.mark.parametrize("length", [100, 99])  # of which a period is filled up, or a whole one added
def test_a_period_sees_every_third_sample(discriminator, length):
    wav = noise(length)
    logits, features = judge(discriminator, wav)
    x = prepared(wav)
    x = np.pad(x, ((0, 0), (0, 3 - length % 3), (0, 0)), mode="reflect")
    columns = np.concatenate([x[:, start::3] for start in range(3)])  # column after column
    (model,) = discriminator.periods
    for conv, stride, made in zip(model.convs, (3, 3, 1), features[0], strict=True):
        columns = rectified(convolved(conv, columns, (stride,)))
        wanted = np.stack(np.split(columns, 3), axis=1)
        np.testing.assert_allclose(made, wanted, atol=1e-5)
    wanted = np.stack(np.split(convolved(model.judge, columns, (1,)), 3), axis=1)
    np.testing.assert_allclose(logits[0], wanted[..., 0], atol=1e-5)


@pytest.mark.parametrize("length", [160, 150])
def test_a_spectrum_is_seen_band_by_band(discriminator, length):
    """Frames as audiotools' `match_stride` has them: one a hop, whatever the length."""
    wav = noise(length)
    logits, features = judge(discriminator, wav)
    hop, pad = 16, 24
    x = np.pad(prepared(wav)[..., 0], ((0, 0), (pad, pad + -length % hop)), mode="reflect")
    frames = librosa.stft(x, n_fft=64, hop_length=hop, center=True, pad_mode="reflect")[..., 2:-2]
    assert frames.shape[-1] == -(-length // hop)
    spectrum = np.stack([frames.real, frames.imag], -1).swapaxes(1, 2)
    (model,) = discriminator.scales
    ends, made = [], iter(features[1])
    for (low, high), convs in zip(((0, 9), (9, 33)), model.bands, strict=True):
        band = spectrum[:, :, low:high]
        for conv, stride in zip(convs, (1, 2, 2, 2, 1), strict=True):
            band = rectified(convolved(conv, band, (1, stride)))
            np.testing.assert_allclose(next(made), band, atol=1e-4)
        ends.append(band)
    wanted = convolved(model.judge, np.concatenate(ends, axis=2), (1, 1))
    np.testing.assert_allclose(logits[1], wanted, atol=1e-4)


def test_neither_loudness_nor_an_offset_is_judged(discriminator):
    wav = noise(150)
    for one, other in zip(*(judge(discriminator, w)[0] for w in (wav, 0.1 * wav + 0.3)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    silent = judge(discriminator, np.zeros((1, 150, 1), np.float32))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(silent))


def test_a_clip_shorter_than_anything_is_judged(discriminator):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(judge(discriminator, noise(1))))


@pytest.mark.parametrize("bands", [(0.0, 0.5), (0.1, 1.0), (0.0, 0.5, 0.5, 1.0), (0.0, 0.9, 0.2, 1.0), ()])
def test_bands_rise_from_nought_to_one(bands):
    with pytest.raises(UserError, match=r"discriminator\.bands is"):
        DacDiscriminatorConfig(bands=bands)


@pytest.mark.parametrize("wrong", [{"periods": (2, 0)}, {"period_widths": (4, 0)}, {"filters": 0}], ids=str)
def test_periods_and_widths_are_whole_numbers(wrong):
    (name,) = wrong
    with pytest.raises(UserError, match=rf"^discriminator\.{name} holds 0: give whole numbers of 1 or more$"):
        DacDiscriminatorConfig(**wrong)
