"""Contenders beside each other: each a process of its own, all begun by one, taking turns.

A contender calls `tick()` whenever a piece of work is done. The first piece is what it needs to begin (loading,
compiling, a prompt); after it every contender waits, so that only one works at a time, and whatever else the machine
does falls on all alike. All are held to the same cores.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tqdm import tqdm

_since = [0.0, 0.0]


class Times(NamedTuple):
    """What one contender took: seconds until the first piece, CPU and wall seconds of each one after, peak bytes."""

    first: float
    cpu: list[float]
    wall: list[float]
    peak: int


def tick() -> None:
    """In a contender: tells what the piece that ends here took, and waits for its next turn."""
    now = (time.process_time(), time.perf_counter())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"cpu": now[0] - _since[0], "wall": now[1] - _since[1], "peak": peak}), flush=True)
    if sys.stdin.readline() != "go\n":
        os._exit(0)  # whatever is still at work
    _since[:] = time.process_time(), time.perf_counter()


def contend(run: Callable[[], None]) -> None:
    """In a contender: calls `run`, which ticks until it is told that this is enough."""
    _since[1] = time.perf_counter()
    run()
    raise SystemExit("more pieces were asked for than there are")


def compare(
    script: str, cases: Mapping[str, Any], repeats: int, cores: str, every: Mapping[str, int] | None = None
) -> dict[str, Times]:
    """Runs contenders in turns.

    Args:
      script: the file, called with `--contender NAME JSON`, in which a contender then calls `contend`.
      cases: what each is told, by its name.
      repeats: pieces of each that are timed.
      cores: the numbers of the machine's cores that all of them share, by commas.
      every: contenders that take but one turn of so many, the first, as they are slow.
    """
    held = {int(core) for core in cores.split(",")}
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(len(held)))
    children = {}
    try:
        for name, case in cases.items():
            children[name] = subprocess.Popen(
                [sys.executable, script, "--contender", name, json.dumps(case)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
                preexec_fn=lambda: os.sched_setaffinity(0, held),
            )
        told = {}
        for name, child in children.items():
            told[name] = [_piece(name, child)]
            _go(child)  # one more, not counted, so that what is warmed by use is warm
            _piece(name, child)
        for turn in tqdm(range(repeats), unit="turn"):
            for name, child in children.items():
                if turn % (every or {}).get(name, 1):
                    continue
                _go(child)
                told[name].append(_piece(name, child))
    finally:
        for child in children.values():
            child.stdin.close()
            child.wait()
    return {
        name: Times(first["wall"], [p["cpu"] for p in pieces], [p["wall"] for p in pieces], pieces[-1]["peak"])
        for name, (first, *pieces) in told.items()
    }


def _go(child: subprocess.Popen) -> None:
    child.stdin.write("go\n")
    child.stdin.flush()


def _piece(name: str, child: subprocess.Popen) -> dict[str, float]:
    line = child.stdout.readline()
    if not line:
        raise SystemExit(f"{name} ended: exit status {child.wait()}")
    return json.loads(line)


def row(title: str, times: Times, first: Times, pieces: float, unit: float = 1e3) -> str:
    """A line of the table: medians with lowest and highest, and the median of the ratios, turn by turn, to `first`."""
    cpu, wall = ([value / pieces * unit for value in values] for values in (times.cpu, times.wall))
    ratio = statistics.median(a / b for a, b in zip(times.cpu, first.cpu, strict=True))
    shown = " | ".join(f"{statistics.median(v):.3g} ({min(v):.3g}-{max(v):.3g})" for v in (cpu, wall))
    return f"| {title} | {shown} | {ratio:.2f} | {times.first:.1f} | {times.peak / 2**30:.2f} |"
