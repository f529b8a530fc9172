"""Short-time spectra of waveforms in JAX, float32: STFT and mel, equal to librosa's."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

_TINY = 1e-14  # of a power: its root has a finite gradient at silence


def stft(
    wav_XL: Float[Array, "*X L"],
    n_fft: int,
    hop: int,
    win: int | None = None,
    *,
    center: bool = True,
    normalized: bool = False,
) -> Complex[Array, "*X T F"]:
    """Short-time Fourier transform with a periodic Hann window.

    Args:
      wav_XL: waveforms, any leading dimensions.
      n_fft: FFT size in samples; F = n_fft // 2 + 1.
      hop: samples between frames.
      win: window length, n_fft when left out; a shorter one is centred in the frame.
      center: reflect-pad n_fft // 2 on both sides, so that frame t is centred on sample t * hop.
      normalized: divide by the window's root energy, as torch's spectrogram does.
    A signal shorter than one frame is zero-padded on the right (and reflection degrades to zeros when it is too short).
    """
    window = _window(n_fft, win or n_fft, normalized)
    if center:
        wav_XL = _reflected(wav_XL, n_fft // 2, n_fft // 2)
    return jnp.fft.rfft(_frames(wav_XL, n_fft, hop) * window, axis=-1)


def mel(
    wav_XL: Float[Array, "*X L"],
    sample_rate: int,
    n_fft: int,
    hop: int,
    n_mels: int,
    *,
    win: int | None = None,
    fmin: float = 0.0,
    fmax: float | None = None,
    center: bool = True,
    squared: bool = False,
    floor: Float[Array, "*X 1 1"] | float = 0.0,
) -> Float[Array, "*X T M"]:
    """Mel spectrogram (Slaney scale and norm); arguments as for `stft` and `mel_filters`.

    Args:
      center: as for `stft`; without, n_fft - hop samples are reflected, half of them on either side, so that L samples
        give L // hop frames (HiFi-GAN, EnCodec).
      squared: of the power spectrum instead of the magnitudes.
      floor: power added to every bin, as by a faint noise.
    """
    if not center:
        front = (n_fft - hop) // 2
        wav_XL = _reflected(wav_XL, front, n_fft - hop - front)
    spectrum = stft(wav_XL, n_fft, hop, win, center=center)
    filters_MF = mel_filters(sample_rate, n_fft, n_mels, fmin, fmax)
    power_XTF = power(spectrum) + floor
    energy_XTF = power_XTF if squared else jnp.sqrt(jnp.maximum(power_XTF, _TINY))
    return jnp.matmul(energy_XTF, filters_MF.T, precision=jax.lax.Precision.HIGHEST)


def power(spectrum: Complex[Array, "..."]) -> Float[Array, "..."]:
    """|spectrum|^2."""
    return jnp.square(spectrum.real) + jnp.square(spectrum.imag)


@functools.cache
def mel_filters(
    sample_rate: int, n_fft: int, n_mels: int, fmin: float = 0.0, fmax: float | None = None
) -> Float[np.ndarray, "M F"]:
    """Slaney mel filter bank, float32; a band that falls between two bins of a short FFT is all zeros.

    Args:
      sample_rate: Hz.
      n_fft: FFT size of the spectra it is applied to.
      n_mels: bands.
      fmin, fmax: Hz; half the sample rate when `fmax` is left out.
    """
    import librosa

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Empty filters")
        filters_MF = librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels, fmin=fmin, fmax=fmax)
    return filters_MF.astype(np.float32)


@functools.cache
def _window(n_fft: int, win: int, normalized: bool) -> np.ndarray:
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win) / win)
    if normalized:
        hann = hann / np.sqrt(np.sum(hann**2))
    left = (n_fft - win) // 2
    return np.pad(hann, (left, n_fft - win - left)).astype(np.float32)


def _reflected(wav_XL: Array, front: int, behind: int) -> Array:
    mode = "reflect" if wav_XL.shape[-1] > behind else "constant"
    return jnp.pad(wav_XL, [(0, 0)] * (wav_XL.ndim - 1) + [(front, behind)], mode=mode)


def _frames(wav_XL: Array, size: int, hop: int) -> Float[Array, "*X T W"]:
    lead, length = wav_XL.shape[:-1], wav_XL.shape[-1]
    count = 1 + max(length - size, 0) // hop
    used = size + (count - 1) * hop
    if length < used:
        wav_XL = jnp.pad(wav_XL, [(0, 0)] * len(lead) + [(0, used - length)])
    if size % hop:
        return wav_XL[..., np.arange(count)[:, None] * hop + np.arange(size)]
    # Hops laid side by side: its gradient is pads and sums, where a gather's would be a scatter.
    hops = wav_XL[..., :used].reshape(*lead, -1, hop)
    return jnp.concatenate([hops[..., i : i + count, :] for i in range(size // hop)], axis=-1)
