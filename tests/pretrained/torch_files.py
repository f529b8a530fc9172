"""Files as `torch.save` writes them, without torch: its names are those of modules that stand in for it."""

import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

KINDS = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "bool": "BoolStorage",
}


class Storage:
    """Numbers that tensors share; of bfloat16 the upper halves of float32."""

    def __init__(self, numbers: np.ndarray, kind: str = ""):
        self.kind = kind or numbers.dtype.name
        flat = np.ascontiguousarray(numbers).reshape(-1)
        self.numel = flat.size
        self.raw = (flat.view(np.uint32) >> 16).astype(np.uint16).tobytes() if kind == "bfloat16" else flat.tobytes()


class Tensor:
    def __init__(self, storage: Storage, offset: int, shape: tuple, strides: tuple):
        self.arguments = (storage, offset, shape, strides, False, OrderedDict())

    def __reduce__(self):
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


def tensor(array: Any, kind: str = "") -> Tensor:
    """A whole tensor with a storage of its own."""
    array = np.asarray(array)
    strides = tuple(step // array.itemsize for step in np.ascontiguousarray(array).strides) if array.ndim else ()
    return Tensor(Storage(array, kind), 0, array.shape, strides)


def stand_in(monkeypatch) -> None:
    """Lets pickles name what PyTorch's do."""

    def _rebuild_tensor_v2(*_):
        raise AssertionError("nothing of a pickle runs")

    made = types.ModuleType("torch"), types.ModuleType("torch._utils")
    _rebuild_tensor_v2.__module__, _rebuild_tensor_v2.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    made[1]._rebuild_tensor_v2 = _rebuild_tensor_v2
    for name in KINDS.values():
        setattr(made[0], name, type(name, (), {"__module__": "torch"}))
    for module in made:
        monkeypatch.setitem(sys.modules, module.__name__, module)


class _Writer(pickle.Pickler):
    def __init__(self, file, legacy: bool):
        super().__init__(file, protocol=2)
        self.storages: dict[int, tuple[str, Storage]] = {}
        self.legacy = legacy

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        key, _ = self.storages.setdefault(id(value), (str(len(self.storages)), value))
        kind = getattr(sys.modules["torch"], KINDS[value.kind])
        return ("storage", kind, key, "cpu", value.numel) + ((None,) if self.legacy else ())


def save(value: Any, path: Path, zipped: bool = True) -> Path:
    """Writes a file of the zip form, or of the one before it."""
    pickled = io.BytesIO()
    writer = _Writer(pickled, not zipped)
    writer.dump(value)
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickled.getvalue())
            archive.writestr("archive/byteorder", "little")
            for key, storage in writer.storages.values():
                archive.writestr(f"archive/data/{key}", storage.raw)
            archive.writestr("archive/version", "3\n")
        return path
    with path.open("wb") as file:
        for head in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
            pickle.dump(head, file, protocol=2)
        file.write(pickled.getvalue())
        pickle.dump([key for key, _ in writer.storages.values()], file, protocol=2)
        for _, storage in writer.storages.values():
            file.write(storage.numel.to_bytes(8, "little") + storage.raw)
    return path
