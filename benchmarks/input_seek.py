"""How fast batches are read, and how long the first one takes at step 0 and far into a run.

    python benchmarks/input_seek.py

Writes audio and token records of the size of real ones (10 s stereo segments at 44.1 kHz; 64 levels at 21.53 Hz) into a
temporary folder, then reads them through the pipelines that training uses. Since batch i is a function of (seed, i),
starting at step 1,000,000 must take as long as starting at step 0. Records a second count rows of batches; the page
cache is warm.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import grain
import numpy as np

from hiermusic.data import audio_records, pipeline, token_records
from hiermusic.data.tracks import Track
from hiermusic.tokens.hierarchy import Hierarchy

RATE, CHANNELS, SEGMENT = 44_100, 2, 10.0
FAR = 1_000_000
READING = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)  # as in the loop


def write_audio(folder: Path, tracks: int, seconds: float) -> Path:
    """Audio records of noise."""
    draw = np.random.default_rng(0)

    def load():
        return draw.uniform(-0.5, 0.5, (round(seconds * RATE), CHANNELS)).astype(np.float32), RATE, {}

    audio_records.write_audio(
        [Track(f"t{i}", load) for i in range(tracks)], folder, RATE, CHANNELS, segment_seconds=SEGMENT, progress=False
    )
    return folder


def write_tokens(folder: Path, tracks: int, seconds: float) -> Path:
    """Token records of random codes."""
    rate = Fraction(RATE, 2048)
    draw, frames = np.random.default_rng(0), round(seconds * rate)

    def encode(index: int):
        entry = {"id": str(index), "split": "train", "seconds": seconds, "meta": {"tags": "slow"}}
        return draw.integers(0, 1024, (frames, 64)), entry

    hierarchy = Hierarchy.uniform(64, rate, 1024)
    token_records.write_tokens(tracks, partial(map, encode), folder, hierarchy, 2, settings={}, progress=False)
    return folder


def first_batch(make: Callable[[], grain.MapDataset], step: int) -> float:
    """Seconds from nothing to the batch of a step: opening the records, seeking, reading."""
    begin = time.perf_counter()
    next(iter(make()[step:].to_iter_dataset(READING)))
    return time.perf_counter() - begin


def speed(make: Callable[[], grain.MapDataset], seconds: float, size: int) -> float:
    """Rows a second, once the first batches are there."""
    batches = iter(make()[0:].to_iter_dataset(READING))
    for _ in range(4):
        next(batches)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        next(batches)
        count += 1
    return count * size / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--crop_seconds", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=5.0, help="to read for, per figure")
    parser.add_argument("--repeats", type=int, default=5, help="starts per figure; the least is told")
    given = parser.parse_args()
    size, crop = given.batch_size, round(given.crop_seconds * RATE)
    with tempfile.TemporaryDirectory() as folder:
        audio = write_audio(Path(folder) / "audio", tracks=16, seconds=60.0)
        tokens = write_tokens(Path(folder) / "tokens", tracks=400, seconds=180.0)
        kinds = {
            f"waveforms, crops of {given.crop_seconds:g} s": lambda: pipeline.waveform_batches(
                audio, "train", crop, size
            ),
            "tokens, levels 0-1": lambda: pipeline.batches(
                pipeline.token_examples(tokens, "train", levels="coarse"), size, batch_fn=list
            ),
            "tokens, 64 levels": lambda: pipeline.batches(
                pipeline.token_examples(tokens, "train"), size, batch_fn=list
            ),
        }
        print(f"{'batches of ' + str(size):<28} {'records/s':>10} {'first at 0, ms':>15} {f'first at {FAR:,}, ms':>24}")
        for name, make in kinds.items():
            rate = speed(make, given.seconds, size)
            near, far = (1e3 * min(first_batch(make, at) for _ in range(given.repeats)) for at in (0, FAR))
            print(f"{name:<28} {rate:>10.0f} {near:>15.1f} {far:>24.1f}", flush=True)


if __name__ == "__main__":
    main()
