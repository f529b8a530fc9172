"""A second way into the latents: how loud every band of a frame is, which strided convolutions are slow to learn."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hiermusic.audio.spectral import mel_filters, power, stft
from hiermusic.nn.conv import Conv

REACH = 2  # frames on either side that a frame reads: half a window's overlap, and one by the convolution
_FLOOR = 1e-5  # of a band's power, some 80 dB under a full-scale sine's; what lies under it counts as silence, nought


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
