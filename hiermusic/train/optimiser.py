"""Optimisers and learning-rate schedules from a few fields."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from optax import contrib

from hiermusic.errors import UserError
from hiermusic.nn.param import Lent

OPTIMISERS = ("adamw", "adam", "muon")
SCHEDULES = ("constant", "cosine", "wsd", "exponential")

_ADAM_RMS = 0.2  # of AdamW's updates, which Muon's are scaled to: one learning rate and decay then serve both
_INNER = {"mlp", "heads", "kv_heads", "head_dim"}  # axes on the far side of a hidden matrix from "embed"


@dataclass(frozen=True)
class OptimiserConfig:
    """Adam, AdamW or Muon with a warmed-up schedule; fields of `config.train`.

    Args:
      optimiser: "adamw" (decoupled weight decay), "adam" (none), or "muon": momentum, orthogonalised, for the hidden
        matrices (see `muon_dimensions`), each layer's by itself, and AdamW for all else. Muon's updates are scaled to
        the size of AdamW's (Moonlight, arXiv:2502.16982), so that an AdamW run's learning rate and decay still fit.
      learning_rate: the peak, reached after `warmup_steps` of linear warmup.
      schedule: what follows the warmup: "constant"; "cosine" down to `final_share` of the peak at `decay_steps`; "wsd",
        the peak until the last `decay_share` of `decay_steps`, then linearly down to `final_share`; "exponential",
        times `gamma` a step (DAC's 0.999996).
      warmup_steps: updates of linear warmup.
      decay_steps: updates after which the decay has ended, warmup included; 0 = the length of the run.
      decoder_start: of a codec's run (see `codec.PhasesConfig`): where the schedule has come to its end and begins
        anew, warm-up and all, for the decoder alone.
      decay_share: share of `decay_steps`, or of either part, over which "wsd" decays.
      final_share: final learning rate / peak.
      gamma: factor an update of "exponential".
      betas: decay of the first and second moments; Muon's momentum is the customary 0.95.
      weight_decay: of "adamw" and "muon", on matrices only: vectors, norms and biases are left alone.
      clip_norm: global gradient norm to clip to; 0 = no clipping.
      eps: added to the root of the second moment.
    Raises:
      UserError: an unknown optimiser or schedule, or a number out of its range.
    """

    optimiser: str = "adamw"
    learning_rate: float = 4e-4
    schedule: str = "cosine"
    warmup_steps: int = 2000
    decay_steps: int = 0
    decoder_start: int | None = None
    decay_share: float = 0.2
    final_share: float = 0.1
    gamma: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    eps: float = 1e-8

    def __post_init__(self):
        for field, options in (("optimiser", OPTIMISERS), ("schedule", SCHEDULES)):
            if getattr(self, field) not in options:
                raise UserError(f"train.{field} is {getattr(self, field)!r}; choose one of {', '.join(options)}")
        for field in ("learning_rate", "warmup_steps", "decay_steps", "weight_decay", "clip_norm", "eps"):
            if not 0 <= getattr(self, field) < math.inf:
                raise UserError(f"train.{field} is {getattr(self, field)}; it must be finite and not negative")
        for field in ("decay_share", "final_share", "gamma"):
            if not 0 <= getattr(self, field) <= 1:
                raise UserError(f"train.{field} is {getattr(self, field)}; it must lie between 0 and 1")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"train.betas is {self.betas}; it must be two numbers in [0, 1)")

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "OptimiserConfig":
        """The config of a mapping that may hold fields of others."""
        known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        return cls(**{**known, "betas": tuple(known.get("betas", cls.betas))})

    def rate(self, steps: int) -> optax.Schedule:
        """The learning rate as a function of the number of updates made, for a run of `steps` updates."""
        end = self.decay_steps or steps
        alone = self.decoder_start or 0
        if not 0 < alone < end:
            return self._schedule(end)
        return optax.join_schedules([self._schedule(alone), self._schedule(end - alone)], [alone])

    def _schedule(self, steps: int) -> optax.Schedule:
        peak, warmup = self.learning_rate, self.warmup_steps
        end = max(steps, warmup + 1)
        final = peak * self.final_share
        if self.schedule == "constant":
            pieces, boundaries = [optax.constant_schedule(peak)], []
        elif self.schedule == "cosine":
            pieces, boundaries = [optax.cosine_decay_schedule(peak, end - warmup, self.final_share)], []
        elif self.schedule == "wsd":
            decay = max(1, min(round(end * self.decay_share), end - warmup))
            pieces = [optax.constant_schedule(peak), optax.linear_schedule(peak, final, decay)]
            boundaries = [end - decay]
        else:
            pieces, boundaries = [optax.exponential_decay(peak, 1, self.gamma)], []
        if warmup:
            # the first update is made at peak / warmup: at rate 0 it would be paid for nothing
            pieces = [optax.linear_schedule(peak / warmup, peak, max(warmup - 1, 1)), *pieces]
            boundaries = [warmup, *boundaries]
        return optax.join_schedules(pieces, boundaries)

    def transform(self, model: nnx.Module, steps: int) -> optax.GradientTransformation:
        """The optax transformation for `model`'s parameters in a run of `steps` updates.

        A parameter's `rate` (see `nn.param.weight`) multiplies its Adam update, and its root a Muon update, whose
        largest singular value rather than its entries is to keep its effect at every width. Weight decay does not
        scale with it: a wider model forgets as slowly as a narrow one.
        Raises:
          UserError: Muon for a model without hidden matrices.
        """
        b1, b2 = self.betas
        direction = adam = optax.scale_by_adam(b1=b1, b2=b2, eps=self.eps)
        scales = _of_params(model, lambda param, axes: param.get_metadata().get("rate", 1.0))
        if self.optimiser == "muon":
            dimensions = muon_dimensions(model)
            kinds = jax.tree.map(lambda spec: "muon" if _is_spec(spec) else "adam", dimensions, is_leaf=_is_leaf)
            if "muon" not in jax.tree.leaves(kinds):
                raise UserError('train.optimiser is "muon", but the model has no hidden matrices: choose "adamw"')
            muon = contrib.scale_by_muon(weight_dimension_numbers=dimensions)
            direction = optax.partition({"muon": muon, "adam": adam}, kinds)
            scales = _of_params(model, _muon_scale)
        clip = [optax.clip_by_global_norm(self.clip_norm)] if self.clip_norm else []
        scaled = any(scale != 1 for scale in jax.tree.leaves(scales))
        scale = [optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, scales))] if scaled else []
        decayed = self.optimiser != "adam" and self.weight_decay > 0
        decay = [optax.add_decayed_weights(self.weight_decay, decay_mask(model))] if decayed else []
        return optax.chain(*clip, direction, *scale, *decay, optax.scale_by_learning_rate(self.rate(steps)))


def decay_mask(model: nnx.Module) -> nnx.State:
    """True for the parameters weight decay applies to: matrices and beyond, the stacking axis `layers` not counted, but
    no biases and scales of whatever shape, and no tables of positions and levels."""

    def decays(param: nnx.Param, axes: Sequence[str | None]) -> bool:
        return param.get_metadata().get("decay", True) and sum(axis != "layers" for axis in axes) >= 2

    return _of_params(model, decays)


def muon_dimensions(model: nnx.Module) -> nnx.State:
    """Over which dimensions each hidden matrix sums and which it yields, `optax.MaskedNode` for all other parameters.

    Hidden are, by their logical axes, the matrices between `embed` and inner axes: queries, keys and values of all
    heads together, the way back from the heads, feed-forward and adaptive norms. Tables, heads of levels, vectors and
    convolutions are not. The stacking axis `layers` belongs to neither side, so that every layer has its own matrix.
    """

    return _of_params(model, lambda param, axes: _dimensions(axes) or optax.MaskedNode())


def _dimensions(axes: Sequence[str | None]) -> contrib.MuonDimensionNumbers | None:
    places = [place for place, axis in enumerate(axes) if axis != "layers"]
    names = [axes[place] for place in places]
    if len(names) > 1 and names[0] == "embed" and set(names[1:]) <= _INNER | {None}:
        return contrib.MuonDimensionNumbers(tuple(places[:1]), tuple(places[1:]))
    if len(names) > 1 and names[-1] == "embed" and set(names[:-1]) <= _INNER:
        return contrib.MuonDimensionNumbers(tuple(places[:-1]), tuple(places[-1:]))
    return None


def _muon_scale(param: nnx.Param, axes: Sequence[str | None]) -> float:
    """What multiplies a parameter's update under Muon, its AdamW ones included."""
    rate = param.get_metadata().get("rate", 1.0)
    spec = _dimensions(axes)
    if spec is None:
        return rate
    # an orthogonal matrix of n x m has entries of size 1 / sqrt(max(n, m))
    longer = max(math.prod(param.shape[place] for place in side) for side in spec)
    return math.sqrt(rate * longer) * _ADAM_RMS


def _is_spec(leaf: Any) -> bool:
    return isinstance(leaf, contrib.MuonDimensionNumbers)


def _is_leaf(leaf: Any) -> bool:
    return isinstance(leaf, contrib.MuonDimensionNumbers | optax.MaskedNode)


def _of_params(model: nnx.Module, fact: Callable[[nnx.Param, Sequence[str | None]], Any]) -> nnx.State:
    """A fact about each parameter and its logical axes, in the structure of the parameters."""

    def one(param: nnx.Param) -> nnx.Param:
        return param.replace(fact(param, param.get_metadata().get("axes") or (None,) * param.ndim))

    params = nnx.state(model, nnx.Param)
    return nnx.as_pure(jax.tree.map(one, params, is_leaf=lambda x: isinstance(x, nnx.Variable)))


def begin_average(ema: nnx.Module, model: nnx.Module) -> None:
    """Makes the running average of a model that no update has moved yet: its weights, in buffers of their own."""

    def copied(old: nnx.Variable, new: nnx.Variable) -> nnx.Variable:
        if isinstance(new, Lent):  # of both, and nobody's to change
            return old
        array = new[...]  # not copied by computing, which would take a program for each shape
        return new.replace(jax.device_put(array, array.sharding, may_alias=False))

    _update(ema, model, copied)


def average(ema: nnx.Module, model: nnx.Module, decay: float, updates: int | jax.Array) -> None:
    """Moves the running average of a model's weights; what no gradient trains is copied.

    Args:
      ema: the average, changed in place.
      model: the weights after the newest update.
      decay: weight of the past, once there is enough of it: a young average would remember the random start.
      updates: made so far.
    """
    decay = jnp.minimum(decay, updates / (9.0 + updates))

    def move(old: nnx.Variable, new: nnx.Variable) -> nnx.Variable:
        if isinstance(new, nnx.Param):
            return new.replace(old[...] + (1 - decay) * (new[...] - old[...]))  # what stands still stays to the bit
        if isinstance(new, Lent):  # of both, and nobody's to change
            return old
        return new.replace(jnp.copy(new[...]))  # a buffer of two owners could not be donated

    _update(ema, model, move)


def _update(ema: nnx.Module, model: nnx.Module, move: Callable[[nnx.Variable, nnx.Variable], nnx.Variable]) -> None:
    states = nnx.state(ema), nnx.state(model)
    nnx.update(ema, jax.tree.map(move, *states, is_leaf=lambda x: isinstance(x, nnx.Variable)))
