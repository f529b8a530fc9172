"""What a person is meant to read: bad input and a full disk, in one line, and nothing half-written behind either."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


class UserError(Exception):
    """Bad input, said in one line: what is wrong, where, and what to do about it."""


@contextmanager
def disk_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turns a full disk (or quota) into a UserError naming `path`; anything else is ours and keeps its traceback."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise UserError(f"the disk is full: {path} cannot be written; free some space and start again") from error
        raise


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an exception, or one that it came from, says that a disk or a quota is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # TensorStore and ArrayRecord only say so in words
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block ends well, and is removed when it does not.

    Raises UserError when the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{uuid4().hex[:8]}.tmp")  # workers on several hosts may write at once
    try:
        with disk_errors(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Writes a text file that is either whole or not there."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")  # file names need not be valid unicode
