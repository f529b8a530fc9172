"""Shards of records: ArrayRecord files, written whole and read with few of them open at a time."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from hiermusic.errors import UserError, reason, replace

if TYPE_CHECKING:
    from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

TRACKS_PER_SHARD = 32
MAX_SHARDS = 1024
MAX_OPEN = 32  # of one source: a run reads from several, and many a system gives a process 1,024 files in all
REMEDY = "remove the folder and write the records again"


def shard_paths(folder: Path, prefix: str, shards: int) -> list[Path]:
    """The files whose names begin so, in their order."""
    return [folder / f"{prefix}-{shard:05d}-of-{shards:05d}.arrayrecord" for shard in range(shards)]


def default_shards(tracks: int) -> int:
    """How many files a series of shards has when nobody says."""
    return min(MAX_SHARDS, -(-tracks // TRACKS_PER_SHARD)) or 1


class Shards:
    """Random access to the records of several files as bytes, `MAX_OPEN` of them open at most; picklable.

    Safe between threads: what another thread still reads from is closed when it has done so.
    """

    def __init__(self, paths: Sequence[Path]):
        """Counts the records of every file; UserError where one is missing or damaged."""
        for path in paths:
            if not path.is_file():
                raise UserError(f"{path} is missing: the records are incomplete, {REMEDY}")
        self._paths = list(paths)
        self._ends = list(accumulate(_open(path).num_records() for path in paths))
        self._reader = lru_cache(MAX_OPEN)(_open)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> bytes:
        shard = bisect_right(self._ends, index)
        path = self._paths[shard]
        first = self._ends[shard - 1] if shard else 0
        try:
            (record,) = self._reader(path).read([index - first])
        except RuntimeError as error:  # its checksums differ, or the file can no longer be read
            raise _unreadable(path, error) from None
        return record

    def __getstate__(self) -> tuple[list[Path], list[int]]:
        return self._paths, self._ends

    def __setstate__(self, state: tuple[list[Path], list[int]]) -> None:
        self._paths, self._ends = state
        self._reader = lru_cache(MAX_OPEN)(_open)


def _open(path: Path) -> "ArrayRecordReader":
    from array_record.python.array_record_module import ArrayRecordReader

    reader = ArrayRecordReader(str(path), options="readahead_buffer_size:0", file_reader_buffer_size=32768)
    if not reader.ok():  # it would pass for an empty one; what is wrong it only says when asked for a record
        error = RuntimeError("it is cut short")
        try:
            reader.read([0])
        except RuntimeError as said:
            error = said
        raise _unreadable(path, error)
    return reader


def _unreadable(path: Path, error: Exception) -> UserError:
    with path.open("rb"):  # an OSError where the fault is the machine's and not the file's
        return UserError(f"{path} cannot be read ({reason(error)}): {REMEDY}")


@contextmanager
def shard_writers(places: Sequence[Path], options: str) -> "Iterator[list[ArrayRecordWriter]]":
    """Writers of shards that take their names together when all are whole, and are removed when one fails."""
    from array_record.python.array_record_module import ArrayRecordWriter

    # of a name of its own: a process that was given up for dead may still be writing the same
    temporaries = [f"{place}.{uuid4().hex[:8]}.tmp" for place in places]
    writers: list[ArrayRecordWriter] = []
    try:
        writers += [ArrayRecordWriter(temporary, options) for temporary in temporaries]
        yield writers
        while writers:
            writers.pop().close()
        for temporary, place in zip(temporaries, places, strict=True):
            replace(temporary, place)
    finally:
        for writer in writers:
            with suppress(Exception):  # the failure that brought us here is the one to tell
                writer.close()
        for temporary in temporaries:
            Path(temporary).unlink(missing_ok=True)
