"""A second way into the latents: how loud every band of a frame is, which strided convolutions are slow to learn."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hiermusic.audio.spectral import mel_filters, power, stft
from hiermusic.codec.dac import ResidualUnit
from hiermusic.codec.trunk import through
from hiermusic.errors import UserError
from hiermusic.nn.conv import Conv, Snake

REACH = 2  # frames on either side that a frame of a `MelBranch` reads: half a window's overlap, one by the convolution
_DILATIONS = (1, 3, 5)  # of the residual units of a `DeepMelBranch`
_TINY = 1e-14  # of a power: its root has a finite gradient at silence
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
    """

    def __init__(self, bands: int, channels: int, latent: int, hop: int, sample_rate: int, *, rngs: nnx.Rngs):
        self.bands, self.hop, self.sample_rate = bands, hop, sample_rate
        self.conv = Conv(channels * bands, latent, (3,), init="fan_in", rngs=rngs)

    def __call__(self, wav_BLC: Float[Array, "B L C"]) -> Float[Array, "B T D"]:
        size, left = 2 * self.hop, self.hop // 2
        around_BCL = jnp.pad(jnp.moveaxis(wav_BLC, -1, 1), ((0, 0), (0, 0), (left, self.hop - left)))
        filters_FM = mel_filters(self.sample_rate, size, self.bands).T
        power_BCTF = power(stft(around_BCL, size, self.hop, center=False))
        mel_BCTM = jnp.matmul(power_BCTF, filters_FM, precision=jax.lax.Precision.HIGHEST)
        level_BCTM = 0.5 * jnp.log10(1 + mel_BCTM / _FLOOR)
        B, C, T, M = level_BCTM.shape
        return self.conv(jnp.moveaxis(level_BCTM, 1, 2).reshape(B, T, C * M))


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
        size, left = 4 * self.hop, self.hop + self.hop // 2
        mode = "reflect" if wav_BLC.shape[1] > left else "constant"
        around_BCL = jnp.pad(jnp.moveaxis(wav_BLC, -1, 1), ((0, 0), (0, 0), (left, 3 * self.hop - left)), mode=mode)
        filters_FM = mel_filters(self.sample_rate, size, self.bands, 0.0, min(8000.0, self.sample_rate / 2)).T
        sizes_BCTF = jnp.sqrt(power(stft(around_BCL, size, self.hop, 2 * self.hop, center=False)) + _TINY)
        mel_BCTM = jnp.matmul(sizes_BCTF, filters_FM, precision=jax.lax.Precision.HIGHEST)
        B, C, T, M = mel_BCTM.shape
        level_BTM = jnp.moveaxis(jnp.log(jnp.maximum(mel_BCTM, 1e-5)), 1, 2).reshape(B, T, C * M)
        return through(self.blocks, self.conv(level_BTM), remat=False).astype(jnp.float32)


class _MelBlock(nnx.Module):
    """Residual units, then a convolution to twice as many channels."""

    def __init__(self, channels: int, *, dtype: str, rngs: nnx.Rngs):
        units = [ResidualUnit(channels, d, dtype=dtype, init="dac", rngs=rngs) for d in _DILATIONS]
        self.units, self.snake = nnx.List(units), Snake(channels, rngs=rngs)
        self.conv = Conv(channels, 2 * channels, (3,), dtype=dtype, rngs=rngs)

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T 2D"]:
        return self.conv(self.snake(through(self.units, x_BTD, remat=False)))
