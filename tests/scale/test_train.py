"""Several processes train as one does, save together, and end together."""

import json
import random
import signal
import time

import jax
import numpy as np
import pytest
import worker

from hiermusic.train.checkpoint import latest_step, load_weights
from hiermusic.train.log import read_metrics

GO_ON = "run the same command to go on"


def alone(workdir, steps, width=16):
    """The same run in this process, on its eight devices."""
    config = worker.toy.config(steps=steps, checkpoint_every=2)
    config |= {"model": {"width": width}, "mesh": {"fsdp": -1}}
    stage = worker.Told(config)
    worker.run(stage, workdir, progress=False)
    return {name: crc for name, crc in stage.made.items() if int(name.split()[0]) < steps}


def told(ends):
    """What each process printed, all having ended well and with nothing to say but that."""
    assert [status for status, _, _ in ends] == [0] * len(ends), ends
    assert [errors for _, _, errors in ends] == [""] * len(ends), ends
    return [json.loads(out) for _, out, _ in ends]


def merged(answers):
    made = {}
    for answer in answers:
        assert not made.keys() & answer["made"].keys()  # no row is made twice
        made |= answer["made"]
    return made


def assert_same(one, other):
    losses = [[record["loss"] for record in read_metrics(path)] for path in (one, other)]
    steps = [[record["step"] for record in read_metrics(path)] for path in (one, other)]
    assert steps[0] == steps[1] == list(range(1, len(steps[0]) + 1))
    np.testing.assert_allclose(*losses, rtol=1e-5)
    weights = [load_weights(path, prefer_ema=False) for path in (one, other)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *weights)


def wait_for_step(workdir, step, processes):
    while not any(record["step"] >= step for record in read_metrics(workdir)):
        ended = [p for p in processes.all if p.poll() is not None]
        assert not ended, processes.end()
        time.sleep(0.02)


def lines(errors):
    return [line for line in errors.splitlines() if line.strip()]


def test_two_train_as_one_a_signal_to_one_saves_both_and_one_goes_on(train, tmp_path):
    two = train(tmp_path / "two", 2, "--steps=4000", "--pause=0.05", "--every=1000")
    wait_for_step(tmp_path / "two", 6, two)
    two.all[1].send_signal(signal.SIGTERM)
    ends = two.end()
    assert [status for status, _, _ in ends] == [130, 130], ends
    answers = [json.loads(out) for _, out, _ in ends]
    (step,) = {answer["step"] for answer in answers}
    assert step == latest_step(tmp_path / "two") < 4000 and answers[0]["devices"] == 2

    whole = alone(tmp_path / "one", step + 4)
    assert merged(answers) == {name: crc for name, crc in whole.items() if int(name.split()[0]) < step}
    went_on = alone(tmp_path / "two", step + 4)  # with the next batch
    assert {name for name in went_on} == {f"{index} {row}" for index in range(step, step + 4) for row in range(8)}
    assert went_on.items() <= whole.items()
    assert_same(tmp_path / "two", tmp_path / "one")


def test_a_kill_of_one_ends_both(train, tmp_path):
    two = train(tmp_path, 2, "--steps=4000", "--pause=0.02", "--every=2")
    wait_for_step(tmp_path, 5, two)
    victim = random.Random().randrange(2)
    two.all[victim].kill()
    ends = two.end(60)
    status, _, errors = ends[1 - victim]
    assert status == 1 and ends[victim][0] == -signal.SIGKILL
    assert len(lines(errors)) == 1 and " of 2 was lost" in errors and errors.strip().endswith(GO_ON), errors
    reached = max(record["step"] for record in read_metrics(tmp_path))
    assert latest_step(tmp_path) >= reached - 4
    alone(tmp_path, latest_step(tmp_path) + 2)


@pytest.mark.slow
def test_four_train_as_one_and_move_to_two(train, tmp_path):
    four = told(train(tmp_path / "many", 4, "--steps=6").end(240))
    two = told(train(tmp_path / "many", 2, "--steps=10", devices=2).end(240))
    assert [answer["devices"] for answer in four + two] == [4] * 6
    whole = alone(tmp_path / "one", 10)
    assert merged(four) | merged(two) == whole and not merged(four).keys() & merged(two).keys()
    assert_same(tmp_path / "many", tmp_path / "one")


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{"data": 2, "fsdp": 2}, {"context": 2, "fsdp": 2}, {"tensor": 4}])
def test_any_mesh_may_span_the_processes(train, tmp_path, mesh):
    answers = told(train(tmp_path / "two", 2, "--steps=4", f"--mesh={json.dumps(mesh)}", devices=2).end(240))
    whole = alone(tmp_path / "one", 4)
    for answer in answers:
        assert answer["made"].items() <= whole.items()
    assert answers[0]["made"] | answers[1]["made"] == whole
    assert_same(tmp_path / "two", tmp_path / "one")
