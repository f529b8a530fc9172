"""Next-scale prediction against next-token prediction: how long does one second of music take?

    python benchmarks/next_scale.py --depth=16

AAR draws the 455 tokens of a second in 16 passes; the same transformer over the 10 residual codebooks of the same trunk
draws 750 one by one (flatten), or in 84 passes (delay). All are made as `hiermusic generate` makes them, one song at a
time with classifier-free guidance, decoding included, in this one process; weights and codebooks are random, which no
time depends on. Columns:

* passes: of the transformer; in brackets those that run, where the engine works in whole chunks of steps;
* wall and CPU seconds: medians over the repeats, the latter summed over the threads of the process;
* real-time factor: seconds of music for a second of waiting, so that above 1 is faster than playing it;
* compile: how much longer each program took the first time (next to nothing with a persistent compilation cache).

The codec computes in float32 in any case, as configured.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from hiermusic import presets
from hiermusic.codec.chunked import decode_long
from hiermusic.codec.codec import Codec
from hiermusic.generate import autoregressive, nextscale
from hiermusic.systems.aar import models as aar

Build = Callable[[Callable[[nnx.Rngs], nnx.Module]], nnx.Module]
COLUMNS = ("contender", "passes", "wall, s", "CPU, s", "real-time factor", "compile, s")


@dataclass(frozen=True)
class Contender:
    """One way to make a second of music.

    Args:
      passes, run: of the transformer: those needed, those computed.
      draw: (pieces, progress) -> codes [R, S] of one second; `progress` is called after every piece, a window or a
        chunk of steps, of which there are at least `pieces`.
      codec: what decodes them.
      lm: what the passes are of.
    """

    passes: int
    run: int
    draw: Callable[[int, Callable | None], np.ndarray]
    codec: Codec
    lm: nnx.Module


@dataclass(frozen=True)
class Times:
    """Seconds: of each repeat, and of compiling."""

    wall: list[float]
    cpu: list[float]
    compile: float

    @property
    def medians(self) -> tuple[float, float]:
        return float(np.median(self.wall)), float(np.median(self.cpu))


class _Enough(Exception):
    """The programs have been run twice."""


def read_config(name: str, preset: str) -> ConfigDict:
    """A configuration of configs/aar."""
    return presets.read(f"configs/aar/{name}.py:{preset}")


def codec_of(quantiser: str, levels: int, preset: str, build: Build, less: Mapping[str, Any]) -> Codec:
    """The paper's codec of 128 channels, with so many levels of a kind of quantiser, or what `less` says instead."""
    config = read_config("codec", "paper128" if preset == "paper" else preset)
    config.model.update({"quantiser": quantiser, "levels": levels, **less})
    return build(aar.make_model(config))


def contender_of(
    pattern: str,
    depth: int,
    dtype: str,
    preset: str = "paper",
    build: Build = lambda make: make(nnx.Rngs(0)),
    less: Mapping[str, Any] = MappingProxyType({}),
) -> Contender:
    """A model of a depth with random weights, in the form that serves.

    Args:
      pattern: order of prediction: "next_scale", or one of the baseline's.
      depth, dtype: of the token model.
      preset: sizes of all else, "paper" or "tiny".
      build: makes a module from what constructs it.
      less: of the codec's `model`, other than the preset's.
    """
    next_scale = pattern == "next_scale"
    config = read_config("lm" if next_scale else "ar_baseline", preset)
    model = config.model
    model.depth, model.dtype, model.pattern = depth, dtype, pattern
    codec = codec_of(config.tokens.quantiser, config.tokens.levels, preset, build, less)
    config.tokens = ConfigDict(asdict(codec.facts))
    prior = build(aar.make_model(config))
    prior.take_quantiser(codec.quantiser)
    lm, quantiser, uncond_U = prior.lm.unstack(), prior.quantiser, np.asarray(prior.unconditional[...])
    cond_BU = np.asarray(jax.random.normal(jax.random.key(0), (1, model.cond)) / np.sqrt(model.cond))
    sampling, slots = config.sampling.to_dict(), codec.slots
    if next_scale:

        def draw(pieces, progress):
            codes_BWS = nextscale.generate(
                lm, quantiser, cond_BU, seeds=[0], windows=pieces, context=model.context, uncond_U=uncond_U,
                progress=progress, **sampling)  # fmt: skip
            return codes_BWS[0]

        return Contender(len(slots), len(slots), draw, codec, lm)
    layout = aar.pattern_of(config).layout(model.window)
    chunk = autoregressive.CHUNK

    def draw(pieces, progress):
        (sample,) = autoregressive.generate(
            lm, [[0]], [layout], seeds=[0], sizes=[codec.facts.codes] * codec.facts.levels, cond=cond_BU,
            uncond=uncond_U, progress=progress, **sampling)  # fmt: skip
        return sample.codes

    return Contender(layout.positions, -(-layout.positions // chunk) * chunk, draw, codec, lm)


def decode(codec: Codec, codes_PS: np.ndarray) -> np.ndarray:
    """One second of sound."""
    return decode_long(codec, codes_PS, length=codec.sample_rate)


def warm_up(contender: Contender) -> float:
    """Runs every program twice, the engine for two pieces only; how much longer the first runs took than the second."""
    marks, codec = [time.perf_counter()], contender.codec

    def mark(*_):
        marks.append(time.perf_counter())
        if len(marks) == 3:
            raise _Enough

    try:
        contender.draw(2, mark)
    except _Enough:
        pass
    rows = -(-codec.sample_rate // codec.packet)
    codes_PS = np.random.default_rng(0).integers(codec.hierarchy.sizes[0], size=(rows, sum(codec.slots)))
    begin, between, end = marks
    decoding = [time.perf_counter()]
    for _ in range(2):
        decode(codec, codes_PS)
        decoding.append(time.perf_counter())
    first, second = np.diff(decoding)
    return (between - begin) - (end - between) + first - second


def measure(name: str, contender: Contender, repeats: int) -> Times:
    """A second of music, again and again."""
    say(f"{name}: compiling")
    compiling, wall, cpu = warm_up(contender), [], []
    for repeat in range(repeats):
        begin, worked = time.perf_counter(), time.process_time()
        decode(contender.codec, contender.draw(1, None))
        wall.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - worked)
        say(f"{name}: run {repeat + 1} of {repeats}, {wall[-1]:.2f} s, CPU {cpu[-1]:.2f} s")
    return Times(wall, cpu, compiling)


def say(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def show(cells: list[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def row(name: str, contender: Contender, times: Times) -> list[str]:
    """The cells of a contender."""
    wall, cpu = times.medians
    passes = str(contender.passes) if contender.run == contender.passes else f"{contender.passes} ({contender.run})"
    return [name, passes, f"{wall:.2f}", f"{cpu:.2f}", f"{1 / wall:.3g}", f"{times.compile:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=16, help="layers; the width is 64 times as much")
    parser.add_argument("--repeats", type=int, default=3, help="of next-scale")
    parser.add_argument("--tokens-repeats", type=int, default=1, help="of each kind of next-token")
    default = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=default, help="of the token models")
    given = parser.parse_args()
    show(list(COLUMNS))
    show(["---"] * len(COLUMNS))
    medians = {}
    for name, pattern, repeats in (
        ("next-scale", "next_scale", given.repeats),
        ("next-token, delay", "delay", given.tokens_repeats),
        ("next-token, flatten", "flatten", given.tokens_repeats),
    ):
        contender = contender_of(pattern, given.depth, given.dtype)  # one at a time: d16 takes more than a gigabyte
        times = measure(name, contender, repeats)
        medians[name] = times.medians
        show(row(name, contender, times))
    print()
    wall, cpu = medians["next-scale"]
    for name in list(medians)[1:]:
        print(f"{name} / next-scale: {medians[name][0] / wall:.1f} x wall, {medians[name][1] / cpu:.1f} x CPU")
    print(f"\nd{given.depth}, {given.dtype}, {jax.devices()[0].device_kind}, jax {jax.__version__}")


if __name__ == "__main__":
    main()
