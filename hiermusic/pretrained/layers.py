"""What public encoders are made of: linear maps, and blocks of attention normed before it or behind it.

All of it is float32 at full precision: nothing here is trained, and what is read off it (tokens, distances) is compared
with what others read off the same weights. Letters: B batch, S positions, N heads, H head dim, D width.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hiermusic.nn.norms import Norm
from hiermusic.nn.param import weight, zeros

EXACT = jax.lax.Precision.HIGHEST

_MOST_BLOCKS = 1000  # as many as a stranger's configuration names would fill the memory


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x times the normal distribution's share below it (arXiv 1606.08415), by the error function."""
    return jax.nn.gelu(x, approximate=False)


def layer_norm(width: int, eps: float = 1e-5, *, rngs: nnx.Rngs) -> Norm:
    """A layer norm with scale and bias."""
    return Norm(rngs, "layer", (width,), (None,), eps=eps, bias=True)


class Linear(nnx.Module):
    """x W + b."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True, rngs: nnx.Rngs):
        self.kernel = weight(rngs, (inputs, outputs), (None, None))
        self.bias = zeros(rngs, (outputs,), (None,)) if bias else None

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        y = jnp.matmul(x, self.kernel[...], precision=EXACT)
        return y if self.bias is None else y + self.bias[...]


class SelfAttention(nnx.Module):
    """Attention of all positions to all, with what is added to its logits given from outside."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.heads = heads
        self.query, self.key, self.value, self.out = (Linear(width, width, rngs=rngs) for _ in range(4))

    def __call__(self, x_BSD: Float[Array, "B S D"], bias: Array | None = None) -> Float[Array, "B S D"]:
        """`bias` is added to the logits: anything that broadcasts to [B, N, S, S]."""
        q, k, v = (
            linear(x_BSD).reshape(*x_BSD.shape[:2], self.heads, -1) for linear in (self.query, self.key, self.value)
        )
        logits = jnp.einsum("bqnh,bknh->bnqk", q * q.shape[-1] ** -0.5, k, precision=EXACT)
        shares = jax.nn.softmax(logits if bias is None else logits + bias, axis=-1)
        return self.out(jnp.einsum("bnqk,bknh->bqnh", shares, v, precision=EXACT).reshape(x_BSD.shape))


class FeedForward(nnx.Module):
    """Two linear maps with GELU between them."""

    def __init__(self, width: int, hidden: int, *, rngs: nnx.Rngs):
        self.up, self.down = Linear(width, hidden, rngs=rngs), Linear(hidden, width, rngs=rngs)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        return self.down(gelu(self.up(x)))


def check_blocks(layers: int, width: int, heads: int) -> None:
    """ValueError for a number of blocks that none has, or a width that heads do not share."""
    if not 0 < layers <= _MOST_BLOCKS or not 0 < heads <= width or width % heads:
        raise ValueError(f"it has {layers} blocks of width {width} and {heads} heads")


class Block(nnx.Module):
    """Attention and feed-forward, each added to what it reads.

    Args:
      norm_first: each is normed before it (GPT, Swin, HuBERT large), or else its sum behind it (BERT, HuBERT base).
    """

    def __init__(self, width: int, heads: int, hidden: int, *, norm_first: bool, eps: float, rngs: nnx.Rngs):
        self.norm_first = norm_first
        self.attention = SelfAttention(width, heads, rngs=rngs)
        self.attention_norm = layer_norm(width, eps, rngs=rngs)
        self.ffn = FeedForward(width, hidden, rngs=rngs)
        self.ffn_norm = layer_norm(width, eps, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B *S D"], attend: Callable[[SelfAttention, Array], Array] = SelfAttention.__call__
    ) -> Float[Array, "B *S D"]:
        """`attend` says which positions its attention sees, and how; all of [B, S, D] when left out."""
        if self.norm_first:
            x = x + attend(self.attention, self.attention_norm(x))
            return x + self.ffn(self.ffn_norm(x))
        x = self.attention_norm(x + attend(self.attention, x))
        return self.ffn_norm(x + self.ffn(x))
