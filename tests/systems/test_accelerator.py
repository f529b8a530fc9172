"""The accelerator's benchmark on a CPU: its records, its proof of fused attention, its table, what it imports."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.nn import attention
from hiermusic.tokens.visibility import Visibility

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"
NEEDED = ("jax", "flax", "optax", "ml_collections", "jaxtyping", "numpy", "absl", "scipy")  # the last two by the others
NAMES = {"absl_py": "absl", "orbax_checkpoint": "orbax", "pillow": "PIL", "scikit_learn": "sklearn"}
SECTIONS = ["card", "parity", "backbone", "superres", "tokens", "song", "scales", "codec"]


def _absent() -> list[str]:
    """The modules of the package's dependencies that the benchmark has to do without."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [re.match(r"[\w-]+", line)[0].replace("-", "_") for line in told]
    return [name for name in (NAMES.get(name, name) for name in names) if name not in NEEDED]


def _run(code: str, *arguments: str) -> str:
    """Runs code, with the benchmarks to import, on one device; what they are not to need cannot be imported."""
    barred = f"""
import sys

class Barred:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {_absent()}:
            raise ModuleNotFoundError(f"{{name}} is not to be imported", name=name)

sys.meta_path.insert(0, Barred())
sys.path.insert(0, {str(BENCHMARKS)!r})
{code}
"""
    flags = os.environ.get("XLA_FLAGS", "").replace("device_count=8", "device_count=1")
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", barred, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def _benchmark(out: Path, *arguments: str) -> str:
    """Runs the benchmark at the smallest size; it has to end well."""
    flags = ("--preset=tiny", "--together", "--minutes=600", f"--out={out}")  # however busy the machine is
    return _run("import accelerator; accelerator.main(sys.argv[1:])", *flags, *arguments)


IMPORTS = """
import ast
from pathlib import Path

for name in sys.argv[1:]:
    for node in ast.walk(ast.parse(Path(name).read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            exec(ast.unparse(node))
try:
    import grain
except ModuleNotFoundError as error:
    print(error)
"""


def _records(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.read_text().splitlines()]


def _proofs(records: list[dict]) -> dict[str, dict]:
    return {record["section"]: record for record in records if record.get("what") == "attention"}


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))  # put back afterwards
    for name in ("XLA_PYTHON_CLIENT_MEM_FRACTION", "TF_CPP_MIN_LOG_LEVEL", "JAX_DISABLE_MOST_OPTIMIZATIONS"):
        monkeypatch.setenv(name, os.environ.get(name, "0"))
    import accelerator

    return accelerator


def test_what_it_imports_needs_few_of_the_dependencies():
    names = [*BENCHMARKS.glob("accelerator*.py"), BENCHMARKS / "next_scale.py"]
    assert len(names) == 6 and {"grain", "orbax", "librosa", "soundfile", "tensorboardX", "matplotlib"} <= {*_absent()}
    assert _run(IMPORTS, *map(str, names)) == "grain is not to be imported\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("accelerator") / "records.jsonl"
    _benchmark(out, "--only=card,backbone,superres")
    return out


def test_training_attends_by_cudnn_in_what_is_lowered_for_a_gpu(trained):
    records = _records(trained)
    assert not [record for record in records if "error" in record or "skipped" in record]
    proofs = _proofs(records)
    assert set(proofs) == {"backbone", "superres"}
    for proof in proofs.values():
        assert proof["where"] == "paper, lowered for cuda" and proof["forward"] >= 1 and proof["backward"] == 1


def test_a_training_step_counts_halves_of_causal_rows_and_is_written(trained):
    steps = [record for record in _records(trained) if record.get("what") == "step"]
    assert [step["section"] for step in steps] == ["backbone", "superres"]
    for step in steps:
        assert not step["skipped_update"] and step["loss"] > 0 and step["layers"] == step["of"]
        assert step["mfu_of_measured"] == pytest.approx(step["flops"] / step["seconds"] / _peak(trained), rel=1e-3)


def _peak(out: Path) -> float:
    return next(record["flops"] for record in _records(out) if record.get("what") == "matrix")


def test_the_table_has_a_row_a_step_a_line_a_proof_and_an_error(trained, tmp_path, capsys, accelerator):
    with_error = tmp_path / "records.jsonl"
    with_error.write_text(trained.read_text() + '{"section": "codec", "error": "ended after 3 s"}\n')
    accelerator.main([f"--table={with_error}"])
    table = capsys.readouterr().out
    assert "| backbone, 1 of 1 layers | 1 x 128 | dots |" in table and "| superres, 1 of 1 layers | 2 x 128 |" in table
    assert "* codec: ended after 3 s" in table and "of a causal row half" in table
    assert table.count("cuDNN's attention, ") == 2


@pytest.mark.parametrize(("dtype", "fused"), [(jnp.bfloat16, True), (jnp.float32, False)])
def test_attention_that_falls_back_is_an_error(dtype, fused, accelerator):
    from accelerator_tools import attention_proof

    row = jax.ShapeDtypeStruct((1, 2, 64, 64), dtype)  # cuDNN's kernel takes half precision only

    def trace():
        return jax.jit(lambda q, k, v: attention.attend(q, k, v, visibility=Visibility.causal())).trace(row, row, row)

    proof = attention_proof("a row", None, trace, trained=False)
    assert ("error" not in proof) == fused and (proof["forward"] == 1) == fused and proof["backward"] == 0
    assert "error" in attention_proof("a row", None, trace, trained=True), "nothing was lowered backward"


def test_a_section_that_fails_leaves_one_line_and_the_rest_runs(tmp_path, monkeypatch, accelerator):
    import accelerator_sections

    def broken(bench):
        yield {"what": "first"}
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(accelerator_sections, "card", broken)
    monkeypatch.setattr(accelerator_sections, "codec", lambda bench: iter([{"what": "last"}]))
    with pytest.raises(SystemExit, match="1"):
        accelerator.main(["--preset=tiny", "--together", "--only=card,codec", f"--out={tmp_path / 'records.jsonl'}"])
    found = [(r["section"], r.get("what") or r["error"]) for r in _records(tmp_path / "records.jsonl")]
    assert found[0] == ("card", "first") and found[1][1].startswith("RuntimeError: out of (test_accelerator.py")
    assert found[2:] == [("card", "done"), ("codec", "last"), ("codec", "done")]


def test_without_an_accelerator_only_tiny_runs(tmp_path, accelerator):
    with pytest.raises(SystemExit, match="1"):
        accelerator.main(["--together", "--only=card", f"--out={tmp_path / 'records.jsonl'}"])
    record, _ = _records(tmp_path / "records.jsonl")
    assert "no accelerator here" in record["error"]


def test_what_there_is_no_time_for_is_said_to_be_left_out(tmp_path, monkeypatch, accelerator):
    import accelerator_sections

    def endless(bench):
        while True:
            bench.end = 0  # as if all time had gone by
            yield {"what": "something"}

    monkeypatch.setattr(accelerator_sections, "card", endless)
    out = tmp_path / "records.jsonl"
    accelerator.main(["--preset=tiny", "--only=card", f"--out={out}"])
    accelerator.main(["--preset=tiny", "--together", "--minutes=0", f"--out={out}"])
    accelerator.main(["--minutes=0.05", f"--out={out}"])  # each in a process of its own, which does not begin
    something, rest, done, *others = _records(out)
    assert something["what"] == "something" and "no time left" in rest["skipped"] and done["what"] == "done"
    assert [record["section"] for record in others] == SECTIONS * 2
    assert all("needed" in record["skipped"] for record in others)


def test_a_section_runs_in_a_process_of_its_own(tmp_path, capfd, accelerator):
    out = tmp_path / "records.jsonl"
    accelerator.conduct(["card"], out, "tiny", minutes=600, together=False)
    records = _records(out)
    assert [record["what"] for record in records][-3:] == ["bandwidth", "reading", "done"]
    assert capfd.readouterr().out == out.read_text()


@pytest.mark.parametrize(("jaxlib", "older"), [("0.10.2", ["--xla_cpu_use_fusion_emitters=false"]), ("0.12.0.1", [])])
def test_tiny_alone_asks_for_programs_that_are_made_quickly(tmp_path, monkeypatch, accelerator, jaxlib, older):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.setattr(accelerator, "version", {"jaxlib": jaxlib}.get)
    for preset, flags in (("paper", []), ("tiny", older)):
        accelerator.main([f"--preset={preset}", "--together", "--minutes=0", f"--out={tmp_path / preset}"])
        assert os.environ["XLA_FLAGS"].split() == [*flags, "--xla_backend_optimization_level=0"]


def test_weights_are_drawn_on_a_cpu_without_a_program(monkeypatch, accelerator):
    from accelerator_tools import fresh

    monkeypatch.delattr(jax, "jit")
    module = nnx.merge(*fresh(lambda rngs: nnx.BatchNorm(64, rngs=rngs, param_dtype=jnp.bfloat16)))
    scale, var = np.asarray(module.scale[...]), np.asarray(module.var[...])
    assert scale.dtype == jnp.bfloat16 and len(set(scale.tolist())) > 32 and 0 <= scale.min() < scale.max() <= 0.04
    assert var.shape == (64,) and not var.any()


def test_the_small_codec_trains_without_mel_filters(monkeypatch, accelerator):
    from accelerator_models import traced
    from accelerator_tools import configuration

    from hiermusic.audio import spectral
    from hiermusic.parallel.mesh import make_mesh
    from hiermusic.systems.khala import stages

    spectral.mel_filters.cache_clear()
    monkeypatch.setitem(sys.modules, "librosa", None)
    stage, mesh = stages.stage(configuration("codec", "tiny")), make_mesh({}, jax.devices()[:1])
    with jax.set_mesh(mesh):
        traced(stage, {"wav": jax.ShapeDtypeStruct(stage.shape, jnp.float32)}, mesh)


def test_tiny_runs_two_sections_at_a_time_each_once(tmp_path, accelerator):
    out = tmp_path / "records.jsonl"
    assert sorted(name for side in accelerator.SIDES for name in side) == sorted(set(SECTIONS) - {"card"})
    accelerator.main(["--preset=tiny", "--minutes=0", f"--out={out}"])
    records = _records(out)
    assert records[0]["section"] == "card" and sorted(record["section"] for record in records) == sorted(SECTIONS)


@pytest.mark.slow
def test_every_section_runs_to_its_end(tmp_path):
    out = tmp_path / "records.jsonl"
    _benchmark(out)
    records = _records(out)
    assert not [record for record in records if "error" in record or "skipped" in record]
    assert [record["section"] for record in records if record.get("what") == "done"] == SECTIONS
    assert set(_proofs(records)) == {"backbone", "superres", "song"}
    for record in (record for record in records if record["section"] == "parity"):
        assert record.get("what") == "done" or record["finite"]
    generated = [record for record in records if "floor" in record]
    assert [(record["section"], record.get("what")) for record in generated] == [
        *[("tokens", "step")] * 2,
        *[("song", what) for what in ("passes", "decoding", "whole")],
        *[("scales", None)] * 2,
    ]
    assert [record["times"] for record in records if record.get("what") == "whole"]
