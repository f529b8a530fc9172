"""The transformer against Llama and T5 of Hugging Face's transformers, with random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.positions import t5_bias
from hiermusic.nn.transformer import Transformer
from hiermusic.tokens.visibility import Visibility

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, FFN, BASE, EPS = 2, 16, 4, 2, 6, 24, 700.0, 1e-3
_forward = jax.jit(Transformer.__call__, static_argnames="visibility")


def drawn(model):
    """The same model, no norm's scale 1 and no bias 0 any more."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return model.eval()


def stacked(theirs, name, *shape):
    """One weight of all layers, turned as ours lies: inputs first."""
    found = [layer.get_submodule(name) for layer in theirs.layers]
    return jnp.stack([module.weight.detach().numpy().T.reshape(shape) for module in found])


def biases(theirs, name, *shape):
    return jnp.stack([layer.get_submodule(name).bias.detach().numpy().reshape(shape) for layer in theirs.layers])


@pytest.mark.parametrize("biased", [False, True])
def test_a_trunk_is_llamas(biased):
    theirs = drawn(
        transformers.LlamaModel(
            transformers.LlamaConfig(
                vocab_size=3, hidden_size=WIDTH, intermediate_size=FFN, num_hidden_layers=LAYERS, head_dim=HEAD_DIM,
                num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, rms_norm_eps=EPS, attention_bias=biased,
                rope_parameters={"rope_type": "default", "rope_theta": BASE}, mlp_bias=biased, pad_token_id=0,
                bos_token_id=1, eos_token_id=2, attn_implementation="eager",
            )
        )
    )  # fmt: skip
    config = TransformerConfig(
        LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, FFN, norm_eps=EPS, rope_base=BASE, dtype="float32",
        bias="all" if biased else "none",
    )  # fmt: skip
    ours = jax.jit(lambda: Transformer(config, rngs=nnx.Rngs(0)))()
    projections = {
        (ours.layers.attention, "query"): ("self_attn.q_proj", (WIDTH, HEADS, HEAD_DIM)),
        (ours.layers.attention, "key"): ("self_attn.k_proj", (WIDTH, KV_HEADS, HEAD_DIM)),
        (ours.layers.attention, "value"): ("self_attn.v_proj", (WIDTH, KV_HEADS, HEAD_DIM)),
        (ours.layers.attention, "out"): ("self_attn.o_proj", (HEADS, HEAD_DIM, WIDTH)),
        (ours.layers.ffn, "gate"): ("mlp.gate_proj", (WIDTH, FFN)),
        (ours.layers.ffn, "up"): ("mlp.up_proj", (WIDTH, FFN)),
        (ours.layers.ffn, "down"): ("mlp.down_proj", (FFN, WIDTH)),
    }
    for (part, name), (their_name, shape) in projections.items():
        getattr(part, name)[...] = stacked(theirs, their_name, *shape)
        if biased:
            bias = shape[2:] if name == "out" else shape[1:]
            getattr(part, f"{name}_bias")[...] = biases(theirs, their_name, *bias)
    ours.layers.attention_norm.scale[...] = stacked(theirs, "input_layernorm", WIDTH)
    ours.layers.ffn_norm.scale[...] = stacked(theirs, "post_attention_layernorm", WIDTH)
    ours.final_norm.scale[...] = jnp.asarray(theirs.norm.weight.detach().numpy())

    x_BSD = np.random.default_rng(0).normal(size=(2, 14, WIDTH)).astype(np.float32)
    valid_BS = np.arange(14) < np.array([[14], [9]])
    with torch.no_grad():
        wanted = theirs(inputs_embeds=torch.from_numpy(x_BSD), attention_mask=torch.from_numpy(valid_BS.astype(int)))
    found = np.asarray(_forward(ours, x_BSD, visibility=Visibility.causal(), valid_BS=valid_BS))
    assert np.std(found) > 0.1
    np.testing.assert_allclose(found[valid_BS], wanted.last_hidden_state.numpy()[valid_BS], atol=1e-4)


@pytest.mark.parametrize(("buckets", "furthest"), [(8, 20), (32, 128)])
def test_the_distance_bias_is_t5s(buckets, furthest):
    config = transformers.T5Config(
        d_model=12, d_kv=4, num_heads=3, relative_attention_num_buckets=buckets,
        relative_attention_max_distance=furthest, is_decoder=True,
    )  # fmt: skip
    attention = transformers.models.t5.modeling_t5.T5Attention(config, has_relative_attention_bias=True, layer_idx=0)
    theirs, at = drawn(attention), np.arange(200)[None]
    with torch.no_grad():
        wanted = theirs.compute_bias(200, 200).numpy()
    table_WN = jnp.asarray(theirs.relative_attention_bias.weight.detach().numpy())
    np.testing.assert_allclose(jax.jit(t5_bias, static_argnums=3)(table_WN, at, at, furthest), wanted, atol=1e-6)
