"""cuDNN's flash attention, for GPUs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from hiermusic.tokens.visibility import Visibility


def fits(q_BNsH: Array, k_BMSH: Array, visibility: Visibility) -> bool:
    """Whether the kernel takes these arrays: a whole row at once, half precision, even lengths."""
    s, S, H = q_BNsH.shape[2], k_BMSH.shape[2], q_BNsH.shape[3]
    return (
        q_BNsH.dtype in (jnp.bfloat16, jnp.float16)
        and visibility.kind in ("causal", "full")
        and s == S
        and s % 2 == 0
        and H % 8 == 0
        and H <= 128
    )


def attend(
    q_BNSH: Float[Array, "B N S H"],
    k_BMSH: Float[Array, "B M S H"],
    v_BMSH: Float[Array, "B M S H"],
    valid_BS: Bool[Array, "B S"] | None,
    *,
    visibility: Visibility,
) -> Float[Array, "B N S H"]:
    """As `hiermusic.nn.attention.attend`, for whole rows padded at the end."""
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
