"""What a sweep will cost, and whether every run of it can start: known before any does."""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from hiermusic import children
from hiermusic.errors import UserError
from hiermusic.parallel.chips import Chip
from hiermusic.sweep.runs import Run
from hiermusic.systems import workdir as workdirs
from hiermusic.train import checkpoint, loop

SAMPLED = 8  # batches, and rows of each, that are looked at for padding


@dataclass(frozen=True)
class Estimate:
    """A run before it is paid for.

    Args:
      name: of the run.
      steps: its length, in updates.
      done: updates its newest checkpoint has.
      parameters: of the model, discriminators and optimisers not counted.
      tokens: codes that all its batches hold; padding, where the data are at hand to tell, counts in none of these.
      seconds: of audio in them.
      flops: of the model over the whole run (`Work.flops`, the mean over the run's tasks).
    """

    name: str
    steps: int
    done: int
    parameters: int
    tokens: float
    seconds: float
    flops: float

    @property
    def left(self) -> int:
        """Updates it still has to make."""
        return max(self.steps - self.done, 0)


@dataclass(frozen=True)
class Budget:
    """What hours are predicted for: so many chips, at an assumed share of their peak."""

    chip: Chip
    chips: int
    mfu: float

    def hours(self, flops: float) -> float:
        return flops / (self.chip.peak_flops * self.chips * self.mfu) / 3600


def estimate(runs: Sequence[Run], here: bool) -> list[Estimate]:
    """Looks at every run, in a process of its own: afterwards the devices are free for the first run.

    Args:
      runs: of one sweep.
      here: they will train on this machine's devices, so mesh, batch and data are checked as well.
    Raises:
      UserError: the first run that could not start, and why.
    """
    alone = {"mp_context": get_context("spawn"), "initializer": children.end_with, "initargs": (os.getpid(),)}
    with ProcessPoolExecutor(1, **alone) as pool:
        return pool.submit(_estimate_all, list(runs), here).result()


def _estimate_all(runs: Sequence[Run], here: bool) -> list[Estimate]:
    if not here:
        jax.config.update("jax_platforms", "cpu")
    return [_estimate(run, here) for run in runs]


def _estimate(run: Run, here: bool) -> Estimate:
    try:
        config = workdirs.resolved(run.load())
        stage = workdirs.stage(config)
        checkpoint.check(run.workdir, stage.config.fields, stage.config.places)
        if here and not workdirs.makes_tokens(config):  # which would turn its data into records first
            workdirs.open_data(stage, run.workdir)
        if here:
            loop.check(stage)
        options = stage.config.loop
        model = nnx.merge(*loop.abstract_state(stage, options.seed)).model
        works = [stage.work(task) for task, _ in stage.examples()]
        codes, positions = _held(config, here)
    except UserError as error:
        raise UserError(f"run {run.name}: {error}") from error
    share = options.steps / len(works)
    return Estimate(
        run.name,
        options.steps,
        checkpoint.latest_step(run.workdir) or 0,
        sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))),
        share * codes * sum(work.tokens for work in works),
        share * codes * sum(work.seconds for work in works),
        share * positions * sum(work.flops for work in works),
    )


def _held(config: ConfigDict, here: bool) -> tuple[float, float]:
    """The shares of a run's batches that are no padding, as `Stage.held` gives them, of a few drawn alike for all runs:
    those that differ in their seed or batch alone are to cost the same. 1 where the data are not at hand, as they must
    be to train here."""
    config = config.copy_and_resolve_references()
    config.train.seed, config.train.batch_size = 0, SAMPLED
    stage = workdirs.stage(config)
    if not any("valid" in shapes for _, shapes in stage.examples()):
        return 1.0, 1.0
    try:
        data = stage.train_batches(range(SAMPLED))
    except UserError:
        if here:
            raise
        return 1.0, 1.0
    shares = [stage.held(data[index][1]) for index in range(SAMPLED)]
    return tuple(float(mean) for mean in np.mean(shares, axis=0))


def lines(estimates: Sequence[Estimate], budget: Budget) -> list[str]:
    """The runs with what they take, and the sum, as a table in words."""
    unit = f"{budget.chip.name} hours"
    if budget.chips > 1:
        unit = f"hours on {budget.chips} {budget.chip.name}"
    rows = [("run", "steps", "parameters", "tokens", "audio hours", "FLOPs", unit, "state")]
    for each in estimates:
        state = "finished" if not each.left else f"at step {each.done}" if each.done else "new"
        rows.append((each.name, f"{each.steps:,}", short(each.parameters), *_amounts([each], budget), state))
    rows.append((f"{len(estimates)} runs", "", "", *_amounts(estimates, budget), ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = [
        "  ".join(
            cell.ljust(width) if column in (0, 7) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    peak = f"{budget.chip.name}'s {budget.chip.peak_flops / 1e12:g} TFLOP/s"
    return [*table, f"hours are a prediction: the model's FLOPs at an assumed {budget.mfu:.0%} of {peak}"]


def _amounts(estimates: Sequence[Estimate], budget: Budget) -> tuple[str, ...]:
    tokens, seconds, flops = (sum(getattr(e, name) for e in estimates) for name in ("tokens", "seconds", "flops"))
    return short(tokens), f"{seconds / 3600:,.3g}", f"{flops:.3g}", f"{budget.hours(flops):,.3g}"


def short(number: float) -> str:
    """A count in three digits and a letter."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g}"
