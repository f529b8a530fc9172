"""Checkpoints of the miniature through the command line: looked at, resharded, exported and used from there."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from hiermusic.audio import files
from hiermusic.train import checkpoint


@pytest.fixture(scope="module")
def exported(khala, run, tmp_path_factory):
    root = tmp_path_factory.mktemp("exported")
    for name in ("codec", "backbone", "superres"):
        run("export", f"--workdir={getattr(khala, name)}", f"--out={root / name}", "--licence=cc-by-4.0")
    return root


def told(capsys, run, *arguments) -> dict:
    run(*arguments, "--json")
    return json.loads(capsys.readouterr().out)


def refusal(capsys, run, *arguments) -> str:
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def same(one, other) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def test_inspect(capsys, khala, run):
    facts = told(capsys, run, "inspect", f"--workdir={khala.backbone}", "--weights")
    held = facts["checkpoint"]
    assert held["step"] == 4 and held["parts"]["model"]["numbers"] == facts["params"]["total"]
    assert sum(np.prod(weight["shape"]) for weight in held["weights"]) == facts["params"]["total"]
    run("inspect", f"--workdir={khala.backbone}", "--weights")
    out = capsys.readouterr().out
    assert "checkpoints: 4" in out and held["weights"][0]["name"] in out
    line = refusal(capsys, run, "inspect", f"--workdir={khala.codec}", "--step=3")
    assert "no checkpoint of step 3: it has 4" in line


def test_inspect_of_a_system_that_is_not_known_here(capsys, khala, run, tmp_path):
    copy = shutil.copytree(khala.backbone, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "system": "later"}))
    facts = told(capsys, run, "inspect", f"--workdir={copy}")
    assert facts["system"] == "later" and "params" not in facts
    assert facts["checkpoint"]["parts"]["model"]["arrays"] > 1


def test_reshard_and_go_on(capsys, khala, run, tmp_path):
    """In a process of its own, which makes the mesh's devices itself."""
    out = tmp_path / "out"
    command = [sys.executable, "-m", "hiermusic", "reshard", f"--workdir={khala.backbone}", f"--out={out}"]
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [*command, "--mesh=fsdp=2", "--json"], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["checkpoint"]["mesh"]["fsdp"] == 2
    assert checkpoint.read_config(out)["mesh"] == {"data": -1, "fsdp": 2, "context": 1, "tensor": 1, "across": "data"}
    one, other = (checkpoint.load_weights(workdir) for workdir in (khala.backbone, out))
    assert same(one, other)


def test_what_reshard_refuses(capsys, khala, run, tmp_path):
    def said(*flags):
        return refusal(capsys, run, "reshard", f"--workdir={khala.backbone}", f"--out={tmp_path / 'out'}", *flags)

    assert "do not divide over 2 devices of mesh axis 'tensor'" in said("--mesh=tensor=2")
    assert "train.batch_size=2 does not divide over the 4 devices" in said("--mesh=data=4")
    assert "mesh axis 'model' is unknown" in said("--mesh=model=2")
    assert "give each axis once with its devices, such as" in said("--mesh=fsdp")
    assert "mesh.fsdp is -1, which says nothing of the shards" in said("--mesh=fsdp=-1")
    assert "no checkpoint of step 3" in said("--step=3")
    assert "--dtype=int8: choose float32 or bfloat16" in said("--dtype=int8", "--weights_only")
    assert list(tmp_path.iterdir()) == []


def test_an_exported_model_is_no_training_run(capsys, run, exported, tmp_path):
    told = {
        "reshard": "is an exported or imported model, not a training run with checkpoints: give a run",
        "export": "is exported or imported already: copy the folder, or give another --format",
    }
    for verb, words in told.items():
        line = refusal(capsys, run, verb, f"--workdir={exported / 'backbone'}", f"--out={tmp_path / 'out'}")
        assert f"backbone {words}" in line


def test_export_tells_what_it_wrote(capsys, khala, run, exported, tmp_path):
    card = (exported / "backbone" / "README.md").read_text()
    assert "license: cc-by-4.0" in card and "loss at step 4" in card and str(khala.root) not in card
    facts = told(capsys, run, "export", f"--workdir={khala.backbone}", f"--out={tmp_path / 'out'}", "--dtype=bfloat16")
    assert facts["files"] == ["model.safetensors"] and facts["dtype"] == "bfloat16" and facts["step"] == 4
    inside = told(capsys, run, "inspect", f"--workdir={tmp_path / 'out'}")["checkpoint"]
    assert list(inside["parts"]["model"]["dtypes"]) == ["bfloat16"]


def test_exported_weights_are_the_same_bits(khala, exported):
    for name in ("codec", "backbone", "superres"):
        assert same(*(checkpoint.load_weights(root / name) for root in (khala.root, exported)))


def test_codes_and_sounds_from_an_exported_codec(khala, run, exported, tmp_path):
    files.write(tmp_path / "in.wav", 0.1 * np.random.default_rng(0).normal(size=(30_000, 2)).astype(np.float32), 44_100)
    for name, codec in (("run", khala.codec), ("export", exported / "codec")):
        run("encode", f"--codec={codec}", tmp_path / "in.wav", tmp_path / f"{name}.npz")
        run("decode", f"--codec={codec}", tmp_path / f"{name}.npz", tmp_path / f"{name}.wav")
    with np.load(tmp_path / "run.npz") as one, np.load(tmp_path / "export.npz") as other:
        assert np.array_equal(one["codes"], other["codes"])
    assert (tmp_path / "run.wav").read_bytes() == (tmp_path / "export.wav").read_bytes()


def test_songs_from_exported_models(khala, run, exported, tmp_path):
    for name, root in (("run", khala.root), ("export", exported)):
        models = (f"--{stage}={root / stage}" for stage in ("superres", "backbone", "codec"))
        run("generate", *models, f"--prompts={khala.prompts}", f"--out={tmp_path / name}")
    for song in ("one.wav", "two.wav"):
        assert (tmp_path / "run" / song).read_bytes() == (tmp_path / "export" / song).read_bytes()


def test_tokens_and_measures_from_exported_models(khala, run, exported, tmp_path):
    run("tokenize", f"--codec={exported / 'codec'}", f"--data={khala.corpus}", f"--out={tmp_path / 'tokens'}")
    for shard in khala.tokens.glob("*.arrayrecord"):
        assert (tmp_path / "tokens" / shard.name).read_bytes() == shard.read_bytes()
    out = tmp_path / "evaluation"
    run("evaluate", f"--workdir={exported / 'backbone'}", f"--out={out}", "--tracks=1")
    assert json.loads((out / "results.json").read_text())["predictability"]
