"""The fields of a configuration that the loop reads, with their defaults; without JAX: presets begin with them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from hiermusic.errors import UserError


@dataclass(frozen=True)
class LoopConfig:
    """The fields of `config.train` that the loop reads; intervals are in steps, 0 = never.

    Args:
      steps: length of the run.
      batch_size: global batch; must divide over the mesh's data axes.
      accumulate: microbatches that an update goes through one after another; must divide each device's rows.
      seed: of the initial weights and of every step's key.
      log_every: metrics.jsonl and TensorBoard.
      valid_every: validation, over `valid_batches` batches (0 = all there are).
      checkpoint_every: checkpoints; the last step is always saved.
      show_every: the stage's showcase.
      keep: newest checkpoints kept, besides every `keep_every`-th step.
      max_skipped: consecutive skipped steps, of the run or of one task, after which the run stops.
      spike_window: written steps of a task that the next ones are held against (see `guard.Guard`).
      spike_sigma: standard deviations above their mean that loss and gradient norm may reach; 0 = any.
      spike_patience: consecutive finite spikes of a task after which it is written again and its limits are learned
        anew.
      stop_worse: held-out losses in a row above that of step 0 after which the run ends; 0 = never.
      stop_loss: the training loss below which, three steps in a row, the run ends; 0 = never.
      peak_tflops: what a device can do, for MFU; 0 = what its maker says.
      profile_step: the first step that the profiler traces.
      profile_steps: how many it traces.
      hang_seconds: without progress, after which the stacks are dumped; 0 = never.
    Raises:
      UserError: a number out of its range.
    """

    steps: int
    batch_size: int
    accumulate: int = 1
    seed: int = 0
    log_every: int = 20
    valid_every: int = 500
    valid_batches: int = 8
    checkpoint_every: int = 500
    show_every: int = 0
    keep: int = 2
    keep_every: int = 0
    max_skipped: int = 50
    spike_window: int = 128
    spike_sigma: float = 6.0
    spike_patience: int = 10
    stop_worse: int = 0
    stop_loss: float = 0.0
    peak_tflops: float = 0.0
    profile_step: int = 0
    profile_steps: int = 3
    hang_seconds: float = 600.0

    def __post_init__(self):
        ones = ("steps", "batch_size", "accumulate", "keep", "max_skipped", "profile_steps")
        least = {**dict.fromkeys(ones, 1), "spike_window": 2}
        for field in fields(self):
            value, floor = getattr(self, field.name), least.get(field.name, 0)
            if not floor <= value < float("inf"):
                raise UserError(f"train.{field.name} is {value}; it must be at least {floor}")
        if self.seed >= 2**32:
            raise UserError(f"train.seed is {self.seed}; it must lie in 0..{2**32 - 1}")

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "LoopConfig":
        """The config of a mapping that may hold fields of others; raises UserError for a missing one."""
        for name in ("steps", "batch_size"):
            if name not in fields:
                raise UserError(f"the config has no train.{name}")
        kinds = {name: field.type for name, field in cls.__dataclass_fields__.items()}
        return cls(**{name: kind(fields[name]) for name, kind in kinds.items() if name in fields})
