"""The codec: waveform -> residual codes -> waveform, at any length."""

import dataclasses
from fractions import Fraction
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from hiermusic.codec import dac
from hiermusic.codec.residual import QuantiserConfig, ResidualQuantiser
from hiermusic.errors import UserError
from hiermusic.tokens.hierarchy import Hierarchy


@dataclasses.dataclass(frozen=True)
class CodecConfig:
    """Sizes of a codec; the defaults are Khala's (arXiv 2605.01790 and its release).

    Attributes:
      sample_rate: Hz.
      channels: audio channels.
      strides: of the encoder; the decoder runs them backwards. Their product is the hop.
      dilations: of the residual units in each block.
      encoder_width: channels at the waveform end of the encoder; every stride doubles them.
      decoder_width: channels at the latent end of the decoder; every stride halves them.
      latent: channels of the frames and of the codes.
      quantiser: the residual quantiser.
      dtype: compute type of the convolutions.
      init: of their weights, see `nn.conv.Conv`; "fan_in" for narrow trunks.
      remat: "none", or "full": recompute blocks in the backward pass instead of keeping their activations.
    Raises:
      UserError: for another dtype or remat.
    """

    sample_rate: int = 44_100
    channels: int = 2
    strides: tuple[int, ...] = (4, 8, 8, 8)
    dilations: tuple[int, ...] = (1, 3, 9)
    encoder_width: int = 128
    decoder_width: int = 3072
    latent: int = 128
    quantiser: QuantiserConfig = dataclasses.field(default_factory=QuantiserConfig)
    dtype: str = "float32"
    init: str = "dac"
    remat: str = "none"

    def __post_init__(self):
        for field, words in (("dtype", ("float32", "bfloat16")), ("remat", ("none", "full"))):
            if getattr(self, field) not in words:
                raise UserError(f"codec {field} is '{getattr(self, field)}': choose from {', '.join(words)}")

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return int(np.prod(self.strides))

    @property
    def hierarchy(self) -> Hierarchy:
        """The tokens this codec makes."""
        rate = Fraction(self.sample_rate, self.hop)
        return Hierarchy.uniform(self.quantiser.levels, rate, self.quantiser.codes)

    @property
    def encoder_margin(self) -> int:
        """Frames on either side that a frame's codes may depend on."""
        return dac.encoder_margin(self.strides, self.dilations)

    @property
    def decoder_margin(self) -> int:
        """Frames on either side that a frame's samples may depend on."""
        return dac.decoder_margin(self.strides[::-1], self.dilations)


class CodecOutput(NamedTuple):
    """A reconstruction, its codes, the commitment loss and per-level statistics (see `residual.Quantised`)."""

    wav_BLC: Float[Array, "B L C"]
    codes_BTK: Int[Array, "B T K"]
    commitment: Float[Array, ""]
    stats: dict[str, Float[Array, "K"]]


class Codec(nnx.Module):
    """Encoder, residual quantiser and decoder."""

    def __init__(self, config: CodecConfig, *, rngs: nnx.Rngs):
        self.config = config
        trunk = dict(dilations=config.dilations, latent=config.latent, dtype=config.dtype, init=config.init)
        trunk["remat"] = config.remat == "full"
        self.encoder = dac.Encoder(config.channels, config.encoder_width, config.strides, **trunk, rngs=rngs)
        self.quantiser = ResidualQuantiser(config.latent, config.quantiser, rngs=rngs)
        self.decoder = dac.Decoder(config.channels, config.decoder_width, config.strides[::-1], **trunk, rngs=rngs)

    @property
    def hierarchy(self) -> Hierarchy:
        return self.config.hierarchy

    @property
    def hop(self) -> int:
        return self.config.hop

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def channels(self) -> int:
        return self.config.channels

    def encode(self, wav_BLC: Float[Array, "B L C"], layers: int | None = None) -> Int[Array, "B T K"]:
        """Codes of a waveform of any length, ceil(L / hop) frames of the first `layers` levels (all when left out)."""
        return self.quantiser.encode(self._latents(wav_BLC), layers)

    def decode(
        self, codes_BTK: Int[Array, "B T K"], length: int | None = None, layers: int | None = None
    ) -> Float[Array, "B L C"]:
        """Waveform of `length` samples (T * hop when left out) from the first `layers` levels (all that are there)."""
        return self._waveform(self.quantiser.decode(codes_BTK, layers), length)

    def forward(
        self,
        wav_BLC: Float[Array, "B L C"],
        *,
        key: PRNGKeyArray | None = None,
        train: bool = False,
        quantise: bool = True,
    ) -> CodecOutput:
        """Reconstructs with gradients.

        Args:
          wav_BLC: waveforms of any length.
          key: of dropout and dead-code replacement, in training.
          train: move the codebooks too (see `ResidualQuantiser`).
          quantise: False sends the latent frames on as they are, to warm the trunk up before the codebooks start.
        """
        latents_BTD = self._latents(wav_BLC)
        quantised = self.quantiser(latents_BTD, key=key, train=train and quantise)
        if not quantise:
            quantised = quantised._replace(x_BTD=latents_BTD, commitment=jnp.zeros(()))
        wav = self._waveform(quantised.x_BTD, wav_BLC.shape[1])
        return CodecOutput(wav, quantised.codes_BTK, quantised.commitment, quantised.stats)

    def _latents(self, wav_BLC: Array) -> Float[Array, "B T D"]:
        _, length, channels = wav_BLC.shape
        if length == 0 or channels != self.channels:
            raise UserError(
                f"the codec takes at least one sample of {self.channels}-channel audio, not {length} samples of "
                f"{channels} channels: convert the audio first"
            )
        wav_BLC = jnp.pad(wav_BLC, ((0, 0), (0, -length % self.hop), (0, 0)))
        return self.encoder(wav_BLC).astype(jnp.float32)

    def _waveform(self, x_BTD: Array, length: int | None) -> Float[Array, "B L C"]:
        return self.decoder(x_BTD)[:, :length].astype(jnp.float32)
