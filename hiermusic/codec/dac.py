"""The encoder and decoder trunks of DAC (arXiv 2306.06546) in the sizes of Khala (arXiv 2605.01790, section 3.2)."""

import dataclasses
import math
from collections.abc import Sequence
from itertools import pairwise

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hiermusic.codec.trunk import check_choices, through
from hiermusic.errors import UserError
from hiermusic.nn.conv import Conv, ConvTranspose, Snake
from hiermusic.parallel.mesh import constrain


@dataclasses.dataclass(frozen=True)
class DacConfig:
    """Sizes of the trunk; the defaults are Khala's (arXiv 2605.01790 and its release).

    Args:
      strides: of the encoder; the decoder runs them backwards. Their product, times `fold`, is the hop.
      dilations: of the residual units in each block.
      encoder_width: channels at the waveform end of the encoder; every stride doubles them.
      decoder_width: channels at the latent end of the decoder; every stride halves them.
      latent: channels of the frames.
      dtype: compute type of the convolutions.
      init: of their weights, see `nn.conv.Conv`; "fan_in" for narrow trunks.
      remat: "none", or "full": recompute blocks in the backward pass instead of keeping their activations.
      fold: samples laid side by side as channels at the waveform's end. At full rate a convolution costs the most and
        has the fewest channels to work with; small trunks do better without.
      bare: frames are what the innermost block makes, for a quantiser with convolutions of its own: no convolution lies
        between the blocks and `latent`.
      tanh: at the end of the decoder, as in DAC.
      short: odd strides lose a sample each on the way back, as in DAC; silence takes its place at the end.
    Raises:
      UserError: for another dtype, init or remat, a fold below 1, or bare blocks of another width than `latent`.
    """

    strides: tuple[int, ...] = (4, 8, 8, 8)
    dilations: tuple[int, ...] = (1, 3, 9)
    encoder_width: int = 128
    decoder_width: int = 3072
    latent: int = 128
    dtype: str = "float32"
    init: str = "dac"
    remat: str = "none"
    fold: int = 1
    bare: bool = False
    tanh: bool = False
    short: bool = False

    def __post_init__(self):
        check_choices(self)
        ends = (self.encoder_width * 2 ** len(self.strides), self.decoder_width)
        if self.bare and ends != (self.latent, self.latent):
            raise UserError(
                f"model.latent={self.latent}: a trunk without convolutions of its own ends with {ends[0]} channels and "
                f"begins again with {ends[1]}: make all three equal"
            )

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return self.fold * math.prod(self.strides)

    @property
    def encoder_margin(self) -> int:
        """Frames on either side of a frame that its latent may depend on: the receptive field, rounded up."""
        reach, step = 3, 1
        for stride in self.strides:
            reach += step * (3 * sum(self.dilations) + 2 * stride)
            step *= stride
        return -(-(reach + step) // step)

    @property
    def decoder_margin(self) -> int:
        """Frames on either side of a frame that its samples may depend on: the receptive field, rounded up."""
        reach, step = 3.5, 1.0  # half a frame, from its middle to its edge, and the first convolution
        for stride in self.strides[::-1]:
            reach += step
            step /= stride
            reach += step * 3 * sum(self.dilations)
        return math.ceil(reach + 3 * step)

    def encoder(self, channels: int, *, rngs: nnx.Rngs) -> "Encoder":
        """Waveform [B, L, channels] to frames [B, L / hop, latent]; L is a multiple of the hop."""
        return Encoder(channels, self.encoder_width, self.strides, **self._options, rngs=rngs)

    def decoder(self, channels: int, *, rngs: nnx.Rngs) -> "Decoder":
        """Frames [B, T, latent] to waveform [B, T * hop, channels]."""
        more = {"tanh": self.tanh, "short": self.short}
        return Decoder(channels, self.decoder_width, self.strides[::-1], **self._options, **more, rngs=rngs)

    @property
    def _options(self) -> dict:
        fields = ("dilations", "latent", "dtype", "init", "fold", "bare")
        return {field: getattr(self, field) for field in fields} | {"remat": self.remat == "full"}


class ResidualUnit(nnx.Module):
    """x + conv1(snake(conv7(snake(x)))), the wide convolution dilated.

    The channels between the two convolutions are the ones a `tensor` axis splits, as in a transformer's feed-forward.
    """

    def __init__(self, channels: int, dilation: int, *, dtype: str, init: str, rngs: nnx.Rngs):
        wide = dict(dilation=(dilation,), dtype=dtype, init=init, axes=("channels", "hidden"))
        self.snake_in = Snake(channels, rngs=rngs)
        self.conv_in = Conv(channels, channels, (7,), **wide, rngs=rngs)
        self.snake_out = Snake(channels, axis="hidden", rngs=rngs)
        # The branch starts small whatever `init` is, or sixteen of them would blow the signal up.
        self.conv_out = Conv(channels, channels, (1,), dtype=dtype, axes=("hidden", "channels"), rngs=rngs)

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        hidden_BTD = constrain(self.conv_in(self.snake_in(x_BTD)), "batch", "positions", "hidden")
        return constrain(x_BTD + self.conv_out(self.snake_out(hidden_BTD)), "batch", "positions", None)


class EncoderBlock(nnx.Module):
    """Residual units, then a strided convolution to `outputs` channels, in a trunk twice as many."""

    def __init__(
        self,
        channels: int,
        outputs: int,
        stride: int,
        dilations: Sequence[int],
        *,
        dtype: str,
        init: str,
        rngs: nnx.Rngs,
    ):
        self.units = nnx.List([ResidualUnit(channels, d, dtype=dtype, init=init, rngs=rngs) for d in dilations])
        self.snake = Snake(channels, rngs=rngs)
        self.down = Conv(
            channels,
            outputs,
            (2 * stride,),
            stride=(stride,),
            padding=(-(-stride // 2),),
            dtype=dtype,
            init=init,
            rngs=rngs,
        )

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T/s O"]:
        for unit in self.units:
            x_BTD = unit(x_BTD)
        return constrain(self.down(self.snake(x_BTD)), "batch", "positions", None)


class DecoderBlock(nnx.Module):
    """A transposed convolution to `outputs` channels, in a trunk half as many, then residual units."""

    def __init__(
        self,
        channels: int,
        outputs: int,
        stride: int,
        dilations: Sequence[int],
        *,
        dtype: str,
        init: str,
        short: bool = False,
        rngs: nnx.Rngs,
    ):
        self.snake = Snake(channels, rngs=rngs)
        self.up = ConvTranspose(channels, outputs, stride, short=short, dtype=dtype, init=init, rngs=rngs)
        self.units = nnx.List([ResidualUnit(outputs, d, dtype=dtype, init=init, rngs=rngs) for d in dilations])

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T*s O"]:
        x_BTD = constrain(self.up(self.snake(x_BTD)), "batch", "positions", None)
        for unit in self.units:
            x_BTD = unit(x_BTD)
        return x_BTD


class Encoder(nnx.Module):
    """Waveform to latent frames, one frame for every prod(strides) samples.

    Args:
      channels: audio channels.
      width: channels after the first convolution; every stride doubles them.
      strides: downsampling factors, first to last.
      dilations: of the residual units of each block.
      latent: channels of the frames.
      dtype: compute type of the convolutions; init: of their weights, see `nn.conv.Conv`.
      remat: recompute each block in the backward pass instead of keeping its activations.
      fold: samples laid side by side as channels.
      bare: end with the last block, without a convolution to `latent`, which is its width then.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        strides: Sequence[int],
        dilations: Sequence[int],
        latent: int,
        *,
        dtype: str = "float32",
        init: str = "dac",
        remat: bool = False,
        fold: int = 1,
        bare: bool = False,
        rngs: nnx.Rngs,
    ):
        self.remat, self.fold = remat, fold
        widths = [width * 2**i for i in range(len(strides) + 1)]
        self.conv_in = Conv(fold * channels, width, (7,), dtype=dtype, init=init, rngs=rngs)
        self.blocks = nnx.List(
            [
                EncoderBlock(*w, s, dilations, dtype=dtype, init=init, rngs=rngs)
                for w, s in zip(pairwise(widths), strides, strict=True)
            ]
        )
        self.bare = bare
        if not bare:
            self.snake = Snake(widths[-1], rngs=rngs)
            self.conv_out = Conv(widths[-1], latent, (3,), dtype=dtype, init=init, rngs=rngs)

    def __call__(self, wav_BLC: Float[Array, "B L C"]) -> Float[Array, "B T D"]:
        folded = wav_BLC.reshape(len(wav_BLC), -1, self.fold * wav_BLC.shape[-1])
        x = constrain(self.conv_in(folded), "batch", "positions", None)
        x = through(self.blocks, x, self.remat)
        return x if self.bare else self.conv_out(self.snake(x))


class Decoder(nnx.Module):
    """Latent frames to waveform; Khala's release has no final tanh.

    Args:
      channels: audio channels.
      width: channels after the first convolution; every stride halves them, so it divides by 2^len(strides).
      strides: upsampling factors, first to last (the encoder's, reversed).
      dilations, latent, dtype, init, remat, fold, bare: as for `Encoder`.
      tanh: of the waveform.
      short: as in `DacConfig`.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        strides: Sequence[int],
        dilations: Sequence[int],
        latent: int,
        *,
        dtype: str = "float32",
        init: str = "dac",
        remat: bool = False,
        fold: int = 1,
        bare: bool = False,
        tanh: bool = False,
        short: bool = False,
        rngs: nnx.Rngs,
    ):
        self.remat, self.fold = remat, fold
        self.bare, self.tanh = bare, tanh
        self.hop = fold * math.prod(strides)
        widths = [width // 2**i for i in range(len(strides) + 1)]
        if not bare:
            self.conv_in = Conv(latent, width, (7,), dtype=dtype, init=init, rngs=rngs)
        self.blocks = nnx.List(
            [
                DecoderBlock(*w, s, dilations, dtype=dtype, init=init, short=short, rngs=rngs)
                for w, s in zip(pairwise(widths), strides, strict=True)
            ]
        )
        self.snake = Snake(widths[-1], rngs=rngs)
        self.conv_out = Conv(widths[-1], fold * channels, (7,), dtype=dtype, rngs=rngs)

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B L C"]:
        x = constrain(x_BTD if self.bare else self.conv_in(x_BTD), "batch", "positions", None)
        x = through(self.blocks, x, self.remat)
        wav = self.conv_out(self.snake(x))
        wav = jnp.tanh(wav.astype(jnp.float32)) if self.tanh else wav
        wav = wav.reshape(len(wav), wav.shape[1] * self.fold, -1)
        lost = x_BTD.shape[1] * self.hop - wav.shape[1]
        return jnp.pad(wav, ((0, 0), (0, lost), (0, 0))) if lost else wav
