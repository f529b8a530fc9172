"""The codec: waveform -> codes -> waveform, at any length, for any trunk and any quantiser."""

import dataclasses
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from hiermusic.codec.dac import DacConfig
from hiermusic.codec.factorised import FactorisedConfig
from hiermusic.codec.mel_branch import DeepMelBranch, MelBranch, reach
from hiermusic.codec.multiscale import MultiscaleConfig
from hiermusic.codec.pyramid import PyramidConfig
from hiermusic.codec.residual import QuantiserConfig
from hiermusic.codec.seanet import SeanetConfig
from hiermusic.codec.segments import SegmentsConfig, scale_of
from hiermusic.codec.spectro import SpectroConfig
from hiermusic.errors import UserError
from hiermusic.tokens.facts import TokenFacts
from hiermusic.tokens.hierarchy import Hierarchy

AnyQuantiser = QuantiserConfig | MultiscaleConfig | FactorisedConfig | PyramidConfig


@dataclasses.dataclass(frozen=True)
class CodecConfig:
    """What a codec is made of; the defaults are Khala's (arXiv 2605.01790 and its release).

    Args:
      sample_rate: Hz.
      channels: audio channels.
      trunk: encoder and decoder, between waveform and latent frames.
      quantiser: between latent frames and packets of codes. A packet is one frame of a residual quantiser, one
        window of a multi-scale one.
      windowed: encoder and decoder see one packet at a time, as SAT is measured in its paper; otherwise they run over
        all packets at once and nothing shows where two windows meet.
      noise_db: while latent frames go past the codebooks in training, white noise lies this far below them, in dB, of
        each item somewhere between the lowest and the highest; () for none. It stands for what a quantiser of few
        levels leaves over, but with an exact gradient, so that what the losses ask for most comes to lie in the widest
        directions, which the first levels take (quantisation as noise: Balle et al., arXiv 1611.01704).
      mel_bands: bands whose loudness is added to what the encoder makes of the samples, see `MelBranch`; 0 for none.
      mel_width: channels that they begin with in a `DeepMelBranch`, which takes its place; 0 for none.
      segments: long sounds are coded in these, at a scale each; None for sounds as a whole, as loud as they are.
    Raises:
      UserError: when `noise_db` is not two rising numbers, `mel_bands` or `mel_width` is negative, a finest level is to
        hear no bands, or a codec that takes no ragged ends is to have segments.
    """

    sample_rate: int = 44_100
    channels: int = 2
    trunk: DacConfig | SeanetConfig | SpectroConfig = dataclasses.field(default_factory=DacConfig)
    quantiser: AnyQuantiser = dataclasses.field(default_factory=QuantiserConfig)
    windowed: bool = False
    noise_db: tuple[float, ...] = ()
    mel_bands: int = 0
    mel_width: int = 0
    segments: SegmentsConfig | None = None

    def __post_init__(self):
        if self.noise_db and (len(self.noise_db) != 2 or self.noise_db[0] > self.noise_db[1]):
            raise UserError(f"noise_db is {self.noise_db}: give the lowest and the highest, in dB, or () for no noise")
        if self.mel_bands < 0:
            raise UserError(f"mel_bands is {self.mel_bands}: give a number of bands, or 0 for none")
        if self.ragged and (self.windowed or self.quantiser.frames > 1 or self.mel_bands):
            raise UserError("a trunk with ragged ends goes without windows, packets of several frames and mel bands")
        if self.segments and not self.ragged:
            raise UserError("a codec of segments ends within a frame, as sounds do: its trunk has to be ragged")
        if self.mel_width < 0:
            raise UserError(f"mel_width is {self.mel_width}: give a number of channels, or 0 for a single convolution")
        if self.mel_finest and not self.mel_bands:
            raise UserError("mel_finest is True: give mel_bands, a number of bands for the finest level to hear")

    @property
    def hop(self) -> int:
        """Samples a latent frame."""
        return self.trunk.hop

    @property
    def mel_finest(self) -> bool:
        """Whether the finest level alone hears the mel bands."""
        return isinstance(self.quantiser, PyramidConfig) and self.quantiser.mel_finest

    @property
    def mel_hop(self) -> int:
        """Samples a frame of the mel bands."""
        return self.hop * (self.quantiser.strides[-1] if self.mel_finest else 1)

    @property
    def packet(self) -> int:
        """Samples a packet of codes."""
        return self.trunk.hop * self.quantiser.frames

    @property
    def ragged(self) -> bool:
        """Whether the encoder takes waveforms that end within a packet as they are."""
        return isinstance(self.trunk, SeanetConfig) and self.trunk.ragged

    @property
    def spare(self) -> int:
        """Frames behind the end of what a ragged codec codes; 0 of others."""
        return self.trunk.spare if self.ragged else 0

    @property
    def facts(self) -> TokenFacts:
        """What a token model has to know of the tokens this codec makes."""
        hop = self.segments.samples_per_frame if self.segments else self.hop
        return self.quantiser.facts(self.sample_rate, hop, self.trunk.latent)

    @property
    def hierarchy(self) -> Hierarchy:
        """The tokens this codec makes."""
        return self.facts.hierarchy

    @property
    def encoder_margin(self) -> int:
        """Packets on either side that a packet's codes may depend on."""
        mel = reach(self.mel_width, self.trunk.latent) * self.mel_hop // self.hop if self.mel_bands else 0
        further = self.quantiser.encoder_reach if isinstance(self.quantiser, PyramidConfig) else 0
        if self.mel_finest:  # no other level passes them on
            return self._packets(max(self.trunk.encoder_margin + further, mel))
        return self._packets(max(self.trunk.encoder_margin, mel) + further)

    @property
    def decoder_margin(self) -> int:
        """Packets on either side that a packet's samples may depend on."""
        further = self.quantiser.decoder_reach if isinstance(self.quantiser, PyramidConfig) else 0
        return self._packets(self.trunk.decoder_margin + further)

    @property
    def factors(self) -> tuple[int, ...]:
        """By how much what each resolution rebuilds is narrower in band than the whole, coarse first; (1,) for one."""
        return self.quantiser.factors if isinstance(self.quantiser, PyramidConfig) else (1,)

    def packets(self, length: int) -> int:
        """Packets of codes of a sound of so many samples."""
        return self.segments.packets(length) if self.segments else -(-length // self.packet)

    def length(self, packets: int) -> int:
        """Samples that so many packets of codes are decoded to."""
        return self.segments.length(packets) if self.segments else packets * self.packet

    def _packets(self, frames: int) -> int:
        return 0 if self.windowed else -(-frames // self.quantiser.frames)


def quantiser_of(facts: TokenFacts) -> QuantiserConfig | MultiscaleConfig:
    """The quantiser that made tokens, as far as what they stand for rests on it: how it learned is not told.

    Raises:
      UserError: a pyramid, which is more than facts tell.
    """
    if facts.quantiser == "pyramid":
        raise UserError("tokens.quantiser is 'pyramid': this model knows tokens of a residual or multiscale quantiser")
    if facts.quantiser == "residual":
        return QuantiserConfig(levels=facts.levels, codes=facts.codes)
    return MultiscaleConfig(
        scales=facts.scales,
        codes=facts.codes,
        latent=facts.latent,
        phi=facts.phi,
        phi_count=facts.phi_count,
        kernel=facts.phi_kernel,
        gamma=facts.gamma,
    )


class CodecOutput(NamedTuple):
    """A reconstruction, its codes, the commitment loss and per-level statistics (see `codebook.Quantised`).

    `coarser` are those of a pyramid's first level, first two, ... alone, where they were asked for.
    """

    wav_BLC: Float[Array, "B L C"]
    codes_BPS: Int[Array, "B P S"]
    commitment: Float[Array, ""] | Float[Array, "J"]
    stats: dict[str, Float[Array, "K"]]
    coarser: tuple[Float[Array, "B L C"], ...] = ()


class Codec(nnx.Module):
    """Encoder, quantiser and decoder.

    Codes come in packets, [B, P, S]: P packets of S slots, the slots of the first level before those of the second. For
    a residual quantiser these are frames and levels; `tokens.packets` tells packets from streams of levels.

    What `encode` and `decode` of a codec of segments code is one segment over its scale; `chunked` cuts and scales.
    """

    def __init__(self, config: CodecConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.encoder = config.trunk.encoder(config.channels, rngs=rngs)
        if config.mel_bands:
            sizes = (config.mel_bands, config.channels, config.trunk.latent, config.mel_hop, config.sample_rate)
            if config.mel_width:
                self.mel_branch = DeepMelBranch(config.mel_width, *sizes, dtype=config.trunk.dtype, rngs=rngs)
            else:
                self.mel_branch = MelBranch(*sizes, init="dac" if config.mel_finest else "fan_in", rngs=rngs)
        self.quantiser = config.quantiser.make(config.trunk.latent, rngs=rngs)
        self.decoder = config.trunk.decoder(config.channels, rngs=rngs)

    @property
    def facts(self) -> TokenFacts:
        return self.config.facts

    @property
    def hierarchy(self) -> Hierarchy:
        return self.config.hierarchy

    @property
    def slots(self) -> tuple[int, ...]:
        return self.config.quantiser.slots

    @property
    def resolutions(self) -> dict[int, int]:
        """Levels of each resolution that the codec rebuilds -> by how much that is narrower in band than the whole."""
        quantiser = self.config.quantiser
        levels = accumulate(quantiser.books) if isinstance(quantiser, PyramidConfig) else (len(self.slots),)
        return dict(zip(levels, self.config.factors, strict=True))

    @property
    def hop(self) -> int:
        return self.config.hop

    @property
    def packet(self) -> int:
        return self.config.packet

    def packets(self, length: int) -> int:
        """Packets of codes of a sound of so many samples."""
        return self.config.packets(length)

    def length(self, packets: int) -> int:
        """Samples that so many packets of codes are decoded to."""
        return self.config.length(packets)

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def channels(self) -> int:
        return self.config.channels

    def decodes(self, path: tuple[str | int, ...], _: object) -> bool:
        """Whether the weight at a path is read by decoding alone, so that no code hangs on it; a filter of nnx's."""
        return path[0] == "decoder" or (path[0] == "quantiser" and path[1] in self.quantiser.decoding)

    def encode(
        self, wav_BLC: Float[Array, "B L C"], levels: int | None = None, ends_B: Int[Array, "B"] | None = None
    ) -> Int[Array, "B P S"]:
        """Codes of a waveform of any length, ceil(L / packet) packets of the first `levels` levels (default: all).

        `ends_B` tells where each item of a ragged codec ends, if not where the array does; see `seanet.Encoder`.
        """
        latents_BTD, *bands = self._heard(wav_BLC, ends_B, levels)
        return self.quantiser.encode(latents_BTD, levels, *bands)

    def decode(
        self,
        codes_BPS: Int[Array, "B P S"],
        length: int | None = None,
        levels: int | None = None,
        ends_B: Int[Array, "B"] | None = None,
    ) -> Float[Array, "B L C"]:
        """Waveform of `length` samples (default: P * packet) from the first `levels` levels (all that are there).

        `ends_B` tells at which frame each item of a ragged codec ends; see `seanet.Decoder`.
        """
        z_q_BTD = self.quantiser.decode(codes_BPS, levels)
        if ends_B is not None:
            return self.decoder(z_q_BTD, ends_B).astype(jnp.float32)[:, :length]
        return self._waveform(z_q_BTD, length)

    def forward(
        self,
        wav_BLC: Float[Array, "B L C"],
        *,
        key: PRNGKeyArray | None = None,
        train: bool = False,
        quantise: bool = True,
        coarser: bool = False,
    ) -> CodecOutput:
        """Reconstructs with gradients.

        Args:
          wav_BLC: waveforms of any length.
          key: of dropout, dead-code replacement and noise, in training.
          train: move the codebooks too (see the quantiser).
          quantise: False sends the latent frames past the codebooks, to warm the trunk up before they start.
          coarser: also reconstruct from the first levels of a pyramid alone.
        """
        scale_B11 = scale_of(wav_BLC)[:, None, None] if self.config.segments else 1
        heard = self._heard(wav_BLC / scale_B11)
        quantised = self.quantiser(*heard, key=key, train=train and quantise)
        if not quantise:
            *less, z_q_BTD = self.quantiser.bypass(*heard)
            if train and self.config.noise_db:
                z_q_BTD = with_noise(key, z_q_BTD, self.config.noise_db)
            commitment = jnp.zeros_like(quantised.commitment)
            quantised = quantised._replace(z_q_BTD=z_q_BTD, coarser=tuple(less), commitment=commitment)
        *less, wav = self._waveforms([*quantised.coarser * coarser, quantised.z_q_BTD], wav_BLC.shape[1])
        return CodecOutput(wav * scale_B11, quantised.codes_BPS, quantised.commitment, quantised.stats, tuple(less))

    def _heard(
        self, wav_BLC: Array, ends_B: Array | None = None, levels: int | None = None
    ) -> tuple[Float[Array, "B T D"], ...]:
        """What the quantiser is given: latent frames, and what the finest level hears besides, where it is reached."""
        latents_BTD = self._latents(wav_BLC, ends_B)
        if self.config.mel_finest and self.config.quantiser.reaches_finest(levels):
            return latents_BTD, self._bands(self._padded(wav_BLC))
        return (latents_BTD,)

    def _latents(self, wav_BLC: Array, ends_B: Array | None = None) -> Float[Array, "B T D"]:
        _, length, channels = wav_BLC.shape
        if length == 0 or channels != self.channels:
            raise UserError(
                f"the codec takes at least one sample of {self.channels}-channel audio, not {length} samples of "
                f"{channels} channels: convert the audio first"
            )
        if self.config.ragged:
            return self.encoder(wav_BLC, ends_B).astype(jnp.float32)
        wav_BLC = self._padded(wav_BLC)
        z_e_BTD = self._by_window(self.encoder, wav_BLC, self.packet)
        if self.config.mel_bands and not self.config.mel_finest:
            z_e_BTD += self._bands(wav_BLC)
        return z_e_BTD

    def _bands(self, wav_BLC: Array) -> Float[Array, "B T D"]:
        return self._by_window(self.mel_branch, wav_BLC, self.packet)

    def _padded(self, wav_BLC: Array) -> Float[Array, "B L C"]:
        """With silence behind it, up to a whole packet."""
        return jnp.pad(wav_BLC, ((0, 0), (0, -wav_BLC.shape[1] % self.packet), (0, 0)))

    def _waveform(self, z_q_BTD: Array, length: int | None) -> Float[Array, "B L C"]:
        return self._by_window(self.decoder, z_q_BTD, self.packet // self.hop)[:, :length]

    def _waveforms(self, frames: Sequence[Float[Array, "B T D"]], length: int) -> list[Float[Array, "B L C"]]:
        """The waveforms of several latents of the same items, in one pass of the decoder."""
        if len(frames) == 1:
            return [self._waveform(frames[0], length)]
        z_BJTD = jnp.stack(frames, axis=1)  # the items outside, where a mesh splits them
        wav = self._waveform(z_BJTD.reshape(-1, *z_BJTD.shape[2:]), length)
        return list(jnp.moveaxis(wav.reshape(*z_BJTD.shape[:2], *wav.shape[1:]), 1, 0))

    def _by_window(self, trunk: nnx.Module, x_BTD: Array, size: int) -> Float[Array, "B T D"]:
        """Half of the trunk over all steps at once, or over windows of `size` steps one by one."""
        pieces = x_BTD.reshape(-1, size, x_BTD.shape[-1]) if self.config.windowed else x_BTD
        y = trunk(pieces).astype(jnp.float32)
        return y.reshape(x_BTD.shape[0], -1, y.shape[-1])


def with_noise(key: PRNGKeyArray, x_BTD: Float[Array, "B T D"], noise_db: tuple[float, float]) -> Float[Array, "B T D"]:
    """Latent frames under white noise, of each item so many dB below the variance of the whole batch's channels.

    The level moves with the latents, gradients too: no trunk can get out of the noise by speaking louder.

    Args:
      noise_db: lowest and highest; each item draws its own, uniformly.
    """
    level_key, noise_key = jax.random.split(key)
    low, high = noise_db
    db_B11 = jax.random.uniform(level_key, (len(x_BTD), 1, 1), minval=low, maxval=high)
    spread = jnp.sqrt(jnp.mean(jnp.var(x_BTD, axis=(0, 1))))
    return x_BTD + spread * 10 ** (-db_B11 / 20) * jax.random.normal(noise_key, x_BTD.shape)
