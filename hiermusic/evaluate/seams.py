"""Whether it is heard where two parts of a sound were put together."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from hiermusic.audio.spectral import mel

FRAME_SECONDS = 0.021  # of a spectrum: 512 samples at 24 kHz
FLOOR = 1e-5  # of a mel energy before its logarithm

Wave = Float[np.ndarray, "L C"]


def ratios(
    values_N: Float[np.ndarray, "N"],
    places_N: Float[np.ndarray, "N"],
    seams: Sequence[float],
    reach: float,
    length: int,
) -> list[float]:
    """What is measured near each seam, over its mean where neither a seam nor an end is near; NaN where nothing is.

    Args:
      values_N: measured along a sound.
      places_N: where, in samples.
      seams: where parts meet, in samples.
      reach: samples within which a seam or an end is near.
      length: samples of the sound.
    """
    near = [np.abs(places_N - place) < reach for place in (0, length, *seams)]
    elsewhere_N = values_N[~np.logical_or.reduce(near)]
    mean = float(elsewhere_N.mean()) if len(elsewhere_N) else 0.0
    return [float(values_N[near_N].mean()) / mean if mean and near_N.any() else np.nan for near_N in near[2:]]


def log_mel(wav_LC: Wave, sample_rate: int) -> tuple[Float[np.ndarray, "T M"], int, int]:
    """Logarithms of a mel spectrum, the mean of all channels; samples of each spectrum, and from one to the next."""
    n_fft = 2 ** round(np.log2(FRAME_SECONDS * sample_rate))
    hop = n_fft // 4
    mel_CTM = np.asarray(mel(wav_LC.T, sample_rate, n_fft, hop, n_fft // 8))
    return np.log10(np.maximum(mel_CTM, FLOOR)).mean(0), n_fft, hop


def measure(wav_LC: Wave, sample_rate: int, seams: Sequence[float]) -> dict[str, list[float]]:
    """Of each seam, how much more happens there than elsewhere in the same sound; 1 is a seam that nothing shows.

    Args:
      wav_LC: a sound.
      sample_rate: Hz.
      seams: where parts meet, in samples.
    Returns:
      `jump`, of the mean absolute second difference of the two samples on either side of a seam; `flux`, of the mean
      absolute log10 mel difference of neighbouring spectra that touch it.
    """
    curve_N = np.abs(np.diff(wav_LC.astype(np.float64), 2, axis=0)).mean(1)
    mel_TM, n_fft, hop = log_mel(wav_LC, sample_rate)
    flux_T, frames_T = np.abs(np.diff(mel_TM, axis=0)).mean(1), np.arange(len(mel_TM)) * hop
    return {
        "jump": ratios(curve_N, np.arange(len(curve_N)) + 1.5, seams, 2, len(wav_LC)),
        "flux": ratios(flux_T, frames_T[:-1] + hop / 2, seams, (n_fft + hop) / 2, len(wav_LC)),
    }
