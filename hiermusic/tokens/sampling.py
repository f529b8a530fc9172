"""From logits to tokens, one key a sample: the same seed draws the same tokens whatever the batch."""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from hiermusic.errors import UserError, brief

# Between logits that count as equal. A compiled program may work the same logits out twice, for the sorting and for the
# comparison, and round them differently: without it the last token that is to stay would now and then be dropped.
_TIE = 1e-4

_MOST = 1e12  # beyond it no number says more, and infinity is none

_TAKEN = {  # of each setting: what to give, and whether a number is that (NaN is none)
    "temperature": ("a finite number of at least 0", lambda x: 0 <= x < _MOST),
    "final_temperature": ("a finite number of at least 0", lambda x: 0 <= x < _MOST),
    "top_k": ("a whole number of at least 0", lambda x: isinstance(x, Integral) and 0 <= x < _MOST),
    "top_p": ("a number above 0, at most 1", lambda x: 0 < x <= 1),
    "guidance": ("a finite number of at least 0", lambda x: 0 <= x < _MOST),
    "min_share": ("a number from 0 to 1", lambda x: 0 <= x <= 1),
}


def check(sampling: Mapping[str, Any], of: str = "sampling.", levels: int = 0) -> None:
    """UserError for settings by which nothing can be drawn.

    Args:
      sampling: temperature, final_temperature, top_k, top_p, guidance and min_share, those of them that there are; None
        is none. Others are not looked at.
      of: what their names begin with.
      levels: that may each have a temperature of their own; 0 where one is for all.
    """
    for name, (words, fits) in _TAKEN.items():
        value, each = sampling.get(name), ()
        if name == "temperature" and levels and isinstance(value, list | tuple):
            value, each = (value[0], ()) if len(value) == 1 else (value, value)
            words = f"{words}, or one for each level"
        if value is not None and not all(isinstance(one, Real) and fits(one) for one in each or (value,)):
            raise UserError(f"{of}{name}={brief(repr(value), 40)}: give {words}")
        if each:
            temperatures(each, None, levels)


def sample_keys(seeds_B: Int[Array, "B"]) -> Key[Array, "B"]:
    """One random key for every seed (integers, taken modulo 2**32)."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.asarray(seeds_B).astype(jnp.uint32))


def fold_keys(keys_B: Key[Array, "B"], data: Int[Array, ""]) -> Key[Array, "B"]:
    """Each sample's key for one step, level or frame."""
    return jax.vmap(jax.random.fold_in, (0, None))(keys_B, data)


def guide(cond: Float[Array, "..."], uncond: Float[Array, "..."], scale: float) -> Float[Array, "..."]:
    """Classifier-free guidance: 1 is the conditional prediction, 0 the unconditional one."""
    return uncond + scale * (cond - uncond)


def temperatures(
    first: float | Sequence[float], last: float | None, levels: int, given: int = 0
) -> Float[np.ndarray, "K"]:
    """The temperature of each level: from that of the first one drawn evenly to that of the last, or as they are told.

    The finer a level, the less of it can be predicted, and what cannot be is noise when it is drawn.

    Args:
      first, last: of those two; None for the same at all. One level alone is drawn at `first`, for it is a first one
        too: at a `last` of 0 a model of coarse codes would repeat the likeliest of them. Several numbers are those of
        each level, given ones too; `last` is not read then, nor is what lies beyond K.
      levels: K.
      given: the first levels that are known beforehand, and not drawn.
    Raises:
      UserError: several numbers, but fewer than K.
    """
    if isinstance(first, Sequence) and len(first) > 1:
        if len(first) < levels:
            raise UserError(
                f"sampling.temperature has {len(first)} numbers for {levels} levels: give one for each, or one for all"
            )
        drawn = first[given:levels]
    else:
        first = first[0] if isinstance(first, Sequence) else first
        drawn = np.linspace(first, first if last is None else last, levels - given)
    return np.concatenate([np.zeros(given), drawn]).astype(np.float32)


def sample(
    logits_BV: Float[Array, "B V"],
    keys_B: Key[Array, "B"],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    allowed: Bool[Array, "#B V"] | None = None,
) -> Int[Array, "B"]:
    """Draws one token a row: temperature, then top-k (ties kept), then top-p.

    Args:
      logits_BV: float logits.
      keys_B: a key a row.
      temperature: >= 0, may be traced; 0 takes the likeliest.
      top_k: static; 0 = all.
      top_p: static, in (0, 1]; the likeliest token always stays.
      allowed: bool [B or 1, V]; what is False is never drawn.
    Returns:
      int32 [B].
    """
    logits_BV = logits_BV.astype(jnp.float32)
    if allowed is not None:
        logits_BV = jnp.where(allowed, logits_BV, -jnp.inf)
    kept_BV = logits_BV
    few = 0 < top_k < logits_BV.shape[-1]
    if top_p < 1:
        falling_BV = -jnp.sort(-logits_BV, axis=-1)  # serves top-k too
    elif few:
        falling_BV = jax.lax.top_k(logits_BV, top_k)[0]
    if few:
        # the least of them: of the last alone XLA on CPU would make a sort of all
        least_B1 = falling_BV[:, :top_k].min(axis=-1, keepdims=True) - _TIE
        kept_BV, falling_BV = (jnp.where(x < least_B1, -jnp.inf, x) for x in (kept_BV, falling_BV))
    if top_p < 1:
        heat = jnp.maximum(temperature, 1e-6)
        prob_BV = jax.nn.softmax((falling_BV - falling_BV[:, :1]) / heat, axis=-1)
        above_BV = jnp.cumsum(prob_BV, axis=-1) - prob_BV  # probability of the strictly likelier tokens
        least_B1 = jnp.min(jnp.where(above_BV < top_p, falling_BV, jnp.inf), axis=-1, keepdims=True) - _TIE
        kept_BV = jnp.where(kept_BV < least_B1, -jnp.inf, kept_BV)
    # argmax(logits / T + gumbel) = argmax(logits + T gumbel), which needs no special case at T = 0.
    noise_BV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[1:]))(keys_B)
    return jnp.argmax(kept_BV + temperature * noise_BV, axis=-1).astype(jnp.int32)
