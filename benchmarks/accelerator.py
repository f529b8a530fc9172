"""How fast training and generation are on an accelerator, beside what the hardware allows: one command, eight minutes.

    python benchmarks/accelerator.py --out=out/accelerator.jsonl
    python benchmarks/accelerator.py --table=out/accelerator.jsonl

Every result is one JSON object, printed and appended to `--out` as soon as it is there; sections come in order of worth
and each runs in a process of its own, so that one that fails or hangs loses nothing but itself:

* card: matrix peak in bfloat16, memory bandwidth;
* parity: logits, losses and gradients of the `tiny` models on this device against the CPU;
* backbone, superres: a training step at `paper` width, as many layers as fit, and whether its attention is fused;
* tokens: a decoding step of the backbone at batch 1, 4, 16 and 32;
* song: the layer-wise passes and the codec's decoding of four minutes, and with `tokens` the whole song;
* scales: next-scale against next-token prediction at d16, one guided second at a time, decoding included;
* codec: a training step of the codec, float32 and bfloat16.

Weights and data are random, which no time depends on. Floating-point operations: two for a multiplication and its
addition, forward and backward three times the forward pass, nothing that is recomputed counted twice, and of attention
only the pairs that see each other, so that a causal row counts half of its square. `floor` is the least time that the
operations (at the peak) or the bytes (at the bandwidth) take, by the maker's data sheet where it is known, else as
measured. `--preset=tiny` runs all of it on a CPU in less than a minute: with fewer layers, levels and strides than
where `tiny` is trained, compiled quickly rather than well, and in two processes side by side, so that its times say
nothing. Where there is no GPU, the programs whose attention is to be fused are also lowered for one, at the size of
`paper`.

Ends with status 1 if a record says `error`, as it does where attention is not fused.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any

import accelerator_sections
import accelerator_table
from accelerator_tools import Bench, Record, line

# seconds: below the first a section is not begun, after the second it is ended
SECTIONS = {
    "card": (10, 60),
    "parity": (20, 90),
    "backbone": (30, 110),
    "superres": (30, 110),
    "tokens": (30, 110),
    "song": (30, 120),
    "scales": (45, 180),
    "codec": (40, 180),
}
# at `tiny`, after the card: what each of two processes does, as long as the other; `song` comes after `tokens`
SIDES = (("backbone", "superres", "codec"), ("parity", "tokens", "song", "scales"))


def read(path: Path) -> list[Record]:
    return [json.loads(text) for text in path.read_text().splitlines() if text.strip()] if path.exists() else []


def say(path: Path, section: str, record: Record) -> None:
    text = json.dumps({"section": section, **{k: short(v) for k, v in record.items()}})
    print(text, flush=True)
    with path.open("a") as file:
        file.write(text + "\n")


def short(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: short(one) for name, one in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def perform(name: str, path: Path, preset: str, seconds: float) -> None:
    """Runs a section in this process; whatever it raises becomes a record."""
    import jax

    begin, worked = time.monotonic(), time.process_time()
    bench = Bench(preset, begin + seconds, read(path))
    try:
        if preset != "tiny" and jax.default_backend() == "cpu":
            raise RuntimeError("jax sees no accelerator here: install its build for one, or try --preset=tiny")
        for record in getattr(accelerator_sections, name)(bench):
            say(path, name, record)
            bench.known.append({"section": name, **record})
            if bench.left() < 0:
                say(path, name, {"skipped": "no time left for what may be missing here"})
                break
    except Exception as error:  # the sections after it have nothing to do with it
        say(path, name, {"error": line(error)})
        traceback.print_exc()
    say(path, name, {"what": "done", "took": time.monotonic() - begin, "cpu": time.process_time() - worked})


def started(name: str, path: Path, preset: str) -> subprocess.Popen:
    """A process that imports what a section needs and then waits to be told to begin, and for how long."""
    command = [sys.executable, __file__, f"--out={path}", f"--preset={preset}", f"--section={name}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, text=True)


def conduct(names: list[str], path: Path, preset: str, minutes: float, together: bool) -> None:
    """All sections, one after another; those that there is no time for are said to be left out."""
    end = time.monotonic() + 60 * minutes
    following = None
    for index, name in enumerate(names):
        least, most = (0, math.inf) if preset == "tiny" else SECTIONS[name]
        seconds = min(most, end - time.monotonic())
        process, following = following, None
        if seconds <= least:
            say(path, name, {"skipped": f"{max(seconds, 0):.0f} s left, {least} needed"})
            if process:
                process.kill()
                process.wait()
            continue
        if together:
            perform(name, path, preset, seconds)
            continue
        process = process or started(name, path, preset)
        if index + 1 < len(names):
            following = started(names[index + 1], path, preset)
        try:
            process.communicate(f"{seconds}\n", timeout=seconds)
            if process.returncode:
                say(path, name, {"error": f"the process ended with {process.returncode}"})
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            why = "skipped" if seconds < most else "error"  # no time left for it, or something hangs
            say(path, name, {why: f"ended after {seconds:.0f} s"})


def beside(names: list[str], path: Path, minutes: float) -> None:
    """The sections of `tiny` in two processes at a time."""
    shares = [[name for name in names if name in side] for side in SIDES]
    command = [sys.executable, __file__, f"--out={path}", "--preset=tiny", "--together", f"--minutes={minutes}"]
    running = {subprocess.Popen([*command, f"--only={','.join(share)}"]): share for share in shares if share}
    for process, share in running.items():
        if process.wait() not in (0, 1):  # with 1 it has said what went wrong
            say(path, share[-1], {"error": f"the process ended with {process.returncode}"})


def section(name: str, path: Path, preset: str) -> None:
    """A process that `started` began."""
    import jax  # noqa: F401
    import optax  # noqa: F401
    from flax import nnx  # noqa: F401

    from hiermusic.systems.khala import songs, stages  # noqa: F401
    from hiermusic.train import loop  # noqa: F401

    told = sys.stdin.readline()
    if told:
        perform(name, path, preset, float(told) - 2)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("accelerator.jsonl"), help="JSON lines are appended to it")
    parser.add_argument("--preset", choices=("paper", "tiny"), default="paper", help="tiny: all of it on a CPU")
    parser.add_argument("--only", default="", help=f"sections, by comma: {', '.join(SECTIONS)}")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which no section is begun or goes on")
    parser.add_argument("--together", action="store_true", help="all sections in this process")
    parser.add_argument("--cache", type=Path, help="keep compiled programs there; a second run then compiles nothing")
    parser.add_argument("--table", type=Path, help="print what a run wrote as Markdown, and do nothing else")
    parser.add_argument("--section", choices=tuple(SECTIONS), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.table:
        return accelerator_table.show(read(given.table))
    names = [name for name in given.only.split(",") if name] or list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        parser.error(f"no section {unknown[0]}: choose from {', '.join(SECTIONS)}")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if given.cache:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(given.cache.absolute())
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    path = given.out.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    if given.section:
        return section(given.section, path, given.preset)
    if given.preset == "tiny":
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
        # emitters whose code is better, and takes twice as long to make; a later jaxlib has no others and no flag
        if version("jaxlib").startswith("0.10."):
            os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {os.environ.get('XLA_FLAGS', '')}".strip()
    before = len(read(path))
    if given.preset == "tiny" and not given.together:
        first = [name for name in names if name == "card"]  # against whose figures the others are held
        conduct(first, path, given.preset, given.minutes, together=True)
        beside([name for name in names if name not in first], path, given.minutes)
    else:
        conduct(names, path, given.preset, given.minutes, given.together)
    if any("error" in record for record in read(path)[before:]):
        sys.exit(1)


if __name__ == "__main__":
    main()
