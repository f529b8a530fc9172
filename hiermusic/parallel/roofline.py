"""How long a step takes at best, from analytic counts and data sheets: a prediction, nothing is measured.

A step is predicted to last

    max(compute, memory, ici, dcn) + blocking

- compute: floating-point operations, those recomputed under a remat policy with them, at the chips' peak;
- memory: bytes between a device and its HBM (`counting.product_bytes`, and the training state read and written once);
- ici, dcn: gathers of weights and sums of gradients, which run beside the products of other layers, within a slice and
  between slices;
- blocking: what the next product has to wait for: activations over `tensor` and `context`.

Everything within one of these is summed; that they overlap perfectly, and that products reach the peak, is the best
case. Collectives are priced as rings over the torus dimensions that a mesh axis lies along (Scaling Book, "Sharded
matrices"): an all-gather or a reduce-scatter of V bytes over n devices takes V (n - 1) / n / bandwidth, an all-reduce
twice that, an all-to-all a quarter of its gather. Between slices every device carries its own share of the sum.
XLA's own estimates are not used: they see a loop's body once.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from hiermusic.parallel.chips import Chip


@dataclass(frozen=True)
class Transfer:
    """A collective over one mesh axis.

    Args:
      kind: "all-gather", "reduce-scatter", "all-reduce" or "all-to-all".
      axis: of the mesh.
      bytes: of the array gathered or reduced, as one device ends or begins with it whole; of an all-to-all, what one
        device holds.
      blocking: nothing can be computed meanwhile.
    """

    kind: str
    axis: str
    bytes: float
    blocking: bool = False


@dataclass(frozen=True)
class Load:
    """What one step asks for.

    Args:
      flops: of the model over the whole mesh, nothing counted twice (for MFU).
      recomputed: of what is computed again in the backward pass, over the whole mesh.
      memory: bytes each device moves to and from its HBM.
      transfers: collectives.
      tokens, seconds: codes and seconds of audio in a step.
    """

    flops: float
    recomputed: float
    memory: float
    transfers: tuple[Transfer, ...]
    tokens: float
    seconds: float


@dataclass(frozen=True)
class Prediction:
    """Seconds that each part of a step takes, and what follows from the whole; see the top of this file."""

    step_seconds: float
    bound_by: str
    compute_seconds: float
    memory_seconds: float
    ici_seconds: float
    dcn_seconds: float
    blocking_seconds: float
    mfu: float
    tokens_per_second: float
    audio_seconds_per_second: float


def predict(load: Load, mesh: Mesh, chip: Chip) -> Prediction:
    """The best case of one step on all devices of a mesh of these chips."""
    per_device = chip.device_flops * mesh.size
    parts = {
        "compute": (load.flops + load.recomputed) / per_device,
        "memory": load.memory / (chip.memory_bandwidth / chip.devices_per_chip),
        "ici": 0.0,
        "dcn": 0.0,
    }
    blocking = 0.0
    for transfer in load.transfers:
        ici, dcn = transfer_seconds(transfer, mesh, chip)
        if transfer.blocking:
            blocking += ici + dcn
        else:
            parts["ici"], parts["dcn"] = parts["ici"] + ici, parts["dcn"] + dcn
    bound_by = max(parts, key=parts.get)
    step = parts[bound_by] + blocking
    return Prediction(
        step_seconds=step,
        bound_by=bound_by if blocking < parts[bound_by] else "blocking",
        **{f"{name}_seconds": seconds for name, seconds in parts.items()},
        blocking_seconds=blocking,
        mfu=load.flops / per_device / step,
        tokens_per_second=load.tokens / step,
        audio_seconds_per_second=load.seconds / step,
    )


def transfer_seconds(transfer: Transfer, mesh: Mesh, chip: Chip) -> tuple[float, float]:
    """Seconds of a collective within the slices, and between them."""
    size = mesh.shape[transfer.axis]
    if size == 1:
        return 0.0, 0.0
    line = _line(mesh, transfer.axis)
    slices = len({_slice(device) for device in line})
    inner = size // slices
    times = 2 if transfer.kind == "all-reduce" else 1
    ici = dcn = 0.0
    if transfer.kind == "all-to-all":
        share = inner / 4 if chip.ici_axes else (inner - 1) / inner
        ici = transfer.bytes * share / bandwidth(mesh, transfer.axis, chip) if inner > 1 else 0.0
        dcn = transfer.bytes * (slices - 1) / slices / _dcn(chip)
    else:
        if inner > 1:
            ici = times * transfer.bytes * (inner - 1) / inner / bandwidth(mesh, transfer.axis, chip)
        dcn = times * transfer.bytes / inner * (slices - 1) / slices / _dcn(chip)
    return ici, dcn


def bandwidth(mesh: Mesh, axis: str, chip: Chip) -> float:
    """Bytes a second that a device sends along a mesh axis within its slice.

    Of a torus, every dimension that the axis lies along gives one link, or two where it closes into a ring; devices
    that share a chip share its links.
    """
    if not chip.ici_axes:
        return chip.ici_bandwidth
    line = [device for device in _line(mesh, axis) if _slice(device) == _slice(mesh.devices.flat[0])]
    whole = [device.coords for device in mesh.devices.flat]
    links = 0
    for dimension in range(chip.ici_axes):
        length = len({device.coords[dimension] for device in line})
        if length > 1:
            closes = length == len({coords[dimension] for coords in whole}) and length % chip.ring == 0
            links += 2 if closes else 1
    if not links:  # cores of one chip
        return chip.memory_bandwidth
    return links * chip.ici_bandwidth / chip.devices_per_chip


def _line(mesh: Mesh, axis: str) -> list[jax.Device]:
    """The devices along a mesh axis, from the first."""
    place = mesh.axis_names.index(axis)
    return list(mesh.devices[tuple(slice(None) if i == place else 0 for i in range(mesh.devices.ndim))])


def _slice(device: jax.Device) -> int:
    return getattr(device, "slice_index", None) or 0


def _dcn(chip: Chip) -> float:
    return chip.dcn_bandwidth / chip.devices_per_chip


def weight_transfers(
    weights: Iterable[tuple[tuple[int, ...], jax.sharding.PartitionSpec]], mesh: Mesh, itemsize: int, gathers: int
) -> list[Transfer]:
    """The collectives that training asks of sharded weights: gathers over `fsdp`, sums of gradients over the batch.

    A weight split over `fsdp` is gathered before it is used and its gradient reduced to the same split; what is left of
    the sum, over `data` and `context`, is an all-reduce.

    Args:
      weights: shape and partition of each.
      mesh: with the axes of `parallel.mesh.AXES`.
      itemsize: bytes of a number as it travels (of the compute type).
      gathers: how often a step uses a weight: forward, backward, and again where layers are recomputed.
    """
    split = reduced = whole = 0.0
    for shape, spec in weights:
        names = {name for entry in spec for name in ((entry,) if isinstance(entry, str) else entry or ())}
        size = itemsize * math.prod(shape) / (mesh.shape["tensor"] if "tensor" in names else 1)
        if "fsdp" in names:
            split += size
            reduced += size / mesh.shape["fsdp"]
        else:
            whole += size
    transfers = [Transfer("all-gather", "fsdp", split)] * gathers + [Transfer("reduce-scatter", "fsdp", split)]
    transfers += [Transfer("all-reduce", "fsdp", whole)]
    transfers += [Transfer("all-reduce", axis, whole + reduced) for axis in ("data", "context")]
    return [transfer for transfer in transfers if transfer.bytes and mesh.shape[transfer.axis] > 1]


def activation_transfers(
    mesh: Mesh,
    *,
    tokens: float,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    itemsize: int,
    passes: int,
) -> list[Transfer]:
    """The collectives that a transformer asks for its activations: sums over `tensor`, exchanges over `context`.

    Over `tensor` each of a layer's two sub-layers ends in a sum. Over `context` positions are exchanged for heads where
    those divide (DeepSpeed-Ulysses), otherwise keys and values are gathered.

    Args:
      tokens: positions that one device holds.
      layers, width, heads, kv_heads, head_dim: of the transformer.
      itemsize: bytes of an activation.
      passes: forward, backward, and again where layers are recomputed.
    """
    tensor, context = mesh.shape["tensor"], mesh.shape["context"]
    transfers = []
    if tensor > 1:
        size = 2 * layers * tokens * width * itemsize
        transfers += [Transfer("all-reduce", "tensor", size, blocking=True)] * passes
    if context > 1:
        exchanged = heads % (tensor * context) == 0 and kv_heads % (tensor * context) == 0
        if exchanged:
            size = layers * tokens * 2 * (heads + kv_heads) * head_dim * itemsize / tensor
            transfers += [Transfer("all-to-all", "context", size, blocking=True)] * passes
        else:
            size = layers * tokens * context * 2 * kv_heads * head_dim * itemsize / tensor
            transfers += [Transfer("all-gather", "context", size, blocking=True)] * passes
            transfers += [Transfer("reduce-scatter", "context", size, blocking=True)]
    return transfers
