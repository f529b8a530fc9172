import json
from types import SimpleNamespace

import jax
import pytest

from hiermusic.parallel.mesh import make_mesh
from hiermusic.train import meter
from hiermusic.train.log import read_metrics
from hiermusic.train.meter import Meter
from hiermusic.train.stage import Work


class Clock:
    """Time that passes only when told to."""

    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now

    time = perf_counter


class Stage:
    def work(self, task):
        return {"small": Work(1e12, 10, 1.0), "large": Work(3e12, 30, 5.0)}[task]


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(meter, "time", clock)
    return clock


def start(clock, **options):
    mesh = make_mesh({"data": 2}, jax.devices()[:2])
    return Meter(Stage(), mesh, **{"peak_tflops": 2.0, "started": clock.now, **options})


def step(meter, clock, task, compute=1.0, wait=0.0, compiling=0.0, out=0.0, counted=True, held=(1.0, 1.0)):
    with meter.waiting():
        clock.now += wait
    with meter.dispatching(task):
        clock.now += compiling
    clock.now += compute
    with meter.out():
        clock.now += out
    meter.done(task, held, counted)


def test_figures_are_those_of_the_definitions(clock):
    meter = start(clock)
    step(meter, clock, "small", compute=1.5, wait=0.5, compiling=7.0)
    step(meter, clock, "large", compute=2.0, compiling=3.0, out=4.0)
    clock.now += 2.0  # lies between two steps: none has it yet
    figures = meter.read()
    assert figures["seconds_per_step"] == 2.0 and figures["data_wait"] == 0.125
    assert figures["tokens_per_second"] == 10.0 and figures["audio_per_second"] == 1.5
    assert figures["tflops"] == 0.5 and figures["mfu"] == 0.25  # 4e12 in 4 s on two devices that can do 2e12 each
    assert figures["compile_seconds"] == 10.0
    assert figures["elapsed"] == 20.0 and figures["goodput"] == 0.2


def test_padding_is_no_work(clock):
    meter = start(clock)
    step(meter, clock, "large", held=(0.5, 0.75))
    figures = meter.read()
    assert (figures["tokens_per_second"], figures["audio_per_second"]) == (15.0, 2.5)
    assert figures["tflops"] == 0.75 * 3 / 2


def test_a_reading_is_of_the_steps_since_the_last(clock):
    meter = start(clock)
    step(meter, clock, "small", compute=10.0)
    meter.read()
    step(meter, clock, "small", compute=2.0)
    step(meter, clock, "small", compute=2.0)
    assert meter.read()["seconds_per_step"] == 2.0


def test_steps_that_are_skipped_do_not_count(clock):
    meter = start(clock)
    step(meter, clock, "small", compute=3.0, counted=False)
    step(meter, clock, "small", compute=1.0)
    assert meter.read()["goodput"] == 0.25


def test_no_peak_no_mfu(clock):
    meter = start(clock, peak_tflops=0.0)  # a CPU's is not in the table
    step(meter, clock, "small")
    figures = meter.read()
    assert "mfu" not in figures and figures["tflops"] == 0.5 and figures["process_gib"] > 0


@pytest.mark.parametrize(("platform", "unit"), [("linux", 1024), ("darwin", 1)])
def test_memory_is_told_in_the_unit_of_the_system(clock, monkeypatch, platform, unit):
    monkeypatch.setattr(meter, "resource", SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: usage))
    monkeypatch.setattr(meter.sys, "platform", platform)
    usage = SimpleNamespace(ru_maxrss=3 * 2**30 // unit)
    assert meter._memory() == {"process_gib": 3.0}


def test_goodput_survives_a_restart(clock):
    meter = start(clock, started=clock.now - 100.0, goodput=0.5, elapsed=60.0)  # 30 s of work, 40 s lost since
    step(meter, clock, "small", compute=20.0)
    assert meter.read()["goodput"] == pytest.approx((30 + 20) / 120)


def test_a_resumed_run_counts_from_the_first_start(toy, tmp_path):
    """Steps after the checkpoint that a kill threw away, and the time until the restart, count against it."""
    config = toy.config(steps=5)
    toy.run(toy.ToyStage(config), tmp_path, progress=False)
    records = read_metrics(tmp_path)
    lost = [{**record, "step": 6, "goodput": 0.9} for record in records[-1:]]
    aged = [{**record, "time": record["time"] - 1000} for record in (*records, *lost)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in aged))
    config["train"]["steps"] = 8
    final = toy.run(toy.ToyStage(config), tmp_path, progress=False)
    assert final["elapsed"] > 1000
    good = [record["goodput"] * record["elapsed"] for record in (records[-1], final)]
    assert good[0] < good[1] < good[0] + 60
