"""Features that need no weights of others: log-mel bands, which tell colour, and chroma, which tells harmony.

Letters: B batch, L samples, T frames, D width, F bins, M mel bands.
"""

import functools
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from hiermusic.audio import spectral
from hiermusic.pretrained.layers import EXACT


@dataclass(frozen=True)
class LogMelConfig:
    """Log-mel bands on HuBERT's grid: its rate, its hop, and the samples that its frames hear.

    Args:
      width: D, bands.
    """

    width: int = 64

    sample_rate = 16000
    hop, span = 320, 400
    local = True

    def make(self, *, rngs: nnx.Rngs) -> "LogMel":
        return LogMel(self)


class LogMel(nnx.Module):
    """What colour a frame has, and how loud it is."""

    def __init__(self, config: LogMelConfig):
        self.config = config

    def __call__(self, wav_BL: Float[Array, "B L"]) -> Float[Array, "B T D"]:
        c, n_fft = self.config, 512
        aside = (n_fft - c.span) // 2
        wav_BL = jnp.pad(wav_BL, ((0, 0), (aside, aside)))
        size_BTF = jnp.abs(spectral.stft(wav_BL, n_fft, c.hop, c.span, center=False))
        filters_DF = spectral.mel_filters(c.sample_rate, n_fft, c.width)
        return jnp.log(jnp.matmul(size_BTF, filters_DF.T, precision=EXACT) + 1e-3)


_PITCHES = 12
_LOW_HZ, _HIGH_HZ = 80.0, 2000.0  # where chords and voices have their partials
_NOISE = 0.004  # the amplitude of a tone that is half heard beside none: -48 dB
_FLOOR_DB, _RANGE_DB = -60.0, 40.0  # of loudness
_STROKE_FFT, _STROKE_HOP, _STROKE_BANDS = 512, 320, 16


@dataclass(frozen=True)
class ChromaConfig:
    """Which pitch classes sound, 25 times a second, from 0.26 s around; how loud it is, and whether something begins.

    Args:
      loudness, strokes: how much these two weigh beside the pitch classes, whose vector has a length of 1 where
        anything is in tune.
    """

    loudness: float = 0.3
    strokes: float = 1.0

    sample_rate = 16000
    hop = span = 640
    local = True
    n_fft = 4096  # bins of 3.9 Hz part the notes of a chord

    @property
    def width(self) -> int:
        return _PITCHES + 2

    def make(self, *, rngs: nnx.Rngs) -> "Chroma":
        return Chroma(self)


class Chroma(nnx.Module):
    """What notes are heard in a frame, whatever plays them."""

    def __init__(self, config: ChromaConfig):
        self.config = config

    def __call__(self, wav_BL: Float[Array, "B L"]) -> Float[Array, "B T 14"]:
        c = self.config
        length = max(wav_BL.shape[1] // c.hop, 1) * c.hop
        # silence fills less than a frame, as it does `LogMel`'s
        wav_BL = jnp.pad(wav_BL[:, :length], ((0, 0), (0, max(length - wav_BL.shape[1], 0))))
        parts = [self._pitches(wav_BL), c.loudness * self._loudness(wav_BL), c.strokes * self._strokes(wav_BL)]
        return jnp.concatenate(parts, axis=-1)

    def _pitches(self, wav_BL: Float[Array, "B L"]) -> Float[Array, "B T 12"]:
        """Amplitudes by pitch class above those of the quarter that sounds least, at a length of 1, less in silence."""
        c = self.config
        aside = (c.n_fft - c.hop) // 2
        spectrum = spectral.stft(jnp.pad(wav_BL, ((0, 0), (aside, aside))), c.n_fft, c.hop, center=False)
        power_BTF = spectral.power(spectrum) * (4 / c.n_fft) ** 2  # a tone's peak is the square of its amplitude
        size_BTn = jnp.sqrt(jnp.matmul(power_BTF, _filters(c.sample_rate, c.n_fft), precision=EXACT))
        size_BTn = jnp.maximum(size_BTn - jnp.sort(size_BTn, axis=-1)[..., 3:4], 0.0)
        return size_BTn / (jnp.linalg.norm(size_BTn, axis=-1, keepdims=True) + _NOISE)

    def _loudness(self, wav_BL: Float[Array, "B L"]) -> Float[Array, "B T 1"]:
        power_BT1 = jnp.square(wav_BL).reshape(len(wav_BL), -1, self.config.hop).mean(axis=-1, keepdims=True)
        return jnp.clip((10 * jnp.log10(power_BT1 + 1e-10) - _FLOOR_DB) / _RANGE_DB, 0.0, 1.25)

    def _strokes(self, wav_BL: Float[Array, "B L"]) -> Float[Array, "B T 1"]:
        """The greater rise, of the two in a frame, of the mean log band from one short spectrum to the next."""
        wav_BL = jnp.pad(wav_BL, ((0, 0), (0, _STROKE_FFT - _STROKE_HOP)))
        size_BtF = jnp.abs(spectral.stft(wav_BL, _STROKE_FFT, _STROKE_HOP, center=False))[..., :-1]
        bands_BtM = size_BtF.reshape(*size_BtF.shape[:2], _STROKE_BANDS, -1).sum(axis=-1)
        level_BtM = jnp.log(bands_BtM + 0.1)
        rise_Bt = jnp.maximum(jnp.diff(level_BtM, axis=1, prepend=level_BtM[:, :1]), 0.0).mean(axis=-1)
        return rise_Bt.reshape(len(wav_BL), -1, self.config.hop // _STROKE_HOP).max(axis=-1, keepdims=True)


@functools.cache
def _filters(sample_rate: int, n_fft: int) -> Float[np.ndarray, "F 12"]:
    """How much of a bin's power is of each pitch class, C first: a bell of half a semitone around each note."""
    hz_F1 = np.fft.rfftfreq(n_fft, 1 / sample_rate)[:, None]
    heard_F1 = (hz_F1 > _LOW_HZ) & (hz_F1 < _HIGH_HZ)
    note_F1 = 69 + 12 * np.log2(np.maximum(hz_F1, 1.0) / 440.0)
    apart_Fn = (note_F1 - np.arange(_PITCHES) + 6) % _PITCHES - 6
    return (np.exp(-0.5 * np.square(apart_Fn / 0.5)) * heard_F1).astype(np.float32)


FEATURES = {"log_mel": LogMelConfig, "chroma": ChromaConfig}
