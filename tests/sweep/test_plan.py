"""What a sweep will cost, and what of it cannot start."""

import pytest
from ml_collections import ConfigDict

from hiermusic.errors import UserError
from hiermusic.parallel.chips import CHIPS
from hiermusic.sweep import plan, runs
from hiermusic.systems import workdir as workdirs

from .files import BACKBONE, SUPERRES, one_run


@pytest.mark.parametrize("name", ["learning_rate", "scaling", "mesh", "pyramid"])
def test_the_shipped_sweeps_can_be_costed(name):
    module = runs.read(f"configs/sweeps/{name}.py")
    found = runs.runs_of(f"configs/sweeps/{name}.py", module.CONFIG, {}, "none")
    assert len(found) == {"learning_rate": 6, "scaling": 6, "mesh": 8, "pyramid": 4}[name]
    first, last = (plan._estimate(run, False) for run in (found[0], found[-1]))
    assert first.left == first.steps > 0 and last.flops > 0
    if name == "scaling":
        assert module.SCALING and last.flops > 100 * first.flops and last.parameters > 10 * first.parameters
        compute = [plan._estimate(run, False).flops for run in found]
        assert compute == sorted(compute)


def test_the_shipped_meshes_fill_eight_devices(monkeypatch):
    monkeypatch.setattr(workdirs, "open_data", lambda *_: None)
    monkeypatch.setattr(plan, "_held", lambda *_: (1.0, 1.0))  # there are no data
    for run in runs.runs_of("configs/sweeps/mesh.py", BACKBONE, {"model.layers": 1}, "none"):
        assert plan._estimate(run, True).left == 20


def test_the_cost_is_work_times_steps():
    settings = {"train.steps": 10, "train.batch_size": 4, "model.layers": 1}
    got = plan._estimate(one_run(settings), False)
    config = one_run(settings).load()
    stage, tokens = workdirs.stage(config), 10 * 4 * config.model.length
    task, _ = stage.examples()[0]
    assert (got.flops, got.tokens) == (10 * stage.work(task).flops, tokens)
    assert got.seconds == pytest.approx(tokens / 2 / (22050 / 512))
    assert got.parameters == workdirs.inspect(one_run(settings).load(), None)["params"]["total"]
    assert plan.Budget(CHIPS["v5e"], 4, 0.5).hours(197e12 * 2 * 3600) == pytest.approx(1.0)


def test_padding_costs_nothing_and_the_same_whatever_the_seed_and_the_batch(monkeypatch):
    asked, shapes = [], {"valid": None}

    class Padded:
        def __init__(self, config):
            asked.append((config.train.seed, config.train.batch_size))

        def examples(self):
            return [("task", shapes)]

        def train_batches(self, rows):
            return [("task", (0.25, 0.5)), ("task", (0.75, 1.0))] * len(rows)

        def held(self, batch):
            return batch

    monkeypatch.setattr(workdirs, "stage", Padded)
    configs = [ConfigDict({"train": {"seed": seed, "batch_size": size}}) for seed, size in ((1, 2), (2, 4))]
    assert [plan._held(config, True) for config in configs] == [(0.5, 0.75)] * 2 and len(set(asked)) == 1

    def gone(self, rows):
        raise UserError("no such records")

    Padded.train_batches = gone
    assert plan._held(configs[0], False) == (1.0, 1.0)
    with pytest.raises(UserError):
        plan._held(configs[0], True)
    shapes.clear()
    assert plan._held(configs[0], True) == (1.0, 1.0)


def test_a_run_of_several_tasks_costs_their_mean():
    settings = {"train.steps": 10, "model.layers": 1, "model.levels": 4}
    stage = workdirs.stage(one_run(settings, SUPERRES).load())
    each = [stage.work(task).flops for task, _ in stage.examples()]
    assert len(set(each)) == 2
    assert plan._estimate(one_run(settings, SUPERRES), False).flops == pytest.approx(10 * sum(each) / 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mesh.data": 3}, "run r: .*devices"),
        ({"train.batch_size": 3}, "run r: train.batch_size=3 does not divide"),
        ({"train.steps": 0}, "run r: train.steps is 0"),
        ({"mesh.tensor": 8}, "run r: .*heads"),
    ],
)
def test_a_run_that_cannot_start_is_told_before_any_does(settings, words, monkeypatch):
    monkeypatch.setattr(workdirs, "open_data", lambda *_: None)
    with pytest.raises(UserError, match=words):
        plan._estimate(one_run(settings | {"model.layers": 1}), True)
