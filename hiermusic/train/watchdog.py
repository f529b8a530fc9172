"""Tells where a run hangs: a collective that one process never joins, a file system that no longer answers."""

import sys
import threading
import time
import traceback
from pathlib import Path

import jax

from hiermusic.console import say

SLOW = 10  # times the patience for what may take long: compiling, validation, a showcase, a save


class Watchdog:
    """Dumps the stacks of all threads when the run makes no progress, once a hang, and lets it go on.

    They go to standard error and to `workdir/stacks-PROCESS.txt`.

    Args:
      workdir: of the run.
      seconds: without progress, after which it counts as hanging; 0 = never.
    """

    def __init__(self, workdir: Path, seconds: float):
        self._path = workdir / f"stacks-{jax.process_index()}.txt"
        self._seconds = seconds
        self._closed = threading.Event()
        self._thread = None
        self.progress("the start", slow=True)
        if seconds:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def progress(self, doing: str, slow: bool = False) -> None:
        """The run goes on, to do something next; `slow` gives it `SLOW` times as long."""
        # one assignment, so that the watching thread never sees half of it
        self._state = (doing, time.monotonic(), self._seconds * (SLOW if slow else 1))

    def close(self) -> None:
        """Ends the watching."""
        self._closed.set()
        if self._thread:
            self._thread.join()

    def _watch(self) -> None:
        told = None
        while not self._closed.wait(self._seconds / 4):
            state = self._state
            doing, since, patience = state
            if state is not told and time.monotonic() - since > patience:
                told = state
                self._tell(f"no progress for {patience:g} s in {doing}; the stacks of process {jax.process_index()}:")

    def _tell(self, headline: str) -> None:
        # standard error first: the disk may be what hangs
        text = f"{headline}\n\n{_stacks()}\n"
        say(text)
        with self._path.open("a") as file:
            print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=file, flush=True)


def _stacks() -> str:
    """Where every thread is, the main one first: faulthandler stops at a hundred threads, and has it last."""
    frames = sys._current_frames()
    main = threading.main_thread().ident
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident in sorted(frames, key=lambda ident: ident != main):
        parts.append(f"thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frames[ident]))}")
    return "\n".join(parts)
