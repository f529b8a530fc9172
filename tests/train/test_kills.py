"""Twenty kills at random moments, most of them during a save, of one run that has to come through."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hiermusic.train import stored
from hiermusic.train.checkpoint import latest_step, load_weights
from hiermusic.train.log import read_metrics

EVERY, WIDTH, TRIALS = 2, 200_000, 20
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import jax
jax.config.update("jax_platforms", "cpu")
import toy
settings = toy.config(steps=100_000, checkpoint_every=int(sys.argv[3]))
settings["model"]["width"] = int(sys.argv[4])
toy.run(toy.ToyStage(settings), sys.argv[2], progress=False)
"""


def last_logged(workdir):
    return max((record["step"] for record in read_metrics(workdir)), default=0)


@pytest.mark.slow
def test_every_kill_leaves_a_whole_checkpoint(tmp_path):
    workdir, draw, in_flight = tmp_path / "run", random.Random(), 0
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(workdir), str(EVERY), str(WIDTH)]
    for trial in range(TRIALS):
        begin, number = last_logged(workdir), signal.SIGTERM if trial % 4 == 3 else signal.SIGKILL
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and last_logged(workdir) < begin + 2 * EVERY:
            time.sleep(0.01)
        time.sleep(draw.random())
        assert process.poll() is None, process.stderr.read()
        process.send_signal(number)
        process.communicate(timeout=60)
        newest, logged = latest_step(workdir), last_logged(workdir)
        leftovers = [path for path in (workdir / "checkpoints").iterdir() if not path.name.isdigit()]
        in_flight += bool(leftovers)
        if number == signal.SIGTERM:
            assert process.returncode == 0 and newest == logged and not leftovers
        else:
            # one save may be under way when the next is due, and the step before the last is the one that is logged
            assert logged - (newest or 0) <= 2 * EVERY
        if newest is None:
            continue  # killed in the first save
        assert all(np.isfinite(array).all() for array in load_weights(workdir).values())
        assert stored.describe(workdir)["parts"]["model"]["numbers"] == 8 * WIDTH + 8
    assert in_flight > 0  # or nothing was proved
