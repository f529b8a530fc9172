"""The accelerator's benchmark on a CPU: its records, its proof of fused attention, its table, what it imports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ABSENT = ("grain", "orbax", "array_record", "librosa", "soundfile", "soxr", "tensorboardX", "tqdm", "safetensors")


def _run(out: Path, *arguments: str) -> str:
    """Runs the benchmark at the smallest size on one device; what it is not to need cannot be imported."""
    barred = f"""
import sys

class Barred:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"{{name}} is not to be imported", name=name)

sys.meta_path.insert(0, Barred())
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
import accelerator
accelerator.main(sys.argv[1:])
"""
    flags = os.environ.get("XLA_FLAGS", "").replace("device_count=8", "device_count=1")
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", barred, "--preset=tiny", f"--out={out}", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=900).stdout


def _records(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("accelerator") / "records.jsonl"
    _run(out, "--only=card,backbone,superres")
    return out


def test_training_attends_by_cudnn_in_what_is_lowered_for_a_gpu(trained):
    records = _records(trained)
    assert not [record for record in records if "error" in record]
    proofs = {record["model"]: record for record in records if record.get("what") == "attention"}
    assert set(proofs) == {"backbone", "superres"}
    assert all(proof["forward"] >= 1 and proof["backward"] == 1 for proof in proofs.values())


def test_a_training_step_counts_halves_of_causal_rows_and_is_written(trained):
    for step in (record for record in _records(trained) if record.get("what") == "step"):
        assert not step["skipped_update"] and step["loss"] > 0 and step["layers"] == step["of"]
        assert step["mfu_of_measured"] == pytest.approx(step["flops"] / step["seconds"] / _peak(trained), rel=1e-3)


def _peak(out: Path) -> float:
    return next(record["flops"] for record in _records(out) if record.get("what") == "matrix")


def test_the_table_has_a_row_a_step_and_a_line_an_error(trained, tmp_path):
    with_error = tmp_path / "records.jsonl"
    with_error.write_text(trained.read_text() + '{"section": "codec", "error": "ended after 3 s"}\n')
    table = _run(with_error, f"--table={with_error}")
    assert "| backbone, 2 of 2 layers | 1 x 256 | dots |" in table and "| superres, 2 of 2 layers | 2 x 256 |" in table
    assert "* codec: ended after 3 s" in table


def test_a_section_that_fails_leaves_one_line_and_the_rest_runs(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import accelerator
    import accelerator_sections

    def broken(bench):
        yield {"what": "first"}
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(accelerator_sections, "card", broken)
    monkeypatch.setattr(accelerator_sections, "codec", lambda bench: iter([{"what": "last"}]))
    accelerator.main(["--preset=tiny", "--only=card,codec", f"--out={tmp_path / 'records.jsonl'}"])
    found = [(r["section"], r.get("what") or r["error"]) for r in _records(tmp_path / "records.jsonl")]
    assert found[0] == ("card", "first") and found[1][1].startswith("RuntimeError: out of (test_accelerator.py")
    assert found[2:] == [("card", "done"), ("codec", "last"), ("codec", "done")]


@pytest.mark.slow
def test_every_section_runs_to_its_end(tmp_path):
    out = tmp_path / "records.jsonl"
    names = ["card", "parity", "backbone", "superres", "tokens", "song", "codec"]  # scales: test_benchmarks.py
    _run(out, "--minutes=14", f"--only={','.join(names)}")
    records = _records(out)
    assert not [record for record in records if "error" in record or "skipped" in record]
    ended = [record["section"] for record in records if record.get("what") == "done"]
    assert ended == names
    for record in (record for record in records if record["section"] == "parity"):
        assert record.get("what") == "done" or record["finite"]
    assert [record["times"] for record in records if record.get("what") == "whole"]
