import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from hiermusic.errors import UserError
from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.token_lm import TokenLM, TokenLMConfig
from hiermusic.parallel.mesh import AXES, BatchPlacement, Rules, batch_sharding, make_mesh, shardings
from hiermusic.tokens.visibility import Visibility

TRUNK = TransformerConfig(
    layers=2, width=32, heads=4, kv_heads=2, head_dim=8, ffn_width=64, bias="all", dtype="float32", remat="full"
)
CONFIG = TokenLMConfig(TRUNK, levels=2, codes=16, text_size=24, end=3)


def make():
    return TokenLM(CONFIG, rngs=nnx.Rngs(0))


def draw():
    rng = np.random.default_rng(0)
    reads, targets = (rng.integers(-1, 16, (8, 12, 2), dtype=np.int32) for _ in range(2))
    return {
        "text": rng.integers(-1, 24, (8, 12), dtype=np.int32),
        "reads": reads,
        "targets": targets,
        "text_targets": np.where((targets < 0).all(-1), 3, -1).astype(np.int32),
        "valid": np.arange(12) < rng.integers(6, 13, (8, 1)),
    }


def step(model, batch):
    return jax.value_and_grad(lambda model: model.loss(batch, visibility=Visibility.causal())[0])(model)


@pytest.fixture(scope="module")
def one_device():
    loss, grads = jax.jit(step)(jax.jit(make)(), draw())
    return float(loss), nnx.state(grads)


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param({"data": 8}, id="data", marks=pytest.mark.slow),
        pytest.param({"data": 2, "fsdp": 2, "tensor": 2}, id="mixed"),
        pytest.param({"fsdp": -1}, id="fsdp", marks=pytest.mark.slow),
    ],
)
def test_a_step_on_eight_devices_equals_one(one_device, sizes):
    mesh = make_mesh(sizes)
    placed = shardings(nnx.eval_shape(make), mesh)
    with jax.set_mesh(mesh):
        model = jax.jit(make, out_shardings=placed)()
        loss, grads = jax.jit(step, out_shardings=(None, placed))(model, BatchPlacement(mesh, 8).put(draw()))
    assert model.trunk.layers.ffn.up[...].sharding.spec == PartitionSpec(None, "fsdp", "tensor")
    np.testing.assert_allclose(loss, one_device[0], rtol=1e-5)
    same = jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), nnx.state(grads), one_device[1])
    assert jax.tree.leaves(same) == []


def test_axes_are_all_there_and_one_takes_the_rest():
    mesh = make_mesh({"data": 2, "tensor": -1})
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "context": 1, "tensor": 4}
    assert mesh.axis_names == AXES


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"data": 3, "fsdp": -1}, "3 does not divide the 8 devices"),
        ({"data": 4}, "4 places for 8 devices"),
        ({"model": 8}, "'model' is unknown"),
        ({"data": -1, "fsdp": -1}, "only one may be -1"),
        ({"data": 0}, "counts of devices"),
    ],
)
def test_a_bad_mesh_is_one_line(sizes, words):
    with pytest.raises(UserError, match=rf"^[^\n]*{re.escape(words)}[^\n]*$"):
        make_mesh(sizes)


def test_rules_name_each_mesh_axis_once():
    assert Rules().spec(("embed", None, "mlp")) == PartitionSpec("fsdp", None, "tensor")
    with pytest.raises(UserError, match="'colour'"):
        Rules().spec(("embed", "colour"))
    with pytest.raises(UserError, match="'tensor' twice"):
        Rules().spec(("heads", "mlp"))


def test_heads_that_do_not_divide_are_named():
    mesh = make_mesh({"tensor": 4, "data": -1})
    with pytest.raises(UserError, match=r"trunk\.layers\.attention\.key.*2 kv_heads.*4 devices"):
        shardings(nnx.eval_shape(make), mesh)
    shared = dataclasses.replace(Rules(), kv_heads=None)
    placed = shardings(nnx.eval_shape(make), mesh, shared)
    assert placed.trunk.layers.attention.key.get_value().spec == PartitionSpec(None, "fsdp", None, None)


def test_other_dimensions_that_do_not_divide_stay_whole():
    config = dataclasses.replace(CONFIG, text_size=25)
    placed = shardings(nnx.eval_shape(lambda: TokenLM(config, rngs=nnx.Rngs(0))), make_mesh({"fsdp": 4, "tensor": 2}))
    assert placed.text_head.get_value().spec == PartitionSpec(None, "fsdp")


def test_put_splits_rows_and_replicates_scalars():
    mesh = make_mesh({"data": 4, "fsdp": 2})
    place = BatchPlacement(mesh, 8)
    assert place.rows == tuple(range(8))
    batch = place.put({"x": np.arange(16.0).reshape(8, 2), "level": np.int32(3)})
    assert batch["x"].sharding == batch_sharding(mesh)
    assert batch["x"].addressable_shards[0].data.shape == (1, 2)
    assert batch["level"].sharding.is_fully_replicated and int(batch["level"]) == 3
    np.testing.assert_array_equal(jnp.asarray(batch["x"]), np.arange(16.0).reshape(8, 2))
    with pytest.raises(UserError, match="batch_size=6 does not divide over the 8 devices of mesh axes data x fsdp"):
        BatchPlacement(mesh, 6)


def test_a_batch_is_whole_where_the_mesh_splits_only_positions():
    batch = BatchPlacement(make_mesh({"context": 4, "tensor": 2}), 3).put({"x": np.arange(12.0).reshape(3, 4)})
    assert batch["x"].sharding.is_fully_replicated
