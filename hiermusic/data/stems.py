"""Stems: the parts of a track that add up to its mix; how files name them, and what follows from those at hand."""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path

import numpy as np

from hiermusic.audio import files
from hiermusic.console import warn
from hiermusic.errors import UserError

MIX, VOCALS, INSTRUMENTAL = "mix", "vocals", "instrumental"
NAMES = (MIX, VOCALS, INSTRUMENTAL, "drums", "bass", "other")
ALONE = (MIX,)  # the stems of an ordinary track
TOLERANCE = 0.1  # seconds by which stems of a track may differ: encoders add less
PACKED = ".stem.mp4"  # as MUSDB18 is handed out
UNPACK = (
    "decode it into a folder: ffmpeg -i X.stem.mp4 -map 0:0 X/mixture.wav -map 0:1 X/drums.wav -map 0:2 X/bass.wav "
    "-map 0:3 X/other.wav -map 0:4 X/vocals.wav"
)

_ALIASES = {"mixture": MIX, "no_vocals": INSTRUMENTAL, "accompaniment": INSTRUMENTAL}
_WORDS = {**{name: name for name in NAMES}, **_ALIASES}
# song_vocals, song.vocals and song_(Vocals): MUSDB18, Spleeter and Demucs call the whole file by the stem alone
_NAMED = re.compile(rf"(?:(.+?)[._ ])?\(?({'|'.join(_WORDS)})\)?", re.IGNORECASE)

Sound = np.ndarray | Mapping[str, np.ndarray]  # float32 [L, C]: the mix, or stems by name


def parse(text: str, flag: str = "stems") -> tuple[str, ...]:
    """The stems that a person lists by commas, each once, the mix first; UserError for names that none has."""
    wanted = {word.strip() for word in text.split(",")}
    if strange := sorted(wanted.difference(NAMES)):
        raise UserError(f"--{flag}={text}: {strange[0]!r} is no stem; there are {', '.join(NAMES)}")
    return tuple(name for name in NAMES if name in wanted)


def place(file: Path, root: Path) -> tuple[Path, str] | None:
    """The track, as a path without ending, and the stem of it that a file below `root` is by its name."""
    if not (named := _NAMED.fullmatch(file.stem)):
        return None
    folder = file.parent.parent if file.parent.name == "stems" and file.parent != root else file.parent
    return (folder / named[1] if named[1] else file.parent), _WORDS[named[2].lower()]


def is_group(names: Iterable[str]) -> bool:
    """Whether files of these stems are one track: a song and its bass alone may as well be two."""
    return len(set(names)) > 1 and not {VOCALS, INSTRUMENTAL}.isdisjoint(names)


def needed(wanted: Sequence[str], given: Iterable[str]) -> tuple[str, ...]:
    """The stems to read, of those that are given, for the wanted ones; UserError where one does not follow."""
    return tuple(dict.fromkeys(part for name in wanted for part in _parts(name, tuple(given))))


def one_rate(read: Mapping[str, tuple[np.ndarray, int]]) -> tuple[Sound, int]:
    """Stems that were read, each with its sample rate, as `Track.load` gives them: at the highest of their rates."""
    rate = max(rate for _, rate in read.values())
    sounds = {name: files.resample(wav_LC, own, rate) for name, (wav_LC, own) in read.items()}
    return (sounds[MIX] if tuple(sounds) == ALONE else sounds), rate


def _parts(name: str, given: tuple[str, ...]) -> tuple[str, ...]:
    """The given stems that add up to one."""
    if name in given:
        return (name,)
    rest = tuple(part for part in given if part not in (MIX, VOCALS, INSTRUMENTAL))
    if name == INSTRUMENTAL and rest:
        return rest
    if name == MIX and MIX not in given:
        instruments = (INSTRUMENTAL,) if INSTRUMENTAL in given else rest
        if found := (*((VOCALS,) if VOCALS in given else ()), *instruments):
            return found
    raise UserError(f"has no stem {name}, nor any that add up to it (it has {', '.join(given) or 'none'})")


def combine(
    track_id: str, stems: Mapping[str, np.ndarray], wanted: Sequence[str], sample_rate: int
) -> list[np.ndarray]:
    """The wanted stems of a track, float32 [L, C] each and of one length.

    What is added up may exceed full scale: all stems of the track are then turned down alike, and still add up.

    Args:
      track_id: what warnings call it.
      stems: those that were read, at one rate and channel count.
      wanted: what is asked for.
      sample_rate: Hz.
    Raises:
      UserError: lengths that differ by more than TOLERANCE, or a stem that does not follow from these.
    """
    lengths = {name: len(wav_LC) for name, wav_LC in stems.items()}
    short, long = min(lengths, key=lengths.get), max(lengths, key=lengths.get)
    apart = (lengths[long] - lengths[short]) / sample_rate
    if apart > TOLERANCE:
        seconds = [f"{lengths[name] / sample_rate:.2f} s of {name}" for name in (short, long)]
        raise UserError(
            f"has {' and '.join(seconds)}, more than {TOLERANCE:g} s apart: stems begin together and end together"
        )
    if apart:
        warn(f"{track_id}: its stems differ in length by {apart:.3f} s: all end with the shortest, {short}")
    parts = {name: _parts(name, tuple(stems)) for name in wanted}
    made = {name: reduce(np.add, (stems[part][: lengths[short]] for part in parts[name])) for name in wanted}
    peak = max((float(abs(made[name]).max(initial=0.0)) for name in wanted if len(parts[name]) > 1), default=0.0)
    if peak > 1.0:
        warn(f"{track_id}: its stems add up to {peak:.2f} of full scale: all are turned down by that")
        made = {name: wav_LC / np.float32(peak) for name, wav_LC in made.items()}
    return [made[name] for name in wanted]
