"""Weights that stay in their file until they are asked for: a release may be larger than the memory there is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from hiermusic.errors import reading

_AGAIN = "get the file again"
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "BOOL": "bool"}


@dataclass(frozen=True)
class Later:
    """A weight that is read, or made of others, when NumPy takes it for an array.

    Args:
      shape, dtype: of the array.
      rows: a slice of its first dimension -> that part of it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    rows: Callable[[slice], np.ndarray]

    @property
    def size(self) -> int:
        """Numbers in it."""
        return int(np.prod(self.shape, dtype=object))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.rows(slice(None)), dtype)


def rows_of(weight: np.ndarray | Later, start: int, stop: int) -> np.ndarray:
    """The first dimension's entries from `start` to `stop`, and no others of a weight that is still in its file."""
    return weight.rows(slice(start, stop)) if isinstance(weight, Later) else weight[start:stop]


def safetensors(path: Path) -> Mapping[str, Later]:
    """The weights of a safetensors file by name, of which the header alone is read; UserError for another file."""
    from safetensors import safe_open

    def reader(name: str) -> Callable[[slice], np.ndarray]:
        def rows(which: slice) -> np.ndarray:
            with reading(path, do=_AGAIN), safe_open(path, framework="np") as file:
                return file.get_slice(name)[which]

        return rows

    found = {}
    with reading(path, do=_AGAIN), safe_open(path, framework="np") as file:
        for name in file.keys():
            one = file.get_slice(name)
            if (kind := one.get_dtype()) not in _DTYPES:
                raise ValueError(f"{name} holds numbers of the type {kind}")
            found[name] = Later(tuple(one.get_shape()), np.dtype(jnp.dtype(_DTYPES[kind])), reader(name))
    return found
