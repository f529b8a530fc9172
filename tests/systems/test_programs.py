"""What a program of generation asks of a mesh, told from shapes alone."""

import math

import jax

from hiermusic.parallel.mesh import make_mesh
from hiermusic.parallel.roofline import Load
from hiermusic.systems import programs

from .fakes import configuration


def load(sizes: dict[str, int], **model) -> Load:
    """Of one pass of Khala's second model over four songs."""
    config = configuration("khala/superres:tiny", **model)
    config.train.batch_size = 4
    (job,) = programs.generation(config, make_mesh(sizes, jax.devices()[: math.prod(sizes.values())]))
    return job.load()


def test_a_mesh_shares_the_work_and_adds_none_to_it():
    one, four = load({"data": 1}), load({"data": 2, "fsdp": 2})
    assert (four.flops, four.tokens, four.seconds) == (one.flops, one.tokens, one.seconds) and one.flops > 0


def test_what_travels_is_of_the_type_that_is_computed_in():
    moved = {}
    for dtype in ("float32", "bfloat16"):
        transfers = load({"tensor": 2}, dtype=dtype, kv_heads=2).transfers
        moved[dtype] = sum(transfer.bytes for transfer in transfers if transfer.axis == "tensor")
    assert moved["float32"] == 2 * moved["bfloat16"] > 0
