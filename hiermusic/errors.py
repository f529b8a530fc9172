"""What a person is meant to read: bad input and a full disk, in one line, and nothing half-written behind either."""

import errno
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

T = TypeVar("T")

_LONGEST = 1000  # characters of an answer; longer ones keep their beginning and their end, which says what to do
_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029]+")
_PAUSES = (0.2, 1.0, 5.0)  # seconds before something is tried again
# What says nothing about the file that was being read, and passes: descriptors, memory, network disks.
_PASSING = {
    *(errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR, errno.ENOBUFS, errno.ESTALE),
    *(errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNABORTED, errno.EHOSTDOWN, errno.EHOSTUNREACH),
    *(errno.ENETUNREACH, errno.ENETDOWN),
}


def brief(text: object, longest: int = _LONGEST) -> str:
    """Any text as one line of at most `longest` characters, without control characters or broken unicode."""
    parts = (part.strip() for part in _CONTROL.split(str(text)))
    line = " ".join(filter(None, parts)).encode("utf-8", "backslashreplace").decode("utf-8")
    if len(line) > longest:
        tail = longest // 3
        line = f"{line[: longest - tail - 5]} ... {line[-tail:]}"
    return line


class UserError(Exception):
    """Bad input, said in one line of bounded length: what is wrong, where, and what to do about it."""

    def __init__(self, words: object = ""):
        super().__init__(brief(words))


@contextmanager
def reading(path: str | os.PathLike, what: str = "", do: str = "") -> Iterator[None]:
    """Turns whatever reading a file raises into one UserError: "PATH cannot be read as WHAT (why): DO".

    The machine's own faults (`is_passing`) are passed on, since they say nothing about the file.

    Args:
      path: the file, or the folder where one of several is meant.
      what: what it was to be, such as "a manifest"; empty where the path says it.
      do: what helps; empty when nothing but another file does.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # parsers of all kinds raise what they like about what a stranger's file holds
        if is_passing(error):
            raise
        kind = f" as {what}" if what else ""
        raise UserError(f"{path} cannot be read{kind} ({reason(error)}){f': {do}' if do else ''}") from error


def reason(error: BaseException) -> str:
    """What an exception says of a file, in one line of at most 200 characters."""
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    if isinstance(error, TypeError | AttributeError):
        return "it holds other things"
    if isinstance(error, OSError) and error.strerror:
        return brief(error.strerror, 200)
    kind = "" if type(error) in (ValueError, RuntimeError) and str(error) else f"{type(error).__name__}: "
    return brief(f"{kind}{error}".removesuffix(": "), 200)


def patiently(action: Callable[[], T]) -> T:
    """What `action` gives; it is tried again, after pauses, while the machine's own faults (`is_passing`) stop it."""
    for pause in _PAUSES:
        try:
            return action()
        except Exception as error:
            if not is_passing(error):
                raise
        time.sleep(pause)
    return action()


def is_passing(error: BaseException | None) -> bool:
    """Whether an exception, or one that it came from, tells of the machine and may be gone at the next try."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _PASSING:
            return True
        error = error.__cause__ or error.__context__
    return False


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
            replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(workdir: str | os.PathLike) -> None:
    """UserError where a workdir, or the folder that it is to be made in, takes no file, or none of 64 KiB."""
    place = next(path for path in (Path(workdir).absolute(), *Path(workdir).absolute().parents) if path.exists())
    try:
        with disk_errors(workdir), tempfile.TemporaryFile(dir=place) as probe:
            probe.write(bytes(1 << 16))
            probe.flush()
    except OSError as error:
        raise UserError(f"{workdir} cannot be written: {error.strerror}; give another workdir") from error


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
