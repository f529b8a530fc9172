"""Keeps a sound within full scale without clipping it."""

import numpy as np
from jaxtyping import Float
from scipy.ndimage import convolve1d, minimum_filter1d

CEILING = 32767 / 32768  # the greatest 16-bit sample
LOOK_SECONDS = 0.005


def limit(wav_LC: Float[np.ndarray, "L C"], sample_rate: int) -> Float[np.ndarray, "L C"]:
    """Turns a sound down around each peak beyond full scale, all channels alike; elsewhere, it stays as it is.

    A look-ahead limiter: the gain that the peaks need, held for 5 ms on both sides of each and smoothed over as much by
    a Hann window. As what is held reaches as far as the window does, no sample exceeds the ceiling.

    Args:
      wav_LC: float, full scale is 1.
      sample_rate: Hz.
    """
    need_L = CEILING / np.maximum(np.abs(wav_LC).max(axis=1, initial=0.0), CEILING)
    if not (need_L < 1).any():
        return wav_LC
    width = 2 * round(LOOK_SECONDS * sample_rate) + 1
    window = np.hanning(width + 2)[1:-1]
    gain_L = convolve1d(minimum_filter1d(need_L, width, mode="nearest"), window / window.sum(), mode="nearest")
    return (wav_LC * np.minimum(gain_L, need_L)[:, None]).astype(wav_LC.dtype)  # the minimum is against rounding only
