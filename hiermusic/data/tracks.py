"""A track that has not been read yet, and a source: where tracks come from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hiermusic.data.sidecars import Meta
from hiermusic.data.stems import Sound
from hiermusic.errors import UserError


@dataclass(frozen=True)
class Track:
    """One piece of music that has not been read yet.

    Args:
      id: unique and stable, the path inside the folder where there is one.
      load: reads it: its mix, float32 [L, C] in [-1, 1], or by name the stems from which those wanted of the source
        follow (`stems.combine`); its sample rate in Hz; and its metadata (lyrics, tags, description, genre, language,
        artist: str; instrumental: bool; lines: [[start, end, text], ...] in seconds; truth: dict, of built-in songs;
        only what is known).
        UserError, in a few words and without the name, where it cannot be read.
      split: "train", "valid" or "test" where the source says so.
    """

    id: str
    load: Callable[[], tuple[Sound, int, Meta]]
    split: str | None = None


@dataclass(frozen=True)
class Source:
    """Tracks, and a fingerprint that changes when they do."""

    name: str
    tracks: Sequence[Track]
    fingerprint: str


def option(options: dict[str, str], name: str, default: Any, convert: Callable, path: str) -> Any:
    try:
        return convert(options.pop(name)) if name in options else default
    except ValueError:
        raise UserError(f"{path}: its {name} cannot be read") from None


def no_more(options: Mapping, known: str, path: str) -> None:
    if options:
        raise UserError(f"{path}: unknown option {next(iter(options))!r} after ?; known are {known}")
