"""Attention behind one function: cuDNN's kernel where it fits, otherwise XLA in blocks of queries.

Arrays are head-major ([B, N, S, H]), the order of the matrix products, which XLA on CPU would otherwise transpose to,
and in which a cache is read.
"""

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
    *,
    visibility: Visibility,
    start: int | Array = 0,
    valid_BS: Bool[Array, "B S"] | None = None,
    right_padded: bool = False,
    bias: Bias | None = None,
) -> Float[Array, "B N s H"]:
    """Softmax attention, the softmax in float32; query head n reads key head n // (N / M).

    Args:
      q_BNsH: queries, already scaled; they stand at positions start .. start + s - 1 of the keys' S.
      k_BMSH, v_BMSH: keys and values.
      visibility: who sees whom, by position in the row.
      start: a Python integer lets blocks skip keys that they cannot see; it may be traced.
      valid_BS: False hides a key from every query; a query that sees no key gets a finite, meaningless result.
      right_padded: promises that the valid keys of each row come first and that the results of the padded rest are not
        used: what cuDNN's kernel needs to know.
      bias: gives the float32 bias of a block, from the slices of its queries and of its keys.
    """
    if bias is None and _cudnn_fits(q_BNsH, k_BMSH, visibility, start) and (valid_BS is None or right_padded):
        return _cudnn(q_BNsH, k_BMSH, v_BMSH, visibility, valid_BS)
    s, S = q_BNsH.shape[2], k_BMSH.shape[2]
    size = max(_BLOCK, -(-s // _BLOCKS))
    blocks = []
    for first in range(0, s, size):
        q = slice(first, min(first + size, s))
        k = slice(0, _reach(visibility, start, s, q, S))
        block = functools.partial(_block, start=start, q=q, k=k, visibility=visibility, bias=bias)
        if S > _LONG and s > _BLOCK:
            block = jax.checkpoint(block)
        blocks.append(block(q_BNsH, k_BMSH, v_BMSH, valid_BS))
    return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=2)


def _reach(visibility: Visibility, start: int | Array, s: int, q: slice, S: int) -> int:
    """How many of the keys, from the first on, a block of queries can possibly see."""
    if not isinstance(start, int):
        return S
    if visibility.kind == "causal":
        return start + q.stop
    if visibility.kind == "full":
        return start + s
    groups_S = np.asarray(visibility.groups[: start + s])
    seen_S = groups_S <= groups_S[start + q.start : start + q.stop].max()
    return int(np.flatnonzero(seen_S)[-1]) + 1


def _visible(
    visibility: Visibility, start: int | Array, s: int, q: slice, k: slice, valid_BS: Array | None
) -> Bool[Array, "B 1 1 q k"] | None:
    """What a block of queries sees of its keys; None when that is everything."""
    q_q, k_k = start + jnp.arange(q.start, q.stop), jnp.arange(k.stop)
    seen = None
    if visibility.kind != "full":
        seen = visibility.mask(q_q, k_k)[None]
    if not isinstance(start, int) and visibility.kind != "causal":
        written_1k = (k_k < start + s)[None, None]
        seen = written_1k if seen is None else seen & written_1k
    if valid_BS is not None:
        valid_B1k = valid_BS[:, None, k]
        seen = valid_B1k if seen is None else seen & valid_B1k
    return None if seen is None else seen[:, None, None]


def _block(q_BNsH, k_BMSH, v_BMSH, valid_BS, *, start, q, k, visibility, bias):
    """A slice of the queries against a slice of the keys."""
    B, N, s, H = q_BNsH.shape
    M = k_BMSH.shape[1]
    q_BMGqH = q_BNsH[:, :, q].reshape(B, M, N // M, -1, H)
    logits = jnp.einsum("bmgqh,bmkh->bmgqk", q_BMGqH, k_BMSH[:, :, k], preferred_element_type=jnp.float32)
    if bias is not None:
        bias_BNqk = bias(q, k)
        logits = logits + bias_BNqk.reshape(-1, M, N // M, *bias_BNqk.shape[2:])
    visible = _visible(visibility, start, s, q, k, valid_BS)
    if visible is not None:
        logits = jnp.where(visible, logits, _MASKED)
    weights = jax.nn.softmax(logits, axis=-1).astype(v_BMSH.dtype)
    out_BMGqH = jnp.einsum("bmgqk,bmkh->bmgqh", weights, v_BMSH[:, :, k])
    return out_BMGqH.reshape(B, N, -1, H)


def _cudnn_fits(q_BNsH, k_BMSH, visibility: Visibility, start: int | Array) -> bool:
    """Whether cuDNN's flash attention takes these arrays: a whole row at once, half precision, even lengths."""
    s, S, H = q_BNsH.shape[2], k_BMSH.shape[2], q_BNsH.shape[3]
    return (
        jax.default_backend() == "gpu"
        and q_BNsH.dtype in (jnp.bfloat16, jnp.float16)
        and visibility.kind in ("causal", "full")
        and isinstance(start, int)
        and start == 0
        and s == S
        and s % 2 == 0
        and H % 8 == 0
        and H <= 128
    )


def _cudnn(q_BNSH, k_BMSH, v_BMSH, visibility: Visibility, valid_BS):
    q_BSNH, k_BSMH, v_BSMH = (x.swapaxes(1, 2) for x in (q_BNSH, k_BMSH, v_BMSH))
    lengths_B = None if valid_BS is None else jnp.maximum(valid_BS.sum(-1, dtype=jnp.int32), 1)
    out_BSNH = jax.nn.dot_product_attention(
        q_BSNH,
        k_BSMH,
        v_BSMH,
        scale=1.0,
        is_causal=visibility.kind == "causal",
        query_seq_lengths=lengths_B,
        key_value_seq_lengths=lengths_B,
        implementation="cudnn",
    )
    return out_BSNH.swapaxes(1, 2)
