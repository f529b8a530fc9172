"""Arrays in .npz and .npy files: those that a person hands over may be damaged, or made to fill the memory."""

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
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


def write_npz(path: str | os.PathLike, arrays: Mapping[str, np.ndarray | int], licences: Sequence[str] = ()) -> None:
    """Writes arrays by name, whole or not at all, into a folder that is made where it is not.

    Args:
      path: the .npz file.
      arrays: of any names; np.savez has some for itself.
      licences: those that the arrays come under, kept where no array's name is taken: in the file's comment.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as packed:
        packed.comment = json.dumps({"licences": list(licences)}).encode() if licences else b""
        for name, array in arrays.items():
            with packed.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
