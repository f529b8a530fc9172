"""Instruments and a room: notes and drum strokes become a stereo sound, by wave tables and shaped noise."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.signal import butter, oaconvolve, sosfilt

from hiermusic.data.composer import Hit, Note

RATE = 44100
_TABLE = 2048


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
    "bass": Instrument(1.7, 0.006, 1.4, 0.05, 0.9, detune=0),
    "flute": Instrument(2.4, 0.05, np.inf, 0.08, 0.8, pan=0.1, vibrato=0.2),
    "synth lead": Instrument(1.1, 0.01, np.inf, 0.06, 0.5, odd=True, detune=8, vibrato=0.15),
    "electric lead": Instrument(0.9, 0.005, 4.0, 0.06, 0.5, comb=0.2, detune=6, vibrato=0.2, drive=3.0),
}
_DRUM_PANS = {"kick": 0.0, "snare": 0.05, "hat": 0.35, "crash": -0.35}


def play(name: str, notes: list[Note], seconds: float) -> Float[np.ndarray, "L 2"]:
    """Plays an instrument's part.

    Args:
      name: a key of INSTRUMENTS.
      notes: in any order; what rings past the end is cut.
      seconds: length of the sound.

    Returns:
      wav_LC float32 at RATE Hz, not normalised.
    """
    instrument = INSTRUMENTS[name]
    out_CL = np.zeros((2, round(seconds * RATE)), np.float32)
    tones: dict[tuple[int, int], np.ndarray] = {}
    for note in notes:
        key = (note.pitch, max(1, round(note.seconds * 50)))  # lengths to 20 ms, so that a tone serves many notes
        if key not in tones:
            tones[key] = _tone(instrument, key[0] + 12 * instrument.octave, key[1] / 50)
        _add(out_CL, tones[key], note.start, note.gain * instrument.gain)
    if instrument.drive:
        out_CL = np.tanh(instrument.drive * out_CL) * (0.8 / instrument.drive)
    left, right = min(1.0, 1.0 - instrument.pan), min(1.0, 1.0 + instrument.pan)
    return (out_CL * np.float32([[left], [right]])).T


def drum(rng: np.random.Generator, hits: list[Hit], seconds: float) -> Float[np.ndarray, "L 2"]:
    """Plays a drum kit, made anew from `rng` for each song.

    Args:
      rng: the source of chance (tuning of the kit, noise).
      hits: strokes in any order.
      seconds: length of the sound.

    Returns:
      wav_LC float32 at RATE Hz, not normalised.
    """
    kit = {"kick": _kick(rng), "snare": _snare(rng), "hat": _hiss(rng, 7000, 0.035), "crash": _hiss(rng, 4500, 0.5)}
    gains = {"kick": 0.9, "snare": 0.6, "hat": 0.22, "crash": 0.25}
    out_CL = np.zeros((2, round(seconds * RATE)), np.float32)
    for hit in hits:
        pan = _DRUM_PANS[hit.drum]
        sides = np.float32([[min(1.0, 1.0 - pan)], [min(1.0, 1.0 + pan)]])
        _add(out_CL, kit[hit.drum] * sides, hit.start, hit.gain * gains[hit.drum])
    return out_CL.T


def room(rng: np.random.Generator, seconds: float) -> Float[np.ndarray, "2 R"]:
    """The response of a room with a reverberation time of `seconds`: stereo noise that darkens and dies away."""
    time_R = np.arange(int(seconds * RATE)) / RATE
    noise_CR = rng.standard_normal((2, len(time_R)))
    dark_CR = sosfilt(butter(1, 2500, fs=RATE, output="sos"), noise_CR) * 3.0
    response_CR = (noise_CR * np.exp(-time_R / 0.03) * 0.3 + dark_CR) * np.exp(-6.9 * time_R / seconds)
    response_CR[:, : int(0.012 * RATE)] = 0.0
    return (response_CR / np.sqrt((response_CR**2).sum(axis=1, keepdims=True))).astype(np.float32)


def reverberate(wav_LC: Float[np.ndarray, "L 2"], room_CR: Float[np.ndarray, "2 R"], wet: float) -> np.ndarray:
    """Adds a share `wet` of the room's answer to the sound."""
    send_L1 = wav_LC.mean(axis=1, keepdims=True)
    return wav_LC + np.float32(wet) * oaconvolve(send_L1, room_CR.T, axes=0)[: len(wav_LC)]


def _add(out_CL: np.ndarray, tone_CL: np.ndarray, start: float, gain: float) -> None:
    at = round(start * RATE)
    count = min(tone_CL.shape[1], out_CL.shape[1] - at)
    if count > 0:
        out_CL[:, at : at + count] += np.float32(gain) * tone_CL[:, :count]


def _tone(instrument: Instrument, pitch: int, seconds: float) -> np.ndarray:
    hertz = 440.0 * 2 ** ((pitch - 69) / 12)
    ring = min(seconds, 4.0 * instrument.decay) + 5 * instrument.release
    time_L = np.arange(int(ring * RATE), dtype=np.float32) / RATE
    bend_L = instrument.vibrato / 12 * np.sin(2 * np.pi * 5.3 * time_L) * np.clip(2 * time_L - 0.2, 0, 1)
    cycles_L = hertz * (time_L + np.cumsum(2.0**bend_L - 1.0) / RATE)
    harmonics = np.arange(1, max(2, int(min(16000 / hertz, 40)) + 1))
    levels = harmonics**-instrument.slope
    if instrument.odd:
        levels = np.where(harmonics % 2, levels, 0.0)
    if instrument.comb:
        levels = levels * np.abs(np.sin(np.pi * harmonics * instrument.comb))
    turns = np.outer(np.arange(_TABLE) / _TABLE, harmonics) + 0.37 * harmonics**2  # phases spread the peaks
    waves = np.sin(2 * np.pi * turns) * levels / np.sqrt((levels**2).sum())

    tone_CL = np.zeros((2, len(time_L)), np.float32)
    for first, last, speed in ((1, 2, 1.0), (3, 6, 1.8), (7, 40, 4.0)):
        table = waves[:, first - 1 : last].sum(axis=1).astype(np.float32)
        fade_L = np.exp(-time_L * np.float32(speed / instrument.decay))
        for side, cents in enumerate((-instrument.detune / 2, instrument.detune / 2)):
            index_L = (cycles_L * (_TABLE * 2 ** (cents / 1200))).astype(np.int32) & (_TABLE - 1)
            tone_CL[side] += table[index_L] * fade_L
    released_L = np.exp(-np.maximum(time_L - np.float32(seconds), 0) / np.float32(instrument.release))
    attack_L = np.minimum(time_L / np.float32(instrument.attack), 1.0)
    ending_L = np.clip((time_L[-1] - time_L) / np.float32(0.005), 0.0, 1.0)
    return tone_CL * (attack_L * released_L * ending_L)


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
