import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hiermusic.nn import attention, attention_blocks, attention_cudnn
from hiermusic.nn.attention import attend
from hiermusic.tokens.visibility import Visibility

S = 20
RULES = [Visibility.causal(), Visibility.full(), Visibility.block_causal((1, 2, 5, 12)), Visibility.prefix(6, S)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(attention_blocks, "_BLOCK", 8)


def draw(heads=4, kv_heads=2, s=S):
    rng = np.random.default_rng(0)
    shapes = ((2, heads, s, 8), (2, kv_heads, S, 8), (2, kv_heads, S, 8))
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def dense(q, k, v, visible_BSS):
    """Every head on its own, in float64, with the whole mask."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    groups = q.shape[1] // k.shape[1]
    logits = np.einsum("bnsh,bnth->bnst", q, np.repeat(k, groups, 1))
    logits = np.where(visible_BSS[:, None], logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bnst,bnth->bnsh", weights / weights.sum(-1, keepdims=True), np.repeat(v, groups, 1))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_blocks_equal_a_dense_mask(rule):
    q, k, v = draw()
    valid = np.arange(S) < np.array([[S], [13]])
    valid[:, 0] = True
    visible = np.asarray(rule.mask(jnp.arange(S), jnp.arange(S)))[None] & valid[:, None]
    out = jax.jit(functools.partial(attend, visibility=rule))(q, k, v, valid_BS=valid)
    np.testing.assert_allclose(out, dense(q, k, v, visible), atol=1e-5)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_start_may_be_traced(rule):
    q, k, v = draw(s=5)
    at_three = jax.jit(functools.partial(attend, visibility=rule, start=3))
    static = at_three(q, k, v)
    traced = jax.jit(lambda start: attend(q, k, v, visibility=rule, start=start))(3)
    np.testing.assert_allclose(static, traced, atol=1e-5)
    written = (np.arange(S) < 8)[:, None]
    unwritten = at_three(q, np.where(written, k, np.float32(9)), np.where(written, v, np.float32(9)))
    np.testing.assert_array_equal(static, unwritten)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_a_prompt_reads_no_key_behind_it(rule):
    q, k, v = draw(s=5)
    valid = np.arange(S) >= np.array([[0], [2]])
    written = (np.arange(S) < 5)[:, None]
    run = jax.jit(functools.partial(attend, visibility=rule, valid_BS=valid))
    whole = run(q, k, v)
    np.testing.assert_array_equal(whole, run(q, np.where(written, k, np.nan), np.where(written, v, np.nan)))
    traced = jax.jit(lambda start: attend(q, k, v, visibility=rule, valid_BS=valid, start=start))(0)
    np.testing.assert_allclose(whole[0], traced[0], atol=1e-5)
    np.testing.assert_allclose(whole[1, :, 2:], traced[1, :, 2:], atol=1e-5)


def test_a_kernel_is_given_the_keys_of_its_row_alone(monkeypatch):
    given = []
    monkeypatch.setattr(attention, "_row", lambda q, *others, **how: given.append([x.shape for x in others]) or q)
    q, k, v = draw(s=5)
    attend(q, k, v, visibility=Visibility.causal(), valid_BS=np.ones((2, S), bool))
    assert given == [[(2, 2, 5, 8), (2, 2, 5, 8), (2, 5)]]


def test_long_rows_recompute_to_the_same_gradient(monkeypatch):
    q, k, v = draw()

    def gradient():
        def f(*x):
            return jnp.square(attend(*x, visibility=Visibility.causal())).sum()

        return jax.jit(jax.grad(f, (0, 1, 2)))(q, k, v)

    kept = gradient()
    monkeypatch.setattr(attention_blocks, "_LONG", 4)
    for one, other in zip(kept, gradient(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_row_that_sees_nothing_stays_finite():
    q, k, v = draw()
    valid = np.array([[False], [True]]) & np.ones(S, bool)

    def f(q, k, v):
        return jnp.square(attend(q, k, v, visibility=Visibility.full(), valid_BS=valid)).sum()

    value, grads = jax.jit(jax.value_and_grad(f, (0, 1, 2)))(q, k, v)
    assert np.isfinite(value) and all(np.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.kind)
def test_cudnn_is_lowered_for_a_gpu_where_it_fits(rule, monkeypatch):
    fused = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(fused, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(fused, "check_compute_capability", lambda capability: True)
    monkeypatch.setattr(attention, "_platform", lambda: "gpu")

    def gradient(q, k, v, valid):
        def f(*x):
            out = attend(*x, visibility=rule, valid_BS=valid, right_padded=True)
            return out.astype(jnp.float32).sum()

        return jax.grad(f, (0, 1, 2))(q, k, v)

    q, k, v = (x.astype(jnp.bfloat16) for x in draw())
    traced = jax.jit(gradient).trace(q, k, v, jax.ShapeDtypeStruct((2, S), bool))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    fits = rule.kind in ("causal", "full")
    assert (text.count("fmhaSoftmax("), text.count("fmhaSoftmaxBackward(")) == ((1, 1) if fits else (0, 0))
    assert ("dot_general" in text) != fits


def test_cudnn_is_told_the_lengths_of_queries_and_of_keys(monkeypatch):
    told = []
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v, **how: told.append(how) or q)
    q, k, v = draw()
    valid_BS = jnp.arange(S) < jnp.array([[3], [0]])
    attention_cudnn.attend(q, k, v, valid_BS, visibility=Visibility.causal())
    attention_cudnn.attend(q, k, v, None, visibility=Visibility.full())
    for how, lengths, causal in zip(told, ([3, 1], None), (True, False), strict=True):  # of a row of padding: one
        assert how["is_causal"] is causal and (how["scale"], how["implementation"]) == (1.0, "cudnn")
        for name in ("query_seq_lengths", "key_value_seq_lengths"):
            assert how[name] is None if lengths is None else how[name].tolist() == lengths
