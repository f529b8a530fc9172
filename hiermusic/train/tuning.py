"""Fine-tuning: which weights a run trains and how fast, and LoRA's adapters beside those that it only borrows.

Patterns name weights by their dotted names (`hiermusic inspect --workdir=RUN --weights` prints them) or the ends of
these, with `*` for anything: `code_head`, `attention.query`, `trunk.layers.*`. Of a weight that all layers have
stacked, `trunk.layers.3.attention.query` is that of one layer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array

from hiermusic.errors import UserError, brief
from hiermusic.nn import param
from hiermusic.nn.param import Adapter, Frozen, Lent
from hiermusic.parallel.mesh import constrain

Path = tuple[Any, ...]

DOWN, UP = "_lora_a", "_lora_b"  # behind a matrix's name, those of its adapter: into `rank` numbers, and out again
_NAMED = "print the names of a run's weights with `hiermusic inspect --workdir=RUN --weights`"


@dataclass(frozen=True)
class TuningConfig:
    """What of a model is trained; fields of `config.train` and `config.lora`.

    Args:
      freeze: patterns of weights that stay what they begin as.
      rates: "PATTERN=FACTOR" each: what multiplies the learning rate of some weights; the last that matches counts.
      rank: of the adapters; 0 = none, and every weight that is not frozen is trained.
      alpha: an adapter adds alpha / rank times the product of its two matrices.
      targets: patterns of the matrices that get one.
      beside: patterns of weights that are trained whole beside them. All others are the `base`'s, and stay so.
      base: the run that is started from, WORKDIR or WORKDIR@STEP, "" for none.
    Raises:
      UserError: what is no pattern or factor, or a number out of its range.
    """

    freeze: tuple[str, ...] = ()
    rates: tuple[str, ...] = ()
    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    base: str = ""

    def __post_init__(self):
        for field, name in {"freeze": "train", "rates": "train", "targets": "lora", "beside": "lora"}.items():
            if not all(isinstance(entry, str) and entry for entry in getattr(self, field)):
                example = "('trunk.layers.*=0.1',)" if field == "rates" else "('code_head', 'trunk.layers.0.*')"
                raise UserError(f"{name}.{field}={getattr(self, field)}: give texts, such as {example}")
        for entry in self.rates:
            _factor(entry)
        if type(self.rank) is not int or self.rank < 0:
            raise UserError(f"lora.rank={self.rank}: give a whole number, 0 for no adapters")
        if not 0 < self.alpha < math.inf:
            raise UserError(f"lora.alpha={self.alpha}: give a finite number above 0")
        if self.rank and not self.base:
            raise UserError(f"lora.rank={self.rank}: adapters need a model to adapt: name its run with init_from")
        if self.rank and not self.targets:
            raise UserError("lora.targets is empty: name the matrices that get an adapter, or set lora.rank=0")

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "TuningConfig":
        """That of a whole configuration in JSON values, which an imported model's need not have."""
        train, lora = fields.get("train", {}), fields.get("lora", {})
        texts = {name: train.get(name, ()) for name in ("freeze", "rates")}
        texts |= {name: lora.get(name, ()) for name in ("targets", "beside")}
        tuples = {name: (entry,) if isinstance(entry, str) else tuple(entry) for name, entry in texts.items()}
        return cls(
            rank=lora.get("rank", 0), alpha=lora.get("alpha", cls.alpha), base=fields.get("init_from") or "", **tuples
        )

    def check_whole(self, what: str) -> None:
        """UserError where adapters are asked for and `what` can have none."""
        if self.rank:
            raise UserError(f"lora.rank={self.rank}: {what} has no adapters: set it to 0, and freeze by name instead")

    def apply(self, model: nnx.Module, rngs: nnx.Rngs) -> nnx.Module:
        """The model with all that is not trained set still, and a fresh adapter, which changes nothing, at each target.

        Raises:
          UserError: a pattern that fits no weight, a target that is no matrix, or nothing left to train.
        """
        weights = dict(nnx.to_flat_state(nnx.state(model, nnx.Param)))
        calls = {path: _called(path, weight) for path, weight in weights.items()}
        self._check(calls)
        targets, whole, share = [], set(), {}
        for path, called in calls.items():
            share[path] = [self._rate(names) for names in called]
            if not any(share[path]):
                continue
            if not self.rank or any(_fits(names, self.beside) for names in called):
                whole.add(path)
            elif any(_fits(names, self.targets) for names in called):
                targets.append(path)
        if not whole and not targets:
            raise UserError("train.freeze leaves nothing to train: name fewer weights")

        def still(keys: Path, variable: nnx.Variable) -> nnx.Variable:
            path = tuple(_key(key) for key in keys)
            if not isinstance(variable, nnx.Param) or path in whole:
                return variable
            return (Lent if self.rank else Frozen)(variable.get_value(), **variable.get_metadata())

        model = jax.tree_util.tree_map_with_path(still, model, is_leaf=lambda x: isinstance(x, nnx.Variable))
        for path in targets:
            parent = _at(model, path[:-1])
            for name, adapter in self._adapter(".".join(map(str, path)), weights[path], rngs).items():
                setattr(parent, path[-1] + name, adapter)
        return model

    def transform(self, whole: optax.GradientTransformation, model: nnx.Module) -> optax.GradientTransformation:
        """What makes updates at each weight's own share of the learning rate, where `whole` makes them at all of it."""
        state = nnx.state(model, nnx.Param)
        shares = {path: self._shares(path, weight) for path, weight in nnx.to_flat_state(state)}
        if all((share == 1).all() for share in shares.values()):
            return whole

        def times(shares: Mapping[Path, np.ndarray]) -> optax.GradientTransformation:
            flat = [(path, weight.replace(shares[path])) for path, weight in nnx.to_flat_state(state)]
            factors = nnx.as_pure(nnx.from_flat_state(flat))
            return optax.stateless(lambda updates, _: jax.tree.map(jnp.multiply, updates, factors))

        # what stands still in one layer has no part in the norm that gradients are clipped by
        moved = times({path: (share > 0).astype(np.float32) for path, share in shares.items()})
        return optax.chain(moved, whole, times(shares))

    def _check(self, calls: Mapping[Path, list[list[str]]]) -> None:
        patterns = [("train.freeze", pattern) for pattern in self.freeze]
        patterns += [("train.rates", _factor(entry)[0]) for entry in self.rates]
        if self.rank:
            patterns += [("lora.targets", pattern) for pattern in self.targets]
            patterns += [("lora.beside", pattern) for pattern in self.beside]
        elif self.beside:
            raise UserError(f"lora.beside={self.beside} goes with adapters: set lora.rank, or leave it out")
        every = [name for called in calls.values() for names in called for name in names]
        adapters = [name + end for name in every for end in (DOWN, UP)] if self.rank else []
        for field, pattern in patterns:
            if not any(_fits([name], [pattern]) for name in every + (adapters if field == "train.rates" else [])):
                raise UserError(f"{field}: no weight is called '{brief(pattern)}': {_NAMED}")

    def _rate(self, names: Sequence[str]) -> float:
        if _fits(names, self.freeze):
            return 0.0
        rates = [factor for pattern, factor in map(_factor, self.rates) if _fits(names, [pattern])]
        return rates[-1] if rates else 1.0

    def _shares(self, path: Path, weight: nnx.Param) -> np.ndarray:
        """What multiplies the updates of a weight: one number, or one a layer. An adapter goes by its matrix's too."""
        called = _called(path, weight)
        if isinstance(weight, Adapter):
            called = [[end for name in names for end in (name[: -len(DOWN)], name)] for names in called]
        shares = np.asarray([self._rate(names) for names in called], np.float32)
        return shares.reshape(-1, *[1] * (weight.ndim - 1)) if len(shares) > 1 else shares[0]

    def _adapter(self, name: str, matrix: nnx.Param, rngs: nnx.Rngs) -> dict[str, Adapter]:
        axes = matrix.get_metadata().get("axes") or (None,) * matrix.ndim
        first = int(axes[0] == "layers")
        if len(axes) - first < 2:
            raise UserError(f"lora.targets: {name} is no matrix: leave it out, or train it whole with lora.beside")
        # queries, keys and values read one dimension and make two, all else makes the last one of what stands before
        middle = first + 1 if axes[first] == "embed" else len(axes) - 1
        front, back = matrix.shape[:middle], matrix.shape[middle:]
        draw = initializers.variance_scaling(
            1 / 3, "fan_in", "uniform", tuple(range(first, middle)), -1, tuple(range(first))
        )
        down = draw(param.key(rngs), (*front, self.rank), jnp.float32)
        up = jnp.zeros((*matrix.shape[:first], self.rank, *back), jnp.float32)
        return {
            DOWN: Adapter(down, axes=(*axes[:middle], "rank"), scale=self.alpha / self.rank),
            UP: Adapter(up, axes=(*axes[:first], "rank", *axes[middle:])),
        }


def merged(model: nnx.Module) -> nnx.Module:
    """The model as its adapters make it, without them; itself where it has none. Gradients go through to them."""
    adapters = [(path, adapter) for path, adapter in nnx.to_flat_state(nnx.state(model, Adapter))]
    downs = {path: adapter for path, adapter in adapters if path[-1].endswith(DOWN)}
    if not downs:
        return model
    model = jax.tree.map(lambda leaf: leaf, model)
    for path, down in downs.items():
        parent, name = _at(model, path[:-1]), path[-1].removesuffix(DOWN)
        matrix, up = getattr(parent, name), getattr(parent, name + UP)
        facts = matrix.get_metadata()
        added = _added(down[...], up[...], matrix.shape, down.get_metadata()["scale"])
        setattr(parent, name, nnx.Param(matrix[...] + constrain(added, *facts["axes"]), **facts))
        delattr(parent, name + DOWN)
        delattr(parent, name + UP)
    return model


def averaged(model: nnx.Module) -> nnx.Module:
    """A copy of a model to keep its average in; what the model borrows is in memory once, for both."""
    copy = nnx.clone(model)
    for path, _ in nnx.to_flat_state(nnx.state(model, Lent)):
        setattr(_at(copy, path[:-1]), path[-1], getattr(_at(model, path[:-1]), path[-1]))
    return copy


def folded(base: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray], scale: float) -> dict[str, np.ndarray]:
    """The weights of a base as a run has made them, in float32, which it computes them in, whatever the base's type.

    Args:
      base: all weights by dotted name.
      own: what the run has trained, adapters and whole weights.
      scale: alpha / rank of the adapters.
    """
    weights = {name: weight.astype(np.float32, copy=False) for name, weight in base.items()}
    for name, value in own.items():
        if name.endswith(DOWN):
            matrix = name.removesuffix(DOWN)
            added = _added(jnp.asarray(value), jnp.asarray(own[matrix + UP]), base[matrix].shape, scale)
            weights[matrix] = weights[matrix] + np.asarray(added)
        elif not name.endswith(UP):
            weights[name] = value
    return weights


def _added(down: Array, up: Array, shape: Sequence[int], scale: float) -> Array:
    """What an adapter adds to a matrix of this shape, perhaps of several layers."""
    rank = down.shape[-1]
    layers = shape[0] if down.ndim + up.ndim - 2 > len(shape) else 1
    product = jnp.matmul(
        down.reshape(layers, -1, rank), up.reshape(layers, rank, -1), precision=jax.lax.Precision.HIGHEST
    )
    return scale * product.reshape(shape)


def _factor(entry: str) -> tuple[str, float]:
    pattern, _, text = entry.rpartition("=")
    try:
        factor = float(text)
    except ValueError:
        factor = -1.0
    if not pattern or not 0 <= factor < math.inf:
        raise UserError(f"train.rates: '{brief(entry)}' is no PATTERN=FACTOR, such as trunk.layers.*=0.1")
    return pattern, factor


def _fits(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, p) or fnmatchcase(name, f"*.{p}") for name in names for p in patterns)


def _called(path: Path, weight: nnx.Variable) -> list[list[str]]:
    """What a weight is called: one list of names, or one for each of the layers that it is of."""
    words = list(map(str, path))
    axes = weight.get_metadata().get("axes") or (None,)
    if axes[0] != "layers" or "layers" not in words:
        return [[".".join(words)]]
    at = words.index("layers") + 1
    return [[".".join(words), ".".join([*words[:at], str(i), *words[at:]])] for i in range(weight.shape[0])]


def _key(key: Any) -> Any:
    return next(getattr(key, name) for name in ("name", "key", "idx") if hasattr(key, name))


def _at(module: Any, path: Path) -> Any:
    for key in path:
        module = module[key] if isinstance(key, int) else getattr(module, key)
    return module
