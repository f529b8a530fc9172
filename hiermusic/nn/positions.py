"""How attention learns where a position stands: rotary tables and T5's bucketed bias, float32."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from hiermusic.tokens.pattern import SEGMENT

Rotation = tuple[Float[Array, "B 1 S h"], Float[Array, "B 1 S h"]]


def rotation(positions_BS: Int[Array, "B S"], head_dim: int, base: float) -> Rotation:
    """Cosine and sine of every position's angles, h = head_dim / 2 of each (arXiv 2104.09864)."""
    frequency_h = base ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle_B1Sh = positions_BS.astype(jnp.float32)[:, None, :, None] * frequency_h
    return jnp.cos(angle_B1Sh), jnp.sin(angle_B1Sh)


def rotate(x_BNSH: Float[Array, "B N S H"], rotation: Rotation) -> Float[Array, "B N S H"]:
    """Turns the pairs (i, i + H/2) by their position's angles, in float32."""
    cos_B1Sh, sin_B1Sh = rotation
    left, right = jnp.split(x_BNSH.astype(jnp.float32), 2, -1)
    turned = (left * cos_B1Sh - right * sin_B1Sh, right * cos_B1Sh + left * sin_B1Sh)
    return jnp.concatenate(turned, -1).astype(x_BNSH.dtype)


def t5_bucket(distance: Int[Array, "..."], buckets: int, max_distance: int) -> Int[Array, "..."]:
    """T5's bucket of a query's distance to a key behind it (arXiv 1910.10683): the first half exact, then logarithmic.

    Args:
      distance: query position - key position; keys ahead count as distance 0.
      buckets: number of buckets; every distance near `max_distance` and above shares the last.
    """
    exact = buckets // 2
    distance = jnp.maximum(distance, 0)
    ratio = jnp.maximum(distance, exact).astype(jnp.float32) / exact
    far = exact + (jnp.log(ratio) / math.log(max_distance / exact) * (buckets - exact)).astype(jnp.int32)
    return jnp.where(distance < exact, distance, jnp.minimum(far, buckets - 1))


def t5_bias(
    table_WN: Float[Array, "W N"], q_Bq: Int[Array, "B q"], k_Bk: Int[Array, "B k"], max_distance: int
) -> Float[Array, "B N q k"]:
    """The learned bias of each head for a block of queries and keys, float32.

    Args:
      table_WN: one row a bucket.
      q_Bq, k_Bk: positions; a leading 1 when all examples share them.
    """
    return _look_up(table_WN, t5_bucket(q_Bq[:, :, None] - k_Bk[:, None, :], table_WN.shape[0], max_distance))


def aligned_bias(
    table_WN: Float[Array, "W N"],
    pairs_GGN: Float[Array, "G G N"],
    q_Bq: Int[Array, "B q"],
    k_Bk: Int[Array, "B k"],
    max_distance: int,
) -> Float[Array, "B N q k"]:
    """T5's bias of distances in time, and one for each pair of segments, for a block of queries and keys, float32.

    Args:
      table_WN: one row a bucket of the keys at or behind the query's time, then as many of those ahead of it.
      pairs_GGN: by the query's segment, then the key's.
      q_Bq, k_Bk: places (`tokens.pattern.Pattern.places`); a leading 1 when all examples share them.
    """
    buckets, segments = table_WN.shape[0] // 2, pairs_GGN.shape[0]
    (q_segment, q_tick), (k_segment, k_tick) = (divmod(at, SEGMENT) for at in (q_Bq[:, :, None], k_Bk[:, None, :]))
    distance = q_tick - k_tick
    bucket_Bqk = t5_bucket(jnp.abs(distance), buckets, max_distance) + jnp.where(distance < 0, buckets, 0)
    pair_Bqk = q_segment * segments + k_segment
    return _look_up(table_WN, bucket_Bqk) + _look_up(pairs_GGN.reshape(segments**2, -1), pair_Bqk)


@jax.custom_vjp
def _look_up(table_WN: Float[Array, "W N"], row_Bqk: Int[Array, "B q k"]) -> Float[Array, "B N q k"]:
    """Rows of a table, float32."""
    return jnp.take(table_WN.astype(jnp.float32).T, row_Bqk, axis=1).swapaxes(0, 1)


def _gradient(kept: tuple[Array, Array], given_BNqk: Float[Array, "B N q k"]) -> tuple[Array, np.ndarray]:
    table_WN, row_Bqk = kept
    added, multiplied = (functools.partial(how, len(table_WN)) for how in (_added, _multiplied))
    sums_WN = jax.lax.platform_dependent(row_Bqk, given_BNqk, cpu=added, default=multiplied)
    return sums_WN.astype(table_WN.dtype), np.zeros(row_Bqk.shape, jax.dtypes.float0)


def _added(rows: int, row_Bqk: Int[Array, "B q k"], given_BNqk: Float[Array, "B N q k"]) -> Float[Array, "W N"]:
    """The sum of what is given to each row, one addition after another: fast on a CPU, and slow where many threads
    wait for a few rows."""
    given_XN = jnp.moveaxis(given_BNqk, 1, -1).reshape(-1, given_BNqk.shape[1])
    return jnp.zeros((rows, given_XN.shape[1])).at[row_Bqk.reshape(-1)].add(given_XN)


def _multiplied(rows: int, row_Bqk: Int[Array, "B q k"], given_BNqk: Float[Array, "B N q k"]) -> Float[Array, "W N"]:
    """The same by products with which row is whose, a query at a time: there is never a table of all pairs."""

    def add(sums_WN, of_query):
        row_Bk, given_BNk = of_query
        which_BkW = jax.nn.one_hot(row_Bk, rows)
        return sums_WN + jnp.einsum("bkw,bnk->wn", which_BkW, given_BNk, precision=jax.lax.Precision.HIGHEST), None

    start_WN = jnp.zeros((rows, given_BNqk.shape[1]))
    return jax.lax.scan(add, start_WN, (jnp.moveaxis(row_Bqk, 1, 0), jnp.moveaxis(given_BNqk, 2, 0)))[0]


_look_up.defvjp(lambda table_WN, row_Bqk: (_look_up(table_WN, row_Bqk), (table_WN, row_Bqk)), _gradient)
