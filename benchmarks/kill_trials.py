"""Kills training again and again, at random moments, and looks at what is left.

    python benchmarks/kill_trials.py --trials=24

One workdir is trained by one process, another by two. Each trial starts or resumes a run and, a random time later,
sends SIGKILL or SIGTERM to one of its processes. Checkpoints are written every other step, so that nearly always one is
being written. A trial is good if

* every process ends within a minute: by the signal, with status 130 after a save, or with status 1 and one line;
* every checkpoint that was finished before still stands if it is the newest, and the newest restores;
* no more steps are lost than since the last save but one (which was finished when the last began); none after SIGTERM;
* metrics.jsonl holds every step once, in order, and at most its last line is torn.

At the end each run is completed and compared, bit for bit, with one that nobody killed. Exit status 1 if anything is
wrong. Other verbs, and two starts at once, are tried by `kill_others.py`.
"""

import argparse
import atexit
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from hiermusic.errors import UserError
from hiermusic.train.checkpoint import latest_step, load_weights

WORKER = Path(__file__).parents[1] / "tests" / "scale" / "worker.py"
EVERY = 2
WIDTH = 65536  # 8 MB of state: a save takes many steps
PAUSE = 0.02
ONE_LINE = "run the same command to go on$|waited 20 s"


def start(workdir: Path, processes: int, steps: int, pause: float = PAUSE) -> list[subprocess.Popen]:
    """The toy stage in training, on one device a process."""
    command = [sys.executable, str(WORKER), str(workdir), f"--steps={steps}", f"--every={EVERY}", f"--width={WIDTH}"]
    command.append(f"--pause={pause}")
    if processes > 1:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        command += [f"--coordinator=127.0.0.1:{port}", f"--processes={processes}", "--start_timeout=20"]
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    which = [[f"--process={index}"] if processes > 1 else [] for index in range(processes)]
    return [subprocess.Popen([*command, *own], env=environment, **streams) for own in which]


def end(running: list[subprocess.Popen], seconds: float = 60.0) -> list[tuple[int | None, str]]:
    """(exit status or None for a hang, standard error) of each."""
    ends = []
    deadline = time.monotonic() + seconds
    for process in running:
        try:
            _, errors = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
            ends.append((process.returncode, errors))
        except subprocess.TimeoutExpired:
            process.kill()
            ends.append((None, process.communicate()[1]))
    return ends


def logged(workdir: Path) -> tuple[list[int], bool]:
    """The steps in metrics.jsonl, and whether all lines but the last are whole."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    steps, torn = [], []
    for number, line in enumerate(lines):
        try:
            steps.append(json.loads(line)["step"])
        except ValueError:
            torn.append(number)
    return steps, torn in ([], [len(lines) - 1])


def changed(workdir: Path) -> int:
    """When metrics.jsonl was last written to."""
    path = workdir / "metrics.jsonl"
    return path.stat().st_mtime_ns if path.exists() else 0


def saves(workdir: Path) -> tuple[int, bool]:
    """The newest finished checkpoint (0 for none), and whether another is being written."""
    try:
        names = os.listdir(workdir / "checkpoints")
    except FileNotFoundError:
        return 0, False
    return max((int(name) for name in names if name.isdigit()), default=0), any("tmp" in name for name in names)


@dataclass
class Trial:
    """What was done, what was found, and what is wrong with it."""

    processes: int
    signal: str
    victim: int
    before: int
    reached: int
    latest: int
    writing: bool
    statuses: list
    wrong: list[str]

    def row(self) -> list[str]:
        lost = self.reached - self.latest
        cells = [self.processes, self.signal, self.victim, self.before, self.reached, self.latest, lost]
        return [*map(str, cells), "yes" if self.writing else "no", str(self.statuses), "; ".join(self.wrong) or "ok"]


HEAD = ["processes", "signal", "to", "from", "reached", "newest", "lost", "saving", "exit", "verdict"]


def trial(workdir: Path, processes: int, draw: random.Random) -> Trial:
    """One start and one kill."""
    before, _ = saves(workdir)
    old = changed(workdir)
    sent = draw.choice([signal.SIGKILL, signal.SIGTERM])
    running = start(workdir, processes, 10**6)
    atexit.register(lambda: [process.kill() for process in running])  # if these trials themselves are interrupted
    if draw.random() < 0.8:  # in training; otherwise anywhere, while it starts
        while all(p.poll() is None for p in running):
            # a run that goes on first drops what was logged after its checkpoint
            if changed(workdir) != old and max(logged(workdir)[0], default=0) > before:
                break
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 3))
    else:
        time.sleep(draw.uniform(0, 8))
    victim = draw.randrange(processes)
    finished, writing = saves(workdir)
    running[victim].send_signal(sent)
    ends = end(running)
    steps, whole = logged(workdir)
    latest, reached = saves(workdir)[0], max(steps, default=0)

    wrong = []
    for index, (status, errors) in enumerate(ends):
        saved, killed = status == 130, index == victim and status in (-sent, -signal.SIGTERM)
        told = status == 1 and len(errors.strip().splitlines()) == 1 and re.search(ONE_LINE, errors)
        if not (saved or killed or told):
            wrong.append(f"process {index} ended with {status}: {errors.strip()[-300:]}")
    if latest < finished:
        wrong.append(f"checkpoint {finished} is gone")
    if latest:
        try:
            weights = load_weights(workdir, prefer_ema=False)
            if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(weights)):
                wrong.append("weights are not finite")
        except UserError as error:
            wrong.append(str(error))
    if all(status == 130 for status, _ in ends):
        if latest != reached:
            wrong.append(f"saved step {latest} at the signal, not {reached}")
    elif reached - latest > 2 * EVERY:
        wrong.append(f"{reached - latest} steps lost")
    if steps != list(range(1, reached + 1)) or not whole:
        wrong.append("metrics.jsonl has torn, missing or repeated steps")
    return Trial(processes, sent.name, victim, before, reached, latest, writing, [status for status, _ in ends], wrong)


def compare(workdir: Path, whole: Path, processes: int) -> list[str]:
    """What differs between the run that was killed, now completed, and one that was left alone."""
    steps = saves(workdir)[0] + 10
    for place in (workdir, whole):
        ends = end(start(place, processes, steps, pause=0.0), 600)
        if any(status for status, _ in ends):
            return [f"{place.name} did not complete: {ends}"]
    wrong = []
    losses = [
        [(record["step"], record["loss"]) for record in map(json.loads, (place / "metrics.jsonl").open())]
        for place in (workdir, whole)
    ]
    if losses[0] != losses[1] or len(losses[0]) != steps:
        wrong.append("the losses differ")
    one, other = (load_weights(place, prefer_ema=False) for place in (workdir, whole))
    if latest_step(workdir) != steps or not all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other))):
        wrong.append("the weights differ")
    left = [path.name for path in (workdir / "checkpoints").iterdir() if not path.name.isdigit()]
    return wrong + [f"left over: {', '.join(left)}"] * bool(left)


def show(rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--seed", type=int, default=None, help="of signals, victims and moments; default: a new one")
    given = parser.parse_args(argv)
    seed = random.randrange(2**32) if given.seed is None else given.seed
    draw, begin = random.Random(seed), time.monotonic()
    root = Path(tempfile.mkdtemp(prefix="kill-trials-"))
    trials, ends = [], []
    try:
        for index in range(given.trials):
            processes = 1 + index % 2
            trials.append(trial(root / f"killed-{processes}", processes, draw))
            print(f"trial {index + 1} of {given.trials}: {' '.join(trials[-1].row())}", file=sys.stderr, flush=True)
        for processes in (1, 2)[: given.trials]:
            ends.append(compare(root / f"killed-{processes}", root / f"whole-{processes}", processes))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    show([["trial", *HEAD], *([str(number), *t.row()] for number, t in enumerate(trials, 1))])
    print()
    for processes, wrong in enumerate(ends, 1):
        same = "the same losses and weights, bit for bit, as a run left alone"
        print(f"{processes} process{'es' * (processes > 1)}, completed: {'; '.join(wrong) or same}")
    bad = sum(bool(t.wrong) for t in trials) + sum(map(bool, ends))
    saving = sum(t.writing for t in trials)
    print(
        f"{len(trials)} trials (seed {seed}), {saving} with a save in flight, in {time.monotonic() - begin:.0f} s: "
        f"{'all good' if not bad else f'{bad} WRONG'}"
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
