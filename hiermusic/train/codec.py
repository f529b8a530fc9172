"""Trains codecs: one step updates the codec and the discriminator that judges it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.experimental import multihost_utils
from jaxtyping import Array, Float

from hiermusic.audio.bands import low_passed
from hiermusic.audio.measure import batch_si_sdr
from hiermusic.codec.codec import Codec, CodecOutput
from hiermusic.codec.objective import (
    Heard,
    ObjectiveConfig,
    discriminator_objective,
    generator_objective,
    initial_norms,
    reconstruction_losses,
    weighed,
)
from hiermusic.data.pipeline import NoTracks
from hiermusic.errors import UserError
from hiermusic.nn import param
from hiermusic.parallel.counting import forward_flops
from hiermusic.train.log import Log
from hiermusic.train.optimiser import average, begin_average
from hiermusic.train.stage import Batch, Metrics, RunConfig, Work

if TYPE_CHECKING:
    import grain

SHOWN = 2  # held-out crops in a showcase


@dataclass(frozen=True)
class PhasesConfig:
    """When a codec's training does what; fields of `config.train`.

    Args:
      quantise_start: steps before it train the trunk as an autoencoder.
      adversarial_start: the first step with a discriminator.
      decoder_start: the first step in which nothing but what decoding alone reads is trained: what encodes, and every
        code, stays as it is. None where all is trained to the end.
      discriminator_updates: (n, m): the discriminator is updated in the last n of every m steps.
    Raises:
      UserError: a number out of its range.
    """

    quantise_start: int = 0
    adversarial_start: int = 0
    decoder_start: int | None = None
    discriminator_updates: tuple[int, int] = (1, 1)

    def __post_init__(self):
        for name in ("quantise_start", "adversarial_start", "decoder_start"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"train.{name} is {getattr(self, name)}; it must be at least 0")
        start, codes = self.decoder_start, self.quantise_start
        if start is not None and start <= codes and (start or codes):
            raise UserError(
                f"train.decoder_start={start} is not behind train.quantise_start={codes}: the decoder is to learn from "
                "codes, and these have to be learnt first"
            )
        updates = self.discriminator_updates
        if len(updates) != 2 or not 0 < updates[0] <= updates[1]:
            raise UserError(
                f"train.discriminator_updates is {updates}: give (n, m) with 0 < n <= m, for updates in the last n of "
                "every m steps"
            )


@dataclass(frozen=True)
class Phase:
    """What a step does besides reconstruction, a static fact about its index."""

    quantise: bool
    adversarial: bool
    discriminate: bool
    decoder: bool = False


class CodecState(nnx.Module):
    """A codec, its running average, the balancer's norms, and the discriminator; each learner with its optimiser."""

    def __init__(self, stage: "CodecStage", rngs: nnx.Rngs):
        self.model = stage.config.tuning.apply(stage.make_codec(rngs), rngs)
        self.optimiser = nnx.Optimizer(self.model, stage.config.transform(self.model), wrt=nnx.Param)
        self.norms = nnx.Dict({name: nnx.Variable(norm) for name, norm in initial_norms(stage.objective).items()})
        if stage.ema_decay:
            self.ema = nnx.clone(self.model)
        if stage.adversarial:
            self.discriminator = stage.make_discriminator(rngs)
            transform = stage.judging.transform(self.discriminator, stage.config.loop.steps)
            self.discriminator_optimiser = nnx.Optimizer(self.discriminator, transform, wrt=nnx.Param)


class CodecStage:
    """Trains a codec against a discriminator; see `stage.Stage`.

    A codec of several resolutions is held to each of them: its first levels to as much of the band as they are to
    rebuild, all levels to the original.

    `loss` is the weighted sum of the reconstruction losses and the commitment alone, so that it compares across phases.

    Args:
      config: of the run; codec and discriminator have an optimiser of it each.
      phases: when what is done.
      make_codec: rngs -> codec.
      make_discriminator: rngs -> discriminator; not called when neither adversarial nor feature loss has a weight.
      objective: the losses' weights.
      crop: (L, C) of a training crop.
      discriminator_clip_norm: global norm that the discriminator's gradient is clipped to, 0 = no clipping; as the
        codec's when left out.
      train: rows of a batch -> an endless data set of those rows, float32 [B, L, C] in [-1, 1].
      valid: the same for a finite one; raises NoTracks where no track is held out.
      prepare: called with the fresh state, to load pretrained weights into `.model`.
      open: called with the workdir, to find and check the data before the first batch.
    Raises:
      UserError: settings that no codec can be trained with.
    """

    def __init__(
        self,
        config: RunConfig,
        phases: PhasesConfig,
        make_codec: Callable[[nnx.Rngs], Codec],
        make_discriminator: Callable[[nnx.Rngs], nnx.Module],
        objective: ObjectiveConfig,
        *,
        crop: tuple[int, int],
        discriminator_clip_norm: float | None = None,
        train: Callable[[Sequence[int]], "grain.MapDataset"],
        valid: Callable[[Sequence[int]], "grain.MapDataset"],
        prepare: Callable[[nnx.Module], None] = lambda module: None,
        open: Callable[[Path], None] = lambda workdir: None,
    ):
        self.make_codec = make_codec
        self.make_discriminator = make_discriminator
        self.objective = objective
        config.tuning.check_whole("a codec")
        self.config = config
        self.phases = phases
        self.trunk = None
        self.length = 0
        self._train = train
        self._valid = valid
        self._prepare = prepare
        self.open = open
        self.shape = (config.loop.batch_size, *crop)
        if (parts := config.loop.accumulate) > 1:
            raise UserError(
                f"train.accumulate is {parts}: a codec's balancer, discriminator and codebook statistics are functions "
                "of the whole batch, so it cannot be split; set train.accumulate=1 and use more devices or a smaller "
                "train.batch_size"
            )
        if not 0 <= (clip := discriminator_clip_norm or 0.0) < math.inf:
            raise UserError(f"train.discriminator_clip_norm is {clip}; it must be finite and not negative")
        self.judging = config.optimiser  # of the discriminator
        if discriminator_clip_norm is not None:
            self.judging = replace(self.judging, clip_norm=clip)
        self.ema_decay, self.rate = config.ema_decay, config.rate
        self.adversarial = objective.adversarial > 0 or objective.feature > 0

    def create(self, rngs: nnx.Rngs) -> CodecState:
        return CodecState(self, rngs)

    def prepare(self, module: CodecState) -> None:
        self._prepare(module)
        if self.ema_decay:
            begin_average(module.ema, module.model)

    def phase(self, index: int) -> Phase:
        """What step `index` does."""
        adversarial = self.adversarial and index >= self.phases.adversarial_start
        updates, cycle = self.phases.discriminator_updates
        discriminate = adversarial and index % cycle >= cycle - updates
        decoder = self.phases.decoder_start is not None and index >= self.phases.decoder_start
        return Phase(index >= self.phases.quantise_start, adversarial, discriminate, decoder)

    def train_batches(self, rows: Sequence[int]) -> "grain.MapDataset":
        return self._train(rows).map_with_index(lambda index, wav_BLC: (self.phase(index), {"wav": wav_BLC}))

    def valid_batches(self, rows: Sequence[int]) -> "grain.MapDataset | None":
        try:
            return self._valid(rows).map(lambda wav_BLC: {"wav": wav_BLC})
        except NoTracks:
            return None

    def check(self, mesh: jax.sharding.Mesh) -> None:
        if mesh.shape["context"] > 1 and mesh.shape["tensor"] > 1:
            raise UserError(
                "a codec's convolutions cannot be split over time and over channels at once (XLA computes them "
                "wrongly): set mesh.context=1 or mesh.tensor=1"
            )

    def examples(self) -> list[tuple[Phase, Mapping[str, jax.ShapeDtypeStruct]]]:
        """The phases of the run's last steps, and of the last in which all is trained: the only ones a long run spends
        its time in."""
        steps, cycle = self.config.loop.steps, self.phases.discriminator_updates[1]
        ends = {min(self.phases.decoder_start or steps, steps), steps}
        last = [index for end in sorted(ends) for index in range(max(end - cycle, 0), end)]
        batch = {"wav": jax.ShapeDtypeStruct(self.shape, jnp.float32)}
        return [(phase, batch) for phase in dict.fromkeys(map(self.phase, last))]

    def work(self, task: Phase) -> Work:
        """The codec forward and backward, or its decoder backward alone; the discriminator on both signals, back to the
        estimate once for each loss that the balancer looks at, and its own update."""
        wav = jax.ShapeDtypeStruct(self.shape, jnp.float32)
        codec = nnx.eval_shape(lambda: self.make_codec(nnx.Rngs(0)))
        flops = forward_flops(lambda codec, wav: codec.forward(wav, coarser=True), codec, wav)
        encoding = forward_flops(lambda codec, wav: codec.encode(wav), codec, wav) if task.decoder else 0
        flops += 2 * (flops - encoding)
        if task.adversarial:
            judge = nnx.eval_shape(lambda: self.make_discriminator(nnx.Rngs(0)))
            once = forward_flops(lambda judge, wav: judge(wav).logits, judge, wav) * len(codec.config.factors)
            flops += once * (2 + (2 if self.objective.balance else 1) + (6 if task.discriminate else 0))
        batch, samples, _ = self.shape
        seconds = Fraction(batch * samples, codec.sample_rate)
        return Work(flops=flops, tokens=int(seconds * codec.hierarchy.tokens_per_second), seconds=float(seconds))

    def held(self, batch: Batch) -> tuple[float, float]:
        share = float(np.mean([_sounding(wav_LC) for wav_LC in batch["wav"]]) / batch["wav"].shape[1])
        return share, share

    def step(self, module: CodecState, batch: Mapping[str, Array], task: Phase, key: Array) -> Metrics:
        wav_BLC = batch["wav"]
        norms = {name: norm[...] for name, norm in module.norms.items()}
        judge = module.discriminator if task.adversarial else None
        learning = nnx.Param
        if task.decoder:
            learning = nnx.All(nnx.Param, module.model.decodes)
            kept = jax.tree.map(jnp.asarray, nnx.state(module.model, nnx.Not(learning)))

        def loss(model):
            output = model.forward(wav_BLC, key=key, train=True, quantise=task.quantise, coarser=True)
            heard = self._heard(model, wav_BLC, output)
            rest = (output.commitment, judge, norms, module.optimiser.step[...])
            scalar, values, moved = generator_objective(self.objective, heard, *rest)
            return scalar, (output.stats, heard, values, moved)

        differentiate = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, learning), has_aux=True)
        (_, (stats, heard, values, moved)), gradients = differentiate(module.model)
        if task.decoder:
            nothing = jax.tree.map(jnp.zeros_like, nnx.state(module.model, nnx.Param))
            gradients = nnx.merge_state(nothing, gradients)
        squares = jnp.square(optax.tree.norm(gradients))
        metrics = {
            "loss": self._total(values),
            **values,
            "learning_rate": self.rate(module.optimiser.step[...]),
            **_health(stats),
        }
        if task.discriminate:

            def fooled(judge):
                return discriminator_objective(judge, heard, self.objective.adversary)

            metrics["discriminator"], against = nnx.value_and_grad(fooled)(judge)
            squares += jnp.square(optax.tree.norm(against))
            module.discriminator_optimiser.update(module.discriminator, against)
        metrics["grad_norm"] = jnp.sqrt(squares)
        module.optimiser.update(module.model, gradients)
        if task.decoder:
            nnx.update(module.model, kept)  # moments and decay move what has no gradient too, and codes are averages
        for name, norm in moved.items():
            param.put(module.norms[name], norm)
        if self.ema_decay:
            average(module.ema, module.model, self.ema_decay, module.optimiser.step[...])
        return metrics

    def evaluate(self, module: CodecState, batch: Mapping[str, Array], task: None, key: Array) -> Metrics:
        wav_BLC = batch["wav"]
        model = self._best(module)
        output = model.forward(wav_BLC, coarser=True)
        heard = self._heard(model, wav_BLC, output)
        values = reconstruction_losses(self.objective, heard)
        values["commitment"] = weighed(heard, output.commitment)
        sdr_J = [jnp.nanmean(batch_si_sdr(one.target_BLC, one.estimate_BLC)) for one in heard]
        values |= {"si_sdr": sdr_J[-1]} | ({"si_sdr_J": jnp.stack(sdr_J)} if sdr_J[1:] else {})
        return {"loss": self._total(values), **values, **_health(output.stats)}

    def _heard(self, model: Codec, wav_BLC: Float[Array, "B L C"], output: CodecOutput) -> list[Heard]:
        """What a codec made of waveforms beside what it was to make, of each resolution."""
        factors, made = model.config.factors, (*output.coarser, output.wav_BLC)
        weights = self.objective.level_weights if output.coarser else (1.0,)
        return [
            Heard(low_passed(wav_BLC, factor), estimate, model.sample_rate // factor, weight)
            for factor, estimate, weight in zip(factors, made, weights, strict=True)
        ]

    def showcase(self, module: CodecState, log: Log, step: int) -> None:
        """Logs some held-out crops and what the codec makes of them."""
        if self._shown is None:
            return
        model = self._best(module)
        wav_BLC = self._shown
        rebuilt_BLC = multihost_utils.process_allgather(_rebuild(*nnx.split(model), wav_BLC), tiled=True)
        for index, (original_LC, rebuilt_LC) in enumerate(zip(wav_BLC, rebuilt_BLC, strict=True)):
            log.audio(f"original-{index}", original_LC, model.sample_rate, step)
            log.audio(f"rebuilt-{index}", rebuilt_LC, model.sample_rate, step)

    @cached_property
    def _shown(self) -> Float[np.ndarray, "B L C"] | None:
        """The crops of every showcase; None where no track is held out."""
        data = self.valid_batches(range(min(SHOWN, self.shape[0])))
        return None if data is None else np.asarray(data[0]["wav"])

    def _best(self, module: CodecState) -> Codec:
        return module.ema if self.ema_decay else module.model

    def _total(self, values: Mapping[str, Array]) -> Float[Array, ""]:
        names = [name for name in ("waveform", "stft", "mel", "commitment") if name in values]
        return sum(getattr(self.objective, name) * values[name] for name in names)


def _sounding(wav_LC: Float[np.ndarray, "L C"]) -> int:
    """Samples of a crop before the zeros at its end, with which tracks that are shorter are filled up."""
    if wav_LC[-1].any():
        return len(wav_LC)
    return int(np.flatnonzero(wav_LC.any(axis=1))[-1:].sum()) + bool(wav_LC.any())


@jax.jit(static_argnums=0)
def _rebuild(graphdef: nnx.GraphDef, state: nnx.State, wav_BLC: Array) -> Float[Array, "B L C"]:
    return nnx.merge(graphdef, state).forward(wav_BLC).wav_BLC


def _health(stats: Mapping[str, Float[Array, "K"]]) -> Metrics:
    """How well the codebooks are used: of each level, and the mean over levels."""
    names = ("perplexity", "usage")
    means = {name: jnp.mean(stats[f"{name}_K"]) for name in names}
    return means | {f"{name}_K": stats[f"{name}_K"] for name in names}
