"""The multi-scale STFT discriminator of EnCodec (arXiv 2210.13438), which Khala and SAT train against too."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hiermusic.audio.spectral import stft
from hiermusic.nn.conv import Conv
from hiermusic.parallel.mesh import constrain

GOLDEN_SIZES = (78, 126, 206, 334, 542, 876, 1418, 2296)  # Khala's (arXiv 2605.01790)


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of the discriminator; the defaults come to Khala's "about 12 M" parameters.

    EnCodec and SAT have FFT sizes 1024, 2048, 512, 256, 128, a hop of 0.25 and 32 filters. Two things differ from their
    code and change a constant or the parametrisation only: the first convolution is weight-normed as the others are
    (theirs forgets the argument), and spectra are divided by the window's root energy, as in EnCodec, where SAT divides
    by sqrt(n / 2), that is by 1.155 times as much.

    Args:
      sizes: FFT sizes, one sub-discriminator each, and its window.
      filters: channels of every hidden convolution.
      hop: samples between frames, as a share of the window.
      slope: of the leaky rectifier.
      dtype: compute type of the convolutions.
    """

    sizes: tuple[int, ...] = GOLDEN_SIZES
    filters: int = 128
    hop: float = 0.5
    slope: float = 0.2
    dtype: str = "float32"


class Judgement(NamedTuple):
    """Per scale: `logits` (high = real) and `features`, the activations of every hidden convolution."""

    logits: list[Float[Array, "B T F 1"]]
    features: list[list[Float[Array, "B T F D"]]]


class ScaleDiscriminator(nnx.Module):
    """Judges one complex STFT; real and imaginary parts of all audio channels are stacked as image channels."""

    def __init__(self, channels: int, size: int, config: DiscriminatorConfig, *, rngs: nnx.Rngs):
        self.size, self.hop, self.slope = size, int(size * config.hop), config.slope
        width = config.filters
        kwargs = dict(dtype=config.dtype, rngs=rngs)
        # channels are split over `fsdp` and over `tensor` in turn: what one convolution splits the next one sums over
        axes = (("channels", "hidden"), ("hidden", "channels"))
        self.convs = nnx.List([Conv(2 * channels, width, (3, 9), **kwargs)])
        for i, dilation in enumerate((1, 2, 4)):
            stride = {"stride": (1, 2), "dilation": (dilation, 1)}
            self.convs.append(Conv(width, width, (3, 9), **stride, axes=axes[i % 2], **kwargs))
        self.convs.append(Conv(width, width, (3, 3), axes=axes[1], **kwargs))
        self.judge = Conv(width, 1, (3, 3), axes=("channels", None), **kwargs)

    def __call__(self, wav_BLC: Float[Array, "B L C"]) -> tuple[Array, list[Array]]:
        spectrum = stft(wav_BLC.swapaxes(1, 2), self.size, self.hop, center=False, normalized=True)
        x_BTFD = jnp.concatenate([spectrum.real, spectrum.imag], 1).transpose(0, 2, 3, 1)
        features = []
        for i, conv in enumerate(self.convs):
            x_BTFD = jax.nn.leaky_relu(conv(x_BTFD), self.slope)
            x_BTFD = constrain(x_BTFD, "batch", None, None, "hidden" if i % 2 else None)
            features.append(x_BTFD)
        return self.judge(x_BTFD).astype(jnp.float32), features


class Discriminator(nnx.Module):
    """One `ScaleDiscriminator` for every FFT size.

    Args:
      channels: audio channels.
    """

    def __init__(self, channels: int, config: DiscriminatorConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.scales = nnx.List([ScaleDiscriminator(channels, n, config, rngs=rngs) for n in config.sizes])

    def __call__(self, wav_BLC: Float[Array, "B L C"]) -> Judgement:
        """Judges waveforms of any length; one shorter than a window is zero-padded to it."""
        logits, features = zip(*(scale(wav_BLC) for scale in self.scales), strict=True)
        return Judgement(list(logits), list(features))
