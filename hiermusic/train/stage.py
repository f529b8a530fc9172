"""What a trainable thing must offer: the loop knows nothing else about it."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np
from flax import nnx

if TYPE_CHECKING:
    import grain

    from hiermusic.nn.transformer import TransformerConfig
    from hiermusic.train.log import Log

Batch = Mapping[str, np.ndarray]
Metrics = dict[str, Any]


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
      places: fields besides `data.path` and `data.codec` that name files or folders, others perhaps when a run goes on.
      trunk: sizes of the transformer that rows of `length` positions go through, None where there is no such thing.
    """

    places: Sequence[str]
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
