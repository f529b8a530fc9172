"""Codebooks that learn by moving averages instead of gradients, for every quantiser: all of it in float32.

Points may be fewer than the array that holds them: those that `held_N` leaves out count for nothing.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from hiermusic.nn import param

EXACT = lax.Precision.HIGHEST  # a TPU would otherwise compare distances in bfloat16


class Codebook(nnx.Variable):
    """Codebook state: learned by moving averages rather than gradients, saved and sharded like a weight."""


@dataclasses.dataclass(frozen=True)
class CodebookConfig:
    """What the codebooks of a quantiser learn by.

    Args:
      codes: V, entries of each.
      decay: of the moving averages from batch to batch; nearer to 1 where batches are small (see `move`).
      epsilon: Laplace smoothing of the counts.
      kmeans_iterations: on the first training batch.
      dead_share: a code is dead below this share of the count that uniform use would give it. Khala's absolute 2 is
        0.74 of its batch of 64 x 43 frames; 0.02 replaces only codes that are hardly ever chosen.
    """

    codes: int = 1024
    decay: float = 0.99
    epsilon: float = 1e-5
    kmeans_iterations: int = 50
    dead_share: float = 0.02


class Quantised(NamedTuple):
    """What one pass of a quantiser gives.

    Attributes:
      z_q_BTD: the sum of the chosen codes, with a straight-through gradient to the input.
      codes_BPS: int32, packets of codes: a residual quantiser's frames of K codes, a multi-scale one's windows.
      commitment: the quantiser's own loss: it draws the encoder towards the codes, and what learns by gradients in
        between towards the encoder; of a pyramid, that of each of its levels.
      stats: arrays of length K: commitment_K, the mean squared distance that each level leaves over; perplexity_K and
        usage_K (share of live codes) of the averaged counts.
      coarser: of a pyramid, what its first level, its first two, ... come to without the finer ones, like z_q_BTD.
    """

    z_q_BTD: Float[Array, "B T D"]
    codes_BPS: Int[Array, "B P S"]
    commitment: Float[Array, ""] | Float[Array, "J"]
    stats: dict[str, Float[Array, "K"]]
    coarser: tuple[Float[Array, "B T D"], ...] = ()


class Averages(NamedTuple):
    """The state of one level's codebook, or of all of them stacked: codes are `sums` over `counts`."""

    book: Float[Array, "*K V D"]
    sums: Float[Array, "*K V D"]
    counts: Float[Array, "*K V"]


class Codebooks(nnx.Module):
    """K codebooks and their averages: the part of a quantiser that learns without gradients.

    Args:
      levels: K.
      width: D, channels of every code.
    """

    def __init__(self, config: CodebookConfig, levels: int, width: int, *, rngs: nnx.Rngs):
        self.config = config
        shape, axes = (levels, config.codes, width), ("levels", "codes", "latent")
        self.codebooks = Codebook(0.02 * jax.random.normal(param.key(rngs), shape), axes=axes)
        self.ema_sums = Codebook(jnp.zeros(shape), axes=axes)
        self.ema_counts = Codebook(jnp.zeros(shape[:2]), axes=axes[:2])
        self.initialised = Codebook(jnp.zeros((), bool), axes=())

    @property
    def averages(self) -> Averages:
        """The state of all levels, stacked."""
        return Averages(self.codebooks[...], self.ema_sums[...], self.ema_counts[...])

    def keep(self, moved: Averages) -> None:
        """Takes over what a training batch made of the averages."""
        for variable, value in zip((self.codebooks, self.ema_sums, self.ema_counts), moved, strict=True):
            param.put(variable, value)
        param.put(self.initialised, jnp.ones((), bool))

    def started(
        self, now: Averages, key: PRNGKeyArray, points_ND: Float[Array, "N D"], held_N: Bool[Array, "N"] | None = None
    ) -> Averages:
        """One level's averages; on the first training batch, those that k-means makes of its vectors."""
        return lax.cond(
            self.initialised[...],
            lambda *_: now,
            lambda key, points_ND: first_codes(self.config, key, points_ND, held_N),
            key,
            points_ND,
        )


def nearest(x_XD: Float[Array, "*X D"], book_VD: Float[Array, "V D"]) -> Int[Array, "*X"]:
    """Index of the code nearest to each vector (Euclidean); the lowest index when two tie."""
    scores = jnp.einsum("...d,vd->...v", x_XD, book_VD, precision=EXACT)
    return jnp.argmax(scores - 0.5 * jnp.sum(jnp.square(book_VD), -1), axis=-1).astype(jnp.int32)


def first_codes(
    config: CodebookConfig,
    key: PRNGKeyArray,
    points_ND: Float[Array, "N D"],
    held_N: Bool[Array, "N"] | None = None,
    draw: Callable[..., Float[Array, "V D"]] | None = None,
) -> Averages:
    """Codes by Lloyd's algorithm from random points, as averages that stand on one batch. An empty code stays put.

    Args:
      draw: what draws the points to begin with, as `draw_points` does, which it is when left out.
    """

    def step(_, book_VD):
        sums, hits = tally(points_ND, _assign(points_ND, book_VD, held_N), config.codes)
        return jnp.where(hits[:, None] > 0, sums / jnp.maximum(hits, 1.0)[:, None], book_VD)

    begin_VD = (draw or draw_points)(key, points_ND, config.codes, held_N)
    book_VD = lax.fori_loop(0, config.kmeans_iterations, step, begin_VD)
    counts_V = tally(points_ND, _assign(points_ND, book_VD, held_N), config.codes)[1]
    return Averages(book_VD, book_VD * counts_V[:, None], counts_V)


def draw_points(
    key: PRNGKeyArray, points_ND: Float[Array, "N D"], count: int, held_N: Bool[Array, "N"] | None = None
) -> Float[Array, "V D"]:
    """`count` vectors of the batch, each once; if they are too few, again with a jitter of a tenth of their spread."""
    order_key, jitter_key = jax.random.split(key)
    order_N, total = _shuffled(order_key, len(points_ND), held_N)
    place_V = jnp.arange(count)
    drawn = points_ND[order_N[place_V % total]]
    if held_N is None and count <= total:
        return drawn
    spread_D = jnp.std(points_ND, axis=0, where=None if held_N is None else held_N[:, None])
    return drawn + jnp.where(place_V[:, None] < total, 0.0, 0.1 * spread_D * jax.random.normal(jitter_key, drawn.shape))


def spread_points(
    key: PRNGKeyArray, points_ND: Float[Array, "N D"], count: int, held_N: None = None
) -> Float[Array, "V D"]:
    """`count` vectors of the batch, each the likelier drawn the farther it lies from those before it (k-means++)."""

    def step(i: Array, drawn: tuple[Array, Array]) -> tuple[Array, Array]:
        book_VD, apart_N = drawn
        chances_N = jnp.log(jnp.maximum(apart_N, 1e-30))
        point_D = points_ND[jax.random.categorical(jax.random.fold_in(key, i), chances_N)]
        from_it_N = jnp.sum(jnp.square(points_ND - point_D), axis=-1)
        return book_VD.at[i].set(point_D), jnp.where(i == 0, from_it_N, jnp.minimum(apart_N, from_it_N))

    begin = jnp.zeros((count, points_ND.shape[1])), jnp.ones(len(points_ND))
    return lax.fori_loop(0, count, step, begin)[0]


def move(
    config: CodebookConfig,
    now: Averages,
    key: PRNGKeyArray,
    points_ND: Float[Array, "N D"],
    codes_N: Int[Array, "N"],
    held_N: Bool[Array, "N"] | None = None,
) -> Averages:
    """One step of the averages, then a fresh start for codes that have fallen out of use.

    A dead code (see `CodebookConfig.dead_share`) draws a vector of the batch and takes over a part of that vector's
    code (see `reborn`). Where a batch has fewer vectors than there are codes, three things keep that from tearing the
    codebook up: the averages look back over at least one vector a code; no vector replaces two codes, those longest out
    of use going first; and a replaced code is let live for as long as uniform use takes to choose it once.

    Args:
      now: the averages so far.
      key: of the draw.
      points_ND: the vectors of the whole batch.
      codes_N: the code of each; -1 where it is not held.
      held_N: which of the vectors are there, all when left out.
    """
    decay = _slowed(config, len(points_ND) if held_N is None else held_N.sum())
    sums, hits = tally(points_ND, codes_N, config.codes)
    sums = decay * now.sums + (1 - decay) * sums
    counts = decay * now.counts + (1 - decay) * hits
    total = counts.sum()
    epsilon = config.epsilon * jnp.minimum(1.0, total / config.codes)  # small beside the count of any live code
    smooth = (counts + epsilon) / (total + config.codes * epsilon) * total
    dead = counts < _thresholds(config, counts)[0]
    moved = Averages(jnp.where(dead[:, None], now.book, sums / smooth[:, None]), sums, counts)
    return revived(config, moved, key, points_ND, codes_N, held_N)


def revived(
    config: CodebookConfig,
    now: Averages,
    key: PRNGKeyArray,
    points_ND: Float[Array, "N D"],
    codes_N: Int[Array, "N"],
    held_N: Bool[Array, "N"] | None = None,
) -> Averages:
    """The averages with a fresh start for codes that have fallen out of use; arguments as for `move`."""
    order_N, held = _shuffled(jax.random.split(key)[0], len(points_ND), held_N)
    floor, start = _thresholds(config, now.counts)
    rank = jnp.argsort(jnp.argsort(now.counts))
    drawn_V = order_N[rank % len(points_ND)]
    replaced_V = (now.counts < floor) & (rank < held)
    return reborn(now, replaced_V, points_ND[drawn_V], codes_N[drawn_V], start)


def reborn(
    now: Averages,
    replaced_V: Bool[Array, "V"],
    vectors_VD: Float[Array, "V D"],
    owners_V: Int[Array, "V"],
    start: Float[Array, ""],
) -> Averages:
    """New codes where dead ones were: each a short way from a live code towards one of the vectors that chose it.

    There it takes over a good part of what its owner stands for. The vector itself would be no place for it: in many
    dimensions all other vectors are nearer to the codes they have. Those of a round cell reach about 1 / sqrt(D) of
    their distance from its code to either side of a plane through it, so that share of the way is how far a new code
    goes: no further in many dimensions than others can follow, far enough in few.

    Args:
      now: the averages.
      replaced_V: which codes are to be replaced.
      vectors_VD: a vector of the batch for each of them, none for two; the others' are not read.
      owners_V: the code that this vector has chosen.
      start: count of a new code.
    """
    owners_VD = now.book[owners_V]
    fresh_VD = owners_VD + (vectors_VD - owners_VD) / vectors_VD.shape[-1] ** 0.5
    return Averages(
        jnp.where(replaced_V[:, None], fresh_VD, now.book),
        jnp.where(replaced_V[:, None], fresh_VD * start, now.sums),
        jnp.where(replaced_V, start, now.counts),
    )


def tally(
    points_ND: Float[Array, "N D"], codes_N: Int[Array, "N"], count: int
) -> tuple[Float[Array, "V D"], Float[Array, "V"]]:
    """Per code, the sum and the number of the vectors that chose it; -1 chooses none."""
    chosen = jax.nn.one_hot(codes_N, count)
    return jnp.einsum("nv,nd->vd", chosen, points_ND, precision=EXACT), chosen.sum(0)


def health(config: CodebookConfig, counts_V: Float[Array, "V"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Perplexity of the averaged counts, and the share of codes that have been chosen of late."""
    share_V = counts_V / jnp.maximum(counts_V.sum(), 1e-9)
    perplexity = jnp.exp(-jnp.sum(share_V * jnp.log(jnp.maximum(share_V, 1e-12))))
    # A replaced code stands at its start, or below, until a vector chooses it.
    return perplexity, jnp.mean(counts_V > 1.01 * _thresholds(config, counts_V)[1])


def _thresholds(config: CodebookConfig, counts_V: Array) -> tuple[Array, Array]:
    """The count below which a code is dead, and that of a replaced one, which takes V / N batches of N to fall there.

    Where N is V or more they are the same: what the next batch does not choose, either, is dead again.
    """
    total = jnp.maximum(counts_V.sum(), 1e-9)
    floor = config.dead_share * total / config.codes
    return floor, floor * _slowed(config, total) ** -jnp.maximum(config.codes / total - 1, 0.0)


def _slowed(config: CodebookConfig, batch: Array | int) -> Array:
    """The decay with which the averages look back over at least one vector a code."""
    return jnp.maximum(config.decay, 1 - batch / config.codes)


def _assign(points_ND: Array, book_VD: Array, held_N: Array | None) -> Int[Array, "N"]:
    codes_N = nearest(points_ND, book_VD)
    return codes_N if held_N is None else jnp.where(held_N, codes_N, -1)


def _shuffled(key: PRNGKeyArray, size: int, held_N: Array | None) -> tuple[Int[Array, "N"], Array | int]:
    """Indices of the vectors in random order, those held first, and how many those are."""
    order_N = jax.random.permutation(key, size)
    if held_N is None:
        return order_N, size
    return order_N[jnp.argsort(~held_N[order_N], stable=True)], held_N.sum()
