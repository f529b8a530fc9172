import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from hiermusic.nn import attention, attention_splash
from hiermusic.nn.attention import attend
from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.transformer import Transformer
from hiermusic.parallel.mesh import make_mesh, shardings
from hiermusic.tokens.visibility import Visibility

S = 300
RULES = {
    "causal": Visibility.causal(),
    "full": Visibility.full(),
    "groups": Visibility.block_causal((1, 2, 60, 100, S - 163)),
    "prefix": Visibility.prefix(140, S),
}


@pytest.fixture
def interpreted(monkeypatch):
    """Programs take TPU's kernel, in Pallas' interpreter."""
    make = attention_splash.splash.make_splash_mha
    monkeypatch.setattr(attention_splash.splash, "make_splash_mha", functools.partial(make, interpret=True))
    monkeypatch.setattr(attention, "_platform", lambda: "tpu")


def draw(kv_heads=2, s=S):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=(2, heads, s, 16)), jnp.float32) / 2 for heads in (4, kv_heads, kv_heads)]


def run(arrays, rule, valid):
    """The result and the three gradients; and the program, as text."""

    def f(*x):
        out = attend(*x, visibility=rule, valid_BS=valid)
        return jnp.square(out).sum(), out

    traced = jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True)).trace(*arrays)
    (_, out), grads = traced.lower().compile()(*arrays)
    return (out, *grads), str(traced.jaxpr)


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("rule", RULES)
def test_the_kernel_equals_xla_in_value_and_gradient(rule, padded, monkeypatch, interpreted):
    arrays = draw(kv_heads=1 if rule == "prefix" else 2)
    valid = np.arange(S) < np.array([[S], [170]]) if padded else None
    ours, program = run(arrays, RULES[rule], valid)
    monkeypatch.setattr(attention, "_platform", lambda: "cpu")
    plain, plain_program = run(arrays, RULES[rule], valid)
    assert program.count("pallas_call[") == 3 and "pallas_call[" not in plain_program
    for one, other in zip(ours, plain, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_row_that_sees_nothing_stays_finite(interpreted):
    valid = np.array([[False], [True]]) & np.ones(S, bool)
    results, _ = run(draw(), Visibility.full(), valid)
    assert all(np.isfinite(x).all() for x in results)


@pytest.mark.parametrize(
    ("rule", "s"),
    [(Visibility.of_groups([2] * 100 + [1] * 200), S), (Visibility.causal(), 100)],
    ids=["groups out of order", "short"],
)
def test_what_does_not_fit_is_left_to_xla(rule, s, interpreted):
    _, program = run(draw(s=s), rule, None)
    assert "pallas_call[" not in program


def test_no_mask_of_all_positions_is_made():
    """A track of 65,536 positions: its whole mask would take 4 GiB."""
    S = 65_536
    for rule in (Visibility.causal(), Visibility.full(), Visibility.block_causal((S // 4,) * 4)):
        q, k = (jax.ShapeDtypeStruct((1, heads, S, 64), jnp.bfloat16) for heads in (4, 2))
        closed = jax.make_jaxpr(functools.partial(attention_splash.attend, visibility=rule))(q, k, k, None)
        assert sum(np.size(const) for const in closed.consts) < 1e6


@pytest.mark.parametrize(
    ("length", "block"), [(16_384, 1024), (16_300, 1024), (640, 128), (1300, 128), (1500, 512), (130, 128)]
)
def test_blocks_are_large_and_waste_little(length, block):
    assert attention_splash._block(length) == block


TRUNK = TransformerConfig(layers=1, width=256, heads=8, kv_heads=4, head_dim=64, ffn_width=512, remat="full")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "sizes"),
    [
        ("causal", {"data": 2, "fsdp": 2, "context": 2, "tensor": 2}),
        ("full", {"fsdp": 16}),
        ("groups", {"data": 2, "context": 8}),
    ],
    ids=str,
)
def test_a_training_step_compiles_for_a_tpu_slice(rule, sizes, monkeypatch):
    pytest.importorskip("libtpu")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "true")
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:4x4")
    mesh, length = make_mesh(sizes, topology.devices), 2048
    visibility = Visibility.block_causal((length // 4,) * 4) if rule == "groups" else RULES[rule]
    abstract = nnx.eval_shape(lambda: Transformer(TRUNK, rngs=nnx.Rngs(0)))
    placed = shardings(abstract, mesh)
    model = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract, placed
    )
    batch = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    x = jax.ShapeDtypeStruct((16, length, TRUNK.width), jnp.bfloat16, sharding=batch)
    valid = jax.ShapeDtypeStruct((16, length), bool, sharding=batch)

    def step(model, x, valid):
        def loss(model):
            return jnp.square(model(x, visibility=visibility, valid_BS=valid).astype(jnp.float32)).mean()

        return jax.value_and_grad(loss)(model)

    with jax.set_mesh(mesh):
        compiled = jax.jit(step, out_shardings=(None, placed)).lower(model, x, valid).compile()
    # Forward, once more for the backward pass, and the gradients of queries and of keys and values.
    assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 4
