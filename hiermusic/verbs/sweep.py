"""The verb that makes many runs of one configuration."""

import shlex
import sys
from contextlib import nullcontext

from absl import flags
from ml_collections import config_flags

from hiermusic.console import say
from hiermusic.errors import UserError
from hiermusic.presets import locate
from hiermusic.verbs.flags import (
    Values,
    Verb,
    answer,
    boolean,
    config,
    integer,
    need,
    number,
    positional,
    string,
)


class _SweepFlag(flags.Flag):
    """--sweep=FILE.py, which also gives --config the file's own configuration where the command line has none."""

    def __init__(self, values: Values):
        self._values = values
        super().__init__(
            flags.ArgumentParser(), None, "sweep", None, "FILE.py with get_hyper(hyper) and CONFIG; before --config.a.b"
        )

    def parse(self, argument: str) -> None:
        super().parse(argument)
        if not any(word.split("=")[0] == "--config" for word in sys.argv):
            from hiermusic.sweep import runs

            own = getattr(runs.read(argument), "CONFIG", None)
            if own is None:
                raise UserError(f"{argument} names no configuration: give it a CONFIG, or give --config=FILE.py:preset")
            if not locate(own.split(":")[0]).is_file():
                raise UserError(f"{argument} sweeps {own}, which is not here: give --config=FILE.py:preset")
            self._values["config"].parse(own)


def _define(values: Values) -> None:
    flags.DEFINE_flag(_SweepFlag(values), values)
    config(values)
    string(values, "workdir", "folder for the runs and their results; run again to go on")
    boolean(values, "list", "list the runs and what they will cost, start nothing")
    boolean(values, "results", "draw the table and the plot of what has run, start nothing")
    string(
        values,
        "launcher",
        "local (one run after another), print (a command a run), or a command that starts a run, with {name} and "
        "{number}: it gets -- and what follows hiermusic",
        "local",
    )
    string(values, "chip", "what the predicted hours are of", "v5e")
    integer(values, "chips", "how many of them", 1, lower=1)
    number(values, "mfu", "share of the chip's peak that is assumed", 0.4, lower=0.001, upper=1.0)
    boolean(values, "progress", "show progress bars", True)
    boolean(values, "json", "print one JSON object")


def _sweep(values: Values, given: list[str]) -> None:
    positional(given)
    need(values, "sweep", "workdir")
    from hiermusic.parallel.chips import CHIPS
    from hiermusic.sweep import launch, runs
    from hiermusic.train.lock import owned

    if values.chip not in CHIPS:
        raise UserError(f"--chip={values.chip}: there are {', '.join(CHIPS)}")
    common = config_flags.get_override_values(values["config"])
    found = runs.runs_of(values.sweep, config_flags.get_config_filename(values["config"]), common, values.workdir)
    here = values.launcher == "local"
    starts = not (values.list or values.results)
    commands = [] if here else launch.commands(values.launcher, found)
    with owned(values.workdir) if here and starts else nullcontext():
        _act(values, found, commands)


def _act(values: Values, found: list, commands: list[list[str]]) -> None:
    """Does with the runs what the flags ask for; `commands` launches them where that is not done here."""
    from hiermusic.parallel.chips import CHIPS
    from hiermusic.sweep import plan

    here = values.launcher == "local"
    starts = not (values.list or values.results)
    estimates = plan.estimate(found, here and starts)
    budget = plan.Budget(CHIPS[values.chip], values.chips, values.mfu)
    if values.list:
        rows = [vars(each) | {"hours": budget.hours(each.flops)} for each in estimates]
        assumed = {"chip": values.chip, "chips": values.chips, "mfu": values.mfu}
        answer(values, {"runs": rows, **assumed}, plan.lines(estimates, budget))
        return
    if starts:
        say("\n".join(plan.lines(estimates, budget)))
    if here or not starts:
        failed = _train(values, found, estimates, starts)
    else:
        waiting = [(run, command) for run, command, each in zip(found, commands, estimates, strict=True) if each.left]
        failed = _launch(values, waiting)
    if failed:
        raise UserError(f"{len(failed)} of {len(found)} runs failed: {', '.join(failed)}; their own lines stand above")


def _train(values: Values, found: list, estimates: list, starts: bool) -> list[str]:
    """Trains what is left of each run, unless only results are wanted; draws them, and returns who failed."""
    from hiermusic.sweep import launch, results, runs

    scaling = getattr(runs.read(values.sweep), "SCALING", len({each.parameters for each in estimates}) > 1)
    wall = results.read_wall(values.workdir)
    failed = []
    for count, (run, each) in enumerate(zip(found, estimates, strict=True), 1):
        if starts and each.left:
            say(f"[{count}/{len(found)}] {run.name}")
            well, seconds = launch.here(run, values.progress)
            wall[run.name] = wall.get(run.name, 0.0) + seconds
            failed += [] if well else [run.name]
            results.write(values.workdir, found, results.rows_of(found, estimates, wall, failed), scaling)
    rows = results.rows_of(found, estimates, wall, failed)
    summary, table = results.write(values.workdir, found, rows, scaling)
    answer(values, summary, [*table, f"{values.workdir}/results.md"])
    return failed


def _launch(values: Values, waiting: list) -> list[str]:
    """Prints or starts the commands of the runs that are not finished; returns whose failed."""
    from hiermusic.sweep import launch

    if values.launcher == "print":
        lines = [shlex.join(command) for _, command in waiting]
        answer(values, {"commands": lines}, lines or ["# every run is finished"])
        return []
    failed = [run.name for run, command in waiting if not launch.submit(command)]
    started = [run.name for run, _ in waiting if run.name not in failed]
    words = f"started {len(started)} of {len(waiting)} unfinished runs"
    answer(values, {"started": started, "failed": failed}, [words])
    return failed


VERBS = {
    "sweep": Verb(
        "many runs of one configuration: listed, costed, run or launched, and compared",
        "hiermusic sweep --sweep=configs/sweeps/learning_rate.py --workdir=out/sweep --config.data.path=out/tokens",
        _define,
        _sweep,
    ),
}
