"""One line a weight: shape, logical axes and initialiser stand together, and everything else is derived from them."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers

Axes = Sequence[str | None]


def weight(rngs: nnx.Rngs, shape: Sequence[int], axes: Axes, init: Callable = initializers.normal(0.02)) -> nnx.Param:
    """A float32 parameter drawn from `init(key, shape, dtype)`.

    Args:
      rngs: source of the `params` key.
      shape: the array's shape.
      axes: one logical axis name (see `parallel.mesh.Rules`) or None for every dimension.
      init: a `jax.nn.initializers` function.
    Raises:
      ValueError: when `axes` and `shape` differ in length.
    """
    if len(shape) != len(axes):
        raise ValueError(f"a weight of shape {tuple(shape)} needs {len(shape)} logical axes, not {tuple(axes)}")
    return nnx.Param(init(rngs.params(), tuple(shape), jnp.float32), axes=tuple(axes))


def zeros(rngs: nnx.Rngs, shape: Sequence[int], axes: Axes) -> nnx.Param:
    """A float32 parameter that starts at 0; arguments as in `weight`."""
    return weight(rngs, shape, axes, initializers.zeros)


def ones(rngs: nnx.Rngs, shape: Sequence[int], axes: Axes) -> nnx.Param:
    """A float32 parameter that starts at 1; arguments as in `weight`."""
    return weight(rngs, shape, axes, initializers.ones)
