"""Where music comes from: a folder, a manifest, a TFDS data set or the built-in corpus, all as a list of tracks."""

import csv
import gzip
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from hiermusic.audio import files
from hiermusic.errors import UserError

# The last ones libsndfile may not decode: they are listed so that they are named as skipped, not passed over.
SUFFIXES = {*files.EXTENSIONS, ".aifc", ".oga", ".opus", ".m4a", ".aac", ".wma"}
TEXT_FIELDS = ("lyrics", "tags", "description", "genre", "language")
SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("valid", "validation", "val", "dev"), "valid")

Meta = dict[str, Any]


@dataclass(frozen=True)
class Track:
    """One piece of music that has not been read yet.

    Args:
      id: unique and stable, the path inside the folder where there is one.
      load: reads it: float32 [L, C] in [-1, 1], its sample rate in Hz and its metadata (lyrics, tags, description,
        genre, language: str; instrumental: bool; lines: [[start, end, text], ...] in seconds; only what is known).
        UserError, in a few words and without the name, where it cannot be read.
      split: "train", "valid" or "test" where the source says so.
    """

    id: str
    load: Callable[[], tuple[np.ndarray, int, Meta]]
    split: str | None = None


@dataclass(frozen=True)
class Source:
    """Tracks, and a fingerprint that changes when they do."""

    name: str
    tracks: Sequence[Track]
    fingerprint: str


def open_source(path: str, kind: str = "auto") -> Source:
    """The tracks that a path names.

    Args:
      path: a folder; a manifest (.csv, .jsonl, .jsonl.gz); "tfds:NAME?split=train&audio=audio&sample_rate=16000" (NAME
        as TFDS knows it, or the folder of a prepared version; all after ? optional); "builtin:N?seconds=8-16&seed=0".
      kind: "folder", "manifest", "tfds" or "builtin"; "auto" tells by the path.
    Raises:
      UserError: the path does not exist, or cannot be understood.
    """
    scheme, colon, rest = path.partition(":")
    if kind == "auto":
        if scheme in ("tfds", "builtin"):
            kind = scheme
        else:
            kind = "folder" if Path(path).is_dir() else "manifest"
    if kind in ("tfds", "builtin"):
        name, _, query = (rest if colon and scheme == kind else path).partition("?")
        options = dict(parse_qsl(query))
        return _builtin(name, options, path) if kind == "builtin" else _tfds(name, options, path)
    if kind not in ("folder", "manifest"):
        raise UserError(f"data of kind {kind!r}: the kinds are auto, records, folder, manifest, tfds and builtin")
    if not Path(path).exists():
        raise UserError(f"{path} does not exist: give a folder, a manifest, tfds:NAME or builtin:N")
    return folder(path) if kind == "folder" else manifest(path)


def folder(path: str | os.PathLike) -> Source:
    """Every audio file below a folder, sorted by path, with its sidecars (song.txt, song.lrc, song.json)."""
    root = Path(path)
    found = [
        Path(place, name)
        for place, _, names in os.walk(root)
        for name in names
        if Path(name).suffix.lower() in SUFFIXES and not name.startswith(".")
    ]
    rows = [(file.relative_to(root).as_posix(), file, {}) for file in found]
    if not rows:
        raise UserError(f"{path} holds no audio files ({' '.join(sorted(SUFFIXES))})")
    return _file_source(root.resolve().name, sorted(rows, key=lambda row: row[0]))


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


def fields(row: Mapping[str, Any]) -> Meta:
    """The metadata among a row's values, under our names, with `split` where it names one."""
    row = {key: value for key, value in row.items() if value not in (None, "")}
    if "style" in row:
        row.setdefault("tags", row["style"])
    if "vocals" in row:
        row.setdefault("instrumental", not _truth(row["vocals"]))
    meta: Meta = {}
    for name in TEXT_FIELDS:
        if name in row:
            value = row[name]
            joined = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            meta[name] = joined.strip()
    if "instrumental" in row:
        meta["instrumental"] = _truth(row["instrumental"])
    if "split" in row:
        split = SPLITS.get(str(row["split"]).strip().lower())
        if split is None:
            raise UserError(f"split {row['split']!r} is none of {', '.join(SPLITS)}")
        meta["split"] = split
    return meta


def _truth(value: Any) -> bool:
    return str(value).strip().lower() not in ("no", "false", "0", "0.0", "none", "n")


def parse_lrc(text: str) -> list[list]:
    """Timed lyrics of an .lrc file: [[start, end, text], ...] in seconds, the last end None.

    A line with several stamps is sung several times; stamps inside a line are dropped, an empty line ends the one
    before it, and `[offset:+ms]` moves all of them earlier.
    """
    offset = re.search(r"^\s*\[offset:\s*([+-]?\d+)\s*\]", text, re.MULTILINE | re.IGNORECASE)
    shift = int(offset.group(1)) / 1000 if offset else 0.0
    timed = []
    for line in text.splitlines():
        stamps = re.match(r"\s*((?:\[\d+:\d+(?:[.:]\d+)?\]\s*)+)(.*)", line)
        if stamps:
            words = re.sub(r"<\d+:\d+(?:[.:]\d+)?>", "", stamps.group(2)).strip()
            for minutes, seconds in re.findall(r"\[(\d+):(\d+(?:[.:]\d+)?)\]", stamps.group(1)):
                start = 60 * int(minutes) + float(seconds.replace(":", ".")) - shift
                timed.append((round(max(start, 0.0), 3), words))
    timed.sort(key=lambda entry: entry[0])
    ends = [start for start, _ in timed[1:]] + [None]
    return [[start, end, " ".join(words.split())] for (start, words), end in zip(timed, ends, strict=True) if words]


def _manifest_rows(path: Path) -> Iterator[tuple[int, Mapping]]:
    opened = gzip.open if path.suffix == ".gz" else open
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[-1].lower()
    if kind not in ("csv", "jsonl"):
        raise UserError(f"{path} is no manifest: it must end in .csv, .jsonl or .jsonl.gz")
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as lines:
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
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise UserError(f"{path} line {number} is not a JSON object")
                    yield number, row
    except json.JSONDecodeError as problem:
        raise UserError(f"{path} line {number} is not JSON: {problem.msg}") from None
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as problem:
        raise UserError(f"{path} cannot be read as a manifest: {problem}") from None


def _file_source(name: str, rows: Iterable[tuple[str, Path, Meta]]) -> Source:
    """Tracks of files; the fingerprint covers path, size and time of each file and its sidecars, and the metadata."""
    digest, tracks = hashlib.sha256(), []
    for track_id, file, meta in rows:
        stamps = [_stamp(place) for place in (file, *(file.with_suffix(s) for s in (".txt", ".lrc", ".json")))]
        digest.update(json.dumps([track_id, stamps, meta]).encode())
        split = meta.get("split")
        if split is None and stamps[-1]:
            split = _sidecar_split(file)
        tracks.append(Track(track_id, _Loader(file, {k: v for k, v in meta.items() if k != "split"}), split))
    return Source(name, tracks, digest.hexdigest())


def _stamp(path: Path) -> list[int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


@dataclass(frozen=True)
class _Loader:
    file: Path
    meta: Meta

    def __call__(self) -> tuple[np.ndarray, int, Meta]:
        try:
            wav_LC, rate = files.read(self.file)
        except UserError as problem:
            raise UserError(str(problem).removeprefix(f"{self.file}: ")) from None
        return wav_LC, rate, _sidecars(self.file, len(wav_LC) / rate) | self.meta


def _sidecars(file: Path, seconds: float) -> Meta:
    """Metadata beside an audio file: song.json over song.lrc over song.txt."""
    meta: Meta = {}
    if (place := file.with_suffix(".txt")).is_file():
        meta["lyrics"] = _text(place).strip()
    if (place := file.with_suffix(".lrc")).is_file() and (lines := parse_lrc(_text(place))):
        lines[-1][1] = max(round(seconds, 3), lines[-1][0])
        meta |= {"lyrics": "\n".join(words for _, _, words in lines), "lines": lines}
    if file.with_suffix(".json").is_file():
        meta |= _json_sidecar(file)
    meta.pop("split", None)
    return meta


def _json_sidecar(file: Path) -> Meta:
    place = file.with_suffix(".json")
    try:
        row = json.loads(_text(place))
    except json.JSONDecodeError as problem:
        raise UserError(f"its sidecar {place.name} is not JSON: {problem.msg} in line {problem.lineno}") from None
    if not isinstance(row, dict):
        raise UserError(f"its sidecar {place.name} is not a JSON object")
    return fields(row)


def _sidecar_split(file: Path) -> str | None:
    try:
        return _json_sidecar(file).get("split")
    except UserError:  # told when the track is loaded, where it is skipped with this reason
        return None


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8-sig", errors="replace")


def _option(options: dict[str, str], name: str, default: Any, convert: Callable, path: str) -> Any:
    try:
        return convert(options.pop(name)) if name in options else default
    except ValueError:
        raise UserError(f"{path}: its {name} cannot be read") from None


def _no_more(options: Mapping, known: str, path: str) -> None:
    if options:
        raise UserError(f"{path}: unknown option {next(iter(options))!r} after ?; known are {known}")


def _builtin(name: str, options: dict[str, str], path: str) -> Source:
    count = _option({"count": name or "32"}, "count", 0, int, path)
    low, high = _option(options, "seconds", (8.0, 16.0), _range, path)
    seed = _option(options, "seed", 0, int, path)
    _no_more(options, "seconds and seed", path)
    if count < 1 or not 0 < low <= high:
        raise UserError(f"{path}: it needs at least one song and a positive length, as in builtin:40?seconds=8-16")
    from hiermusic.data import corpus

    lengths = np.random.default_rng(seed).uniform(low, high, count).round(2)

    def load(index: int) -> tuple[np.ndarray, int, Meta]:
        song = corpus.song(seed * 1_000_003 + index, float(lengths[index]))
        return np.asarray(song.mix, np.float32), corpus.SAMPLE_RATE, _song_meta(song)

    tracks = [Track(f"song-{seed}-{index:06d}", partial(load, index)) for index in range(count)]
    code = Path(corpus.__file__).read_bytes()  # another composer makes other songs of the same seed
    digest = hashlib.sha256(json.dumps([count, low, high, seed]).encode() + code).hexdigest()
    return Source(f"builtin-{count}", tracks, digest)


def _song_meta(song: Any) -> Meta:
    lines = [[float(line.start), float(line.end), line.text] for line in song.lyrics]
    return {"lyrics": "\n".join(text for _, _, text in lines), "lines": lines, "tags": song.tags}


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition("-")
    return float(low), float(high or low)


def _tfds(name: str, options: dict[str, str], path: str) -> Source:
    """A prepared TFDS data set of audio, read through `as_data_source`, which needs no TensorFlow."""
    import tensorflow_datasets as tfds

    split = _option(options, "split", None, str, path)
    key = _option(options, "audio", None, str, path)
    rate = _option(options, "sample_rate", None, int, path)
    _no_more(options, "split, audio and sample_rate", path)
    try:
        builder = tfds.builder_from_directory(name) if Path(name).is_dir() else tfds.builder(name)
    except Exception as problem:  # TFDS raises its own, KeyErrors and ImportErrors for what a person can mend
        raise UserError(f"{path} cannot be opened as a TFDS data set: {_one_line(problem)}") from None
    key = key or _audio_key(builder.info.features, path)
    told = getattr(builder.info.features[key], "sample_rate", None) or (builder.info.metadata or {}).get("sample_rate")
    rate = rate or told
    if not rate:
        raise UserError(f"{path} does not say its sample rate: add sample_rate=HZ after ?")
    chosen = {split: None} if split else {part: SPLITS[part] for part in builder.info.splits if part in SPLITS}
    if set(chosen.values()) == {"train"}:
        chosen = {"train": None}
    tracks, sizes = [], []
    for part, ours in chosen.items():
        try:
            rows = builder.as_data_source(split=part)
        except Exception as problem:
            raise UserError(f"{path}: split {part} cannot be read: {_one_line(problem)}") from None
        sizes.append([part, len(rows)])
        load = _TfdsLoader(rows, key, int(rate))
        tracks += [Track(f"{part}/{index:07d}", partial(load, index), ours) for index in range(len(rows))]
    identity = [builder.info.full_name, str(builder.data_dir), sizes, key, rate]
    return Source(builder.info.name, tracks, hashlib.sha256(json.dumps(identity).encode()).hexdigest())


def _audio_key(features: Mapping, path: str) -> str:
    import tensorflow_datasets as tfds

    tensors = [key for key, feature in features.items() if type(feature) in (tfds.features.Audio, tfds.features.Tensor)]
    if "audio" in tensors:
        return "audio"
    if len(tensors) != 1:
        raise UserError(f"{path}: which of {', '.join(features)} is the audio? Add audio=KEY after ?")
    return tensors[0]


@dataclass(frozen=True)
class _TfdsLoader:
    rows: Any
    key: str
    rate: int

    def __call__(self, index: int) -> tuple[np.ndarray, int, Meta]:
        row = self.rows[index]
        if self.key not in row:
            raise UserError(f"has no feature {self.key!r}, only {', '.join(row)}")
        sound = np.asarray(row[self.key])
        if sound.ndim not in (1, 2) or sound.dtype.kind not in "iuf":
            raise UserError(f"its {self.key!r} is {sound.dtype} {sound.shape}, not samples")
        wav_LC = sound.reshape(len(sound), -1).astype(np.float32)
        if sound.dtype.kind != "f":  # TFDS keeps 16-bit samples in integers of any width
            wide = sound.size and max(-int(sound.min()), int(sound.max())) > 32768
            wav_LC /= 2.0**31 if wide else 2.0**15
        text = {name: row[name].decode() if isinstance(row[name], bytes) else row[name] for name in row}
        return wav_LC, self.rate, fields({name: text[name] for name in (*TEXT_FIELDS, "instrumental") if name in text})


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split())[:200] or type(problem).__name__
