"""Sweeps: combined, named, costed, run and resumed with a stand-in for training, and what they came to."""

import json
import os
import shlex
import signal
import stat
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from hiermusic import cli
from hiermusic.errors import UserError
from hiermusic.parallel.chips import CHIPS
from hiermusic.sweep import hyper, plan, results, runs, scaling
from hiermusic.systems import workdir as workdirs
from hiermusic.train import checkpoint

ROOT = Path(__file__).parents[1]
BACKBONE = f"{ROOT}/configs/khala/backbone.py:tiny"
SUPERRES = f"{ROOT}/configs/khala/superres.py:tiny"


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def sweep_file(folder: Path, body: str, config: str = BACKBONE, head: str = "") -> str:
    path = folder / "some.py"
    path.write_text(f'CONFIG = "{config}"\n{head}\ndef get_hyper(hyper):\n    return {body}\n')
    return str(path)


def one_run(settings: dict, config: str = BACKBONE, workdir: str = "none") -> runs.Run:
    return runs.Run("r", settings, config, {}, workdir)


# MARK: combining and naming


def test_product_chain_zip_and_fixed():
    a, b = hyper.sweep("a", np.array([1, 2])), hyper.sweep("b", ["x", "y"])
    assert hyper.product([a, b]) == [{"a": i, "b": j} for i in (1, 2) for j in ("x", "y")]
    assert hyper.chainit([a, b]) == [{"a": 1}, {"a": 2}, {"b": "x"}, {"b": "y"}]
    assert hyper.zipit([a, b, hyper.fixed("c", 0, length=2)]) == [
        {"a": 1, "b": "x", "c": 0},
        {"a": 2, "b": "y", "c": 0},
    ]
    assert hyper.product([a, hyper.fixed("c", 0)]) == [{"a": 1, "c": 0}, {"a": 2, "c": 0}]
    assert type(a[0]["a"]) is int


def test_combinations_that_make_no_sense_are_refused():
    a = hyper.sweep("a", [1, 2])
    with pytest.raises(UserError, match="both set a"):
        hyper.product([a, a])
    with pytest.raises(UserError, match=r"one length, got a: 2; b: 1"):
        hyper.zipit([a, hyper.sweep("b", [1])])


def test_names_are_readable_unique_and_do_not_depend_on_the_other_runs(tmp_path):
    few = runs.runs_of(sweep_file(tmp_path, "hyper.sweep('train.learning_rate', [1e-4, 0.002])"), BACKBONE, {}, "out")
    more = runs.runs_of(
        sweep_file(tmp_path, "hyper.sweep('train.learning_rate', [1e-4, 1, 0.002])"), BACKBONE, {}, "out"
    )
    assert [run.name for run in few] == ["learning_rate=0.0001", "learning_rate=0.002"]
    assert [more[0], more[2]] == few and few[0].workdir == "out/learning_rate=0.0001"
    strange = sweep_file(tmp_path, "hyper.sweep('data.path', ['/a b/c', '/a/b c', 'x' * 200, 'x' * 201])")
    names = [run.name for run in runs.runs_of(strange, BACKBONE, {}, "out")]
    assert len(set(names)) == 4 and all(len(name) <= runs.LONGEST_NAME and "/" not in name for name in names)
    shared = sweep_file(tmp_path, "hyper.product([hyper.sweep('a.seed', [1]), hyper.sweep('b.seed', [2])])")
    assert runs.runs_of(shared, BACKBONE, {}, "out")[0].name == "a.seed=1,b.seed=2"


@pytest.mark.parametrize(
    ("body", "common", "words"),
    [
        ("[]", {}, "must return a list of runs"),
        ("[{}]", {}, "must return a list of runs"),
        ("hyper.sweep('train.seed', [1, 1])", {}, "the run seed=1 is there 2 times"),
        ("hyper.sweep('train.seed', [1])", {"train.seed": 2}, "leave --config.train.seed out"),
        ("hyper.sweeep('train.seed', [1])", {}, "get_hyper failed: AttributeError"),
        ("hyper.product([hyper.sweep('a', [1])] * 2)", {}, "both set a"),
        ("1 +", {}, "cannot be read: SyntaxError"),
    ],
)
def test_a_bad_sweep_file_is_named(body, common, words, tmp_path):
    path = sweep_file(tmp_path, body)
    with pytest.raises(UserError, match=words) as error:
        runs.runs_of(path, BACKBONE, common, "out")
    assert path in str(error.value) and "\n" not in str(error.value)


def test_a_run_loads_what_its_command_says(tmp_path):
    settings = {"train.betas": [0.8, 0.9], "train.learning_rate": 1, "model.head": "window", "loss.balance": True}
    codec = one_run(settings | {"model.init": "dac"}, f"{ROOT}/configs/khala/codec.py:tiny")
    with pytest.raises(UserError, match=r"run r: .*head"):
        codec.load()  # a codec has no head
    codec = one_run({k: v for k, v in settings.items() if k != "model.head"}, f"{ROOT}/configs/khala/codec.py:tiny")
    config = codec.load()
    assert tuple(config.train.betas) == (0.8, 0.9) and config.train.learning_rate == 1.0 and config.loss.balance is True
    assert "--config.train.betas=(0.8, 0.9)" in codec.arguments() and codec.arguments()[0] == "train"


@pytest.mark.parametrize("settings", [{"train.stepz": 3}, {"train.steps": "many"}, {"model.width.x": 1}])
def test_a_field_that_is_not_there_is_one_line(settings):
    with pytest.raises(UserError, match="run r: ") as error:
        one_run(settings).load()
    assert "\n" not in str(error.value)


# MARK: what it will cost


@pytest.mark.parametrize("name", ["learning_rate", "scaling", "mesh"])
def test_the_shipped_sweeps_can_be_costed(name):
    module = runs.read(f"configs/sweeps/{name}.py")
    found = runs.runs_of(f"configs/sweeps/{name}.py", module.CONFIG, {}, "none")
    assert len(found) == {"learning_rate": 6, "scaling": 6, "mesh": 8}[name]
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


# MARK: the law


def law(compute, noise=0.0, seed=0):
    exact = 1.7 + 400 * compute**-0.15
    return exact * np.exp(noise * np.random.default_rng(seed).standard_normal(len(compute)))


def test_a_known_law_is_found():
    compute = np.logspace(15, 19, 6)
    fit = scaling.fit(compute, law(compute), samples=5)
    assert fit.floor == pytest.approx(1.7, abs=1e-4) and fit.exponent == pytest.approx(0.15, abs=1e-4)
    assert fit.scale == pytest.approx(400, rel=1e-2) and fit.r2 > 0.999999 and fit.left_out < 1e-4
    np.testing.assert_allclose(fit(compute), law(compute), rtol=1e-6)


def test_noise_widens_the_interval_round_the_truth():
    compute = np.logspace(15, 19, 8)
    little, much = (scaling.fit(compute, law(compute, noise, seed=3), samples=40) for noise in (0.001, 0.01))
    for fit in (little, much):
        assert fit.interval[0] < 0.15 < fit.interval[1] and 0.9 < fit.r2 < 1
    width = [fit.interval[1] - fit.interval[0] for fit in (little, much)]
    assert width[1] > 3 * width[0] and much.left_out > 3 * little.left_out


def test_one_bad_run_does_not_bend_the_law():
    compute = np.logspace(15, 19, 9)
    loss = law(compute)
    loss[4] *= 1.2
    assert scaling.fit(compute, loss, samples=2).exponent == pytest.approx(0.15, abs=0.01)


def test_too_few_runs_give_no_law():
    compute = np.logspace(15, 19, 3)
    assert scaling.fit(compute, law(compute)) is None
    assert scaling.fit(np.repeat(compute, 2), np.repeat(law(compute), 2)) is None
    four = np.logspace(15, 19, 4)
    assert scaling.fit(four, law(four), samples=2).left_out is None


def test_the_frontier_leaves_out_what_cheaper_runs_beat():
    assert scaling.frontier([4.0, 1.0, 2.0, 3.0, 2.0], [1.0, 3.0, 2.0, 2.5, 2.9]) == [1, 2, 0]


# MARK: what it came to


def fake_run(folder: Path, name: str, losses: dict[int, float], saved: int | None) -> None:
    """What training leaves: a log and, where it got so far, a checkpoint."""
    (folder / name / "checkpoints").mkdir(parents=True)
    if saved is not None:
        (folder / name / "checkpoints" / str(saved)).mkdir()
    records = [{"step": s, "loss": v + 0.1, "valid/loss": v, "seconds_per_step": 0.5} for s, v in losses.items()]
    (folder / name / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def estimates_of(names: list[str], flops: list[float]) -> list[plan.Estimate]:
    return [plan.Estimate(n, 20, 0, 1000 + i, 4e4, 60.0, c) for i, (n, c) in enumerate(zip(names, flops, strict=True))]


def test_the_table_tells_final_best_and_unfinished(tmp_path):
    fake_run(tmp_path, "a", {10: 2.0, 20: 2.5}, saved=20)
    fake_run(tmp_path, "b", {10: 2.2}, saved=10)
    fake_run(tmp_path, "c", {}, saved=None)
    log = tmp_path / "a" / "metrics.jsonl"  # begins with what is no measurement, and with a step that compiled
    log.write_text('{"step": 0, "event": "other data"}\n' + log.read_text().replace("0.5", "9.0", 1))
    found = [runs.Run(n, {"train.seed": i}, BACKBONE, {}, str(tmp_path / n)) for i, n in enumerate("abc")]
    rows = results.rows_of(found, estimates_of(list("abc"), [8e9] * 3), {"a": 12.3}, ["c"])
    summary, lines = results.write(str(tmp_path), found, rows, False)
    assert lines[2] == "| a | finished | 2.5000 | 2.0000 (10) | 2.6000 | 12 | 0.5 | 40 k | 8e+09 | 1 k |"
    assert lines[3] == "| b | not finished, 10 of 20 | **2.2000** | 2.2000 (10) | 2.3000 | - | - | 20 k | 4e+09 | 1 k |"
    assert lines[4] == "| c | failed, 0 of 20 | - | - | - | - | - | 0 | 0 | 1 k |"
    assert json.loads((tmp_path / "results.json").read_text()) == summary and len(summary["runs"]) == 3
    assert set(lines) <= set((tmp_path / "results.md").read_text().splitlines())
    assert np.asarray(Image.open(tmp_path / "results.png").convert("L")).std() > 5
    assert results.read_wall(str(tmp_path)) == {"a": 12.3}
    for text, why in (("{}", "KeyError: 'runs'"), ("[" * 100_000, "RecursionError")):
        (tmp_path / "results.json").write_text(text)
        with pytest.raises(UserError, match=rf"results\.json cannot be read as .* \({why}.*\): delete it"):
            results.read_wall(str(tmp_path))


@pytest.mark.parametrize("count", [3, 6])
def test_a_scaling_sweep_tells_its_law_or_why_there_is_none(count, tmp_path):
    compute = np.logspace(15, 19, count)
    losses = law(compute)
    names = [f"r{i}" for i in range(count)] + ["beaten"]
    flops = [*map(float, compute), 2e19]
    for name, loss in zip(names, [*losses, 9.0], strict=True):
        fake_run(tmp_path, name, {10: float(loss) + 1, 20: float(loss)}, saved=20)
    found = [runs.Run(n, {"x": i}, BACKBONE, {}, str(tmp_path / n)) for i, n in enumerate(names)]
    rows = results.rows_of(found, estimates_of(names, flops), {}, [])
    summary, lines = results.write(str(tmp_path), found, rows, True)
    words = "\n".join(lines)
    assert "better: beaten" in words.replace("does better", "better")
    if count == 3:
        assert "at least 4 finished runs" in words and "there are 3" in words and "scaling" not in summary
    else:
        assert "L(C) = 1.7 + 400" in words and "C^-0.15" in words and "R^2 1.0000" in words
        assert summary["scaling"]["exponent"] == pytest.approx(0.15, abs=1e-3)
        assert summary["scaling"]["runs"] == names[:-1]


# MARK: running, with a stand-in for training

# `python -m hiermusic train --config=... --workdir=...`, as far as a sweep can see it
STAND_IN = """#!{python}
import json, os, signal, sys, time
from pathlib import Path
flags = dict(word.lstrip("-").split("=", 1) for word in sys.argv[4:] if "=" in word)
folder = Path(flags["workdir"])
with open(os.environ["STARTED"], "a") as log:
    log.write(folder.name + "\\n")
if folder.name == os.environ.get("FAILS"):
    sys.exit(1)
if "WAITS" in os.environ:
    def save(*_):
        (folder / "saved").touch()
        sys.exit(130)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, save)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "ready").touch()
    time.sleep(60)
(folder / "checkpoints" / "20").mkdir(parents=True)
rate = float(flags["config.train.learning_rate"])
record = {{"step": 20, "loss": rate, "valid/loss": rate + 1, "seconds_per_step": 0.1}}
(folder / "metrics.jsonl").write_text(json.dumps(record) + "\\n")
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Training and estimating without their cost; the file that names what was started."""
    program = tmp_path / "stand_in"
    program.write_text(STAND_IN.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setenv("STARTED", str(tmp_path / "started"))
    monkeypatch.setattr(plan, "ProcessPoolExecutor", lambda count, **_: ThreadPoolExecutor(count))
    monkeypatch.setattr(workdirs, "open_data", lambda *_: None)
    monkeypatch.setattr(plan, "_held", lambda *_: (1.0, 1.0))  # there are no data
    return tmp_path / "started"


@pytest.fixture
def command(tmp_path):
    path = sweep_file(tmp_path, "hyper.sweep('train.learning_rate', [0.1, 0.2, 0.3])")
    sizes = ("--config.model.layers=1", "--config.model.width=16", "--config.train.steps=20")
    return ("sweep", f"--sweep={path}", f"--workdir={tmp_path / 'out'}", *sizes)


def ends(capsys, code: int, *arguments: str) -> tuple[str, str]:
    capsys.readouterr()
    if code:
        with pytest.raises(SystemExit) as ending:
            cli.main(list(arguments))
        assert ending.value.code == code, capsys.readouterr().err
    else:
        cli.main(list(arguments))
    return capsys.readouterr()


def test_failed_runs_are_told_others_go_on_and_finished_ones_are_left(stand_in, command, tmp_path, capsys, monkeypatch):
    names = [f"learning_rate={rate}" for rate in (0.1, 0.2, 0.3)]
    monkeypatch.setenv("FAILS", names[1])
    out, err = ends(capsys, 1, *command)
    assert stand_in.read_text().split() == names
    assert err.splitlines()[-1].startswith(f"hiermusic sweep: 1 of 3 runs failed: {names[1]};")
    assert "FLOPs" in err.splitlines()[0] and err.index("3 runs") < err.index("[1/3]")
    assert f"| {names[1]} | failed, 0 of 20 |" in out and f"| {names[2]} | finished | 1.3000 |" in out
    monkeypatch.delenv("FAILS")
    stand_in.unlink()
    out, err = ends(capsys, 0, *command, "--json")
    assert stand_in.read_text().split() == [names[1]] and "[2/3]" in err
    assert [row["state"] for row in json.loads(out)["runs"]] == ["finished"] * 3
    stand_in.unlink()
    ends(capsys, 0, *command)
    out, _ = ends(capsys, 0, *command, "--results")
    assert not stand_in.exists() and out.count("| finished |") == 3
    walls = results.read_wall(str(tmp_path / "out"))
    assert set(walls) == set(names) and all(seconds > 0 for seconds in walls.values())


def test_a_workdir_of_other_settings_stops_the_sweep_before_anything_starts(stand_in, command, tmp_path, capsys):
    last = runs.runs_of(command[1].removeprefix("--sweep="), BACKBONE, {"model.layers": 2}, str(tmp_path / "out"))[-1]
    checkpoint.claim(last.workdir, workdirs.stage(last.load()).config.fields)
    _, err = ends(capsys, 1, *command)
    assert "run learning_rate=0.3: " in err and "model.layers=2, not 1" in err and not stand_in.exists()


def test_list_starts_and_writes_nothing(stand_in, command, tmp_path, capsys):
    out, err = ends(capsys, 0, *command, "--list", "--chip=h100", "--chips=8", "--mfu=0.5")
    assert "hours on 8 h100" in out and "assumed 50% of h100's 989 TFLOP/s" in out and err == ""
    listed = json.loads(ends(capsys, 0, *command, "--list", "--json").out)
    assert [row["name"] for row in listed["runs"]] == [f"learning_rate={rate}" for rate in (0.1, 0.2, 0.3)]
    assert not stand_in.exists() and not (tmp_path / "out").exists()


def test_results_of_nothing_are_a_table_of_nothing(stand_in, command, tmp_path, capsys):
    out, err = ends(capsys, 0, *command, "--results")
    assert out.count("| not finished, 0 of 20 | - | - |") == 3 and err == "" and not stand_in.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_reaches_the_run_which_saves(number, stand_in, command, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WAITS", "1")

    def terminate():
        while not (tmp_path / "out" / "learning_rate=0.1" / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=terminate, daemon=True).start()
    before = signal.getsignal(number)
    _, err = ends(capsys, 130, *command)
    assert (tmp_path / "out" / "learning_rate=0.1" / "saved").exists()
    assert stand_in.read_text().split() == ["learning_rate=0.1"] and "run the same command to go on" in err
    assert signal.getsignal(number) is before


def test_launchers_get_the_commands_of_the_unfinished_runs(stand_in, command, tmp_path, capsys):
    (tmp_path / "out" / "learning_rate=0.1" / "checkpoints" / "20").mkdir(parents=True)
    printed = [shlex.split(line) for line in ends(capsys, 0, *command, "--launcher=print").out.splitlines()]
    assert [line[:2] for line in printed] == [["hiermusic", "train"]] * 2
    assert printed[0][2:] == [
        f"--config={BACKBONE}",
        f"--workdir={tmp_path / 'out' / 'learning_rate=0.2'}",
        *("--config.model.layers=1", "--config.model.width=16", "--config.train.steps=20"),
        "--config.train.learning_rate=0.2",
    ]
    script = tmp_path / "submit.sh"
    script.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >> {tmp_path}/submitted\ntest "$2" != 3\n')
    script.chmod(0o755)
    out, err = ends(capsys, 1, *command, f"--launcher={script} --job={{name}} {{number}}", "--json")
    assert json.loads(out) == {"started": ["learning_rate=0.2"], "failed": ["learning_rate=0.3"]}
    words = (tmp_path / "submitted").read_text().splitlines()
    assert words[:4] == ["--job=learning_rate=0.2", "2", "--", "train"] and words[4:8] == printed[0][2:6]
    assert "1 of 3 runs failed: learning_rate=0.3;" in err and not stand_in.exists()
    assert "nowhere cannot be run" in ends(capsys, 1, *command, "--launcher=nowhere").err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--sweep=gone.py"], "no sweep file at gone.py"),
        (["--sweep=README.md"], "README.md is not a Python file"),
        (["--sweep=configs/khala/codec.py"], "it has no get_hyper"),
        (["--workdir=x"], "--sweep is needed"),
        (["--sweep=configs/sweeps/mesh.py"], "--workdir is needed"),
        (["--sweep=configs/sweeps/mesh.py", "--workdir=x", "--chip=abacus"], "--chip=abacus: there are v4"),
        (["--sweep=configs/sweeps/mesh.py", "--workdir=x", "--config.model.x=1"], "has no field"),
        (["--sweep=configs/sweeps/mesh.py", "--workdir=x", "--launcher='"], "No closing quotation"),
    ],
)
def test_wrong_use_is_one_line(flags, words, capsys):
    _, err = ends(capsys, 1, "sweep", *flags)
    assert words in err and err.count("\n") == 1 and "Traceback" not in err


def test_config_may_stand_before_the_sweep_or_be_its_own(stand_in, tmp_path, capsys):
    path = sweep_file(tmp_path, "hyper.sweep('train.steps', [1])", config="gone.py:tiny")
    flags = (f"--sweep={path}", "--workdir=x", "--list", "--json")
    assert "sweeps gone.py:tiny, which is not here" in ends(capsys, 1, "sweep", *flags).err
    for order in ((f"--config={BACKBONE}", *flags), (*flags, f"--config={BACKBONE}", "--config.model.layers=1")):
        assert json.loads(ends(capsys, 0, "sweep", *order).out)["runs"][0]["steps"] == 1


def test_what_is_wrong_comes_back_from_the_process_that_estimates():
    good, bad = ({"model.layers": 1, "model.width": 16} | more for more in ({}, {"train.learning_rate": -1.0}))
    with pytest.raises(UserError, match=r"run r: .*learning_rate"):
        plan.estimate([one_run(good), one_run(bad)], False)


@pytest.mark.slow
def test_a_real_sweep_trains_and_resumes(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # one device, as a newcomer has it
    small = ("encoder_width=2", "decoder_width=16", "latent=8", "levels=4", "codes=16")
    path = sweep_file(tmp_path, "hyper.sweep('train.seed', [0, 1])", config=f"{ROOT}/configs/khala/codec.py:tiny")
    command = [
        *("sweep", f"--sweep={path}", f"--workdir={tmp_path / 'out'}", "--config.data.path=builtin:4?seconds=2-3"),
        *("--noprogress", *(f"--config.model.{field}" for field in small), "--config.train.adversarial_start=100"),
        *("--config.discriminator.fft_sizes=(78, 206)", "--config.discriminator.filters=2"),
        "--config.train.batch_size=2",
        *("--config.train.crop_frames=8", "--config.train.quantise_start=0", "--config.train.valid_batches=1"),
    ]
    cli.main([*command, "--config.train.steps=3", "--json"])
    rows = json.loads(capfd.readouterr().out)["runs"]
    assert [(row["state"], row["step"]) for row in rows] == [("finished", 3)] * 2
    assert rows[0]["valid_loss"] != rows[1]["valid_loss"] and all(row["wall_seconds"] > 0 for row in rows)
    cli.main([*command, "--config.train.steps=4", "--json"])
    assert [row["step"] for row in json.loads(capfd.readouterr().out)["runs"]] == [4, 4]
