"""Arrays in .npz and .npy files: those that a person hands over may be damaged, or made to fill the memory."""

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hiermusic.errors import UserError, reading, replacing

_SMALL = 1 << 28  # bytes that may be unpacked from any file
_PACKED = 20  # and from a larger one, so many times its size: codes and vectors shrink to a half at best


def read_npz(path: str | os.PathLike, what: str, do: str) -> dict[str, np.ndarray]:
    """All arrays of an .npz file by name.

    Args:
      path: the file.
      what: what it was to be, such as "a codes file"; do: what helps where it is none.
    Raises:
      UserError: no such file, damaged, encrypted, no .npz, holding objects, or packed to fill the memory.
    """
    path = Path(path)
    with reading(path, what, do):
        with zipfile.ZipFile(path) as packed:
            unpacked = sum(entry.file_size for entry in packed.infolist())
            size = path.stat().st_size
        if unpacked > max(_SMALL, _PACKED * size):
            raise UserError(f"{path} cannot be read as {what} (its {size:,} bytes unpack to {unpacked:,}): {do}")
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}


def with_licences(licences: Sequence[str]) -> bytes:
    """The comment of an .npz file whose arrays come under licences: beside them, where no array's name is taken."""
    return json.dumps({"licences": list(licences)}).encode()


def licences_of(path: str | os.PathLike) -> list[str]:
    """The licences that an .npz file says its arrays come under; none where nothing is said of them.

    Raises:
      UserError: no such file, or no .npz.
    """
    with reading(path, "arrays"), zipfile.ZipFile(path) as packed:
        if not packed.comment:
            return []
        return list(map(str, json.loads(packed.comment)["licences"]))


def read_npy(path: str | os.PathLike, what: str, do: str) -> np.ndarray:
    """The array of an .npy file; UserError as `read_npz`."""
    path = Path(path)
    with reading(path, what, do):
        array = np.load(path, allow_pickle=False, mmap_mode="r")  # a shape that the file cannot hold is told here
        if not isinstance(array, np.ndarray):
            raise UserError(f"{path} cannot be read as {what} (it is an .npz file): {do}")
        return np.array(array)


def write_npz(path: str | os.PathLike, **arrays: np.ndarray | int) -> None:
    """Writes arrays by name, whole or not at all, into a folder that is made where it is not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
