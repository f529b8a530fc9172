"""Where the time of a run goes and what it gets for it: the figures that `docs/training.md` defines."""

import resource
import sys
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import jax

from hiermusic.parallel.chips import chip_of
from hiermusic.train.stage import Metrics, Stage, Work

_GIB = 2**30


class Meter:
    """Clocks steps without waiting for them: a step lasts from when the one before was known to be done to its own.

    Args:
      stage: says what a step amounts to.
      mesh: the devices that share the work.
      peak_tflops: of one device; 0 for what its maker says of it, if it is known.
      started: when the workdir was first trained in, in seconds since 1970.
      goodput: share of the time since then that earlier processes of the run spent in steps that counted ...
      elapsed: ... as of so many seconds after `started`.
    """

    def __init__(
        self,
        stage: Stage,
        mesh: jax.sharding.Mesh,
        peak_tflops: float,
        started: float,
        goodput: float = 0.0,
        elapsed: float = 0.0,
    ):
        chip = chip_of(mesh.devices.flat[0])
        self._stage, self._devices = stage, mesh.size
        self._peak = peak_tflops * 1e12 or (chip.device_flops if chip else 0.0)
        self._started, self._good = started, goodput * elapsed
        self._work: dict[Hashable, Work] = {}
        self._compiling = 0.0
        self._mark, self._out = time.perf_counter(), 0.0
        self._reset()

    def is_new(self, task: Hashable) -> bool:
        """Whether no step of the task was dispatched yet."""
        return task not in self._work

    @contextmanager
    def out(self) -> Iterator[None]:
        """Time that belongs to no step: validation, showcase, saving."""
        begin = time.perf_counter()
        yield
        self._out += time.perf_counter() - begin

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in which a step's batch is waited for."""
        begin = time.perf_counter()
        yield
        self._waited += time.perf_counter() - begin

    @contextmanager
    def dispatching(self, task: Hashable) -> Iterator[None]:
        """The call of the update; the first of a task traces and compiles it, or finds it compiled on disk."""
        begin = time.perf_counter()
        yield
        if self.is_new(task):
            self._work[task] = self._stage.work(task)
            seconds = time.perf_counter() - begin
            self._out, self._compiling = self._out + seconds, self._compiling + seconds

    def done(self, task: Hashable, held: tuple[float, float], counted: bool) -> None:
        """A step is known to be done.

        Args:
          task: of it.
          held: shares of its batch that were no padding, as `Stage.held` gives them.
          counted: whether it was written.
        """
        now = time.perf_counter()
        seconds = now - self._mark - self._out
        self._mark, self._out = now, 0.0
        work = self._work[task]
        self._steps, self._seconds = self._steps + 1, self._seconds + seconds
        codes, positions = held
        self._flops, self._tokens = self._flops + work.flops * positions, self._tokens + work.tokens * codes
        self._audio += work.seconds * codes
        if counted:
            self._good += seconds

    def read(self) -> Metrics:
        """The figures of the steps done since the last reading."""
        elapsed = time.time() - self._started
        rate = self._flops / self._seconds / self._devices
        figures = {
            "seconds_per_step": self._seconds / self._steps,
            "data_wait": self._waited / self._seconds,
            "tokens_per_second": self._tokens / self._seconds,
            "audio_per_second": self._audio / self._seconds,
            "tflops": rate / 1e12,
            **({"mfu": rate / self._peak} if self._peak else {}),
            **_memory(),
            "compile_seconds": self._compiling,
            "goodput": self._good / elapsed,
            "elapsed": elapsed,
            "time": round(time.time()),
        }
        self._reset()
        return figures

    def _reset(self) -> None:
        self._steps, self._seconds, self._waited = 0, 0.0, 0.0
        self._flops, self._tokens, self._audio = 0.0, 0.0, 0.0


def _memory() -> Metrics:
    """The most that any device of this process has held; where devices do not tell, the most the process has."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [held["peak_bytes_in_use"] for held in stats if "peak_bytes_in_use" in held]
    if peaks:
        return {"device_gib": max(peaks) / _GIB}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"process_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _GIB}
