"""Checkpoints told, read in pieces and rewritten for another mesh."""

import json
import shutil

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from hiermusic.errors import UserError
from hiermusic.parallel.mesh import mesh_of, shardings
from hiermusic.pretrained import export
from hiermusic.train import checkpoint, loop, stored
from hiermusic.train.log import read_metrics

MESH = {"data": 2, "fsdp": 4}
OTHER = {"data": 1, "fsdp": 2, "tensor": 4}


def config(toy, mesh=MESH, **train):
    settings = toy.config(**{"steps": 6, "checkpoint_every": 3, **train})
    settings["mesh"] = mesh
    return settings


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    toy.run(toy.ToyStage(config(toy)), workdir, progress=False)
    return workdir


def abstract(toy, settings):
    stage = toy.ToyStage(settings)
    state = loop.abstract_state(stage, stage.config.loop.seed)[1]
    return checkpoint.place(state, shardings(state, mesh_of(stage.config.mesh)))


def reshard(toy, workdir, out, mesh=OTHER, **how):
    settings = config(toy, mesh)
    return stored.reshard(workdir, out, settings, abstract(toy, settings), **how)


def test_a_checkpoint_is_told_from_its_metadata(trained, monkeypatch):
    monkeypatch.setattr(ocp, "load_checkpointables", None)  # nothing is loaded
    facts = stored.describe(trained, weights=True)
    assert facts["steps"] == [3, 6] and facts["step"] == 6
    assert facts["mesh"] == {"data": 2, "fsdp": 4, "context": 1, "tensor": 1}
    assert list(facts["parts"]) == ["model", "ema", "train", "data"]
    assert facts["parts"]["model"] == {"arrays": 2, "numbers": 40, "dtypes": {"float32": 40}}
    assert facts["parts"]["train"]["dtypes"]["float32"] == 80
    assert facts["weights"][1] == {"name": "weight", "shape": [4, 8], "dtype": "float32"}
    files = (trained / "checkpoints" / "6").rglob("*")
    assert facts["bytes"] == sum(path.stat().st_size for path in files if path.is_file())
    json.dumps(facts)
    with pytest.raises(UserError, match="no checkpoint of step 4: it has 3, 6"):
        stored.describe(trained, step=4)


def test_weights_are_read_a_few_at_a_time(trained):
    weights = stored.open_weights(trained)
    whole = checkpoint.load_weights(trained)
    assert weights.part == "ema" and weights.step == 6 and set(weights.shapes) == {"weight", "bias"}
    assert list(weights.read(["bias"])) == ["bias"]
    for name, array in weights.read(["bias", "weight"]).items():
        assert np.array_equal(array, whole[name])
    rounded = stored.open_weights(trained, step=3, dtype="bfloat16")
    assert rounded.read(["weight"])["weight"].dtype == rounded.shapes["weight"].dtype == jax.numpy.bfloat16


def test_training_goes_on_alike_on_another_mesh(toy, trained, tmp_path):
    source, out = shutil.copytree(trained, tmp_path / "source"), tmp_path / "out"
    facts = reshard(toy, source, out)
    assert facts["mesh"] == {"data": 1, "fsdp": 2, "context": 1, "tensor": 4}
    stages = [toy.ToyStage(config(toy, mesh, steps=9)) for mesh in (MESH, OTHER)]
    read = [[], []]
    for stage, asked in zip(stages, read, strict=True):
        batch = stage._batch
        stage._batch = lambda rows, index, batch=batch, asked=asked: asked.append(index) or batch(rows, index)
    for stage, workdir in zip(stages, (source, out), strict=True):
        toy.run(stage, workdir, progress=False)
    assert min(read[0]) == min(read[1]) == 6  # the next batch, and none before it
    one, other = (read_metrics(workdir) for workdir in (source, out))
    assert one[:6] == other[:6]
    assert [record["step"] for record in other] == list(range(1, 10))
    # the same values summed in another order
    assert [r["loss"] for r in one[6:]] == pytest.approx([r["loss"] for r in other[6:]], rel=1e-6)


def test_resharding_keeps_every_bit(toy, trained, tmp_path):
    reshard(toy, trained, tmp_path / "out", step=3)
    everywhere = abstract(toy, config(toy))
    states = []
    for workdir in (trained, tmp_path / "out"):
        checkpoints = checkpoint.Checkpoints(workdir)
        states.append(checkpoints.restore(everywhere, 3))
        checkpoints.close()
    (one, data), (other, other_data) = states
    assert data == other_data and data["step"] == 3
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(a, b), one, other)))


def test_chunks_are_the_shards_that_will_be_read(toy, trained, tmp_path):
    reshard(toy, trained, tmp_path / "out")
    metadata = ocp.checkpointables_metadata(tmp_path / "out" / "checkpoints" / "6").metadata
    wanted = checkpoint.split(jax.tree.map(lambda leaf: leaf, abstract(toy, config(toy, OTHER)).to_pure_dict()))
    for part in ("model", "ema", "train"):
        found = export.dotted(metadata[part])
        for name, leaf in export.dotted(wanted[part]).items():
            assert found[name].storage_metadata.chunk_shape == leaf.sharding.shard_shape(leaf.shape), name


def test_weights_alone(toy, trained, tmp_path):
    facts = reshard(toy, trained, tmp_path / "out", weights_only=True, dtype="bfloat16")
    assert list(facts["parts"]) == ["model"] and list(facts["parts"]["model"]["dtypes"]) == ["bfloat16"]
    expected = checkpoint.load_weights(trained)["weight"].astype(jax.numpy.bfloat16)
    assert np.array_equal(checkpoint.load_weights(tmp_path / "out")["weight"], expected)
    settings = config(toy, OTHER, steps=9)
    with pytest.raises(UserError, match=r"is incomplete .* is missing"):
        toy.run(toy.ToyStage(settings), tmp_path / "out", progress=False)


def test_what_reshard_refuses(toy, trained, tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").touch()
    with pytest.raises(UserError, match="full is not empty: give a new folder"):
        reshard(toy, trained, full)
    with pytest.raises(UserError, match="no checkpoint of step 5"):
        reshard(toy, trained, tmp_path / "out", step=5)
    with pytest.raises(UserError, match="add --weights_only"):
        reshard(toy, trained, tmp_path / "out", dtype="bfloat16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_a_reshard_that_breaks_off_leaves_no_workdir(toy, trained, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copy", lambda *_: 1 / 0)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as after SIGKILL
        with pytest.raises(ZeroDivisionError):
            reshard(toy, trained, out)
    assert not out.exists() and checkpoint.steps(out) == []
    assert not (tmp_path / "out.unfinished" / "config.json").exists()
    reshard(toy, trained, out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
