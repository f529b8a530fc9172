"""A profiler trace of some steps of a run, for TensorBoard's profile plugin or XProf."""

from pathlib import Path

import jax

from hiermusic.errors import disk_errors


class Profiler:
    """Traces `steps` steps from step `first` on into `workdir/profile`, on the first process.

    Args:
      workdir: of the run.
      first: the first traced step, counted from 1; 0 = none. A run resumed behind it traces nothing.
      steps: how many.
    """

    def __init__(self, workdir: Path, first: int, steps: int):
        self._folder = workdir / "profile"
        self._first = first
        self._last = first + steps - 1
        self._tracing = False

    def begins(self, step: int) -> bool:
        """Whether `step` is the first one to trace."""
        return step == self._first

    def ends(self, step: int) -> bool:
        """Whether `step` is the last one to trace."""
        return self._first > 0 and step == self._last

    def start(self) -> None:
        """Begins the trace; nothing may be under way on the devices."""
        if jax.process_index() == 0:
            jax.profiler.start_trace(self._folder)
            self._tracing = True

    def stop(self) -> None:
        """Writes the trace, if one was begun."""
        if self._tracing:
            self._tracing = False
            with disk_errors(self._folder):
                jax.profiler.stop_trace()
