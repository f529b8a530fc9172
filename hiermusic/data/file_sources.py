"""Music in files: every one below a folder, or those that a manifest lists."""

import csv
import gzip
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Protocol, TextIO

import numpy as np

from hiermusic.audio import files
from hiermusic.console import warn
from hiermusic.data import sidecars, splits
from hiermusic.data.fingerprint import of_files
from hiermusic.data.separate import separated
from hiermusic.data.sidecars import Meta, fields
from hiermusic.data.stems import ALONE, MIX, NAMES, PACKED, UNPACK, Sound, is_group, needed, one_rate
from hiermusic.data.stems import place as stem_place
from hiermusic.data.tracks import Source, Track
from hiermusic.errors import UserError, brief, is_passing, patiently, reading

# The last ones libsndfile may not decode: they are listed so that they are named as skipped, not passed over.
SUFFIXES = {*files.EXTENSIONS, ".aifc", ".oga", ".opus", ".m4a", ".aac", ".wma"}
_LONGEST_LINE = 1 << 24  # letters of a manifest


@dataclass(frozen=True)
class Listed:
    """A track of files: its id, the files of its stems, beside which of them its sidecars lie, and what is known."""

    id: str
    stems: Mapping[str, Sequence[Path]]
    beside: Path
    meta: Meta


def folder(
    path: str | os.PathLike, stems: Sequence[str] = ALONE, memory: Path | None = None, separate: Path | None = None
) -> Source:
    """Every audio file below a folder, sorted by path, with its sidecars (song.txt, song.lrc, song.json).

    What lies in a subfolder named after a split (train/, Validation/, test/: `splits.NAMES`) is of that split, whatever
    its sidecar says. Links to folders are followed. Stems are no tracks of their own but parts of one: song_vocals.wav
    beside song.wav, beside song_instrumental.wav, or in stems/ beside song.wav; vocals.wav and what lies beside it in
    the folder song/ (`stems.place`, `stems.is_group`).

    Mixes alone are separated where `separate` names a folder for what comes of it (`separate.separated`).
    """
    root = Path(path)
    found = sorted(file for file in below(root) if _is_audio(file) and not file.name.startswith("."))
    if separate:  # which may lie in the folder itself
        found = [file for file in found if Path(os.path.abspath(separate)) not in Path(os.path.abspath(file)).parents]
    groups: dict[Path, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    placed = {file: place for file in found if (place := stem_place(file, root))}
    for file, (song, stem) in placed.items():
        groups[song][stem].append(file)
    mixes = {file.with_suffix("") for file in found}
    for file in found:
        if file not in placed and (song := file.with_suffix("")) in groups:
            groups[song][MIX].append(file)
    groups = {song: group for song, group in groups.items() if is_group(group)}
    grouped = {file for group in groups.values() for files_of in group.values() for file in files_of}

    def is_part(file: Path) -> bool:
        packed = file.name.lower().endswith(PACKED) and file.with_name(file.name[: -len(PACKED)]) in groups
        return file in grouped or packed or (file.parent.name == "stems" and _mix(file) in mixes)

    alone = [file for file in found if not is_part(file)]
    listed = [Listed(track_id(file, root), {MIX: [file]}, file, split_of(file, root)) for file in alone]
    for song, group in groups.items():
        beside = group[MIX][0] if MIX in group else Path(f"{song}.wav")
        listed.append(Listed(track_id(beside if MIX in group else song, root), group, beside, split_of(song, root)))
    if not listed:
        raise UserError(f"{path} holds no audio files ({' '.join(sorted(SUFFIXES))})")
    listed.sort(key=lambda one: one.id)
    listed = separated(listed, separate) if separate else listed
    return file_source(root.resolve().name, listed, [_loader(one, stems) for one in listed], memory)


def _is_audio(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES or file.name.lower().endswith(PACKED)


def track_id(file: Path, root: Path) -> str:
    """What a track of a folder is called: where its file lies in it."""
    inside = file.relative_to(root) if file != root else Path(root.resolve().name)
    return os.fsencode(inside.as_posix()).decode("utf-8", "backslashreplace")


def split_of(file: Path, root: Path) -> Meta:
    """The split that the subfolder of a file names, if it names one."""
    above = file.relative_to(root).parts[:-1]
    split = splits.named(above[0]) if above else None
    return {"split": split} if split else {}


def below(root: Path) -> Iterator[Path]:
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


def manifest(
    path: str | os.PathLike, stems: Sequence[str] = ALONE, memory: Path | None = None, separate: Path | None = None
) -> Source:
    """The files a CSV or JSONL(.gz) manifest lists, relative paths taken from the manifest's own folder.

    Columns: path, and where known lyrics, tags (or style), description, genre, language, artist, split, instrumental
    (or vocals, whose "no" means instrumental), and a path for each stem: vocals_path, instrumental_path, drums_path,
    ..., beside which path may be left empty; others are left out. Sidecars fill in what the manifest leaves open. Mixes
    alone are separated as those of a folder are.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file: give a .csv or .jsonl manifest")
    seen: dict[str, int] = {}
    listed = []
    for line, raw in _manifest_lines(path):
        row = {str(key).strip().lower(): value for key, value in raw.items()}
        columns = {MIX: "path"} | {stem: f"{stem}_path" for stem in NAMES[1:]}
        given = {stem: str(row.get(column) or "").strip() for stem, column in columns.items()}
        given = {stem: name for stem, name in given.items() if name}
        name = next(iter(given.values()), "")
        if not name:
            raise UserError(f"{path} line {line} has no path: every row needs one")
        if nameless := [part for part in given.values() if not (path.parent / part).name]:
            raise UserError(f"{path} line {line}: {nameless[0]} is no file: every row names one")
        if name in seen:
            raise UserError(f"{path} lists {name} twice, in lines {seen[name]} and {line}: keep one")
        seen[name] = line
        try:
            parts = {stem: [path.parent / part] for stem, part in given.items()}
            listed.append(Listed(name, parts, path.parent / name, fields(row)))
        except UserError as problem:
            raise UserError(f"{path} line {line}: {problem}") from None
    if not listed:
        raise UserError(f"{path} lists no files")
    listed = separated(listed, separate) if separate else listed
    return file_source(path.stem.removesuffix(".jsonl"), listed, [_loader(one, stems) for one in listed], memory)


def _manifest_lines(path: Path) -> Iterator[tuple[int, Mapping]]:
    opened = gzip.open if path.suffix == ".gz" else open
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1].lower()
    if kind not in ("csv", "jsonl"):
        raise UserError(f"{path} is no manifest: it must end in .csv, .jsonl or .jsonl.gz")
    with reading(path, "a manifest"):
        with opened(path, "rt", encoding="utf-8-sig", newline="") as file:
            lines = _bounded(path, file)
            if kind == "csv":
                reader = csv.DictReader(lines)
                columns = {str(name).strip().lower() for name in reader.fieldnames or ()}
                if columns.isdisjoint({"path", *(f"{stem}_path" for stem in NAMES[1:])}):
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


def file_source(
    name: str, listed: Sequence[Listed], loaders: "Sequence[Loader]", memory: Path | None, salt: bytes = b""
) -> Source:
    """Tracks of files; the fingerprint covers the id, content and sidecars of what is read, and the metadata.

    Args:
      name: of the source.
      listed: the tracks.
      loaders: what reads each of them.
      memory: see `fingerprint.of_files`.
      salt: what else decides how the files sound.
    """
    digest = hashlib.sha256(salt)
    tracks = []
    places = [
        [*chain.from_iterable(load.stems.values()), *map(one.beside.with_suffix, sidecars.SUFFIXES)]
        for one, load in zip(listed, loaders, strict=True)
    ]
    found = iter(of_files(list(chain.from_iterable(places)), memory))
    for one, load, own in zip(listed, loaders, places, strict=True):
        held = list(islice(found, len(own)))
        digest.update(json.dumps([one.id, held, one.meta]).encode())
        split = one.meta.get("split")
        if split is None and held[-1]:
            split = patiently(partial(sidecars.sidecar_split, one.beside))
        tracks.append(Track(one.id, load, split))
    return Source(name, tracks, digest.hexdigest())


class Loader(Protocol):
    """Reads a track from the files of its `stems`; see `Track.load`."""

    stems: Mapping[str, Sequence[Path]]

    def __call__(self) -> tuple[Sound, int, Meta]: ...


def _loader(one: Listed, stems: Sequence[str]) -> "_Loader":
    """What reads of a track the stems that are wanted, or, where they do not follow from its own, says so."""
    meta = {key: value for key, value in one.meta.items() if key != "split"}
    try:
        return _Loader({stem: one.stems[stem] for stem in needed(stems, one.stems)}, one.beside, meta)
    except UserError as problem:
        return _Loader({}, one.beside, meta, str(problem))


@dataclass(frozen=True)
class _Loader:
    stems: Mapping[str, Sequence[Path]]
    beside: Path
    meta: Meta
    problem: str = ""

    def __call__(self) -> tuple[Sound, int, Meta]:
        return patiently(self._read)

    def _read(self) -> tuple[Sound, int, Meta]:
        if self.problem:
            raise UserError(self.problem)
        read = {stem: self._sound(stem, paths) for stem, paths in self.stems.items()}
        wav_LC, rate = next(iter(read.values()))
        return *one_rate(read), sidecars.sidecars(self.beside, len(wav_LC) / rate) | self.meta

    def _sound(self, stem: str, paths: Sequence[Path]) -> tuple[np.ndarray, int]:
        if len(paths) > 1:
            raise UserError(f"has two files of its {stem}, {paths[0].name} and {paths[1].name}: keep one")
        (file,) = paths
        if file.name.lower().endswith(PACKED):
            raise UserError(f"packs several sounds in one file: {UNPACK}")
        try:
            wav_LC, rate = files.read(file)
        except UserError as problem:
            said = str(problem).removeprefix(brief(f"{file}: ") + " ")
            raise UserError(said if tuple(self.stems) == ALONE else f"{file.name}: {said}") from None
        if odd := files.oddity(wav_LC):
            warn(f"{file}: {odd}")
        return wav_LC, rate
