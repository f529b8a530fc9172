"""TPU slices by name, as devices to compile for: nothing runs on them, and no TPU is needed."""

import importlib.util
import math
import os
import re

import jax

from hiermusic.errors import UserError

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SOLID = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16")
SHAPES = {"v4": _SOLID, "v5e": _FLAT, "v5p": _SOLID, "v6e": _FLAT, "tpu7x": _SOLID}
# Cloud's names count cores for these, chips for the others
_CORES = {"v4": 2, "v5p": 2}
_LARGEST = {"v4": 4096, "v5e": 256, "v5p": 6144, "v6e": 256, "tpu7x": 9216}
_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v5": "v5p", "v6lite": "v6e", "v7x": "tpu7x", "tpuv7x": "tpu7x"}

# libtpu looks for the machine it runs on; told that there is one, it neither asks the cloud nor warns
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_TOPOLOGY": "2x2",
    "TPU_HOST_BOUNDS": "1,1,1",
    "TPU_CHIPS_PER_HOST_BOUNDS": "2,2,1",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}


def parse(name: str) -> tuple[str, tuple[int, ...]]:
    """The chip and the shape of a slice, from its topology (`v6e:16x16`) or its Cloud name (`v6e-256`, `v5p-256`).

    Raises:
      UserError: for a chip or a shape that there is not.
    """
    match = re.fullmatch(r"([a-z0-9]+)(?::([0-9x]+)|-([0-9]+))", name.lower().strip())
    chip = _ALIASES.get(match[1], match[1]) if match else ""
    if chip not in SHAPES:
        raise UserError(f"topology '{name}' is unknown: choose from {_known()}")
    if match[2]:
        shape = tuple(int(size or 0) for size in match[2].split("x"))
    else:
        chips = int(match[3]) / _CORES.get(chip, 1)
        shape = next((_sizes(shape) for shape in SHAPES[chip] if math.prod(_sizes(shape)) == chips), ())
    if not _exists(chip, shape):
        raise UserError(f"topology '{name}': {chip} slices are {', '.join(SHAPES[chip])}")
    return chip, shape


def topology(name: str, slices: int = 1) -> list[jax.Device]:
    """The devices of one slice or of several, to make a mesh of and to compile for.

    Args:
      name: see `parse`.
      slices: equal slices, joined by the data-centre network.
    Raises:
      UserError: for a slice that there is not, a count below 1, or where libtpu is not installed or refuses.
    """
    chip, shape = parse(name)
    if slices < 1:
        raise UserError(f"--slices={slices}: there is at least one slice")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("compiling for a TPU needs its compiler: pip install 'hiermusic[tpu]'")
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    options = {"num_slices": slices} if slices > 1 else {}
    if chip == "v4":
        options["chip_config_name"] = "megacore"  # both cores of a chip are one device, as on a TPU VM
    if shape == (1, 1):
        options["chips_per_host_bounds"] = (1, 1, 1)
    text = f"{chip}:{'x'.join(map(str, shape))}"
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=text, **options).devices)
    except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"libtpu does not know the topology {text}: {reason}") from error


def _exists(chip: str, shape: tuple[int, ...]) -> bool:
    if "x".join(map(str, shape)) in SHAPES[chip]:
        return True
    cubes = len(shape) == 3 and SHAPES[chip] is _SOLID and all(size > 0 and size % 4 == 0 for size in shape)
    return cubes and math.prod(shape) <= _LARGEST[chip]


def _sizes(shape: str) -> tuple[int, ...]:
    return tuple(map(int, shape.split("x")))


def _known() -> str:
    return "; ".join(f"{chip}: {shapes[0]} .. {shapes[-1]}" for chip, shapes in SHAPES.items()) + ", as in v6e:16x16"
