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
    in_row: int = 0  # skipped ones since the last of them
    spikes: int = 0  # those among these that were finite


@dataclass
class Guard:
    """Watches the loss and the gradient norm of each task of a run.

    The limit of each is mean + `sigma` standard deviations of the last `window` written steps of the same task, in
    force once half of the window is filled (window, threshold and the half are those of OLMo 2's SkipStepOptimizer,
    github.com/allenai/OLMo-core). Steps thrown away leave the weights where they were, so a task of which one batch
    after another spikes has weights that make it: after `patience` of these in a row its window is emptied, and what
    comes is written as at the beginning of a run.

    The limits of step i rest on steps up to i - 2: the metrics of step i - 1 are not waited for, and whether they
    happen to be known, as after a restart, must not matter.

    Args:
      window: steps a task's window holds.
      sigma: standard deviations above the mean; 0 = only non-finite steps are thrown away.
      patience: finite steps in a row of one task to throw away before its limits are learned anew; 0 = never.
      max_skipped: steps in a row, of the run or of one task, after which it ends.
    """

    window: int
    sigma: float
    patience: int
    max_skipped: int
    skipped: int = 0
    _in_row: int = 0
    _tasks: dict[str, _Task] = field(default_factory=dict)
    # not yet in a window: values of written steps, None where from this step on the window begins anew
    _late: list[tuple[int, str, list[float] | None]] = field(default_factory=list)

    def limits(self, index: int, task: Hashable) -> np.ndarray:
        """float32 (2,): the largest loss and gradient norm with which step `index` may be written."""
        for _, name, values in (late for late in self._late if late[0] < index - 1):
            window = self._task(name).values
            window.clear() if values is None else window.append(values)
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
        if not skipped:
            own.in_row = own.spikes = 0
            self._late.append((index, name, values))
            return None
        self.skipped += 1
        own.in_row += 1
        if _finite(values, metrics):
            own.spikes += 1
            if own.spikes == self.patience:
                self._late.append((index, name, None))
        return _cause(values, limits, metrics)

    def check(self, step: int, task: Hashable, cause: str) -> str | None:
        """What follows from the skipped step just observed, in words; None where the next ones are held to the same.

        Raises:
          UserError: with this one, too many steps in a row were skipped.
        """
        longest = max(self._in_row, *(task.in_row for task in self._tasks.values()))
        if longest >= self.max_skipped:
            which = "" if self._in_row == longest else " of one task"
            raise UserError(
                f"{longest} steps in a row{which} up to step {step} were skipped, the last for {cause}: lower the "
                "learning rate, lengthen the warmup, look at the data, or see train.spike_patience and "
                "train.spike_sigma for spikes that are none"
            )
        if (step - 1, repr(task), None) not in self._late:
            return None
        return (
            f"the last {self.patience} steps of one task up to step {step} were spikes, whatever the batch, so skipping"
            f" helps no more: its steps are written again from step {step + 2} on, and its limits learned anew"
        )

    def dump(self) -> str:
        """Everything remembered, as JSON."""
        tasks = {name: {**vars(task), "values": list(task.values)} for name, task in self._tasks.items()}
        return json.dumps({"skipped": self.skipped, "in_row": self._in_row, "tasks": tasks, "late": self._late})

    def load(self, text: str) -> None:
        """Remembers what `dump` gave."""
        saved = json.loads(text)
        self.skipped, self._in_row = saved["skipped"], saved["in_row"]
        self._late = [tuple(late) for late in saved["late"]]
        self._tasks = {
            name: _Task(**{**task, "values": deque(task["values"], self.window)})
            for name, task in saved["tasks"].items()
        }

    def _task(self, name: str) -> _Task:
        return self._tasks.setdefault(name, _Task(deque(maxlen=self.window)))


def _finite(values: list[float], metrics: Mapping[str, Any]) -> bool:
    return all(map(math.isfinite, (*values, float(metrics.get("learning_rate", 0.0)))))


def _cause(values: list[float], limits: np.ndarray, metrics: Mapping[str, Any]) -> str:
    if not _finite(values, metrics):
        rate = float(metrics.get("learning_rate", 0.0))
        return f"a number that is not finite (loss {values[0]:.4g}, gradient norm {values[1]:.4g}, rate {rate:.4g})"
    words = zip(("loss", "gradient norm"), values, limits, strict=True)
    return " and ".join(f"{word} {value:.4g} above {limit:.4g}" for word, value, limit in words if value > limit)
