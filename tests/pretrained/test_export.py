"""Exported folders: what is written, what is read back, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from safetensors.numpy import load_file

from hiermusic.errors import UserError
from hiermusic.parallel.mesh import make_mesh
from hiermusic.pretrained import card, export
from hiermusic.train import checkpoint

FACTS = {"hiermusic": "0.1.0", "step": 7, "weights": "ema", "dtype": "float32"}
CONFIG = {"system": "khala", "stage": "codec", "train": {"batch_size": 4}}


class Model(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 8, rngs=rngs) for _ in range(3)])
        self.scale = nnx.Param(jnp.float32(2.5))
        self.count = nnx.Variable(jnp.arange(3, dtype=jnp.int32))
        self.dropout = nnx.Dropout(0.5, rngs=rngs)


def make():
    return Model(nnx.Rngs(0))


@pytest.fixture
def weights():
    state = nnx.to_pure_dict(nnx.state(Model(nnx.Rngs(1))))
    flat = export.dotted(state)
    is_key = {name: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) for name, leaf in flat.items()}
    return {name: np.asarray(jax.random.key_data(leaf) if is_key[name] else leaf) for name, leaf in flat.items()}


def shapes(weights):
    return {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()}


def write(out, weights, read=None, **how):
    read = read or (lambda names: {name: weights[name] for name in names})
    return export.write(out, shapes(weights), read, CONFIG, FACTS, {"README.md": "# card\n"}, **how)


def test_one_file(weights, tmp_path):
    assert write(tmp_path / "out", weights) == ["model.safetensors"]
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["README.md", "config.json", "model.safetensors"]
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert set(stored) == set(weights) and "layers.0.kernel" in stored
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {**CONFIG, "export": FACTS}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_many_files_never_in_memory_together(weights, tmp_path):
    asked = []

    def read(names):
        asked.append(sum(weights[name].nbytes for name in names))
        return {name: weights[name] for name in names}

    files = write(tmp_path / "out", weights, read, file_bytes=200)
    assert len(files) == len(asked) > 1 and max(asked) <= 200 and sum(asked) == export.total_bytes(shapes(weights))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(asked)
    assert {name: file for file in files for name in load_file(tmp_path / "out" / file)} == index["weight_map"]
    back = export.load(tmp_path / "out")
    assert all(np.array_equal(back[name], weights[name]) for name in weights)
    assert export.shapes(tmp_path / "out") == shapes(weights)


@pytest.mark.parametrize("file_bytes", [100, export.FILE_BYTES])
def test_a_model_comes_back_bit_for_bit(weights, tmp_path, file_bytes):
    write(tmp_path / "out", weights, file_bytes=file_bytes)
    model = checkpoint.load_model(tmp_path / "out", make)
    expected = nnx.to_pure_dict(nnx.state(Model(nnx.Rngs(1))))
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), nnx.to_pure_dict(nnx.state(model)), expected)
    assert all(jax.tree.leaves(same))
    assert checkpoint.latest_step(tmp_path / "out") == 7 and checkpoint.read_config(tmp_path / "out") == CONFIG
    loaded = checkpoint.load_weights(tmp_path / "out", step=7)
    assert np.array_equal(loaded["layers"]["2"]["kernel"], weights["layers.2.kernel"])


def test_over_a_mesh_each_device_gets_its_part(weights, tmp_path):
    write(tmp_path / "out", weights)
    mesh = make_mesh({"fsdp": 4, "tensor": 2})

    def split(abstract):
        spec = {2: P("fsdp", "tensor"), 1: P()}
        return jax.tree.map(lambda leaf: NamedSharding(mesh, spec.get(leaf.ndim, P())), abstract)

    kernel = checkpoint.load_model(tmp_path / "out", make, shardings=split).layers[1].kernel[...]
    assert kernel.sharding.shard_shape(kernel.shape) == (1, 4)
    assert np.array_equal(kernel, weights["layers.1.kernel"])


def test_bfloat16_is_widened_again(weights, tmp_path):
    rounded = {name: a.astype(jnp.bfloat16) if a.dtype == np.float32 else a for name, a in weights.items()}
    write(tmp_path / "out", rounded)
    model = checkpoint.load_model(tmp_path / "out", make)
    assert model.layers[0].kernel.dtype == jnp.float32 and model.count.dtype == jnp.int32
    assert np.array_equal(model.layers[0].kernel[...], rounded["layers.0.kernel"].astype(np.float32))


@pytest.mark.parametrize("names", [("a", "a.b"), ("a.b", "a"), ("a.b.c", "a.b")])
def test_weights_inside_each_other_are_told(names):
    with pytest.raises(
        UserError, match=f"the weight '{names[1]}' and another lie inside each other: export or import the model"
    ):
        export.nested(dict.fromkeys(names, 1))


def test_what_is_refused(weights, tmp_path):
    out = tmp_path / "out"
    write(out, weights)
    with pytest.raises(UserError, match="out is not empty: give a new folder"):
        write(out, weights)
    with pytest.raises(UserError, match="no checkpoint of step 3: it was exported at step 7"):
        checkpoint.load_model(out, make, step=3)
    with pytest.raises(UserError, match=r"another model: model/bias is missing"):
        checkpoint.load_model(out, lambda: nnx.Linear(4, 8, rngs=nnx.Rngs(0)))
    with pytest.raises(UserError, match=r"is an exported model: train in a new workdir with --config\.init_from="):
        checkpoint.check(out, None)
    (out / "model.safetensors").write_bytes(b"garbage" * 30)
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read .*: export or import the model again"):
        checkpoint.load_model(out, make)


@pytest.mark.parametrize(
    "text",
    [
        *("", "null", "[]", "{}", "[" * 99_999),
        *('{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 3}}'),
        *('{"weight_map": {"a": "../model-00001-of-00002.safetensors"}}', '{"weight_map": {"a": "gone.safetensors"}}'),
    ],
)
def test_an_index_that_is_none(weights, tmp_path, text):
    assert len(write(tmp_path / "out", weights, file_bytes=100)) > 1
    (tmp_path / "out/model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=r"cannot be read .*: export or import the model again") as told:
        export.shapes(tmp_path / "out")
    assert str(tmp_path / "out") in str(told.value) and len(str(told.value)) < 400 + len(str(tmp_path))


def test_an_export_that_breaks_off_leaves_nothing(weights, tmp_path):
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "out", weights, lambda names: 1 / 0)
    assert list(tmp_path.iterdir()) == []


def test_the_card_tells_what_is_known_and_leaves_the_rest():
    records = [{"step": 4, "loss": 3.0, "valid/loss": 2.5}, {"step": 7, "loss": 2.0, "data_wait": 0.1}]
    sizes = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in (("encoder.a", (1000, 2)), ("out", (5,)))}
    text = card.write(CONFIG, FACTS, sizes, records, ["a table"], "cc-by-4.0", "hiermusic encode FOLDER")
    front, _, body = text.removeprefix("---\n").partition("\n---\n")
    assert front.splitlines()[:3] == ["license: cc-by-4.0", "library_name: hiermusic", "pipeline_tag: audio-to-audio"]
    for row in ("encoder | 2,000", "total | 2,005", "loss at step 7 | 2.0", "valid/loss at step 4 | 2.5"):
        assert f"| {row} |" in body
    assert "```sh\nhiermusic encode FOLDER\n```" in body
    assert "a table" in body and body.count("Not yet written") == 3 and "data_wait" not in body
    heard = card.write({"stage": "encoder"}, FACTS, sizes, [], None, None, None)
    assert "pipeline_tag: feature-extraction\n" in heard and "- music\n- audio-encoder\n- jax\n- encoder\n" in heard
    other = card.write({**CONFIG, "stage": "backbone"}, FACTS, sizes, [], None, None, None)
    assert "hiermusic inspect --workdir=FOLDER" in other  # of a system that nobody here knows
    assert "license: unknown" in other and "pipeline_tag: text-to-audio" in other and "Not measured" in other
    with pytest.raises(UserError, match="is no identifier"):
        card.write(CONFIG, FACTS, sizes, [], None, "my own: licence", None)


def fill(out):
    with export.whole_folder(out) as folder:
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_text("weights")


def test_a_link_stands_for_its_folder(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    fill(tmp_path / "out")
    assert (tmp_path / "out").is_symlink()
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(UserError, match="is not empty"):
        fill(tmp_path / "out")


def test_an_empty_mount_point_is_filled_from_within(tmp_path, monkeypatch):
    monkeypatch.setattr("os.path.ismount", lambda path: True)
    (tmp_path / "out/lost+found").mkdir(parents=True)
    (tmp_path / "out/.unfinished").mkdir()  # of a killed run
    fill(tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["config.json", "lost+found", "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("text", ["[]", "null", "{", "[" * 100_000, '{"weight_map": [1]}', '{"weight_map": {"a": 3}}'])
def test_a_damaged_index_is_told(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=r"index\.json cannot be read as the index of an exported model"):
        export.shapes(tmp_path)


def test_an_index_names_no_file_elsewhere(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "/etc/passwd"}}')
    with pytest.raises(UserError, match="it does not name the files beside it"):
        export.shapes(tmp_path)


def test_a_file_is_filled_to_the_last_byte():
    shapes = {
        name: jax.ShapeDtypeStruct((size,), jnp.float32) for name, size in zip("abcde", (3, 5, 9, 1, 1), strict=True)
    }
    assert export._groups(shapes, 32) == [["a", "b"], ["c"], ["d", "e"]]
