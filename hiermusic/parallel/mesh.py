"""The device mesh, and one typed table from the logical axes of arrays to the axes of the mesh."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hiermusic.errors import UserError

AXES = ("data", "fsdp", "context", "tensor")

MeshAxes = str | tuple[str, ...] | None


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with all of `AXES`, those not named having size 1.

    Args:
      sizes: devices along each axis; one may be -1, which takes what is left.
      devices: all of this job's devices by default.
    Raises:
      UserError: for an unknown axis, a size that is no count, or sizes that do not fill the devices exactly.
    """
    devices = jax.devices() if devices is None else devices
    unknown = [name for name in sizes if name not in AXES]
    if unknown:
        raise UserError(f"mesh axis '{unknown[0]}' is unknown: choose from {', '.join(AXES)}")
    shape = [int(sizes.get(axis, 1)) for axis in AXES]
    if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
        raise UserError(f"mesh {_words(shape)}: sizes are counts of devices, and only one may be -1")
    if -1 in shape:
        fixed = math.prod(size for size in shape if size != -1)
        if len(devices) % fixed:
            raise UserError(f"mesh {_words(shape)}: {fixed} does not divide the {len(devices)} devices")
        shape[shape.index(-1)] = len(devices) // fixed
    if math.prod(shape) != len(devices):
        raise UserError(
            f"mesh {_words(shape)} has {math.prod(shape)} places for {len(devices)} devices: set one axis to -1"
        )
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def _words(shape: Sequence[int]) -> str:
    return ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))


@dataclass(frozen=True)
class Rules:
    """Which mesh axis, or axes, each logical axis is split over; None keeps it whole."""

    batch: MeshAxes = ("data", "fsdp")
    positions: MeshAxes = "context"
    layers: MeshAxes = None
    embed: MeshAxes = "fsdp"
    mlp: MeshAxes = "tensor"
    heads: MeshAxes = "tensor"
    kv_heads: MeshAxes = "tensor"
    head_dim: MeshAxes = None
    vocab: MeshAxes = "tensor"
    levels: MeshAxes = None
    codes: MeshAxes = "tensor"
    channels: MeshAxes = None

    def spec(self, axes: Sequence[str | None]) -> PartitionSpec:
        """The partition of an array with these logical axes.

        Raises:
          UserError: for a logical axis that is not in the table, or a mesh axis that two of them claim.
        """
        known = {field.name for field in dataclasses.fields(self)}
        unknown = [axis for axis in axes if axis is not None and axis not in known]
        if unknown:
            raise UserError(f"logical axis '{unknown[0]}' of {tuple(axes)} has no rule: choose from {sorted(known)}")
        entries = [None if axis is None else getattr(self, axis) for axis in axes]
        claimed = [name for entry in entries for name in _names(entry)]
        twice = [name for name in claimed if claimed.count(name) > 1]
        if twice:
            raise UserError(f"logical axes {tuple(axes)} claim mesh axis '{twice[0]}' twice: change the rules of one")
        return PartitionSpec(*entries)


def _names(entry: MeshAxes) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry or ()


_WHOLE = ("heads", "kv_heads", "mlp")  # splitting the model is the point of these: never silently left whole


def shardings(tree: Any, mesh: Mesh, rules: Rules = Rules()) -> Any:
    """The sharding of every array in a (possibly abstract) tree of nnx variables, as a tree of the same structure.

    A variable's logical axes stand in its metadata `axes`; one without them, or whose value has another rank (some
    optimiser statistics), is replicated, and so is a dimension that its mesh axes do not divide.
    Raises:
      UserError: where heads, key-value heads or mlp do not divide, and as `Rules.spec`.
    """

    def place(path, leaf):
        if not isinstance(leaf, nnx.Variable):
            return NamedSharding(mesh, PartitionSpec())
        axes, shape = leaf.get_metadata().get("axes"), jax.tree.leaves(leaf)[0].shape
        if axes is None or len(axes) != len(shape):
            return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), leaf)
        entries = list(rules.spec(axes))
        for i, (axis, size, entry) in enumerate(zip(axes, shape, entries, strict=True)):
            parts = math.prod(mesh.shape[name] for name in _names(entry))
            if size % parts == 0:
                continue
            if axis in _WHOLE:
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                raise UserError(
                    f"{name}: {size} {axis} do not divide over {parts} devices of mesh axis '{entry}': "
                    f"choose a divisor of {size}"
                )
            entries[i] = None
        return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec(*entries)), leaf)

    return jax.tree_util.tree_map_with_path(place, tree, is_leaf=lambda x: isinstance(x, nnx.Variable))


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Asks the compiler to keep `x` split by these logical axes of the default rules; outside `jax.set_mesh`, nothing.

    Without it XLA may follow a weight's split instead of the batch's and gather activations in place of weights.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(AXES) <= set(mesh.axis_names):
        return x
    entries = Rules().spec(axes)
    fits = [size % math.prod(mesh.shape[n] for n in _names(e)) == 0 for size, e in zip(x.shape, entries, strict=True)]
    return jax.lax.with_sharding_constraint(
        x, PartitionSpec(*(entry if fit else None for entry, fit in zip(entries, fits, strict=True)))
    )


def batch_sharding(mesh: Mesh, rules: Rules = Rules()) -> NamedSharding:
    """Splits the first dimension of a batch, and only that."""
    return NamedSharding(mesh, rules.spec(["batch"]))


def workers() -> tuple[int, int]:
    """(which, of how many) processes this one is."""
    return jax.process_index(), jax.process_count()


def wait_for_all(name: str) -> None:
    """Returns when every process of the run has come to this point, which `name` tells from others."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def put(batch: Mapping[str, np.ndarray], mesh: Mesh, rules: Rules = Rules()) -> dict[str, jax.Array]:
    """This process's part of a batch as global arrays: first dimensions split over the mesh, scalars replicated.

    Raises:
      UserError: when the global batch does not divide over the mesh.
    """
    split = batch_sharding(mesh, rules)
    parts = math.prod(mesh.shape[name] for name in _names(rules.batch))

    def place(name: str, value: np.ndarray) -> jax.Array:
        value = np.asarray(value)
        if value.ndim == 0:
            return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec()), value)
        size = value.shape[0] * jax.process_count()
        if size % parts:
            raise UserError(
                f"batch '{name}' of {size} rows does not divide over {parts} devices of mesh axes "
                f"{', '.join(_names(rules.batch))}: make train.batch_size a multiple of {parts}"
            )
        return jax.make_array_from_process_local_data(split, value)

    return {name: place(name, value) for name, value in batch.items()}
