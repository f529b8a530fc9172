"""Attention in plain XLA, a block of queries at a time: every platform, every shape."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from hiermusic.tokens.visibility import Visibility

Bias = Callable[[slice, slice], Float[Array, "B N q k"]]

_BLOCK = 128  # least queries in a block: smaller ones waste the matrix units
_BLOCKS = 16  # most blocks: each is compiled on its own
_LONG = 2048  # keys from which a block's probabilities are recomputed rather than kept for the backward pass
_MASKED = -1e30  # finite, so that a row which sees nothing stays finite


def attend(
    q_BNsH: Float[Array, "B N s H"],
    k_BMSH: Float[Array, "B M S H"],
    v_BMSH: Float[Array, "B M S H"],
    valid_BS: Bool[Array, "B S"] | None,
    *,
    visibility: Visibility,
    start: int | Array,
    written: int | Array,
    bias: Bias | None,
) -> Float[Array, "B N s H"]:
    """As `hiermusic.nn.attention.attend`; the keys from `written` on are hidden."""
    s, S = q_BNsH.shape[2], k_BMSH.shape[2]
    size = max(_BLOCK, -(-s // _BLOCKS))
    blocks = []
    for first in range(0, s, size):
        q = slice(first, min(first + size, s))
        k = slice(0, _reach(visibility, start, written, q, S))
        block = functools.partial(_block, start=start, written=written, q=q, k=k, visibility=visibility, bias=bias)
        if S > _LONG and s > _BLOCK:
            block = jax.checkpoint(block)
        blocks.append(block(q_BNsH, k_BMSH, v_BMSH, valid_BS))
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=2)


def _reach(visibility: Visibility, start: int | Array, written: int | Array, q: slice, S: int) -> int:
    """How many of the keys, from the first on, a block of queries can possibly see."""
    if not isinstance(written, int):
        return S
    if not isinstance(start, int) or visibility.kind == "full":
        return written
    if visibility.kind == "causal":
        return start + q.stop
    groups_S = np.asarray(visibility.groups[:written])
    seen_S = groups_S <= groups_S[start + q.start : start + q.stop].max()
    return int(np.flatnonzero(seen_S)[-1]) + 1


def _visible(
    visibility: Visibility, start: int | Array, written: int | Array, q: slice, k: slice, valid_BS: Array | None
) -> Bool[Array, "B 1 1 q k"] | None:
    """What a block of queries sees of its keys; None when that is everything."""
    q_q, k_k = start + jnp.arange(q.start, q.stop), jnp.arange(k.stop)
    seen = None
    if visibility.kind != "full":
        seen = visibility.mask(q_q, k_k)[None]
    if not isinstance(written, int) and visibility.kind != "causal":
        written_1k = (k_k < written)[None, None]
        seen = written_1k if seen is None else seen & written_1k
    if valid_BS is not None:
        valid_B1k = valid_BS[:, None, k]
        seen = valid_B1k if seen is None else seen & valid_B1k
    return None if seen is None else seen[:, None, None]


def _block(q_BNsH, k_BMSH, v_BMSH, valid_BS, *, start, written, q, k, visibility, bias):
    """A slice of the queries against a slice of the keys."""
    (B, N, _, H), M = q_BNsH.shape, k_BMSH.shape[1]
    # the queries of all heads that share keys are one dimension (Q = G q): a single product for each
    q_BMQH = q_BNsH[:, :, q].reshape(B, M, -1, H)
    logits_BMQk = jnp.einsum("bmQh,bmkh->bmQk", q_BMQH, k_BMSH[:, :, k], preferred_element_type=jnp.float32)
    if bias is not None:
        logits_BMQk = logits_BMQk + bias(q, k).reshape(-1, *logits_BMQk.shape[1:])
    visible_B11qk = _visible(visibility, start, written, q, k, valid_BS)
    if visible_B11qk is not None:
        by_head_BMGqk = logits_BMQk.reshape(B, M, N // M, -1, k.stop)
        logits_BMQk = jnp.where(visible_B11qk, by_head_BMGqk, _MASKED).reshape(logits_BMQk.shape)
    # divided by their sum behind the product, where there are fewer numbers
    weights_BMQk = jnp.exp(logits_BMQk - jax.lax.stop_gradient(logits_BMQk.max(axis=-1, keepdims=True)))
    v_BMkH = v_BMSH[:, :, k]
    sums = weights_BMQk.sum(axis=-1, keepdims=True)
    weights_BMQk = weights_BMQk.astype(v_BMkH.dtype)
    out_BMQH = jnp.einsum("bmQk,bmkh->bmQh", weights_BMQk, v_BMkH, preferred_element_type=jnp.float32) / sums
    return out_BMQH.astype(v_BMkH.dtype).reshape(B, N, -1, H)


def attend_one(
    q_BNH: Float[Array, "B N H"],
    keys_XSH: Float[Array, "X S H"],
    values_XSH: Float[Array, "X S H"],
    valid_BS: Bool[Array, "B S"] | None,
    *,
    visibility: Visibility,
    start: int | Array,
    bias: Bias | None,
) -> Float[Array, "B N H"]:
    """The query at position `start` against a cache of X = B M rows and heads.

    Keys come first in the products: the other way round XLA on CPU would transpose all of them for each query.
    """
    (B, N, H), (X, S, _) = q_BNH.shape, keys_XSH.shape
    q, k = slice(0, 1), slice(0, _reach(visibility, start, start + 1, slice(0, 1), S))
    logits_XkG = jnp.einsum("xkh,xgh->xkg", keys_XSH[:, k], q_BNH.reshape(X, -1, H), preferred_element_type=jnp.float32)
    # a softmax is cheapest over the dimension that lies closest; turned by the product, keys would come second again
    logits_XGk = jax.lax.optimization_barrier(logits_XkG).swapaxes(1, 2)
    if bias is not None:
        logits_XGk = logits_XGk + jnp.broadcast_to(bias(q, k)[:, :, 0], (B, N, k.stop)).reshape(X, -1, k.stop)
    visible_B111k = _visible(visibility, start, start + 1, q, k, valid_BS)
    if visible_B111k is not None:
        visible_B1k = jnp.broadcast_to(visible_B111k, (B, 1, 1, 1, k.stop))[:, 0, 0]
        logits_XGk = jnp.where(jnp.repeat(visible_B1k, X // B, axis=0), logits_XGk, _MASKED)
    weights_XGk = jax.nn.softmax(logits_XGk, axis=-1).astype(values_XSH.dtype)
    return jnp.einsum("xgk,xkh->xgh", weights_XGk, values_XSH[:, k]).reshape(B, N, H)
