"""Checksums: the same on any mesh, another for any changed bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from hiermusic.parallel.mesh import make_mesh
from hiermusic.train import checksum
from hiermusic.train.checksum import of_arrays, of_values


@pytest.mark.parametrize("small", [0, 10**6])
def test_the_mesh_does_not_matter(monkeypatch, small):
    array = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    array[0, :3] = np.nan, -0.0, np.inf
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    specs = [PartitionSpec(), PartitionSpec("fsdp", "tensor"), PartitionSpec(("data", "fsdp", "tensor"))]
    split = [jax.device_put(array, NamedSharding(mesh, spec)) for spec in specs]
    monkeypatch.setattr(checksum, "_SMALL", small)
    assert len({of_arrays({"a": leaf})["a"] for leaf in (array, jnp.asarray(array), *split)}) == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint16", "int8", "bool"])
def test_every_bit_counts(dtype):
    array = np.asarray(np.random.default_rng(1).integers(0, 2, 40)).astype(jnp.dtype(dtype))
    right = of_arrays({"a": array})["a"]
    for byte in range(array.nbytes):
        for bit in range(1 if dtype == "bool" else 8):
            other = array.copy()
            other.view(np.uint8)[byte] ^= 1 << bit
            assert of_arrays({"a": other})["a"] != right


def test_places_count():
    array = np.arange(64, dtype=np.float32).reshape(4, 16)
    others = [array[::-1], array[:, ::-1], np.roll(array, 1), array[[1, 0, 2, 3]], np.zeros_like(array)]
    sums = [of_arrays({"a": np.ascontiguousarray(other)})["a"] for other in (array, *others)]
    assert len(set(sums)) == len(sums)


def test_keys_and_scalars_have_one():
    keys = {"a": jax.random.key(1), "b": jax.random.key(2), "c": jnp.float32(3), "d": jnp.zeros((0, 3))}
    sums = of_arrays(keys)
    assert sums["a"] != sums["b"] and sums["c"] and sums["d"] == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint16", "int8", "bool"])
def test_a_small_array_is_summed_without_a_program_and_to_the_same(monkeypatch, dtype):
    drawn = np.random.default_rng(2).normal(size=(3, 5, 7)) * 100
    arrays = {"cube": drawn, "one": drawn[0, 0, 0], "none": drawn[:0], "row": drawn[0, 0]}
    arrays = {name: jnp.asarray(array.astype(jnp.dtype(dtype))) for name, array in arrays.items()}
    monkeypatch.setattr(checksum, "_SMALL", -1)
    by_program = of_arrays(arrays)
    monkeypatch.undo()
    monkeypatch.setattr(checksum, "_program", None)
    assert of_arrays(arrays) == by_program == of_arrays({name: np.asarray(array) for name, array in arrays.items()})


def test_values():
    assert of_values({"step": 3, "guard": "x"}) == of_values({"guard": "x", "step": 3}) != of_values({"step": 3})


def test_what_lies_on_one_device_is_summed_there_whatever_mesh_is_in_force(monkeypatch):
    monkeypatch.setattr(checksum, "_SMALL", 0)  # as a large array is
    one = jax.device_put(np.arange(6, dtype=np.float32), jax.devices()[0])
    alone = of_arrays({"x": one})
    with jax.set_mesh(make_mesh({"data": 8})):
        assert of_arrays({"x": one}) == alone
