"""Which weight of ours is which of a published model: one table for the way in and the way back."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hiermusic.errors import UserError
from hiermusic.pretrained.later import Later
from hiermusic.pretrained.source import Source

_HALVES = ("float16", "bfloat16")


@dataclass(frozen=True)
class Pair:
    """A weight of ours, and where it comes from.

    Args:
      ours: dotted name.
      theirs: name; of several, which ours holds stacked, all names.
      shape: of theirs.
      order: their dimensions in our order.
      sizes: of ours, less the stacked dimension; the same numbers but for dimensions of 1.
      times: ours over theirs.
    """

    ours: str
    theirs: str | tuple[str, ...]
    shape: tuple[int, ...]
    order: tuple[int, ...]
    sizes: tuple[int, ...]
    times: float = 1.0

    def read(self, source: Source) -> np.ndarray:
        """Our weight; UserError where theirs is missing or of another shape."""
        return np.asarray(self.later(source))

    def later(self, source: Source) -> Later:
        """Our weight, made when it is asked for; UserError, now, where theirs is missing or of another shape.

        It is float32, or of 16 bits where the source keeps theirs so.
        """
        stacked = not isinstance(self.theirs, str)
        parts = [source.tensor(name, self.shape) for name in (self.theirs if stacked else (self.theirs,))]
        dtype = parts[0].dtype if parts[0].dtype.name in _HALVES else np.dtype(np.float32)

        def rows(which: slice) -> np.ndarray:
            if stacked:
                return np.stack([self._turned(part, dtype) for part in parts[which]])
            return self._turned(parts[0], dtype)[which] if self.sizes else self._turned(parts[0], dtype)

        return Later(((len(parts),) if stacked else ()) + self.sizes, dtype, rows)

    def write(self, weight: np.ndarray) -> dict[str, np.ndarray]:
        """Their weights."""
        parts = {self.theirs: weight} if isinstance(self.theirs, str) else dict(zip(self.theirs, weight, strict=True))
        turned = tuple(self.shape[axis] for axis in self.order)
        back = np.argsort(self.order)
        less = 1 / self.times
        return {name: self._scaled(part.reshape(turned).transpose(back), less) for name, part in parts.items()}

    def _turned(self, tensor: np.ndarray | Later, dtype: np.dtype) -> np.ndarray:
        return self._scaled(np.asarray(tensor, dtype).transpose(self.order).reshape(self.sizes), self.times)

    def _scaled(self, weight: np.ndarray, times: float) -> np.ndarray:
        return np.ascontiguousarray(weight if times == 1 else weight * np.asarray(times, weight.dtype))


def vector(ours: str, theirs: str | tuple[str, ...], size: int, around: tuple[int, int] = (0, 0)) -> Pair:
    """A vector, that in theirs has so many dimensions of 1 in front of it and behind it."""
    shape = (1,) * around[0] + (size,) + (1,) * around[1]
    return Pair(ours, theirs, shape, tuple(range(len(shape))), (size,))


def matrix(ours: str, theirs: str | tuple[str, ...], shape: tuple[int, int], turned: bool = True) -> Pair:
    """A matrix, theirs [outputs, inputs] and ours [inputs, outputs] where it is turned."""
    return Pair(ours, theirs, shape, (1, 0), shape[::-1]) if turned else Pair(ours, theirs, shape, (0, 1), shape)


def conv(ours: str, theirs: str, inputs: int, outputs: int, taps: int, *, transposed: bool, normed: bool) -> list[Pair]:
    """A convolution of `nn.conv`, with a weight norm or without; a norm of what comes out is no part of it."""
    shape = (inputs, outputs, taps) if transposed else (outputs, inputs, taps)
    order = (2, 0, 1) if transposed else (2, 1, 0)
    name = f"{theirs}.weight_v" if normed else f"{theirs}.weight"
    weight = Pair(f"{ours}.weight_v", name, shape, order, (taps, inputs, outputs))
    gain = [vector(f"{ours}.weight_g", f"{theirs}.weight_g", shape[0], (0, 2))] if normed else []
    return [weight, *gain, vector(f"{ours}.bias", f"{theirs}.bias", outputs)]


def named(pairs: Iterable[Pair]) -> list[str]:
    """The names of all of theirs."""
    return [name for pair in pairs for name in ((pair.theirs,) if isinstance(pair.theirs, str) else pair.theirs)]


def check_known(source: Source, names: Iterable[str]) -> None:
    """UserError where a source has weights besides these."""
    if more := sorted(set(source.tensors) - set(names)):
        raise UserError(f"{source.where} has the weight {more[0]}, which this model has not: it is of another model")


def read(source: Source, pairs: Iterable[Pair]) -> dict[str, np.ndarray]:
    """Our weights; UserError where one of theirs is missing or of another shape."""
    return {pair.ours: pair.read(source) for pair in pairs}


def write(weights: Mapping[str, np.ndarray], pairs: Iterable[Pair]) -> dict[str, np.ndarray]:
    """Their weights."""
    return {name: part for pair in pairs for name, part in pair.write(weights[pair.ours]).items()}


def unfolded(tensors: Mapping[str, np.ndarray], pairs: Sequence[Pair]) -> dict[str, np.ndarray]:
    """The same weights with a weight norm wherever pairs ask for one: its gains are the norms that weights have."""
    found = dict(tensors)
    for name in _normed(pairs):
        if f"{name}.weight_v" not in found and f"{name}.weight" in found:
            weight = found.pop(f"{name}.weight")
            found |= {f"{name}.weight_v": weight, f"{name}.weight_g": norm(weight)}
    return found


def norm(weight: np.ndarray) -> np.ndarray:
    """The norm of a weight over all dimensions but the first."""
    return np.sqrt(np.sum(np.square(weight), tuple(range(1, weight.ndim)), keepdims=True))


def _normed(pairs: Sequence[Pair]) -> Iterator[str]:
    for name in named(pairs):
        if name.endswith(".weight_v"):
            yield name.removesuffix(".weight_v")
