"""Residual vector quantiser with EMA codebooks, as in EnCodec and Khala: a scan over stacked codebooks, all float32."""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

_EXACT = lax.Precision.HIGHEST  # a TPU would otherwise compare distances in bfloat16


class Codebook(nnx.Variable):
    """Codebook state: learned by moving averages rather than gradients, saved and sharded like a weight."""


@dataclasses.dataclass(frozen=True)
class QuantiserConfig:
    """What a residual quantiser is made of; the defaults are Khala's (release `models/Decoder/rvq.py`).

    Attributes:
      levels: K, codebooks.
      codes: V, entries of each.
      decay: of the moving averages.
      epsilon: Laplace smoothing of the counts.
      kmeans_iterations: on the first training batch.
      dead_share: a code is dead below this share of the count that uniform use would give it. Khala's absolute 2 is
        0.74 of its batch of 64 x 43 frames; 0.02 replaces only codes that are hardly ever chosen.
      dropout: layers each item of a training batch is quantised with. "off": all. "uniform": all for a fifth of the
        items, uniform 1..K for the others. "low_biased": all for half of them, SpectroStream's targets for the others.
    """

    levels: int = 64
    codes: int = 1024
    decay: float = 0.99
    epsilon: float = 1e-5
    kmeans_iterations: int = 50
    dead_share: float = 0.02
    dropout: Literal["off", "uniform", "low_biased"] = "off"


class Quantised(NamedTuple):
    """What one pass of the quantiser gives.

    Attributes:
      x_BTD: the sum of the chosen codes, with a straight-through gradient to the input.
      codes_BTK: int32.
      commitment: mean over levels of the squared distance to the chosen code, to be minimised by the encoder.
      stats: arrays of length K: commitment_K; perplexity_K and usage_K (share of live codes) of the averaged counts.
    """

    x_BTD: Float[Array, "B T D"]
    codes_BTK: Int[Array, "B T K"]
    commitment: Float[Array, ""]
    stats: dict[str, Float[Array, "K"]]


class _Level(NamedTuple):
    """The state of one level, or of all of them stacked."""

    book: Float[Array, "*K V D"]
    sums: Float[Array, "*K V D"]
    counts: Float[Array, "*K V"]


class ResidualQuantiser(nnx.Module):
    """K codebooks of V codes, each quantising what the levels before it left over.

    Args:
      width: D, channels of the latent frames and of every code.
    """

    def __init__(self, width: int, config: QuantiserConfig, *, rngs: nnx.Rngs):
        self.config = config
        shape, axes = (config.levels, config.codes, width), ("levels", "codes", "latent")
        self.codebooks = Codebook(0.02 * jax.random.normal(rngs.params(), shape), axes=axes)
        self.ema_sums = Codebook(jnp.zeros(shape), axes=axes)
        self.ema_counts = Codebook(jnp.zeros(shape[:2]), axes=axes[:2])
        self.initialised = Codebook(jnp.zeros((), bool), axes=())

    def encode(self, x_BTD: Float[Array, "B T D"], layers: int | None = None) -> Int[Array, "B T K"]:
        """Codes of the first `layers` levels (all when left out)."""

        def level(residual, book):
            codes = nearest(residual, book)
            return residual - book[codes], codes

        _, codes_KBT = lax.scan(level, x_BTD.astype(jnp.float32), self.codebooks[...][:layers])
        return jnp.moveaxis(codes_KBT, 0, -1)

    def decode(self, codes_BTK: Int[Array, "B T K"], layers: int | None = None) -> Float[Array, "B T D"]:
        """Sum of the codes of the first `layers` levels; there may be fewer than codebooks, and -1 adds nothing."""
        codes_KBT = jnp.moveaxis(codes_BTK, -1, 0)[:layers]
        books = self.codebooks[...][: len(codes_KBT)]
        start = jnp.zeros((*codes_BTK.shape[:-1], books.shape[-1]), jnp.float32)

        def add(total_BTD, level):
            book_VD, codes_BT = level
            return total_BTD + jnp.where(codes_BT[..., None] >= 0, book_VD[codes_BT], 0.0), None

        return lax.scan(add, start, (books, codes_KBT))[0]

    def __call__(
        self, x_BTD: Float[Array, "B T D"], *, key: PRNGKeyArray | None = None, train: bool = False
    ) -> Quantised:
        """Quantises, and in training moves the codebooks.

        Args:
          x_BTD: latent frames.
          key: needed in training: k-means seeds, replacement of dead codes, dropout. The same on every device; the
            statistics are sums over the whole batch, so a sharded batch moves the codebooks as an unsharded one does.
          train: initialise on the first call, update the codebooks, apply dropout.
        """
        config, x_BTD = self.config, x_BTD.astype(jnp.float32)
        state = _Level(self.codebooks[...], self.ema_sums[...], self.ema_counts[...])
        depth_B = jnp.full(x_BTD.shape[:1], config.levels)
        keys = jnp.arange(config.levels)  # unused when not training
        if train:
            depth_key, level_key = jax.random.split(key)
            depth_B = draw_depths(config, depth_key, x_BTD.shape[0])
            keys = jax.random.split(level_key, config.levels)
        ready = self.initialised[...]

        def level(carry, inputs):
            residual, total = carry
            k, level_key, now = inputs
            points_ND = lax.stop_gradient(residual).reshape(-1, residual.shape[-1])
            if train:
                now = lax.cond(ready, lambda now, *_: now, self._first_codes, now, level_key, points_ND)
            codes_N = nearest(points_ND, now.book)
            codes_BT = codes_N.reshape(residual.shape[:-1])
            chosen = now.book[codes_BT]
            residual = residual - chosen
            # Dropout masks what the decoder hears and the loss, as in DAC; every level still sees its true residual.
            heard = (k < depth_B)[:, None, None]
            commitment = jnp.mean(jnp.where(heard, jnp.square(residual), 0.0))
            health = _health(now.counts, config.dead_share)
            if train:
                now = self._move(now, level_key, points_ND, codes_N)
            return (residual, total + jnp.where(heard, chosen, 0.0)), (now, codes_BT, commitment, *health)

        start = (x_BTD, jnp.zeros_like(x_BTD))
        (_, total), (moved, codes_KBT, commitment_K, perplexity_K, usage_K) = lax.scan(
            level, start, (jnp.arange(config.levels), keys, state)
        )
        if train:
            self.codebooks[...], self.ema_sums[...], self.ema_counts[...] = moved
            self.initialised[...] = jnp.ones((), bool)
        return Quantised(
            # One straight-through estimator over the sum: one per level would count the gradient once a level.
            x_BTD + lax.stop_gradient(total - x_BTD),
            jnp.moveaxis(codes_KBT, 0, -1),
            jnp.mean(commitment_K),
            {"commitment_K": commitment_K, "perplexity_K": perplexity_K, "usage_K": usage_K},
        )

    def _first_codes(self, now: _Level, key: PRNGKeyArray, points_ND: Array) -> _Level:
        book, counts = kmeans(key, points_ND, self.config.codes, self.config.kmeans_iterations)
        return _Level(book, book * counts[:, None], counts)

    def _move(self, now: _Level, key: PRNGKeyArray, points_ND: Array, codes_N: Array) -> _Level:
        """One EMA step, then a fresh start for codes that have fallen out of use."""
        config = self.config
        sums, hits = _gather_sums(points_ND, codes_N, config.codes)
        sums = config.decay * now.sums + (1 - config.decay) * sums
        counts = config.decay * now.counts + (1 - config.decay) * hits
        total = counts.sum()
        smooth = (counts + config.epsilon) / (total + config.codes * config.epsilon) * total
        floor = config.dead_share * total / config.codes
        dead, fresh = counts < floor, draw_points(key, points_ND, config.codes)
        return _Level(
            jnp.where(dead[:, None], fresh, sums / smooth[:, None]),
            jnp.where(dead[:, None], fresh * floor, sums),
            jnp.where(dead, floor, counts),
        )


def nearest(x_XD: Float[Array, "*X D"], book_VD: Float[Array, "V D"]) -> Int[Array, "*X"]:
    """Index of the code nearest to each vector (Euclidean); the lowest index when two tie."""
    scores = jnp.einsum("...d,vd->...v", x_XD, book_VD, precision=_EXACT)
    return jnp.argmax(scores - 0.5 * jnp.sum(jnp.square(book_VD), -1), axis=-1).astype(jnp.int32)


def draw_points(key: PRNGKeyArray, points_ND: Float[Array, "N D"], count: int) -> Float[Array, "V D"]:
    """`count` vectors of the batch, each once; if they are too few, again with a jitter of a tenth of their spread."""
    order_key, jitter_key = jax.random.split(key)
    total = len(points_ND)
    drawn = points_ND[jnp.resize(jax.random.permutation(order_key, total), (count,))]
    if count <= total:
        return drawn
    jitter = 0.1 * jnp.std(points_ND, axis=0) * jax.random.normal(jitter_key, drawn.shape)
    return drawn + jnp.where(jnp.arange(count)[:, None] < total, 0.0, jitter)


def kmeans(
    key: PRNGKeyArray, points_ND: Float[Array, "N D"], count: int, iterations: int
) -> tuple[Float[Array, "V D"], Float[Array, "V"]]:
    """Lloyd's algorithm from random points: centres and how many points each holds. An empty centre stays put."""

    def step(_, centres):
        sums, hits = _gather_sums(points_ND, nearest(points_ND, centres), count)
        return jnp.where(hits[:, None] > 0, sums / jnp.maximum(hits, 1.0)[:, None], centres)

    centres = lax.fori_loop(0, iterations, step, draw_points(key, points_ND, count))
    return centres, _gather_sums(points_ND, nearest(points_ND, centres), count)[1]


def draw_depths(config: QuantiserConfig, key: PRNGKeyArray, batch: int) -> Int[Array, "B"]:
    """How many levels each item of a training batch is quantised with, by `config.dropout`."""
    levels = config.levels
    full_key, depth_key = jax.random.split(key)
    if config.dropout == "off":
        return jnp.full((batch,), levels)
    if config.dropout == "uniform":
        full_share, targets = 0.2, np.arange(1, levels + 1)
    else:
        # Magenta RealTime, magenta_rt/jax/spectrostream.py, "Low RVQ biased".
        full_share, targets = 0.5, np.r_[1:17, 18:33:2, 36:65:4]
        targets = targets[targets <= levels]
    full = jax.random.uniform(full_key, (batch,)) < full_share
    return jnp.where(full, levels, jax.random.choice(depth_key, jnp.asarray(targets), (batch,)))


def _gather_sums(
    points_ND: Float[Array, "N D"], codes_N: Int[Array, "N"], count: int
) -> tuple[Float[Array, "V D"], Float[Array, "V"]]:
    """Per code, the sum and the number of the vectors that chose it."""
    chosen = jax.nn.one_hot(codes_N, count)
    return jnp.einsum("nv,nd->vd", chosen, points_ND, precision=_EXACT), chosen.sum(0)


def _health(counts_V: Float[Array, "V"], dead_share: float) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Perplexity of the averaged counts, and the share of codes above the threshold at which they count as dead."""
    total = jnp.maximum(counts_V.sum(), 1e-9)
    share = counts_V / total
    perplexity = jnp.exp(-jnp.sum(share * jnp.log(jnp.maximum(share, 1e-12))))
    # Replaced codes stand exactly at the threshold until a vector chooses them.
    return perplexity, jnp.mean(share * len(counts_V) > 1.01 * dead_share)
