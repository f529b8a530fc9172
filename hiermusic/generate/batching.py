"""Ragged requests as arrays of few different shapes, so that few programs are compiled."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from hiermusic.errors import UserError
from hiermusic.nn.transformer import Cache
from hiermusic.parallel.mesh import constrain

LEAST = 64


def bucket(n: int) -> int:
    """The least size >= n of a ladder with steps of 64, or of 1/8 to 1/16 of n where that is more; 0 stays 0."""
    step = LEAST
    while step * 16 < n:
        step *= 2
    return -(-n // step) * step


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
    if unprompted is None:
        raise UserError(f"guidance {guidance} needs something to move away from: give it or set guidance to 1")
    check_batch(prompts, unprompted=unprompted)
    return [*prompts, *unprompted]


def spread(cache: Cache) -> Cache:
    """Under `jax.set_mesh`, rows split over the batch's devices and cached heads over those of the model."""
    keys, values = (
        tuple(constrain(x_BMSH, "batch", "kv_heads", None, None) for x_BMSH in part)
        for part in (cache.keys, cache.values)
    )
    return cache._replace(keys=keys, values=values)


def check_batch(prompts: Sequence, **others: Sequence) -> None:
    """ValueError when the lists of a batch differ in length or the batch is empty."""
    sizes = {"prompts": len(prompts)} | {name: len(value) for name, value in others.items()}
    if not len(prompts) or len(set(sizes.values())) > 1:
        raise ValueError(f"a batch needs as many of each, at least one: {sizes}")
