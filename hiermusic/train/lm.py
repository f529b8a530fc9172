"""Trains token models: anything with `.loss(batch, visibility=..., key=...) -> (loss, metrics)`."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from hiermusic.data.pipeline import NoTracks
from hiermusic.errors import UserError
from hiermusic.nn.config import TransformerConfig
from hiermusic.parallel.mesh import constrain
from hiermusic.tokens.visibility import Visibility
from hiermusic.train.log import Log
from hiermusic.train.optimiser import average, begin_average
from hiermusic.train.stage import Batch, Metrics, RunConfig, Work
from hiermusic.train.tuning import averaged, merged

if TYPE_CHECKING:
    import grain


class LMState(nnx.Module):
    """A model, its running average if it has one, and its optimiser."""

    def __init__(self, model: nnx.Module, config: RunConfig, rngs: nnx.Rngs):
        self.model = model = config.tuning.apply(model, rngs)
        if config.ema_decay:
            self.ema = averaged(model)
        self.optimiser = nnx.Optimizer(model, config.transform(model), wrt=nnx.Param)


class LMStage:
    """Trains a token model on batches that name who sees whom; see `stage.Stage`.

    Args:
      config: of the run; where it accumulates, the model's metrics must hold `count_K`.
      make_model: rngs -> the model.
      train: rows of a batch -> an endless data set of pairs (`Visibility`, those rows).
      valid: the same for a finite one; raises NoTracks where no track is held out.
      examples: every visibility with the shapes of its global batch.
      work: visibility -> what one update amounts to.
      length: positions of a row.
      trunk: of the model.
      prepare: called with the fresh state, to load pretrained weights into `.model`.
      open: called with the workdir, to find and check the data before the first batch.
    """

    def __init__(
        self,
        config: RunConfig,
        make_model: Callable[[nnx.Rngs], nnx.Module],
        *,
        train: Callable[[Sequence[int]], "grain.MapDataset"],
        valid: Callable[[Sequence[int]], "grain.MapDataset"],
        examples: list[tuple[Visibility, Mapping[str, jax.ShapeDtypeStruct]]],
        work: Callable[[Visibility], Work],
        length: int,
        trunk: TransformerConfig,
        prepare: Callable[[nnx.Module], None] = lambda module: None,
        open: Callable[[Path], None] = lambda workdir: None,
    ):
        self.config, self.open = config, open
        self.make_model = make_model
        self.train_batches = train
        self._valid = valid
        self._prepare = prepare
        self._examples = examples
        self.work = work
        self.length = length
        self.trunk = trunk
        self.ema_decay, self.rate = config.ema_decay, config.rate

    def create(self, rngs: nnx.Rngs) -> LMState:
        return LMState(self.make_model(rngs), self.config, rngs)

    def prepare(self, module: LMState) -> None:
        self._prepare(module)
        if self.ema_decay:
            begin_average(module.ema, module.model)

    def valid_batches(self, rows: Sequence[int]) -> "grain.MapDataset | None":
        try:
            return self._valid(rows)
        except NoTracks:
            return None

    def check(self, mesh: jax.sharding.Mesh) -> None:
        if self.length % (parts := mesh.shape["context"]):
            raise UserError(
                f"a row of {self.length} positions does not divide over the {parts} devices of mesh axis context: "
                f"make it a multiple of {parts}"
            )

    def examples(self) -> list[tuple[Hashable, Mapping[str, jax.ShapeDtypeStruct]]]:
        return self._examples

    def held(self, batch: Batch) -> tuple[float, float]:
        if "valid" not in batch:
            return 1.0, 1.0
        predicted = (batch["targets"] >= 0).sum() + (batch["text_targets"] >= 0).sum()
        return float(predicted / batch["valid"].size), float(batch["valid"].mean())

    def step(self, module: LMState, batch: Mapping[str, jax.Array], task: Visibility, key: jax.Array) -> Metrics:
        gradients, metrics = _gradients(module.model, batch, task, key, self.config.loop.accumulate)
        metrics = {
            **_measured(metrics),
            "grad_norm": optax.tree.norm(gradients),
            "learning_rate": self.rate(module.optimiser.step[...]),
        }
        module.optimiser.update(module.model, gradients)
        if self.ema_decay:
            average(module.ema, module.model, self.ema_decay, module.optimiser.step[...])
        return metrics

    def evaluate(self, module: LMState, batch: Mapping[str, jax.Array], task: Visibility, key: jax.Array) -> Metrics:
        model = module.ema if self.ema_decay else module.model
        return _measured(merged(model).loss(batch, visibility=task)[1])

    def showcase(self, module: LMState, log: Log, step: int) -> None:
        """Nothing: what a token model has to show needs a codec."""


def _gradients(
    model: nnx.Module, batch: Mapping[str, jax.Array], task: Visibility, key: jax.Array, pieces: int
) -> tuple[nnx.State, Metrics]:
    """Gradients of the loss and the model's metrics, the batch taken in so many pieces one after another.

    Both are those of the whole batch, since each piece weighs as much as it has targets; dropout alone draws anew for
    every piece. A piece takes every `pieces`-th row, so that all devices keep their share of it.
    """

    def whole(model, batch, key):
        def loss(model):
            return merged(model).loss(batch, visibility=task, key=key)

        gradients, metrics = nnx.grad(loss, has_aux=True)(model)
        return gradients, metrics

    if pieces == 1:
        return whole(model, batch, key)
    graphdef, state = nnx.split(model)
    shared = {name: value for name, value in batch.items() if value.ndim == 0}
    rows = {name: _split(value, pieces) for name, value in batch.items() if value.ndim}

    def one(piece):
        rows, key = piece
        # merge keeps the state's own Variables, which belong to the world outside the scan
        fresh = nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf, state))
        gradients, metrics = whole(fresh, {**shared, **rows}, key)
        return _times(gradients, metrics, metrics["count_K"], metrics["count_K"].sum())

    inputs = rows, jax.random.split(key, pieces)
    shapes = jax.eval_shape(one, jax.tree.map(lambda leaf: leaf[0], inputs))
    zeros = jax.tree.map(_zeros, shapes, is_leaf=lambda x: isinstance(x, nnx.Variable))
    (gradients, metrics), _ = jax.lax.scan(
        lambda sums, piece: (jax.tree.map(jnp.add, sums, one(piece)), None), zeros, inputs
    )
    count_K = jnp.maximum(metrics["count_K"], 1)
    return _times(gradients, metrics, 1 / count_K, 1 / jnp.maximum(metrics["count_K"].sum(), 1))


def _split(rows: jax.Array, pieces: int) -> jax.Array:
    """[B, ...] -> [pieces, B / pieces, ...], each piece spread over the devices like the whole."""
    pieces_first = rows.reshape(-1, pieces, *rows.shape[1:]).swapaxes(0, 1)
    return constrain(pieces_first, None, "batch", *(None,) * (rows.ndim - 1))


def _times(gradients: nnx.State, metrics: Metrics, by_K: jax.Array, by: jax.Array) -> tuple[nnx.State, Metrics]:
    """Turns means over targets into sums or back: `by_K` for what is told by level, `by` for the rest."""
    factors = {name: by_K if name.endswith("_K") else by for name in metrics} | {"count_K": 1}
    return jax.tree.map(lambda leaf: leaf * by, gradients), {name: metrics[name] * factors[name] for name in metrics}


def _zeros(shape: nnx.Variable | jax.ShapeDtypeStruct) -> nnx.Variable | jax.Array:
    """Zeros, split over the mesh like the parameter whose gradient they will take up."""
    if not isinstance(shape, nnx.Variable):
        return jnp.zeros(shape.shape, shape.dtype)
    value = shape.get_value()
    return shape.replace(constrain(jnp.zeros(value.shape, value.dtype), *shape.get_metadata()["axes"]))


def _measured(metrics: Metrics) -> Metrics:
    """Levels without a target in the batch have no cross-entropy, rather than one of 0."""
    metrics = dict(metrics)
    if "count_K" in metrics:
        metrics["ce_K"] = jnp.where(metrics.pop("count_K") > 0, metrics["ce_K"], jnp.nan)
    return metrics
