"""The prediction is arithmetic: figures worked out by hand from data sheets."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from hiermusic.parallel.chips import CHIPS
from hiermusic.parallel.counting import product_bytes
from hiermusic.parallel.mesh import AXES
from hiermusic.parallel.roofline import (
    Load,
    Transfer,
    activation_transfers,
    bandwidth,
    predict,
    transfer_seconds,
    weight_transfers,
)

V5E, V5P, H100 = CHIPS["v5e"], CHIPS["v5p"], CHIPS["h100"]


def torus(shape, sizes, slices=1):
    """A mesh of chips whose axes follow the dimensions of the torus in order."""
    places = [(s, coords) for s in range(slices) for coords in np.ndindex(*shape)]
    devices = np.array([SimpleNamespace(coords=(*c, 0, 0)[:3], slice_index=s) for s, c in places], object)
    names = dict(zip(AXES, sizes, strict=True))
    return SimpleNamespace(devices=devices.reshape(sizes), axis_names=AXES, shape=names, size=devices.size)


def test_links_of_an_axis():
    mesh = torus((16, 16), (16, 16, 1, 1))
    assert bandwidth(mesh, "data", V5E) == 2 * 50e9  # a whole dimension of the pod is a ring
    assert bandwidth(torus((4, 4), (4, 4, 1, 1)), "data", V5E) == 50e9  # four of it are a line
    assert bandwidth(torus((16, 16), (1, 256, 1, 1)), "fsdp", V5E) == 4 * 50e9  # both dimensions
    assert bandwidth(torus((4, 4, 8), (4, 4, 1, 8)), "tensor", V5P) == 2 * 100e9
    assert bandwidth(torus((16, 16), (16, 4, 4, 1)), "fsdp", V5E) == 50e9  # a part of a ring is a line
    assert bandwidth(mesh, "data", H100) == 450e9


def test_collectives_over_a_ring():
    mesh = torus((16, 16), (16, 16, 1, 1))
    gather = 1e9 * 15 / 16 / 100e9
    assert transfer_seconds(Transfer("all-gather", "fsdp", 1e9), mesh, V5E) == (pytest.approx(gather), 0)
    assert transfer_seconds(Transfer("reduce-scatter", "data", 1e9), mesh, V5E) == (pytest.approx(gather), 0)
    assert transfer_seconds(Transfer("all-reduce", "data", 1e9), mesh, V5E) == (pytest.approx(2 * gather), 0)
    exchange = 16 * 1e9 / 4 / 100e9  # a quarter of the gather of what all of them hold
    assert transfer_seconds(Transfer("all-to-all", "data", 1e9), mesh, V5E) == (pytest.approx(exchange), 0)
    assert transfer_seconds(Transfer("all-reduce", "tensor", 1e9), mesh, V5E) == (0, 0)


def test_sums_across_slices_share_the_network():
    mesh = torus((4, 4), (8, 4, 1, 1), slices=2)
    ici, dcn = transfer_seconds(Transfer("all-reduce", "data", 1e9), mesh, V5E)
    assert ici == pytest.approx(2 * 1e9 * 3 / 4 / 50e9)
    assert dcn == pytest.approx(2 * 1e9 / 4 * 1 / 2 / 3.125e9)  # every device carries a quarter, half of it away


def test_a_step_lasts_as_long_as_its_slowest_part_and_what_blocks():
    mesh = torus((4, 4), (1, 4, 1, 4))
    transfers = (Transfer("all-gather", "fsdp", 1e9), Transfer("all-reduce", "tensor", 1e8, blocking=True))
    load = Load(
        flops=16 * 197e12, recomputed=16 * 197e12 / 4, memory=0.5 * 819e9, transfers=transfers, tokens=1000, seconds=50
    )
    told = predict(load, mesh, V5E)
    assert told.compute_seconds == pytest.approx(1.25) and told.memory_seconds == pytest.approx(0.5)
    assert told.ici_seconds == pytest.approx(1e9 * 3 / 4 / 50e9)
    assert told.blocking_seconds == pytest.approx(2 * 1e8 * 3 / 4 / 50e9)
    assert told.step_seconds == pytest.approx(1.25 + told.blocking_seconds) and told.bound_by == "compute"
    assert told.mfu == pytest.approx(1 / told.step_seconds)
    assert told.tokens_per_second == pytest.approx(1000 / told.step_seconds)
    assert told.audio_seconds_per_second == pytest.approx(50 / told.step_seconds)


def test_sharded_weights_are_gathered_and_their_gradients_scattered():
    mesh = torus((4, 4), (2, 4, 1, 2))
    weights = [((8, 16), P("fsdp", "tensor")), ((16,), P("tensor")), ((8, 4), P("fsdp", None))]
    split, whole = 2 * (8 * 16 / 2 + 8 * 4), 2 * (16 / 2)
    assert weight_transfers(weights, mesh, itemsize=2, gathers=3) == [
        *[Transfer("all-gather", "fsdp", split)] * 3,
        Transfer("reduce-scatter", "fsdp", split),
        Transfer("all-reduce", "fsdp", whole),
        Transfer("all-reduce", "data", whole + split / 4),
    ]
    alone = torus((1, 1), (1, 1, 1, 1))
    assert weight_transfers(weights, alone, itemsize=2, gathers=3) == []


def test_activations_over_tensor_and_context():
    sizes = {"tokens": 100, "layers": 3, "width": 32, "heads": 8, "kv_heads": 4, "head_dim": 4, "itemsize": 2}
    assert activation_transfers(torus((4, 4), (4, 4, 1, 1)), **sizes, passes=2) == []
    (summed, _) = activation_transfers(torus((4, 4), (4, 1, 1, 4)), **sizes, passes=2)
    assert summed == Transfer("all-reduce", "tensor", 2 * 3 * 100 * 32 * 2, blocking=True)
    (exchanged, _) = activation_transfers(torus((4, 4), (4, 1, 4, 1)), **sizes, passes=2)
    assert exchanged == Transfer("all-to-all", "context", 3 * 100 * 2 * (8 + 4) * 4 * 2, blocking=True)
    gathered = activation_transfers(torus((4, 4), (2, 1, 8, 1)), **sizes, passes=1)  # eight do not divide four heads
    assert [transfer.kind for transfer in gathered] == ["all-gather", "reduce-scatter"]
    assert gathered[0].bytes == 3 * 100 * 8 * 2 * 4 * 4 * 2


def test_products_read_and_write_their_arrays_once():
    x, w = jax.ShapeDtypeStruct((8, 16), jnp.bfloat16), jax.ShapeDtypeStruct((5, 16, 16), jnp.bfloat16)
    one = 2 * (8 * 16 + 16 * 16 + 8 * 16)
    assert product_bytes(lambda x, w: jnp.tanh(x @ w[0]) + 1, x, w) == one
    assert product_bytes(lambda x, w: jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0], x, w) == 5 * one
    assert product_bytes(lambda x, w: x + 1, x, w) == 0
