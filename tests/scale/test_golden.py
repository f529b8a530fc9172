"""Where every weight lies on the named slices, and what a step sends over the mesh: differences show in a review.

`HIERMUSIC_GOLDEN=write pytest tests/scale/test_golden.py` writes the files anew.
"""

import json
import os
from collections import Counter
from pathlib import Path

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from hiermusic.parallel.collectives import collectives
from hiermusic.parallel.mesh import AXES, shardings
from hiermusic.systems import workdir
from hiermusic.train import loop
from tests.scale.presets import Placed, batches, load, small

GOLDEN = Path(__file__).parent / "golden"
SLICES = {  # data, fsdp, context, tensor
    "v5e:4x4": (1, 16, 1, 1),
    "v5p:4x4x8": (1, 64, 1, 2),
    "v6e:16x16": (1, 128, 1, 2),
    "v6e:16x16 x 2": (2, 64, 1, 4),
}
MESHES = {"data": {"data": 8}, "fsdp": {"fsdp": 8}, "tensor": {"tensor": 4}, "context": {"context": 4}}


def holds(name: str, found: dict) -> None:
    """Asserts that a golden file says what was found."""
    place = GOLDEN / name
    if os.environ.get("HIERMUSIC_GOLDEN") == "write":
        place.write_text(json.dumps(found, indent=1) + "\n")
    assert json.loads(place.read_text()) == found


@pytest.mark.parametrize("stage", ["codec", "backbone", "superres"])
def test_every_weight_lies_where_it_lay(stage):
    _, state = loop.abstract_state(workdir.stage(load(stage, "paper")), 0)
    found = {}
    for name, sizes in SLICES.items():
        mesh = AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))
        kept = {part: shardings(state, mesh)[part] for part in ("model", "discriminator") if part in state}
        specs = {
            jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value"): str(tuple(leaf.spec))
            for path, leaf in jax.tree_util.tree_leaves_with_path(kept)
        }
        found[name] = specs
    holds(f"{stage}.json", found)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_a_step_sends_what_it_sent(mesh):
    placed = Placed(small("backbone", MESHES[mesh]))
    ((task, batch),) = batches(placed.stage, 1)
    with jax.set_mesh(placed.mesh):
        state = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), placed.abstract, placed.placement
        )
        program = placed.update.lower(*placed.arguments(state, 0, task, batch)).compile()
    found = collectives(program.as_text())
    counts = Counter()
    for part in found:
        counts[part.kind] += part.count
    assert all(part.loops_known for part in found)
    if mesh == "data":  # gradients and metrics are summed, and nothing else is sent
        assert set(counts) == {"all-reduce"}
    if mesh == "tensor":  # two sums forward and two backward a layer at the least
        assert counts["all-reduce"] >= 4 * 2
    version = ".".join(jax.__version__.split(".")[:2])
    place = GOLDEN / "collectives.json"
    golden = json.loads(place.read_text()) if place.exists() else {}
    if os.environ.get("HIERMUSIC_GOLDEN") == "write":
        place.write_text(json.dumps(golden | {"jax": version, mesh: dict(sorted(counts.items()))}, indent=1) + "\n")
    elif golden["jax"] != version:
        pytest.skip(f"counted with jax {golden['jax']}, this is {version}")
    else:
        assert golden[mesh] == counts
