"""Residual vector quantiser with factorised codebooks learned by gradients, as in DAC (arXiv 2306.06546)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.nn import initializers
from jaxtyping import Array, Float, Int, PRNGKeyArray

from hiermusic.codec.codebook import (
    EXACT,
    Averages,
    Codebook,
    CodebookConfig,
    Quantised,
    first_codes,
    health,
    revived,
)
from hiermusic.errors import UserError
from hiermusic.nn import param
from hiermusic.nn.conv import weight_norm
from hiermusic.tokens.facts import TokenFacts

_SELDOM = 0.02  # of the count that uniform use would give a code: below it counts as unused where none is replaced


@dataclasses.dataclass(frozen=True)
class FactorisedConfig(CodebookConfig):
    """What a factorised quantiser is made of; the defaults are those of DAC's release.

    A share of dead codes and iterations of k-means are nought there: codes stay as they were drawn until gradients move
    them.

    Args:
      kmeans_iterations, dead_share: see `CodebookConfig`.
      levels: K, codebooks.
      width: E, dimensions that codes are looked up in; a weight-normed linear map leads there, another back.
      commitment: weight of what draws the encoder to the codes, beside what draws the codes to the encoder.
      dropout: share of a training batch's items that hear the first 1..K levels alone, uniformly drawn.
    Raises:
      UserError: no level, or a dropout that is no share.
    """

    kmeans_iterations: int = 0
    dead_share: float = 0.0
    levels: int = 9
    width: int = 8
    commitment: float = 0.25
    dropout: float = 0.0

    def __post_init__(self):
        if self.levels < 1:
            raise UserError(f"model.books={self.levels}: give whole numbers of 1 or more")
        if not 0 <= self.dropout <= 1:
            raise UserError(f"model.quantiser_dropout={self.dropout}: give a share of the items, from 0 to 1")

    @property
    def frames(self) -> int:
        """Latent frames in a packet of codes."""
        return 1

    @property
    def slots(self) -> tuple[int, ...]:
        """Tokens of each level in a packet."""
        return (1,) * self.levels

    def facts(self, sample_rate: int, hop: int, width: int) -> TokenFacts:
        """The facts of the tokens that a codec with this quantiser makes, of latent frames of this width."""
        return TokenFacts(sample_rate, hop, "residual", self.levels, self.codes, width)

    def make(self, width: int, *, rngs: nnx.Rngs) -> "FactorisedQuantiser":
        """The quantiser of latent frames of this width."""
        return FactorisedQuantiser(width, self, rngs=rngs)


class FactorisedQuantiser(nnx.Module):
    """K codebooks of V codes, each quantising what the levels before it left over, in E dimensions of its own.

    Codes are chosen by direction, whatever their length (cosine similarity), and taken at their length.

    Args:
      width: D, channels of the latent frames.
    """

    decoding = ()  # weights that encoding does not read

    def __init__(self, width: int, config: FactorisedConfig, *, rngs: nnx.Rngs):
        K, V, E = config.levels, config.codes, config.width
        lecun = initializers.lecun_normal(in_axis=1, out_axis=2, batch_axis=0)
        self.config = config
        self.codebooks = param.weight(rngs, (K, V, E), ("levels", "codes", None), initializers.normal(1.0))
        self.in_proj = param.weight(rngs, (K, width, E), ("levels", "latent", None), lecun)
        self.in_gain = param.ones(rngs, (K, E), ("levels", None))
        self.in_bias = param.zeros(rngs, (K, E), ("levels", None))
        self.out_proj = param.weight(rngs, (K, E, width), ("levels", None, "latent"), lecun)
        self.out_gain = param.ones(rngs, (K, width), ("levels", "latent"))
        self.out_bias = param.zeros(rngs, (K, width), ("levels", "latent"))
        for gain, weight in ((self.in_gain, self.in_proj), (self.out_gain, self.out_proj)):
            param.put(gain, jnp.linalg.norm(weight[...], axis=1))
        self.ema_counts = Codebook(jnp.zeros((K, V)), axes=("levels", "codes"))
        self.initialised = Codebook(jnp.zeros((), bool), axes=())

    def encode(self, x_BTD: Float[Array, "B T D"], levels: int | None = None) -> Int[Array, "B T K"]:
        """Codes of the first `levels` levels (all when left out)."""

        def choose(residual, level):
            codes = alike(level.inward(residual), level.book)
            return residual - level.outward(level.book[codes]), codes

        _, codes_KBT = lax.scan(choose, x_BTD.astype(jnp.float32), jax.tree.map(lambda x: x[:levels], self._levels))
        return jnp.moveaxis(codes_KBT, 0, -1)

    def decode(self, codes_BTK: Int[Array, "B T K"], levels: int | None = None) -> Float[Array, "B T D"]:
        """Sum of the first `levels` levels; there may be fewer than codebooks, and -1 adds nothing."""
        codes_KBT = jnp.moveaxis(codes_BTK, -1, 0)[:levels]
        start = jnp.zeros((*codes_BTK.shape[:-1], self.in_proj.shape[1]), jnp.float32)

        def add(total_BTD, inputs):
            level, codes_BT = inputs
            return total_BTD + jnp.where(codes_BT[..., None] >= 0, level.outward(level.book[codes_BT]), 0.0), None

        return lax.scan(add, start, (jax.tree.map(lambda x: x[: len(codes_KBT)], self._levels), codes_KBT))[0]

    def bypass(self, x_BTD: Float[Array, "B T D"]) -> tuple[Float[Array, "B T D"]]:
        """Frames as they would come back from codes without an error: through both maps of every level."""

        def along(residual, level):
            step = level.outward(level.inward(residual))
            return residual - step, step

        return (jnp.sum(lax.scan(along, x_BTD.astype(jnp.float32), self._levels)[1], axis=0),)

    def __call__(
        self, x_BTD: Float[Array, "B T D"], *, key: PRNGKeyArray | None = None, train: bool = False
    ) -> Quantised:
        """Quantises, and in training counts the codes that are chosen; what moves them are gradients.

        Args:
          x_BTD: latent frames.
          key: needed in training: dropout, k-means seeds, replacement of dead codes. The same on every device.
          train: count, apply dropout, and begin and replace codes as the configuration says.
        """
        config = self.config
        x_BTD = x_BTD.astype(jnp.float32)
        depth_B = jnp.full(x_BTD.shape[:1], config.levels)
        keys = jnp.arange(config.levels)  # unused when not training
        if train:
            share_key, depth_key, level_key = jax.random.split(key, 3)
            some_B = jax.random.uniform(share_key, depth_B.shape) < config.dropout
            depth_B = jnp.where(some_B, jax.random.randint(depth_key, depth_B.shape, 1, config.levels + 1), depth_B)
            keys = jax.random.split(level_key, config.levels)

        def quantise(carry, inputs):
            residual, total = carry
            k, level_key, level, counts_V = inputs
            z_e_BTE = level.inward(residual)
            points_NE = lax.stop_gradient(z_e_BTE).reshape(-1, config.width)
            if train:
                level, counts_V = self._started(level, counts_V, level_key, points_NE)
            codes_BT = alike(lax.stop_gradient(z_e_BTE), level.book)
            chosen_BTE = level.book[codes_BT]
            # One estimator a level, not one over the sum: what leads back from the codes learns from it.
            step = level.outward(z_e_BTE + lax.stop_gradient(chosen_BTE - z_e_BTE))
            heard_B = k < depth_B
            pulled_B = jnp.mean(jnp.square(chosen_BTE - lax.stop_gradient(z_e_BTE)), axis=(1, 2))
            committed_B = jnp.mean(jnp.square(z_e_BTE - lax.stop_gradient(chosen_BTE)), axis=(1, 2))
            loss = jnp.mean(jnp.where(heard_B, pulled_B + config.commitment * committed_B, 0.0))
            perplexity, usage = health(self._judged, counts_V)
            book_VE = lax.stop_gradient(level.book)
            if train:
                book_VE, counts_V = self._counted(book_VE, counts_V, level_key, points_NE, codes_BT.reshape(-1))
            total += jnp.where(heard_B[:, None, None], step, 0.0)
            told = (codes_BT, loss, jnp.mean(committed_B), perplexity, usage)
            return (residual - step, total), (book_VE, counts_V, told)

        start = (x_BTD, jnp.zeros_like(x_BTD))
        each = (jnp.arange(config.levels), keys, self._levels, self.ema_counts[...])
        (_, total), (books, counts, (codes_KBT, loss_K, error_K, perplexity_K, usage_K)) = lax.scan(
            quantise, start, each
        )
        if train:
            param.put(self.ema_counts, counts)
            param.put(self.initialised, jnp.ones((), bool))
            if config.kmeans_iterations or config.dead_share:
                param.put(self.codebooks, books)
        return Quantised(
            total,
            jnp.moveaxis(codes_KBT, 0, -1),
            jnp.sum(loss_K),
            {"commitment_K": error_K, "perplexity_K": perplexity_K, "usage_K": usage_K},
        )

    @property
    def _levels(self) -> "_Level":
        """What each level quantises with, stacked."""
        inward = _Map(self.in_proj[...], self.in_gain[...], self.in_bias[...])
        outward = _Map(self.out_proj[...], self.out_gain[...], self.out_bias[...])
        return _Level(self.codebooks[...], inward, outward)

    @property
    def _judged(self) -> CodebookConfig:
        """By which codes count as used."""
        return dataclasses.replace(self.config, dead_share=self.config.dead_share or _SELDOM)

    def _started(self, level: "_Level", counts_V: Array, key: PRNGKeyArray, points_NE: Array) -> tuple["_Level", Array]:
        """On the first training batch, codes where its vectors lie, if k-means is to find them."""
        if not self.config.kmeans_iterations:
            return level, counts_V

        def begin(key, points_NE):
            begun = first_codes(self.config, key, points_NE)
            return begun.book, begun.counts

        now = (self.initialised[...], lambda *_: (level.book, counts_V), begin, key, points_NE)
        book_VE, counts_V = lax.cond(*now)
        return level._replace(book=book_VE), counts_V

    def _counted(
        self, book_VE: Array, counts_V: Array, key: PRNGKeyArray, points_NE: Array, codes_N: Array
    ) -> tuple[Array, Array]:
        """The counts with those of a batch, and the codes with new ones where some have fallen out of use."""
        config = self.config
        hits_V = jax.nn.one_hot(codes_N, config.codes).sum(0)
        counts_V = config.decay * counts_V + (1 - config.decay) * hits_V
        if not config.dead_share:
            return book_VE, counts_V
        now = Averages(book_VE, jnp.zeros_like(book_VE), counts_V)
        moved = revived(config, now, key, points_NE, codes_N)
        return moved.book, moved.counts


class _Map(NamedTuple):
    """A weight-normed linear map of one level, or those of all of them stacked."""

    v: Float[Array, "*K I O"]
    gain: Float[Array, "*K O"]
    bias: Float[Array, "*K O"]

    def __call__(self, x_XI: Float[Array, "*X I"]) -> Float[Array, "*X O"]:
        return jnp.matmul(x_XI, weight_norm(self.v, self.gain, 1), precision=EXACT) + self.bias


class _Level(NamedTuple):
    """What one level quantises with, or all of them stacked."""

    book: Float[Array, "*K V E"]
    inward: _Map
    outward: _Map


def alike(z_XE: Float[Array, "*X E"], book_VE: Float[Array, "V E"]) -> Int[Array, "*X"]:
    """Index of the code whose direction is nearest to each vector's; the lowest index when two tie."""
    # the length of a vector changes nothing in the order of its codes
    length_V1 = jnp.sqrt(jnp.sum(jnp.square(book_VE), axis=-1, keepdims=True))
    scores = jnp.einsum("...e,ve->...v", z_XE, book_VE / jnp.maximum(length_V1, 1e-12), precision=EXACT)
    return jnp.argmax(scores, axis=-1).astype(jnp.int32)
