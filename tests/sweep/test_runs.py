"""Sweeps run and resumed, with a stand-in for training."""

import json
import os
import shlex
import signal
import stat
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hiermusic import cli
from hiermusic.errors import UserError
from hiermusic.sweep import plan, results, runs
from hiermusic.systems import workdir as workdirs
from hiermusic.train import checkpoint

from .files import BACKBONE, ROOT, one_run, sweep_file

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
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")  # as a newcomer has it
    monkeypatch.setenv("XLA_FLAGS", flags)
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
