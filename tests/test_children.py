"""A process that runs another: they end together."""

import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from hiermusic import children

# `python -m hiermusic`, as far as its parent can see it; saves at a signal
CHILD = """#!{python}
import os, signal, sys, time
from hiermusic.children import end_with_parent
saving = []
def save(number, frame):
    saving.append(number)
    open(sys.argv[3] + ".saved", "w").write(" ".join(map(str, saving)))
    sys.exit(130)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, save)
end_with_parent()
assert "HIERMUSIC_PARENT" not in os.environ
open(sys.argv[3] + ".ready", "w").write(str(os.getpid()))
time.sleep(float(sys.argv[4]))
"""
PARENT = "import sys; from hiermusic import children; sys.executable = sys.argv[1]; children.run(sys.argv[2:])"


@pytest.fixture
def child(tmp_path):
    program = tmp_path / "child"
    program.write_text(CHILD.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


def wait_for(path, process):
    while not (path.exists() and path.read_text()):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return path.read_text()


def start(child, tmp_path):
    """A process that runs the child, in a group of its own, as a shell starts it."""
    command = [sys.executable, "-c", PARENT, child, str(tmp_path / "it"), "600"]
    process = subprocess.Popen(command, process_group=0, stderr=subprocess.PIPE)
    return process, int(wait_for(tmp_path / "it.ready", process))


def test_a_child_saves_and_ends_when_its_parent_is_killed(child, tmp_path):
    process, number = start(child, tmp_path)
    process.kill()
    process.communicate()
    while not (tmp_path / "it.saved").exists():
        os.kill(number, 0)  # raises once it is gone without
        time.sleep(0.02)
    assert (tmp_path / "it.saved").read_text() == str(int(signal.SIGTERM))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_what_a_terminal_sends_to_the_group_comes_once(child, tmp_path, number):
    process, _ = start(child, tmp_path)
    os.killpg(process.pid, number)
    _, errors = process.communicate()
    assert (tmp_path / "it.saved").read_text() == str(int(number))
    assert b"KeyboardInterrupt" in errors


def test_what_comes_while_the_child_begins_is_passed_on(child, tmp_path, monkeypatch):
    popen = subprocess.Popen

    def interrupted(*args, **how):
        process = popen(*args, **how)
        wait_for(tmp_path / "it.ready", process)
        os.kill(os.getpid(), signal.SIGINT)
        return process

    monkeypatch.setattr(sys, "executable", child)
    monkeypatch.setattr(subprocess, "Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        children.run([str(tmp_path / "it"), "600"])
    assert (tmp_path / "it.saved").read_text() == str(int(signal.SIGINT))


def test_the_status_and_the_memory_come_back(child, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", child)
    status, memory = children.run([str(tmp_path / "it"), "0"])
    assert status == 0 and memory > 0
    assert children.run([str(tmp_path / "gone" / "it"), "0"])[0] == 1
