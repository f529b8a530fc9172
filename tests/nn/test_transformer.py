import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.errors import UserError
from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.layer import Attention, FeedForward
from hiermusic.nn.norms import Norm
from hiermusic.nn.transformer import Transformer
from hiermusic.tokens.visibility import Visibility

B, S = 2, 14
KHALA = TransformerConfig(
    layers=2, width=16, heads=4, kv_heads=2, head_dim=4, ffn_width=24, bias="all", dtype="float32", init_std=0.2
)
CONFIGS = {
    "khala": KHALA,
    "hafm": dataclasses.replace(KHALA, ffn="geglu", positions="t5", qk_norm="rms", bias="none"),
    "aar": dataclasses.replace(
        KHALA, norm="layer", adaptive=True, ffn="gelu", positions="learned", max_positions=S, qk_norm="unit",
        bias="all_but_key",
    ),
    "musicgen": dataclasses.replace(KHALA, norm="layer", ffn="gelu", positions="none", qk_norm="layer"),
}  # fmt: skip
RULES = {"causal": Visibility.causal(), "full": Visibility.full(), "groups": Visibility.block_causal((2, 5, 7))}

_forward = jax.jit(Transformer.__call__, static_argnames="visibility")
_unstack = jax.jit(Transformer.unstack)


@functools.cache
def build(config):
    return jax.jit(lambda: Transformer(config, rngs=nnx.Rngs(0)))()


def draw(config):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(B, S, config.width)), jnp.float32)
    return x, jnp.asarray(rng.normal(size=(B, config.width)), jnp.float32) if config.adaptive else None


def rule_of(name):
    return RULES["groups" if name == "aar" else "causal"]


def forward(config, x, **arguments):
    return _forward(build(config), x, **arguments)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cache_is_as_large_as_told(dtype):
    config = dataclasses.replace(KHALA, layers=3, dtype=dtype)
    cache = jax.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)).init_cache(1, 7))
    held = [*cache.keys, *cache.values]
    assert config.cache_bytes(7) == sum(one.size * one.dtype.itemsize for one in held)


@pytest.mark.parametrize("name", CONFIGS)
def test_unstacked_equals_stacked(name):
    config = CONFIGS[name]
    x, cond = draw(config)
    stacked = build(config)
    single = _unstack(stacked)
    assert len(single.layers) == config.layers
    assert single.layers[1].ffn.up.get_metadata()["axes"] == ("embed", "mlp")
    assert stacked.layers.ffn.up[...].shape[0] == config.layers
    one, other = (_forward(model, x, visibility=rule_of(name), cond_BD=cond) for model in (stacked, single))
    np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("name", ["khala", "hafm", "aar"])
@pytest.mark.parametrize("traced", [False, True])
def test_extending_a_cache_equals_the_whole_row(name, traced):
    config, rule = CONFIGS[name], rule_of(name)
    x, cond = draw(config)
    whole = forward(config, x, visibility=rule, cond_BD=cond)
    model = _unstack(build(config))
    cache = model.init_cache(B, S)

    def extend(x, cache, start):
        return model.extend(x, cache, start, visibility=rule, adapted=model.adapt(cond))

    extend = jax.jit(extend) if traced else jax.jit(extend, static_argnums=2)
    parts = []
    for start, stop in ((0, 2), (2, 7), (7, 14)) if rule.kind == "groups" else ((0, 10), (10, 13), (13, 14)):
        part, cache = extend(x[:, start:stop], cache, start)
        parts.append(part)
    np.testing.assert_allclose(jnp.concatenate(parts, 1), whole, atol=2e-5)


@pytest.mark.parametrize("name", ["khala", "hafm"])
def test_padding_in_front_of_a_prompt_changes_nothing(name):
    config, pad = CONFIGS[name], 3
    x, _ = draw(config)
    whole = forward(config, x, visibility=Visibility.causal(), cond_BD=None)
    model = _unstack(build(config))
    cache = model.init_cache(B, S + pad)
    row = np.concatenate([np.full((B, pad, config.width), 7.0, np.float32), x], 1)
    valid = np.broadcast_to(np.arange(S + pad) >= pad, (B, S + pad))
    at = np.maximum(np.arange(S + pad)[None] - pad, 0)

    @jax.jit
    def prompt_and_rest(row, cache):
        rule = {"visibility": Visibility.causal(), "valid_BS": valid}
        prompt, cache = model.extend(row[:, :12], cache, 0, positions_Bs=at[:, :12], **rule)
        rest, _ = model.extend(row[:, 12:], cache, 12, positions_Bs=at[:, 12:], **rule)
        return jnp.concatenate([prompt, rest], 1)

    extended = prompt_and_rest(row, cache)
    assert np.isfinite(extended).all()
    np.testing.assert_allclose(extended[:, pad:], whole, atol=2e-5)


@pytest.mark.parametrize("rule", RULES)
def test_padding_at_the_end_changes_nothing(rule):
    x, _ = draw(KHALA)
    used = np.array([9, 0])[:, None]
    valid = np.arange(S) < used
    one = forward(KHALA, x, visibility=RULES[rule], valid_BS=valid)
    other = forward(KHALA, np.where(valid[..., None], x, np.float32(50)), visibility=RULES[rule], valid_BS=valid)
    assert np.isfinite(one).all() and np.isfinite(other).all()
    np.testing.assert_array_equal(one[0, :9], other[0, :9])
    assert (one[0, 9:] != other[0, 9:]).any()


@functools.cache
def gradient(remat):
    config = dataclasses.replace(KHALA, dropout=0.2, drop_path=0.3, remat=remat)
    x, _ = draw(config)

    def f(model):
        return jnp.square(model(x, visibility=Visibility.causal(), key=jax.random.key(1))).sum()

    return jax.tree.leaves(jax.jit(jax.grad(f))(build(config)))


@pytest.mark.parametrize("remat", ["dots", pytest.param("full", marks=pytest.mark.slow)])
def test_remat_keeps_the_gradient(remat):
    for one, other in zip(gradient("none"), gradient(remat), strict=True):
        assert np.abs(one).max() > 0
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_dropout_and_drop_path_need_a_key():
    x, _ = draw(KHALA)
    config = dataclasses.replace(KHALA, dropout=0.5, drop_path=0.5)
    calm = forward(KHALA, x, visibility=Visibility.causal(), cond_BD=None)
    np.testing.assert_array_equal(calm, forward(config, x, visibility=Visibility.causal(), cond_BD=None))
    noisy = [forward(config, x, visibility=Visibility.causal(), key=jax.random.key(i)) for i in (1, 1, 2)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert (noisy[0] != noisy[2]).any() and (noisy[0] != calm).any()


def test_grouped_heads_equal_repeated_heads():
    x, _ = draw(KHALA)
    few = build(KHALA)
    many = build(dataclasses.replace(KHALA, kv_heads=KHALA.heads))
    values = jax.tree.map(lambda a: a, nnx.state(few))
    attention = values["layers"]["attention"]
    for name in ("key", "value", "key_bias", "value_bias"):
        attention[name] = attention[name].replace(jnp.asarray(np.repeat(attention[name][...], 2, axis=-2)))
    model = nnx.merge(nnx.graphdef(many), values)
    one, other = (_forward(m, x, visibility=Visibility.causal(), cond_BD=None) for m in (few, model))
    np.testing.assert_allclose(one, other, atol=2e-5)


def scaled(qk_norm):
    """What attention takes its dot products of, and what it got from the projections."""
    config = dataclasses.replace(KHALA, layers=1, qk_norm=qk_norm, bias="none")
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(B, S, 4, 4)), rng.normal(size=(B, S, 2, 4))

    @jax.jit
    def scale(q, k):
        return jax.tree.map(lambda a: a[0], Attention(config, rngs=nnx.Rngs(0)))._scale(q, k)

    got = scale(q.astype(np.float32), k.astype(np.float32))
    return q.swapaxes(1, 2), k.swapaxes(1, 2), *got


def test_qk_norm_none_scales_queries():
    q, k, got_q, got_k = scaled("none")
    np.testing.assert_allclose(got_q, q / 2, atol=1e-6)
    np.testing.assert_allclose(got_k, k, atol=1e-6)


def test_qk_norm_rms_over_each_head():
    q, k, got_q, got_k = scaled("rms")
    np.testing.assert_allclose(got_q, q / np.sqrt(np.mean(q**2, -1, keepdims=True)) / 2, atol=1e-5)
    np.testing.assert_allclose(got_k, k / np.sqrt(np.mean(k**2, -1, keepdims=True)), atol=1e-5)


def test_qk_norm_unit_with_temperature_four():
    q, k, got_q, got_k = scaled("unit")
    np.testing.assert_allclose(got_q, 4 * q / np.linalg.norm(q, axis=-1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(got_k, k / np.linalg.norm(k, axis=-1, keepdims=True), atol=1e-5)


def test_qk_norm_layer_over_all_heads():
    q, k, got_q, got_k = scaled("layer")
    for x, got, scale in ((q, got_q, 0.5), (k, got_k, 1.0)):
        mean, std = x.mean((1, 3), keepdims=True), x.std((1, 3), keepdims=True)
        np.testing.assert_allclose(got, scale * (x - mean) / std, atol=1e-5)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norm_statistics_are_float32(kind):
    norm = Norm(nnx.Rngs(0), kind, (8,), ("embed",), eps=1e-6)
    x = jnp.asarray(np.random.default_rng(0).normal(3, 1, (4, 8)), jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    wide = wide - wide.mean(-1, keepdims=True) if kind == "layer" else wide
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True))
    assert norm(x).dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(norm(x), np.float64), expected, rtol=0.004)


@pytest.mark.parametrize("ffn", ["swiglu", "geglu", "gelu"])
def test_feed_forward_forms(ffn):
    config = dataclasses.replace(KHALA, layers=1, ffn=ffn, bias="none")
    x = np.random.default_rng(0).normal(size=(1, 3, 16))

    @jax.jit
    def run(x):
        module = jax.tree.map(lambda a: a[0], FeedForward(config, rngs=nnx.Rngs(0)))
        return module, module(x)

    module, out = run(x.astype(np.float32))

    def gelu(z):
        return z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))

    up = x @ np.asarray(module.up[...])
    hidden = gelu(up)
    if ffn != "gelu":
        gate = x @ np.asarray(module.gate[...])
        hidden = up * (gelu(gate) if ffn == "geglu" else gate / (1 + np.exp(-gate)))
    np.testing.assert_allclose(out, hidden @ np.asarray(module.down[...]), atol=1e-4)


def test_adaptive_norms_follow_the_condition():
    config = CONFIGS["aar"]
    x, cond = draw(config)
    one = forward(config, x, visibility=RULES["groups"], cond_BD=cond)
    other = forward(config, x, visibility=RULES["groups"], cond_BD=cond + np.array([[1.0], [0.0]], np.float32))
    assert (one[0] != other[0]).any()
    np.testing.assert_array_equal(one[1], other[1])
    gates, rest = np.split(np.asarray(build(config).layers.adapt.kernel[...]), [2], axis=2)
    assert np.abs(gates).max() < 1e-4 * np.abs(rest).max()


def test_norms_start_half_adapted():
    config = dataclasses.replace(CONFIGS["aar"], width=64, init_std=0.1)
    model = build(config)
    np.testing.assert_allclose(np.std(model.final_adapt.kernel[...]), 0.05, rtol=0.05)
    np.testing.assert_allclose(np.std(model.layers.adapt.kernel[...][:, :, 2:]), 0.05, rtol=0.05)
    np.testing.assert_allclose(np.std(model.layers.adapt.kernel[...][:, :, :2]), 1e-6, rtol=0.05)


def test_biases_of_all_but_keys():
    names = {name for name, value in vars(build(CONFIGS["aar"]).layers.attention).items() if value is not None}
    assert {"query_bias", "value_bias", "out_bias"} <= names and "key_bias" not in names


def test_the_temperature_of_unit_queries_is_at_most_a_hundred():
    config = dataclasses.replace(KHALA, layers=1, qk_norm="unit", bias="none")
    attention = jax.tree.map(lambda a: a[0], Attention(config, rngs=nnx.Rngs(0)))
    attention.log_scale[...] = jnp.array([1.0, 4.0, 5.0, 9.0])
    q, _ = attention._scale(jnp.ones((1, 1, 4, 4)), jnp.ones((1, 1, 2, 4)))
    np.testing.assert_allclose(q[0, :, 0, 0], np.minimum(np.exp([1, 4, 5, 9]), 100) / 2, rtol=1e-5)


def test_drop_path_grows_from_none_to_the_last_layers():
    x, _ = draw(KHALA)
    config = dataclasses.replace(KHALA, drop_path=1 - 1e-7)
    first = dataclasses.replace(KHALA, layers=1)
    state = nnx.state(build(KHALA))
    state["layers"] = jax.tree.map(lambda a: a[:1], state["layers"])
    alone = _forward(nnx.merge(nnx.graphdef(build(first)), state), x, visibility=Visibility.causal(), cond_BD=None)
    made = forward(config, x, visibility=Visibility.causal(), key=jax.random.key(0))
    np.testing.assert_allclose(made, alone, atol=1e-5)


def test_residual_outputs_start_smaller():
    config = dataclasses.replace(KHALA, layers=8, width=64, ffn_width=64, init_std=0.02)
    layers = build(config).layers
    np.testing.assert_allclose(np.std(layers.ffn.up[...]), 0.02, rtol=0.05)
    np.testing.assert_allclose(np.std(layers.ffn.down[...]), 0.02 / 4, rtol=0.05)
    np.testing.assert_allclose(np.std(layers.attention.out[...]), 0.02 / 4, rtol=0.05)


@pytest.mark.parametrize(
    "change", [{"norm": "batch"}, {"kv_heads": 3}, {"head_dim": 3}, {"positions": "learned"}, {"remat": "some"}]
)
def test_bad_configs_are_refused_in_one_line(change):
    with pytest.raises(UserError, match=r"^[^\n]+$"):
        dataclasses.replace(KHALA, **change)
