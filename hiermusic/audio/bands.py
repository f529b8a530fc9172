"""Waveforms without the upper part of their band, in JAX: fewer samples a second and back, as julius resamples."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_ZEROS, _ROLLOFF = 24, 0.945  # zero crossings of the sinc on either side; cut-off below half the lower rate


def low_passed(wav_BLC: Float[Array, "B L C"], factor: int) -> Float[Array, "B L C"]:
    """The waveform as it comes back from `factor` times fewer samples a second; itself for a factor of 1.

    Both ways as `julius.resample_frac` has it (the polyphase filter bank of J. O. Smith), to exactly a `factor`-th of
    the samples, not to the whole number of Hz next to it.

    Args:
      wav_BLC: float samples.
      factor: 1 or more; a length that it does not divide is filled up with the last sample.
    """
    if factor == 1:
        return wav_BLC
    length = wav_BLC.shape[1]
    whole_BLC = jnp.pad(wav_BLC, ((0, 0), (0, -length % factor), (0, 0)), mode="edge")
    return _resampled(_resampled(whole_BLC, factor, 1), 1, factor)[:, :length]


def _resampled(wav_BLC: Float[Array, "B L C"], old: int, new: int) -> Float[Array, "B n C"]:
    """`new` samples for every `old`."""
    B, L, C = wav_BLC.shape
    kernels, width = _kernels(old, new)
    around_BLC = jnp.pad(wav_BLC, ((0, 0), (width, width + old), (0, 0)), mode="edge")
    rows = jnp.moveaxis(around_BLC, -1, 1).reshape(B * C, -1, 1)
    layout = ("NHC", "HIO", "NHC")
    exact = jax.lax.Precision.HIGHEST
    kernels = jnp.asarray(kernels[:, None])
    y = jax.lax.conv_general_dilated(rows, kernels, (old,), "VALID", dimension_numbers=layout, precision=exact)
    return jnp.moveaxis(y.reshape(B, C, -1)[..., : L * new // old], 1, 2)


@functools.cache
def _kernels(old: int, new: int) -> tuple[Float[np.ndarray, "W n"], int]:
    """A windowed sinc for each of the `new` samples, and how far it reaches before the first of the `old`."""
    rate = min(old, new) * _ROLLOFF
    width = math.ceil(_ZEROS * old / rate)
    taps_W1 = np.arange(-width, width + old)[:, None]
    t = np.clip((taps_W1 / old - np.arange(new) / new) * rate, -_ZEROS, _ZEROS)
    kernels = np.sinc(t) * np.cos(np.pi * t / _ZEROS / 2) ** 2
    return (kernels / kernels.sum(axis=0)).astype(np.float32), width
