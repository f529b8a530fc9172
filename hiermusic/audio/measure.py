"""How far an estimate is from its reference, and cheap checks that a waveform is sound at all.

Every measure but `batch_si_sdr` takes host arrays `[L, C]` (float32 or float64, samples in [-1, 1]) and returns a
Python float. A pair must have one shape: nothing is trimmed, padded, resampled or mixed down behind the caller's back.
Stereo is one signal of two channels: energies are summed and distances averaged over both.
"""

import math
import warnings

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hiermusic.audio.spectral import mel_filters, stft
from hiermusic.errors import UserError

RATIO_LIMIT_DB = 80.0  # an epsilon of 1e-8, relative to the energies compared
SILENCE_RMS = 1e-5  # -100 dBFS: below the last bit of 16-bit audio
LOG_FLOOR = 1e-5

Wave = Float[np.ndarray, "L C"]


def _checked(wav_LC: np.ndarray, name: str) -> np.ndarray:
    wav_LC = np.asarray(wav_LC)
    if wav_LC.ndim != 2 or wav_LC.size == 0:
        raise UserError(f"{name} must be a non-empty array [samples, channels], got shape {wav_LC.shape}")
    if not np.isfinite(wav_LC).all():
        raise UserError(f"{name} holds NaN or infinite samples; repair or drop it before measuring")
    return wav_LC.astype(np.float64)


def _pair(ref_LC: np.ndarray, est_LC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    ref_LC, est_LC = _checked(ref_LC, "the reference"), _checked(est_LC, "the estimate")
    if ref_LC.shape != est_LC.shape:
        raise UserError(
            f"reference {ref_LC.shape} and estimate {est_LC.shape} differ in shape [samples, channels]; "
            "trim or convert one of them first"
        )
    return ref_LC, est_LC


def _ratio_db(signal, noise, xp=np):
    limit = 10 ** (RATIO_LIMIT_DB / 10)
    ratio = signal / xp.maximum(xp.maximum(noise, signal / limit), 1e-37)
    return 10 * xp.log10(xp.clip(ratio, 1 / limit, limit))


def is_silent(wav_LC: Wave) -> bool:
    """True if the RMS of the samples, after each channel's mean is removed, is below -100 dBFS."""
    wav_LC = _checked(wav_LC, "the waveform")
    return float(np.sqrt(np.mean((wav_LC - wav_LC.mean(axis=0)) ** 2))) < SILENCE_RMS


def si_sdr(ref_LC: Wave, est_LC: Wave) -> float:
    """Scale-invariant signal-to-distortion ratio in dB, higher is better, within [-80, 80].

    Each channel's mean is removed from both signals, the estimate is projected on the reference with one scale for all
    channels, and the ratio is |a r|^2 / |e - a r|^2 with a = <e, r> / |r|^2 (Le Roux et al. 2019). The relative epsilon
    1e-8 bounds it: an exact copy gives 80, a silent or unrelated estimate -80.

    Args:
      ref_LC, est_LC: one shape.
    Returns:
      dB, or NaN where the reference is silent (`is_silent`): the ratio then means nothing.
    """
    ref_LC, est_LC = _pair(ref_LC, est_LC)
    return float(batch_si_sdr(ref_LC[None], est_LC[None])[0])


def batch_si_sdr(ref_BLC: Float[Array, "B L C"], est_BLC: Float[Array, "B L C"]) -> Float[Array, "B"]:
    """`si_sdr` of each pair, on the host or, float32 and unchecked, in a compiled program on the device."""
    xp = np if isinstance(ref_BLC, np.ndarray) and isinstance(est_BLC, np.ndarray) else jnp
    ref_BLC, est_BLC = (x - x.mean(axis=1, keepdims=True) for x in (ref_BLC, est_BLC))
    energy_B = xp.sum(ref_BLC**2, axis=(1, 2))
    scale_B = xp.sum(est_BLC * ref_BLC, axis=(1, 2)) / xp.maximum(energy_B, 1e-20)
    target_BLC = scale_B[:, None, None] * ref_BLC
    signal_B, noise_B = (xp.sum(x**2, axis=(1, 2)) for x in (target_BLC, est_BLC - target_BLC))
    silent_B = energy_B / ref_BLC[0].size < SILENCE_RMS**2
    return xp.where(silent_B, xp.nan, _ratio_db(signal_B, noise_B, xp))


def sdr(ref_LC: Wave, est_LC: Wave) -> float:
    """Signal-to-distortion ratio |r|^2 / |r - e|^2 in dB, higher is better, within [-80, 80]; silence scores 0.

    Args:
      ref_LC, est_LC: one shape.
    Returns:
      dB, or NaN where the reference is silent (`is_silent`).
    """
    ref_LC, est_LC = _pair(ref_LC, est_LC)
    if is_silent(ref_LC):
        return math.nan
    return float(_ratio_db(np.sum(ref_LC**2), np.sum((ref_LC - est_LC) ** 2)))


def _magnitude(wav_LC: np.ndarray, window: int) -> np.ndarray:
    wav_CL = np.ascontiguousarray(wav_LC.T, dtype=np.float32)
    return np.abs(np.asarray(stft(wav_CL, n_fft=window, hop=window // 4, center=True)))


def _spectral_distance(ref_CTF: np.ndarray, est_CTF: np.ndarray) -> float:
    linear = np.mean(np.abs(ref_CTF - est_CTF))
    ref_log, est_log = (2 * np.log10(np.maximum(m, LOG_FLOOR)) for m in (ref_CTF, est_CTF))
    return float(linear + np.mean(np.abs(ref_log - est_log)))


def stft_distance(ref_LC: Wave, est_LC: Wave, windows: tuple[int, ...] = (2048, 512)) -> float:
    """Multi-scale STFT distance with the Descript Audio Codec library's defaults, lower is better.

    For each window: L1 of magnitudes + L1 of log10(max(magnitude, 1e-5)^2), each a mean over channels, frames and bins;
    summed over windows. Hop = window / 4, periodic Hann, centred frames with reflected edges.

    Args:
      ref_LC, est_LC: one shape.
      windows: samples; fixed in samples, so figures compare at one sample rate only.
    """
    ref_LC, est_LC = _pair(ref_LC, est_LC)
    return sum(_spectral_distance(_magnitude(ref_LC, w), _magnitude(est_LC, w)) for w in windows)


def mel_distance(
    ref_LC: Wave,
    est_LC: Wave,
    sample_rate: int,
    windows: tuple[int, ...] = (2048, 512),
    n_mels: tuple[int, ...] = (150, 80),
) -> float:
    """Multi-scale mel distance with the Descript Audio Codec library's defaults, lower is better.

    As `stft_distance`, on magnitude mel spectra: Slaney filters from 0 Hz to Nyquist, 150 bands at window 2048 and 80
    at 512. (Training configurations of DAC use seven windows and no linear term: those figures are not comparable.)

    Args:
      ref_LC, est_LC: one shape.
      sample_rate: Hz.
      windows, n_mels: samples and bands, pairwise.
    """
    ref_LC, est_LC = _pair(ref_LC, est_LC)
    total = 0.0
    for window, bands in zip(windows, n_mels, strict=True):
        filters_FM = np.asarray(mel_filters(sample_rate, window, bands)).T
        total += _spectral_distance(_magnitude(ref_LC, window) @ filters_FM, _magnitude(est_LC, window) @ filters_FM)
    return total


def silence_share(wav_LC: Wave, sample_rate: int, threshold_db: float = -60.0, frame_seconds: float = 0.05) -> float:
    """Share of frames, in [0, 1], whose RMS over all channels is below `threshold_db` dBFS; the last may be shorter."""
    wav_LC = _checked(wav_LC, "the waveform")
    frame = max(1, round(frame_seconds * sample_rate))
    starts = np.arange(0, len(wav_LC), frame)
    power_T = np.add.reduceat(np.mean(wav_LC**2, axis=1), starts) / np.diff(np.append(starts, len(wav_LC)))
    return float(np.mean(power_T < 10 ** (threshold_db / 10)))


def loudness(wav_LC: Wave, sample_rate: int) -> float:
    """Integrated loudness in LUFS (ITU-R BS.1770-4, pyloudnorm), of at most five channels; -inf below the gate of -70.

    A sound shorter than the standard's block of 0.4 s is one block.
    """
    import pyloudnorm

    wav_LC = _checked(wav_LC, "the waveform")
    meter = pyloudnorm.Meter(sample_rate, block_size=min(0.4, len(wav_LC) / sample_rate))
    wav_LC = np.pad(wav_LC, ((0, 1), (0, 0)))  # in samples again, the block may be longer than it was by a rounding
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of no block, in silence
        return float(meter.integrated_loudness(wav_LC))


def peak(wav_LC: Wave) -> float:
    """The greatest absolute sample; 1 is full scale."""
    return float(np.abs(_checked(wav_LC, "the waveform")).max())


def clipped_share(wav_LC: Wave) -> float:
    """Share of samples, in [0, 1], beyond full scale: what a file would clip if nothing limited it."""
    return float(np.mean(np.abs(_checked(wav_LC, "the waveform")) > 1.0))
