"""Composes short songs: style, key, chords, parts, melody and words, as notes in time. No sound is made here."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hiermusic.data.lyrics import Word, syllable_count, write_line
from hiermusic.errors import UserError

BEATS = 4  # per bar
_STEPS = 16  # per bar, and per line of verse
NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
_SCALES = {"major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10)}
_PROGRESSIONS = {
    "major": ((0, 4, 5, 3), (0, 5, 3, 4), (5, 3, 0, 4), (0, 3, 5, 4), (0, 2, 3, 4), (3, 0, 4, 5)),
    "minor": ((0, 5, 2, 6), (0, 3, 5, 6), (0, 6, 5, 6), (0, 2, 6, 3), (5, 6, 0, 0), (0, 3, 6, 2)),
}
_REGISTERS = {"female": (58, 76), "male": (46, 64)}  # MIDI numbers


@dataclass(frozen=True)
class Style:
    """How a genre plays, in bars of 16 steps: x strike, X accent, a arpeggio, r root, f fifth, o octave, . nothing."""

    genre: str
    tempo: tuple[float, float]
    chords: tuple[str, ...]
    comping: str
    pad: str | None
    bass: str
    kick: str
    snare: str
    hat: str
    lead: tuple[str, ...]
    swing: float = 0.0

    @property
    def drums(self) -> bool:
        return "x" in (self.kick + self.snare + self.hat).lower()

    def of(self, tempi: Sequence[float]) -> list[float]:
        """Those of the tempi that this style plays."""
        return [tempo for tempo in tempi if self.tempo[0] <= tempo <= self.tempo[1]]


_SILENT = "." * _STEPS
STYLES = (
    Style("ballad", (60, 80), ("piano",), "x...a.a.x...a.a.", "strings", "r.......f.......",
          "X.......x.......", "........x.......", "....x.......x...", ("flute",)),
    Style("folk", (88, 112), ("acoustic guitar",), "x..ax.a.x..ax.a.", None, "r.......f.......",
          "x.......x.......", _SILENT, "..x...x...x...x.", ("flute",)),
    Style("pop", (98, 118), ("piano", "electric piano"), "x.....x.x.....x.", "strings", "r.....r.r...f...",
          "X.....x.X.......", "....X.......X...", "x.x.x.x.x.x.x.x.", ("synth lead",)),
    Style("rock", (120, 144), ("electric guitar",), "x.x.x.x.x.x.x.x.", None, "r.r.r.r.r.r.r.f.",
          "X.....x.X.x.....", "....X.......X...", "x.x.x.x.x.x.x.x.", ("electric lead",)),
    Style("dance", (120, 134), ("synth",), "..x..x..x..x..x.", "strings", "..r...r...r...o.",
          "X...X...X...X...", "....x.......x...", "..X...X...X...X.", ("synth lead",)),
    Style("ambient", (60, 76), ("bells",), "a...a.....a...a.", "strings", "r...............",
          _SILENT, _SILENT, _SILENT, ("flute", "synth lead")),
    Style("hip hop", (84, 98), ("electric piano",), "x.........x.....", None, "r..r......r...o.",
          "X......x..X.....", "....X.......X...", "x.x.x.xxx.x.x.x.", ("bells",), swing=0.3),
)  # fmt: skip


@dataclass(frozen=True)
class Note:
    """A note: start and length in seconds, pitch in MIDI numbers, gain about 1."""

    start: float
    seconds: float
    pitch: int
    gain: float = 1.0


@dataclass(frozen=True)
class Hit:
    """A stroke of "kick", "snare", "hat" or "crash" at a second, with its gain."""

    drum: str
    start: float
    gain: float


@dataclass(frozen=True)
class Span:
    """Something named that lasts from start to end, in seconds: a chord such as "A:min", a section such as "Verse"."""

    name: str
    start: float
    end: float


@dataclass(frozen=True)
class Slot:
    """Where one syllable is sung: its text and phones, its beat and end in seconds, its pitch in MIDI numbers."""

    text: str
    phones: tuple[str, ...]
    start: float
    end: float
    pitch: int


@dataclass(frozen=True)
class Line:
    """A line of the melody: the words (none when it is played) and a slot for each syllable."""

    section: str
    words: tuple[Word, ...]
    slots: tuple[Slot, ...]


@dataclass
class Score:
    """A composed song; times in seconds, tempo in beats a minute, `parts` from an instrument's role to its notes."""

    seconds: float
    style: Style
    tempo: float
    tonic: int
    mode: str
    voice: str  # "female", "male" or "none"
    instruments: dict[str, str]
    beats: np.ndarray
    sections: list[Span] = field(default_factory=list)
    chords: list[Span] = field(default_factory=list)
    parts: dict[str, list[Note]] = field(default_factory=dict)
    hits: list[Hit] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)


def compose(rng: np.random.Generator, seconds: float, genres: Sequence[str] = (), tempi: Sequence[float] = ()) -> Score:
    """Composes a song of a given length.

    Args:
      rng: the source of every choice.
      seconds: length, at least 1.
      genres: to choose from; all when empty.
      tempi: beats a minute to choose from, as far as a style plays them; all that it plays when empty.

    Returns:
      The score. More often than not the tempo, a whole number of beats a minute where no others are given, is such that
      the song closes on the tonic after its last bar.
    Raises:
      UserError: an unknown genre, or one of which no tempo given is played.
    """
    choice = styles(genres, tempi)
    style = choice[rng.integers(len(choice))]
    low, high = style.tempo
    wanted = rng.uniform(low, high)
    bars = max(1, round((wanted * seconds / 60 - 1) / BEATS))
    if rng.random() < 0.6:  # ends on a bar; otherwise the song is cut, and a length does not give the tempo away
        wanted = np.clip((bars * BEATS + 1) * 60 / seconds, low, high)
    tempo = float(np.floor(wanted))  # down, or the last bar would not end in time
    if tempi:
        tempo = float(min(style.of(tempi), key=lambda one: abs(one - wanted)))
    bars = max(1, int(np.ceil((seconds * tempo / 60 - 1.001) / BEATS)))
    mode = "minor" if rng.random() < (0.3 if style.genre in ("pop", "folk", "dance") else 0.55) else "major"
    voice = ("none", "female", "male")[rng.choice(3, p=(0.2, 0.4, 0.4))]
    instruments = {"chords": style.chords[rng.integers(len(style.chords))], "bass": "bass"}
    if style.pad:
        instruments["pad"] = style.pad
    if voice == "none":
        instruments["lead"] = style.lead[rng.integers(len(style.lead))]
    beats = np.arange(0, seconds, 60 / tempo)
    score = Score(seconds, style, tempo, int(rng.integers(12)), mode, voice, instruments, beats)
    score.parts = {role: [] for role in instruments}
    _Composer(rng, score, bars).run()
    return score


def styles(genres: Sequence[str] = (), tempi: Sequence[float] = ()) -> list[Style]:
    """The styles of these genres, of all when empty; UserError where one is no style, or plays none of the tempi."""
    known = {style.genre: style for style in STYLES}
    for genre in genres:
        if genre not in known:
            raise UserError(f"there is no style {genre!r}: choose from {', '.join(known)}")
    chosen = [style for style in STYLES if not genres or style.genre in genres]
    for style in chosen:
        if tempi and not style.of(tempi):
            low, high = style.tempo
            raise UserError(f"style {style.genre!r} plays none of the tempi: give one from {low:g} to {high:g} for it")
    return chosen


class _Composer:
    """Fills a score bar by bar."""

    def __init__(self, rng: np.random.Generator, score: Score, bars: int):
        self.rng, self.score, self.bars = rng, score, bars
        self.bar = BEATS * 60 / score.tempo
        self.line_bars = 1 if score.tempo < 86 else 2  # a line of 16 slots, 0.17 to 0.35 s each
        self.scale = _SCALES[score.mode]
        choices = _PROGRESSIONS[score.mode]
        self.progression = {name: choices[rng.integers(len(choices))] for name in ("Verse", "Chorus")}
        self.progression["Intro"] = self.progression["Verse"]
        self.chorus: list[tuple[Word, ...]] = []
        # A section keeps its rhythm and its curve, so that verses resemble one another.
        self.rhythm, self.curve = {}, {}
        strength = np.asarray([8, 1, 3, 1.5, 5, 1, 3, 1.5] * 2)[:14]
        for name in ("Verse", "Chorus"):
            order = np.argsort(rng.exponential(1.0, 13) / strength[:13])
            self.rhythm[name] = order
            walk = np.cumsum(rng.choice((-2, -1, 0, 1, 2), size=(2, _STEPS), p=(0.15, 0.25, 0.2, 0.25, 0.15)), axis=1)
            self.curve[name] = np.clip(walk - np.rint(walk.mean(axis=1, keepdims=True)), -4, 4).astype(int)
        self.voicing = (55, 60, 64)

    def run(self) -> None:
        for name, first, last in self._form():
            span = Span(name, self._time(first), min(self._time(last), self.score.seconds))
            self.score.sections.append(span)
            for bar in range(first, last):
                self._play_bar(name, bar, bar - first, fill=bar == last - 1 and last - first > 1)
            if name != "Intro":
                self._sing_section(name, first, last)
        if self._time(self.bars) < self.score.seconds - 0.05:
            self._close()

    def _form(self) -> list[tuple[str, int, int]]:
        """Sections as (name, first bar, last bar): an intro if there is room, then verses and choruses in turn."""
        size = 4 if self.line_bars == 2 or self.bars >= 12 else 2
        first = (2 if self.bars >= 10 else 1) if self.bars >= 2 * size + 1 else 0
        form = [("Intro", 0, first)] if first else []
        while first < self.bars:
            name = "Chorus" if form and form[-1][0] == "Verse" else "Verse"
            last = first + size
            if self.bars - last < size / 2:  # too short for a section of its own
                last = self.bars
            form.append((name, first, last))
            first = last
        return form

    def _time(self, bar: float) -> float:
        return bar * self.bar

    def _pitch(self, degree: int) -> int:
        """MIDI number of a scale degree, degree 0 being the tonic at or above C0's octave."""
        octave, step = divmod(degree, 7)
        return 12 + self.score.tonic + 12 * octave + self.scale[step]

    def _triad(self, degree: int) -> tuple[int, ...]:
        return tuple(self._pitch(degree + third) % 12 for third in (0, 2, 4))

    def _chord(self, degree: int, start: float, end: float) -> tuple[int, ...]:
        """Names a chord and voices it as near as possible to the one before."""
        root, third, _ = self._triad(degree)
        name = f"{NAMES[root]}:{'maj' if (third - root) % 12 == 4 else 'min'}"
        self.score.chords.append(Span(name, start, min(end, self.score.seconds)))
        closest = [
            tuple(p for p in range(low, low + 12) if p % 12 in self._triad(degree))
            for low in range(52, 64)
            if low % 12 in self._triad(degree)
        ]
        self.voicing = min(closest, key=lambda v: sum(abs(a - b) for a, b in zip(v, self.voicing, strict=True)))
        return self.voicing

    def _play_bar(self, section: str, bar: int, index: int, fill: bool) -> None:
        rng, style, parts = self.rng, self.score.style, self.score.parts
        start, step = self._time(bar), self.bar / _STEPS
        degree = self.progression[section][index % 4]
        voicing = self._chord(degree, start, start + self.bar)
        lift = 1.0 if section == "Chorus" else 0.85

        def at(i):
            late = style.swing * step if i % 2 else 0.0
            return max(0.0, start + i * step + late + rng.normal(0, 0.003))

        strikes = [i for i, c in enumerate(style.comping) if c != "."]
        turn = 0
        for i, following in zip(strikes, [*strikes[1:], _STEPS], strict=True):
            gain = lift * rng.uniform(0.85, 1.0)
            if style.comping[i] == "x":
                strum = 0.012 if "guitar" in self.score.instruments["chords"] else 0.0
                for n, pitch in enumerate(voicing):
                    parts["chords"].append(Note(at(i) + n * strum, (following - i) * step, pitch, gain))
            else:
                pitch = (*voicing, voicing[0] + 12)[turn % 4]
                parts["chords"].append(Note(at(i), (_STEPS - i) * step, pitch, gain))
                turn += 1
        if "pad" in parts:
            parts["pad"] += [Note(start, self.bar, pitch, lift) for pitch in voicing]

        root = 28 + (self._triad(degree)[0] - 28) % 12
        bass = [i for i, c in enumerate(style.bass) if c != "."]
        for i, following in zip(bass, [*bass[1:], _STEPS], strict=True):
            pitch = root + {"r": 0, "f": 7, "o": 12}[style.bass[i]]
            parts["bass"].append(Note(at(i), 0.9 * (following - i) * step, pitch, rng.uniform(0.9, 1.0)))
        if style.drums and not (section == "Intro" and bar == 0):
            self._drum_bar(at, index == 0, fill, lift)

    def _drum_bar(self, at, crash: bool, fill: bool, lift: float) -> None:
        rng, style = self.rng, self.score.style
        for drum, pattern in (("kick", style.kick), ("snare", style.snare), ("hat", style.hat)):
            for i, c in enumerate(pattern):
                if c != ".":
                    self.score.hits.append(Hit(drum, at(i), lift * (1.0 if c == "X" else 0.75) * rng.uniform(0.9, 1)))
                elif drum != "kick" and "x" in pattern.lower() and rng.random() < 0.04:
                    self.score.hits.append(Hit(drum, at(i), 0.25))  # a ghost note
        if fill and "X" in style.snare:
            for i in range(12, 16):
                self.score.hits.append(Hit("snare", at(i), 0.4 + 0.12 * (i - 12)))
        if crash:
            self.score.hits.append(Hit("crash", at(0), 0.8))

    def _sing_section(self, section: str, first: int, last: int) -> None:
        words: list[tuple[Word, ...]] = []
        for number, bar in enumerate(range(first, last, self.line_bars)):
            slots = min(self.line_bars, last - bar) * _STEPS // self.line_bars
            high = 9 if slots == _STEPS else 5
            rhyme = words[-1] if number % 2 else ()
            if section == "Chorus" and number < len(self.chorus):
                line = self.chorus[number]
            elif self.score.voice == "none":
                line = ()
            else:
                line = write_line(self.rng, 3 if slots < _STEPS else 5, high, rhyme)
            words.append(line)
            count = syllable_count(line) if line else int(self.rng.integers(4, high + 1))
            self._sing_line(section, first, line, count, bar, slots, number % 2)
        if section == "Chorus" and len(words) > len(self.chorus):
            self.chorus = words

    def _sing_line(
        self, section: str, first: int, line: tuple[Word, ...], count: int, bar: int, slots: int, variant: int
    ) -> None:
        score = self.score
        step = self.bar * self.line_bars / _STEPS
        order = self.rhythm[section]
        onsets = np.sort(order[order < slots - 2][:count]).tolist()
        ends = [*onsets[1:], min(onsets[-1] + 5, slots - 1)]
        texts = [t for word in line for t in word.syllables] or [""] * count
        phones = [p for word in line for p in word.phones] or [()] * count
        made = []
        for i, (onset, end) in enumerate(zip(onsets, ends, strict=True)):
            start = self._time(bar) + onset * step
            stop = min(self._time(bar) + end * step, start + 6 * step, score.seconds - 0.02)
            if stop - start < 0.1:
                break
            degree = self.progression[section][(int((start + 1e-6) / self.bar) - first) % 4]
            strong = onset % 4 == 0 or i == count - 1
            pitch = self._melody(section, variant, onset, self._triad(degree) if strong else None)
            made.append(Slot(texts[i], phones[i], start, stop, pitch))
        if len(made) < count:  # the song ends here: keep whole words only
            while line and syllable_count(line) > len(made):
                line = line[:-1]
            made = made[: syllable_count(line)] if line else made if score.voice == "none" else []
        if made:
            score.lines.append(Line(section, line, tuple(made)))
            if score.voice == "none":
                score.parts["lead"] += [Note(s.start, s.end - s.start, s.pitch) for s in made]

    def _melody(self, section: str, variant: int, slot: int, chord: tuple[int, ...] | None) -> int:
        """Scale note of the section's curve; on strong slots the nearest chord note."""
        low, high = _REGISTERS.get(self.score.voice, (62, 80))
        middle = (low + high) / 2 - 1 + (2 if section == "Chorus" else 0)
        notes = [p for p in map(self._pitch, range(70)) if low <= p <= high]
        place = int(np.argmin([abs(p - middle) for p in notes])) + self.curve[section][variant, slot]
        wanted = notes[int(np.clip(place, 0, len(notes) - 1))]
        if chord is None:
            return wanted
        return min((p for p in notes if p % 12 in chord), key=lambda p: abs(p - wanted))

    def _close(self) -> None:
        """The tonic on the beat after the last bar, ringing to the end."""
        score, start = self.score, self._time(self.bars)
        rest = score.seconds - start
        for pitch in self._chord(0, start, score.seconds):
            score.parts["chords"].append(Note(start, rest, pitch))
            if "pad" in score.parts:
                score.parts["pad"].append(Note(start, rest, pitch))
        score.parts["bass"].append(Note(start, rest, 28 + (score.tonic - 28) % 12))
        score.sections.append(Span("Outro", start, score.seconds))
        if score.style.drums:
            score.hits += [Hit("kick", start, 1.0), Hit("crash", start, 0.8)]
