"""The built-in corpus: endless seeded songs with stems, lyrics in time, and every truth about them."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.signal import butter, sosfiltfilt

from hiermusic.audio import files
from hiermusic.data import synth, voice
from hiermusic.data.composer import NAMES, Line, Score, Span, compose
from hiermusic.errors import UserError, write_atomically

_FORMANT_SCALES = {"female": 1.17, "male": 1.0}
_PEAK, _LEVEL = 0.89, 0.16  # songs are as loud as each other: this root mean square, or as near as the peak allows
_SHORTEST = 1.0


@dataclass(frozen=True)
class Syllable:
    """A sung syllable: from the start of its first consonant to its end, its vowel's onset, in seconds; MIDI pitch."""

    text: str
    start: float
    onset: float
    end: float
    pitch: int
    phones: tuple[str, ...]


@dataclass(frozen=True)
class LyricLine:
    """A line of the lyrics as sung, its section's name, and where it lies in seconds."""

    text: str
    section: str
    start: float
    end: float
    syllables: tuple[Syllable, ...]


@dataclass(frozen=True, eq=False)
class Song:
    """A song and what is true of it.

    mix, vocals, instrumental: [L, 2] float32, mix = vocals + instrumental, peak below 1.
    tempo in beats a minute; key such as "A"; mode "major" or "minor"; chords such as "A:min"; times in seconds.
    """

    seed: int
    sample_rate: int
    mix: Float[np.ndarray, "L 2"]
    vocals: Float[np.ndarray, "L 2"]
    instrumental: Float[np.ndarray, "L 2"]
    lines: tuple[LyricLine, ...]
    tags: tuple[str, ...]
    genre: str
    tempo: float
    key: str
    mode: str
    chords: tuple[Span, ...]
    beats: Float[np.ndarray, "N"]
    sections: tuple[Span, ...]
    language: str
    description: str

    @property
    def seconds(self) -> float:
        return len(self.mix) / self.sample_rate

    @property
    def is_instrumental(self) -> bool:
        return "instrumental" in self.tags

    @property
    def lyrics(self) -> str:
        """The lyrics as a person writes them: [Verse] and [Chorus] above their lines."""
        rows: list[str] = []
        for section in self.sections:
            lines = [line.text for line in self.lines if section.start - 0.5 <= line.start < section.end - 0.5]
            if lines:
                rows += [f"[{section.name}]", *lines]
        return "\n".join(rows)


def song(
    seed: int, seconds: float, sample_rate: int = 44100, genres: Sequence[str] = (), tempi: Sequence[float] = ()
) -> Song:
    """Composes and renders one song, a pure function of its arguments.

    Args:
      seed: any int >= 0; another seed is another song.
      seconds: length, at least 1; the sound has round(seconds * sample_rate) samples.
      sample_rate: Hz.
      genres: styles to choose from (`composer.STYLES`); all when empty.
      tempi: beats a minute to choose from; all that the style plays when empty.

    Raises:
      UserError: seconds too short, seed negative, an unknown genre, or one that none of the tempi suits.
    """
    if not seconds >= _SHORTEST:
        raise UserError(f"built-in song of {seconds} s: too short, ask for {_SHORTEST:g} s or more.")
    if seed < 0:
        raise UserError(f"built-in song {seed}: the seed must not be negative.")
    write, sound = (np.random.default_rng((seed, part)) for part in range(2))
    score = compose(write, seconds, genres, tempi)
    lines = _lyric_lines(score)
    vocals_LC, instrumental_LC = _render(sound, score, lines, seconds)
    length = round(seconds * sample_rate)
    vocals_LC, instrumental_LC = (
        _fit(files.resample(wav_LC, synth.RATE, sample_rate), length) for wav_LC in (vocals_LC, instrumental_LC)
    )
    peak = max(np.abs(vocals_LC + instrumental_LC).max(), np.abs(vocals_LC).max(), np.abs(instrumental_LC).max())
    gain = min(_PEAK / peak, _LEVEL / _rms(vocals_LC + instrumental_LC))
    vocals_LC, instrumental_LC = (wav_LC * np.float32(gain) for wav_LC in (vocals_LC, instrumental_LC))
    return Song(
        seed=seed,
        sample_rate=sample_rate,
        mix=vocals_LC + instrumental_LC,
        vocals=vocals_LC,
        instrumental=instrumental_LC,
        lines=lines,
        tags=_tags(score),
        genre=score.style.genre,
        tempo=score.tempo,
        key=NAMES[score.tonic],
        mode=score.mode,
        chords=tuple(score.chords),
        beats=score.beats,
        sections=tuple(score.sections),
        language="English",
        description=_describe(score),
    )


def corpus(n: int, **how: Any) -> Iterator[Song]:
    """Iterates over n songs; song i is `nth_song` of what is given, whatever n is."""
    for index in range(n):
        yield nth_song(index, **how)


def nth_song(
    index: int,
    seed: int = 0,
    seconds_range: tuple[float, float] = (10.0, 30.0),
    genres: Sequence[str] = (),
    tempi: Sequence[float] = (),
) -> Song:
    """One song of a corpus.

    Args:
      index: which.
      seed: of the whole corpus.
      seconds_range: least and greatest length; lengths are whole seconds, as prompts ask for them.
      genres: styles to choose from; all when empty.
      tempi: beats a minute to choose from; all that a style plays when empty.
    """
    rng = np.random.default_rng((seed, index))
    number, seconds = int(rng.integers(2**31)), rng.uniform(*seconds_range)
    return song(number, float(np.clip(round(seconds), *seconds_range)), genres=genres, tempi=tempi)


def export(song: Song, folder: str | Path, name: str, stems: str | Path | None = None) -> Path:
    """Writes a song as a person would keep it: name.wav, name.json (the truth) and, if it is sung, name.txt (lyrics).

    Args:
      song: from `song`.
      folder: made if missing.
      name: file name without ending.
      stems: a folder of its own for name.vocals.wav and name.instrumental.wav; None writes none.

    Returns:
      The path of name.wav. The json's tags, description, genre and language are those of a prompt.
    """
    folder = Path(folder)
    path = folder / f"{name}.wav"
    files.write(path, song.mix, song.sample_rate)
    if stems is not None:
        files.write(Path(stems) / f"{name}.vocals.wav", song.vocals, song.sample_rate)
        files.write(Path(stems) / f"{name}.instrumental.wav", song.instrumental, song.sample_rate)
    if song.lyrics:
        write_atomically(folder / f"{name}.txt", song.lyrics + "\n")
    write_atomically(folder / f"{name}.json", json.dumps(truth(song), indent=1))
    return path


def truth(song: Song) -> dict:
    """What is true of a song as plain JSON data; times are (start, end) in seconds."""
    return {
        "description": song.description,
        "tags": ", ".join(song.tags),
        "genre": song.genre,
        "language": song.language,
        "instrumental": song.is_instrumental,
        "seed": song.seed,
        "tempo": round(song.tempo, 3),
        "key": song.key,
        "mode": song.mode,
        "beats": [round(float(beat), 4) for beat in song.beats],
        "chords": [[c.name, round(c.start, 4), round(c.end, 4)] for c in song.chords],
        "sections": [[s.name, round(s.start, 4), round(s.end, 4)] for s in song.sections],
        "lines": [
            {
                "text": line.text,
                "start": round(line.start, 4),
                "end": round(line.end, 4),
                "syllables": [[s.text, round(s.start, 4), round(s.end, 4), s.pitch] for s in line.syllables],
            }
            for line in song.lines
        ],
    }


def plot(song: Song, path: str | Path) -> None:
    """Draws a song to an image: spectrogram of the mix with beats and chords, of the vocals with its syllables."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(18, 10), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for axis, wav_LC, name in zip(axes, (song.mix, song.vocals), ("mix", "vocals"), strict=True):
        audible_L = wav_LC.mean(axis=1) + 1e-7  # silence has no logarithm
        axis.specgram(audible_L, NFFT=2048, noverlap=1536, Fs=song.sample_rate, vmin=-140, vmax=-30, cmap="magma")
        axis.set(ylim=(0, 8000), ylabel=f"{name} (Hz)")
    axes[0].vlines(song.beats, 0, 300, color="w", linewidth=0.7)
    for chord in song.chords:
        axes[0].text(chord.start, 7600, chord.name, color="w", fontsize=9)
    for line in song.lines:
        for syllable in line.syllables:
            axes[1].axvline(syllable.onset, color="w", linewidth=0.5)
            axes[1].text(syllable.onset, 7500, syllable.text, color="w", fontsize=8)
    axes[1].set(xlabel="seconds", xlim=(0, song.seconds))
    figure.suptitle(f"{song.description} {song.tempo:.1f} BPM, {song.key} {song.mode}")
    figure.savefig(path, dpi=60)


def _lyric_lines(score: Score) -> tuple[LyricLine, ...]:
    return tuple(_lyric_line(line) for line in score.lines if line.words)


def _lyric_line(line: Line) -> LyricLine:
    made = []
    free = 0.0
    for slot in line.slots:
        start = max(free, slot.start - voice.onset_seconds(slot.phones))
        made.append(Syllable(slot.text, start, slot.start, slot.end, slot.pitch, slot.phones))
        free = slot.end - 0.1
    text = " ".join(word.text for word in line.words)
    return LyricLine(text, line.section, made[0].start, made[-1].end, tuple(made))


def _render(
    rng: np.random.Generator, score: Score, lines: tuple[LyricLine, ...], seconds: float
) -> tuple[np.ndarray, np.ndarray]:
    hall = synth.room(rng, rng.uniform(0.6, 1.1))
    band_CL = sum(synth.play(score.instruments[role], notes, seconds) for role, notes in score.parts.items())
    drums_CL = synth.drum(rng, score.hits, seconds)
    send_L = np.float32(0.35) * band_CL.mean(axis=0) + np.float32(0.08) * drums_CL.mean(axis=0)
    instrumental_LC = _finish(synth.reverberate(band_CL + drums_CL, send_L, hall))
    if not lines:
        return np.zeros_like(instrumental_LC), instrumental_LC

    sung = [
        voice.Sung(s.phones, s.pitch, s.onset, s.end, float(rng.uniform(0.85, 1.0)))
        for line in lines
        for s in line.syllables
    ]
    voice_L = voice.sing(rng, sung, seconds, _FORMANT_SCALES[score.voice] * rng.uniform(0.97, 1.04))
    vocals_LC = _finish(synth.reverberate(voice_L[None], np.float32(0.25) * voice_L, hall))
    # The singer stands a little above or below the band, in decibels of the time that is sung.
    singing_L = np.zeros(len(voice_L), bool)
    for line in lines:
        singing_L[round(line.start * synth.RATE) : round(line.end * synth.RATE)] = True
    level = 10 ** (rng.uniform(-1.0, 3.0) / 20) * _rms(instrumental_LC[singing_L]) / _rms(vocals_LC[singing_L])
    return vocals_LC * np.float32(level), instrumental_LC


def _finish(wav_CL: np.ndarray) -> np.ndarray:
    """Rounds the peaks, takes away what lies below hearing and fades the edges; [2, L] to [L, 2]."""
    wav_CL = np.tanh(wav_CL / np.float32(4.0 * _rms(wav_CL) + 1e-9))
    wav_CL = sosfiltfilt(butter(1, 30, "high", fs=synth.RATE, output="sos"), wav_CL, axis=1).astype(np.float32)
    for edge_CL, seconds in ((wav_CL, 0.005), (wav_CL[:, ::-1], 0.15)):
        fade_L = np.arange(min(int(seconds * synth.RATE), len(wav_CL[0])), dtype=np.float32) / (seconds * synth.RATE)
        edge_CL[:, : len(fade_L)] *= fade_L
    return np.ascontiguousarray(wav_CL.T)


def _rms(wav_LC: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(wav_LC), dtype=np.float64)))


def _fit(wav_LC: np.ndarray, length: int) -> np.ndarray:
    return np.pad(wav_LC, ((0, max(0, length - len(wav_LC))), (0, 0)))[:length]


def _tags(score: Score) -> tuple[str, ...]:
    pace = "slow" if score.tempo < 86 else "fast" if score.tempo >= 118 else "medium tempo"
    played = [name for role, name in score.instruments.items() if role != "bass"]
    singer = "instrumental" if score.voice == "none" else f"{score.voice} voice"
    mood = "happy" if score.mode == "major" else "sad"
    kit = "drums" if score.style.drums else "no drums"
    return (score.style.genre, pace, f"{score.tempo:.0f} bpm", mood, *played, kit, singer)


def _describe(score: Score) -> str:
    _, pace, _, mood, *_ = _tags(score)
    played = " and ".join(name for role, name in score.instruments.items() if role in ("chords", "lead"))
    singer = "no singing" if score.voice == "none" else f"a {score.voice} singer"
    kit = "drums" if score.style.drums else "no drums"
    return f"A {mood} {score.style.genre} song, {pace}, with {played}, {kit} and {singer}."
