"""What tells the content of files from that of others."""

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from hiermusic.data.ahead import ahead
from hiermusic.errors import is_passing, patiently, write_atomically


def of_files(places: Sequence[Path], memory: Path | None = None) -> list[str | None]:
    """A digest of all that each file holds; None where there is no file, or none that can be read.

    When a file was written, which a copy or a `touch` changes, does not count.

    Args:
      places: the files.
      memory: a JSON file of what was found before: a file whose size and times are the same is not read again.
    """
    known = _recalled(memory)
    look = partial(_look, known)
    found = list(ahead(lambda index: patiently(partial(look, places[index])), range(len(places))))
    now = known | {str(place): told for place, told in zip(places, found, strict=True) if told}
    if memory and now != known:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memory, json.dumps(now))
    return [told and told[-1] for told in found]


def _look(known: dict[str, list], place: Path) -> list | None:
    """Size, times and digest of a file."""
    try:
        status = os.stat(place)
        if not stat.S_ISREG(status.st_mode):
            return None
        # the second time is of any change: it tells of content that was changed and the first time put back
        stamp = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        before = known.get(str(place))
        if before and before[:-1] == stamp:
            return before
        with open(place, "rb") as file:
            return [*stamp, hashlib.file_digest(file, "sha256").hexdigest()[:32]]
    except (OSError, ValueError) as error:  # ValueError: no file can have such a name
        if is_passing(error):
            raise
        return None


def _recalled(memory: Path | None) -> dict[str, list]:
    try:
        found = json.loads(memory.read_text()) if memory else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and all(isinstance(told, list) for told in found.values()) else {}
