"""Token records: the codes of tracks in ArrayRecord shards, coarse levels apart from fine ones."""

import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hiermusic.data.ahead import ahead
from hiermusic.data.codes import Codes, as_groups, decode_tokens, encode_tokens, pieces
from hiermusic.data.records import (
    ENTRY,
    Summary,
    begun_shards,
    finish,
    open_shards,
    read_entries,
    read_info,
    read_summary,
    write_shards,
)
from hiermusic.data.shards import REMEDY, default_shards
from hiermusic.errors import UserError, reading
from hiermusic.tokens.hierarchy import Hierarchy

if TYPE_CHECKING:
    from array_record.python.array_record_module import ArrayRecordWriter

OPTIONS = "group_size:1,zstd:3"  # one record a chunk, as for audio; 10-bit codes lose a third


def write_tokens(
    count: int,
    encode: Callable[[Iterable[Any]], Iterable[tuple[Codes, Mapping]]],
    out: str | os.PathLike,
    hierarchy: Hierarchy,
    split_at: int,
    *,
    settings: Mapping,
    load: Callable[[int], Any] = int,
    skipped: Sequence[tuple[str, str]] = (),
    shards: int | None = None,
    worker: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> Summary | None:
    """Writes token records: levels [0, split_at) into `coarse` shards, the others into `fine` ones.

    Args:
      count: tracks.
      encode: what `load` made of tracks -> of each in order its codes (int [T, K], or a tuple of such arrays where
        levels differ in rate, one a rate group) and its entry (id, split, seconds, meta).
      load: index of a track -> what `encode` takes, made ahead on threads; the index itself when left out.
      skipped: names of tracks that are not among them, and why, to be told.
      settings: JSON values kept in info.json (codec, fingerprint); a directory begun with others is refused.
      worker: (which, of how many) processes that share the shards; the one that ends last writes info.json.
    Returns:
      The summary, or None while shards of other workers are missing.
    """
    out = Path(out)
    if not 0 < split_at <= len(hierarchy):
        raise UserError(f"split_at is {split_at}: it must lie in 1..{len(hierarchy)}, the levels of the codec")
    shards = shards or begun_shards(out) or default_shards(count)
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
        with closing(ahead(load, indices)) as tracks:
            yield from encode(tracks)

    prefixes = tuple(_bounds(hierarchy, split_at))
    label = progress and "tokenising"
    entries = write_shards(out, plan, prefixes, OPTIONS, read, write, worker, label)
    if entries is not None:
        finish(out, plan, entries, skipped)
    return read_summary(out)


def _bounds(hierarchy: Hierarchy, split_at: int) -> dict[str, tuple[int, int]]:
    """Prefixes of a directory's shards and the levels each holds; no `fine` where every level is coarse."""
    levels = {"coarse": (0, split_at), "fine": (split_at, len(hierarchy))}
    return {prefix: bounds for prefix, bounds in levels.items() if bounds[0] < bounds[1]}


class TokenSource:
    """Random access to the token records of a directory, opening only the shards the levels need; picklable.

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
            whole = Hierarchy.from_json(self.info["hierarchy"])
            split_at = self.info["split_at"]
            if type(split_at) is not int or not 0 < split_at <= len(whole):
                raise ValueError("its split_at is no number of levels")
            bounds = _bounds(whole, split_at)
        wanted = {"coarse": slice(0, split_at), "all": slice(None)}[levels] if isinstance(levels, str) else levels
        start, stop, step = wanted.indices(len(whole))
        if start >= stop or step != 1:
            raise UserError(f"levels {levels} of {path}: it has the levels 0..{len(whole) - 1}")
        self.hierarchy = whole.select(start, stop)
        entries = read_entries(self.path / "tracks.jsonl", self.info, ENTRY)
        self._shards = []
        for prefix, (low, high) in bounds.items():
            if start < high and low < stop:
                stored = pieces(whole, low, high)
                needed = {piece.group: piece for piece in pieces(whole, max(start, low), min(stop, high))}
                records = open_shards(self.path, prefix, self.info["shards"], len(entries))
                self._shards.append((records, stored, needed))
        self._places = [place for place, entry in enumerate(entries) if split in (None, entry["split"])]
        self.tracks = [entries[place] for place in self._places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> dict:
        groups: dict[int, list[np.ndarray]] = {}
        for records, stored, needed in self._shards:
            with reading(self.path, do=REMEDY):
                parts = decode_tokens(records[self._places[index]], stored)
            for piece, part in zip(stored, parts, strict=True):
                if want := needed.get(piece.group):
                    columns = slice(want.start - piece.start, want.stop - piece.start)
                    groups.setdefault(piece.group, []).append(part[:, columns])
        codes = tuple(np.concatenate(parts, axis=1) for _, parts in sorted(groups.items()))
        entry = self.tracks[index]
        meta = {"id": entry["id"], "seconds": entry["seconds"], **entry["meta"]}
        return {"codes": codes[0] if len(codes) == 1 else codes, "meta": meta}
