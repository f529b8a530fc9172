"""The list and the table of benchmarks/scale_table.py."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "scale_table.py"


@pytest.fixture(scope="module")
def scale_table():
    spec = importlib.util.spec_from_file_location("scale_table", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def facts(program):
    return {
        "stage": "backbone",
        "preset": "paper",
        "topology": "v6e:16x16",
        "slices": 2,
        "mesh": {"data": 2, "fsdp": 256, "context": 1, "tensor": 1},
        "batch_size": 512,
        "remat": "full",
        "parameters": 1_617_000_000,
        "memory_per_chip": 32 * 2**30,
        "programs": [{"name": "train causal", "compile_seconds": 61.4} | program],
    }


def test_rows_become_arguments_of_the_verb(scale_table, tmp_path):
    path = tmp_path / "rows.txt"
    path.write_text("# all\n\nconfigs/khala/codec.py:paper v5e:4x4 --slices=2 --config.model.remat=full  # why\n")
    (row,) = scale_table.read_rows(path)
    assert row == (
        *("--config=configs/khala/codec.py:paper", "--topology=v5e:4x4"),
        *("--slices=2", "--config.model.remat=full"),
    )


def test_a_row_tells_whether_it_fits(scale_table):
    fits = facts({
        "fits": True,
        "bytes_per_chip": {"peak": 8 * 2**30},
        "collectives": [{"bytes": 2**30}, {"bytes": 2**29}],
        "prediction": {"step_seconds": 1.25, "bound_by": "ici", "mfu": 0.412, "tokens_per_second": 1e6},
    })  # fmt: skip
    fails = facts({"fits": False, "bytes_per_chip": {"memory": "HBM", "wanted": 40 * 2**30, "available": 31 * 2**30}})
    text = scale_table.table([(("a",), fits), (("b",), fails), (("--topology=v6e:x",), {"failed": "no such slice"})])
    head, rule, *lines = text.split("\n\n")[0].splitlines()
    assert len(lines) == 3 and {line.count("|") for line in (head, rule, *lines)} == {len(scale_table.COLUMNS) + 1}
    for word in ("2 x v6e:16x16", "data 2 fsdp 256", "1.617 B", "8.00 of 32", "1.50", "1.25 (ici)", "41%", "1,000,000"):
        assert f" {word} " in lines[0]
    assert "does not fit: 40.00 of HBM" in lines[1] and "no such slice" in lines[2]
