"""Mel spectrograms as shades of one palette, for logs and reports."""

import numpy as np
from jaxtyping import Float, UInt8

from hiermusic.audio.spectral import mel

MEL_BANDS = 128
RANGE_DB = 80.0
QUIETEST_PEAK = 1e-3  # a picture's brightest point is at least this, so that near-silence stays dark
SHADES = 64


def mel_shades(wav_LC: Float[np.ndarray, "L C"], sample_rate: int, width: int = 900) -> UInt8[np.ndarray, "M T"]:
    """Mel spectrogram of the mean of all channels as indices of `palette`: 0 Hz (last row) to Nyquist, 80 dB deep.

    Args:
      wav_LC: float, [-1, 1].
      sample_rate: Hz.
      width: most columns; longer sounds are averaged down to it.
    """
    mel_TM = np.asarray(mel(np.asarray(wav_LC, np.float32).mean(axis=1), sample_rate, 2048, 512, MEL_BANDS))
    columns = min(width, len(mel_TM))
    starts = np.arange(columns) * len(mel_TM) // columns
    counts = np.diff(np.append(starts, len(mel_TM)))
    mel_TM = np.add.reduceat(mel_TM, starts, axis=0) / counts[:, None]
    decibels = 20 * np.log10(np.maximum(mel_TM, 1e-9) / max(float(mel_TM.max()), QUIETEST_PEAK))
    shades = np.clip((decibels / RANGE_DB + 1) * (SHADES - 1), 0, SHADES - 1).round().astype(np.uint8)
    return np.ascontiguousarray(shades.T[::-1])


def palette() -> UInt8[np.ndarray, "64 3"]:
    """Red, green and blue of the shades, black to bright."""
    from matplotlib import colormaps

    return (colormaps["magma"](np.linspace(0, 1, SHADES))[:, :3] * 255).round().astype(np.uint8)
