"""Residual vector quantiser with EMA codebooks, as in EnCodec and Khala: a scan over stacked codebooks, all float32."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from hiermusic.codec.codebook import CodebookConfig, Codebooks, Quantised, health, move, nearest
from hiermusic.errors import UserError
from hiermusic.tokens.facts import TokenFacts


@dataclasses.dataclass(frozen=True)
class QuantiserConfig(CodebookConfig):
    """What a residual quantiser is made of; the defaults are Khala's (release `models/Decoder/rvq.py`).

    Args:
      levels: K, codebooks; what they learn by stands in `CodebookConfig`.
      dropout: levels each item of a training batch is quantised with. "off": all. "uniform": all for a fifth of the
        items, uniform 1..K for the others. "low_biased": all for half of them, SpectroStream's targets for the others.
    Raises:
      UserError: no level.
    """

    levels: int = 64
    dropout: Literal["off", "uniform", "low_biased"] = "off"

    def __post_init__(self):
        if self.levels < 1:
            raise UserError(f"model.levels={self.levels}: give whole numbers of 1 or more")

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

    def make(self, width: int, *, rngs: nnx.Rngs) -> "ResidualQuantiser":
        """The quantiser of latent frames of this width."""
        return ResidualQuantiser(width, self, rngs=rngs)


class ResidualQuantiser(Codebooks):
    """K codebooks of V codes, each quantising what the levels before it left over.

    Args:
      width: D, channels of the latent frames and of every code.
    """

    decoding = ()  # weights that encoding does not read

    def __init__(self, width: int, config: QuantiserConfig, *, rngs: nnx.Rngs):
        super().__init__(config, config.levels, width, rngs=rngs)

    def encode(self, x_BTD: Float[Array, "B T D"], levels: int | None = None) -> Int[Array, "B T K"]:
        """Codes of the first `levels` levels (all when left out)."""

        def level(residual, book):
            codes = nearest(residual, book)
            return residual - book[codes], codes

        _, codes_KBT = lax.scan(level, x_BTD.astype(jnp.float32), self.codebooks[...][:levels])
        return jnp.moveaxis(codes_KBT, 0, -1)

    def decode(self, codes_BTK: Int[Array, "B T K"], levels: int | None = None) -> Float[Array, "B T D"]:
        """Sum of the codes of the first `levels` levels; there may be fewer than codebooks, and -1 adds nothing."""
        codes_KBT = jnp.moveaxis(codes_BTK, -1, 0)[:levels]
        books = self.codebooks[...][: len(codes_KBT)]
        start = jnp.zeros((*codes_BTK.shape[:-1], books.shape[-1]), jnp.float32)

        def add(total_BTD, level):
            book_VD, codes_BT = level
            return total_BTD + jnp.where(codes_BT[..., None] >= 0, book_VD[codes_BT], 0.0), None

        return lax.scan(add, start, (books, codes_KBT))[0]

    def bypass(self, x_BTD: Float[Array, "B T D"]) -> tuple[Float[Array, "B T D"]]:
        """Frames as they would come back from codes without an error."""
        return (x_BTD,)

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
        config = self.config
        x_BTD = x_BTD.astype(jnp.float32)
        depth_B = jnp.full(x_BTD.shape[:1], config.levels)
        keys = jnp.arange(config.levels)  # unused when not training
        if train:
            depth_key, level_key = jax.random.split(key)
            depth_B = draw_depths(config, depth_key, x_BTD.shape[0])
            keys = jax.random.split(level_key, config.levels)

        def level(carry, inputs):
            residual, total = carry
            k, level_key, now = inputs
            points_ND = lax.stop_gradient(residual).reshape(-1, residual.shape[-1])
            if train:
                now = self.started(now, level_key, points_ND)
            codes_N = nearest(points_ND, now.book)
            codes_BT = codes_N.reshape(residual.shape[:-1])
            chosen = now.book[codes_BT]
            residual = residual - chosen
            # Dropout masks what the decoder hears and the loss, as in DAC; every level still sees its true residual.
            heard = (k < depth_B)[:, None, None]
            commitment = jnp.mean(jnp.where(heard, jnp.square(residual), 0.0))
            perplexity, usage = health(config, now.counts)
            if train:
                now = move(config, now, level_key, points_ND, codes_N)
            return (residual, total + jnp.where(heard, chosen, 0.0)), (now, codes_BT, commitment, perplexity, usage)

        start = (x_BTD, jnp.zeros_like(x_BTD))
        (_, total), (moved, codes_KBT, commitment_K, perplexity_K, usage_K) = lax.scan(
            level, start, (jnp.arange(config.levels), keys, self.averages)
        )
        if train:
            self.keep(moved)
        return Quantised(
            # One straight-through estimator over the sum: one per level would count the gradient once a level.
            x_BTD + lax.stop_gradient(total - x_BTD),
            jnp.moveaxis(codes_KBT, 0, -1),
            jnp.mean(commitment_K),
            {"commitment_K": commitment_K, "perplexity_K": perplexity_K, "usage_K": usage_K},
        )


def draw_depths(config: QuantiserConfig, key: PRNGKeyArray, batch: int) -> Int[Array, "B"]:
    """How many levels each item of a training batch is quantised with, by `config.dropout`."""
    levels = config.levels
    full_key, depth_key = jax.random.split(key)
    if config.dropout == "off":
        return jnp.full((batch,), levels)
    if config.dropout == "uniform":
        full_share = 0.2
        targets = np.arange(1, levels + 1)
    else:
        # Magenta RealTime, magenta_rt/jax/spectrostream.py, "Low RVQ biased".
        full_share, targets = 0.5, np.r_[1:17, 18:33:2, 36:65:4]
        targets = targets[targets <= levels]
    full = jax.random.uniform(full_key, (batch,)) < full_share
    return jnp.where(full, levels, jax.random.choice(depth_key, jnp.asarray(targets), (batch,)))
