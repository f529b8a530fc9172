"""The fields of a configuration that the device mesh is made of; without JAX: presets begin with them."""

from collections.abc import Mapping
from dataclasses import dataclass

from hiermusic.errors import UserError

AXES = ("data", "fsdp", "context", "tensor")


@dataclass(frozen=True)
class MeshConfig:
    """The fields of `config.mesh`; by default all devices share the batch.

    Args:
      data, fsdp, context, tensor: devices along each axis; one may be -1, which takes what is left.
      across: the axis that runs from slice to slice.
    Raises:
      UserError: an unknown axis, a size that is no count, or several of -1.
    """

    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1
    across: str = "data"

    def __post_init__(self):
        check_axes([*self.sizes, self.across])
        check_sizes(tuple(self.sizes.values()))

    @property
    def sizes(self) -> dict[str, int]:
        """Axis -> devices."""
        return {axis: getattr(self, axis) for axis in AXES}

    @classmethod
    def of(cls, fields: Mapping[str, int | str]) -> "MeshConfig":
        """The config of a mapping, in which `data` takes what is left where it is left out and nothing else does."""
        check_axes([name for name in fields if name != "across"])
        rest = {} if "data" in fields or -1 in fields.values() else {"data": -1}
        return cls(**{"data": 1, **rest, **fields})


def check_axes(names: list[str]) -> None:
    """UserError for an axis that no mesh has."""
    if unknown := [name for name in names if name not in AXES]:
        raise UserError(f"mesh axis '{unknown[0]}' is unknown: choose from {', '.join(AXES)}")


def check_sizes(shape: tuple[int, ...]) -> None:
    """UserError for sizes along `AXES` that no mesh can have."""
    known = all(isinstance(size, int) and (size == -1 or size > 0) for size in shape)
    if not known or shape.count(-1) > 1:
        raise UserError(f"mesh {words(shape)}: sizes are counts of devices, and only one may be -1")


def words(shape: tuple[int, ...]) -> str:
    """Sizes along `AXES`, for messages."""
    return ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
