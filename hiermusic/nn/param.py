"""One line a weight: shape, logical axes and initialiser stand together, and everything else is derived from them."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, PRNGKeyArray

Axes = Sequence[str | None]

_NORMAL = initializers.normal(0.02)


class Frozen(nnx.Variable):
    """A number that this run does not train, saved and sharded like a weight."""


class Lent(Frozen):
    """One that is another run's, and is in no checkpoint of this one."""


class Adapter(nnx.Param):
    """A half of what LoRA adds to a matrix (see `train.tuning`)."""


def weight(
    rngs: nnx.Rngs,
    shape: Sequence[int],
    axes: Axes,
    init: Callable = _NORMAL,
    rate: float = 1.0,
    decay: bool = True,
) -> nnx.Param:
    """A float32 parameter drawn from `init(key, shape, dtype)`.

    Args:
      rngs: source of the `params` key.
      shape: the array's shape.
      axes: one logical axis name (see `parallel.mesh.Rules`) or None for every dimension.
      init: a `jax.nn.initializers` function.
      rate: Adam's learning rate for it, relative to the others'; kept in the metadata beside `axes`.
      decay: whether weight decay applies to it, if it is a matrix; likewise kept.
    Raises:
      ValueError: when `axes` and `shape` differ in length.
    """
    if len(shape) != len(axes):
        raise ValueError(f"a weight of shape {tuple(shape)} needs {len(shape)} logical axes, not {tuple(axes)}")
    return nnx.Param(init(key(rngs), tuple(shape), jnp.float32), axes=tuple(axes), rate=rate, decay=decay)


def zeros(rngs: nnx.Rngs, shape: Sequence[int], axes: Axes) -> nnx.Param:
    """A float32 parameter that starts at 0; arguments as in `weight`."""
    return weight(rngs, shape, axes, initializers.zeros, decay=False)


def ones(rngs: nnx.Rngs, shape: Sequence[int], axes: Axes) -> nnx.Param:
    """A float32 parameter that starts at 1; arguments as in `weight`."""
    return weight(rngs, shape, axes, initializers.ones, decay=False)


def in_type(parameter: nnx.Param, dtype: str) -> nnx.Param:
    """A parameter of another type, of which the same is told."""
    return nnx.Param(parameter[...].astype(dtype), **parameter.get_metadata())


def key(rngs: nnx.Rngs) -> PRNGKeyArray:
    """What `rngs.params()` gives, at the price of `put`."""
    stream = rngs.params
    count = stream.count.get_value()
    put(stream.count, count + 1)
    return jax.random.fold_in(stream.key.get_value(), count)


def put(variable: nnx.Variable, value: Array) -> None:
    """`variable[...] = value` of the same shape and type, in a time that does not depend on the program around it.

    While a program is traced, flax asks both arrays for their sharding, which they have not, and JAX looks through all
    of the program for what to say in the error that nobody reads: of a large one, a third of the time of its tracing.
    """
    variable.set_value(value)


def parameter_counts(module: nnx.Module) -> dict[str, int]:
    """Numbers of parameters by dotted name; `module` may be abstract (`nnx.eval_shape`), then nothing is allocated."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(module, nnx.Param))
    return {_dotted(path): math.prod(leaf.shape) for path, leaf in leaves}


def _dotted(path) -> str:
    return ".".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
