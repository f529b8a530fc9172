"""The device mesh, and one typed table from the logical axes of arrays to the axes of the mesh."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from hiermusic.errors import UserError
from hiermusic.parallel.settings import AXES, MeshConfig, check_axes, check_sizes, words

MeshAxes = str | tuple[str, ...] | None


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None, across: str = "data") -> Mesh:
    """A mesh with all of `AXES`, those not named having size 1.

    Args:
      sizes: devices along each axis; one may be -1, which takes what is left.
      devices: all of this job's devices by default.
      across: the axis that runs from slice to slice where the devices lie on several, joined by a slower network; the
        others stay within a slice.
    Raises:
      UserError: for an unknown axis, a size that is no count, or sizes that do not fill the devices exactly.
    """
    devices = jax.devices() if devices is None else devices
    check_axes([*sizes, across])
    shape = [sizes.get(axis, 1) for axis in AXES]
    check_sizes(tuple(shape))
    if -1 in shape:
        fixed = math.prod(size for size in shape if size != -1)
        if len(devices) % fixed:
            raise UserError(f"mesh {words(tuple(shape))}: {fixed} does not divide the {len(devices)} devices")
        shape[shape.index(-1)] = len(devices) // fixed
    if math.prod(shape) != len(devices):
        raise UserError(
            f"mesh {words(tuple(shape))} has {math.prod(shape)} places for {len(devices)} devices: set one axis to -1"
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
    outer = [slices if axis == across else 1 for axis in AXES]
    if any(size % parts for size, parts in zip(shape, outer, strict=True)):
        raise UserError(
            f"mesh {words(tuple(shape))}: {across} runs across the {slices} slices and must be a multiple of {slices}; "
            "set mesh.across to let another axis do so"
        )
    inner = [size // parts for size, parts in zip(shape, outer, strict=True)]
    placed = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_of(config: MeshConfig | None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a run; a single device where its configuration has none; errors as in `make_mesh`."""
    if config is None:
        return make_mesh({}, (jax.devices() if devices is None else devices)[:1])
    return make_mesh(config.sizes, devices, config.across)


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
    latent: MeshAxes = "fsdp"
    channels: MeshAxes = "fsdp"
    hidden: MeshAxes = "tensor"
    rank: MeshAxes = None

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


_WHOLE = ("heads", "kv_heads", "mlp", "hidden")  # splitting the model is the point of these: never silently left whole


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
        axes = leaf.get_metadata().get("axes")
        shape = jax.tree.leaves(leaf)[0].shape
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


_KEPT_APART = ("embed", "channels", "latent")  # what `fsdp` splits to save memory, not to share work


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gathered(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """A weight made whole along `fsdp` to be read, its gradient summed right into the parts it is kept in.

    Without the second half every device would receive the gradient of the whole weight, only to drop most of it.

    Args:
      x: the weight.
      axes: its logical axes.
    """
    return constrain(x, *(None if axis in _KEPT_APART else axis for axis in axes))


gathered.defvjp(lambda x, axes: (gathered(x, axes), None), lambda axes, _, cotangent: (constrain(cotangent, *axes),))


def batch_sharding(mesh: Mesh, rules: Rules = Rules()) -> NamedSharding:
    """Splits the first dimension of a batch, and only that."""
    return NamedSharding(mesh, rules.spec(["batch"]))


class BatchPlacement:
    """Which rows of a global batch this process makes, and how they become arrays split over the mesh.

    A row is named by its index in the global batch, so the batch is the same however many processes make it.

    Args:
      mesh: the mesh.
      size: rows of the global batch.
    Raises:
      UserError: when the rows do not divide over the mesh's data axes.
    """

    def __init__(self, mesh: Mesh, size: int, rules: Rules = Rules()):
        self._split = batch_sharding(mesh, rules)
        self._whole = NamedSharding(mesh, PartitionSpec())
        self._size = size
        parts = math.prod(mesh.shape[name] for name in _names(rules.batch))
        if size % parts:
            raise UserError(
                f"train.batch_size={size} does not divide over the {parts} devices of mesh axes "
                f"{' x '.join(_names(rules.batch))}: make it a multiple of {parts}"
            )
        held = [range(size)[index] for (index,) in self._split.addressable_devices_indices_map((size,)).values()]
        self.rows = tuple(sorted({row for part in held for row in part}))

    def put(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Arrays whose first dimension is `rows` as global arrays; scalars are replicated."""
        return {name: self._place(np.asarray(value)) for name, value in batch.items()}

    def _place(self, value: np.ndarray) -> jax.Array:
        if value.ndim == 0:
            return jax.make_array_from_callback((), self._whole, lambda _: value)
        place = {row: index for index, row in enumerate(self.rows)}

        def part(index: tuple[slice, ...]) -> np.ndarray:
            return value[[place[row] for row in range(self._size)[index[0]]]][:, *index[1:]]

        return jax.make_array_from_callback((self._size, *value.shape[1:]), self._split, part)
