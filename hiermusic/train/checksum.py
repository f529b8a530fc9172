"""Checksums of what a checkpoint holds: the same however the arrays are split, so they are computed where these lie."""

import json
import zlib
from collections.abc import Mapping
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

_WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}
_SMALL = 2**20  # of so many elements the sum takes less time than a program of their shape takes to compile


def of_arrays(leaves: Mapping[str, Any]) -> dict[str, int]:
    """A 32-bit number an array, which any one changed bit changes, and any other damage but for one time in 2**31.

    Args:
      leaves: arrays or random keys by name; of several processes each gives the same.
    """
    # one after another: processes that have several sums under way may wait for each other in different ones
    return {name: _of_array(leaf) for name, leaf in leaves.items()}


def _of_array(leaf: Any) -> int:
    if leaf.size <= _SMALL and getattr(leaf, "is_fully_addressable", True):
        return int(_sum_here(np.asarray(_data(leaf))))
    # what lies on one device, such as a codec that a token model begins from, takes no part in the mesh in force
    devices = getattr(leaf, "devices", set)()
    with jax.set_mesh(Mesh(list(devices), ("one",))) if len(devices) == 1 else nullcontext():
        return int(jax.device_get(_program(_everywhere(leaf))(_data(leaf))))


def of_values(values: Mapping[str, int | str]) -> int:
    """The same of plain values."""
    return zlib.crc32(json.dumps(dict(values), sort_keys=True).encode())


def _data(leaf: Any) -> Any:
    return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def _everywhere(leaf: Any) -> NamedSharding | None:
    sharding = getattr(leaf, "sharding", None)
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else None


@lru_cache
def _program(out: NamedSharding | None) -> Any:
    return jax.jit(_sum, out_shardings=out)


def _sum(array: jax.Array) -> jax.Array:
    """The sum over all elements of their bits times an odd number that is drawn from their place, modulo 2**32."""
    if array.dtype == jnp.bool_:
        array = array.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(array, _WORDS[array.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        place = place * np.uint32(size & 0xFFFFFFFF) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    return _mixed(bits, place)


def _sum_here(array: np.ndarray) -> np.ndarray:
    """The same of an array in this process's memory."""
    bits = array.reshape(-1).view(_WORDS[array.dtype.itemsize]).astype(np.uint32)
    return _mixed(bits, np.arange(bits.size, dtype=np.uint32))


def _mixed(bits: Any, place: Any) -> Any:
    for factor, shift in ((0x9E3779B1, 15), (0x85EBCA77, 13)):
        place = place * np.uint32(factor)
        place = place ^ (place >> np.uint32(shift))
    return (bits * (place | np.uint32(1))).sum(dtype=np.uint32)
