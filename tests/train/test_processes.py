"""Checkpoints that two processes write together, and workdirs that they do not share."""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hiermusic.train import stored
from hiermusic.train.checkpoint import load_weights

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
from hiermusic.errors import UserError
from hiermusic.parallel.hosts import joined
import toy
from hiermusic.train.checkpoint import load_weights

process, steps = int(sys.argv[3]), int(sys.argv[5])
settings = toy.config(steps=steps, checkpoint_every=3)
settings["mesh"] = {"data": -1, "fsdp": 2}
try:
    with joined(sys.argv[2], 2, process, timeout=60):
        print("step", toy.run(toy.ToyStage(settings), sys.argv[4], progress=False)["step"])
        print("bias", load_weights(sys.argv[4])["bias"].sum())
except UserError as error:
    print(error)
"""


def run_two(places, steps):
    """The words of two processes that train the toy stage, each in its place."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    at = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), f"127.0.0.1:{port}"]
    processes = [
        subprocess.Popen(
            [*at, str(number), str(place), str(steps)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for number, place in enumerate(places)
    ]
    try:
        return [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_two_processes_write_what_one_goes_on_from(toy, tmp_path):
    workdir = tmp_path / "run"
    said = run_two([workdir, workdir], 6)
    assert [words.split()[:2] for words, _ in said] == [["step", "6"]] * 2, said
    assert said[0][0] == said[1][0]
    assert sorted(path.name for path in workdir.iterdir() if "events" not in path.name) == [
        *("checkpoints", "config.json", "metrics.jsonl")
    ]
    facts = stored.describe(workdir)
    assert facts["steps"] == [3, 6] and facts["mesh"] == {"data": 2, "fsdp": 2, "context": 1, "tensor": 1}

    settings = toy.config(steps=9, checkpoint_every=3)
    toy.run(toy.ToyStage(settings), workdir, progress=False)
    toy.run(toy.ToyStage(settings), tmp_path / "alone", progress=False)
    one, other = load_weights(workdir), load_weights(tmp_path / "alone")
    assert all(np.allclose(one[name], other[name], rtol=1e-5, atol=1e-6) for name in one)


@pytest.mark.slow
def test_a_workdir_that_is_not_shared_is_told(tmp_path):
    said = run_two([tmp_path / "here", tmp_path / "there"], 3)
    assert "process 1 does not see what process 0 writes into" in said[1][0], said
    assert "process 1 of 2 failed" in said[0][1], said
    assert not list(tmp_path.glob("*/checkpoints/*"))
