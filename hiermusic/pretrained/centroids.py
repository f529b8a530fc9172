"""The clusters of a k-means that somebody else has trained: scikit-learn's file, as joblib or pickle wrote it, or .npy.

Such a file is a pickle, which is a program. Here nothing of it runs: whatever it asks for of scikit-learn and NumPy is
stood in for by an object that keeps what it is given, and at any other name reading stops.
"""

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float

from hiermusic.errors import UserError, reading
from hiermusic.pretrained.pickles import Plain

_ROOMS = ("sklearn.", "numpy.", "joblib.numpy_pickle.")
_CLUSTERS = "cluster_centers_"
_MOST = 1 << 30  # bytes of an array


def read(path: str | Path) -> Float[np.ndarray, "V D"]:
    """The centres of the clusters.

    Args:
      path: what `joblib.dump` or `pickle.dump` wrote of a KMeans or MiniBatchKMeans, uncompressed (fairseq's
        `hubert_base_ls960_L9_km500.bin`), or an .npy file of the centres alone.
    Raises:
      UserError: another file, one that asks for more, is cut short, or holds other numbers.
    """
    path = Path(path)
    with reading(path, "a k-means", "give scikit-learn's, as joblib.dump writes it uncompressed, or an .npy file"):
        with path.open("rb") as file:
            if file.read(6) == b"\x93NUMPY":
                found = np.load(path, allow_pickle=False)
            else:
                file.seek(0)
                found = _of(path, _Reader(path, file).load())
        if found.ndim != 2 or found.dtype.kind != "f" or len(found) < 2 or not np.isfinite(found).all():
            raise ValueError(f"its centres are {found.shape} of type {found.dtype}")
        return np.ascontiguousarray(found, np.float32)


def _of(path: Path, model: Any) -> np.ndarray:
    state = model.state if isinstance(model, _Stand) else None
    if not isinstance(state, dict) or _CLUSTERS not in state:
        raise UserError(f"{path} holds no {_CLUSTERS}: give a k-means of scikit-learn's")
    centres = state[_CLUSTERS]
    if isinstance(centres, _Stand):  # an array as pickle writes it: version, shape, type, order, numbers
        _, shape, kind, columns_first, raw = centres.state
        centres = _array(shape, kind, "F" if columns_first else "C", raw)
    return centres


class _Stand:
    """Stands for an object or a function of others: it keeps what it is given."""

    def __init__(self, *given: Any):
        self.given, self.state = given, None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Stored(_Stand):
    """joblib's description of an array whose numbers follow in the file."""


class _Reader(Plain):
    """Unpickles stand-ins, and the arrays that joblib writes between them."""

    dispatch = Plain.dispatch.copy()

    def __init__(self, path: Path, file: BinaryIO):
        super().__init__(file, encoding="latin1")
        self.path, self.file = path, file

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how the second protocol writes bytes
            return lambda text, _: str(text).encode("latin1")
        if not f"{module}.".startswith(_ROOMS):
            raise UserError(
                f"{self.path} asks for {module}.{name}, which is nothing of a k-means: nothing of it was run; save its "
                "cluster_centers_ with numpy.save"
            )
        return _Stored if name == "NumpyArrayWrapper" else _Stand

    def load_build(self) -> None:
        super().load_build()
        if isinstance(self.stack[-1], _Stored):
            told = self.stack[-1].state
            if told.get("numpy_array_alignment_bytes") is not None:
                self.file.read(self.file.read(1)[0])
            size = _bytes(told["shape"], told["dtype"])
            self.stack[-1] = _array(told["shape"], told["dtype"], told["order"], self.file.read(size))

    dispatch[pickle.BUILD[0]] = load_build


def _dtype(kind: _Stand) -> np.dtype:
    """The type that a stand-in of numpy.dtype describes, of plain numbers alone."""
    dtype = np.dtype(str(kind.given[0]))
    if dtype.kind not in "fiub":
        raise ValueError(f"it holds an array of {dtype}")
    order = kind.state[1] if kind.state else "="
    return dtype.newbyteorder(order if order in "<>" else "=")


def _bytes(shape: Any, kind: _Stand) -> int:
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("an array's sizes are none")
    size = int(np.prod(shape, dtype=object)) * _dtype(kind).itemsize
    if size > _MOST:
        raise ValueError("an array is larger than any k-means has")
    return size


def _array(shape: Any, kind: _Stand, order: str, raw: bytes | str) -> np.ndarray:
    if isinstance(raw, str):
        raw = raw.encode("latin1")
    if len(raw) != _bytes(shape, kind):
        raise ValueError("it is cut short")
    dtype = _dtype(kind)
    return np.frombuffer(raw, dtype).reshape(shape, order="F" if order == "F" else "C").astype(dtype.newbyteorder("="))
