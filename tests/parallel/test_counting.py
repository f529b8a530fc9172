import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.conv import Conv
from hiermusic.nn.token_lm import TokenLM, TokenLMConfig
from hiermusic.parallel.counting import forward_flops
from hiermusic.tokens.visibility import Visibility

F32 = jnp.float32


def test_products_and_convolutions_count_two_a_multiplication():
    a, b = jax.ShapeDtypeStruct((3, 5, 7), F32), jax.ShapeDtypeStruct((7, 11), F32)
    assert forward_flops(lambda a, b: jnp.tanh(a @ b) + 1, a, b) == 2 * 3 * 5 * 7 * 11
    conv = nnx.eval_shape(lambda: Conv(6, 10, (7,), dilation=(3,), rngs=nnx.Rngs(0)))
    x = jax.ShapeDtypeStruct((2, 50, 6), F32)
    assert forward_flops(lambda conv, x: conv(x), conv, x) == 2 * 2 * 50 * 7 * 6 * 10


def test_a_scan_counts_every_turn_and_a_branch_the_cheapest():
    w = jax.ShapeDtypeStruct((8, 8), F32)
    once = 2 * 8**3

    def turns(w):
        return jax.lax.scan(lambda x, _: (jax.checkpoint(lambda x: x @ w)(x), None), w, length=5)[0]

    assert forward_flops(turns, w) == 5 * once
    assert forward_flops(lambda w: jax.lax.cond(w.sum() > 0, lambda w: w @ w @ w, lambda w: w @ w, w), w) == once


def test_the_compiler_counts_the_same_where_nothing_loops():
    def layers(w, x):
        return jax.nn.relu(x @ w) @ w

    w, x = jax.ShapeDtypeStruct((64, 64), F32), jax.ShapeDtypeStruct((32, 64), F32)
    compiled = jax.jit(layers).lower(w, x).compile().cost_analysis()["flops"]
    np.testing.assert_allclose(forward_flops(layers, w, x), compiled, rtol=0.02)


@pytest.mark.parametrize("ffn", ["swiglu", "gelu"])
def test_a_token_models_formula_is_what_its_program_does(ffn):
    sizes = {"layers": 3, "width": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn_width": 48}
    trunk = TransformerConfig(**sizes, ffn=ffn, dtype="float32")
    config = TokenLMConfig(trunk, levels=2, codes=16)
    model = nnx.eval_shape(lambda: TokenLM(config, rngs=nnx.Rngs(0)))
    S, full = 24, Visibility.full()
    ints = jax.ShapeDtypeStruct((1, S), jnp.int32)
    codes = jax.ShapeDtypeStruct((1, S, 2), jnp.int32)

    def loss(model, text, reads, targets):
        return model.loss({"text": text, "reads": reads, "targets": targets}, visibility=full)[0]

    assert forward_flops(loss, model, ints, codes, codes) == config.flops(S, full, heads=2)


def test_pairs_are_those_of_the_mask():
    places = np.arange(12)
    for rule in (Visibility.causal(), Visibility.full(), Visibility.block_causal((1, 4, 7)), Visibility.prefix(5, 12)):
        assert rule.pairs(12) == int(rule.mask(places, places).sum())
