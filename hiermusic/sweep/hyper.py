"""What a sweep file combines its runs with: each function returns a list of runs, dicts of dotted field -> value.

For example `hyper.product([hyper.sweep("train.learning_rate", [1e-3, 3e-3]), hyper.fixed("train.steps", 100)])`.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hiermusic.errors import UserError

Settings = dict[str, Any]


def sweep(field: str, values: Iterable[Any]) -> list[Settings]:
    """One run for each value of a field."""
    return [{field: value.item() if isinstance(value, np.generic) else value} for value in values]


def fixed(field: str, value: Any, length: int = 1) -> list[Settings]:
    """The same value in `length` runs: 1 for `product`, as many as the others have for `zipit`."""
    return sweep(field, [value] * length)


def product(sweeps: Sequence[list[Settings]]) -> list[Settings]:
    """Every run of the first with every run of the second, and so on; the last varies fastest."""
    return [_merged(parts) for parts in itertools.product(*sweeps)]


def chainit(sweeps: Iterable[list[Settings]]) -> list[Settings]:
    """The runs of all, one sweep after another."""
    return list(itertools.chain(*sweeps))


def zipit(sweeps: Sequence[list[Settings]]) -> list[Settings]:
    """The first run of each together, then the second of each; all must be of one length.

    Raises:
      UserError: they are not.
    """
    lengths = [len(runs) for runs in sweeps]
    if len(set(lengths)) > 1:
        names = (f"{', '.join(runs[0]) if runs else 'nothing'}: {len(runs)}" for runs in sweeps)
        raise UserError(f"zipit needs sweeps of one length, got {'; '.join(names)}")
    return [_merged(parts) for parts in zip(*sweeps, strict=True)]


def _merged(parts: Sequence[Settings]) -> Settings:
    merged: Settings = {}
    for part in parts:
        twice = merged.keys() & part.keys()
        if twice:
            raise UserError(f"two combined sweeps both set {min(twice)}: take it out of one")
        merged |= part
    return merged
