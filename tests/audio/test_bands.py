import math

import jax
import numpy as np
import pytest

from hiermusic.audio.bands import low_passed


def resample_frac(x_L, old, new):
    """`julius.resample_frac` in NumPy, sample by sample: zeros 24, roll-off 0.945."""
    zeros, rate = 24, min(old, new) * 0.945
    width = math.ceil(zeros * old / rate)
    padded = np.concatenate([np.full(width, x_L[0]), x_L, np.full(width + old, x_L[-1])])
    made = []
    for place in range(new * len(x_L) // old):
        block, phase = divmod(place, new)
        kernel = []
        for tap in range(-width, width + old):
            t = min(max((-phase / new + tap / old) * rate, -zeros), zeros) * math.pi
            kernel.append((math.sin(t) / t if t else 1.0) * math.cos(t / zeros / 2) ** 2)
        kernel = np.array(kernel) / np.sum(kernel)
        made.append(kernel @ padded[block * old : block * old + len(kernel)])
    return np.array(made)


@pytest.mark.parametrize(("factor", "length"), [(2, 400), (4, 400), (4, 401)])
def test_it_is_julius_down_and_up_again(factor, length):
    wav_BLC = np.random.default_rng(0).normal(size=(2, length, 2)).astype(np.float32)
    made_BLC = jax.jit(low_passed, static_argnums=1)(wav_BLC, factor)
    assert made_BLC.shape == wav_BLC.shape
    for b, c in np.ndindex(2, 2):
        x_L = wav_BLC[b, :, c].astype(np.float64)
        x_L = np.concatenate([x_L, np.full(-length % factor, x_L[-1])])
        wanted_L = resample_frac(resample_frac(x_L, factor, 1), 1, factor)
        np.testing.assert_allclose(made_BLC[b, :, c], wanted_L[:length], atol=1e-5)


def test_what_lies_below_stays_and_what_lies_above_goes():
    time_L = np.arange(4000)
    for factor in (2, 4):
        kept, gone = (np.sin(2 * np.pi * share / (2 * factor) * time_L)[None, :, None] for share in (0.8, 1.1))
        middle = slice(500, -500)
        made = [np.asarray(low_passed(wav.astype(np.float32), factor))[:, middle] for wav in (kept, gone)]
        np.testing.assert_allclose(made[0], kept[:, middle], atol=1e-3)
        assert np.abs(made[1]).max() < 0.01


def test_the_whole_band_is_the_waveform_itself():
    wav_BLC = np.ones((1, 5, 1), np.float32)
    assert low_passed(wav_BLC, 1) is wav_BLC
