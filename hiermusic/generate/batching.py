"""Ragged requests as arrays of few different shapes, so that few programs are compiled."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Int32

from hiermusic.errors import UserError
from hiermusic.nn.transformer import Cache
from hiermusic.parallel.mesh import AXES, Rules, constrain

LEAST = 64
SHORTEST = 2048  # positions of a cache: below, what is attended to costs less than another program
MANY = 8  # rows, of which a cache costs more than programs from a quarter of these positions on


def bucket(n: int) -> int:
    """The least size >= n of a ladder with steps of 64, or of 1/8 to 1/16 of n where that is more; 0 stays 0."""
    step = LEAST
    while step * 16 < n:
        step *= 2
    return -(-n // step) * step


def reaching(n: int, most: int, rows: int) -> int:
    """A length >= n of a ladder of caches of `rows` that ends at `most`: each step attends to all of its cache."""
    length = SHORTEST if rows < MANY else SHORTEST // 4
    while length < n:
        length = length * 4 // 3 if length % 3 == 0 else length * 3 // 2
    return most if length * 8 > most * 7 else length


def padded(rows: Sequence[Sequence[int]], length: int, *, left: bool) -> Int32[np.ndarray, "B length"]:
    """Rows of unequal length in one array, -1 in front of (left) or behind what is shorter."""
    out_BS = np.full((len(rows), length), -1, np.int32)
    for b, row in enumerate(rows):
        start = length - len(row) if left else 0
        out_BS[b, start : start + len(row)] = row
    return out_BS


def unconditional(
    prompts: Sequence[Sequence[int]], unprompted: Sequence[Sequence[int]] | None, guidance: float
) -> list[Sequence[int]]:
    """The prompts, and behind them the unconditional one of each when guidance asks for them."""
    if guidance == 1.0:
        return list(prompts)
    check_batch(prompts, unprompted=unprompted or ())
    return [*prompts, *unprompted]


def check_dropped(guidance: float, *lacks: Sequence[bool] | None) -> None:
    """UserError when the unconditional predictions of a sample of a guided batch are told all that the others are.

    Args:
      guidance: its scale; of 1 nothing is asked.
      lacks: of each kind of thing that is told, whether those of a sample lack it: B of them; None for nowhere.
    """
    told = [kind for kind in lacks if kind is not None]
    if guidance == 1.0 or (told and all(map(any, zip(*told, strict=True)))):
        return
    which = next((f"of sample {b} " for b, one in enumerate(zip(*told, strict=True)) if not any(one)), "")
    raise UserError(
        f"guidance {guidance} has nothing to drop: there is no prompt, condition or prefix {which}that the "
        "unconditional predictions lack; give one or set guidance to 1"
    )


def lacking(prompts: Sequence, unprompted: Sequence | None) -> list[bool] | None:
    """Whether each sample's unconditional predictions are told something else than the sample itself."""
    if unprompted is None:
        return None
    return [not np.array_equal(one, other) for one, other in zip(prompts, unprompted, strict=True)]


def spread(cache: Cache) -> Cache:
    """Under `jax.set_mesh`, the cache laid over its devices."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(AXES) <= set(mesh.axis_names):
        return cache
    return jax.tree.map(jax.lax.with_sharding_constraint, cache, cache_specs(cache, mesh.shape))


def everywhere(x: Array) -> Array:
    """Under `jax.set_mesh`, what is drawn on every device, so that each of several processes can read it."""
    return constrain(x, *(None,) * x.ndim)


def longer(cache: Cache, length: int) -> Cache:
    """A cache with room for `length` positions; the old one is given up array by array: never are two of it whole."""

    def one(old: Array) -> Array:
        new = _lengthened(old, length)
        old.delete()
        return new

    return jax.tree.map(one, cache)


@partial(jax.jit, static_argnums=1)
def _lengthened(x: Array, length: int) -> Array:
    """Of keys, values and positions alike, the second dimension is that of positions."""
    return jnp.pad(x, [(0, length - size if axis == 1 else 0) for axis, size in enumerate(x.shape)])


def cache_specs(cache: Cache, sizes: Mapping[str, int]) -> Cache:
    """How a cache lies on a mesh of these sizes: rows over the batch's devices and heads over the model's.

    A single row's heads lie over all of them; where they do not divide, over as many of the last axes as they do.
    """

    def split(x_XSH: Array) -> PartitionSpec:
        axes = [*Rules.batch, Rules.kv_heads]
        while x_XSH.shape[0] % math.prod(sizes[axis] for axis in axes):
            axes.pop(0)
        return PartitionSpec(tuple(axes) or None)

    keys, values = (tuple(map(split, part)) for part in (cache.keys, cache.values))
    return cache._replace(keys=keys, values=values, positions_BS=PartitionSpec())


def check_batch(prompts: Sequence, **others: Sequence) -> None:
    """ValueError when the lists of a batch differ in length or the batch is empty."""
    sizes = {"prompts": len(prompts)} | {name: len(value) for name, value in others.items()}
    if not len(prompts) or len(set(sizes.values())) > 1:
        raise ValueError(f"a batch needs as many of each, at least one: {sizes}")
