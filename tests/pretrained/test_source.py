"""Published weights as they lie on disk: folders, shards, single files; what they are called, and weight norm."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from hiermusic.errors import UserError
from hiermusic.pretrained.source import Source, folded, licence_of, read_source

from .torch_files import save, stand_in, tensor

RNG = np.random.default_rng(0)
A, B = (RNG.normal(size=(3, 2)).astype(np.float32) for _ in range(2))


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text('{"model_type": "x", "size": 3, "rates": [2, 4]}')
    return tmp_path / "m"


def test_a_folder_of_safetensors(folder):
    tensors = {"a": A, "b": B.astype(ml_dtypes.bfloat16), "c": B.astype(np.float16), "n": np.arange(3)}
    save_file(tensors, folder / "model.safetensors")
    source = read_source(folder)
    assert source.config["size"] == 3 and source.licence == "unknown" and source.where == folder
    assert {name: found.dtype.name for name, found in source.tensors.items()} == {
        **dict.fromkeys("abc", "float32"),
        "n": "int64",
    }
    np.testing.assert_array_equal(source.tensors["a"], A)
    np.testing.assert_array_equal(source.tensors["b"], tensors["b"].astype(np.float32))
    np.testing.assert_array_equal(source.tensors["c"], tensors["c"].astype(np.float32))


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\ntags: [a]\nlicense: cc-by-nc-4.0\n---\n# m", "cc-by-nc-4.0"),
        ("---\nlicense: 'mit'\n---\n", "mit"),
        ("---\nlicense: two words\n---\n", "unknown"),
        ("# m\n\nlicense: mit\n", "unknown"),
        (b"---\nlicense: mit\n---\n\xff", "unknown"),
    ],
)
def test_the_licence_is_what_the_card_says(folder, text, licence):
    save_file({"a": A}, folder / "model.safetensors")
    (folder / "README.md").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert read_source(folder).licence == licence


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        (None, "cc-by-4.0"),
        ("# m", "cc-by-4.0"),
        ("---\ntags: [a]\n---\n", "cc-by-4.0"),
        ("---\nlicense: mit\n---", "mit"),
        ("---\nlicense: two words\n---\n", "unknown"),
    ],
)
def test_a_licence_that_is_known_of_a_release_stands_where_its_card_tells_none(tmp_path, text, licence):
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert licence_of(tmp_path, "cc-by-4.0") == licence


def test_shards_of_either_kind(folder, monkeypatch):
    stand_in(monkeypatch)
    for whole, write in (
        ("model.safetensors", lambda part, path: save_file(part, path)),
        ("pytorch_model.bin", lambda part, path: save({name: tensor(a) for name, a in part.items()}, path)),
    ):
        stem, _, end = whole.partition(".")
        names = [f"{stem}-0000{i}-of-00002.{end}" for i in (1, 2)]
        index = folder / f"{whole}.index.json"
        index.write_text(json.dumps({"weight_map": {"a": names[0], "b": names[1]}}))
        write({"a": A}, folder / names[0])
        with pytest.raises(UserError, match=rf"m lacks {names[1]}, one of its 2 shards"):
            read_source(folder)
        write({"c": B}, folder / names[1])
        with pytest.raises(UserError, match=rf"{names[1]} lacks the weight b, which should be in it"):
            read_source(folder)
        write({"b": B}, folder / names[1])
        source = read_source(folder)
        np.testing.assert_array_equal(source.tensors["a"], A)
        np.testing.assert_array_equal(source.tensors["b"], B)
        index.write_text('{"weight_map": {"a": "../elsewhere"}}')
        with pytest.raises(UserError, match="does not name the files beside it"):
            read_source(folder)
        index.unlink()


def test_one_file_with_its_weights_at_the_top_or_beside_other_things(tmp_path, monkeypatch):
    stand_in(monkeypatch)
    state = {"a": tensor(A), "b": tensor(B)}
    for place in (None, "state_dict", "model", "best_state", "generator"):
        value = state if place is None else {place: state, "metadata": {"rates": [2]}, "step": 3}
        source = read_source(save(value, tmp_path / "x.th"))
        assert set(source.tensors) == {"a", "b"}
        assert source.config == ({} if place is None else {"metadata": {"rates": [2]}, "step": 3})
    with pytest.raises(UserError, match=r"x.th holds no weights by name, be it at the top or under state_dict, model"):
        read_source(save({"weights": state}, tmp_path / "x.th"))


def test_what_is_no_source_is_said_in_one_line(folder, tmp_path):
    with pytest.raises(UserError, match=r"no weights at .*nowhere"):
        read_source(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"config.json is no .pt, .pth, .ckpt, .th or .bin file"):
        read_source(folder / "config.json")
    with pytest.raises(UserError, match=r"m has config.json but neither model.safetensors nor pytorch_model.bin"):
        read_source(folder)
    save_file({"a": A}, folder / "model.safetensors")
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-4])
    with pytest.raises(UserError, match=r"model.safetensors cannot be read .*: get the file again"):
        read_source(folder)
    (folder / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config.json cannot be read as a configuration"):
        read_source(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config.json cannot be read as a configuration"):
        read_source(folder)


def test_what_a_source_lacks_or_has_otherwise_is_said(tmp_path):
    told = {"size": 3, "rates": [2, 0], "one": [2, 4], "word": "x", "many": [2] * 65, "great": [1 << 25], "yes": True}
    source = Source(tmp_path / "m", told, {"a": A})
    assert source.tensor("a", (3, 2)) is A and source.field("size", int) == 3 and source.whole("one") == (2, 4)
    assert source.field("gone", int, 5) == 5 and source.whole("gone", (1,)) == (1,)
    for ask, words in (
        (lambda: source.tensor("b", (3, 2)), "m has no weight b: is it of another family"),
        (lambda: source.tensor("a", (2, 3)), r"m: a is \(3, 2\), its configuration asks for \(2, 3\)"),
        (lambda: source.field("gone"), "m: the configuration has no gone"),
        (lambda: source.field("word", int), "m: word is x in its configuration"),
        (lambda: source.whole("many"), r"many is .* in its configuration: whole numbers belong there"),
        (lambda: source.whole("great"), r"great is .* in its configuration: whole numbers belong there"),
        (lambda: source.size("size", 1, most=2), "m: size is 3 in .*: a whole number from 1 to 2 belongs"),
        (lambda: source.size("yes", 1), "m: yes is True in its configuration: a whole number from 1 to 16,777,216"),
        (lambda: source.whole("rates"), r"rates is \[2, 0\] in its configuration: whole numbers belong there"),
    ):
        with pytest.raises(UserError, match=words):
            ask()


@pytest.mark.parametrize(
    "names", [("weight_g", "weight_v"), tuple(f"parametrizations.weight.original{i}" for i in (0, 1))]
)
@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 1, 4), (), (1, 1, 1)])
def test_weight_norm_is_folded_over_what_its_gain_leaves_out(folder, names, shape):
    v = RNG.normal(size=(6, 5, 4)).astype(np.float32)
    g = RNG.uniform(1, 2, size=shape).astype(np.float32)
    save_file({f"c.{names[0]}": g, f"c.{names[1]}": v, "c.bias": A}, folder / "model.safetensors")
    found = folded(read_source(folder).tensors)
    assert set(found) == {"c.weight", "c.bias"} and found["c.weight"].dtype == np.float32
    over = {(6, 1, 1): (1, 2), (1, 1, 4): (0, 1), (): (0, 1, 2), (1, 1, 1): (0, 1, 2)}[shape]
    norms = np.sqrt(np.square(v.astype(np.float64)).sum(over, keepdims=True))
    np.testing.assert_allclose(found["c.weight"], g * v / norms, rtol=1e-5)


def test_a_weight_norm_whose_parts_do_not_fit_is_refused():
    with pytest.raises(UserError, match=r"weight_g .* and weight_v .* do not fit each other"):
        folded({"c.weight_g": np.ones((5, 1), np.float32), "c.weight_v": A})
    alone = {"c.weight_v": A}
    assert folded(alone).keys() == alone.keys()
