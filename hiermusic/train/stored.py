"""What is done with a checkpoint at rest: told apart, read piece by piece, rewritten for another mesh."""

import math
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from hiermusic.errors import UserError
from hiermusic.pretrained import export
from hiermusic.train import checkpoint
from hiermusic.train.checkpoint import Tree
from hiermusic.train.lent import own


def describe(workdir: str | Path, step: int | None = None, weights: bool = False) -> dict[str, Any]:
    """What a checkpoint consists of, from its metadata alone: nothing is allocated, whatever mesh wrote it.

    Args:
      workdir: a training run or an exported model.
      step: which checkpoint; default the newest.
      weights: lists every weight to infer with.
    Returns:
      `steps` kept, the `step`, the `mesh` that wrote it (None where it is not told), its `bytes` on disk, for each of
      the `parts` its `arrays`, the `numbers` in them and how many of these are of each of the `dtypes`; with `weights`
      the name, shape and dtype of each.
    Raises:
      UserError: no such checkpoint, or unreadable metadata.
    """
    from orbax.checkpoint import v1 as ocp

    kept = checkpoint.steps(workdir)
    if export.is_export(workdir):
        step = checkpoint.exported_step(workdir, step)
        path = Path(workdir)
        parts: Tree = {"model": export.nested(export.shapes(workdir))}
    else:
        path = checkpoint.find(workdir, step)
        step = int(path.name)
        with checkpoint.read_errors(path):
            parts = ocp.checkpointables_metadata(path).metadata
    facts: dict[str, Any] = {
        "steps": kept,
        "step": step,
        "mesh": _mesh_of(parts),
        "bytes": sum(file.stat().st_size for file in path.rglob("*") if file.is_file()),
        "parts": {name: _amounts(parts[name]) for name in ("model", "ema", "train", "data") if name in parts},
    }
    if weights:
        leaves = export.dotted(parts["ema" if "ema" in parts else "model"])
        facts["weights"] = [
            {"name": name, "shape": list(leaf.shape), "dtype": np.dtype(leaf.dtype).name}
            for name, leaf in leaves.items()
        ]
    return facts


def _mesh_of(parts: Tree) -> dict[str, int] | None:
    mesh: dict[str, int] = {}
    for leaf in jax.tree.leaves(parts):  # after `reshard` each names only the axes that it is split over
        sharding = getattr(leaf, "sharding_metadata", None)
        if hasattr(sharding, "axis_names"):
            for axis, size in zip(sharding.axis_names, sharding.shape, strict=True):
                mesh[axis] = max(mesh.get(axis, 1), int(size))
    return mesh or None


def _amounts(part: Tree) -> dict[str, Any]:
    dtypes: Counter[str] = Counter()
    leaves = jax.tree.leaves(part)
    for leaf in leaves:  # what the loop itself keeps are no arrays
        is_array = hasattr(leaf, "dtype")
        name = np.dtype(leaf.dtype).name if is_array else type(leaf).__name__
        dtypes[name] += math.prod(leaf.shape) if is_array else 1
    return {"arrays": len(leaves), "numbers": sum(dtypes.values()), "dtypes": dict(dtypes)}


@dataclass(frozen=True)
class StoredWeights:
    """The weights to infer with of a checkpoint, on disk until they are asked for.

    Args:
      step: of the checkpoint.
      part: `ema`, or `model` where the run kept no average.
      shapes: every weight's shape and dtype by dotted name.
      read: names -> those weights.
    """

    step: int
    part: str
    shapes: dict[str, jax.ShapeDtypeStruct]
    read: Callable[[Sequence[str]], dict[str, np.ndarray]]


def open_weights(workdir: str | Path, step: int | None = None, dtype: str | None = None) -> StoredWeights:
    """The weights of a training run, the newest or those of a step; floating-point ones as `dtype`, if it is given.

    Those of a run with adapters, merged, are all in memory.
    """
    from orbax.checkpoint import v1 as ocp

    path = checkpoint.find(workdir, step)
    part = checkpoint.weights_part(path)
    if checkpoint.tuning_of(workdir).rank:
        whole = export.dotted(checkpoint.load_weights(workdir, step))
        whole = {name: weight.astype(_cast(weight.dtype, dtype)) for name, weight in whole.items()}
        shapes = {name: export.shape(weight) for name, weight in whole.items()}
        return StoredWeights(int(path.name), part, shapes, lambda names: {name: whole[name] for name in names})
    saved = export.dotted(checkpoint.saved(path, part))
    shapes = {name: jax.ShapeDtypeStruct(leaf.shape, _cast(leaf.dtype, dtype)) for name, leaf in saved.items()}

    def read(names: Sequence[str]) -> dict[str, np.ndarray]:
        some = ocp.Context()
        some.pytree.loading.partial_load = True
        target = export.nested({name: np.empty(shapes[name].shape, shapes[name].dtype) for name in names})
        with some:
            return export.dotted(checkpoint.load(path, {part: target})[part])

    return StoredWeights(int(path.name), part, shapes, read)


def reshard(
    workdir: str | Path,
    out: str | Path,
    config: Mapping[str, Any],
    abstract: nnx.State,
    step: int | None = None,
    weights_only: bool = False,
    dtype: str | None = None,
) -> dict[str, Any]:
    """Writes a checkpoint of `workdir` into the new workdir `out`, its chunks on disk the shards that will be read.

    Args:
      workdir: of the training run.
      out: the new workdir; stands when all of it is written.
      config: of the new workdir, in JSON values: that of the run but for its mesh.
      abstract: the run's training state, with the shardings of the new mesh.
      step: which checkpoint; default the newest.
      weights_only: take the weights to infer with, as `model`, and leave optimisers, average and data state behind.
      dtype: of the floating-point weights, with `weights_only`.
    Returns:
      What `describe` says of it.
    Raises:
      UserError: no such checkpoint, one of another model, or an `out` that is in use or cannot be written.
    """
    from orbax.checkpoint import v1 as ocp

    if dtype and not weights_only:
        raise UserError("--dtype rounds the weights, from which training cannot go on exactly: add --weights_only")
    path = checkpoint.find(workdir, step)
    wanted = jax.tree.map(lambda leaf: _once(leaf, dtype), checkpoint.split(nnx.to_pure_dict(own(abstract))))
    with export.whole_folder(out) as folder:
        if weights_only:
            part = checkpoint.weights_part(path)
            parts = {"model": checkpoint.load(path, {part: wanted[part]})[part]}
        else:
            parts = checkpoint.load(path, {**wanted, "data": None})
        beside = {**checkpoint.beside(path), **checkpoint.checksums(parts)}
        ocp.save_checkpointables(folder / "checkpoints" / path.name, parts, custom_metadata=beside)
        if (Path(workdir) / "metrics.jsonl").exists():
            shutil.copy(Path(workdir) / "metrics.jsonl", folder)
        checkpoint.write_config(folder, config)
    return describe(out)


def _once(leaf: jax.ShapeDtypeStruct, dtype: str | None) -> jax.ShapeDtypeStruct:
    """The same split over those devices alone that hold different parts, so that each part is in memory once."""
    mesh, spec = leaf.sharding.mesh, leaf.sharding.spec
    used = {axis for entry in spec for axis in ((entry,) if isinstance(entry, str) else entry or ())}
    devices = mesh.devices[tuple(slice(None) if axis in used else slice(1) for axis in mesh.axis_names)]
    sharding = NamedSharding(Mesh(devices, mesh.axis_names), spec)
    return jax.ShapeDtypeStruct(leaf.shape, _cast(leaf.dtype, dtype), sharding=sharding)


def _cast(dtype: Any, wanted: str | None) -> Any:
    return jnp.dtype(wanted) if wanted and jnp.issubdtype(dtype, jnp.floating) else dtype
