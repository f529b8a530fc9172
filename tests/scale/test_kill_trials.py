"""A few of the trials of benchmarks/kill_trials.py and benchmarks/kill_others.py."""

import importlib
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")


@pytest.mark.slow
def test_kills_lose_nothing_that_was_saved(capsys):
    assert importlib.import_module("kill_trials").main(["--trials=3"]) == 0, capsys.readouterr()


@pytest.mark.slow
def test_of_two_starts_at_once_one_trains(capsys):
    assert importlib.import_module("kill_others").main(["--kinds=starts", "--trials=2"]) == 0, capsys.readouterr()
