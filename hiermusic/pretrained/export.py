"""An exported model: safetensors, config.json and a model card (README.md) in one folder, written whole and read back.

The layout is the one of the Hugging Face hub: `model.safetensors`, or above `FILE_BYTES` several files
`model-00001-of-000NN.safetensors` with `model.safetensors.index.json`.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hiermusic.errors import UserError, disk_errors, reading, replace, sync

FILE_BYTES = 5 * 10**9
REMEDY = "export or import the model again"

_WHOLE, _INDEX, _CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"} | {
    f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)
}

Shapes = Mapping[str, jax.ShapeDtypeStruct]


def licences(folder: str | Path) -> list[str]:
    """Those that config.json of a folder or a workdir names, and so that what is made with its weights comes under.

    Raises:
      UserError: no configuration, or one that cannot be read.
    """
    path = Path(folder) / _CONFIG
    with reading(path, "a configuration"):
        return list(map(str, json.loads(path.read_text(encoding="utf-8")).get("licences", ())))


def check_new(path: str | Path) -> None:
    """UserError where a folder already holds something."""
    path = Path(path)
    if path.exists() and not (path.is_dir() and all(entry.name == "lost+found" for entry in path.iterdir())):
        raise UserError(f"{path} is not empty: give a new folder")


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill that takes the name `path` when the block ends well; until then its name is `path.unfinished`.

    A link stands for the folder it leads to. A mount point cannot change its name: what is filled then lies in it as
    `.unfinished`, and is moved up at the end, config.json last.

    Raises:
      UserError: `path` already holds something, or the disk is full or read-only.
    """
    path = Path(path).resolve()
    mounted = os.path.ismount(path)
    unfinished = path / ".unfinished" if mounted else path.with_name(f"{path.name}.unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        check_new(path)
        with disk_errors(path):
            unfinished.mkdir(parents=True)
            yield unfinished
            for file in unfinished.rglob("*"):
                sync(file)
            if mounted:
                for entry in sorted(unfinished.iterdir(), key=lambda entry: entry.name == _CONFIG):
                    replace(entry, path / entry.name)
            else:
                replace(unfinished, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def is_export(folder: str | Path) -> bool:
    """Whether a folder holds an exported model."""
    return any((Path(folder) / name).is_file() for name in (_WHOLE, _INDEX))


def write(
    out: str | Path,
    shapes: Shapes,
    read: Callable[[Sequence[str]], Mapping[str, np.ndarray]],
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    texts: Mapping[str, str],
    file_bytes: int = FILE_BYTES,
) -> list[str]:
    """Writes an exported model; no more than one file's weights are in memory at a time.

    Args:
      out: the folder, new or empty.
      shapes: every weight's shape and dtype, by dotted name.
      read: names -> those weights, called once a file.
      config: the configuration of the run.
      facts: where the weights come from, kept in config.json as `export`; at least `step`.
      texts: files to lie beside them by name, such as README.md.
      file_bytes: the size above which a file is split.
    Returns:
      The names of the files with weights.
    Raises:
      UserError: as `whole_folder`.
    """
    groups = _groups(shapes, file_bytes)
    count = len(groups)
    files = [_WHOLE] if count == 1 else [f"model-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]
    with whole_folder(out) as folder:
        for file, names in zip(files, groups, strict=True):
            weights = {name: np.asarray(array, order="C") for name, array in read(names).items()}
            save(folder / file, weights)
        if count > 1:
            where = {name: file for file, names in zip(files, groups, strict=True) for name in names}
            _write_json(folder / _INDEX, {"metadata": {"total_size": total_bytes(shapes)}, "weight_map": where})
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        _write_json(folder / _CONFIG, {**config, "export": dict(facts)})
    return files


def shape(weight: np.ndarray) -> jax.ShapeDtypeStruct:
    """The shape and dtype of a weight."""
    return jax.ShapeDtypeStruct(weight.shape, weight.dtype)


def write_transformers(
    out: str | Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray], texts: Mapping[str, str]
) -> list[str]:
    """Writes a folder that transformers loads: model.safetensors, config.json, and texts beside them.

    Args:
      out: the folder, new or empty.
      config: as its configuration class has it.
      tensors: as its model class names them.
      texts: as in `write`.
    Returns:
      The names of the files with weights.
    Raises:
      UserError: as `whole_folder`.
    """
    with whole_folder(out) as folder:
        save(folder / _WHOLE, tensors, "pt")
        for name, text in texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        _write_json(folder / _CONFIG, config)
    return [_WHOLE]


def total_bytes(shapes: Shapes) -> int:
    """What arrays of these shapes and dtypes take."""
    return sum(shape.size * shape.dtype.itemsize for shape in shapes.values())


def _groups(shapes: Shapes, limit: int) -> list[list[str]]:
    groups = []
    room = 0
    for name, shape in shapes.items():
        size = total_bytes({name: shape})
        if not groups or size > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    return groups


def save(path: Path, weights: Mapping[str, np.ndarray], form: str = "flax") -> None:
    """Writes a safetensors file; `form` is the library that it tells that it is of."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(dict(weights), path, metadata={"format": form})
    except SafetensorError as error:  # its own words for what the system said
        raise OSError(None, str(error), str(path)) from error
    path.chmod(path.parent.stat().st_mode & 0o666)  # safetensors lets nobody but the owner read it


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def dotted(tree: Any, separator: str = ".") -> dict[str, Any]:
    """The leaves of nested dicts by their joined keys."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {separator.join(str(getattr(key, "key", key)) for key in keys): leaf for keys, leaf in leaves}


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts of leaves that are named by their dotted keys; UserError where one lies inside another."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split(".")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or last in node:
            raise UserError(f"the weight '{name}' and another lie inside each other: {REMEDY}")
        node[last] = leaf
    return tree


# MARK: the way back


def shapes(folder: str | Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Every weight's shape and dtype by dotted name, from the files' headers alone."""
    found = {}
    for path in _files(folder):
        with _opened(path) as file:
            for name in file.keys():
                weight = file.get_slice(name)
                dtype = np.dtype(jax.numpy.dtype(_DTYPES[weight.get_dtype()]))
                found[name] = jax.ShapeDtypeStruct(tuple(weight.get_shape()), dtype)
    return found


def load(folder: str | Path) -> dict[str, np.ndarray]:
    """All weights by dotted name."""
    return {name: weight[...] for name, weight in _weights(folder, None)}


def place(folder: str | Path, wanted: Shapes) -> dict[str, jax.Array]:
    """Weights as arrays of the wanted dtypes under the wanted shardings; only what this process holds is read."""

    return {name: _placed(weight, wanted[name]) for name, weight in _weights(folder, wanted)}


def _placed(weight: Any, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    if jax.dtypes.issubdtype(wanted.dtype, jax.dtypes.prng_key):
        return jax.device_put(jax.random.wrap_key_data(weight[...]), wanted.sharding)

    def part(index: tuple[slice, ...]) -> np.ndarray:
        return np.asarray(weight[index], wanted.dtype)

    return jax.make_array_from_callback(wanted.shape, wanted.sharding, part)


def _weights(folder: str | Path, names: Iterable[str] | None) -> Iterator[tuple[str, Any]]:
    wanted = None if names is None else set(names)
    for path in _files(folder):
        with _opened(path) as file:
            for name in file.keys():
                if wanted is None or name in wanted:
                    yield name, file.get_slice(name)


def _files(folder: str | Path) -> list[Path]:
    folder = Path(folder)
    if (folder / _WHOLE).is_file():
        return [folder / _WHOLE]
    with reading(folder / _INDEX, "the index of an exported model", REMEDY):
        files = sorted(set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
        if not files or any(Path(file).name != file for file in files):  # in this folder, and nowhere else
            raise ValueError("it does not name the files beside it")
    return [folder / file for file in files]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import safe_open

    with reading(path, do=REMEDY), safe_open(path, framework="np") as file:
        yield file
