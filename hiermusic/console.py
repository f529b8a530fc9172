"""Words and progress for people, on standard error: whatever becomes of that stream, the work goes on."""

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from hiermusic.errors import brief

if TYPE_CHECKING:
    from tqdm import tqdm

EVERY = 60.0  # seconds between two lines of a bar in a log


# of a stream whose reader is gone, that is closed, or that is not there at all
_LOST = (OSError, ValueError, AttributeError)


@dataclass(frozen=True)
class _Unfailing:
    """A text stream that drops what it cannot take: its reader is gone, its terminal closed, or its disk full."""

    stream: TextIO | None

    def write(self, text: str) -> None:
        with suppress(*_LOST):
            self.stream.write(text)

    def flush(self) -> None:
        with suppress(*_LOST):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _Lines(_Unfailing):
    """What a bar draws over itself, as lines."""

    def write(self, text: str) -> None:
        if line := text.strip():
            super().write(f"{line}\n")


def say(text: str) -> None:
    """Writes a line, above the progress bar where there is one."""
    stream = _Unfailing(sys.stderr)
    if "tqdm" in sys.modules and _watched():
        sys.modules["tqdm"].tqdm.write(text, file=stream)
    else:
        stream.write(f"{text}\n")
    stream.flush()


def warn(words: object) -> None:
    """Tells, in one line, what is odd and taken all the same."""
    say(brief(words))


def bar(unit: str, total: int | None = None, *, label: str = "", done: int = 0, shown: bool = True) -> "tqdm":
    """A progress bar; where standard error is no terminal, a line of it a minute.

    Args:
      unit: what is counted.
      total: how many there will be; None where that is not known yet.
      label: stands in front.
      done: how many there were before.
      shown: otherwise nothing is written.
    """
    from tqdm import tqdm

    if _watched():
        how: dict[str, Any] = {"file": _Unfailing(sys.stderr), "dynamic_ncols": True}
    else:
        words = "{desc}{percentage:.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
        # miniters: time alone decides, at every update
        pace = {"mininterval": EVERY, "delay": EVERY, "miniters": 1}
        how = {"file": _Lines(sys.stderr), "bar_format": words, **pace}
    return tqdm(total=total, desc=label and f"{label}: ", initial=done, unit=unit, disable=not shown, **how)


def _watched() -> bool:
    with suppress(*_LOST):
        return sys.stderr.isatty()
    return False


def open_closed_streams() -> None:
    """Gives /dev/null to standard streams that are closed: the next files would get their numbers, and be written to by
    whatever writes to those."""
    opened = []
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:
        opened.append(number)
    os.close(number)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if number in opened:
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, "w", closefd=False))
