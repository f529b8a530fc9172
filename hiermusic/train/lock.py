"""One owner for a folder: two runs in a workdir would write over each other and take each other's checkpoints away.

The owner holds a file lock, which the kernel drops when the process dies, however it does. Not every shared disk passes
such locks on to other machines, nor drops those of a machine that died: whether an owner there lives is told by the
beat in its file, which goes on as long as it does.
"""

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from hiermusic.console import say
from hiermusic.errors import UserError, disk_errors
from hiermusic.parallel.hosts import wait_for_all, workers

NAME = "lock"
BEAT = 10.0  # seconds between two beats
PATIENCE = 60.0  # seconds without a beat after which an owner on another machine is dead

_owned: set[Path] = set()  # by this process


@contextmanager
def owned(folder: str | Path) -> Iterator[None]:
    """The block as the only process, or the only group of processes, at work in `folder`, which is made if need be.

    Process 0 holds the lock for all processes of a run. Within the block the same folder may be owned again.

    Raises:
      UserError: another process owns it, or it cannot be written.
    """
    place = Path(os.path.abspath(folder))
    if place in _owned:
        yield
        return
    _owned.add(place)
    try:
        lock = _Lock(place) if workers()[0] == 0 else None
        try:
            wait_for_all("the lock is taken")
            yield
        finally:
            if lock:
                lock.release()
    finally:
        _owned.remove(place)


class _Lock:
    """The lock of one folder, taken."""

    def __init__(self, folder: Path):
        self.folder, self.path = folder, folder / NAME
        self.made = [place for place in (folder, *folder.parents) if not place.exists()]
        self.mine = {"process": os.getpid(), "host": socket.gethostname(), "boot": _boot(), "run": uuid4().hex}
        self.mine["since"] = time.strftime("%Y-%m-%d %H:%M:%S")
        self.beats = 0
        self.ended = threading.Event()
        try:
            with disk_errors(self.path):
                folder.mkdir(parents=True, exist_ok=True)
                self.file = self._take()
                try:
                    self._beat()
                except BaseException:
                    self._drop()
                    raise
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror}; give another workdir") from error
        self.beating = threading.Thread(target=self._go_on, name="lock", daemon=True)
        self.beating.start()

    def release(self) -> None:
        """Gives the folder back, and takes away what was made for the lock alone."""
        self.ended.set()
        self.beating.join()
        self._drop()

    def _drop(self) -> None:
        with suppress(OSError):
            if _is_at(self.file, self.path):
                self.path.unlink()
        os.close(self.file)
        for place in self.made:
            with suppress(OSError):  # not empty
                place.rmdir()

    def _take(self) -> int:
        """The open, locked file."""
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                if self._is_free(file):
                    return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)

    def _is_free(self, file: int) -> bool:
        """Whether the file is ours from now on, or has to be opened again; UserError where its owner lives."""
        free = _try(file)
        owner = _read(self.path)
        if not _is_at(file, self.path):
            return False
        told = free is not None and (not owner or owner.get("boot") == self.mine["boot"])  # by the kernel
        alive = free is False if told else bool(owner) and self._lives(owner)
        if alive:
            raise UserError(f"{self.folder} is in use by {_who(owner)}: end that, wait for it, or give another workdir")
        if told or not owner:
            return True
        if _read(self.path) != owner:
            return False
        if free is False:
            os.unlink(self.path)  # the lock of a dead machine may be held for ever, but not that of a new file
        return free is not False

    def _lives(self, owner: dict) -> bool:
        """Waits until an owner's beat goes on, or has not for too long."""
        say(f"{self.folder} was left by {_who(owner)}: waiting up to {PATIENCE:g} s for a sign of life")
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            time.sleep(min(BEAT, PATIENCE) / 4)
            now = _read(self.path)
            if not now:
                return False  # it has just ended
            if now != owner:
                return True
        return False

    def _beat(self) -> None:
        """Writes the next beat."""
        self.beats += 1
        text = json.dumps(self.mine | {"beat": self.beats}).encode()
        os.pwrite(self.file, text, 0)
        os.ftruncate(self.file, len(text))
        os.fsync(self.file)  # or other machines would not see it

    def _go_on(self) -> None:
        while not self.ended.wait(BEAT):
            with suppress(OSError):
                if not self._is_mine():
                    # taken for dead, as after a long sleep: whoever came since may be writing
                    say(f"hiermusic: {self.folder} was taken over by {_who(_read(self.path))}; this process ends")
                    os._exit(1)
                self._beat()

    def _is_mine(self) -> bool:
        return _is_at(self.file, self.path) and _read(self.path).get("run") == self.mine["run"]


def _try(file: int) -> bool | None:
    """Whether the lock was free and is taken now; None where the file system has none."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _read(path: Path) -> dict:
    """Who wrote the file; nothing where that cannot be told."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _who(owner: dict) -> str:
    if not owner:
        return "another process"
    return f"process {owner.get('process')} on {owner.get('host')} (since {owner.get('since')})"


def _boot() -> str:
    """What tells this machine, since it was started, from every other."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()
