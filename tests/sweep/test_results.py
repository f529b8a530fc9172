"""What the runs of a sweep came to."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hiermusic.errors import UserError
from hiermusic.sweep import plan, results, runs, scaling

from .files import BACKBONE, law


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


def test_a_law_is_drawn_with_its_formula_and_the_runs_that_it_left_out():
    rows = [{"flops": 10.0**power, "valid_loss": 4.0 - 0.1 * power} for power in range(3, 7)]
    axis = Figure().subplots()
    results._draw_law(axis, rows, rows[1:], scaling.Fit(3.0, 20.0, 0.25, (0.2, 0.3), 1.0, [0.0] * 3, None))
    lines, names = axis.get_legend_handles_labels()
    assert names == ["fitted", "left out", "3 + A C^-0.25", "E"]
    assert [len(line.get_xdata()) for line in lines[:3]] == [3, 1, 100]
    compute, loss = (array[[0, -1]] for array in lines[2].get_data())
    np.testing.assert_allclose(compute, [1e4, 1e6])
    np.testing.assert_allclose(loss, 3 + 20 * compute**-0.25)
