"""What a run with adapters borrows: the weights of the run that it adapts, which are in no checkpoint of its own."""

from collections.abc import Mapping

import jax
import numpy as np
from flax import nnx

from hiermusic.errors import UserError
from hiermusic.nn.param import Lent


def own(state: nnx.State) -> nnx.State:
    """What of a training state is in the run's own checkpoints."""
    return nnx.filter_state(state, nnx.Not(Lent))


def borrowed(abstract: nnx.State, weights: Mapping[str, np.ndarray], base: str) -> nnx.State:
    """What of a training state is another run's, put in its place.

    Args:
      abstract: the whole state, with shardings.
      weights: of the other run, by dotted name.
      base: what it is called.
    Raises:
      UserError: weights of another model.
    """
    found = []
    for path, variable in nnx.to_flat_state(nnx.filter_state(abstract, Lent)):
        name, wanted = ".".join(map(str, path[1:])), variable.get_value()  # behind `model` or `ema`
        if name not in weights or weights[name].shape != wanted.shape:
            raise UserError(f"{base} is of another model than the one that was adapted: it has no such {name}")
        found.append((path, variable.replace(placed(weights[name], wanted))))
    return nnx.from_flat_state(found)


def placed(weight: np.ndarray, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    """A weight in the type and under the sharding that are wanted."""
    return jax.make_array_from_callback(
        wanted.shape, wanted.sharding, lambda index: np.asarray(weight[index], wanted.dtype)
    )
