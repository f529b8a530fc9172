"""Compiling a program for devices that are not there, and what the compiler says of it."""

import dataclasses
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from hiermusic.errors import UserError
from hiermusic.parallel.chips import Chip
from hiermusic.parallel.collectives import collectives
from hiermusic.parallel.roofline import Load, predict

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Job:
    """A program to compile, and what it asks for when it runs.

    Args:
      name: what it does.
      lower: traces it for its mesh; called under `jax.set_mesh`, so nothing in it may run eagerly.
      load: for the prediction; called only when the program fits, outside any mesh.
    """

    name: str
    lower: Callable[[], jax.stages.Lowered]
    load: Callable[[], Load]


def examine(job: Job, mesh: Mesh, chip: Chip) -> dict[str, Any]:
    """Compiles a program and gathers the facts, as plain JSON.

    Returns:
      `name`, `fits`, `lower_seconds`, `compile_seconds`, `error` (the compiler's words where memory does not suffice,
      else None); where it fits also `bytes_per_chip` (`arguments`, `outputs`, `aliased`, `temporaries`, `peak`),
      `collectives` (None where this jaxlib cannot read libtpu's program) and `prediction`; where it does not,
      `bytes_per_chip` holds what the compiler tells: `wanted` of what kind of memory, and `available`.
    Raises:
      UserError: where the compiler refuses for another reason.
    """
    facts: dict[str, Any] = {"name": job.name, "error": None}
    with jax.set_mesh(mesh):
        start = time.perf_counter()
        lowered = job.lower()
        facts["lower_seconds"] = time.perf_counter() - start
        start = time.perf_counter()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise UserError(f"the compiler refuses '{job.name}': {str(error).splitlines()[0]}") from error
            facts |= {"fits": False, "compile_seconds": time.perf_counter() - start, "error": str(error)}
            return facts | {"bytes_per_chip": out_of_memory(str(error), chip)}
        facts |= {"fits": True, "compile_seconds": time.perf_counter() - start}
        memory = compiled.memory_analysis()
        sizes = {
            "arguments": memory.argument_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "peak": memory.peak_memory_in_bytes,
        }
        facts["bytes_per_chip"] = {name: size * chip.devices_per_chip for name, size in sizes.items()}
        try:
            facts["collectives"] = [dataclasses.asdict(c) for c in collectives(compiled.as_text())]
        except jax.errors.JaxRuntimeError:  # a libtpu that is newer than jaxlib writes what this one cannot read
            facts["collectives"] = None
    facts["prediction"] = dataclasses.asdict(predict(job.load(), mesh, chip))
    return facts


def out_of_memory(message: str, chip: Chip) -> dict[str, Any]:
    """What the compiler's refusal says: the `memory`'s kind, `wanted` and `available` bytes a chip (or None).

    The words differ from case to case: "(17.20G) exceeds available HBM (15.75G)", "Used 31.05G of 15.75G hbm".
    """
    found = re.search(r"\(([\d.]+)([KMGT]?)\) exceeds[^(]*\(([\d.]+)([KMGT]?)\)", message)
    found = found or re.search(r"([\d.]+)([KMGT]?) (?:of|and limit) ([\d.]+)([KMGT]?)", message)
    kind = "VMEM" if re.search(r"vmem", message, re.IGNORECASE) else "HBM"
    if not found:
        return {"memory": kind, "wanted": None, "available": None}
    wanted, available = (float(found[i]) * _UNITS[found[i + 1]] * chip.devices_per_chip for i in (1, 3))
    return {"memory": kind, "wanted": wanted, "available": available}
