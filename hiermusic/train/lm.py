"""Trains token models: anything with `.loss(batch, visibility=..., key=...) -> (loss, metrics)`."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from ml_collections import ConfigDict

from hiermusic.tokens.visibility import Visibility
from hiermusic.train.log import Log
from hiermusic.train.optimiser import OptimiserConfig, average
from hiermusic.train.stage import Metrics

if TYPE_CHECKING:
    import grain


class LMState(nnx.Module):
    """A model, its running average if it has one, and its optimiser."""

    def __init__(self, model: nnx.Module, transform: optax.GradientTransformation, averaged: bool):
        self.model = model
        if averaged:
            self.ema = nnx.clone(model)
        self.optimiser = nnx.Optimizer(model, transform, wrt=nnx.Param)


class LMStage:
    """Trains a token model on batches that name who sees whom; see `stage.Stage`.

    Args:
      config: reads `train.steps`, the optimiser's fields (see `OptimiserConfig`), and `train.ema_decay` (0 or left out:
        no average is kept).
      make_model: rngs -> the model.
      train: an endless data set of pairs (`Visibility`, batch).
      valid: a finite one.
      prepare: called with the fresh state, to load pretrained weights into `.model`.
    """

    def __init__(
        self,
        config: ConfigDict,
        make_model: Callable[[nnx.Rngs], nnx.Module],
        *,
        train: Callable[[], "grain.MapDataset"],
        valid: Callable[[], "grain.MapDataset | None"],
        prepare: Callable[[nnx.Module], None] = lambda module: None,
    ):
        self.make_model, self.train_batches, self.valid_batches, self._prepare = make_model, train, valid, prepare
        self.optimiser = OptimiserConfig.of(config.train)
        self.steps, self.ema_decay = config.train.steps, config.train.get("ema_decay", 0.0)
        self.rate = self.optimiser.rate(self.steps)

    def create(self, rngs: nnx.Rngs) -> LMState:
        model = self.make_model(rngs)
        return LMState(model, self.optimiser.transform(model, self.steps), self.ema_decay > 0)

    def prepare(self, module: LMState) -> None:
        self._prepare(module)
        if self.ema_decay:
            average(module.ema, module.model, 0.0)

    def step(self, module: LMState, batch: Mapping[str, jax.Array], task: Visibility, key: jax.Array) -> Metrics:
        def loss(model):
            return model.loss(batch, visibility=task, key=key)

        (_, metrics), gradients = nnx.value_and_grad(loss, has_aux=True)(module.model)
        metrics = {
            **_measured(metrics),
            "grad_norm": optax.global_norm(gradients),
            "learning_rate": self.rate(module.optimiser.step[...]),
        }
        module.optimiser.update(module.model, gradients)
        if self.ema_decay:
            average(module.ema, module.model, self.ema_decay, module.optimiser.step[...])
        return metrics

    def evaluate(self, module: LMState, batch: Mapping[str, jax.Array], task: Visibility, key: jax.Array) -> Metrics:
        model = module.ema if self.ema_decay else module.model
        return _measured(model.loss(batch, visibility=task)[1])

    def showcase(self, module: LMState, log: Log, step: int) -> None:
        """Nothing: what a token model has to show needs a codec."""


def _measured(metrics: Metrics) -> Metrics:
    """Levels without a target in the batch have no cross-entropy, rather than one of 0."""
    metrics = dict(metrics)
    if "count_K" in metrics:
        metrics["ce_K"] = jnp.where(metrics.pop("count_K") > 0, metrics["ce_K"], jnp.nan)
    return metrics
