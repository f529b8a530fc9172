"""What a codec is trained to do: sound like the input to the ear (STFT), sample by sample, and to a discriminator."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from hiermusic.audio.spectral import mel, power, stft
from hiermusic.codec.discriminator import Judgement
from hiermusic.errors import UserError

_OF_THE_OUTPUT = ("waveform", "stft", "mel", "adversarial", "feature")
_QUIET = 1e-2  # mean square of -20 dBFS: for quieter originals the floor of the logarithms falls no further


Judge = Callable[[Float[Array, "B L C"]], Judgement]


@dataclasses.dataclass(frozen=True)
class ObjectiveConfig:
    """Weights of the generator's losses; fields of `config.loss`. Khala names the terms only; the numbers are EnCodec's
    in audiocraft.

    Args:
      waveform: L1 of the samples.
      stft: multi-scale STFT loss at `stft_sizes`, hop a half.
      mel: log-mel distance, off by default: as in DAC (there 15), or in EnCodec and SAT, by the fields below.
      mel_start, mel_steps: what its weight is at first, and after how many steps it has risen, or fallen, to `mel`; 0
        steps for the same weight throughout.
      adversarial: mean over scales. SAT's release divides by the number of scales twice: its 3 is 0.6 here.
      feature: matching of the discriminator's activations.
      commitment: of the quantiser; never balanced.
      adversary: the form of `adversarial` and `feature`. "hinge", as in EnCodec: means over the judges, activations
        compared in relation to the real ones. "least_squares", as in DAC: sums of squares, and of plain differences.
      level_weights: of a codec that rebuilds several resolutions, how much each weighs in all of these, coarse first;
        one of a single resolution does not read them.
      stft_sizes: FFT sizes of the STFT loss.
      mel_windows, mel_bands: of the mel loss, pairwise; hop a quarter.
      mel_power: mel of the power spectra, not of the magnitudes.
      mel_square: weight of the squared distance next to the absolute one.
      mel_center: frames centred on multiples of the hop; without, L / hop frames (see `audio.spectral.mel`).
      rectify: the adversarial loss is max(0, 1 - D), as in EnCodec's paper and SAT, which pulls no logit beyond 1;
        without, it is -D, as in audiocraft.
      floor_db: of every logarithm: spectra are compared as if both signals were heard over a white noise this far below
        the original. A floor near nought (1e-5 of an unnormalised magnitude in Parallel WaveGAN and DAC, some 150 dB
        under full scale) lets the bins that hold nothing rule the gradient, which goes like 1 / |X|.
      balance: give each loss a share of the gradient at the output equal to its weight's, whatever its scale.
      balance_decay: of the averaged gradient norms.
    Raises:
      UserError: a number out of its range, or as many windows as there are no bands for.
    """

    waveform: float = 0.1
    stft: float = 2.0
    mel: float = 0.0
    mel_start: float = 0.0
    mel_steps: int = 0
    adversarial: float = 4.0
    feature: float = 4.0
    commitment: float = 1.0
    adversary: Literal["hinge", "least_squares"] = "hinge"
    level_weights: tuple[float, ...] = ()
    stft_sizes: tuple[int, ...] = (78, 126, 206, 334, 542, 876, 1418, 2296)
    mel_windows: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048)
    mel_bands: tuple[int, ...] = (5, 10, 20, 40, 80, 160, 320)
    mel_power: bool = False
    mel_square: float = 0.0
    mel_center: bool = True
    rectify: bool = False
    floor_db: float = -60.0
    balance: bool = True
    balance_decay: float = 0.999

    def __post_init__(self):
        names = ("waveform", "stft", "mel", "adversarial", "feature", "commitment")
        for name in (*names, "mel_square", "mel_start", "mel_steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"loss.{name} is {getattr(self, name)}; it must be finite and not negative")
        if any(not 0 <= weight < math.inf for weight in self.level_weights):
            raise UserError(f"loss.level_weights is {self.level_weights}; give numbers that are not negative")
        if self.adversary not in ("hinge", "least_squares"):
            raise UserError(f"loss.adversary is '{self.adversary}': choose hinge or least_squares")
        for name in ("stft_sizes", "mel_windows", "mel_bands"):
            if not (sizes := getattr(self, name)) or not all(isinstance(size, int) and size > 0 for size in sizes):
                raise UserError(f"loss.{name} is {sizes}; give whole numbers of 1 or more")
        if len(self.mel_windows) != len(self.mel_bands):
            windows, bands = len(self.mel_windows), len(self.mel_bands)
            raise UserError(f"loss.mel_bands has {bands} numbers for the {windows} loss.mel_windows: give one for each")

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "ObjectiveConfig":
        """The config of a configuration's `loss`, in which one number of mel bands serves all windows."""
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
        if isinstance(bands := given.get("mel_bands"), int):
            given["mel_bands"] = (bands,) * len(given.get("mel_windows", cls.mel_windows))
        return cls(**given)

    @property
    def balanced(self) -> dict[str, float]:
        """Weights of the losses that are functions of the output waveform, those at zero throughout left out."""
        most = {name: getattr(self, name) for name in _OF_THE_OUTPUT}
        if self.mel_steps:
            most["mel"] = max(self.mel, self.mel_start)
        return {name: getattr(self, name) for name, weight in most.items() if weight > 0}

    def weights(self, step: Int[Array, ""] | int) -> dict[str, float | Array]:
        """`balanced` at a step of the run."""
        weights = dict(self.balanced)
        if "mel" in weights and self.mel_steps:
            share = jnp.clip(step / self.mel_steps, 0, 1)
            weights["mel"] = (1 - share) * self.mel_start + share * self.mel
        return weights


@partial(jax.tree_util.register_dataclass, data_fields=("target_BLC", "estimate_BLC"), meta_fields=("rate", "weight"))
@dataclasses.dataclass(frozen=True)
class Heard:
    """An estimate beside what it is to be; a codec that rebuilds several resolutions has one for each, coarse first.

    Args:
      target_BLC, estimate_BLC: waveforms.
      rate: Hz that the mel bands of this resolution are laid out for: of a target without the upper part of its band,
        that of as many samples as hold it.
      weight: beside the others, in every loss.
    """

    target_BLC: Float[Array, "B L C"]
    estimate_BLC: Float[Array, "B L C"]
    rate: int
    weight: float = 1.0


def generator_objective(
    config: ObjectiveConfig,
    heard: Sequence[Heard],
    commitment: Float[Array, ""] | Float[Array, "J"],
    discriminator: Judge | None,
    norms: Mapping[str, Array],
    step: Int[Array, ""] | int = 0,
) -> tuple[Float[Array, ""], dict[str, Array], dict[str, Array]]:
    """A scalar whose gradient trains the generator, the losses by name, and the next `norms`.

    The scalar's value means nothing: it is the output times the (balanced) gradient of the losses there. So the losses
    are differentiated once, with or without the balancer, and the discriminator gets no gradient.

    Args:
      heard: originals and reconstructions, which carry the gradient.
      commitment: the quantiser's, of each resolution.
      discriminator: None to train without one, whatever the weights say.
      norms: balancer state: the averaged gradient norms, from `initial_norms` at first.
      step: of the run, for weights that rise.
    """
    weights = config.weights(step)
    if discriminator is None:
        weights = {name: w for name, w in weights.items() if name not in ("adversarial", "feature")}

    def losses(estimates):
        now = [dataclasses.replace(one, estimate_BLC=e) for one, e in zip(heard, estimates, strict=True)]
        return _output_losses(config, weights, now, discriminator)

    estimates = tuple(one.estimate_BLC for one in heard)
    point = jax.lax.stop_gradient(estimates)
    if config.balance:
        values, gradients = separate_gradients(losses, point)
        gradient, norms = balance(gradients, weights, norms, config.balance_decay)
    else:

        def total(estimates):
            values = losses(estimates)
            return sum(weights[name] * value for name, value in values.items()), values

        gradient, values = jax.grad(total, has_aux=True)(point)
    commitment = weighed(heard, commitment)
    scalar = config.commitment * commitment
    scalar += sum(map(jnp.sum, jax.tree.map(jnp.multiply, estimates, jax.lax.stop_gradient(gradient))))
    return scalar, {**values, "commitment": commitment}, dict(norms)


def discriminator_objective(
    discriminator: Judge, heard: Sequence[Heard], adversary: Literal["hinge", "least_squares"] = "hinge"
) -> Float[Array, ""]:
    """What the discriminator is to do; no gradient reaches the waveforms."""
    wav, estimate, weight_R = jax.lax.stop_gradient(_rows(heard))
    loss = hinge_discriminator if adversary == "hinge" else least_squares_discriminator
    return loss(discriminator(wav).logits, discriminator(estimate).logits, weight_R)


def hinge_discriminator(real: list[Array], fake: list[Array], weight_R: Array | None = None) -> Float[Array, ""]:
    """Mean over scales of max(0, 1 - real) + max(0, 1 + fake)."""
    relu = jax.nn.relu
    pairs = zip(real, fake, strict=True)
    return _mean(_over_rows(relu(1 - r), weight_R) + _over_rows(relu(1 + f), weight_R) for r, f in pairs)


def hinge_generator(fake: list[Array], rectify: bool = False, weight_R: Array | None = None) -> Float[Array, ""]:
    """Mean over scales of -fake, or of max(0, 1 - fake)."""
    return _mean(_over_rows(jax.nn.relu(1 - f) if rectify else -f, weight_R) for f in fake)


def least_squares_discriminator(
    real: list[Array], fake: list[Array], weight_R: Array | None = None
) -> Float[Array, ""]:
    """Sum over judges of (1 - real)^2 + fake^2 (LSGAN, arXiv 1611.04076, as DAC adds it up)."""
    pairs = zip(real, fake, strict=True)
    return sum(_over_rows(jnp.square(1 - r), weight_R) + _over_rows(jnp.square(f), weight_R) for r, f in pairs)


def least_squares_generator(fake: list[Array], weight_R: Array | None = None) -> Float[Array, ""]:
    """Sum over judges of (1 - fake)^2."""
    return sum(_over_rows(jnp.square(1 - f), weight_R) for f in fake)


def feature_matching(
    real: list[list[Array]], fake: list[list[Array]], relative: bool = True, weight_R: Array | None = None
) -> Float[Array, ""]:
    """Mean over scales and layers of |real - fake| relative to |real|; or, as in DAC, the sum of |real - fake|."""

    def layer(real, fake):
        real = jax.lax.stop_gradient(real.astype(jnp.float32))
        apart = _over_rows(jnp.abs(real - fake), weight_R)
        return apart / jnp.maximum(jnp.mean(jnp.abs(real)), 1e-6) if relative else apart

    layers = [layer(r, f) for rs, fs in zip(real, fake, strict=True) for r, f in zip(rs, fs, strict=True)]
    return _mean(layers) if relative else sum(layers)


def reconstruction_losses(config: ObjectiveConfig, heard: Sequence[Heard]) -> dict[str, Float[Array, ""]]:
    """The losses that need no discriminator, by name, those without a weight left out."""
    losses = {
        "waveform": lambda one: jnp.mean(jnp.abs(one.target_BLC - one.estimate_BLC)),
        "stft": lambda one: stft_loss(one.target_BLC, one.estimate_BLC, config.stft_sizes, config.floor_db),
        "mel": lambda one: mel_loss(config, one.target_BLC, one.estimate_BLC, one.rate),
    }
    return {name: weighed(heard, [losses[name](one) for one in heard]) for name in config.balanced if name in losses}


def weighed(heard: Sequence[Heard], values: Sequence[Float[Array, ""]] | Float[Array, "J"]) -> Float[Array, ""]:
    """The sum of one value for each resolution, by its weight."""
    return sum(one.weight * value for one, value in zip(heard, jnp.atleast_1d(jnp.asarray(values)), strict=True))


def noise_floor(wav_BLC: Float[Array, "B L C"], size: int, floor_db: float) -> Float[Array, "B 1 1 1"]:
    """The power that a white noise `floor_db` beside each original has in a bin of its spectrum, [batch, C, T, F].

    Args:
      wav_BLC: the originals.
      size: of the FFT and its Hann window.
      floor_db: relative to the root mean square of an original, which counts as -20 dBFS where it is quieter.
    """
    mean_B = jnp.mean(jnp.square(wav_BLC), axis=(1, 2))
    window_energy = 0.375 * size
    return (10 ** (floor_db / 10) * window_energy * jnp.maximum(mean_B, _QUIET))[:, None, None, None]


def stft_loss(
    wav_BLC: Float[Array, "B L C"], estimate_BLC: Float[Array, "B L C"], sizes: Sequence[int], floor_db: float
) -> Float[Array, ""]:
    """Mean over FFT sizes of log-magnitude L1 plus spectral convergence (Parallel WaveGAN, arXiv 1910.11480).

    Args:
      sizes: of the FFTs; the hop is a half.
      floor_db: see `ObjectiveConfig`.
    """

    def scale(size):
        floor = noise_floor(wav_BLC, size, floor_db)
        real, fake = (power(stft(w.swapaxes(1, 2), size, size // 2)) + floor for w in (wav_BLC, estimate_BLC))
        distance = 0.5 * jnp.mean(jnp.abs(jnp.log(real) - jnp.log(fake)))
        apart = jnp.sum(jnp.square(jnp.sqrt(real) - jnp.sqrt(fake)))
        return distance + jnp.sqrt(apart + 1e-12) / jnp.sqrt(jnp.sum(real))

    return _mean(scale(size) for size in sizes)


def mel_loss(
    config: ObjectiveConfig, wav_BLC: Float[Array, "B L C"], estimate_BLC: Float[Array, "B L C"], sample_rate: int
) -> Float[Array, ""]:
    """Sum over windows of the distance of log10 mel spectra (DAC, arXiv 2306.06546; EnCodec, arXiv 2210.13438)."""

    def scale(window, bands):
        shape = (sample_rate, window, window // 4, bands)
        how = {"center": config.mel_center, "squared": config.mel_power}
        floor = noise_floor(wav_BLC, window, config.floor_db)
        real, fake = (mel(w.swapaxes(1, 2), *shape, floor=floor, **how) for w in (wav_BLC, estimate_BLC))
        # a band between two bins of a short FFT is nought in both
        difference = jnp.log10(jnp.maximum(real, 1e-20)) - jnp.log10(jnp.maximum(fake, 1e-20))
        distance = jnp.mean(jnp.abs(difference))
        if config.mel_square:
            distance += config.mel_square * jnp.mean(jnp.square(difference))
        return distance

    return sum(scale(window, bands) for window, bands in zip(config.mel_windows, config.mel_bands, strict=True))


def initial_norms(config: ObjectiveConfig) -> dict[str, Float[Array, "2"]]:
    """The balancer's state before the first step: per loss, decayed sum of the gradient norms and of their weights."""
    return {name: jnp.zeros(2) for name in config.balanced}


def separate_gradients(
    losses: Callable[[Array], dict[str, Array]], point: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The losses at a point and the gradient of each, from one forward pass."""
    values, pull = jax.vjp(losses, point)
    zeros = {name: jnp.zeros_like(value) for name, value in values.items()}
    return values, {name: pull({**zeros, name: jnp.ones_like(values[name])})[0] for name in values}


def balance(
    gradients: Mapping[str, PyTree[Float[Array, "B *S"]]],
    weights: Mapping[str, float | Array],
    norms: Mapping[str, Float[Array, "2"]],
    decay: float,
) -> tuple[PyTree[Float[Array, "B *S"]], dict[str, Float[Array, "2"]]]:
    """One gradient in which each loss has its weight's share of a norm of 1 (EnCodec, arXiv 2210.13438, section 3.4).

    Args:
      gradients: of each loss with respect to the outputs; the norm is per item, averaged over the batch.
      weights: relative shares.
      norms: from `initial_norms` or the call before.
      decay: of the averaged norms.
    """
    norms = dict(norms)
    whole = sum(weights[name] for name in gradients)
    shares = {}
    for name, gradient in gradients.items():
        norm = jnp.mean(jnp.sqrt(sum(_by_row(jnp.square(leaf)).sum(1) for leaf in jax.tree.leaves(gradient))))
        norms[name] = decay * norms[name] + (1 - decay) * jnp.stack([norm, jnp.ones(())])
        average = norms[name][0] / norms[name][1]
        shares[name] = weights[name] / whole / jnp.maximum(average, 1e-12)
    scaled = [jax.tree.map(lambda leaf, s=shares[name]: s * leaf, gradient) for name, gradient in gradients.items()]
    return jax.tree.map(lambda *leaves: sum(leaves), *scaled), norms


def _output_losses(config, weights, heard, discriminator) -> dict[str, Array]:
    values = reconstruction_losses(config, heard)
    if "adversarial" in weights or "feature" in weights:
        hinge = config.adversary == "hinge"
        wav, estimate, weight_R = _rows(heard)
        fake: Judgement = discriminator(estimate)
        if "adversarial" in weights:
            how = partial(hinge_generator, rectify=config.rectify) if hinge else least_squares_generator
            values["adversarial"] = how(fake.logits, weight_R=weight_R)
        if "feature" in weights:
            values["feature"] = feature_matching(discriminator(wav).features, fake.features, hinge, weight_R)
    return values


def _rows(heard: Sequence[Heard]) -> tuple[Float[Array, "R L C"], Float[Array, "R L C"], Float[Array, "R"] | None]:
    """Targets and estimates of all resolutions as rows of one batch, and the share of each row; None for equal ones."""
    if len(heard) == 1 and heard[0].weight == 1:
        return heard[0].target_BLC, heard[0].estimate_BLC, None
    # the items outside, where a mesh splits them
    wav, estimate = (
        jnp.stack(waves, axis=1).reshape(-1, *waves[0].shape[1:])
        for waves in ([one.target_BLC for one in heard], [one.estimate_BLC for one in heard])
    )
    batch = len(heard[0].target_BLC)
    return wav, estimate, jnp.tile(jnp.asarray([one.weight / batch for one in heard]), batch)


def _by_row(x: Float[Array, "R *S"]) -> Float[Array, "R n"]:
    return x.reshape(len(x), -1)


def _over_rows(x: Float[Array, "R *S"], weight_R: Float[Array, "R"] | None) -> Float[Array, ""]:
    """The mean, or the sum of the means of the rows by their weights."""
    return jnp.mean(x) if weight_R is None else jnp.sum(weight_R * jnp.mean(_by_row(x), axis=1))


def _mean(terms) -> Float[Array, ""]:
    terms = list(terms)
    return sum(terms) / len(terms)
