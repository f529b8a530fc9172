"""Where music comes from: files, MIDI files, a TFDS data set or the built-in corpus, all as a list of tracks."""

import hashlib
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl

from hiermusic.data.file_sources import folder, manifest
from hiermusic.data.midi_source import midi
from hiermusic.data.separate import check
from hiermusic.data.sidecars import TEXT_FIELDS, Meta, fields, timed_lines
from hiermusic.data.stems import ALONE, INSTRUMENTAL, MIX, VOCALS, Sound
from hiermusic.data.tfds_source import tfds
from hiermusic.data.tracks import Source, Track, no_more, option
from hiermusic.errors import UserError

_SCHEMES = ("tfds", "midi", "builtin")
_MOST_SONGS, _LONGEST_SONG = 10_000_000, 3600  # of the built-in corpus; seconds


def open_source(
    path: str,
    kind: str = "auto",
    stems: Sequence[str] = ALONE,
    memory: Path | None = None,
    separate: Path | None = None,
) -> Source:
    """The tracks that a path names.

    Args:
      path: a folder; a manifest (.csv, .jsonl, .jsonl.gz); "tfds:NAME?split=train&audio=audio&sample_rate=16000" (NAME
        as TFDS knows it, or the folder of a prepared version; all after ? optional); "midi:FOLDER?soundfont=FILE.sf2";
        "builtin:N?seconds=8-16&seed=0".
      kind: "folder", "manifest", "tfds", "midi" or "builtin"; "auto" tells by the path.
      stems: what is wanted of every track; nothing else of it is read.
      memory: a file in which to remember what files hold, so that those not written to since are not read again.
      separate: a folder for what a separator makes of mixes in files that come without stems; None separates nothing.
    Raises:
      UserError: the path does not exist, or cannot be understood.
    """
    scheme, colon, rest = path.partition(":")
    if kind == "auto":
        if scheme in _SCHEMES:
            kind = scheme
        else:
            kind = "folder" if os.path.isdir(path) else "manifest"
    if separate:
        if kind not in ("folder", "manifest"):
            raise UserError(f"--separate takes files apart, {path} is {kind}: give a folder or a manifest")
        check()
    if kind in _SCHEMES:
        name, _, query = (rest if colon and scheme == kind else path).partition("?")
        options = dict(parse_qsl(query))
        if kind == "builtin":
            return _builtin(name, options, path, stems)
        return (tfds if kind == "tfds" else midi)(name, options, path, stems, memory)
    if kind not in ("folder", "manifest"):
        raise UserError(f"data of kind {kind!r}: the kinds are auto, records, folder, manifest, tfds, midi and builtin")
    if not os.path.exists(path):  # and not a Path's `exists`, which stumbles over names that are too long
        raise UserError(f"{path} does not exist: give a folder, a manifest, tfds:NAME, midi:FOLDER or builtin:N")
    return (folder if kind == "folder" else manifest)(path, stems, memory, separate)


def _builtin(name: str, options: dict[str, str], path: str, stems: Sequence[str]) -> Source:
    count = option({"count": name or "32"}, "count", 0, int, path)
    span = option(options, "seconds", (8.0, 16.0), _range, path)
    seed = option(options, "seed", 0, int, path)
    genres = option(options, "styles", (), lambda text: tuple(text.split(",")), path)
    tempi = option(options, "tempi", (), lambda text: tuple(float(tempo) for tempo in text.split(",")), path)
    no_more(options, "seconds, seed, styles and tempi", path)
    if not (1 <= count <= _MOST_SONGS and 0 <= seed < 2**63 and 1 <= span[0] <= span[1] <= _LONGEST_SONG):
        raise UserError(
            f"{path}: give songs, seconds and seed as in builtin:40?seconds=8-16&seed=0 (1 to {_LONGEST_SONG} seconds, "
            f"at most {_MOST_SONGS:,} songs)"
        )
    from hiermusic.data import composer, corpus

    composer.styles(genres, tempi)
    if missing := [stem for stem in stems if stem not in (MIX, VOCALS, INSTRUMENTAL)]:
        raise UserError(f"{path} has no stem {missing[0]}: its songs have {MIX}, {VOCALS} and {INSTRUMENTAL}")
    how = {"seed": seed, "seconds_range": span, "genres": genres, "tempi": tempi}
    tracks = [Track(f"song-{seed}-{index:06d}", partial(_load_song, index, how, stems)) for index in range(count)]
    digest = hashlib.sha256(json.dumps([count, how]).encode())
    for part in ("composer", "corpus", "lyrics", "synth", "voice"):  # other code makes other songs of the same seed
        digest.update(Path(corpus.__file__).with_name(f"{part}.py").read_bytes())
    return Source(f"builtin-{count}", tracks, digest.hexdigest())


def _load_song(index: int, how: dict, stems: Sequence[str]) -> tuple[Sound, int, Meta]:
    from hiermusic.data import corpus

    song = corpus.nth_song(index, **how)
    truth = corpus.truth(song)
    meta = {"lyrics": song.lyrics, "lines": timed_lines(truth["lines"])} if song.lyrics else {}
    rest = {name: value for name, value in truth.items() if name not in (*TEXT_FIELDS, "instrumental")}
    sound = song.mix if tuple(stems) == ALONE else {stem: getattr(song, stem) for stem in stems}
    return sound, song.sample_rate, fields(truth) | meta | {"truth": rest}


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition("-")
    return float(low), float(high or low)
