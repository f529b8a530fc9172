"""Trains the toy stage as one of the processes of a run: `python worker.py WORKDIR --steps=20 [--coordinator=...]`.

Prints one JSON object: the step reached, the last loss, and which rows of which batches this process made.
"""

import argparse
import importlib.util
import json
import sys
import zlib
from pathlib import Path

import jax

from hiermusic.errors import UserError
from hiermusic.parallel import hosts
from hiermusic.train.loop import run

TOY = Path(__file__).parents[1] / "train" / "toy.py"
spec = importlib.util.spec_from_file_location("toy", TOY)
toy = importlib.util.module_from_spec(spec)
spec.loader.exec_module(toy)


class Told(toy.ToyStage):
    """Remembers a checksum of every row it makes."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.made = {}

    def _batch(self, rows, index):
        task, batch = super()._batch(rows, index)
        for row, x_D in zip(rows, batch["x"], strict=True):
            self.made[f"{index} {row}"] = zlib.crc32(x_D.tobytes())
        return task, batch


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--every", type=int, default=2, help="steps between checkpoints")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds a batch takes")
    parser.add_argument("--mesh", type=json.loads, default={"fsdp": -1})
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    parser.add_argument("--start_timeout", type=float, default=60.0)
    given = parser.parse_args()
    place = (given.coordinator, given.processes, given.process, given.start_timeout)
    with hosts.joined(*place):
        config = toy.config(steps=given.steps, checkpoint_every=given.every)
        config |= {"model": {"width": given.width}, "mesh": given.mesh}
        stage = Told(config, pause=given.pause)
        last = run(stage, given.workdir, progress=False)
        made = {name: crc for name, crc in stage.made.items() if int(name.split()[0]) < last["step"]}
        print(json.dumps({"step": last["step"], "loss": last.get("loss"), "made": made, "devices": len(jax.devices())}))
        if last["step"] < given.steps:
            sys.exit(130)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"worker: {error}", file=sys.stderr)
        sys.exit(1)
