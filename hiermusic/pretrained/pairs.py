"""Which weight of ours is which of a published model: one table for the way in and the way back."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hiermusic.pretrained.source import Source


@dataclass(frozen=True)
class Pair:
    """A weight of ours, and where it comes from.

    Args:
      ours: dotted name.
      theirs: name; of several, which ours holds stacked, all names.
      shape: of theirs.
      order: their dimensions in our order.
      sizes: of ours, less the stacked dimension; the same numbers but for dimensions of 1.
    """

    ours: str
    theirs: str | tuple[str, ...]
    shape: tuple[int, ...]
    order: tuple[int, ...]
    sizes: tuple[int, ...]

    def read(self, source: Source) -> np.ndarray:
        """Our weight; UserError where theirs is missing or of another shape."""
        if isinstance(self.theirs, str):
            return self._turned(source.tensor(self.theirs, self.shape))
        return np.stack([self._turned(source.tensor(name, self.shape)) for name in self.theirs])

    def write(self, weight: np.ndarray) -> dict[str, np.ndarray]:
        """Their weights."""
        parts = {self.theirs: weight} if isinstance(self.theirs, str) else dict(zip(self.theirs, weight, strict=True))
        turned = tuple(self.shape[axis] for axis in self.order)
        back = np.argsort(self.order)
        return {name: np.ascontiguousarray(part.reshape(turned).transpose(back)) for name, part in parts.items()}

    def _turned(self, tensor: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(tensor.transpose(self.order).reshape(self.sizes), np.float32)


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
    for pair in pairs:
        for name in (pair.theirs,) if isinstance(pair.theirs, str) else pair.theirs:
            if name.endswith(".weight_v"):
                yield name.removesuffix(".weight_v")
