"""A layer of the transformer: attention and feed-forward, each normed before and added, and what conditions both.

Letters: B batch, S positions, s new positions, D width, N heads, M key-value heads, H head dim, F ffn width,
X = B M.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Float

from hiermusic.nn import positions as place
from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.norms import Norm, modulate, unit
from hiermusic.nn.param import weight, zeros

_UNIT_SCALE = math.log(4.0)  # AAR's initial log temperature of unit-length queries, and its ceiling
_UNIT_SCALE_MAX = math.log(100.0)


class Shared(NamedTuple):
    """What all layers of one call have in common: how to attend, and how to turn queries and keys."""

    attend: Callable[..., Array]
    rotation: place.Rotation | None


@jax.custom_vjp
def _settle(x: Array) -> Array:
    """The identity, whose cotangent is computed once.

    XLA on CPU otherwise fuses the gradient of an activation into each of the two matrix products that read it, in a
    transposed and slow form.
    """
    return x


_settle.defvjp(lambda x: (x, None), lambda _, cotangent: (jax.lax.optimization_barrier(cotangent),))


def _project(equation: str, x: Array, weight: nnx.Param, bias: nnx.Param | None) -> Array:
    y = _settle(jnp.einsum(equation, x, weight[...].astype(x.dtype)))
    return y if bias is None else y + bias[...].astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention of all layers, stacked."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        layers, D, N, M, H = c.layers, c.width, c.heads, c.kv_heads, c.head_dim
        hidden, to_residual = _makers(c)
        self.query = hidden(rngs, (layers, D, N, H), ("layers", "embed", "heads", "head_dim"))
        self.key = hidden(rngs, (layers, D, M, H), ("layers", "embed", "kv_heads", "head_dim"))
        self.value = hidden(rngs, (layers, D, M, H), ("layers", "embed", "kv_heads", "head_dim"))
        self.out = to_residual(rngs, (layers, N, H, D), ("layers", "heads", "head_dim", "embed"))
        biased = c.bias != "none"
        self.query_bias = zeros(rngs, (layers, N, H), ("layers", "heads", "head_dim")) if biased else None
        self.key_bias = zeros(rngs, (layers, M, H), ("layers", "kv_heads", "head_dim")) if c.bias == "all" else None
        self.value_bias = zeros(rngs, (layers, M, H), ("layers", "kv_heads", "head_dim")) if biased else None
        self.out_bias = zeros(rngs, (layers, D), ("layers", "embed")) if biased else None
        if c.qk_norm == "rms":
            self.query_norm = Norm(rngs, "rms", (layers, H), ("layers", "head_dim"), eps=c.norm_eps)
            self.key_norm = Norm(rngs, "rms", (layers, H), ("layers", "head_dim"), eps=c.norm_eps)
        if c.qk_norm == "layer":
            over = {"over": 2, "bias": biased, "eps": c.norm_eps}
            self.query_norm = Norm(rngs, "layer", (layers, N, H), ("layers", "heads", "head_dim"), **over)
            self.key_norm = Norm(rngs, "layer", (layers, M, H), ("layers", "kv_heads", "head_dim"), **over)
        if c.qk_norm == "unit":
            self.log_scale = weight(rngs, (layers, N), ("layers", "heads"), initializers.constant(_UNIT_SCALE))

    def __call__(self, x_BsD, shared: Shared, cache):
        q_BsNH = _project("bsd,dnh->bsnh", x_BsD, self.query, self.query_bias)
        k_BsMH = _project("bsd,dmh->bsmh", x_BsD, self.key, self.key_bias)
        v_BMsH = _project("bsd,dmh->bsmh", x_BsD, self.value, self.value_bias).swapaxes(1, 2)
        q_BNsH, k_BMsH = self._scale(q_BsNH, k_BsMH)
        if shared.rotation is not None:
            q_BNsH, k_BMsH = place.rotate(q_BNsH, shared.rotation), place.rotate(k_BMsH, shared.rotation)
        memory = k_BMsH, v_BMsH
        if cache is not None:
            *old, start = cache
            memory = tuple(_written(x_XSH, x_BMsH, start) for x_XSH, x_BMsH in zip(old, memory, strict=True))
        out_BNsH = shared.attend(q_BNsH, *(x.astype(x_BsD.dtype) for x in memory))
        # einsum contracts in the order of the letters (capitals first), and any but (N, h) would transpose the weight
        y_BsD = _project("bsNh,Nhd->bsd", out_BNsH.swapaxes(1, 2), self.out, self.out_bias)
        return y_BsD, memory

    def _scale(self, q_BsNH, k_BsMH):
        """Normalises queries and keys as configured, scales the queries, and puts heads first."""
        scale = self.config.head_dim**-0.5
        if self.config.qk_norm in ("rms", "layer"):
            q_BsNH, k_BsMH = self.query_norm(q_BsNH), self.key_norm(k_BsMH)
        if self.config.qk_norm == "unit":
            scale = jnp.exp(jnp.minimum(self.log_scale[...].astype(jnp.float32), _UNIT_SCALE_MAX))[:, None]
            q_BsNH, k_BsMH = unit(q_BsNH), unit(k_BsMH).astype(k_BsMH.dtype)
        q_BsNH = (q_BsNH.astype(jnp.float32) * scale).astype(k_BsMH.dtype)
        return q_BsNH.swapaxes(1, 2), k_BsMH.swapaxes(1, 2)


def _written(x_XSH, x_BMsH, start):
    """What is cached, with new positions."""
    x_XsH = x_BMsH.reshape(-1, *x_BMsH.shape[2:])
    return jax.lax.dynamic_update_slice(x_XSH, x_XsH.astype(x_XSH.dtype), (0, start, 0))


class FeedForward(nnx.Module):
    """The feed-forward sub-layer of all layers, stacked."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        layers, D, F = c.layers, c.width, c.ffn_width
        hidden, to_residual = _makers(c)
        gated, biased = c.ffn != "gelu", c.bias != "none"
        self.gate = hidden(rngs, (layers, D, F), ("layers", "embed", "mlp")) if gated else None
        self.up = hidden(rngs, (layers, D, F), ("layers", "embed", "mlp"))
        self.down = to_residual(rngs, (layers, F, D), ("layers", "mlp", "embed"))
        self.gate_bias = zeros(rngs, (layers, F), ("layers", "mlp")) if gated and biased else None
        self.up_bias = zeros(rngs, (layers, F), ("layers", "mlp")) if biased else None
        self.down_bias = zeros(rngs, (layers, D), ("layers", "embed")) if biased else None

    def __call__(self, x_BsD: Float[Array, "B s D"]) -> Float[Array, "B s D"]:
        act = jax.nn.silu if self.config.ffn == "swiglu" else jax.nn.gelu
        hidden_BsF = _project("bsd,df->bsf", x_BsD, self.up, self.up_bias)
        if self.gate is None:
            hidden_BsF = act(hidden_BsF)
        else:
            hidden_BsF = act(_project("bsd,df->bsf", x_BsD, self.gate, self.gate_bias)) * hidden_BsF
        return _project("bsf,fd->bsd", hidden_BsF, self.down, self.down_bias)


class Layer(nnx.Module):
    """All layers stacked, or one of them once sliced: attention and feed-forward, each normed before and added."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        norm = {"affine": not c.adaptive, "bias": c.bias != "none", "eps": c.norm_eps}
        self.attention_norm = Norm(rngs, c.norm, (c.layers, c.width), ("layers", "embed"), **norm)
        self.attention = Attention(c, rngs=rngs)
        self.ffn_norm = Norm(rngs, c.norm, (c.layers, c.width), ("layers", "embed"), **norm)
        self.ffn = FeedForward(c, rngs=rngs)
        self.adapt = Adaptation(c, 6, (c.layers,), rngs=rngs) if c.adaptive else None

    def __call__(self, x_BsD, shared: Shared, adapted=None, *, key=None, skip=0.0, cache=None):
        """One layer.

        Args:
          adapted: the six vectors of its adaptive norms, None without.
          key: of this layer's dropout and drop-path; None for neither.
          skip: this layer's chance of drop-path.
          cache: (keys, values, start) to extend, or None to attend within `x_BsD`.
        Returns:
          the new residual stream, and the keys and values attended to.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        gate1, gate2, scale1, scale2, shift1, shift2 = adapted or (None,) * 6
        normed_BsD = _modulated(self.attention_norm(x_BsD), scale1, shift1)
        y_BsD, memory = self.attention(normed_BsD, shared, cache)
        x_BsD = x_BsD + self._drop(_gated(y_BsD, gate1), keys[0], skip)
        normed_BsD = _modulated(self.ffn_norm(x_BsD), scale2, shift2)
        x_BsD = x_BsD + self._drop(_gated(self.ffn(normed_BsD), gate2), keys[1], skip)
        return x_BsD, memory

    def _drop(self, y_BsD, key, skip):
        """Dropout of single values, and of the whole sub-layer for some examples."""
        c = self.config
        if key is None:
            return y_BsD
        value_key, path_key = jax.random.split(key)
        if c.dropout:
            kept = jax.random.bernoulli(value_key, 1 - c.dropout, y_BsD.shape)
            y_BsD = jnp.where(kept, y_BsD / (1 - c.dropout), 0).astype(y_BsD.dtype)
        if c.drop_path:
            kept = jax.random.bernoulli(path_key, 1 - skip, (y_BsD.shape[0], 1, 1))
            y_BsD = jnp.where(kept, y_BsD / (1 - skip), 0).astype(y_BsD.dtype)
        return y_BsD


def _modulated(x_BsD, scale_BD, shift_BD):
    return x_BsD if scale_BD is None else modulate(x_BsD, scale_BD, shift_BD)


def _gated(y_BsD, gate_BD):
    return y_BsD if gate_BD is None else y_BsD * gate_BD[:, None].astype(y_BsD.dtype)


class Adaptation(nnx.Module):
    """The condition's share of adaptive norms: `parts` vectors of size width from Linear(SiLU(cond)), float32.

    The first two of six are gates and start almost shut (AAR, VAR: 1e-5 of the usual spread; the rest one half).
    """

    def __init__(self, config: TransformerConfig, parts: int, stack: tuple[int, ...], *, rngs: nnx.Rngs):
        shape, axes = (*stack, config.width, parts, config.width), ("layers",) * len(stack)
        std = _hidden_std(config)
        spread = jnp.full((parts, 1), 0.5 * std).at[: 2 if parts == 6 else 0].set(1e-5 * std)
        normal = initializers.normal(1.0)
        self.kernel = weight(
            rngs,
            shape,
            (*axes, "embed", None, None),
            lambda key, shape, dtype: normal(key, shape, dtype) * spread,
            config.width_share,
        )
        self.bias = zeros(rngs, (*stack, parts, config.width), (*axes, None, None))

    def __call__(self, cond_BD: Float[Array, "B D"]) -> list[Float[Array, "B D"]]:
        act_BD = jax.nn.silu(cond_BD.astype(jnp.float32))
        vectors_BnD = jnp.einsum("bd,dpe->bpe", act_BD, self.kernel[...].astype(jnp.float32)) + self.bias[...]
        return list(vectors_BnD.swapaxes(0, 1))


def _hidden_std(config: TransformerConfig) -> float:
    return config.init_std * math.sqrt(config.width_share)


def _makers(config: TransformerConfig) -> tuple[Callable, Callable]:
    """`weight` for hidden matrices, and for those of them that write to the residual stream."""
    std = _hidden_std(config)
    stds = std, std / math.sqrt(2 * config.layers)
    return tuple(partial(weight, init=initializers.normal(std), rate=config.width_share) for std in stds)
