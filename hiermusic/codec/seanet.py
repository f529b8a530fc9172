"""The SEANet trunk of EnCodec (arXiv 2210.13438) in all its forms; by default non-causal, in the sizes of SAT."""

import dataclasses
import math
from collections.abc import Sequence

import jax
from flax import nnx
from jaxtyping import Array, Float

from hiermusic.codec.trunk import check_choices, through
from hiermusic.errors import UserError
from hiermusic.nn.conv import Conv, ConvTranspose, Ends
from hiermusic.nn.lstm import LSTM
from hiermusic.parallel.mesh import constrain


@dataclasses.dataclass(frozen=True)
class SeanetConfig:
    """Sizes of the trunk; the defaults are those of SAT's best release, 10.64 M parameters for either half.

    An LSTM remembers without a bound, so the margins are honest for the convolutions only: audio coded in pieces
    agrees closely, but not bit for bit, with the same audio coded whole.

    Args:
      strides: of the encoder; the decoder runs them backwards. Their product, times `fold`, is the hop.
      dilations: of the residual units in each block.
      width: channels at the waveform end; every stride doubles them.
      latent: channels of the frames.
      kernel, last_kernel, residual_kernel: taps of the first and the last convolution of either half, and of the
        residual units; odd.
      compress: by how much the residual units narrow the channels.
      lstm_layers: at the frame rate, inside either half; 0 leaves the LSTM out.
      lstm_reach: frames that the margins add for it.
      dtype: compute type of convolutions and LSTM.
      init: of the convolutions' weights, see `nn.conv.Conv`.
      remat: "none", or "full": recompute blocks in the backward pass instead of keeping their activations.
      fold: samples laid side by side as channels at the waveform's end, see `DacConfig`.
      causal: no frame hears a later sample, but for those that the beginning is mirrored from.
      norm: of the convolutions, see `nn.conv.Conv`. Under "group" every frame hears all others.
      shortcut: a convolution around each residual unit; without, the signal as it is.
      ragged: a waveform may end within a frame: each convolution pads what its last stride lacks, as EnCodec has it.
        Otherwise silence fills the frame.
      padding: what convolutions pad with, see `nn.conv.Conv`: "reflect" or "constant".
    Raises:
      UserError: for another dtype, init, remat, norm or padding, a fold below 1, or ragged ends under a fold.
    """

    strides: tuple[int, ...] = (2, 4, 5, 8)
    dilations: tuple[int, ...] = (1,)
    width: int = 32
    latent: int = 1024
    kernel: int = 7
    last_kernel: int = 7
    residual_kernel: int = 3
    compress: int = 2
    lstm_layers: int = 2
    lstm_reach: int = 75
    dtype: str = "float32"
    init: str = "fan_in"
    remat: str = "none"
    fold: int = 1
    causal: bool = False
    norm: str = "weight"
    shortcut: bool = True
    ragged: bool = False
    padding: str = "reflect"

    def __post_init__(self):
        check_choices(self)
        if self.norm not in ("weight", "group"):
            raise UserError(f"codec norm is '{self.norm}': choose from weight, group")
        if self.padding not in ("reflect", "constant"):
            raise UserError(f"codec padding is '{self.padding}': choose from reflect, constant")
        if self.ragged and self.fold > 1:
            raise UserError(f"a trunk's fold is {self.fold}: only waveforms of whole frames can be folded")

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return self.fold * math.prod(self.strides)

    @property
    def encoder_margin(self) -> int:
        """Frames on either side of a frame that its latent may depend on: the receptive field, rounded up."""
        reach = self._reach(self.last_kernel)
        for stride in self.strides[::-1]:
            reach = reach * stride + (stride if self.causal else -(-stride // 2)) + self._unit_reach
        return -(-(reach + self._reach(self.kernel)) // math.prod(self.strides)) + self._lstm_margin

    @property
    def decoder_margin(self) -> int:
        """Frames on either side of a frame that its samples may depend on: the receptive field, rounded up."""
        reach = self._reach(self.last_kernel)
        for stride in self.strides:
            reach = -(-(reach + self._unit_reach) // stride) + 1
        return reach + self._reach(self.kernel) + self._lstm_margin

    @property
    def spare(self) -> int:
        """Frames behind the end of an item that its convolutions may write to, where the array goes on there."""
        unit = -(-max(self.dilations) * self.residual_kernel // self.strides[-1])
        return max(2, self.kernel, self.last_kernel, unit)

    @property
    def _unit_reach(self) -> int:
        return self._reach(self.residual_kernel) * sum(self.dilations)

    def _reach(self, kernel: int) -> int:
        return kernel - 1 if self.causal else kernel // 2

    @property
    def _lstm_margin(self) -> int:
        return self.lstm_reach if self.lstm_layers else 0

    def encoder(self, channels: int, *, rngs: nnx.Rngs) -> "Encoder":
        """Waveform [B, L, channels], L a multiple of `hop` unless `ragged`, to frames [B, ceil(L / hop), latent]."""
        return Encoder(channels, self, rngs=rngs)

    def decoder(self, channels: int, *, rngs: nnx.Rngs) -> "Decoder":
        """Frames [B, T, latent] to waveform [B, T * hop, channels]."""
        return Decoder(channels, self, rngs=rngs)


class ResidualUnit(nnx.Module):
    """shortcut(x) + conv1(elu(conv3(elu(x)))), the convolution in the branch dilated and its output narrower.

    The channels between the two convolutions are the ones a `tensor` axis splits, as in a transformer's feed-forward.
    """

    def __init__(self, channels: int, dilation: int, config: SeanetConfig, *, rngs: nnx.Rngs):
        hidden = channels // config.compress
        more = {"dilation": (dilation,), "axes": ("channels", "hidden"), "rngs": rngs}
        self.conv_in = _conv(channels, hidden, config.residual_kernel, config, **more)
        self.conv_out = _conv(hidden, channels, 1, config, axes=("hidden", "channels"), rngs=rngs)
        self.shortcut = _conv(channels, channels, 1, config, rngs=rngs) if config.shortcut else None

    def __call__(self, x_BTD: Float[Array, "B T D"], ends_B: Ends = None) -> Float[Array, "B T D"]:
        hidden_BTD = constrain(self.conv_in(jax.nn.elu(x_BTD), ends_B), "batch", "positions", "hidden")
        past_BTD = x_BTD if self.shortcut is None else self.shortcut(x_BTD, ends_B)
        return constrain(past_BTD + self.conv_out(jax.nn.elu(hidden_BTD), ends_B), "batch", "positions", None)


class EncoderBlock(nnx.Module):
    """Residual units, then a strided convolution that doubles the channels."""

    def __init__(self, channels: int, stride: int, config: SeanetConfig, *, rngs: nnx.Rngs):
        self.units = nnx.List([ResidualUnit(channels, d, config, rngs=rngs) for d in config.dilations])
        self.down = _conv(channels, 2 * channels, 2 * stride, config, stride=(stride,), rngs=rngs)

    def __call__(self, x_BTD: Float[Array, "B T D"], ends_B: Ends = None) -> Float[Array, "B T/s 2D"]:
        for unit in self.units:
            x_BTD = unit(x_BTD, ends_B)
        return constrain(self.down(jax.nn.elu(x_BTD), ends_B), "batch", "positions", None)


class DecoderBlock(nnx.Module):
    """A transposed convolution that halves the channels, then residual units."""

    def __init__(self, channels: int, stride: int, config: SeanetConfig, *, rngs: nnx.Rngs):
        options = {"norm": config.norm, "dtype": config.dtype, "init": config.init, "rngs": rngs}
        self.up = ConvTranspose(channels, channels // 2, stride, causal=config.causal, **options)
        self.units = nnx.List([ResidualUnit(channels // 2, d, config, rngs=rngs) for d in config.dilations])

    def __call__(self, x_BTD: Float[Array, "B T D"], ends_B: Ends = None) -> Float[Array, "B T*s D/2"]:
        x_BTD = constrain(self.up(jax.nn.elu(x_BTD), ends_B), "batch", "positions", None)
        ends_B = None if ends_B is None else ends_B * self.up.stride
        for unit in self.units:
            x_BTD = unit(x_BTD, ends_B)
        return x_BTD


class Encoder(nnx.Module):
    """Waveform to latent frames, one frame for every hop of samples."""

    def __init__(self, channels: int, config: SeanetConfig, *, rngs: nnx.Rngs):
        self.config = config
        widths = _widths(config)
        self.conv_in = _conv(config.fold * channels, widths[0], config.kernel, config, rngs=rngs)
        self.blocks = nnx.List(
            [EncoderBlock(w, s, config, rngs=rngs) for w, s in zip(widths, config.strides, strict=False)]
        )
        self.lstm = _lstm(widths[-1], config, rngs)
        self.conv_out = _conv(widths[-1], config.latent, config.last_kernel, config, rngs=rngs)

    def __call__(self, wav_BLC: Float[Array, "B L C"], ends_B: Ends = None) -> Float[Array, "B T D"]:
        """Frames; of ragged waveforms that are filled up, as they would be without what lies behind their ends.

        Args:
          wav_BLC: waveforms.
          ends_B: where each of them ends, `spare` frames or more in front of where all do.
        """
        folded = wav_BLC.reshape(len(wav_BLC), -1, self.config.fold * wav_BLC.shape[-1])
        x = constrain(self.conv_in(folded, ends_B), "batch", "positions", None)
        if ends_B is None:
            x = through(self.blocks, x, self.config.remat == "full")
        else:
            for block, stride in zip(self.blocks, self.config.strides, strict=True):
                x, ends_B = block(x, ends_B), -(-ends_B // stride)
        return self.conv_out(jax.nn.elu(_remember(self.lstm, x)), ends_B)


class Decoder(nnx.Module):
    """Latent frames to waveform, without a final tanh."""

    def __init__(self, channels: int, config: SeanetConfig, *, rngs: nnx.Rngs):
        self.config = config
        widths = _widths(config)[::-1]
        self.conv_in = _conv(config.latent, widths[0], config.kernel, config, rngs=rngs)
        self.lstm = _lstm(widths[0], config, rngs)
        self.blocks = nnx.List(
            [DecoderBlock(w, s, config, rngs=rngs) for w, s in zip(widths, config.strides[::-1], strict=False)]
        )
        self.conv_out = _conv(widths[-1], config.fold * channels, config.last_kernel, config, rngs=rngs)

    def __call__(self, x_BTD: Float[Array, "B T D"], ends_B: Ends = None) -> Float[Array, "B L C"]:
        """Waveforms; where `ends_B` tells at which frame each ends, `spare` or more in front of where all do, as they
        would be without what lies behind."""
        x = _remember(self.lstm, constrain(self.conv_in(x_BTD, ends_B), "batch", "positions", None))
        if ends_B is None:
            x = through(self.blocks, x, self.config.remat == "full")
        else:
            for block in self.blocks:
                x, ends_B = block(x, ends_B), ends_B * block.up.stride
        wav = self.conv_out(jax.nn.elu(x), ends_B)
        return wav.reshape(len(wav), wav.shape[1] * self.config.fold, -1)


def _widths(config: SeanetConfig) -> Sequence[int]:
    return [config.width * 2**i for i in range(len(config.strides) + 1)]


def _conv(inputs: int, outputs: int, kernel: int, config: SeanetConfig, **more) -> Conv:
    """A convolution of the trunk; what it pads keeps the length, or divides it by the stride."""
    extra = (kernel - 1) * math.prod(more.get("dilation", (1,))) + 1 - math.prod(more.get("stride", (1,)))
    after = 0 if config.causal else extra // 2
    more |= {"padding_mode": config.padding, "norm": config.norm, "dtype": config.dtype, "init": config.init}
    return Conv(inputs, outputs, (kernel,), padding=((extra - after, after),), **more)


def _lstm(width: int, config: SeanetConfig, rngs: nnx.Rngs) -> LSTM | None:
    return LSTM(width, config.lstm_layers, dtype=config.dtype, rngs=rngs) if config.lstm_layers else None


def _remember(lstm: LSTM | None, x_BTD: Array) -> Array:
    return x_BTD if lstm is None else constrain(x_BTD + lstm(x_BTD), "batch", "positions", None)
