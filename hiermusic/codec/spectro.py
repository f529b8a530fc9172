"""SpectroStream's trunk: convolutions over time and frequency of a spectrum, its channels apart in between.

As Magenta's release has it (github.com/magenta/magenta-realtime). Letters beside those of the house: X frames of the
spectrum, F bins.
"""

import dataclasses
import math
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from hiermusic.codec.trunk import check_choices, through
from hiermusic.errors import UserError
from hiermusic.nn.conv import Conv

_WIDTHS = (1, 2, 2, 4, 4, 4, 8, 8)  # channels of the encoder, from its first convolution on, over `width`
_UP_WIDTHS = (16, 32, 8, 8, 8, 4, 4, 2)  # of the decoder; the second is of both audio channels together
_BLOCKS = len(_WIDTHS) - 1
_END = 7  # taps of the first and the last convolution


@dataclasses.dataclass(frozen=True)
class SpectroConfig:
    """Sizes of the trunk; the defaults are the release's, 9.25 M and 35.68 M parameters.

    Args:
      spectrum: bins, and samples from frame to frame of a spectrum of windows of two such hops; its highest bin is left
        out.
      strides: of the encoder's seven blocks along frequency.
      time_strides: along time; their product times `spectrum` is the hop.
      width: channels behind the first convolution; the other widths are multiples of it.
      latent: channels of the frames.
      dtype: compute type of the convolutions.
      init: of their weights, see `nn.conv.Conv`.
      remat: "none", or "full": recompute blocks in the backward pass instead of keeping their activations.
    Raises:
      UserError: for another dtype, init or remat, other than seven strides, or bins that they do not divide.
    """

    spectrum: int = 480
    strides: tuple[int, ...] = (2, 2, 3, 2, 2, 2, 1)
    time_strides: tuple[int, ...] = (1, 1, 1, 1, 1, 2, 2)
    width: int = 32
    latent: int = 256
    dtype: str = "float32"
    init: str = "fan_in"
    remat: str = "none"

    fold = 1

    def __post_init__(self):
        check_choices(self)
        if (len(self.strides), len(self.time_strides)) != (_BLOCKS, _BLOCKS):
            raise UserError(f"model.strides and model.time_strides of this trunk are {_BLOCKS} each")
        if self.spectrum % math.prod(self.strides):
            raise UserError(f"model.spectrum={self.spectrum} is no multiple of the product of model.strides")

    @property
    def hop(self) -> int:
        """Samples a frame."""
        return self.spectrum * self._frames

    @property
    def bands(self) -> int:
        """Bins that are left behind the encoder's blocks."""
        return self.spectrum // math.prod(self.strides)

    @property
    def encoder_margin(self) -> int:
        """Frames before a frame that its latent may depend on; behind it a part of one."""
        reach = 2 * _lead(1)
        for stride in self.time_strides[::-1]:
            reach = reach * stride + _lead(stride) + _lead(1)
        return max(-(-(reach + _END - 1) // self._frames), 1)

    @property
    def decoder_margin(self) -> int:
        """Frames before a frame that its samples may depend on; behind it one."""
        reach = _END  # with the window that reaches over from the spectrum before
        for stride in self.time_strides:
            reach = -(-(reach + _lead(1) + _taps(stride) - 1) // stride)
        return max(reach + 2 * _lead(1) - 1, 1)

    @property
    def _frames(self) -> int:
        """Frames of the spectrum in a latent frame."""
        return math.prod(self.time_strides)

    def encoder(self, channels: int, *, rngs: nnx.Rngs) -> "Encoder":
        """Waveform [B, L, channels], L a multiple of `hop`, to frames [B, L / hop, latent]."""
        return Encoder(channels, self, rngs=rngs)

    def decoder(self, channels: int, *, rngs: nnx.Rngs) -> "Decoder":
        """Frames [B, T, latent] to waveform [B, T * hop, channels]."""
        return Decoder(channels, self, rngs=rngs)


def _taps(stride: int) -> int:
    """Of a convolution that changes the rate."""
    return max(3, 2 * stride)


def _lead(stride: int) -> int:
    """Positions in front of its own that such a convolution hears: in time it hears nothing behind them."""
    return _taps(stride) - stride


def _conv(inputs: int, outputs: int, taps: tuple[int, int], stride: tuple[int, int], config: SpectroConfig, rngs):
    """Of each stride the first positions lack what lies before the sound, along frequency either side half of that."""
    time, freq = (max(k - s, 0) for k, s in zip(taps, stride, strict=True))
    padding = ((time, taps[0] - 1 - time), (freq // 2, freq - freq // 2))
    how = {"norm": "none", "dtype": config.dtype, "init": config.init, "rngs": rngs}
    return Conv(inputs, outputs, taps, stride=stride, padding=padding, **how)


def _up_conv(inputs: int, outputs: int, stride: tuple[int, int], config: SpectroConfig, rngs):
    """A transposed convolution."""
    taps = tuple(map(_taps, stride))
    spare = taps[1] + stride[1] - 2
    padding = ((taps[0] - 1, stride[0] - 1), (spare - spare // 2, spare // 2))
    how = {"norm": "none", "dtype": config.dtype, "init": config.init, "rngs": rngs}
    return Conv(inputs, outputs, taps, spread=stride, padding=padding, **how)


def _point(inputs: int, outputs: int, config: SpectroConfig, rngs) -> Conv:
    return _conv(inputs, outputs, (1, 1), (1, 1), config, rngs)


class DownUnit(nnx.Module):
    """Two convolutions, the second strided, around which means of the input go past."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int], config: SpectroConfig, *, rngs: nnx.Rngs):
        self.stride = stride
        self.conv_in = _conv(inputs, inputs, (3, 3), (1, 1), config, rngs)
        self.conv_out = _conv(inputs, outputs, tuple(map(_taps, stride)), stride, config, rngs)
        self.shortcut = _point(inputs, outputs, config, rngs) if inputs != outputs else None

    def __call__(self, x: Float[Array, "B X F I"]) -> Float[Array, "B x f O"]:
        y = self.conv_out(jax.nn.elu(self.conv_in(jax.nn.elu(x))))
        time, freq = self.stride
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % time), (0, 0), (0, 0)))
        past = x.reshape(len(x), x.shape[1] // time, time, x.shape[2] // freq, freq, -1).mean((2, 4))
        return y + (past if self.shortcut is None else self.shortcut(past))


class UpUnit(nnx.Module):
    """A transposed convolution and another, around which the input goes past, repeated."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int], config: SpectroConfig, *, rngs: nnx.Rngs):
        self.stride = stride
        self.conv_in = _up_conv(inputs, outputs, stride, config, rngs)
        self.conv_out = _conv(outputs, outputs, (3, 3), (1, 1), config, rngs)
        self.shortcut = _point(inputs, outputs, config, rngs) if inputs != outputs else None

    def __call__(self, x: Float[Array, "B X F I"]) -> Float[Array, "B x f O"]:
        y = self.conv_out(jax.nn.elu(self.conv_in(jax.nn.elu(x))))
        past = x if self.shortcut is None else self.shortcut(x)
        return y + past.repeat(self.stride[0], 1).repeat(self.stride[1], 2)


class Encoder(nnx.Module):
    """Waveform to latent frames, one frame for every hop of samples."""

    def __init__(self, channels: int, config: SpectroConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        self.channels = channels
        widths = [c.width * n for n in _WIDTHS]
        self.conv_in = _conv(2, widths[0], (_END, _END), (1, 1), c, rngs)
        last = _BLOCKS - 1
        self.blocks = nnx.List(
            [
                DownUnit(widths[i] * (channels if i == last else 1), widths[i + 1], stride, c, rngs=rngs)
                for i, stride in enumerate(zip(c.time_strides, c.strides, strict=True))
            ]
        )
        self.inner = DownUnit(widths[-1], widths[-1], (1, 1), c, rngs=rngs)
        flat = c.bands * widths[-1]
        self.out = _point(flat, c.latent, c, rngs)
        self.out_hidden = _point(flat, flat, c, rngs)
        self.out_past = _point(flat, c.latent, c, rngs)

    def __call__(self, wav_BLC: Float[Array, "B L C"]) -> Float[Array, "B T D"]:
        c, (B, _, C) = self.config, wav_BLC.shape
        wav_ZL = jnp.moveaxis(wav_BLC, 2, 1).reshape(B * C, -1)  # every channel on its own at first
        x = self.conv_in(_spectrum(wav_ZL, c.spectrum))
        *first, last = self.blocks
        x = through(first, x, c.remat == "full")
        x = jnp.moveaxis(x.reshape(B, C, *x.shape[1:]), 1, 3).reshape(B, *x.shape[1:3], -1)
        x = self.inner(last(x))
        x = x.reshape(B, x.shape[1], 1, -1)
        y = self.out(x) + self.out_past(jax.nn.elu(self.out_hidden(jax.nn.elu(x))))
        return y[:, :, 0]


class Decoder(nnx.Module):
    """Latent frames to waveform.

    A frame's samples need the next frame as well, in place of which the last one is held.
    """

    def __init__(self, channels: int, config: SpectroConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        self.channels = channels
        widths = [c.width * n for n in _UP_WIDTHS]
        flat = c.bands * widths[0]
        self.conv_in = _point(c.latent, flat, c, rngs)
        self.in_hidden = _point(c.latent, flat, c, rngs)
        self.in_past = _point(flat, flat, c, rngs)
        self.inner = DownUnit(widths[0], widths[0], (1, 1), c, rngs=rngs)
        # the second width is that of two channels, and of each channel half of it goes on
        apart = widths[1] // 2
        ends = [(widths[0], apart * channels), (apart, widths[2]), *pairwise(widths[2:])]
        strides = zip(c.time_strides[::-1], c.strides[::-1], strict=True)
        self.blocks = nnx.List([UpUnit(*end, stride, c, rngs=rngs) for end, stride in zip(ends, strides, strict=True)])
        self.conv_out = _conv(widths[-1], 2, (_END, _END), (1, 1), c, rngs)

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B L C"]:
        c, B, C = self.config, len(x_BTD), self.channels
        x = jnp.concatenate([x_BTD, x_BTD[:, -1:]], axis=1)[:, :, None]
        x = self.conv_in(x) + self.in_past(jax.nn.elu(self.in_hidden(x)))
        x = self.inner(x.reshape(B, x.shape[1], c.bands, -1))
        first, *rest = self.blocks
        x = first(x)
        x = jnp.moveaxis(x.reshape(*x.shape[:3], C, -1), 3, 1).reshape(B * C, *x.shape[1:3], -1)
        x = self.conv_out(jax.nn.elu(through(rest, x, c.remat == "full")))
        ahead = math.prod(c.time_strides)
        wav_ZL = _waveform(x[:, ahead:].astype(jnp.float32), c.spectrum)
        return jnp.moveaxis(wav_ZL.reshape(B, C, -1), 1, 2)


def _window(size: int) -> Float[np.ndarray, "L"]:
    """Hann's, periodic."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)).astype(np.float32)


def _spectrum(wav_ZL: Float[Array, "Z L"], hop: int) -> Float[Array, "Z X F 2"]:
    """Real and imaginary parts of whole hops, each in a window with the next; silence behind the end."""
    steps = wav_ZL.reshape(len(wav_ZL), -1, hop)
    frames = jnp.concatenate([steps, jnp.pad(steps[:, 1:], ((0, 0), (0, 1), (0, 0)))], axis=-1)
    found = jnp.fft.rfft(frames * _window(2 * hop), axis=-1)[..., :hop]
    return jnp.stack([found.real, found.imag], axis=-1)


def _waveform(x: Float[Array, "Z X F 2"], hop: int) -> Float[Array, "Z L"]:
    """As many hops as there are spectra, of which each reaches over into the next."""
    whole = jnp.pad(x[..., 0] + 1j * x[..., 1], ((0, 0), (0, 0), (0, 1)))
    window = _window(2 * hop)
    share = window / np.tile(np.square(window).reshape(2, hop).sum(0), 2)
    here, after = jnp.split(jnp.fft.irfft(whole, 2 * hop, axis=-1) * share, 2, axis=-1)
    return (here + jnp.pad(after, ((0, 0), (1, 0), (0, 0)))[:, :-1]).reshape(len(x), -1)
