"""One line a weight: shape, logical axes and initialiser stand together, and everything else is derived from them."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

Axes = Sequence[str | None]

_NORMAL = initializers.normal(0.02)


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
    return nnx.Param(init(rngs.params(), tuple(shape), jnp.float32), axes=tuple(axes), rate=rate, decay=decay)


def zeros(rngs: nnx.Rngs, shape: Sequence[int], axes: Axes) -> nnx.Param:
    """A float32 parameter that starts at 0; arguments as in `weight`."""
    return weight(rngs, shape, axes, initializers.zeros, decay=False)


def ones(rngs: nnx.Rngs, shape: Sequence[int], axes: Axes) -> nnx.Param:
    """A float32 parameter that starts at 1; arguments as in `weight`."""
    return weight(rngs, shape, axes, initializers.ones, decay=False)


def in_type(parameter: nnx.Param, dtype: str) -> nnx.Param:
    """A parameter of another type, of which the same is told."""
    return nnx.Param(parameter[...].astype(dtype), **parameter.get_metadata())


def parameter_counts(module: nnx.Module) -> dict[str, int]:
    """Numbers of parameters by dotted name; `module` may be abstract (`nnx.eval_shape`), then nothing is allocated."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.state(module, nnx.Param))
    return {_dotted(path): math.prod(leaf.shape) for path, leaf in leaves}


def _dotted(path) -> str:
    return ".".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))
