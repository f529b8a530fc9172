"""The weights that others have published, as they lie on disk: a Hugging Face folder, or one file of PyTorch's."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hiermusic.errors import UserError, brief, reading
from hiermusic.pretrained import pickles

UNKNOWN = "unknown"  # a licence that nothing tells

_LARGEST, _MOST_NUMBERS = 1 << 24, 64  # sizes, and numbers in a row, beyond what any model has
_AGAIN = "get the file again"
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_FILES = (".pt", ".pth", ".ckpt", ".th", ".bin")
_STATES = ("state_dict", "model", "best_state", "generator")  # where files keep their weights beside other things
# PyTorch's newer names of a weight norm's two parts, and the older ones that are used here
_PARTS = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}


@dataclass(frozen=True)
class Source:
    """Published weights.

    Args:
      where: the folder or file.
      config: the folder's config.json; of a file, the plain values that lie beside its weights.
      tensors: the weights by name, float32 where they were of 16 bits. The parts of a weight norm are called
        `weight_g` and `weight_v`, whichever of PyTorch's two namings the file has.
      licence: an identifier such as cc-by-nc-4.0, from the folder's README.md; "unknown" where nothing tells it.
    """

    where: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]
    licence: str = UNKNOWN

    def tensor(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """The weight of this name; UserError where it is not there or has another shape."""
        if name not in self.tensors:
            raise UserError(f"{self.where} has no weight {name}: is it of another family, or of another size?")
        if (found := self.tensors[name].shape) != shape:
            raise UserError(f"{self.where}: {name} is {found}, its configuration asks for {shape}")
        return self.tensors[name]

    def field(self, name: str, kind: type | tuple[type, ...] = object, default: Any = ...) -> Any:
        """A field of the configuration; UserError where it is not there (and has no default) or of another type."""
        value = self.config.get(name, default)
        if value is ...:
            raise UserError(f"{self.where}: the configuration has no {name}: is it of another family?")
        if not isinstance(value, kind):
            raise UserError(f"{self.where}: {name} is {brief(value, 100)} in its configuration, which is none there is")
        return value

    def whole(self, name: str, default: Sequence[int] | None = None) -> tuple[int, ...]:
        """A field of a few whole numbers of 1 or more; UserError where it holds anything else."""
        values = self.field(name, (list, tuple), ... if default is None else list(default))
        if not 0 < len(values) <= _MOST_NUMBERS or not all(type(one) is int and 0 < one <= _LARGEST for one in values):
            raise UserError(
                f"{self.where}: {name} is {brief(values, 100)} in its configuration: whole numbers belong there"
            )
        return tuple(values)

    def size(self, name: str, default: int, most: int = _LARGEST) -> int:
        """A field that holds a whole number from 1 to `most`; UserError where it holds anything else."""
        value = self.field(name, int, default)
        if isinstance(value, bool) or not 1 <= value <= most:
            raise UserError(
                f"{self.where}: {name} is {brief(value, 100)} in its configuration: a whole number from 1 to {most:,} "
                "belongs there"
            )
        return value

    @contextmanager
    def understood(self) -> Iterator[None]:
        """Tells in one line, and where it lies, of whatever goes wrong with what a source says of itself."""
        try:
            yield
        except UserError as error:
            told = str(error)
            raise UserError(told if told.startswith(str(self.where)) else f"{self.where}: {told}") from error
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise UserError(f"{self.where} cannot be understood ({type(error).__name__}: {error})") from error


def read_source(path: str | Path) -> Source:
    """Published weights from where they lie.

    Args:
      path: a folder with config.json and model.safetensors, pytorch_model.bin or the shards of either beside their
        index; or one .pt, .pth, .ckpt, .th or .bin file.
    Raises:
      UserError: neither of these, a shard that is missing, a file that is cut short or asks for code.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise UserError(f"no weights at {path}: give a folder with config.json, or a file of PyTorch's")
    if path.suffix not in _FILES:
        raise UserError(f"{path} is no {', '.join(_FILES[:-1])} or {_FILES[-1]} file: give one, or a folder")
    return _file(path)


def folded(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same weights without weight norm: w = g v / |v| in place of every `weight_g` and `weight_v`.

    The norm is over the dimensions in which g is 1, so its shape tells which one is left out: the first for
    convolutions and linear maps, transposed ones too, the last for HuBERT's positions.
    """
    found = {}
    for name, tensor in tensors.items():
        stem, _, part = name.rpartition(".")
        if part == "weight_v" and f"{stem}.weight_g" in tensors:
            g = tensors[f"{stem}.weight_g"]
            found[f"{stem}.weight"] = normed(tensor, g)
        elif part != "weight_g" or f"{stem}.weight_v" not in tensors:
            found[name] = tensor
    return found


def normed(v: np.ndarray, g: np.ndarray) -> np.ndarray:
    """g v / |v|, as `folded` says; UserError for parts that do not fit each other."""
    if g.ndim and (g.ndim != v.ndim or any(n not in (1, m) for n, m in zip(g.shape, v.shape, strict=True))):
        raise UserError(f"weight_g {g.shape} and weight_v {v.shape} of a weight norm do not fit each other")
    over = tuple(axis for axis in range(v.ndim) if not g.ndim or g.shape[axis] == 1)
    # in this order v comes back to the bit where g is its norm
    return v * (g / np.sqrt(np.sum(np.square(v), over, keepdims=True)))


# MARK: folders


def _folder(path: Path) -> Source:
    config = _json(path / "config.json", "a configuration")
    for name in _WHOLE:
        if (path / name).is_file():
            return Source(path, config, _named(_of(path / name)), licence_of(path))
    for name in _WHOLE:
        index = path / f"{name}.index.json"
        if index.is_file():
            return Source(path, config, _named(_sharded(path, index)), licence_of(path))
    raise UserError(f"{path} has config.json but neither {_WHOLE[0]} nor {_WHOLE[1]}, nor the index of their shards")


def _json(path: Path, what: str) -> dict[str, Any]:
    with reading(path, what, _AGAIN):
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is no object")
        return value


def _sharded(folder: Path, index: Path) -> dict[str, np.ndarray]:
    where = _json(index, "an index of shards").get("weight_map")
    files = sorted(set(where.values())) if isinstance(where, dict) and all(map(_is_name, where.values())) else []
    if not files:
        raise UserError(f"{index} does not name the files beside it: {_AGAIN}")
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise UserError(f"{folder} lacks {missing[0]}, one of its {len(files)} shards: get it, too")
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        tensors |= _of(folder / file)
    if absent := sorted(set(where) - set(tensors)):
        raise UserError(f"{folder / where[absent[0]]} lacks the weight {absent[0]}, which should be in it: {_AGAIN}")
    return tensors


def _is_name(file: object) -> bool:
    return isinstance(file, str) and Path(file).name == file  # in this folder, and nowhere else


def _of(path: Path) -> dict[str, np.ndarray]:
    if path.suffix != ".safetensors":
        return dict(_state(path, pickles.read(path))[0])
    from safetensors import safe_open

    with reading(path, do=_AGAIN), safe_open(path, framework="np") as file:
        return {name: _wide(file.get_slice(name)[...]) for name in file.keys()}


def _wide(tensor: np.ndarray) -> np.ndarray:
    return tensor.astype(np.float32) if tensor.dtype.name in ("float16", "bfloat16") else tensor


def licence_of(folder: Path, default: str = UNKNOWN) -> str:
    """What the front matter of README.md says; `default` where it says nothing, UNKNOWN where it is no identifier."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return default
    front = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    told = front and re.search(r"^license:(.*)$", front[1], re.MULTILINE)
    if not told:
        return default
    named = re.fullmatch(r" *[\"']?([A-Za-z0-9][A-Za-z0-9.+-]*)[\"']? *", told[1])
    return named[1] if named else UNKNOWN


# MARK: files


def _file(path: Path) -> Source:
    tensors, beside = _state(path, pickles.read(path))
    return Source(path, beside, _named(tensors))


def _state(path: Path, value: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The weights of what a file holds, and the plain values beside them."""
    if isinstance(value, dict):
        for place in (None, *_STATES):
            state = value if place is None else value.get(place)
            tensors = dict(_flat(state)) if isinstance(state, dict) else {}
            if tensors and (place is not None or len(tensors) == len(value)):
                rest = {} if place is None else {name: beside for name, beside in value.items() if name != place}
                return tensors, rest
    raise UserError(f"{path} holds no weights by name, be it at the top or under {', '.join(_STATES)}")


def _flat(state: Mapping[Any, Any]) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in state.items():
        if isinstance(name, str) and isinstance(value, np.ndarray):
            yield name, value


def _named(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weights under the names that are used here."""
    found = {}
    for name, tensor in tensors.items():
        for new, old in _PARTS.items():
            name = f"{name.removesuffix(new)}{old}" if name.endswith(new) else name
        found[name] = tensor
    return found
