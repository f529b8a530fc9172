"""The notebooks: stored as they should be, and, slowly, run at a reduced size with what they came to looked at."""

import json
import math
import os
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SONGS = "builtin:20?seconds=4-5&styles=pop,dance"
KHALA = (
    "--config.train.steps=6 --config.train.quantise_start=3 --config.train.valid_every=6 --config.train.batch_size=2 "
    "--config.model.encoder_width=8 --config.model.decoder_width=16"
)
BACKBONE = (
    "--config.train.steps=6 --config.train.valid_every=3 --config.train.valid_batches=1 --config.train.batch_size=2 "
    "--config.train.log_every=2"
)
# notebook -> its parameters at a reduced size, and, to be printed when it is through, what is asserted below
CASES = {
    "1_listen_to_a_hierarchy": (
        {
            "SONGS": SONGS,
            "KHALA": KHALA,
            "SAT": "--config.train.steps=6 --config.train.quantise_start=3 --config.train.valid_every=6 "
            "--config.model.width=4 --config.train.batch_size=2",
            "SECONDS": 2,
        },
        "{'khala': khala_db, 'sat': sat_db, 'lengths': [len(wav_LC) for wav_LC in sat_sounds.values()]}",
    ),
    "2_train_a_small_system": (
        {"SONGS": SONGS, "CODEC": KHALA, "BACKBONE": BACKBONE},
        "{'names': [song.name for song in songs], 'tonality': tonality, 'steps': list(steps), 'held_out': held_out}",
    ),
    "3_plan_a_pod_run": (
        {
            "CONFIG": "configs/khala/backbone.py:small",
            "SMALLER": "--config.model.layers=1 --config.model.width=256 --config.model.heads=4 "
            "--config.model.length=1024 --config.train.batch_size=4 --effort=O0",
            "SLICES": ["v5e:2x2"],
        },
        "{'parameters': facts['params']['total'], 'fits': plans['v5e:2x2']['fits'], 'costs': costs, 'steps': STEPS, "
        "'step': fitting['v5e:2x2']['step_seconds']}",
    ),
    "4_read_a_sweep": (
        {
            "SONGS": SONGS,
            "CODEC": KHALA,
            "SWEEP": "ladder.py",
            "RUNS": "--config.train.batch_size=2 --config.train.valid_batches=1 --config.model.length=320",
        },
        "{'runs': [(run['state'], run['parameters'], run['valid_loss']) for run in results['runs']], "
        "'scaling': results.get('scaling')}",
    ),
    "5_start_from_released_weights": (
        {
            "SONGS": "builtin:4?seconds=2",
            "SONG": "builtin:1?seconds=1&seed=7",
            "CODEC": "--config.model.levels=3 --config.model.codes=16 --config.train.steps=2 "
            "--config.train.crop_frames=8 --config.train.valid_every=0",
            "SIZES": "--config.model.layers=1 --config.model.width=32 --config.model.heads=1 "
            "--config.model.ffn_width=32",
            "TUNING": "--config.train.learning_rate=2e-2 --config.train.steps=60 --config.train.log_every=5",
            "SHORT": "--config.model.length=192 --config.model.dtype=float32",
        },
        "{'losses': [line['loss'] for line in lines], 'shares': {name: list(map(float, share)) for name, share in "
        "shares.items()}, 'codes': after.codes_SP.shape, 'true': true_SP.shape}",
    ),
}

LADDER = """CONFIG = "configs/khala/backbone.py:tiny"
SCALING = True


def get_hyper(hyper):
    sizes = [hyper.sweep("model.width", [16, 32, 32]), hyper.sweep("train.steps", [4, 8, 16])]
    rest = [hyper.fixed(f"model.{name}", 1, length=3) for name in ("layers", "heads", "kv_heads")]
    return hyper.zipit([*sizes, *rest])
"""


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def test_every_notebook_is_run():
    assert [path.stem for path in NOTEBOOKS] == list(CASES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_outputs_and_begins_by_installing(path):
    book = read(path)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert "pip install" in code[0].source and "pip" not in "".join(cell.source for cell in code[1:])
    assert code[1].metadata.tags == ["parameters"]
    said = [line for line in (ROOT / "README.md").read_text().splitlines() if f"notebooks/{path.name}" in line]
    assert len(said) == 1, "the README links it once"
    names = set(re.findall(r"^(\w+) = ", code[1].source, re.M))
    assert set(CASES[path.stem][0]) <= names, "what is reduced is a parameter"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """notebook -> the notebook with its outputs, run in a folder of its own, and what it came to."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # one device, as a newcomer has it
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))

    def execute(path: Path) -> tuple[nbformat.NotebookNode, dict]:
        book = read(path)
        reduced, probe = CASES[path.stem]
        parameters = next(cell for cell in book.cells if cell.metadata.get("tags") == ["parameters"])
        parameters.source += "".join(f"\n{name} = {value!r}" for name, value in reduced.items())
        book.cells.append(nbformat.v4.new_code_cell(f"import json; print(json.dumps({probe}))"))
        NotebookClient(book, timeout=900, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
        return book, json.loads(book.cells[-1].outputs[0].text)

    return execute


def players(book: nbformat.NotebookNode) -> int:
    return sum("<audio" in text for text in shown(book, "text/html"))


def pictures(book: nbformat.NotebookNode) -> int:
    return len(shown(book, "image/png"))


def shown(book: nbformat.NotebookNode, kind: str) -> list[str]:
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output.data[kind] for output in outputs if kind in output.get("data", {})]


@pytest.mark.slow
def test_listening_to_a_hierarchy(run, tmp_path):
    book, came_to = run(NOTEBOOKS[0])
    assert players(book) == (1 + 7) + 3 + (1 + 6) and pictures(book) == 4
    assert list(came_to["khala"]) == ["1", "2", "4", "8", "16", "32", "64"]
    ratios = [*came_to["khala"].values(), *came_to["sat"].values()]
    assert all(math.isfinite(ratio) and ratio < 20 for ratio in ratios), ratios  # hardly trained: far below 0 dB
    assert len(set(came_to["khala"].values())) >= 5, "other numbers of levels make other sounds"
    assert set(came_to["lengths"]) == {2 * 24000}
    assert (tmp_path / "out" / "sat" / "config.json").is_file()


@pytest.mark.slow
def test_training_a_small_system(run, tmp_path):
    book, came_to = run(NOTEBOOKS[1])
    assert players(book) == 2 and pictures(book) == 1 and came_to["names"] == ["dance", "ballad"]
    assert came_to["steps"][-1] == 6 and [step for step, _ in came_to["held_out"]] == [3, 6]
    assert all(3 < loss < 8 for _, loss in came_to["held_out"])  # an untrained model's is ln 256 = 5.5
    assert len(came_to["tonality"]) == 4 and all(0 <= value <= 1 for value in came_to["tonality"].values())
    assert (tmp_path / "out" / "backbone" / "evaluation" / "report.html").is_file()


@pytest.mark.slow
def test_planning_a_pod_run(run):
    pytest.importorskip("libtpu")
    book, came_to = run(NOTEBOOKS[2])
    assert pictures(book) == 1 and came_to["fits"] and came_to["parameters"] > 1e6
    hours = came_to["steps"] * came_to["step"] / 0.6 / 3600
    assert came_to["costs"] == {"v5e:2x2": pytest.approx(4 * hours * 1.2)}


@pytest.mark.slow
def test_reading_a_sweep(run, tmp_path):
    (tmp_path / "ladder.py").write_text(LADDER)
    book, came_to = run(NOTEBOOKS[3])
    assert [state for state, _, _ in came_to["runs"]] == ["finished"] * 3
    sizes, losses = [run[1] for run in came_to["runs"]], [run[2] for run in came_to["runs"]]
    assert sizes == sorted(sizes) and losses[-1] < losses[0] and pictures(book) == 2
    assert (tmp_path / "out" / "ladder" / "results.png").is_file()


@pytest.mark.slow
def test_starting_from_released_weights(run, tmp_path):
    book, came_to = run(NOTEBOOKS[4])
    assert players(book) == 3 and pictures(book) == 1
    at = tmp_path / "out"
    assert {path.suffix for path in (at / "six").iterdir()} == {".safetensors", ".json", ".pt", ".yaml", ".md"}
    assert all((at / "khala" / name / "model.safetensors").is_file() for name in ("codec", "backbone", "superres"))
    assert len(json.loads((at / "khala/backbone/verification/results.json").read_text())["verification"]) == 6
    told = json.loads((at / "sung" / "config.json").read_text())
    assert told["init_from"] == f"{at}/khala/backbone@0" and told["licences"] == ["unknown"]
    assert came_to["codes"] == came_to["true"] and came_to["losses"][-1] < 0.5 * came_to["losses"][0]
    shares = {name: sum(share) / len(share) for name, share in came_to["shares"].items()}
    assert shares["after"] > max(shares["before"], shares["most frequent code"]), shares
