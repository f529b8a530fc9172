"""The one transformer: pre-norm, every choice the four systems make a field of its config.

Letters: B batch, S positions, s new positions, D width, N heads, M key-value heads, H head dim, F ffn width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Bool, Float, Int

from hiermusic.errors import UserError
from hiermusic.nn import positions as place
from hiermusic.nn.attention import attend
from hiermusic.nn.norms import Norm, modulate, unit
from hiermusic.nn.param import weight, zeros
from hiermusic.parallel.mesh import constrain
from hiermusic.tokens.visibility import Visibility

_CHOICES = {
    "norm": ("rms", "layer"),
    "ffn": ("swiglu", "geglu", "gelu"),
    "positions": ("rotary", "t5", "learned", "none"),
    "qk_norm": ("none", "rms", "unit", "layer"),
    "bias": ("none", "all", "all_but_key"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "dots", "full"),
}
_UNIT_SCALE = math.log(4.0)  # AAR's initial log temperature of unit-length queries, and its ceiling
_UNIT_SCALE_MAX = math.log(100.0)


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and choices of a transformer.

    Args:
      layers, width, heads, kv_heads, head_dim, ffn_width: sizes; heads is a multiple of kv_heads.
      norm: "rms" or "layer"; a layer norm has a bias unless `bias` is "none".
      adaptive: scale, shift and gate of every sub-layer come from a condition of size width (adaLN); needs `cond_BD`.
      ffn: "swiglu", "geglu" or "gelu" (tanh form; the last without gate).
      positions: "rotary" (full head dim), "t5" (one bias table for all layers), "learned" (absolute) or "none".
      rope_base, t5_buckets, t5_max_distance, max_positions: of those, the last for "learned".
      qk_norm: "none"; "rms" over each head with learned scale (ViT-22B); "unit" length with a learned temperature for
        each head (AAR); "layer" norm over all heads together (MusicGen).
      bias: of the projections: "none", "all", or "all_but_key".
      dropout: of what each sub-layer adds; drop_path: chance to skip the last layer's, growing linearly from 0.
      dtype: of activations and matrix products; parameters, norms, softmax and rotary angles are float32.
      remat: what a training step keeps of a layer: "none" recomputes nothing, "dots" all but
        matrix products, "full" everything.
      init_std: of all weights; those that write to the residual stream are divided by sqrt(2 layers).
      base_width: the width that learning rate and `init_std` were tuned at; 0 = they are this model's own. Wider models
        then train alike (muP: Tensor Programs V, arXiv:2203.03466, table 8, for Adam): with s = base_width / width,
        hidden matrices are drawn with variance and trained with learning rate times s, and logits are multiplied by s;
        embeddings, heads' weights and vectors are as ever. Widen by heads and ffn_width in proportion, at one head_dim:
        the scale of attention's logits is then right for either rule.
    Raises:
      UserError: for a word that is no choice or sizes that do not fit.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int
    norm: str = "rms"
    norm_eps: float = 1e-6
    adaptive: bool = False
    ffn: str = "swiglu"
    positions: str = "rotary"
    rope_base: float = 10_000.0
    t5_buckets: int = 32
    t5_max_distance: int = 128
    max_positions: int = 0
    qk_norm: str = "none"
    bias: str = "none"
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: str = "bfloat16"
    remat: str = "none"
    init_std: float = 0.02
    base_width: int = 0

    def __post_init__(self):
        for field, words in _CHOICES.items():
            if getattr(self, field) not in words:
                raise UserError(f"transformer {field} is '{getattr(self, field)}': choose from {', '.join(words)}")
        if self.heads % self.kv_heads:
            raise UserError(f"{self.heads} heads cannot share {self.kv_heads} key-value heads: choose a divisor")
        if self.positions == "rotary" and self.head_dim % 2:
            raise UserError(f"rotary positions turn pairs: head_dim {self.head_dim} must be even")
        if self.positions == "learned" and self.max_positions < 1:
            raise UserError("learned positions need max_positions: the length of the longest row")
        if self.base_width < 0:
            raise UserError(f"transformer base_width is {self.base_width}: a width, or 0 for none")

    @property
    def width_share(self) -> float:
        """base_width / width, 1 without a base."""
        return self.base_width / self.width if self.base_width else 1.0

    def flops(self, positions: int, visibility: Visibility) -> float:
        """Floating-point operations of one row's forward pass: matrix products, and the pairs attended to."""
        attention = self.width * self.head_dim * 2 * (self.heads + self.kv_heads)
        ffn = self.width * self.ffn_width * (2 if self.ffn == "gelu" else 3)
        pairs = 4.0 * self.heads * self.head_dim * visibility.pairs(positions)
        adapt = 2.0 * self.width**2 * (6 * self.layers + 2) if self.adaptive else 0.0
        return self.layers * (2.0 * positions * (attention + ffn) + pairs) + adapt


class Cache(NamedTuple):
    """What a decoder remembers: keys and values of each layer, and where every cached position stands."""

    keys: tuple[Float[Array, "B M S H"], ...]
    values: tuple[Float[Array, "B M S H"], ...]
    positions_BS: Int[Array, "B S"]


class Adapted(NamedTuple):
    """What a condition makes of the adaptive norms: six vectors for every layer, and two for the final norm."""

    layers: tuple[list[Float[Array, "B D"]], ...]
    final: list[Float[Array, "B D"]]


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
        k_BMSH, v_BMSH = k_BMsH, v_BMsH
        if cache is not None:
            keys_BMSH, values_BMSH, start = cache
            k_BMSH = jax.lax.dynamic_update_slice(keys_BMSH, k_BMsH.astype(keys_BMSH.dtype), (0, 0, start, 0))
            v_BMSH = jax.lax.dynamic_update_slice(values_BMSH, v_BMsH.astype(values_BMSH.dtype), (0, 0, start, 0))
        out_BNsH = shared.attend(q_BNsH, k_BMSH.astype(x_BsD.dtype), v_BMSH.astype(x_BsD.dtype))
        # einsum contracts in the order of the letters (capitals first), and any but (N, h) would transpose the weight
        y_BsD = _project("bsNh,Nhd->bsd", out_BNsH.swapaxes(1, 2), self.out, self.out_bias)
        return y_BsD, (k_BMSH, v_BMSH)

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


class Transformer(nnx.Module):
    """Embedded positions in, contextual positions out, the final norm applied.

    Weights lie stacked, one array for all layers, and training scans over them. `unstack` gives the same transformer
    with weights layer by layer, for decoding: a scan would copy every layer's weights for each token.
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        self.layers = Layer(c, rngs=rngs)
        norm = {"affine": not c.adaptive, "bias": c.bias != "none", "eps": c.norm_eps}
        self.final_norm = Norm(rngs, c.norm, (c.width,), ("embed",), **norm)
        self.final_adapt = Adaptation(c, 2, (), rngs=rngs) if c.adaptive else None
        std = initializers.normal(c.init_std)
        self.distance = weight(rngs, (c.t5_buckets, c.heads), (None, "heads"), std) if c.positions == "t5" else None
        learned = c.positions == "learned"
        self.absolute = weight(rngs, (c.max_positions, c.width), (None, "embed"), std, decay=False) if learned else None

    def __call__(
        self,
        x_BSD: Float[Array, "B S D"],
        *,
        visibility: Visibility,
        positions_BS: Int[Array, "B S"] | None = None,
        valid_BS: Bool[Array, "B S"] | None = None,
        cond_BD: Float[Array, "B D"] | None = None,
        key: Array | None = None,
    ) -> Float[Array, "B S D"]:
        """Whole rows at once.

        Args:
          x_BSD: embedded positions.
          visibility: who sees whom, by index in the row.
          positions_BS: where each index stands for the position encoding, 0..S-1 by default; B may be 1.
          valid_BS: False on padding, which must be at the end of a row (padding in front: `extend`).
          cond_BD: condition of an adaptive transformer.
          key: of dropout and drop-path; None for neither.
        """
        c = self.config
        if positions_BS is None:
            positions_BS = jnp.arange(x_BSD.shape[1])[None]
        self._check(cond_BD)
        x_BSD = self._enter(x_BSD, positions_BS)
        see = {"visibility": visibility, "valid_BS": valid_BS, "right_padded": True}
        shared = self._share(positions_BS, positions_BS, see)
        skips = jnp.linspace(0.0, c.drop_path, c.layers)
        keys = None if key is None else jax.random.split(key, c.layers)

        def body(x_BSD, inputs):
            layer, key, skip = inputs
            adapted = None if cond_BD is None else layer.adapt(cond_BD)
            x_BSD, _ = layer(x_BSD, shared, adapted, key=key, skip=skip)
            return constrain(x_BSD, "batch", "positions", None), None

        if c.remat != "none":
            dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
            body = jax.checkpoint(body, policy=dots if c.remat == "dots" else None, prevent_cse=False)
        if isinstance(self.layers, Layer):
            x_BSD, _ = jax.lax.scan(body, x_BSD, (self.layers, keys, skips))
        else:
            for i, layer in enumerate(self.layers):
                x_BSD, _ = body(x_BSD, (layer, None if key is None else keys[i], skips[i]))
        return self._leave(x_BSD, None if cond_BD is None else self.final_adapt(cond_BD))

    def adapt(self, cond_BD: Float[Array, "B D"] | None) -> Adapted | None:
        """A condition worked out for `extend`, once for all calls; None for a transformer that is not adaptive."""
        if not self.config.adaptive:
            return None
        self._check(cond_BD)
        return Adapted(tuple(layer.adapt(cond_BD) for layer in self._each()), self.final_adapt(cond_BD))

    def extend(
        self,
        x_BsD: Float[Array, "B s D"],
        cache: Cache,
        start: int | Array,
        *,
        visibility: Visibility,
        positions_Bs: Int[Array, "B s"] | None = None,
        valid_BS: Bool[Array, "B S"] | None = None,
        adapted: Adapted | None = None,
    ) -> tuple[Float[Array, "B s D"], Cache]:
        """New positions behind those cached: a prompt, one token, or one scale at once.

        Args:
          x_BsD: embedded new positions.
          cache: of at least start + s positions; those before `start` are filled.
          start: index at which the new positions are written; a Python integer saves work over a traced one.
          visibility: who sees whom, by index in the cache.
          positions_Bs: where the new positions stand, start .. start + s - 1 by default; B may be 1.
          valid_BS: False hides a cached position from all, such as the padding in front of a prompt.
          adapted: the condition of an adaptive transformer, from `adapt`.
        Returns:
          the new positions after all layers, and the cache with them.
        """
        if positions_Bs is None:
            positions_Bs = start + jnp.arange(x_BsD.shape[1])[None]
        self._check(adapted)
        x_BsD = self._enter(x_BsD, positions_Bs)
        rows_Bs = jnp.broadcast_to(positions_Bs, x_BsD.shape[:2]).astype(jnp.int32)
        positions_BS = jax.lax.dynamic_update_slice(cache.positions_BS, rows_Bs, (0, start))
        see = {"visibility": visibility, "start": start, "valid_BS": valid_BS}
        shared = self._share(positions_Bs, positions_BS, see)
        adapted = adapted or Adapted((None,) * self.config.layers, None)
        memories = []

        @jax.jit  # so that one layer is traced and not all of them
        def one(layer, x_BsD, parts, keys_BMSH, values_BMSH):
            return layer(x_BsD, shared, parts, cache=(keys_BMSH, values_BMSH, start))

        for layer, *inputs in zip(self._each(), adapted.layers, cache.keys, cache.values, strict=True):
            x_BsD, memory = one(layer, x_BsD, *inputs)
            memories.append(memory)
        keys, values = zip(*memories, strict=True)
        return self._leave(x_BsD, adapted.final), Cache(keys, values, positions_BS)

    def init_cache(self, batch: int, length: int, dtype: str | None = None) -> Cache:
        """An empty cache of `length` positions for `batch` rows; `dtype` is the compute type by default."""
        c = self.config
        empty = [jnp.zeros((batch, c.kv_heads, length, c.head_dim), dtype or c.dtype) for _ in range(2 * c.layers)]
        return Cache(tuple(empty[: c.layers]), tuple(empty[c.layers :]), jnp.zeros((batch, length), jnp.int32))

    def unstack(self) -> "Transformer":
        """The same transformer with one set of weights for each layer; the stacked one is left as it is."""
        other = jax.tree.map(lambda x: x, self)
        other.layers = nnx.List(self._each())
        return other

    def _each(self) -> list[Layer]:
        """The layers one by one."""
        if not isinstance(self.layers, Layer):
            return list(self.layers)

        def take(i: int) -> Layer:
            def one(variable):
                return nnx.Param(variable[...][i], axes=variable.get_metadata()["axes"][1:])

            return jax.tree.map(one, self.layers, is_leaf=lambda x: isinstance(x, nnx.Variable))

        return [take(i) for i in range(self.config.layers)]

    def _enter(self, x_BsD, positions_Bs):
        x_BsD = x_BsD.astype(self.config.dtype)
        if self.absolute is not None:
            if x_BsD.shape[1] > self.config.max_positions:
                raise UserError(f"{x_BsD.shape[1]} positions exceed max_positions {self.config.max_positions}")
            x_BsD = x_BsD + self.absolute[...].at[positions_Bs].get(mode="clip").astype(x_BsD.dtype)
        return constrain(x_BsD, "batch", "positions", None)

    def _check(self, condition) -> None:
        if self.config.adaptive != (condition is not None):
            raise ValueError("an adaptive transformer, and only one, takes a condition")

    def _share(self, q_positions_Bs, k_positions_BS, see) -> Shared:
        c = self.config
        rotation = place.rotation(q_positions_Bs, c.head_dim, c.rope_base) if c.positions == "rotary" else None

        def bias(q: slice, k: slice):
            return place.t5_bias(self.distance[...], q_positions_Bs[:, q], k_positions_BS[:, k], c.t5_max_distance)

        def attention(q_BNsH, k_BMSH, v_BMSH):
            return attend(q_BNsH, k_BMSH, v_BMSH, bias=bias if c.positions == "t5" else None, **see)

        return Shared(attention, rotation)

    def _leave(self, x_BsD, adapted):
        x_BsD = self.final_norm(x_BsD)
        return x_BsD if adapted is None else modulate(x_BsD, *adapted)
