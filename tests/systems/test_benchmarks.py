"""Benchmarks run to their ends, at the smallest size they take."""

import runpy
import sys
from pathlib import Path

import pytest

from hiermusic import presets
from hiermusic.systems import workdir

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytestmark = pytest.mark.slow


def _table(monkeypatch, capsys, name, *arguments):
    """The cells that a benchmark prints, row by row, and what follows its table."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return rows, [line for line in lines if line and not line.startswith("|")]


def test_next_scale_against_next_token(monkeypatch, capsys):
    (heading, _, *rows), after = _table(monkeypatch, capsys, "next_scale", "--depth=1", "--repeats=1")
    assert [row[:2] for row in rows] == [
        ["next-scale", "16"],
        ["next-token, delay", "84 (128)"],
        ["next-token, flatten", "750 (768)"],
    ]
    assert all(len(row) == len(heading) and float(row[2]) > 0 and float(row[3]) > 0 for row in rows)
    assert [line.partition(":")[0] for line in after[:2]] == [f"{row[0]} / next-scale" for row in rows[1:]]


def test_the_seam_of_a_rebuilt_and_of_a_continued_clip(aar, monkeypatch, capsys):
    arguments = (f"--sat={aar.codec}", f"--lm={aar.lm}", "--tracks=1", "--seconds=3")
    (heading, _, *rows), _ = _table(monkeypatch, capsys, "seam", *arguments)
    assert [row[0] for row in rows] == ["original", "rebuilt", "rebuilt", *["generated"] * (len(rows) - 3)]
    assert len(rows) > 3 and all(len(row) == len(heading) and row[3] and row[6] for row in rows)


def test_rules_of_rebirth(monkeypatch, capsys):
    rows, _ = _table(monkeypatch, capsys, "codebook_rules", "--quick")
    (heading, _, *rules), (learning, _, *found) = rows[:9], rows[9:]
    assert len({row[2] for row in rules}) == len(rules) == 7 and len(found) == 2
    assert all(len(row) == len(heading) and float(row[3]) > 0 and 1 <= int(row[4].split("/")[0]) <= 16 for row in rules)
    assert all(len(row) == len(learning) for row in found)
    assert found[0][4:] != found[1][4:], "the rule makes a difference"


def test_tokens_of_which_some_are_given_are_no_cost_of_a_codec(monkeypatch, capsys):
    config = presets.load("configs/pyramid/lm.py:tiny", {"model.levels": 2, "model.given": 1})
    monkeypatch.setattr(workdir, "load", lambda at, stage: (config, None))
    with pytest.raises(SystemExit, match=r"^out/stage2 is given 1 of its levels and predicts the"):
        _table(monkeypatch, capsys, "token_kinds", "out/stage2")


def test_a_cell_that_cannot_be_says_why_and_is_kept(monkeypatch, capsys, tmp_path):
    """Of any codec in any pattern; no codec is trained for it."""
    arguments = (f"--out={tmp_path}", "--only=sat.delay")
    for more in ((), ("--table",)):
        (heading, _, row), _ = _table(monkeypatch, capsys, "any_pattern", *arguments, *more)
        assert len(row) == len(heading) and row[:2] == ["sat", "delay"]
        assert row[-1].startswith("the delay pattern needs levels of one length, not (1, ")
        assert (tmp_path / "cells" / "sat.delay.json").is_file() and not (tmp_path / "sat").exists()
