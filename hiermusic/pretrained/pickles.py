"""PyTorch's files, read without PyTorch: a pickle that may ask for tensors and plain values, and for nothing else.

A pickle is a program. Of what it can call, `_Reader` knows the handful of names that make tensors and containers; at
any other name it stops, before anything of it has run.
"""

import dataclasses
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hiermusic.errors import UserError, reading

_MAGIC = 0x1950A86A20F9469CFC6C  # of the form that PyTorch wrote before it wrote zip archives
# what trainers keep beside the weights is of these: see `strangers` of `read`
TRAINERS = (
    *("accelerate.", "argparse.", "collections.", "functools.", "lightning.", "lightning_fabric.", "numpy."),
    *("omegaconf.", "pathlib.", "pytorch_lightning.", "torch.optim.", "typing."),
)
_PLAIN = (bool, int, float, str, bytes, type(None))
_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_UNFINISHED = object()
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")


def read(path: str | Path, strangers: Sequence[str] = ()) -> Any:
    """What `torch.save` wrote: containers of plain values, with NumPy arrays where tensors were.

    Floating-point tensors of 16 bits come as float32.

    Args:
      path: a .pt, .pth, .ckpt, .th or .bin file, of the zip form or the one before it.
      strangers: beginnings of the names of classes that a trainer keeps beside the weights; None stands where an object
        of theirs was.
    Raises:
      UserError: a file that is none, is cut short, or asks for anything but tensors and plain values.
    """
    path = Path(path)
    with reading(path, "a file of PyTorch's", "get it again, or as safetensors"), path.open("rb") as file:
        if zipfile.is_zipfile(file):
            return _zipped(path, file, strangers)
        file.seek(0)
        if file.read(2) == b"PK":
            raise ValueError("it is cut short")
        file.seek(0)
        return _plain_stream(path, file, strangers)


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str
    numel: int

    @property
    def stored(self) -> np.dtype:
        """The type of its numbers as they lie there; NumPy has none for bfloat16."""
        return np.dtype("<u2" if self.dtype == "bfloat16" else self.dtype)

    @property
    def bytes(self) -> int:
        return self.numel * self.stored.itemsize


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor before its numbers are there: which of a storage's they are."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def of(self, raw: bytes) -> np.ndarray:
        """The tensor, out of the bytes of its storage."""
        kind = self.storage.stored
        counts = (self.storage.numel, self.offset, *self.shape, *self.strides)
        if any(type(count) is not int or count < 0 for count in counts) or len(self.shape) != len(self.strides):
            raise ValueError("a tensor's sizes are none")
        flat = np.frombuffer(raw, kind)
        size = int(np.prod(self.shape, dtype=object))
        last = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True)) if size else -1
        if len(flat) != self.storage.numel or size > len(flat) or self.offset + last >= len(flat):
            raise ValueError("a tensor lies outside of its storage")
        strides = tuple(step * kind.itemsize for step in self.strides)
        view = np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides, writeable=False)
        if self.storage.dtype == "bfloat16":
            return (view.astype(np.uint32) << 16).view(np.float32)
        return np.array(view, np.float32 if kind == np.float16 else kind, order="C")


class Plain(pickle._Unpickler):
    """Unpickles with memory for what a file holds, not for what it says.

    The fast reader of the standard library makes its memo as large as the highest number that a file gives a place in
    it: ten bytes ask for gigabytes. A bytearray is made, of zeros, as large as it is said to be, and has no use here.
    """

    dispatch = {key: load for key, load in pickle._Unpickler.dispatch.items() if key != pickle.BYTEARRAY8[0]}


class _Stranger(dict):
    """An object of a class that is not known here, of which nothing is kept."""

    def __init__(self, *_: Any, **__: Any):
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        """As of a list, which some of these are."""

    def extend(self, _: Any) -> None:
        """As of a list."""


class _Reader(Plain):
    """Unpickles descriptions of tensors in plain containers; what it may call is made anew for every reader."""

    def __init__(self, path: Path, file: BinaryIO, strangers: Sequence[str] = ()):
        super().__init__(file, encoding="utf-8")
        self.path, self.strangers = path, tuple(strangers)
        self.storages: dict[str, _Storage] = {}
        self.known: dict[str, Any] = {
            "collections.OrderedDict": OrderedDict,
            "collections.defaultdict": lambda *_: {},
            "_codecs.encode": lambda text, _: _plain(text).encode("latin1"),  # how the second protocol writes bytes
            "torch.Size": lambda sizes: tuple(sizes),
            "torch.device": lambda *named: ":".join(str(_plain(part)) for part in named),
            "torch._utils._rebuild_tensor": lambda *of: _tensor(*of),
            "torch._utils._rebuild_tensor_v2": lambda *of: _tensor(*of[:4]),
            "torch._utils._rebuild_parameter": lambda data, *_: data,
        }
        self.known |= {f"builtins.{kind.__name__}": kind for kind in (dict, list, tuple, int, float, bool)}
        self.known["builtins.str"] = lambda *of: str(*map(_plain, of))
        self.known |= {f"torch.{name}": name for name in (*_STORAGES, *_DTYPES)}

    def find_class(self, module: str, name: str) -> Any:
        asked = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if asked not in self.known and asked.startswith(self.strangers):
            return _Stranger
        if asked not in self.known:
            raise UserError(
                f"{self.path} asks for {asked}, which is no tensor or plain value: nothing of it was run; "
                "get the weights as safetensors"
            )
        return self.known[asked]

    def persistent_load(self, named: Any) -> _Storage:
        kind, dtype, key, _, numel, *rest = named
        if kind != "storage" or dtype not in _STORAGES or any(rest):
            raise ValueError("it refers to something that is no storage of numbers")
        return self.storages.setdefault(str(key), _Storage(_STORAGES[dtype], str(key), int(numel)))


def _plain(value: Any) -> Any:
    """A plain value as it is; a few lists that each hold another twice would be gigabytes of text."""
    if not isinstance(value, _PLAIN):
        raise ValueError(f"a {type(value).__name__} stands where a plain value belongs")
    return value


def _tensor(storage: Any, offset: int, shape: Any, strides: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor has no storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


def _filled(value: Any, raw: Callable[[_Storage], bytes], made: dict[int, Any]) -> Any:
    """Plain containers again, with arrays in place of the descriptions of tensors.

    What lies in several places is `made` once: a few lists that each hold another twice would be millions.
    """
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, _Stranger):
        return None
    if id(value) not in made:
        made[id(value)] = _UNFINISHED
        if isinstance(value, _Tensor):
            made[id(value)] = value.of(raw(value.storage))
        elif isinstance(value, dict):
            made[id(value)] = {key: _filled(item, raw, made) for key, item in value.items()}
        elif isinstance(value, list | tuple):
            made[id(value)] = [_filled(item, raw, made) for item in value]
        else:
            raise ValueError(f"it holds a {type(value).__name__}, which is no tensor or plain value")
    if made[id(value)] is _UNFINISHED:
        raise ValueError("a container lies within itself")
    return made[id(value)]


def _zipped(path: Path, file: BinaryIO, strangers: Sequence[str]) -> Any:
    with zipfile.ZipFile(file) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        if "data.pkl" not in names:
            raise ValueError("it is a zip archive of other things")
        if "constants.pkl" in names:
            raise ValueError("it is a TorchScript program")
        if "byteorder" in names and archive.read(names["byteorder"]) != b"little":
            raise ValueError("its numbers are big-endian")
        if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
            raise ValueError("it is compressed, which PyTorch's own files are not")
        with archive.open(names["data.pkl"]) as pickled:
            value = _Reader(path, pickled, strangers).load()
        return _filled(value, lru_cache(1)(lambda storage: archive.read(names[f"data/{storage.key}"])), {})


def _plain_stream(path: Path, file: BinaryIO, strangers: Sequence[str]) -> Any:
    if _Reader(path, file).load() != _MAGIC:
        raise ValueError("it does not begin as one")
    _Reader(path, file).load()  # the version of the form
    if not _Reader(path, file).load().get("little_endian", True):
        raise ValueError("its numbers are big-endian")
    reader = _Reader(path, file, strangers)
    value = reader.load()
    where = {}
    for key in map(str, _Reader(path, file).load()):
        file.seek(8, 1)  # how many numbers follow, which the pickle has told
        where[key] = file.tell()
        file.seek(reader.storages[key].bytes, 1)

    def raw(storage: _Storage) -> bytes:
        file.seek(where[storage.key])
        return file.read(storage.bytes)

    return _filled(value, lru_cache(1)(raw), {})


# MARK: the way back


def write(path: str | Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Tensors by name, as `torch.save` writes a state_dict in the zip form; `torch.load` needs no trust to read it."""
    names = {np.dtype(dtype): name for name, dtype in _STORAGES.items() if dtype != "bfloat16"}
    pickled = [b"\x80\x02}"]  # the second protocol, an empty dictionary
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for key, (name, tensor) in enumerate(tensors.items()):
            tensor = np.ascontiguousarray(tensor).reshape(tensor.shape)
            strides = tuple(step // tensor.itemsize for step in tensor.strides)
            storage = [_text("storage"), _called("torch", names[tensor.dtype]), _text(key), _text("cpu")]
            pickled += [_text(name), _called("torch._utils", "_rebuild_tensor_v2"), b"(", b"(", *storage]
            pickled += [_whole(tensor.size), b"tQ"]
            pickled += [_whole(0), *_sizes(tensor.shape), *_sizes(strides), b"\x89"]  # which learns no gradients
            pickled += [_called("collections", "OrderedDict"), b")R", b"tR", b"s"]
        archive.writestr("archive/data.pkl", b"".join([*pickled, b"."]))
        archive.writestr("archive/byteorder", "little")
        for key, tensor in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{key}", np.ascontiguousarray(tensor).tobytes())
        archive.writestr("archive/version", "3\n")


def _text(value: object) -> bytes:
    raw = str(value).encode()
    return b"X" + len(raw).to_bytes(4, "little") + raw


def _whole(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + len(raw).to_bytes(1, "little") + raw


def _called(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _sizes(values: Sequence[int]) -> list[bytes]:
    return [b"(", *map(_whole, values), b"t"]
