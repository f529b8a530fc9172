"""Starts the runs of a sweep: here, one after another, or through a launcher's command."""

import shlex
import subprocess
import time
from collections.abc import Sequence

from hiermusic import children
from hiermusic.errors import UserError
from hiermusic.sweep.runs import Run


def here(run: Run, progress: bool) -> tuple[bool, float]:
    """Trains one run in a process of its own.

    Args:
      run: to train, or to go on with.
      progress: shows its progress bar.
    Returns:
      Whether it ended well, and the seconds it took.
    Raises:
      KeyboardInterrupt: a signal to this process or to the run ended it; the run has saved.
    """
    begin = time.monotonic()
    status, _ = children.run([*run.arguments(), *([] if progress else ["--noprogress"])])
    return status == 0, time.monotonic() - begin


def commands(launcher: str, runs: Sequence[Run]) -> list[list[str]]:
    """What starts each run elsewhere: the launcher, `--`, and what follows `hiermusic`.

    Args:
      launcher: "print", or a command in which {name} and {number} stand for a run's.
      runs: of the sweep.
    Raises:
      UserError: a launcher that cannot be read.
    """
    if launcher == "print":
        return [["hiermusic", *run.arguments()] for run in runs]
    try:
        words = shlex.split(launcher)
    except ValueError as error:
        raise UserError(f"--launcher={launcher}: {error}") from error
    if not words:
        raise UserError("--launcher is empty: give local, print or a command such as 'launch/slurm.sbatch --nodes=4'")
    return [
        [*(word.replace("{name}", run.name).replace("{number}", str(number)) for word in words), "--", *run.arguments()]
        for number, run in enumerate(runs, 1)
    ]


def submit(command: Sequence[str]) -> bool:
    """Runs a launcher's command, its words on standard error; whether it ended well.

    Raises:
      UserError: there is no such command.
    """
    try:
        return subprocess.run(command, stdout=2).returncode == 0
    except OSError as error:
        raise UserError(f"--launcher: {command[0]} cannot be run: {error.strerror}") from error
