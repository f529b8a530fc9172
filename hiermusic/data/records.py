"""Record directories: shards, tracks and settings in JSON beside them, written so that a killed run goes on.

A directory holds `<prefix>-00000-of-000NN.arrayrecord` shards (of `audio_records` or `token_records`), `tracks.jsonl`
(one object a track), `info.json` (settings and counts, written last: where it stands the directory is complete) and
`parts/` (the plan and one file a finished shard: what an interrupted run continues from).
"""

import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hiermusic.console import bar
from hiermusic.data import splits
from hiermusic.data.shards import REMEDY, Shards, shard_paths, shard_writers
from hiermusic.errors import UserError, disk_errors, reading, write_atomically
from hiermusic.parallel.hosts import wait_for_all, workers

if TYPE_CHECKING:
    from array_record.python.array_record_module import ArrayRecordWriter

_LEFTOVER = re.compile(r"\.[0-9a-f]{8}\.tmp$")  # as `errors.replacing` and `shards.shard_writers` name what they write
_MADE = "made.json"  # in parts/: how many folders, `out` and those above it, were made for what is not complete yet
T = TypeVar("T")

ENTRY = {"id": str, "split": str | None, "seconds": int | float, "meta": dict}  # what a track's entry says
_NAMED = 3  # of inputs that were skipped for one reason; info.json names all


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
        why = {}
        for name, reason in self.skipped:
            why.setdefault(reason, []).append(name)
        for reason, names in why.items():
            if len(names) > _NAMED:
                lines.append(f"  {len(names)} of one kind, {', '.join(names[:_NAMED])} among them: {reason}")
            else:
                lines += [f"  {name}: {reason}" for name in names]
        return "\n".join(lines)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def read_info(path: str | os.PathLike, kind: str) -> dict:
    """The settings and counts of a complete record directory; UserError where there is none of that kind."""
    place = Path(path) / "info.json"
    if not place.is_file():
        if found := _below(Path(path), kind):
            raise UserError(f"{path} holds {kind} records of {', '.join(found)}: name one, such as {path}/{found[0]}")
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


def _below(path: Path, kind: str) -> list[str]:
    """The finished records of a kind in the folders below one, by their paths from there."""
    found = []
    for place in chain(path.glob("*/info.json"), path.glob("*/*/info.json")):
        with suppress(OSError, ValueError, LookupError, TypeError):
            if read_json(place)["kind"] == kind:
                found.append(place.parent.relative_to(path).as_posix())
    return sorted(found)


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


def remove_leftovers(*folders: Path) -> None:
    """Removes the temporary files that killed processes left; for when none of the run's processes writes yet."""
    if workers()[0] == 0:
        for folder in folders:
            for path in folder.glob("*.tmp"):
                if _LEFTOVER.search(path.name):
                    path.unlink(missing_ok=True)
    wait_for_all(f"leftovers of {folders[0]}")


def read_entries(path: Path, info: Mapping, wanted: Mapping[str, type]) -> list[dict]:
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


def open_shards(folder: Path, prefix: str, shards: int, count: int) -> Shards:
    records = Shards(shard_paths(folder, prefix, shards))
    if len(records) != count:
        raise UserError(
            f"{folder} is damaged ({len(records)} {prefix} records where tracks.jsonl tells of {count}): {REMEDY}"
        )
    return records


def write_shards(
    out: Path,
    plan: Mapping,
    prefixes: Sequence[str],
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
    made = sum(not place.exists() for place in (out, *out.parents))
    parts.mkdir(parents=True, exist_ok=True)
    if made:
        write_atomically(parts / _MADE, json.dumps(made))
    if worker == workers():
        remove_leftovers(out, parts)
    _check_plan(out, parts / "plan.json", plan)
    if (out / "info.json").is_file():
        return None
    every = {shard: range(shard * count // shards, (shard + 1) * count // shards) for shard in range(shards)}
    blocks = {shard: every[shard] for shard in range(worker[0], shards, worker[1])}
    total = sum(map(len, blocks.values()))
    hidden = not label or worker[0] > 0
    paths = {prefix: shard_paths(out, prefix, shards) for prefix in prefixes}

    def finished(shard: int, block: range) -> list[dict] | None:
        return _finished([_note(parts, shard), *(paths[prefix][shard] for prefix in prefixes)], len(block))

    missing = {shard: block for shard, block in blocks.items() if finished(shard, block) is None}
    shown = bar("track", total, label=label or "", shown=not hidden)
    with shown, closing(read(chain.from_iterable(missing.values()))) as tracks:
        shown.update(total - sum(map(len, missing.values())))
        for shard, block in missing.items():
            places = [paths[prefix][shard] for prefix in prefixes]
            entries = []
            with disk_errors(places[0]), shard_writers(places, options) as writers:
                for _ in block:
                    entries.append(write(next(tracks), writers))
                    shown.update()
            write_atomically(_note(parts, shard), _lines(entries))
    done = [finished(shard, block) for shard, block in every.items()]
    return None if None in done else list(chain.from_iterable(done))


def _note(parts: Path, shard: int) -> Path:
    """Where the entries of a finished shard's tracks stand."""
    return parts / f"{shard:05d}.jsonl"


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


def begun_shards(out: Path) -> int | None:
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
    for key in (*plan, *begun):  # what only one of them says is another setting too
        if begun.get(key) != plan.get(key):
            raise UserError(f"{out} was begun with another {key}: remove it or choose another directory")


def discard(out: Path, prefixes: Sequence[str], shards: int) -> None:
    """Takes away what `write_shards` wrote, and of the folders that were made for it those that are empty then."""
    parts = out / "parts"
    notes = [parts / "plan.json", parts / _MADE, *(_note(parts, shard) for shard in range(shards))]
    made = 0
    with suppress(OSError, ValueError, TypeError):  # none was made, or another worker takes them away
        made = int(read_json(parts / _MADE))
    for place in (*notes, *(path for prefix in prefixes for path in shard_paths(out, prefix, shards))):
        place.unlink(missing_ok=True)  # the worker that ends with this one does the same
    for folder in (parts, *(out, *out.parents)[:made]):
        with suppress(OSError):  # not empty, or gone
            folder.rmdir()


def finish(out: Path, plan: Mapping, entries: Sequence[Mapping], skipped: Sequence[tuple[str, str]]) -> None:
    """Writes tracks.jsonl, then info.json, whose presence says that the directory is complete."""
    text = _lines(entries)
    (out / "parts" / _MADE).unlink(missing_ok=True)
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
