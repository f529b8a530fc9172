"""How a run goes, and what a trainable thing must offer: the loop knows nothing else about it."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np
import optax
from flax import nnx

from hiermusic.errors import UserError
from hiermusic.parallel.settings import MeshConfig
from hiermusic.train.optimiser import OptimiserConfig
from hiermusic.train.settings import LoopConfig
from hiermusic.train.tuning import TuningConfig

if TYPE_CHECKING:
    import grain

    from hiermusic.nn.config import TransformerConfig
    from hiermusic.train.log import Log

Batch = Mapping[str, np.ndarray]
Metrics = dict[str, Any]


@dataclass(frozen=True)
class RunConfig:
    """The configuration of a run, as far as any stage has it.

    Args:
      loop: batches, intervals, the guard.
      optimiser: what moves the weights.
      tuning: which weights it moves, and how fast each.
      ema_decay: of the running average of the weights, in [0, 1); 0 = none is kept.
      mesh: of devices; None for a single one.
      data: `data.path`, "" where the configuration has none.
      dtype: that the model computes in.
      remat: what the model computes twice to save memory ("none", "dots", "full"); None where it has no choice.
      fields: the whole configuration in JSON values, which config.json keeps; nothing is read from there.
      places: those of them, besides `data.path` and `data.codec`, that name files or folders: others perhaps when a run
        goes on.
    Raises:
      UserError: a field that is missing or out of its range.
    """

    loop: LoopConfig
    optimiser: OptimiserConfig
    tuning: TuningConfig = field(default_factory=TuningConfig)
    ema_decay: float = 0.0
    mesh: MeshConfig | None = None
    data: str = ""
    dtype: str = "float32"
    remat: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    places: tuple[str, ...] = ()

    def __post_init__(self):
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"train.ema_decay is {self.ema_decay}; it must lie in [0, 1)")

    @classmethod
    def of(cls, fields: Mapping[str, Any], places: tuple[str, ...] = ()) -> "RunConfig":
        """The config of a whole configuration in JSON values."""
        train = fields["train"]
        model = fields.get("model", {})
        return cls(
            LoopConfig.of(train),
            OptimiserConfig.of(train),
            TuningConfig.of(fields),
            train.get("ema_decay", 0.0),
            MeshConfig.of(fields["mesh"]) if "mesh" in fields else None,
            fields.get("data", {}).get("path") or "",
            model.get("dtype", "float32"),
            model.get("remat"),
            fields,
            places,
        )

    @property
    def rate(self) -> optax.Schedule:
        """The learning rate as a function of the number of updates made."""
        return self.optimiser.rate(self.loop.steps)

    def transform(self, model: nnx.Module) -> optax.GradientTransformation:
        """What makes updates of a model's gradients."""
        return self.tuning.transform(self.optimiser.transform(model, self.loop.steps), model)


@dataclass(frozen=True)
class Work:
    """What one update of a task amounts to, over a whole batch without padding.

    Args:
      flops: of the model, forward and backward: multiplications and additions of its matrix products and convolutions,
        nothing that is recomputed counted twice (what MFU divides by the peak).
      tokens: codes that the batch holds.
      seconds: of audio in the batch.
    """

    flops: float
    tokens: int
    seconds: float


class Stage(Protocol):
    """One training job: a module with its training state, its batches, and one step over them.

    The data sets yield numpy batches, or pairs (task, batch) where `task` is a hashable the step is compiled for (None
    otherwise). Every array's first dimension is the asked rows of the global batch; scalars are allowed. Element i of
    `train_batches(rows)` belongs to step i and every row of it must be a pure function of (seed, i, its index): that
    makes a restart exact, on any number of processes.

    Attributes:
      config: of the run.
      trunk: sizes of the transformer that rows of `length` positions go through, None where there is no such thing.
    """

    config: RunConfig
    trunk: "TransformerConfig | None"
    length: int

    def open(self, workdir: Path) -> None:
        """Finds and checks the data, before batches are asked for; what has to be made of it lies under `workdir`."""

    def create(self, rngs: nnx.Rngs) -> nnx.Module:
        """Builds the whole training state, under jit.

        `.model` holds the weights to infer with, `.ema`, if any, a running average of them (same structure, preferred
        for inference); the rest is what a step needs: optimisers, discriminators.
        """

    def prepare(self, module: nnx.Module) -> None:
        """Loads pretrained weights into `module`, in place and outside jit, before the first step of a fresh run."""

    def train_batches(self, rows: Sequence[int]) -> "grain.MapDataset":
        """An endless random-access data set of these rows of the training batches."""

    def valid_batches(self, rows: Sequence[int]) -> "grain.MapDataset | None":
        """A finite data set of these rows of the validation batches, or None where no track is held out."""

    def check(self, mesh: jax.sharding.Mesh) -> None:
        """Raises UserError where the mesh asks for what the stage cannot do."""

    def examples(self) -> list[tuple[Hashable, Mapping[str, jax.ShapeDtypeStruct]]]:
        """Every task that a whole run comes to, each with the shapes of its global batch: known without data."""

    def work(self, task: Hashable) -> Work:
        """What one update of a task amounts to, where nothing is padding."""

    def held(self, batch: Batch) -> tuple[float, float]:
        """Shares of a batch that are no padding: of `Work.tokens` (and seconds), and of the positions computed."""

    def step(self, module: nnx.Module, batch: Mapping[str, jax.Array], task: Hashable, key: jax.Array) -> Metrics:
        """Mutates `module` by one update, inside jit; the metrics hold at least scalar `loss` and `grad_norm`."""

    def evaluate(self, module: nnx.Module, batch: Mapping[str, jax.Array], task: Hashable, key: jax.Array) -> Metrics:
        """Metrics of one validation batch, inside jit, nothing mutated; NaN means not measured by this batch."""

    def showcase(self, module: nnx.Module, log: "Log", step: int) -> None:
        """Writes things to hear and to look at, on the host."""
