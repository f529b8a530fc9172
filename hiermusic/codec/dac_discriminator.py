"""The discriminators of DAC (arXiv 2306.06546): the waveform at several periods, its spectra band by band."""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from hiermusic.audio.spectral import stft
from hiermusic.codec.discriminator import Judgement
from hiermusic.errors import UserError
from hiermusic.nn.conv import Conv
from hiermusic.parallel.mesh import constrain

_SLOPE = 0.1  # of the leaky rectifiers


@dataclasses.dataclass(frozen=True)
class DacDiscriminatorConfig:
    """Sizes of the discriminators; the defaults are DAC's, 42.5 M parameters.

    Args:
      periods: samples from row to row, one sub-discriminator each.
      period_widths: channels of their convolutions; all but the last have a stride of 3.
      sizes: FFT sizes, one sub-discriminator each; the hop is a quarter.
      bands: edges of the bands that convolutions see one by one, as shares of the spectrum.
      filters: channels of every hidden convolution over spectra.
      dtype: compute type of the convolutions.
    Raises:
      UserError: a period or width below 1, bands whose edges do not rise from 0 to 1, or a spectrum with an empty one.
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    period_widths: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    sizes: tuple[int, ...] = (2048, 1024, 512)
    bands: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
    filters: int = 32
    dtype: str = "float32"

    def __post_init__(self):
        numbers = {"periods": self.periods, "period_widths": self.period_widths, "filters": (self.filters,)}
        for name, given in numbers.items():
            if min(given, default=1) < 1:
                raise UserError(f"discriminator.{name} holds {min(given)}: give whole numbers of 1 or more")
        if self.bands[:1] != (0.0,) or self.bands[-1:] != (1.0,):
            raise UserError(f"discriminator.bands is {self.bands}: give edges that rise from 0 to 1")
        for size in self.sizes:
            if any(low >= high for low, high in self.edges(size)):
                raise UserError(
                    f"discriminator.bands is {self.bands}: one holds no bin of a spectrum of {size} samples"
                )

    def edges(self, size: int) -> list[tuple[int, int]]:
        """First and last bin of each band of a spectrum, the last one excluded."""
        bins = [int(edge * (size // 2 + 1)) for edge in self.bands]
        return list(pairwise(bins))


class PeriodDiscriminator(nnx.Module):
    """Judges the waveform folded into rows: convolutions see every `period`-th sample (HiFi-GAN, arXiv 2010.05646)."""

    def __init__(self, channels: int, period: int, config: DacDiscriminatorConfig, *, rngs: nnx.Rngs):
        self.period = period
        widths, kwargs = (channels, *config.period_widths), dict(dtype=config.dtype, rngs=rngs)
        # channels are split over `fsdp` and over `tensor` in turn: what one convolution splits the next one sums over
        axes = (("channels", "hidden"), ("hidden", "channels"))
        self.convs = nnx.List([])
        for i, width in enumerate(widths[1:]):
            stride = {} if i == len(widths) - 2 else {"stride": (3,)}
            split = axes[i % 2] if i else (None, "hidden")
            self.convs.append(Conv(widths[i], width, (5,), padding=(2,), axes=split, **stride, **kwargs))
        last = "hidden" if len(widths) % 2 == 0 else "channels"
        self.judge = Conv(widths[-1], 1, (3,), axes=(last, None), **kwargs)

    def __call__(self, wav_BLC: Float[Array, "B L C"]) -> tuple[Array, list[Array]]:
        B, L, C = wav_BLC.shape
        # a whole period where it divides the length, as DAC has it
        missing = self.period - L % self.period
        mode = "reflect" if missing < L else "constant"
        whole = jnp.pad(wav_BLC, ((0, 0), (0, missing), (0, 0)), mode=mode)
        # what stands in a column is an item of its own: a convolution never looks across
        x = whole.reshape(B, -1, self.period, C).swapaxes(1, 2).reshape(B * self.period, -1, C)
        features = []
        for i, conv in enumerate(self.convs):
            x = constrain(jax.nn.leaky_relu(conv(x), _SLOPE), "batch", None, None if i % 2 else "hidden")
            features.append(x)
        return self.judge(x).astype(jnp.float32).reshape(B, self.period, -1), self._by_item(features, B)

    def _by_item(self, features: Sequence[Array], batch: int) -> list[Float[Array, "B p T D"]]:
        return [x.reshape(batch, self.period, *x.shape[1:]) for x in features]


class BandDiscriminator(nnx.Module):
    """Judges one complex STFT; every band has convolutions of its own, and one looks over all of them in the end."""

    def __init__(self, channels: int, size: int, config: DacDiscriminatorConfig, *, rngs: nnx.Rngs):
        self.size, self.edges = size, config.edges(size)
        width, kwargs = config.filters, dict(dtype=config.dtype, rngs=rngs)
        axes = (("channels", "hidden"), ("hidden", "channels"))

        def band() -> nnx.List:
            convs = [Conv(2 * channels, width, (3, 9), **kwargs)]
            convs += [Conv(width, width, (3, 9), stride=(1, 2), axes=axes[i % 2], **kwargs) for i in range(3)]
            return nnx.List([*convs, Conv(width, width, (3, 3), axes=axes[1], **kwargs)])

        self.bands = nnx.List([band() for _ in self.edges])
        self.judge = Conv(width, 1, (3, 3), axes=("channels", None), **kwargs)

    def __call__(self, wav_BLC: Float[Array, "B L C"]) -> tuple[Array, list[Array]]:
        hop, left = self.size // 4, self.size * 3 // 8
        right = left + -wav_BLC.shape[1] % hop
        mode = "reflect" if wav_BLC.shape[1] > right else "constant"
        around_BCL = jnp.pad(jnp.moveaxis(wav_BLC, -1, 1), ((0, 0), (0, 0), (left, right)), mode=mode)
        spectrum = stft(around_BCL, self.size, hop, center=False)
        spectrum_BTFC = jnp.concatenate([spectrum.real, spectrum.imag], 1).transpose(0, 2, 3, 1)
        features, ends = [], []
        for (low, high), convs in zip(self.edges, self.bands, strict=True):
            x_BTFD = spectrum_BTFC[:, :, low:high]
            for i, conv in enumerate(convs):
                x_BTFD = jax.nn.leaky_relu(conv(x_BTFD), _SLOPE)
                x_BTFD = constrain(x_BTFD, "batch", None, None, "hidden" if i % 2 else None)
                features.append(x_BTFD)
            ends.append(x_BTFD)
        return self.judge(jnp.concatenate(ends, axis=2)).astype(jnp.float32), features


class DacDiscriminator(nnx.Module):
    """A `PeriodDiscriminator` for every period and a `BandDiscriminator` for every FFT size.

    Args:
      channels: audio channels.
    """

    def __init__(self, channels: int, config: DacDiscriminatorConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.periods = nnx.List([PeriodDiscriminator(channels, p, config, rngs=rngs) for p in config.periods])
        self.scales = nnx.List([BandDiscriminator(channels, n, config, rngs=rngs) for n in config.sizes])

    def __call__(self, wav_BLC: Float[Array, "B L C"]) -> Judgement:
        """Judges waveforms of any length, each without its mean and at one loudness: its peak at 0.8."""
        wav_BLC = wav_BLC - jnp.mean(wav_BLC, axis=1, keepdims=True)
        peak_B11 = jnp.max(jnp.abs(wav_BLC), axis=(1, 2), keepdims=True)
        wav_BLC = 0.8 * wav_BLC / (peak_B11 + 1e-9)
        logits, features = zip(*(judge(wav_BLC) for judge in (*self.periods, *self.scales)), strict=True)
        return Judgement(list(logits), list(features))
