"""One set of weights under two sets of names: ours, and those of a public program."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from hiermusic.errors import UserError

Arrays = Mapping[str, np.ndarray]


class Rename(NamedTuple):
    """A weight here and elsewhere.

    Attributes:
      ours, theirs: its names.
      axes: the dimensions of theirs in the order of ours; () for the same.
    """

    ours: str
    theirs: str
    axes: tuple[int, ...] = ()


def linear(ours: str, theirs: str, bias: bool = True) -> list[Rename]:
    """A linear map, which PyTorch keeps with outputs first."""
    found = [Rename(f"{ours}.kernel", f"{theirs}.weight", (1, 0))]
    return [*found, Rename(f"{ours}.bias", f"{theirs}.bias")] if bias else found


def norm(ours: str, theirs: str) -> list[Rename]:
    """A norm with scale and bias."""
    return [Rename(f"{ours}.scale", f"{theirs}.weight"), Rename(f"{ours}.bias", f"{theirs}.bias")]


def take(
    theirs: Arrays,
    table: Iterable[Rename],
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
    spare: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Our weights, float32, from theirs.

    Args:
      theirs: by their names.
      table: every one of our weights.
      shapes: of our weights, by their names.
      where: the file or folder, for what is told.
      spare: beginnings of names that are not needed.
    Raises:
      UserError: a weight that is missing or of another shape, or one that nobody knows.
    """
    table = list(table)
    found = {}
    for ours, name, axes in table:
        if name not in theirs:
            raise UserError(f"{where} has no weight {name}: it is of another model, or a part of it is missing")
        array = np.asarray(theirs[name], np.float32)
        array = np.ascontiguousarray(array.transpose(axes)) if axes and array.ndim == len(axes) else array
        if array.shape != shapes[ours]:
            wanted = tuple(np.asarray(shapes[ours])[np.argsort(axes)].tolist()) if axes else shapes[ours]
            raise UserError(
                f"{where}: {name} is {theirs[name].shape}, this model's is {wanted}: another model's weight?"
            )
        found[ours] = array
    known = {name for _, name, _ in table}
    if more := sorted(name for name in theirs if name not in known and not name.startswith(tuple(spare))):
        raise UserError(f"{where} has the weight {more[0]}, which this model has not: it is of another model")
    return found


def give(ours: Arrays, table: Iterable[Rename]) -> dict[str, np.ndarray]:
    """Their weights from ours."""
    return {
        name: np.ascontiguousarray(ours[own].transpose(np.argsort(axes)) if axes else ours[own])
        for own, name, axes in table
    }


def count(names: Iterable[str], pattern: str, first: int = 0) -> int:
    """How many of the names `pattern`, numbered from `first`, are there."""
    names, number = set(names), first
    while pattern.format(number) in names:
        number += 1
    return number - first


def supported(told: Mapping[str, Any], **only: Any) -> None:
    """UserError where a configuration sets a field to something that is not done here."""
    for name, value in only.items():
        if name in told and told[name] != value:
            raise UserError(f"its config.json has {name}={told[name]!r}, where only {value!r} can be imported")
