"""Which updates are thrown away: the non-finite, and those whose loss or gradient norm is far above the recent ones."""

import json
import math
from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hiermusic.errors import UserError

NAMES = ("loss", "grad_norm")
_LEAST_SPREAD = 0.01  # of the mean: a model that knows its data by heart must not stumble over rounding


@dataclass
class _Task:
    """What the guard remembers of one task."""

    values: deque[list[float]]  # (loss, gradient norm) of written steps
    in_row: int = 0


@dataclass
class Guard:
    """Watches the loss and the gradient norm of each task of a run.

    The limit of each is mean + `sigma` standard deviations of the last `window` written steps of the same task, in
    force once half of the window is filled (window, threshold and the half are those of OLMo 2's SkipStepOptimizer,
    github.com/allenai/OLMo-core). The limits of step i rest on steps up to i - 2: the metrics of step i - 1 are not
    waited for, and whether they happen to be known, as after a restart, must not matter.

    Args:
      window: steps a task's window holds.
      sigma: standard deviations above the mean; 0 = only non-finite steps are thrown away.
      max_skipped: steps in a row, of the run or of one task, after which it ends.
    """

    window: int
    sigma: float
    max_skipped: int
    skipped: int = 0
    _in_row: int = 0
    _tasks: dict[str, _Task] = field(default_factory=dict)
    _late: list[tuple[int, str, list[float]]] = field(default_factory=list)  # not yet in a window

    def limits(self, index: int, task: Hashable) -> np.ndarray:
        """float32 (2,): the largest loss and gradient norm with which step `index` may be written."""
        for _, name, values in (late for late in self._late if late[0] < index - 1):
            self._task(name).values.append(values)
        self._late = [late for late in self._late if late[0] >= index - 1]
        values = np.array(self._task(repr(task)).values, np.float64)
        if not self.sigma or len(values) < max(2, self.window // 2):
            return np.full(2, np.inf, np.float32)
        mean = values.mean(axis=0)
        spread = np.maximum(values.std(axis=0), _LEAST_SPREAD * np.abs(mean))
        return (mean + self.sigma * spread).astype(np.float32)

    def observe(
        self, index: int, task: Hashable, metrics: Mapping[str, Any], limits: np.ndarray, skipped: bool
    ) -> str | None:
        """Takes note of what came of step `index`.

        Args:
          index, task: of the step.
          metrics: its metrics on the host.
          limits: what `limits` gave for it.
          skipped: whether it was thrown away.
        Returns:
          Why it was; None for a step that was written.
        """
        name, values = repr(task), [float(metrics[name]) for name in NAMES]
        self._in_row = self._in_row + 1 if skipped else 0
        own = self._task(name)
        own.in_row = own.in_row + 1 if skipped else 0
        if not skipped:
            self._late.append((index, name, values))
            return None
        self.skipped += 1
        return _cause(values, limits, metrics)

    def check(self, step: int, cause: str) -> None:
        """UserError when, with the one just observed, too many steps in a row were skipped."""
        longest = max(self._in_row, *(task.in_row for task in self._tasks.values()))
        if longest >= self.max_skipped:
            which = "" if self._in_row == longest else " of one task"
            raise UserError(
                f"{longest} steps in a row{which} up to step {step} were skipped, the last for {cause}: lower the "
                "learning rate, lengthen the warmup, look at the data, or raise train.spike_sigma (0 = off)"
            )

    def dump(self) -> str:
        """Everything remembered, as JSON."""
        tasks = {name: {"values": list(task.values), "in_row": task.in_row} for name, task in self._tasks.items()}
        return json.dumps({"skipped": self.skipped, "in_row": self._in_row, "tasks": tasks, "late": self._late})

    def load(self, text: str) -> None:
        """Remembers what `dump` gave."""
        saved = json.loads(text)
        self.skipped, self._in_row = saved["skipped"], saved["in_row"]
        self._late = [tuple(late) for late in saved["late"]]
        self._tasks = {
            name: _Task(deque(task["values"], self.window), task["in_row"]) for name, task in saved["tasks"].items()
        }

    def _task(self, name: str) -> _Task:
        return self._tasks.setdefault(name, _Task(deque(maxlen=self.window)))


def _cause(values: list[float], limits: np.ndarray, metrics: Mapping[str, Any]) -> str:
    rate = float(metrics.get("learning_rate", 0.0))
    if not all(map(math.isfinite, (*values, rate))):
        return f"a number that is not finite (loss {values[0]:.4g}, gradient norm {values[1]:.4g}, rate {rate:.4g})"
    words = zip(("loss", "gradient norm"), values, limits, strict=True)
    return " and ".join(f"{word} {value:.4g} above {limit:.4g}" for word, value, limit in words if value > limit)
