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


def reason(error: BaseException) -> str:
    """What an exception says, in one line of at most 160 characters."""
    words = getattr(error, "strerror", None) or " ".join(str(error).split())
    if isinstance(error, LookupError | TypeError | AttributeError) or not words:
        words = f"{type(error).__name__}: {words}".removesuffix(": ")  # alone they name a thing, not what is wrong
    return words if len(words) <= 160 else f"{words[:159]}…"


@contextmanager
def damage(path: str | os.PathLike, remedy: str) -> Iterator[None]:
    """Turns whatever comes of reading a file that may be damaged, or not what it seems, into one line that names it.

    Args:
      path: the file, or the folder where one of several is meant.
      remedy: what to do about it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): {remedy}") from None


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
            replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace(temporary: str | os.PathLike, path: str | os.PathLike) -> None:
    """Gives a finished file its name, both on the disk itself: after a power cut it is the old one or the whole new."""
    sync(temporary)
    os.replace(temporary, path)
    sync(Path(path).parent)


def sync(path: str | os.PathLike) -> None:
    """Returns when a file, or what a folder says of its files, is on the disk itself."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def write_atomically(path: str | os.PathLike, text: str) -> None:
    """Writes a text file that is either whole or not there."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")  # file names need not be valid unicode
