"""A few of the trials of benchmarks/kill_trials.py and benchmarks/kill_others.py.

In processes of their own: what they kill are forks, and a fork of a process that runs JAX may wait for ever for a
thread that it does not have.
"""

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.parametrize(
    "trials", [("kill_trials.py", "--trials=3"), ("kill_others.py", "--kinds=starts", "--trials=2")], ids=lambda t: t[0]
)
def test_kills_lose_nothing_that_was_saved(trials):
    script, *flags = trials
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script, *flags], capture_output=True, text=True, timeout=400, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all good" in done.stdout
