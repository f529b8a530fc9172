"""The one transformer: pre-norm, every choice the four systems make a field of its config.

Letters as in `layer`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn import initializers
from jaxtyping import Array, Bool, Float, Int

from hiermusic.errors import UserError
from hiermusic.nn import positions as place
from hiermusic.nn.attention import attend, attend_cached
from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.layer import Adaptation, Layer, Shared
from hiermusic.nn.norms import Norm, modulate
from hiermusic.nn.param import in_type, weight
from hiermusic.parallel.mesh import constrain
from hiermusic.tokens.visibility import Visibility


class Cache(NamedTuple):
    """What a decoder remembers: keys and values of each layer, and where every cached position stands.

    Rows and heads are one dimension (X = B M): of [1, M, S, H] XLA drops the first, and then copies all for each token.
    """

    keys: tuple[Float[Array, "X S H"], ...]
    values: tuple[Float[Array, "X S H"], ...]
    positions_BS: Int[Array, "B S"]


class Adapted(NamedTuple):
    """What a condition makes of the adaptive norms: six vectors for every layer, and two for the final norm."""

    layers: tuple[list[Float[Array, "B D"]], ...]
    final: list[Float[Array, "B D"]]


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
        aligned = c.positions == "t5_aligned"
        buckets = {"t5": c.t5_buckets, "t5_aligned": 2 * c.t5_buckets}.get(c.positions)
        self.distance = weight(rngs, (buckets, c.heads), (None, "heads"), std) if buckets else None
        pairs = (c.segments, c.segments, c.heads), (None, None, "heads")
        self.pairs = weight(rngs, *pairs, std, decay=False) if aligned else None
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
          positions_BS: where each index stands for the position encoding, 0..S-1 by default; B may be 1. Aligned
            positions are places (`tokens.pattern.Pattern.places`).
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
        shared = self._share(attend, positions_BS, positions_BS, see)
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
        shared = self._share(attend_cached, positions_Bs, positions_BS, see)
        adapted = adapted or Adapted((None,) * self.config.layers, None)
        memories = []

        @jax.jit  # so that one layer is traced and not all of them
        def one(layer, x_BsD, parts, keys_XSH, values_XSH):
            return layer(x_BsD, shared, parts, cache=(keys_XSH, values_XSH, start))

        for layer, *inputs in zip(self._each(), adapted.layers, cache.keys, cache.values, strict=True):
            x_BsD, memory = one(layer, x_BsD, *inputs)
            memories.append(memory)
        keys, values = zip(*memories, strict=True)
        return self._leave(x_BsD, adapted.final), Cache(keys, values, positions_BS)

    def init_cache(self, batch: int, length: int, dtype: str | None = None) -> Cache:
        """An empty cache of `length` positions for `batch` rows; `dtype` is the compute type by default."""
        c = self.config
        empty = [jnp.zeros((batch * c.kv_heads, length, c.head_dim), dtype or c.dtype) for _ in range(2 * c.layers)]
        return Cache(tuple(empty[: c.layers]), tuple(empty[c.layers :]), jnp.zeros((batch, length), jnp.int32))

    def compact(self) -> "Transformer":
        """The same transformer with its matrices in the compute type, in which they are multiplied: for inference."""

        def one(variable):
            axes = set(variable.get_metadata()["axes"])
            matrix = "embed" in axes and axes & {"heads", "kv_heads", "mlp"}
            return in_type(variable, self.config.dtype) if matrix else variable

        return jax.tree.map(one, self, is_leaf=lambda x: isinstance(x, nnx.Variable))

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

    def _share(self, how, q_positions_Bs, k_positions_BS, see) -> Shared:
        c = self.config
        turned = c.positions.startswith("rotary")
        rotation = place.rotation(q_positions_Bs, c.head_dim, c.rope_base) if turned else None

        def bias(q: slice, k: slice):
            at = q_positions_Bs[:, q], k_positions_BS[:, k], c.t5_max_distance
            if self.pairs is None:
                return place.t5_bias(self.distance[...], *at)
            return place.aligned_bias(self.distance[...], self.pairs[...], *at)

        def attention(q_BNsH, keys, values):
            return how(q_BNsH, keys, values, bias=None if self.distance is None else bias, **see)

        return Shared(attention, rotation)

    def _leave(self, x_BsD, adapted):
        x_BsD = self.final_norm(x_BsD)
        return x_BsD if adapted is None else modulate(x_BsD, *adapted)
