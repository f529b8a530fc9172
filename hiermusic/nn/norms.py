"""Normalisation with float32 statistics."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hiermusic.nn.param import Axes, ones, zeros


def root_mean_square(x: Float[Array, "..."], axis: int | Sequence[int] = -1, eps: float = 1e-6) -> Float[Array, "..."]:
    """x over its root mean square along `axis`, float32 (arXiv 1910.07467)."""
    wide = x.astype(jnp.float32)
    return wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis, keepdims=True) + eps)


def standardise(x: Float[Array, "..."], axis: int | Sequence[int] = -1, eps: float = 1e-6) -> Float[Array, "..."]:
    """x less its mean, over its standard deviation along `axis`, float32 (arXiv 1607.06450)."""
    wide = x.astype(jnp.float32)
    return root_mean_square(wide - jnp.mean(wide, axis, keepdims=True), axis, eps)


def unit(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x over its Euclidean length along the last axis, float32; zero stays zero."""
    wide = x.astype(jnp.float32)
    return wide * jax.lax.rsqrt(jnp.sum(jnp.square(wide), -1, keepdims=True) + 1e-12)


class Norm(nnx.Module):
    """RMS or layer norm over the trailing dimensions, with learned scale and, where asked, a bias.

    Args:
      kind: "rms" or "layer".
      shape: of the scale; the last `over` dimensions are normalised together, those before are stacked layers.
      axes: logical axes of the scale.
      over: how many trailing dimensions the statistics span.
      affine: False leaves scale and bias out (adaptive norms bring their own).
      bias: adds a learned bias (layer norm only).
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        kind: str,
        shape: Sequence[int],
        axes: Axes,
        *,
        eps: float,
        over: int = 1,
        affine: bool = True,
        bias: bool = False,
    ):
        self.kind, self.eps, self.over = kind, eps, over
        self.scale = ones(rngs, shape, axes) if affine else None
        self.bias = zeros(rngs, shape, axes) if affine and bias and kind == "layer" else None

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        axis = tuple(range(-self.over, 0))
        normalise = root_mean_square if self.kind == "rms" else standardise
        wide = normalise(x, axis, self.eps)
        if self.scale is not None:
            wide = wide * self.scale[...].astype(jnp.float32)
        if self.bias is not None:
            wide = wide + self.bias[...].astype(jnp.float32)
        return wide.astype(x.dtype)


def modulate(x: Float[Array, "B S D"], scale_BD: Float[Array, "B D"], shift_BD: Float[Array, "B D"]) -> Array:
    """x * (1 + scale) + shift, one scale and shift for each example (adaptive layer norm, arXiv 2212.09748)."""
    return x * (1 + scale_BD[:, None]).astype(x.dtype) + shift_BD[:, None].astype(x.dtype)
