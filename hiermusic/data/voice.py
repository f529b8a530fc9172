"""A singing voice: a glottal source with vibrato and portamento through formants that follow the phones.

Formant frequencies after Peterson and Barney (1952), an adult male voice; a female one is the same, scaled.
"""

from dataclasses import dataclass

import numpy as np
import scipy.fft
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d

RATE = 44100
_HOP = 256
_WINDOW = 1024


@dataclass(frozen=True)
class Phone:
    """Formants in Hz; levels of voicing, of hiss (a band around `band` Hz) and of breath; its usual length."""

    formants: tuple[int, int, int]
    voice: float = 1.0
    hiss: float = 0.0
    breath: float = 0.0
    band: float = 4000.0
    seconds: float = 0.07


def _vowel(*formants: int) -> tuple[Phone, ...]:
    return (Phone(formants),)


def _stop(formants: tuple[int, int, int], band: float, voiced: bool) -> tuple[Phone, ...]:
    closure = Phone(formants, voice=0.12 if voiced else 0.0, seconds=0.045)
    burst = Phone(formants, voice=0.0, hiss=0.35 if voiced else 0.6, band=band, seconds=0.015)
    release = Phone(formants, voice=0.0, breath=0.5, seconds=0.025)
    return (closure, burst) if voiced else (closure, burst, release)


VOWELS = {
    "iy": _vowel(270, 2290, 3010),
    "ih": _vowel(390, 1990, 2550),
    "eh": _vowel(530, 1840, 2480),
    "ae": _vowel(660, 1720, 2410),
    "aa": _vowel(730, 1090, 2440),
    "ao": _vowel(570, 840, 2410),
    "ow": _vowel(450, 800, 2350),
    "uw": _vowel(300, 870, 2240),
    "ah": _vowel(640, 1190, 2390),
    "er": _vowel(490, 1350, 1690),
}
CONSONANTS = {
    "m": (Phone((250, 1000, 2200), voice=0.4),),
    "n": (Phone((250, 1500, 2500), voice=0.4),),
    "ng": (Phone((250, 2000, 2700), voice=0.4),),
    "l": (Phone((360, 1100, 2800), voice=0.55, seconds=0.06),),
    "r": (Phone((350, 1100, 1500), voice=0.6, seconds=0.06),),
    "w": (Phone((300, 650, 2200), voice=0.5, seconds=0.06),),
    "y": (Phone((270, 2300, 3000), voice=0.5, seconds=0.05),),
    "h": (Phone((550, 1500, 2500), voice=0.0, breath=0.7, seconds=0.06),),
    "s": (Phone((320, 1700, 2600), voice=0.0, hiss=0.55, band=6800, seconds=0.09),),
    "z": (Phone((320, 1700, 2600), voice=0.25, hiss=0.35, band=6800),),
    "sh": (Phone((300, 1900, 2600), voice=0.0, hiss=0.6, band=3300, seconds=0.09),),
    "f": (Phone((320, 1100, 2300), voice=0.0, hiss=0.25, band=5200, seconds=0.08),),
    "v": (Phone((300, 1100, 2300), voice=0.35, hiss=0.12, band=5200, seconds=0.06),),
    "th": (Phone((320, 1400, 2600), voice=0.35, hiss=0.12, band=5800, seconds=0.05),),
    "p": _stop((400, 850, 2300), 900, voiced=False),
    "t": _stop((400, 1750, 2600), 4800, voiced=False),
    "k": _stop((400, 2000, 2500), 2200, voiced=False),
    "b": _stop((300, 850, 2300), 900, voiced=True),
    "d": _stop((300, 1750, 2600), 4200, voiced=True),
    "g": _stop((300, 2000, 2500), 2000, voiced=True),
}


@dataclass(frozen=True)
class Sung:
    """One sung syllable: its phones, the note's pitch in MIDI numbers, its vowel's start and its end in seconds."""

    phones: tuple[str, ...]
    pitch: int
    start: float
    end: float
    gain: float = 1.0


def onset_seconds(phones: tuple[str, ...]) -> float:
    """Length of the consonants in front of the vowel, which are sung before the beat."""
    return sum(part.seconds for part in _split(phones)[0])


def sing(rng: np.random.Generator, sung: list[Sung], seconds: float, scale: float) -> Float[np.ndarray, "L"]:
    """Sings syllables.

    Args:
      rng: the source of chance (noise, drift of pitch).
      sung: syllables in order of time, not overlapping.
      seconds: length of the sound.
      scale: formant frequencies relative to a male voice, 1.0 to 1.2.

    Returns:
      wav_L float32 at RATE Hz, not normalised.
    """
    length = round(seconds * RATE)
    frames = -(-length // _HOP) + _WINDOW // _HOP
    times_T = np.arange(frames) * _HOP / RATE
    formants_TX, voice_T, hiss_T, breath_T, band_T = _controls(sung, times_T)
    hertz_T = _pitch(rng, sung, times_T)
    higher_TX = np.tile((3500.0, 4500.0), (frames, 1))
    formants_TX = np.concatenate([formants_TX, higher_TX], axis=1) * scale
    # A singer lifts the first formant above the note, or high vowels would vanish.
    formants_TX[:, 0] = np.maximum(formants_TX[:, 0], 1.05 * hertz_T)

    padded = frames * _HOP + _WINDOW
    source_L = _glottis(hertz_T, padded)
    noise_L = rng.standard_normal(padded, dtype=np.float32)
    active = np.flatnonzero((voice_T > 1e-3) | (hiss_T > 1e-3) | (breath_T > 1e-3))
    window_W = np.sqrt(np.hanning(_WINDOW + 1)[:-1]).astype(np.float32)
    bins_N = np.maximum(np.arange(_WINDOW // 2 + 1) * RATE / _WINDOW, 1.0).astype(np.float32)

    def spectra(wav_L):
        frames_TW = np.lib.stride_tricks.sliding_window_view(wav_L, _WINDOW)[active * _HOP]
        return scipy.fft.rfft(frames_TW * window_W, axis=1)

    noise_AN = spectra(noise_L)
    breathy_A = (0.02 * voice_T + 0.12 * breath_T)[active].astype(np.float32)
    excitation_AN = spectra(source_L) * voice_T[active, None].astype(np.float32) + noise_AN * breathy_A[:, None]
    sound_AN = excitation_AN / _damping(formants_TX[active], bins_N)
    hissing = np.flatnonzero(hiss_T[active] > 1e-5)
    octaves_HN = np.log2(bins_N) - np.log2(band_T[active][hissing, None]).astype(np.float32)
    hiss_H = (0.15 * hiss_T[active][hissing]).astype(np.float32)
    sound_AN[hissing] += noise_AN[hissing] * (np.exp(-2.0 * octaves_HN**2) * hiss_H[:, None])
    pieces_AW = scipy.fft.irfft(sound_AN, n=_WINDOW, axis=1) * window_W

    parts = _WINDOW // _HOP
    out_BH = np.zeros((frames + parts, _HOP), np.float32)
    for part in range(parts):
        out_BH[active + part] += pieces_AW[:, part * _HOP : (part + 1) * _HOP]
    # Windows of 4 hops, squared, add up to 2. Frame f is centred half a window after its control time.
    return out_BH.ravel()[_WINDOW // 2 : _WINDOW // 2 + length] / 2


def _split(phones: tuple[str, ...]) -> tuple[list[Phone], list[Phone], list[Phone]]:
    vowels = [i for i, phone in enumerate(phones) if phone in VOWELS]
    first, last = vowels[0], vowels[-1] + 1
    onset, coda = ([part for p in ps for part in CONSONANTS[p]] for ps in (phones[:first], phones[last:]))
    return onset, [VOWELS[p][0] for p in phones[first:last]], coda


def _segments(sung: list[Sung]) -> list[tuple[float, Phone, float]]:
    """(start, phone, gain) in order of time, silence being a phone of gain 0."""
    segments: list[tuple[float, Phone, float]] = []
    free = 0.0
    for this, following in zip(sung, [*sung[1:], None], strict=True):
        onset, nucleus, coda = _split(this.phones)
        room = this.start - free
        fit = min(1.0, room / max(onset_seconds(this.phones), 1e-6))
        time = this.start - fit * sum(part.seconds for part in onset)
        for part in onset:
            segments.append((time, part, this.gain))
            time += fit * part.seconds
        end = this.end
        if following:
            end = min(end, following.start - 0.8 * onset_seconds(following.phones))
        end = max(end, this.start + 0.08)
        closing = min(sum(part.seconds for part in coda), 0.4 * (end - this.start))
        vowel = end - closing - this.start
        # A diphthong stays on its first vowel and glides away late, as singers do.
        shares = [0.7] + [0.3 / (len(nucleus) - 1)] * (len(nucleus) - 1) if len(nucleus) > 1 else [1.0]
        time = this.start
        for part, share in zip(nucleus, shares, strict=True):
            segments.append((time, part, this.gain))
            time += share * vowel
        shrink = closing / max(sum(part.seconds for part in coda), 1e-6)
        for part in coda:
            segments.append((time, part, this.gain))
            time += shrink * part.seconds
        segments.append((end, segments[-1][1], 0.0))
        free = end
    return segments


def _controls(sung: list[Sung], times_T: np.ndarray) -> tuple[np.ndarray, ...]:
    segments = _segments(sung)
    index_T = np.searchsorted([start for start, _, _ in segments], times_T, side="right") - 1
    silent_T = index_T < 0
    index_T = np.maximum(index_T, 0)
    gain_T = np.where(silent_T, 0.0, np.asarray([gain for _, _, gain in segments])[index_T])

    def follow(values, smooth):
        return gaussian_filter1d(np.asarray(values, np.float64)[index_T], smooth, axis=0)

    def level(name):
        values_T = np.asarray([getattr(phone, name) for _, phone, _ in segments])[index_T] * gain_T
        return gaussian_filter1d(values_T, 1.3)

    formants_TX = follow([phone.formants for _, phone, _ in segments], 3.0)  # about 17 ms: coarticulation
    band_T = follow([phone.band for _, phone, _ in segments], 1.0)
    return formants_TX, level("voice"), level("hiss"), level("breath"), band_T


def _pitch(rng: np.random.Generator, sung: list[Sung], times_T: np.ndarray) -> np.ndarray:
    starts = np.asarray([s.start - 0.03 for s in sung])
    index_T = np.maximum(np.searchsorted(starts, times_T, side="right") - 1, 0)
    pitch_T = gaussian_filter1d(np.asarray([s.pitch for s in sung], np.float64)[index_T], 4.0)  # portamento
    since_T = np.maximum(times_T - starts[index_T], 0.0)
    depth_T = 0.28 * np.clip((since_T - 0.2) / 0.3, 0.0, 1.0)
    vibrato_T = depth_T * np.sin(2 * np.pi * rng.uniform(5.0, 6.0) * times_T)
    drift_T = gaussian_filter1d(rng.standard_normal(len(times_T)), 30.0) * 0.3
    return 440.0 * 2 ** ((pitch_T + vibrato_T + drift_T - 69) / 12)


def _glottis(hertz_T: np.ndarray, length: int) -> np.ndarray:
    """A band-limited pulse train: one period as a table, read at the running phase."""
    hertz_L = np.interp(np.arange(length), np.arange(len(hertz_T)) * _HOP, hertz_T)
    harmonics = np.arange(1, int(17000 / hertz_T.max()) + 1)
    table = scipy.fft.irfft(np.append(0, -0.5j * 4096 / harmonics**1.1), n=4096)  # a sum of sines
    phase_L = np.cumsum(hertz_L / RATE)
    return table.astype(np.float32)[(phase_L * 4096).astype(np.int64) & 4095]


def _damping(formants_AX: np.ndarray, bins_N: np.ndarray) -> np.ndarray:
    """What five resonances in cascade divide a spectrum by, [frames, bins] complex; the last two stand still."""
    widths_X = np.float32([90.0, 100.0, 150.0, 250.0, 350.0])
    square_XA = np.square(formants_AX.T.astype(np.float32))
    whole_AN = np.ones((1, 1), np.complex64)
    for square_A, width in reversed(list(zip(square_XA, widths_X, strict=True))):
        if (square_A == square_A[0]).all():
            square_A = square_A[:1]
        inverse_A1 = 1 / square_A[:, None]
        factor_AN = np.empty((len(square_A), len(bins_N)), np.complex64)
        factor_AN.real = 1 - inverse_A1 * bins_N**2
        factor_AN.imag = inverse_A1 * (width * bins_N)
        whole_AN = np.multiply(factor_AN, whole_AN, out=factor_AN)
    return whole_AN
