import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from hiermusic.nn import attention, attention_splash
from hiermusic.nn.attention import attend
from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.transformer import Transformer
from hiermusic.parallel.mesh import make_mesh, shardings
from hiermusic.tokens.visibility import Visibility

# With 4 heads and 2 key-value heads, 2 devices along `context` can exchange positions for heads; 4 and 8 cannot, and do
# not divide the 50 positions.
MESHES = [
    {"data": 4, "context": 2},
    {"data": 2, "context": 2, "tensor": 2},
    {"context": 4, "tensor": 2},
    {"context": 8},
    {"fsdp": 2, "tensor": 4},
    {"data": 8},
]
S = 50


def rules(s):
    return {
        "causal": Visibility.causal(),
        "full": Visibility.full(),
        "groups": Visibility.block_causal((1, 2, s // 3, s - 3 - s // 3)),
    }


def draw(s):
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=(4, heads, s, 16)), jnp.float32) / 2 for heads in (4, 2, 2)]
    return arrays, np.arange(s) < np.array([[s], [s], [s // 2], [s - 7]])


def run(arrays, rule, valid):
    def f(*x):
        out = attend(*x, visibility=rule, valid_BS=valid)
        return jnp.square(out).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True))(*arrays)
    return out, *grads


def agree(ours, others):
    for one, other in zip(ours, others, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@functools.cache
def one_device(s, rule, padded):
    arrays, valid = draw(s)
    return run(arrays, rules(s)[rule], valid if padded else None)


# every pair of mesh, rule and padding is met; all three of them together in the slow tests
CASES = [
    pytest.param(sizes, rule, padded, id=f"{sizes}-{rule}-{'padded' if padded else 'whole'}", marks=marks)
    for m, sizes in enumerate(MESHES)
    for r, rule in enumerate(rules(S))
    for padded in (False, True)
    for marks in [() if (m + r) % 2 == padded else pytest.mark.slow]
]


@pytest.mark.parametrize(("sizes", "rule", "padded"), CASES)
def test_every_mesh_equals_one_device(sizes, rule, padded):
    arrays, valid = draw(S)
    with jax.set_mesh(make_mesh(sizes)):
        ours = run(arrays, rules(S)[rule], valid if padded else None)
    agree(ours, one_device(S, rule, padded))


@pytest.mark.slow
@pytest.mark.parametrize("rule", rules(S))
@pytest.mark.parametrize("sizes", [MESHES[1], MESHES[3]], ids=str)
def test_splash_on_every_mesh_equals_one_device(sizes, rule, monkeypatch):
    s = 1100  # eight shards of more than one block, the last of them padded
    expected = one_device(s, rule, True)
    make = attention_splash.splash.make_splash_mha
    monkeypatch.setattr(attention_splash.splash, "make_splash_mha", functools.partial(make, interpret=True))
    monkeypatch.setattr(attention, "_platform", lambda: "tpu")
    arrays, valid = draw(s)
    with jax.set_mesh(make_mesh(sizes)):
        agree(run(arrays, rules(s)[rule], valid), expected)


@pytest.mark.parametrize("sizes", [{"context": 2}, {"context": 8}], ids=str)
def test_positions_are_exchanged_for_heads_or_keys_gathered(sizes):
    mesh = make_mesh(sizes, jax.devices()[: sizes["context"]])
    split = NamedSharding(mesh, PartitionSpec(None, None, "context"))
    placed = [jax.device_put(x, split) for x in draw(64)[0]]
    with jax.set_mesh(mesh):
        run = jax.jit(functools.partial(attend, visibility=Visibility.causal()), out_shardings=split)
        text = run.lower(*placed).compile().as_text()
    exchanged, gathered = " all-to-all(" in text, " all-gather(" in text
    assert (exchanged, gathered) == ((True, False) if sizes["context"] == 2 else (False, True))


TRUNK = TransformerConfig(layers=2, width=16, heads=4, kv_heads=2, head_dim=4, ffn_width=24, dtype="float32")


@pytest.mark.parametrize(
    ("sizes", "remat"), [({"context": 8}, "full"), ({"data": 2, "context": 2, "tensor": 2}, "none")], ids=str
)
def test_a_transformer_over_context_equals_one_device(sizes, remat):
    config = dataclasses.replace(TRUNK, remat=remat)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, config.width)), jnp.float32)
    valid = np.arange(32) < np.array([[32], [21]])

    def make():
        return Transformer(config, rngs=nnx.Rngs(0))

    def step(model, x):
        def loss(model):
            out = model(x, visibility=Visibility.causal(), valid_BS=valid)
            return jnp.where(valid[..., None], jnp.square(out), 0).mean()

        return jax.value_and_grad(loss)(model)

    loss, grads = jax.jit(step)(jax.jit(make)(), x)
    mesh = make_mesh(sizes)
    placed = shardings(nnx.eval_shape(make), mesh)
    with jax.set_mesh(mesh):
        model = jax.jit(make, out_shardings=placed)()
        split_loss, split_grads = jax.jit(step, out_shardings=(None, placed))(model, x)
    np.testing.assert_allclose(split_loss, loss, rtol=1e-5)
    agree(jax.tree.leaves(nnx.state(split_grads)), jax.tree.leaves(nnx.state(grads)))


def test_a_cache_is_extended_under_a_mesh():
    config = dataclasses.replace(TRUNK, layers=1)
    model = jax.jit(lambda: Transformer(config, rngs=nnx.Rngs(0)).unstack())()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, config.width)), jnp.float32)

    def decode(model, x, last):
        prompt, cache = model.extend(x[:, :8], model.init_cache(2, 12), 0, visibility=Visibility.causal())
        more, cache = model.extend(x[:, 8:11], cache, 8, visibility=Visibility.causal())
        token, _ = model.extend(x[:, 11:], cache, last, visibility=Visibility.causal())
        return jnp.concatenate([prompt, more, token], 1)

    alone = jax.jit(decode)(model, x, 11)
    mesh = make_mesh({"context": 2, "tensor": 2}, jax.devices()[:4])
    with jax.set_mesh(mesh):
        everywhere = jax.device_put((model, x), NamedSharding(mesh, PartitionSpec()))
        np.testing.assert_allclose(jax.jit(decode)(*everywhere, 11), alone, atol=1e-5)
