"""Instruments and a room: notes and drum strokes become a stereo sound, by wave tables and shaped noise."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.signal import butter, oaconvolve, sosfilt

from hiermusic.data.composer import Hit, Note

RATE = 44100
_TABLE = 2048
_BANDS = ((1, 2, 1.0), (3, 6, 1.8), (7, 40, 4.0))  # first and last harmonic, how much faster they die away


@dataclass(frozen=True)
class Instrument:
    """A sound: how steep its spectrum is, how it starts, dies away and ends (seconds), how wide and where it stands.

    slope: harmonic h has the level h**-slope; odd: only odd harmonics; comb: plucked at this share of the string.
    decay: time constant of the lowest harmonics, higher ones die faster; infinity sustains.
    detune: cents between left and right; pan: -1 left to 1 right; drive: tanh distortion of the sum, 0 for none.
    """

    slope: float
    attack: float
    decay: float
    release: float
    gain: float
    odd: bool = False
    comb: float = 0.0
    detune: float = 3.0
    pan: float = 0.0
    octave: int = 0
    vibrato: float = 0.0
    drive: float = 0.0


INSTRUMENTS = {
    "piano": Instrument(1.4, 0.003, 1.6, 0.15, 0.5, comb=0.12, pan=-0.2),
    "electric piano": Instrument(2.6, 0.004, 1.2, 0.12, 0.55, pan=0.2, detune=5),
    "acoustic guitar": Instrument(0.7, 0.002, 0.7, 0.1, 0.5, comb=0.21, pan=-0.3, detune=2),
    "electric guitar": Instrument(0.9, 0.004, 3.0, 0.04, 0.35, comb=0.14, detune=9, drive=4.0),
    "synth": Instrument(1.0, 0.005, 0.6, 0.08, 0.4, detune=14),
    "bells": Instrument(1.9, 0.002, 1.5, 0.3, 0.4, comb=0.29, pan=0.3, octave=1),
    "strings": Instrument(1.5, 0.25, np.inf, 0.35, 0.22, detune=12, vibrato=0.1),
    "bass": Instrument(1.7, 0.006, 1.4, 0.05, 0.7, detune=0),
    "flute": Instrument(2.4, 0.05, np.inf, 0.08, 0.8, pan=0.1, vibrato=0.2),
    "synth lead": Instrument(1.1, 0.01, np.inf, 0.06, 0.5, odd=True, detune=8, vibrato=0.15),
    "electric lead": Instrument(0.9, 0.005, 4.0, 0.06, 0.5, comb=0.2, detune=6, vibrato=0.2, drive=3.0),
}
_DRUM_PANS = {"kick": 0.0, "snare": 0.05, "hat": 0.35, "crash": -0.35}


def play(name: str, notes: list[Note], seconds: float) -> Float[np.ndarray, "2 L"]:
    """Plays an instrument's part.

    Args:
      name: a key of INSTRUMENTS.
      notes: in any order; what rings past the end is cut.
      seconds: length of the sound.

    Returns:
      wav_CL float32 at RATE Hz, not normalised.
    """
    instrument = INSTRUMENTS[name]
    out_CL = np.zeros((2, round(seconds * RATE)), np.float32)
    release_L = _release(instrument)
    pitches: dict[int, list[tuple[Note, int, int]]] = {}
    for note in notes:
        at, held = round(note.start * RATE), round(50 * min(note.seconds, 4.0 * instrument.decay)) * RATE // 50
        pitches.setdefault(note.pitch, []).append((note, at, held))
    # A pitch sounds once, as long as its longest note needs it.
    lengths = {
        pitch: max(0, *(min(held + len(release_L), out_CL.shape[1] - at) for _, at, held in places))
        for pitch, places in pitches.items()
    }
    clock_L = _clock(instrument, max(lengths.values(), default=0))
    envelopes_BL = _envelopes(instrument, len(clock_L))
    for pitch, places in pitches.items():
        length = lengths[pitch]
        tone_CL = _tone(instrument, pitch + 12 * instrument.octave, clock_L[:length], envelopes_BL[:, :length])
        for note, at, held in places:
            gain = note.gain * instrument.gain
            _add(out_CL, tone_CL[:, :held], at, gain)
            ringing_CL = tone_CL[:, held : held + len(release_L)]
            _add(out_CL, ringing_CL * release_L[: ringing_CL.shape[1]], at + held, gain)
    if instrument.drive:
        np.tanh(np.float32(instrument.drive) * out_CL, out=out_CL)
        out_CL *= np.float32(0.8 / instrument.drive)
    for side, pan in zip(out_CL, (-instrument.pan, instrument.pan), strict=True):
        if pan < 0:
            side *= np.float32(1.0 + pan)
    return out_CL


def drum(rng: np.random.Generator, hits: list[Hit], seconds: float) -> Float[np.ndarray, "2 L"]:
    """Plays a drum kit, made anew from `rng` for each song.

    Args:
      rng: the source of chance (tuning of the kit, noise).
      hits: strokes in any order.
      seconds: length of the sound.

    Returns:
      wav_CL float32 at RATE Hz, not normalised.
    """
    kit = {"kick": _kick(rng), "snare": _snare(rng), "hat": _hiss(rng, 7000, 0.035), "crash": _hiss(rng, 4500, 0.5)}
    gains = {"kick": 1.8, "snare": 1.2, "hat": 0.44, "crash": 0.5}  # 5 dB under the band, all in all
    out_CL = np.zeros((2, round(seconds * RATE)), np.float32)
    for hit in hits:
        pan = _DRUM_PANS[hit.drum]
        sides = np.float32([[min(1.0, 1.0 - pan)], [min(1.0, 1.0 + pan)]])
        _add(out_CL, kit[hit.drum] * sides, round(hit.start * RATE), hit.gain * gains[hit.drum])
    return out_CL


def room(rng: np.random.Generator, seconds: float) -> Float[np.ndarray, "2 l"]:
    """The response of a room with a reverberation time of `seconds`: stereo noise that darkens and dies away."""
    time_l = np.arange(int(seconds * RATE)) / RATE
    noise_Cl = rng.standard_normal((2, len(time_l)))
    dark_Cl = sosfilt(butter(1, 2500, fs=RATE, output="sos"), noise_Cl) * 3.0
    response_Cl = (noise_Cl * np.exp(-time_l / 0.03) * 0.3 + dark_Cl) * np.exp(-6.9 * time_l / seconds)
    response_Cl[:, : int(0.012 * RATE)] = 0.0
    return (response_Cl / np.sqrt((response_Cl**2).sum(axis=1, keepdims=True))).astype(np.float32)


def reverberate(
    wav_CL: Float[np.ndarray, "2 L"], send_L: Float[np.ndarray, "L"], room_Cl: Float[np.ndarray, "2 l"]
) -> Float[np.ndarray, "2 L"]:
    """Adds the room's answer to `send_L` to the sound."""
    return wav_CL + oaconvolve(send_L[None], room_Cl, axes=1)[:, : len(send_L)]


def _add(out_CL: np.ndarray, tone_CL: np.ndarray, at: int, gain: float) -> None:
    count = min(tone_CL.shape[1], out_CL.shape[1] - at)
    if count > 0:
        out_CL[:, at : at + count] += np.float32(gain) * tone_CL[:, :count]


def _tone(
    instrument: Instrument, pitch: int, clock_L: np.ndarray, envelopes_BL: np.ndarray
) -> Float[np.ndarray, "2 L"]:
    """A note that is not let go."""
    hertz = 440.0 * 2 ** ((pitch - 69) / 12)
    tables = _tables(instrument, hertz)
    if len(envelopes_BL) == 1:
        tables = tables.sum(axis=0, keepdims=True)
    cycles_L = hertz * clock_L
    tone_CL = np.zeros((2 if instrument.detune else 1, len(clock_L)), np.float32)
    for tone_L, cents in zip(tone_CL, (-instrument.detune / 2, instrument.detune / 2), strict=False):
        index_L = (cycles_L * (_TABLE * 2 ** (cents / 1200))).astype(np.intp) & (_TABLE - 1)
        for table, envelope_L in zip(tables.astype(np.float32), envelopes_BL, strict=False):
            tone_L += table[index_L] * envelope_L
    return np.broadcast_to(tone_CL, (2, len(clock_L)))


def _clock(instrument: Instrument, length: int) -> Float[np.ndarray, "L"]:
    """Seconds since a note's start, bent by the vibrato, which sets in after a tenth of a second."""
    time_L = np.arange(length, dtype=np.float32) / RATE
    if not instrument.vibrato:
        return time_L
    octaves_L = instrument.vibrato / 12 * np.sin(2 * np.pi * 5.3 * time_L) * np.clip(2 * time_L - 0.2, 0, 1)
    return time_L + np.cumsum(np.exp2(octaves_L) - 1.0) / RATE


def _envelopes(instrument: Instrument, length: int) -> Float[np.ndarray, "B L"]:
    """How a note's bands start and die away; one for all of them where it sustains."""
    time_L = np.arange(length, dtype=np.float32) / RATE
    speeds = [0.0] if np.isinf(instrument.decay) else [speed / instrument.decay for _, _, speed in _BANDS]
    envelopes_BL = np.exp(-time_L * np.float32(speeds)[:, None])
    attack = int(instrument.attack * RATE) + 1
    envelopes_BL[:, :attack] *= np.minimum(time_L[:attack] / np.float32(instrument.attack), 1.0)
    return envelopes_BL


def _tables(instrument: Instrument, hertz: float) -> Float[np.ndarray, "bands N"]:
    """A period of each of the bands that the pitch has harmonics in."""
    harmonics = np.arange(1, max(2, int(min(16000 / hertz, 40)) + 1))
    levels = harmonics**-instrument.slope
    if instrument.odd:
        levels = np.where(harmonics % 2, levels, 0.0)
    if instrument.comb:
        levels = levels * np.abs(np.sin(np.pi * harmonics * instrument.comb))
    phases = np.exp(2j * np.pi * (0.37 * harmonics**2 - 0.25))  # they spread the peaks
    waves = phases * levels / np.sqrt((levels**2).sum()) * (_TABLE / 2)
    bands = [(first, last) for first, last, _ in _BANDS if first <= len(harmonics)]
    spectra = np.zeros((len(bands), _TABLE // 2 + 1), np.complex128)
    for spectrum, (first, last) in zip(spectra, bands, strict=True):
        spectrum[first : min(last, len(harmonics)) + 1] = waves[first - 1 : last]
    return np.fft.irfft(spectra, axis=1)


def _release(instrument: Instrument) -> Float[np.ndarray, "L"]:
    """How a note dies away once it is let go."""
    time_L = np.arange(int(5 * instrument.release * RATE), dtype=np.float32) / RATE
    ending_L = np.minimum((time_L[-1] - time_L) / np.float32(0.005), 1.0)
    return np.exp(-time_L / np.float32(instrument.release)) * ending_L


def _kick(rng: np.random.Generator) -> np.ndarray:
    time_L = np.arange(int(0.35 * RATE)) / RATE
    low, drop = rng.uniform(42, 58), rng.uniform(120, 220)
    cycles_L = low * time_L + drop * 0.025 * (1 - np.exp(-time_L / 0.025))
    body_L = np.sin(2 * np.pi * cycles_L) * np.exp(-time_L / rng.uniform(0.09, 0.14))
    click_L = rng.standard_normal(len(time_L)) * np.exp(-time_L / 0.003) * 0.15
    return _ended(body_L + click_L)


def _snare(rng: np.random.Generator) -> np.ndarray:
    time_L = np.arange(int(0.25 * RATE)) / RATE
    hertz = rng.uniform(170, 220)
    body_L = np.sin(2 * np.pi * hertz * time_L) * np.exp(-time_L / 0.05) * 0.5
    wires_L = sosfilt(butter(2, 1500, "high", fs=RATE, output="sos"), rng.standard_normal(len(time_L)))
    return _ended(body_L + 0.45 * wires_L * np.exp(-time_L / rng.uniform(0.05, 0.09)))


def _hiss(rng: np.random.Generator, cutoff: float, decay: float) -> np.ndarray:
    time_L = np.arange(int(5 * decay * RATE)) / RATE
    noise_L = sosfilt(butter(4, cutoff, "high", fs=RATE, output="sos"), rng.standard_normal(len(time_L)))
    return _ended(noise_L * np.exp(-time_L / decay))


def _ended(wav_L: np.ndarray) -> np.ndarray:
    """Starts and ends without a click: half a millisecond in, the last tenth out."""
    count = len(wav_L)
    edge_L = np.minimum(np.arange(count) / (0.0005 * RATE), (count - 1 - np.arange(count)) / (0.1 * count))
    return (wav_L * np.minimum(edge_L, 1.0)).astype(np.float32)[None]
