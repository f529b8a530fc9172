"""Music in files: every one below a folder, or those that a manifest lists."""

import csv
import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

import numpy as np

from hiermusic.audio import files
from hiermusic.console import warn
from hiermusic.data import sidecars, splits
from hiermusic.data.fingerprint import of_file
from hiermusic.data.sidecars import Meta, fields
from hiermusic.data.tracks import Source, Track
from hiermusic.errors import UserError, is_passing, patiently, reading

# The last ones libsndfile may not decode: they are listed so that they are named as skipped, not passed over.
SUFFIXES = {*files.EXTENSIONS, ".aifc", ".oga", ".opus", ".m4a", ".aac", ".wma"}
_LONGEST_LINE = 1 << 24  # letters of a manifest


def folder(path: str | os.PathLike) -> Source:
    """Every audio file below a folder, sorted by path, with its sidecars (song.txt, song.lrc, song.json).

    What lies in a subfolder named after a split (train/, Validation/, test/: `splits.NAMES`) is of that split, whatever
    its sidecar says. Links to folders are followed. Stems are no tracks of their own: stems/song.vocals.wav is passed
    over where song.wav lies beside stems/.
    """
    root = Path(path)
    found = [file for file in _below(root) if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    mixes = {file.with_suffix("") for file in found}
    found = [file for file in found if file.parent.name != "stems" or _mix(file) not in mixes]
    rows = []
    for file in found:
        *above, _ = file.relative_to(root).parts
        split = splits.named(above[0]) if above else None
        name = os.fsencode(file.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")
        rows.append((name, file, {"split": split} if split else {}))
    if not rows:
        raise UserError(f"{path} holds no audio files ({' '.join(sorted(SUFFIXES))})")
    return _file_source(root.resolve().name, sorted(rows, key=lambda row: row[0]))


def _below(root: Path) -> Iterator[Path]:
    """Every file below a folder, through links to folders too; what cannot be entered is told and passed over."""
    waiting: list[tuple[str, tuple]] = [(str(root), ())]
    while waiting:
        place, above = waiting.pop()
        try:
            status = os.stat(place)
            own = (status.st_dev, status.st_ino)
            if own in above:
                warn(f"{place}: a link to a folder that it lies in: passed over")
                continue
            for entry in os.scandir(place):
                if os.path.isdir(entry.path):
                    waiting.append((entry.path, (*above, own)))
                else:
                    yield Path(entry.path)
        except OSError as error:
            if is_passing(error):
                raise
            warn(f"{place}: cannot be read ({error.strerror}): this folder is passed over")


def _mix(stem: Path) -> Path:
    """The mix, without its suffix, that stems/song.vocals.wav belongs to."""
    return stem.parent.parent / stem.stem.rpartition(".")[0]


def manifest(path: str | os.PathLike) -> Source:
    """The files a CSV or JSONL(.gz) manifest lists, relative paths taken from the manifest's own folder.

    Columns: path, and where known lyrics, tags (or style), description, genre, language, split, instrumental (or
    vocals, whose "no" means instrumental); others are left out. Sidecars fill in what the manifest leaves open.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a .csv or .jsonl manifest")
    seen: dict[str, int] = {}
    rows = []
    for line, raw in _manifest_rows(path):
        row = {str(key).strip().lower(): value for key, value in raw.items()}
        name = str(row.get("path") or "").strip()
        if not name:
            raise UserError(f"{path} line {line} has no path: every row needs one")
        if name in seen:
            raise UserError(f"{path} lists {name} twice, in lines {seen[name]} and {line}: keep one")
        seen[name] = line
        try:
            rows.append((name, path.parent / name, fields(row)))
        except UserError as problem:
            raise UserError(f"{path} line {line}: {problem}") from None
    if not rows:
        raise UserError(f"{path} lists no files")
    return _file_source(path.stem.removesuffix(".jsonl"), rows)


def _manifest_rows(path: Path) -> Iterator[tuple[int, Mapping]]:
    opened = gzip.open if path.suffix == ".gz" else open
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1].lower()
    if kind not in ("csv", "jsonl"):
        raise UserError(f"{path} is no manifest: it must end in .csv, .jsonl or .jsonl.gz")
    with reading(path, "a manifest"):
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            lines = _bounded(path, file)
            if kind == "csv":
                reader = csv.DictReader(lines)
                if "path" not in [str(name).strip().lower() for name in reader.fieldnames or ()]:
                    raise UserError(f"{path} has no column named path: its first line must name the columns")
                for row in reader:
                    row.pop(None, None)  # cells beyond the named columns
                    yield reader.line_num, row
                return
            for number, line in enumerate(lines, 1):
                if line.strip():
                    with reading(f"{path} line {number}", "JSON"):
                        row = json.loads(line)
                    if not isinstance(row, dict):
                        raise UserError(f"{path} line {number} is not a JSON object")
                    yield number, row


def _bounded(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a text; UserError for one that would fill the memory."""
    for number, line in enumerate(iter(partial(file.readline, _LONGEST_LINE), ""), 1):
        if len(line) == _LONGEST_LINE:
            raise UserError(f"{path} line {number} has {_LONGEST_LINE:,} letters or more, too many for one track")
        yield line


def _file_source(name: str, rows: Iterable[tuple[str, Path, Meta]]) -> Source:
    """Tracks of files; the fingerprint covers the path and content of each file and its sidecars, and the metadata."""
    digest, tracks = hashlib.sha256(), []
    for track_id, file, meta in rows:
        stamps = [of_file(place) for place in (file, *(file.with_suffix(suffix) for suffix in sidecars.SUFFIXES))]
        digest.update(json.dumps([track_id, stamps, meta]).encode())
        split = meta.get("split")
        if split is None and stamps[-1]:
            split = patiently(partial(sidecars.sidecar_split, file))
        tracks.append(Track(track_id, _Loader(file, {k: v for k, v in meta.items() if k != "split"}), split))
    return Source(name, tracks, digest.hexdigest())


@dataclass(frozen=True)
class _Loader:
    file: Path
    meta: Meta

    def __call__(self) -> tuple[np.ndarray, int, Meta]:
        return patiently(self._read)

    def _read(self) -> tuple[np.ndarray, int, Meta]:
        try:
            wav_LC, rate = files.read(self.file)
        except UserError as problem:
            raise UserError(str(problem).removeprefix(f"{self.file}: ")) from None
        meta = sidecars.sidecars(self.file, len(wav_LC) / rate) | self.meta
        if odd := files.oddity(wav_LC):
            warn(f"{self.file}: {odd}")
        return wav_LC, rate, meta
