"""What a run with adapters borrows: the weights of the run that it adapts, which are in no checkpoint of its own.

A checkpoint keeps their fingerprint instead, so that adapters are not put upon weights that they were not trained with.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hiermusic.errors import UserError
from hiermusic.nn.param import Lent
from hiermusic.train import checksum


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


def fingerprint(state: nnx.State) -> dict[str, str]:
    """Shape and checksum of everything that a training state borrows, by dotted name; nothing where it borrows nothing.

    Every process of a run must come here.
    """
    flat = nnx.to_flat_state(nnx.filter_state(state, Lent))
    return _fingerprint({".".join(map(str, path[1:])): variable.get_value() for path, variable in flat})


def check(weights: Mapping[str, np.ndarray], known: Mapping[str, str], base: str, whose: str) -> None:
    """UserError where a base is no longer what adapters were trained with.

    Args:
      weights: of the base now, by dotted name.
      known: their fingerprint then; empty of a version that kept none.
      base, whose: what the base and the run with adapters are called.
    """
    now = _fingerprint({name: weights[name] for name in known if name in weights})
    if changed := [name for name in known if now.get(name) != known[name]]:
        raise UserError(
            f"{whose} was trained upon {base}, where {len(changed)} of {len(known)} weights are others by now, as "
            f"{changed[0]}: put back what it was trained upon, or train it anew"
        )


def _fingerprint(weights: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{weight.shape} {_checksum(weight):08x}" for name, weight in weights.items()}


def _checksum(weight: Any) -> int:
    if isinstance(weight, np.ndarray):  # which every process has read
        # a base may be kept in 16 bits, adapters lie beside 32; on the host: the mesh in force may have more devices
        weight = jax.device_put(weight.astype(np.float32, copy=False), jax.local_devices()[0])
    return checksum.of_arrays({"": weight.astype(jnp.float32)})[""]


def placed(weight: np.ndarray, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    """A weight in the type and under the sharding that are wanted."""
    return jax.make_array_from_callback(
        wanted.shape, wanted.sharding, lambda index: np.asarray(weight[index], wanted.dtype)
    )
