"""Wholes that are worked on in pieces, on all devices of this process: songs through a codec or an encoder.

Pieces of one size run in one program, whichever whole they are of: as many at once on a device as are together no
larger than what it may take. Wholes come one after the other, and as many are gathered as keep all devices at work.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# of what all devices take at once, how many are gathered: the last one, which may lack some, is then one of several
_ROUNDS = 4


class Whole(NamedTuple):
    """A whole on its way through a program.

    Attributes:
      size: of each piece, in any unit; pieces of one size have arrays of one shape.
      count: of its pieces.
      piece: index of one -> the arrays that the program takes.
      join: what the program made of the pieces, in order -> what becomes of the whole.
    """

    size: int
    count: int
    piece: Callable[[int], tuple[np.ndarray, ...]]
    join: Callable[[Sequence[np.ndarray]], Any]


def run_each(run: partial, state: nnx.State, wholes: Iterable[Whole], at_once: int) -> Iterator[Any]:
    """What becomes of wholes one after the other; the next are gathered while some are worked on.

    Args:
      run: the program, of a jitted function and what comes first and is hashable: `state`, then the arrays of pieces,
        stacked -> an array with a row for each.
      state: weights, which every device gets.
      wholes: asked for on a thread of its own; several before the first is given, where devices take several pieces.
      at_once: the sizes of pieces that a device takes at once add up to so much at most, or it takes one.
    """
    devices = len(jax.local_devices())
    with ThreadPoolExecutor(1) as pool:
        groups = _gathered(wholes, _ROUNDS * devices * at_once)
        coming = pool.submit(next, groups, None)
        while group := coming.result():
            coming = pool.submit(next, groups, None)
            yield from run_all(run, state, group, at_once)


def _gathered(wholes: Iterable[Whole], enough: int) -> Iterator[list[Whole]]:
    """As many of them at a time as are `enough`; those before one that cannot be had as well."""
    group, length = [], 0
    try:
        for whole in wholes:
            group.append(whole)
            length += whole.size * whole.count
            if length >= enough:
                yield group
                group, length = [], 0
    except Exception:
        if group:
            yield group
        raise
    if group:
        yield group


def run_all(run: partial, state: nnx.State, wholes: Sequence[Whole], at_once: int) -> list[Any]:
    """What becomes of each of some wholes, as in `run_each`."""
    found: list[list[np.ndarray]] = [[] for _ in wholes]
    for size in sorted({whole.size for whole in wholes}):
        places = [(at, i) for at, whole in enumerate(wholes) if whole.size == size for i in range(whole.count)]

        def cut(place: int, places=places) -> tuple[np.ndarray, ...]:
            at, i = places[place]
            return wholes[at].piece(i)

        each = 1 << max(at_once // size, 1).bit_length() - 1
        for (at, _), piece in zip(places, _run(run, state, len(places), cut, each), strict=True):
            found[at].append(piece)
    return [whole.join(parts) for whole, parts in zip(wholes, found, strict=True)]


def _run(run: partial, state: nnx.State, count: int, cut: Callable, each: int) -> Iterator[np.ndarray]:
    """What a program makes of pieces, up to `each` of them, a power of two, at once on a device of this process.

    Args:
      count: pieces.
      cut: index of a piece -> the arrays that the program takes; asked when it is its turn.
    """
    # few numbers of devices, and of pieces on each: for each there is a program of its own
    devices = jax.local_devices()[: 1 << (count - 1).bit_length()]
    program, state = _on(run, devices), _spread(state, devices, PartitionSpec())
    first = 0
    while first < count:
        while each > 1 and each // 2 * len(devices) >= count - first:
            each //= 2
        size = each * len(devices)
        group = [cut(i) for i in range(first, min(first + size, count))]
        whole = tuple(map(np.stack, zip(*group, *group[-1:] * (size - len(group)), strict=True)))
        made = np.asarray(program(state, *_spread(whole, devices, PartitionSpec("piece"))))
        yield from made[: len(group)]
        first += size


def _spread(arrays: Any, devices: Sequence[jax.Device], how: PartitionSpec) -> Any:
    return jax.device_put(arrays, NamedSharding(Mesh(devices, "piece"), how)) if len(devices) > 1 else arrays


def _on(run: partial, devices: Sequence[jax.Device]) -> Callable:
    """The program on each of some devices by itself."""
    return _by_itself(run.func, run.args, tuple(devices)) if len(devices) > 1 else run


@lru_cache
def _by_itself(function: Callable, first: tuple, devices: tuple[jax.Device, ...]) -> Callable:
    """Left to XLA's partitioner, what it cannot split, such as a Fourier transform, every device would do for all."""
    mesh, own = Mesh(devices, "piece"), PartitionSpec("piece")

    def program(state, *arrays):
        specs = (PartitionSpec(), *(own for _ in arrays))
        call = partial(function, *first)
        return jax.shard_map(call, mesh=mesh, in_specs=specs, out_specs=own, check_vma=False)(state, *arrays)

    return jax.jit(program)


def rung(n: int, steps: int) -> int:
    """The least size >= n of a ladder that takes so many steps from a power of two to the next."""
    step = max((1 << n.bit_length() - 1) // steps, 1)
    return -(-n // step) * step
