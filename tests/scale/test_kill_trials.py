"""A few of the trials of benchmarks/kill_trials.py."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill_trials.py"
spec = importlib.util.spec_from_file_location("kill_trials", SCRIPT)
kill_trials = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kill_trials)


@pytest.mark.slow
def test_kills_lose_nothing_that_was_saved(capsys):
    assert kill_trials.main(["--trials=3"]) == 0, capsys.readouterr()
