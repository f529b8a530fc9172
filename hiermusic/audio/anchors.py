"""What a measure of music must tell from music: noise shaped like a clip, and its own frames in another order."""

import numpy as np
from jaxtyping import Float

from hiermusic.audio.spectral import mel_filters

BANDS = 64
FRAME_SECONDS = 1024 / 22050

Wave = Float[np.ndarray, "L C"]


def noise_like(wav_LC: Wave, sample_rate: int, seed: int = 0) -> Wave:
    """Noise of the clip's length with its coarse spectrogram (64 mel bands, 23 ms) and random phases.

    Args:
      wav_LC: float, at `sample_rate` Hz.
      seed: of the noise.
    """
    from scipy.signal import istft, stft

    window = 2 * round(FRAME_SECONDS * sample_rate / 2)
    how = {"nperseg": window, "noverlap": window // 2}
    if len(wav_LC) < window:
        return np.zeros_like(wav_LC)
    noise_CL = np.random.default_rng(seed).standard_normal(wav_LC.T.shape)
    (_, _, clip_CFT), (_, _, noise_CFT) = (stft(x_CL, **how) for x_CL in (wav_LC.T, noise_CL))
    filters_MF = mel_filters(sample_rate, window, BANDS)
    filters_MF = filters_MF[filters_MF.any(axis=1)]
    band_CMT = filters_MF @ np.abs(clip_CFT) ** 2 / filters_MF.sum(axis=1)[:, None]
    weight_F = np.maximum(filters_MF.sum(axis=0), 1e-9)
    power_CFT = np.einsum("mf,cmt->cft", filters_MF / weight_F, band_CMT)
    floor = np.mean(np.abs(noise_CFT) ** 2)
    _, made_CL = istft(noise_CFT * np.sqrt(power_CFT / floor), **how)
    return made_CL.T[: len(wav_LC)].astype(np.float32)


def shuffled_frames(wav_LC: Wave, sample_rate: int, seed: int = 0) -> Wave:
    """The clip's frames of 46 ms in random order; what does not fill a frame is left out.

    Args:
      wav_LC: float, at `sample_rate` Hz.
      seed: of the order.
    """
    hop = round(FRAME_SECONDS * sample_rate)
    count = len(wav_LC) // hop
    frames_TWC = wav_LC[: count * hop].reshape(count, hop, wav_LC.shape[1])
    return frames_TWC[np.random.default_rng(seed).permutation(count)].reshape(count * hop, wav_LC.shape[1])
