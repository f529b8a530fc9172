"""Real stages killed at a random step and started again end with the bits of a run that was left alone."""

import os
import random
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from hiermusic.train.checkpoint import latest_step, load_weights
from hiermusic.train.log import read_metrics

STEPS = 30
ONE_DEVICE = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")}


def command(khala, stage, workdir, arguments):
    data = khala.corpus if stage == "codec" else khala.tokens
    every = ("--config.train.log_every=1", "--config.train.checkpoint_every=2", "--config.train.valid_every=5")
    steps = (f"--config.train.steps={STEPS}", "--config.train.decay_steps=40")
    where = (f"--workdir={workdir}", f"--config.data.path={data}", "--noprogress")
    return [sys.executable, "-m", "hiermusic", "train", *arguments(stage), *every, *steps, *where]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["codec", "superres"])
def test_a_killed_run_ends_in_the_same_bits(khala, miniature, tmp_path, stage):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(command(khala, stage, killed, miniature), env=ONE_DEVICE, stderr=subprocess.PIPE)
    last = random.Random().randint(3, STEPS // 3)
    while process.poll() is None and not any(record["step"] >= last for record in read_metrics(killed)):
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read()
    process.kill()
    process.wait()
    assert (latest_step(killed) or 0) < STEPS

    for workdir in (killed, whole):
        subprocess.run(command(khala, stage, workdir, miniature), env=ONE_DEVICE, check=True)
    one, other = load_weights(killed), load_weights(whole)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))
    losses = [[(record["step"], record["loss"]) for record in read_metrics(path)] for path in (killed, whole)]
    assert losses[0] == losses[1] and len(losses[0]) == STEPS
