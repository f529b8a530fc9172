"""Kills sweeps and the making of records, or starts one training twice, at random moments, and looks at what is left.

    python benchmarks/kill_others.py --kinds=starts,sweep,data --trials=20

* `starts`: the same workdir is trained by two at once, started up to a second apart; then the one that trains is told
  to end. Good if the other ended with status 1 and one line, and metrics.jsonl holds every step once, in order, up to
  the one that was saved last.
* `sweep`: a sweep of two trainings is killed and started again. Good if no training outlives it, every step that was
  logged was saved, and once it comes to its end its records and results are those of a sweep that was left alone.
* `data`: records of 128 small files are made. Good if no file is empty, and once it comes to its end all files are,
  byte for byte, those of a command that was left alone.

Killed is who was started alone: its children have to see to themselves. In two of three trials by SIGKILL, else by
SIGTERM; in four of five within three seconds after the first thing was written, else anywhere. A command that came to
its end is begun anew in another folder. Trained is the small model of the tests, and processes are forks of this one,
which has imported everything: a trial takes a second of processor time. Exit status 1 if anything is wrong.
"""

import argparse
import atexit
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import soundfile
from kill_trials import logged, saves, show

from hiermusic import children, cli
from hiermusic.data import pipeline  # noqa: F401 (before the forks)
from hiermusic.sweep import plan, results  # noqa: F401
from hiermusic.systems import workdir as workdirs

TOY = Path(__file__).parents[1] / "tests" / "train" / "toy.py"
spec = importlib.util.spec_from_file_location("toy", TOY)
toy = sys.modules["toy"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)

WIDTH, STEPS = 16_384, 20
FORK = get_context("fork")
SECONDS = 600.0  # after which a process hangs
IN_USE = re.compile(r"hiermusic train: .* is in use by process \d+ on ")
CONFIG = f"""
import ml_collections
import toy

def get_config():
    config = toy.config(valid_every=10, checkpoint_every=2, steps={STEPS})
    return ml_collections.ConfigDict(config | {{"system": "toy", "init_from": "", "model": {{"width": {WIDTH}}}}})
"""
SWEEP = "CONFIG = {config!r}\n\n\ndef get_hyper(hyper):\n    return hyper.sweep('train.seed', [0, 1])\n"


class Process:
    """A `hiermusic` command in a fork of this process; `pids` gets the numbers of all that it starts in turn."""

    def __init__(self, arguments: Sequence[str], folder: Path):
        self.errors, self.pids = folder / f"errors-{time.monotonic_ns()}", folder / "pids"
        self.status: int | None = None
        self.pid = os.fork()
        if not self.pid:
            os.setsid()
            self._run(arguments, os.open(self.errors, os.O_WRONLY | os.O_CREAT))

    def _run(self, arguments: Sequence[str], errors: int) -> None:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        os.dup2(errors, 2)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)  # whatever stood there in the process it left
        children.subprocess = SimpleNamespace(Popen=self._fork, DEVNULL=None)
        # a fork as well, and not a thread: the next fork of a process with JAX's threads would hang
        plan.ProcessPoolExecutor = lambda count, **how: ProcessPoolExecutor(count, **how | {"mp_context": FORK})
        workdirs.resolved = lambda config, workdir: config
        workdirs.stage = lambda config: toy.ToyStage(config.to_dict(), pause=0.02)
        workdirs.open_data = lambda stage, workdir: None
        status = 0
        try:
            cli.main(list(arguments))
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
            status = 1
        threading._shutdown()
        atexit._run_exitfuncs()
        os._exit(status)

    def _fork(self, command: Sequence[str], env: dict[str, str], **_: object) -> SimpleNamespace:
        """What `children.run` starts."""
        pid = os.fork()
        if not pid:
            os.setpgid(0, 0)
            with self.pids.open("a") as file:
                file.write(f"{os.getpid()}\n")
            os.closerange(3, 1024)  # as they would be in a program of its own: the lock of the sweep is one of them
            os.environ.update(env)
            self._run(command[3:], 2)
        return SimpleNamespace(pid=pid)

    def poll(self) -> int | None:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def end(self) -> int | None:
        """Its exit status; None where it hangs, and is killed."""
        if not wait(lambda: self.poll() is not None):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        return self.status

    def lines(self) -> list[str]:
        return self.errors.read_text().strip().splitlines()

    def living(self) -> list[int]:
        """The processes that it started and that have not ended."""
        found = []
        for pid in self.pids.read_text().split() if self.pids.exists() else ():
            stat = Path(f"/proc/{pid}/stat")
            if stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
                found.append(int(pid))
        return found


def wait(condition: Callable[[], object], seconds: float = SECONDS) -> bool:
    """Whether something came about in time."""
    until = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < until:
        time.sleep(0.02)
    return bool(found)


def log_of(run: Path) -> list[str]:
    """What is wrong with the records of a run that has ended."""
    steps, whole = logged(run)
    wrong = ["metrics.jsonl has torn, missing or repeated steps"] * (steps != [*range(1, len(steps) + 1)] or not whole)
    return wrong + [f"{len(steps)} steps logged, {saves(run)[0]} saved"] * (len(steps) != saves(run)[0])


def starts(root: Path, trials: int, draw: random.Random) -> list[list[str]]:
    """One workdir, trained by two at once again and again; a row a trial."""
    run, rows = root / "run", []
    command = ["train", f"--config={config(root)}", f"--workdir={run}", "--noprogress", "--config.train.steps=100000"]
    for trial in range(1, trials + 1):
        before = saves(run)[0]
        both = [Process(command, root)]
        time.sleep(draw.uniform(0, 1))
        both.append(Process(command, root))
        wait(lambda both=both: any(process.poll() is not None for process in both))
        wait(lambda before=before: max(logged(run)[0], default=0) >= before + 5)
        for process in both:
            process.send(signal.SIGTERM)
        statuses, said = [process.end() for process in both], [process.lines() for process in both]
        wrong = log_of(run) if run.exists() else ["nothing was trained"]
        told = [lines for status, lines in zip(statuses, said, strict=True) if status == 1]
        if sorted(map(str, statuses)) != ["1", "130"] or len(told[0]) != 1 or not IN_USE.match(told[0][0]):
            wrong.append(f"ended with {statuses}: {said}")
        rows.append([str(trial), f"{before} to {saves(run)[0]}", "; ".join(wrong) or "ok"])
        print(" ".join(["starts", *rows[-1]]), file=sys.stderr, flush=True)
    return rows


def config(root: Path) -> Path:
    place = root / "small.py"
    place.write_text(CONFIG)
    return place


class Sweep:
    """Two small trainings, one after another."""

    def __init__(self, root: Path):
        self.file = root / "sweep.py"
        self.file.write_text(SWEEP.format(config=str(config(root))))

    def command(self, out: Path) -> list[str]:
        return ["sweep", f"--sweep={self.file}", f"--workdir={out}", "--noprogress"]

    def begun(self, out: Path) -> object:
        return [path.stat().st_size for path in sorted(out.glob("*/metrics.jsonl"))]

    def look(self, out: Path) -> list[str]:
        return [f"{path.parent.name}: {words}" for path in out.glob("*/config.json") for words in log_of(path.parent)]

    def same(self, out: Path, whole: Path) -> list[str]:
        wrong = ["the records differ"] * (self._trained(out) != self._trained(whole))
        rows = [json.loads((place / "results.json").read_text())["runs"] for place in (out, whole)]
        told = [[(row["run"], row["state"], row["step"], row["valid_loss"]) for row in each] for each in rows]
        return wrong + [f"the results differ: {told}"] * (told[0] != told[1] or len(told[0]) != 2)

    def _trained(self, out: Path) -> dict[str, list]:
        logs = {path.parent.name: map(json.loads, path.open()) for path in sorted(out.glob("*/metrics.jsonl"))}
        return {name: [(r["step"], r["loss"], r.get("valid/loss")) for r in records] for name, records in logs.items()}


class Data:
    """Four shards of records."""

    def __init__(self, root: Path):
        self.music, draw = root / "music", np.random.default_rng(0)
        self.music.mkdir()
        for index in range(128):
            soundfile.write(self.music / f"{index:03d}.wav", draw.uniform(-0.3, 0.3, (8000, 2)), 44100)

    def command(self, out: Path) -> list[str]:
        return ["data", f"--source={self.music}", f"--out={out}", "--sample_rate=22050", "--channels=1"]

    def begun(self, out: Path) -> object:
        return len(list(out.rglob("*")))

    def look(self, out: Path) -> list[str]:
        return [f"{path.name} is empty" for path in out.glob("*.arrayrecord") if not path.stat().st_size]

    def same(self, out: Path, whole: Path) -> list[str]:
        one, other = (
            {path.relative_to(place): path.read_bytes() for path in place.rglob("*") if path.is_file()}
            for place in (out, whole)
        )
        return [f"{name} differs" for name in one.keys() | other.keys() if one.get(name) != other.get(name)]


def again(kind: "Sweep | Data", root: Path, trials: int, draw: random.Random) -> list[list[str]]:
    """Kills a command so often, and lets it come to its end after the last; a row a trial."""
    whole, begin = root / "whole", time.monotonic()
    process = Process(kind.command(whole), root)
    if process.end() != 0:
        return [["0", "0", f"left alone it ends with {process.status}: {process.lines()}"]]
    span, finished, rows = time.monotonic() - begin, 0, []
    for trial in range(1, trials + 1):
        out = root / f"killed-{finished}"
        wrong = kill(kind, out, root, draw, span)
        done = (out / ("results.json" if isinstance(kind, Sweep) else "info.json")).exists() and not wrong
        if trial == trials or done:  # let alone, it finishes, or says that it has
            process = Process(kind.command(out), root)
            if process.end() == 0:
                wrong += kind.same(out, whole)
                finished += 1
            else:
                wrong.append(f"it does not come to its end but to {process.status}: {process.lines()[-1:]}")
        rows.append([str(trial), f"{finished} whole", "; ".join(wrong) or "ok"])
        print(" ".join([type(kind).__name__.lower(), *rows[-1]]), file=sys.stderr, flush=True)
    return rows


def kill(kind: "Sweep | Data", out: Path, root: Path, draw: random.Random, span: float) -> list[str]:
    """Starts a command and kills it at a random moment; what is wrong with what is left."""
    sent, first = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]), kind.begun(out)
    process = Process(kind.command(out), root)
    if draw.random() < 0.8:
        wait(lambda: process.poll() is not None or kind.begun(out) != first)
        span = 3.0
    wait(lambda: process.poll() is not None, draw.uniform(0, span))
    process.send(sent)
    wrong = []
    if process.end() not in (0, 130, -sent):
        wrong.append(f"it ended with {process.status}: {process.lines()[-1:]}")
    if any("Traceback" in line for line in process.lines()):
        wrong.append(f"a traceback: {process.lines()[-1]}")
    if not wait(lambda: not process.living()):
        wrong.append(f"processes {process.living()} outlive it")
    return wrong + kind.look(out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default="starts,sweep,data")
    parser.add_argument("--trials", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=None, help="of signals and moments; default: a new one")
    given = parser.parse_args(argv)
    warnings.filterwarnings("ignore", message=".*fork.*")
    seed = random.randrange(2**32) if given.seed is None else given.seed
    draw, bad = random.Random(seed), 0
    kinds = {"sweep": Sweep, "data": Data}
    for name in given.kinds.split(","):
        begin, root = time.monotonic(), Path(tempfile.mkdtemp(prefix=f"kill-{name}-"))
        try:
            if name == "starts":
                rows = starts(root, given.trials, draw)
            else:
                rows = again(kinds[name](root), root, given.trials, draw)
        finally:
            shutil.rmtree(root, ignore_errors=True)
        wrong = sum(row[-1] != "ok" for row in rows)
        bad += wrong
        show([["trial", "so far", "verdict"], *rows])
        seconds, verdict = time.monotonic() - begin, f"{wrong} WRONG" if wrong else "all good"
        print(f"{name}: {len(rows)} trials (seed {seed}) in {seconds:.0f} s: {verdict}\n", flush=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
