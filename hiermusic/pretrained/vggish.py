"""VGGish (arXiv 1609.09430): 16 kHz sound to a vector of 128 numbers for each 0.96 s, what FAD is measured on.

As torchvggish has it, without the PCA behind it and without the last ReLU, which all libraries of FAD leave out.
Letters: B batch, L samples, T frames, M mel bands, D width.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from hiermusic.audio import spectral
from hiermusic.nn.param import weight, zeros
from hiermusic.pretrained import names
from hiermusic.pretrained.layers import EXACT, Linear
from hiermusic.pretrained.names import Rename

_PLACES = (0, 3, 6, 8, 11, 13)  # of the convolutions, among what torchvggish calls `features`
_POOLED = (True, True, False, True, False, True)  # behind which of them maxima of 2 x 2 are taken
_WINDOW, _HOP, _FFT = 400, 160, 512  # samples
_LOWEST, _HIGHEST = 125.0, 7500.0  # Hz


@dataclass(frozen=True)
class VggishConfig:
    """Sizes, of which the weights have one.

    Args:
      channels: of the convolutions.
      hidden: of the two linear maps behind them.
      width: D.
    """

    channels: tuple[int, ...] = (64, 128, 256, 256, 512, 512)
    hidden: int = 4096
    width: int = 128

    sample_rate = 16000
    frames, bands = 96, 64

    @property
    def hop(self) -> int:
        """Samples from vector to vector."""
        return self.frames * _HOP

    @property
    def span(self) -> int:
        """Samples that a vector hears."""
        return (self.frames - 1) * _HOP + _WINDOW

    def make(self, *, rngs: nnx.Rngs) -> "Vggish":
        return Vggish(self, rngs=rngs)


class Convolution(nnx.Module):
    """A convolution of 3 x 3 that keeps the size, then ReLU."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.kernel = weight(rngs, (3, 3, inputs, outputs), (None,) * 4)
        self.bias = zeros(rngs, (outputs,), (None,))

    def __call__(self, x: Float[Array, "B T M I"]) -> Float[Array, "B T M O"]:
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, self.kernel[...], (1, 1), "SAME", dimension_numbers=layout, precision=EXACT)
        return jnp.maximum(y + self.bias[...], 0)


class Vggish(nnx.Module):
    """The network and what it is given."""

    def __init__(self, config: VggishConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        self.convs = nnx.List([Convolution(*pair, rngs=rngs) for pair in pairwise((1, *c.channels))])
        flat = c.frames * c.bands // 4 ** sum(_POOLED) * c.channels[-1]
        sizes = (flat, c.hidden, c.hidden, c.width)
        self.linears = nnx.List([Linear(*pair, rngs=rngs) for pair in pairwise(sizes)])

    @property
    def width(self) -> int:
        """D of the vectors."""
        return self.config.width

    def __call__(self, wav_BL: Float[Array, "B L"]) -> Float[Array, "B D"]:
        """Vectors of stretches of `config.span` samples: mono, 16 kHz, about [-1, 1]."""
        return self.see(log_mel(wav_BL))

    def see(self, x_BTM: Float[Array, "B T M"]) -> Float[Array, "B D"]:
        """Vectors of log-mel spectra of `config.frames` frames."""
        x = x_BTM[..., None]
        for conv, pooled in zip(self.convs, _POOLED, strict=True):
            x = conv(x)
            if pooled:
                x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        x = x.reshape(len(x), -1)  # time, bands, channels, as TensorFlow's original has it
        for linear in self.linears[:-1]:
            x = jnp.maximum(linear(x), 0)
        return self.linears[-1](x)

    def clips(self, wav_L: Float[np.ndarray, "L"]) -> Float[np.ndarray, "B L"]:
        """A sound of any length as stretches side by side; what is left over is dropped, as everywhere, but silence
        makes a whole one of a sound that is shorter."""
        c = self.config
        wav_L = np.pad(wav_L, (0, max(c.span - len(wav_L), 0)))
        count = (len(wav_L) - c.span) // c.hop + 1
        return np.stack([wav_L[start : start + c.span] for start in range(0, count * c.hop, c.hop)])


def log_mel(wav_BL: Float[Array, "B L"]) -> Float[Array, "B T M"]:
    """log(mel magnitudes + 0.01), of windows of 25 ms each 10 ms, all of them within the sound."""
    aside = (_FFT - _WINDOW) // 2
    wav_BL = jnp.pad(wav_BL, ((0, 0), (aside, aside)))
    size_BTF = jnp.abs(spectral.stft(wav_BL, _FFT, _HOP, _WINDOW, center=False))
    return jnp.log(jnp.matmul(size_BTF, _filters(), precision=EXACT) + 0.01)


@functools.cache
def _filters() -> Float[np.ndarray, "F M"]:
    """Triangles between places that are even in HTK's mel, straight in mel as well; nothing of 0 Hz."""

    def mel(hertz):
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    bins_F1 = mel(np.arange(_FFT // 2 + 1) * VggishConfig.sample_rate / _FFT)[:, None]
    edges = np.linspace(mel(_LOWEST), mel(_HIGHEST), VggishConfig.bands + 2)
    low, middle, high = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins_F1 - low) / (middle - low), (high - bins_F1) / (high - middle)
    filters = np.maximum(0, np.minimum(rising, falling))
    filters[0] = 0
    return filters.astype(np.float32)


def of_torchvggish(shapes: Mapping[str, tuple[int, ...]]) -> VggishConfig:
    """The configuration that the shapes of torchvggish's weights speak of; KeyError where they are another model's."""
    channels = tuple(shapes[f"features.{place}.weight"][0] for place in _PLACES)
    return VggishConfig(channels, shapes["embeddings.0.weight"][0], shapes["embeddings.4.weight"][0])


def torchvggish_names() -> list[Rename]:
    """Our weights by the names of torchvggish."""
    found = []
    for i, place in enumerate(_PLACES):
        found.append(Rename(f"convs.{i}.kernel", f"features.{place}.weight", (2, 3, 1, 0)))
        found.append(Rename(f"convs.{i}.bias", f"features.{place}.bias"))
    for i in range(3):
        found += names.linear(f"linears.{i}", f"embeddings.{2 * i}")
    return found
