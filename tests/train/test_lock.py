"""Workdirs have one owner at a time, and a dead one holds nothing."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading

import pytest

from hiermusic import cli
from hiermusic.errors import UserError
from hiermusic.train import lock
from hiermusic.train.lock import owned

HOLDER = """
import os, sys
from hiermusic.train.lock import owned
with owned(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "PATIENCE", 0.5)


@pytest.fixture
def holder(tmp_path):
    """Another process that owns the folder."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def left_by(folder, boot="another machine's", beat=7):
    """The file of an owner that wrote no more."""
    folder.mkdir(exist_ok=True)
    owner = {"process": 4711, "host": "far", "boot": boot, "run": "x", "since": "yesterday", "beat": beat}
    (folder / lock.NAME).write_text(json.dumps(owner))


def test_the_second_is_told_who_is_there(holder, toy, tmp_path, capsys):
    with pytest.raises(UserError, match=rf"run is in use by process {holder.pid} on .*: end that, wait for it, or"):
        toy.run(toy.ToyStage(toy.config()), tmp_path / "run", progress=False)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [lock.NAME]
    holder.communicate()
    assert toy.run(toy.ToyStage(toy.config(steps=2)), tmp_path / "run")["step"] == 2
    assert not (tmp_path / "run" / lock.NAME).exists()


def test_the_second_sweep_is_told_before_anything_starts(holder, tmp_path, capsys):
    sweep = tmp_path / "some.py"
    config = os.path.abspath("configs/khala/backbone.py")
    sweep.write_text(f'CONFIG = "{config}:tiny"\ndef get_hyper(hyper):\n    return hyper.sweep("train.seed", [1])\n')
    with pytest.raises(SystemExit):
        cli.main(["sweep", f"--config={config}:tiny", f"--sweep={sweep}", f"--workdir={tmp_path / 'run'}"])
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("hiermusic sweep: ") and f"in use by process {holder.pid}" in err
    assert err.count("\n") == 1


def test_a_killed_owner_holds_nothing(holder, tmp_path, capsys):
    holder.kill()
    holder.wait()
    assert (tmp_path / "run" / lock.NAME).stat().st_size > 0
    with owned(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / lock.NAME).read_text())["process"] == os.getpid()
    assert capsys.readouterr().err == ""  # nobody was waited for


def test_what_was_made_for_the_lock_alone_goes_with_it(tmp_path):
    with owned(tmp_path / "a" / "b"), owned(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b" / lock.NAME).exists()
    assert not (tmp_path / "a").exists()
    with owned(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "kept").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["kept"]


def test_a_lock_file_of_any_kind_keeps_nobody_out(hurried, tmp_path):
    for text in ("[" * 100_000, "[]", "", "\udcff"):
        (tmp_path / lock.NAME).write_text(text, errors="surrogateescape")
        with owned(tmp_path):
            assert json.loads((tmp_path / lock.NAME).read_text())["process"] == os.getpid()


def test_an_owner_on_another_machine_lives_while_its_beat_does(hurried, tmp_path, capsys):
    left_by(tmp_path)
    beating = threading.Timer(0.1, left_by, [tmp_path], {"beat": 8})
    beating.start()
    with pytest.raises(UserError, match="in use by process 4711 on far"):
        with owned(tmp_path):
            pass
    beating.join()
    assert "waiting up to 0.5 s for a sign of life" in capsys.readouterr().err
    with owned(tmp_path):  # it beats no more
        assert json.loads((tmp_path / lock.NAME).read_text())["process"] == os.getpid()


def test_a_dead_machine_holds_nothing_even_where_its_file_lock_stays(hurried, tmp_path):
    left_by(tmp_path)
    with (tmp_path / lock.NAME).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with owned(tmp_path):
            assert json.loads((tmp_path / lock.NAME).read_text())["process"] == os.getpid()


def test_without_file_locks_the_beat_tells_on_one_machine_too(hurried, tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOTSUP, "no file locks")

    monkeypatch.setattr(lock.fcntl, "flock", none)
    first = lock._Lock(tmp_path)
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        lock._Lock(tmp_path)
    first.release()
    left_by(tmp_path, boot=lock._boot())
    lock._Lock(tmp_path).release()


def test_who_was_taken_for_dead_ends(hurried, tmp_path, monkeypatch, capsys):
    ended = threading.Event()

    def leave(status):
        first.ended.set()
        ended.set()

    monkeypatch.setattr(lock.os, "_exit", leave)
    first = lock._Lock(tmp_path)
    (tmp_path / lock.NAME).unlink()
    left_by(tmp_path)
    assert ended.wait(30)
    first.beating.join()
    assert "was taken over by process 4711 on far" in capsys.readouterr().err
    first.release()
    assert (tmp_path / lock.NAME).exists()  # it is the other's


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written: Not a directory; give another workdir"):
        with owned(tmp_path / "file" / "run"):
            pass
