"""What is asserted of every system's stages: killed and started again, a run ends in the bits of one left alone."""

import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from hiermusic.train.checkpoint import latest_step, load_weights
from hiermusic.train.log import read_metrics

from .conftest import one_device, work


def ends_in_the_same_bits(train: Callable[[Path], list], at: Path, steps: int, latest: int) -> None:
    """Kills a run at a random step, starts it again, and compares it with another.

    Args:
      train: (workdir) -> the words of a training that logs every step.
      at: where both workdirs come to lie.
      steps: how many that training has.
      latest: the last step at which it is killed, well before the last.
    """
    killed, whole = at / "killed", at / "whole"
    process = subprocess.Popen(
        [sys.executable, "-m", "hiermusic", *map(str, train(killed))], env=one_device(), stderr=subprocess.PIPE
    )
    last = random.Random().randint(2, latest)
    while process.poll() is None and not any(record["step"] >= last for record in read_metrics(killed)):
        time.sleep(0.01)
    assert process.poll() is None, process.stderr.read()
    process.kill()
    process.wait()
    assert (latest_step(killed) or 0) < steps

    work(train(killed), train(whole))  # the second finds compiled what the first has compiled
    one, other = load_weights(killed), load_weights(whole)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))
    losses = [[(record["step"], record["loss"]) for record in read_metrics(path)] for path in (killed, whole)]
    assert losses[0] == losses[1] and len(losses[0]) == steps
