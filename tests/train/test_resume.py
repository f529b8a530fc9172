"""Runs in processes of their own, ended by signals."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from hiermusic.train.checkpoint import latest_step, load_weights
from hiermusic.train.log import read_metrics

STEPS = 30
TOY = Path(__file__).with_name("toy.py")


def start(workdir, pause):
    command = [sys.executable, str(TOY), str(workdir), str(STEPS), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(workdir, step, process):
    while process.poll() is None and not any(record["step"] >= step for record in read_metrics(workdir)):
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read()


def test_killed_and_terminated_runs_end_in_the_same_bits(toy, tmp_path):
    draw = random.Random()
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(killed, 0.05)
    wait_for_step(killed, draw.randint(3, 12), process)  # a save starts every other step, so one may be in flight
    time.sleep(draw.random() * 0.05)
    process.kill()
    process.communicate()

    process = start(killed, 0.1)
    wait_for_step(killed, 14, process)
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate()
    assert process.returncode == 0, errors
    stopped = int(out.split()[-1])
    assert 14 <= stopped < STEPS and latest_step(killed) == stopped

    config = toy.guarded(steps=STEPS, checkpoint_every=20, valid_every=7)
    toy.run(toy.ToyStage(config, spiked=toy.SPIKED), killed, progress=False)
    assert not [path for path in (killed / "checkpoints").iterdir() if not path.name.isdigit()]

    toy.run(toy.ToyStage(config, spiked=toy.SPIKED), whole, progress=False)
    for prefer_ema in (False, True):
        one, other = (load_weights(path, prefer_ema=prefer_ema) for path in (killed, whole))
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))
    told = [
        [(record["step"], record["loss"], record.get("skip_cause")) for record in read_metrics(path)]
        for path in (killed, whole)
    ]
    assert told[0] == told[1] and len(told[0]) == STEPS
    assert {step for step, _, cause in told[0] if cause} >= {index + 1 for index in toy.SPIKED}
