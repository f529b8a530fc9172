"""Where music comes from: a folder, a manifest, a TFDS data set or the built-in corpus, all as a list of tracks."""

import csv
import gzip
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import parse_qsl

import numpy as np

from hiermusic.audio import files
from hiermusic.console import warn
from hiermusic.data import sidecars, splits
from hiermusic.data.fingerprint import of_files
from hiermusic.data.sidecars import TEXT_FIELDS, Meta, fields, timed_lines
from hiermusic.data.tfds_features import refuse_code
from hiermusic.errors import UserError, brief, is_passing, patiently, reading

# The last ones libsndfile may not decode: they are listed so that they are named as skipped, not passed over.
SUFFIXES = {*files.EXTENSIONS, ".aifc", ".oga", ".opus", ".m4a", ".aac", ".wma"}
_LONGEST_LINE = 1 << 24  # letters of a manifest
_MOST_SONGS, _LONGEST_SONG = 10_000_000, 3600  # of the built-in corpus; seconds


@dataclass(frozen=True)
class Track:
    """One piece of music that has not been read yet.

    Args:
      id: unique and stable, the path inside the folder where there is one.
      load: reads it: float32 [L, C] in [-1, 1], its sample rate in Hz and its metadata (lyrics, tags, description,
        genre, language: str; instrumental: bool; lines: [[start, end, text], ...] in seconds; truth: dict, of built-in
        songs; only what is known).
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


def open_source(path: str, kind: str = "auto", memory: Path | None = None) -> Source:
    """The tracks that a path names.

    Args:
      path: a folder; a manifest (.csv, .jsonl, .jsonl.gz); "tfds:NAME?split=train&audio=audio&sample_rate=16000" (NAME
        as TFDS knows it, or the folder of a prepared version; all after ? optional); "builtin:N?seconds=8-16&seed=0".
      kind: "folder", "manifest", "tfds" or "builtin"; "auto" tells by the path.
      memory: a file in which to remember what files hold, so that those not written to since are not read again.
    Raises:
      UserError: the path does not exist, or cannot be understood.
    """
    scheme, colon, rest = path.partition(":")
    if kind == "auto":
        if scheme in ("tfds", "builtin"):
            kind = scheme
        else:
            kind = "folder" if os.path.isdir(path) else "manifest"
    if kind in ("tfds", "builtin"):
        name, _, query = (rest if colon and scheme == kind else path).partition("?")
        options = dict(parse_qsl(query))
        return _builtin(name, options, path) if kind == "builtin" else _tfds(name, options, path, memory)
    if kind not in ("folder", "manifest"):
        raise UserError(f"data of kind {kind!r}: the kinds are auto, records, folder, manifest, tfds and builtin")
    if not os.path.exists(path):  # and not a Path's `exists`, which stumbles over names that are too long
        raise UserError(f"{path} does not exist: give a folder, a manifest, tfds:NAME or builtin:N")
    return folder(path, memory) if kind == "folder" else manifest(path, memory)


def folder(path: str | os.PathLike, memory: Path | None = None) -> Source:
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
    return _file_source(root.resolve().name, sorted(rows, key=lambda row: row[0]), memory)


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


def manifest(path: str | os.PathLike, memory: Path | None = None) -> Source:
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
        if not (path.parent / name).name:
            raise UserError(f"{path} line {line}: {name} is no file: every row names one")
        if name in seen:
            raise UserError(f"{path} lists {name} twice, in lines {seen[name]} and {line}: keep one")
        seen[name] = line
        try:
            rows.append((name, path.parent / name, fields(row)))
        except UserError as problem:
            raise UserError(f"{path} line {line}: {problem}") from None
    if not rows:
        raise UserError(f"{path} lists no files")
    return _file_source(path.stem.removesuffix(".jsonl"), rows, memory)


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


def _file_source(name: str, rows: Sequence[tuple[str, Path, Meta]], memory: Path | None) -> Source:
    """Tracks of files; the fingerprint covers the path and content of each file and its sidecars, and the metadata."""
    digest, tracks = hashlib.sha256(), []
    places = [(file, *(file.with_suffix(suffix) for suffix in sidecars.SUFFIXES)) for _, file, _ in rows]
    found = iter(of_files(list(chain.from_iterable(places)), memory))
    for (track_id, file, meta), own in zip(rows, places, strict=True):
        held = list(islice(found, len(own)))
        digest.update(json.dumps([track_id, held, meta]).encode())
        split = meta.get("split")
        if split is None and held[-1]:
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
            raise UserError(str(problem).removeprefix(brief(f"{self.file}: ") + " ")) from None
        meta = sidecars.sidecars(self.file, len(wav_LC) / rate) | self.meta
        if odd := files.oddity(wav_LC):
            warn(f"{self.file}: {odd}")
        return wav_LC, rate, meta


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
    span = _option(options, "seconds", (8.0, 16.0), _range, path)
    seed = _option(options, "seed", 0, int, path)
    genres = _option(options, "styles", (), lambda text: tuple(text.split(",")), path)
    _no_more(options, "seconds, seed and styles", path)
    if not (1 <= count <= _MOST_SONGS and 0 <= seed < 2**63 and 1 <= span[0] <= span[1] <= _LONGEST_SONG):
        raise UserError(
            f"{path}: give songs, seconds and seed as in builtin:40?seconds=8-16&seed=0 (1 to {_LONGEST_SONG} seconds, "
            f"at most {_MOST_SONGS:,} songs)"
        )
    from hiermusic.data import composer, corpus

    composer.check_genres(genres)
    how = {"seed": seed, "seconds_range": span, "genres": genres}
    tracks = [Track(f"song-{seed}-{index:06d}", partial(_load_song, index, how)) for index in range(count)]
    digest = hashlib.sha256(json.dumps([count, how]).encode())
    for part in ("composer", "corpus", "lyrics", "synth", "voice"):  # other code makes other songs of the same seed
        digest.update(Path(corpus.__file__).with_name(f"{part}.py").read_bytes())
    return Source(f"builtin-{count}", tracks, digest.hexdigest())


def _load_song(index: int, how: dict) -> tuple[np.ndarray, int, Meta]:
    from hiermusic.data import corpus

    song = corpus.nth_song(index, **how)
    truth = corpus.truth(song)
    meta = {"lyrics": song.lyrics, "lines": timed_lines(truth["lines"])} if song.lyrics else {}
    rest = {name: value for name, value in truth.items() if name not in (*TEXT_FIELDS, "instrumental")}
    return song.mix, song.sample_rate, fields(truth) | meta | {"truth": rest}


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition("-")
    return float(low), float(high or low)


def _tfds(name: str, options: dict[str, str], path: str, memory: Path | None) -> Source:
    """A prepared TFDS data set of audio, read through `as_data_source`, which needs no TensorFlow."""
    split = _option(options, "split", None, str, path)
    key = _option(options, "audio", None, str, path)
    rate = _option(options, "sample_rate", None, int, path)
    _no_more(options, "split, audio and sample_rate", path)
    place = _tfds_directory(name, path)
    try:
        builder, rates = _tfds_open(place)
        kinds = {key: type(feature).__name__ for key, feature in builder.info.features.items()}
        parts = {split: builder.as_data_source(split=split)} if split else builder.as_data_source()
    except Exception as problem:  # TFDS raises what it likes for a split that is not there or files that are not whole
        raise UserError(f"{path} cannot be read: {' '.join(str(problem).split())[:200]}") from None
    key = key or _audio_key(kinds, rates, path)
    if key not in kinds:
        raise UserError(f"{path} has no feature {key!r}, only {', '.join(kinds)}")
    rate = rate or rates.get(key) or (builder.info.metadata or {}).get("sample_rate")
    if not rate or not files.RATES[0] <= int(rate) <= files.RATES[1]:
        raise UserError(f"{path} says no sample rate that recordings have: add sample_rate=HZ after ?")
    tracks = [
        Track(
            f"{part}/{index:07d}",
            partial(_TfdsLoader(rows, key, int(rate)), index),
            None if split else splits.named(part),  # a part that was asked for alone is the whole: it is divided
        )
        for part, rows in parts.items()
        for index in range(len(rows))
    ]
    sizes = {part: len(rows) for part, rows in parts.items()}
    told = [of_files(sorted(place.iterdir()), memory), sizes, key, rate]
    return Source(builder.info.name, tracks, hashlib.sha256(json.dumps(told).encode()).hexdigest())


def _tfds_directory(name: str, path: str) -> Path:
    """The folder of a prepared data set's newest version; `name` is that folder, one above it, or a TFDS name."""
    from tensorflow_datasets.core import constants

    root = Path(name) if os.path.isdir(name) else Path(os.path.expanduser(constants.DATA_DIR)) / name
    if os.path.isfile(root / "dataset_info.json"):
        return root
    found = [info.parent for depth in ("*", "*/*") for info in root.glob(f"{depth}/dataset_info.json")]
    configs = {place.parent for place in found}
    if len(configs) != 1:
        what = (
            f"has the configs {', '.join(sorted(c.name for c in configs))}: name one" if configs else "is not prepared"
        )
        raise UserError(f"{path}: {root} {what} (make it with `tfds build --file_format=array_record`)")
    return max(found, key=lambda place: [int(number) for number in re.findall(r"\d+", place.name)])


def _tfds_open(place: Path) -> tuple[Any, dict[str, int]]:
    """A read-only builder, and the sample rates its Audio features state.

    TFDS cannot construct an Audio feature without TensorFlow, though what it stores is a plain tensor: it is opened
    as one.
    """
    from google.protobuf import json_format
    from tensorflow_datasets.core import dataset_info, read_only_builder
    from tensorflow_datasets.core.proto import feature_pb2

    info = dataset_info.read_proto_from_builder_dir(place)
    features = json_format.Parse((place / "features.json").read_text(), feature_pb2.Feature())
    refuse_code(features)
    info.ClearField("module_name")  # of the code that made it, which is not wanted
    rates = {}
    for key, feature in features.features_dict.features.items():
        if feature.HasField("audio"):
            audio = feature_pb2.AudioFeature()
            audio.CopyFrom(feature.audio)
            rates[key] = audio.sample_rate
            if audio.lazy_decode:  # the bytes of an audio file
                feature.python_class_name = "tensorflow_datasets.core.features.text_feature.Text"
                feature.text.SetInParent()
            else:
                feature.python_class_name = "tensorflow_datasets.core.features.tensor_feature.Tensor"
                feature.tensor.CopyFrom(
                    feature_pb2.TensorFeature(
                        shape=audio.shape, dtype=audio.dtype, encoding=audio.encoding.lower() or "none"
                    )
                )
    info.features.CopyFrom(features)
    return read_only_builder.ReadOnlyBuilder(place, info_proto=info), rates


def _audio_key(kinds: Mapping[str, str], rates: Mapping[str, int], path: str) -> str:
    tensors = list(rates) or [key for key, kind in kinds.items() if kind == "Tensor"]
    if "audio" in tensors:
        return "audio"
    if len(tensors) != 1:
        raise UserError(f"{path}: which of {', '.join(kinds)} is the audio? Add audio=KEY after ?")
    return tensors[0]


@dataclass(frozen=True)
class _TfdsLoader:
    rows: Any
    key: str
    rate: int

    def __call__(self, index: int) -> tuple[np.ndarray, int, Meta]:
        row = self.rows[index]
        found = {name: row[name] for name in (*TEXT_FIELDS, "instrumental") if name in row}
        meta = fields({k: v.decode(errors="replace") if isinstance(v, bytes) else v for k, v in found.items()})
        if isinstance(row[self.key], bytes):
            wav_LC, rate = _decode(row[self.key])
            if not files.RATES[0] <= rate <= files.RATES[1]:
                raise UserError(f"its audio is said to have {rate} Hz")
            return wav_LC, rate, meta
        sound = np.asarray(row[self.key])
        if sound.ndim not in (1, 2) or sound.dtype.kind not in "iuf":
            raise UserError(f"its {self.key!r} is {sound.dtype} {sound.shape}, not samples")
        wav_LC = sound.astype(np.float32).reshape(len(sound), sound.shape[1] if sound.ndim == 2 else 1)
        if sound.dtype.kind != "f":  # TFDS keeps 16-bit samples in integers of any width
            wide = sound.size and max(-int(sound.min()), int(sound.max())) > 32768
            wav_LC /= 2.0**31 if wide else 2.0**15
        return wav_LC, self.rate, meta


def _decode(file: bytes) -> tuple[np.ndarray, int]:
    import soundfile

    try:
        return soundfile.read(io.BytesIO(file), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as problem:
        raise UserError(f"its audio cannot be decoded ({problem.error_string})") from None
