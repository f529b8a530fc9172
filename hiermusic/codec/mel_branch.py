"""A second way into the latents: how loud every band of a frame is, which strided convolutions are slow to learn."""

import math

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hiermusic.audio.spectral import mel
from hiermusic.codec.dac import ResidualUnit
from hiermusic.codec.trunk import through
from hiermusic.errors import UserError
from hiermusic.nn.conv import Conv, Snake

REACH = 2  # frames on either side that a frame of a `MelBranch` reads: half a window's overlap, one by the convolution
_DILATIONS = (1, 3, 5)  # of the residual units of a `DeepMelBranch`
_FLOOR = 1e-5  # of a band's power, some 80 dB under a full-scale sine's; what lies under it counts as silence, nought


def reach(width: int, latent: int) -> int:
    """Frames on either side that a frame of a branch reads, of a `DeepMelBranch` if it has a width."""
    return 3 + round(math.log2(latent / width)) * (3 * sum(_DILATIONS) + 1) if width else REACH


class MelBranch(nnx.Module):
    """Waveform to latent frames by way of log-mel bands, each frame reading its neighbours too.

    The power of a drum's noise is a smooth function of the bands, but a rough one of the samples: an encoder that sees
    these alone spends its first codes on what it can tell early, the waveform below 1 kHz.

    Args:
      bands: mel bands of each channel, in a Hann window of two hops round the frame.
      channels: audio channels.
      latent: channels of the frames.
      hop: samples a frame.
      sample_rate: Hz.
      init: of the convolution's weights, see `nn.conv.Conv`.
    """

    def __init__(
        self,
        bands: int,
        channels: int,
        latent: int,
        hop: int,
        sample_rate: int,
        *,
        init: str = "fan_in",
        rngs: nnx.Rngs,
    ):
        self.bands, self.hop, self.sample_rate = bands, hop, sample_rate
        self.conv = Conv(channels * bands, latent, (3,), init=init, rngs=rngs)

    def __call__(self, wav_BLC: Float[Array, "B L C"]) -> Float[Array, "B T D"]:
        shape = (self.sample_rate, 2 * self.hop, self.hop, self.bands)
        mel_BCTM = mel(jnp.moveaxis(wav_BLC, -1, 1), *shape, center=False, squared=True)
        return self.conv(_side_by_side(0.5 * jnp.log10(1 + mel_BCTM / _FLOOR)))


class DeepMelBranch(nnx.Module):
    """Log-mel bands to latent frames through blocks of residual units, as in PyramidCodec's released code.

    There are no strides: a block has residual units, then a convolution to twice as many channels.

    Args:
      width: channels that the bands become first; doubled until they are `latent`.
      bands, channels, latent, hop, sample_rate: as for `MelBranch`; the bands lie below 8 kHz.
      dtype: compute type of the convolutions.
    """

    def __init__(
        self,
        width: int,
        bands: int,
        channels: int,
        latent: int,
        hop: int,
        sample_rate: int,
        *,
        dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        blocks = max(round(math.log2(latent / width)), 0)
        if width << blocks != latent:
            raise UserError(f"model.mel_width={width}: doubled so many times it must be model.latent={latent}")
        self.bands, self.hop, self.sample_rate = bands, hop, sample_rate
        self.conv = Conv(channels * bands, width, (3,), dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([_MelBlock(width << i, dtype=dtype, rngs=rngs) for i in range(blocks)])

    def __call__(self, wav_BLC: Float[Array, "B L C"]) -> Float[Array, "B T D"]:
        shape = (self.sample_rate, 4 * self.hop, self.hop, self.bands)
        how = {"win": 2 * self.hop, "fmax": min(8000.0, self.sample_rate / 2), "center": False}
        mel_BCTM = mel(jnp.moveaxis(wav_BLC, -1, 1), *shape, **how)
        level_BTM = _side_by_side(jnp.log(jnp.maximum(mel_BCTM, 1e-5)))
        return through(self.blocks, self.conv(level_BTM), remat=False).astype(jnp.float32)


class _MelBlock(nnx.Module):
    """Residual units, then a convolution to twice as many channels."""

    def __init__(self, channels: int, *, dtype: str, rngs: nnx.Rngs):
        units = [ResidualUnit(channels, d, dtype=dtype, init="dac", rngs=rngs) for d in _DILATIONS]
        self.units, self.snake = nnx.List(units), Snake(channels, rngs=rngs)
        self.conv = Conv(channels, 2 * channels, (3,), dtype=dtype, rngs=rngs)

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T 2D"]:
        return self.conv(self.snake(through(self.units, x_BTD, remat=False)))


def _side_by_side(level_BCTM: Float[Array, "B C T M"]) -> Float[Array, "B T CM"]:
    """The bands of all channels as one row a frame."""
    B, C, T, M = level_BCTM.shape
    return jnp.moveaxis(level_BCTM, 1, 2).reshape(B, T, C * M)
