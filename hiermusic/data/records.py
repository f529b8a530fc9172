"""Record directories: audio segments and tokens in ArrayRecord shards, tracks and settings in JSON beside them.

A directory of either kind holds `<stream>-00000-of-000NN.arrayrecord` shards, `tracks.jsonl` (one object a track),
`info.json` (settings and counts, written last: where it stands the directory is complete) and `parts/` (the plan and
one file a finished shard: what an interrupted run continues from).
"""

import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from jaxtyping import Float32, Int16

from hiermusic.audio import files
from hiermusic.console import bar
from hiermusic.data import splits
from hiermusic.data.ahead import ahead
from hiermusic.data.codes import Codes, as_groups, decode_tokens, encode_tokens, pieces
from hiermusic.data.shards import REMEDY, Shards, default_shards, shard_paths, shard_writers
from hiermusic.data.sources import Track
from hiermusic.errors import UserError, disk_errors, reading, write_atomically
from hiermusic.parallel.hosts import wait_for_all, workers
from hiermusic.tokens.hierarchy import Hierarchy

if TYPE_CHECKING:
    from array_record.python.array_record_module import ArrayRecordWriter

# One record a chunk, else a random read decodes its neighbours too. PCM gains nothing from zstd, 10-bit codes a third.
AUDIO_OPTIONS = "group_size:1,uncompressed"
TOKEN_OPTIONS = "group_size:1,zstd:3"
_BLOCK = 1 << 20  # frames that are rounded at a time

_LEFTOVER = re.compile(r"\.[0-9a-f]{8}\.tmp$")  # as `errors.replacing` and `shards.shard_writers` name what they write
T = TypeVar("T")

_ENTRY = {"id": str, "split": str | None, "seconds": int | float, "meta": dict}  # what a track's entry says
_AUDIO_ENTRY = {**_ENTRY, "samples": int, "sha256": str}


@dataclass(frozen=True)
class Summary:
    """What a record directory holds, how audio was divided (`splits.divide`), and which inputs were skipped and why."""

    path: Path
    tracks: int
    seconds: float
    splits: Mapping[str, int]
    skipped: tuple[tuple[str, str], ...]
    division: Mapping | None = None

    def __str__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in self.splits.items())
        lines = [f"{self.path}: {self.tracks} tracks ({counts}), {self.seconds / 60:.1f} minutes"]
        lines += splits.describe(self.division) if self.division else []
        if self.skipped:
            lines.append(f"skipped {len(self.skipped)}:")
        return "\n".join(lines + [f"  {name}: {reason}" for name, reason in self.skipped])


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def read_info(path: str | os.PathLike, kind: str) -> dict:
    """The settings and counts of a complete record directory; UserError where there is none of that kind."""
    place = Path(path) / "info.json"
    if not place.is_file():
        raise UserError(f"{path} holds no finished {kind} records (no info.json): write them first")
    with reading(place, do=REMEDY):
        info = read_json(place)
        if info["kind"] != kind:
            raise UserError(f"{path} holds {str(info['kind'])[:20]} records where {kind} records are needed")
        for name in ("shards", *(("sample_rate", "channels") if kind == "audio" else ())):
            if type(info[name]) is not int or not 0 < info[name] < 10**6:
                raise ValueError(f"{name} is no count")
        if not isinstance(info["splits"], dict):
            raise ValueError("its splits are no object")
    return info


def to_pcm(wav_LC: Float32[np.ndarray, "L C"]) -> Int16[np.ndarray, "L C"]:
    """Waveform in [-1, 1] as 16-bit samples, rounded to the nearest: 16-bit input comes back bit for bit."""
    pcm_LC = np.empty(wav_LC.shape, "<i2")
    for start in range(0, len(wav_LC), _BLOCK):  # hours of sound are not to be in memory several times
        block_LC = wav_LC[start : start + _BLOCK] * np.float32(32768.0)
        pcm_LC[start : start + _BLOCK] = np.clip(np.rint(block_LC, out=block_LC), -32768, 32767, out=block_LC)
    return pcm_LC


def from_pcm(pcm_LC: Int16[np.ndarray, "L C"]) -> Float32[np.ndarray, "L C"]:
    """16-bit samples as a waveform in [-1, 1)."""
    return pcm_LC.astype(np.float32) / 32768.0


def write_audio(
    tracks: Iterable[Track],
    out: str | os.PathLike,
    sample_rate: int,
    channels: int,
    *,
    segment_seconds: float = 10.0,
    valid_fraction: float = 0.1,
    shards: int | None = None,
    fingerprint: str | None = None,
    worker: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> Summary | None:
    """Writes tracks as audio records: 16-bit segments at one rate and channel count, whole shards at a time.

    A run that was interrupted continues at its first missing shard; a complete directory is left as it is.

    Args:
      tracks: what to write; a track that cannot be read is skipped, counted and named.
      out: the directory.
      sample_rate: Hz of the records; channels: 1 or 2.
      segment_seconds: length of a record; a track's last one is shorter.
      valid_fraction: share that becomes `valid` where the tracks name none (see `splits.divide`).
      shards: files; None for one every 32 tracks.
      fingerprint: names what is written (None: the tracks' ids); a directory begun with another one is refused.
      worker: (which, of how many) processes that share the shards; the one that ends last writes info.json.
    Returns:
      The summary, or None while shards of other workers are missing.
    Raises:
      UserError: no track can be read, or the directory was begun with other settings.
    """
    out, tracks = Path(out), list(tracks)
    ids = json.dumps([[track.id, track.split] for track in tracks])
    plan = {
        "kind": "audio",
        "sample_rate": sample_rate,
        "channels": channels,
        "segment_seconds": segment_seconds,
        "valid_fraction": valid_fraction,
        "shards": shards or _begun_shards(out) or default_shards(len(tracks)),
        "inputs": len(tracks),
        "fingerprint": fingerprint or hashlib.sha256(ids.encode()).hexdigest(),
    }
    segment = round(segment_seconds * sample_rate)

    def load(index: int) -> tuple[dict, np.ndarray]:
        track = tracks[index]
        try:
            wav_LC, meta = _prepared(track, sample_rate, channels)
        except UserError as problem:
            return {"id": track.id, "skipped": str(problem)}, np.zeros((0, channels), "<i2")
        pcm_LC = to_pcm(wav_LC)
        digest = hashlib.sha256(pcm_LC).hexdigest()
        entry = {"id": track.id, "split": track.split, "samples": len(pcm_LC), "sha256": digest}
        return {**entry, "seconds": round(len(pcm_LC) / sample_rate, 6), "meta": meta}, pcm_LC

    def write(loaded: tuple[dict, np.ndarray], writers: "Sequence[ArrayRecordWriter]") -> dict:
        entry, pcm_LC = loaded
        for start in range(0, len(pcm_LC), segment):
            writers[0].write(pcm_LC[start : start + segment].tobytes())
        return entry

    label = progress and "reading audio"
    entries = _write_shards(out, plan, ("audio",), AUDIO_OPTIONS, partial(ahead, load), write, worker, label)
    if entries is not None:
        skipped = [(entry["id"], entry["skipped"]) for entry in entries if "skipped" in entry]
        kept = [entry for entry in entries if "skipped" not in entry]
        if not all(_AUDIO_ENTRY.keys() <= entry.keys() for entry in kept):
            raise UserError(f"{out} was begun by an older version of hiermusic: remove it and start again")
        if not kept:
            for part in (out / "parts").iterdir():  # so that the next run looks at the repaired files again
                part.unlink(missing_ok=True)  # the worker that ends with this one does the same
            reason = f"; the first: {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
            raise UserError(f"no readable audio among {len(tracks)} inputs{reason}")
        division = splits.divide(kept, valid_fraction)
        _finish(out, {**plan, "division": division}, kept, skipped)
    return read_summary(out)


def read_summary(out: str | os.PathLike) -> Summary | None:
    """The summary of a record directory; None while it is not complete."""
    out = Path(out)
    if not (out / "info.json").is_file():
        return None
    with reading(out / "info.json", do=REMEDY):
        info = read_json(out / "info.json")
        skipped = tuple((name, reason) for name, reason in info["skipped"])
        summary = Summary(out, info["tracks"], info["seconds"], info["splits"], skipped, info.get("division"))
        str(summary)  # one that cannot be told is none
        return summary


def _prepared(track: Track, sample_rate: int, channels: int) -> tuple[np.ndarray, dict]:
    """A track's checked waveform at the records' rate and channels, and its metadata."""
    wav_LC, rate, meta = track.load()
    if len(wav_LC) == 0:
        raise UserError("holds no samples")
    if not np.isfinite(wav_LC).all():
        raise UserError("holds samples that are not finite numbers")
    wav_LC = files.resample(files.to_channels(wav_LC, channels), rate, sample_rate)
    if len(wav_LC) == 0:
        raise UserError(f"is too short to hold a sample at {sample_rate} Hz")
    return wav_LC, meta


def differences(path: str | os.PathLike, other: str | os.PathLike) -> tuple[int, int]:
    """How many tracks of `path` another audio record directory does not have with the same sound, and the reverse."""
    one, two = (
        {(entry["id"], entry["sha256"]) for entry in _read_entries(Path(p) / "tracks.jsonl", {}, _AUDIO_ENTRY)}
        for p in (path, other)
    )
    return len(one - two), len(two - one)


class AudioSource:
    """Random access to the audio records of a directory; picklable.

    Attributes: `info`, `sample_rate`, `channels`, `segment_samples`, `tracks` (one dict a track: id, split, samples,
    sha256, seconds, meta; not those that were left out), `train` and `valid` (indices into `tracks`).
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.info = read_info(path, "audio")
        self.sample_rate: int = self.info["sample_rate"]
        self.channels: int = self.info["channels"]
        with reading(self.path / "info.json", do=REMEDY):
            self.segment_samples = round(self.info["segment_seconds"] * self.sample_rate)
            if self.segment_samples < 1:
                raise ValueError("a segment holds no sample")
        written = _read_entries(self.path / "tracks.jsonl", self.info, _AUDIO_ENTRY)
        counts = [-(-track["samples"] // self.segment_samples) for track in written]
        self._records = _open_stream(self.path, "audio", self.info["shards"], sum(counts))
        ends = np.cumsum(counts).tolist()
        kept = [index for index, track in enumerate(written) if track["split"]]
        self.tracks = [written[index] for index in kept]
        self._places = [range(ends[index] - counts[index], ends[index]) for index in kept]

    def __len__(self) -> int:
        return len(self.tracks)

    @property
    def train(self) -> list[int]:
        return self.indices("train")

    @property
    def valid(self) -> list[int]:
        return self.indices("valid")

    def indices(self, split: str) -> list[int]:
        """The tracks of a split."""
        return [index for index, track in enumerate(self.tracks) if track["split"] == split]

    def segments(self, split: str) -> np.ndarray:
        """The segments of a split as rows (record, first record of its track)."""
        rows = [(record, self._places[i].start) for i in self.indices(split) for record in self._places[i]]
        return np.asarray(rows, np.int64).reshape(-1, 2)

    def segment(self, index: int) -> Int16[np.ndarray, "L C"]:
        """One record, as the samples it stores."""
        with reading(self.path, do=REMEDY):
            return np.frombuffer(self._records[int(index)], "<i2").reshape(-1, self.channels)

    def track(self, index: int) -> Float32[np.ndarray, "L C"]:
        """A whole track as a waveform."""
        return from_pcm(np.concatenate([self.segment(record) for record in self._places[index]]))


def write_tokens(
    count: int,
    encode: Callable[[int], tuple[Codes, Mapping]],
    out: str | os.PathLike,
    hierarchy: Hierarchy,
    split_at: int,
    *,
    settings: Mapping,
    shards: int | None = None,
    worker: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> Summary | None:
    """Writes token records: levels [0, split_at) into `coarse` shards, the others into `fine` ones.

    Args:
      count: tracks.
      encode: index of a track -> its codes (int [T, K], or a tuple of such arrays where levels differ in rate, one
        a rate group) and its entry (id, split, seconds, meta).
      settings: JSON values kept in info.json (codec, fingerprint); a directory begun with others is refused.
      worker: (which, of how many) processes that share the shards; the one that ends last writes info.json.
    Returns:
      The summary, or None while shards of other workers are missing.
    """
    out = Path(out)
    if not 0 < split_at <= len(hierarchy):
        raise UserError(f"split_at is {split_at}: it must lie in 1..{len(hierarchy)}, the levels of the codec")
    shards = shards or _begun_shards(out) or default_shards(count)
    plan = {"kind": "tokens", "hierarchy": hierarchy.to_json(), "split_at": split_at, "shards": shards}
    plan |= {"inputs": count, **settings}
    stored = [pieces(hierarchy, *bounds) for bounds in _bounds(hierarchy, split_at).values()]

    def write(encoded: tuple[Codes, Mapping], writers: "Sequence[ArrayRecordWriter]") -> dict:
        codes, entry = encoded
        groups = as_groups(codes, hierarchy)
        for writer, wanted in zip(writers, stored, strict=True):
            writer.write(encode_tokens(groups, wanted))
        return {**entry, "frames": [len(part) for part in groups]}

    def read(indices: Iterable[int]) -> Generator[tuple[Codes, Mapping], None, None]:
        return (encode(index) for index in indices)

    streams = tuple(_bounds(hierarchy, split_at))
    label = progress and "tokenising"
    entries = _write_shards(out, plan, streams, TOKEN_OPTIONS, read, write, worker, label)
    if entries is not None:
        _finish(out, plan, entries, [])
    return read_summary(out)


def _bounds(hierarchy: Hierarchy, split_at: int) -> dict[str, tuple[int, int]]:
    """Streams of a token directory and the levels each holds; no `fine` where every level is coarse."""
    streams = {"coarse": (0, split_at), "fine": (split_at, len(hierarchy))}
    return {name: bounds for name, bounds in streams.items() if bounds[0] < bounds[1]}


class TokenSource:
    """Random access to the token records of a directory, opening only the streams the levels need; picklable.

    Args:
      path: the directory.
      levels: "coarse" (those below split_at), "all", or a slice of levels.
      split: "train", "valid" or None for every track.

    An element is `{"codes": uint16 [T, K] (a tuple, one a rate group, where the levels differ in rate), "meta": {id,
    seconds, lyrics, tags, ...}}`. `hierarchy` is that of the levels read, `tracks` the entries of the split.
    """

    def __init__(self, path: str | os.PathLike, levels: str | slice = "all", split: str | None = None):
        self.path = Path(path)
        self.info = read_info(path, "tokens")
        with reading(self.path / "info.json", do=REMEDY):
            whole, split_at = Hierarchy.from_json(self.info["hierarchy"]), self.info["split_at"]
            if type(split_at) is not int or not 0 < split_at <= len(whole):
                raise ValueError("its split_at is no number of levels")
            streams = _bounds(whole, split_at)
        wanted = {"coarse": slice(0, split_at), "all": slice(None)}[levels] if isinstance(levels, str) else levels
        start, stop, step = wanted.indices(len(whole))
        if start >= stop or step != 1:
            raise UserError(f"levels {levels} of {path}: it has the levels 0..{len(whole) - 1}")
        self.hierarchy = whole.select(start, stop)
        entries = _read_entries(self.path / "tracks.jsonl", self.info, _ENTRY)
        self._streams = []
        for name, (low, high) in streams.items():
            if start < high and low < stop:
                stored = pieces(whole, low, high)
                needed = {piece.group: piece for piece in pieces(whole, max(start, low), min(stop, high))}
                records = _open_stream(self.path, name, self.info["shards"], len(entries))
                self._streams.append((records, stored, needed))
        self._rows = [row for row, entry in enumerate(entries) if split in (None, entry["split"])]
        self.tracks = [entries[row] for row in self._rows]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict:
        groups: dict[int, list[np.ndarray]] = {}
        for records, stored, needed in self._streams:
            with reading(self.path, do=REMEDY):
                parts = decode_tokens(records[self._rows[index]], stored)
            for piece, part in zip(stored, parts, strict=True):
                if want := needed.get(piece.group):
                    columns = slice(want.start - piece.start, want.stop - piece.start)
                    groups.setdefault(piece.group, []).append(part[:, columns])
        codes = tuple(np.concatenate(parts, axis=1) for _, parts in sorted(groups.items()))
        entry = self.tracks[index]
        meta = {"id": entry["id"], "seconds": entry["seconds"], **entry["meta"]}
        return {"codes": codes[0] if len(codes) == 1 else codes, "meta": meta}


def remove_leftovers(*folders: Path) -> None:
    """Removes the temporary files that killed processes left; for when none of the run's processes writes yet."""
    if workers()[0] == 0:
        for folder in folders:
            for path in folder.glob("*.tmp"):
                if _LEFTOVER.search(path.name):
                    path.unlink(missing_ok=True)
    wait_for_all(f"leftovers of {folders[0]}")


def _read_entries(path: Path, info: Mapping, wanted: Mapping[str, type]) -> list[dict]:
    """The entries of tracks.jsonl, one a line; UserError when it is not what was written."""
    with reading(path, do=REMEDY):
        text = path.read_bytes()
        if info.get("tracks_sha256") not in (None, hashlib.sha256(text).hexdigest()):
            raise ValueError("its checksum differs from the one in info.json")
        entries = [json.loads(line) for line in io.BytesIO(text)]
        for number, entry in enumerate(entries, 1):
            for name, kind in wanted.items():
                if not isinstance(entry[name], kind):
                    raise ValueError(f"line {number}: {name} is of the wrong kind")
        return entries


def _lines(entries: Iterable[Mapping]) -> str:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def _open_stream(folder: Path, stream: str, shards: int, count: int) -> Shards:
    records = Shards(shard_paths(folder, stream, shards))
    if len(records) != count:
        raise UserError(
            f"{folder} is damaged ({len(records)} {stream} records where tracks.jsonl tells of {count}): {REMEDY}"
        )
    return records


def _write_shards(
    out: Path,
    plan: Mapping,
    streams: Sequence[str],
    options: str,
    read: Callable[[Iterable[int]], Generator[T, None, None]],
    write: "Callable[[T, Sequence[ArrayRecordWriter]], dict]",
    worker: tuple[int, int],
    label: str | bool,
) -> list[dict] | None:
    """Writes this worker's missing shards; every track's entry once all shards stand and info.json does not.

    `read` takes the indices of the tracks to be written and gives, in their order, what `write` writes.
    """
    parts, shards, count = out / "parts", plan["shards"], plan["inputs"]
    parts.mkdir(parents=True, exist_ok=True)
    if worker == workers():
        remove_leftovers(out, parts)
    _check_plan(out, parts / "plan.json", plan)
    if (out / "info.json").is_file():
        return None
    every = {shard: range(shard * count // shards, (shard + 1) * count // shards) for shard in range(shards)}
    blocks = {shard: every[shard] for shard in range(worker[0], shards, worker[1])}
    total, hidden = sum(map(len, blocks.values())), not label or worker[0] > 0
    paths = {stream: shard_paths(out, stream, shards) for stream in streams}

    def finished(shard: int, block: range) -> list[dict] | None:
        return _finished([parts / f"{shard:05d}.jsonl", *(paths[stream][shard] for stream in streams)], len(block))

    missing = {shard: block for shard, block in blocks.items() if finished(shard, block) is None}
    shown = bar("track", total, label=label or "", shown=not hidden)
    with shown, closing(read(chain.from_iterable(missing.values()))) as tracks:
        shown.update(total - sum(map(len, missing.values())))
        for shard, block in missing.items():
            places = [paths[stream][shard] for stream in streams]
            entries = []
            with disk_errors(places[0]), shard_writers(places, options) as writers:
                for _ in block:
                    entries.append(write(next(tracks), writers))
                    shown.update()
            write_atomically(parts / f"{shard:05d}.jsonl", _lines(entries))
    done = [finished(shard, block) for shard, block in every.items()]
    return None if None in done else list(chain.from_iterable(done))


def _finished(places: Sequence[Path], count: int) -> list[dict] | None:
    """The entries of a shard's tracks; None where it, or what was noted of it, is not whole (it is written anew)."""
    try:
        if any(place.stat().st_size == 0 for place in places):
            return None
        with places[0].open(encoding="utf-8") as lines:
            entries = [json.loads(line) for line in lines]
    except (OSError, ValueError, RecursionError):
        return None
    return entries if len(entries) == count and all(isinstance(entry, dict) for entry in entries) else None


def _begun_shards(out: Path) -> int | None:
    """The number of shards that a directory was begun with, if it was: how many is not for a later run to change."""
    try:
        return read_json(out / "parts" / "plan.json")["shards"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _check_plan(out: Path, place: Path, plan: Mapping) -> None:
    """Writes the plan, or refuses to go on in a directory that was begun with another."""
    if not place.is_file():
        write_atomically(place, json.dumps(plan, indent=1))
        return
    with reading(place, do=REMEDY):
        begun = dict(read_json(place))
    for key in plan:
        if begun.get(key) != plan[key]:
            raise UserError(f"{out} was begun with another {key}: remove it or choose another directory")


def _finish(out: Path, plan: Mapping, entries: Sequence[Mapping], skipped: Sequence[tuple[str, str]]) -> None:
    """Writes tracks.jsonl, then info.json, whose presence says that the directory is complete."""
    text = _lines(entries)
    write_atomically(out / "tracks.jsonl", text)
    used = [entry for entry in entries if entry["split"]]
    info = {
        **plan,
        "tracks": len(used),
        "seconds": round(sum(entry["seconds"] for entry in used), 3),
        "splits": dict(sorted(Counter(entry["split"] for entry in used).items())),
        "skipped": skipped,
        "tracks_sha256": hashlib.sha256(text.encode(errors="replace")).hexdigest(),
    }
    if plan["kind"] == "tokens":
        info["frames"] = [sum(counts) for counts in zip(*(entry["frames"] for entry in entries), strict=True)]
    write_atomically(out / "info.json", json.dumps(info, indent=1, ensure_ascii=False))
