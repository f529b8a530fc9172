"""SAT and AAR as they are published: every tensor has one place, and what is computed is theirs."""

import json
import math
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from hiermusic import cli, presets
from hiermusic.errors import UserError
from hiermusic.pretrained import export, pairs
from hiermusic.pretrained.later import Later
from hiermusic.pretrained.source import Source
from hiermusic.systems import workdir
from hiermusic.systems.aar import published, weights
from hiermusic.train import checkpoint

from ...pretrained.torch_files import save, stand_in, tensor
from . import release


def write(state: dict[str, np.ndarray], path: Path, key: str, prefix: str = "module.") -> Path:
    """A checkpoint with what its trainer keeps beside the weights."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        held = {f"{prefix}{name}": tensor(value) for name, value in state.items()}
        beside = {"discriminator_state_dict": {"a.weight": tensor(np.ones(2, np.float32))}, "epoch": 3, "step": 7}
        return save({key: held, **beside}, path)


@pytest.fixture(scope="module")
def sats():
    return {name: release.tensors(release.sat(getattr(release, name))) for name in ("TINY", "TINY_EQUAL")}


@pytest.fixture(scope="module")
def folders(sats, tmp_path_factory):
    """Both codecs, imported."""
    folder = tmp_path_factory.mktemp("sat")
    for name, state in sats.items():
        path = write(state, folder / f"{name}.pth", "generator_state_dict")
        cli.main(["import", "sat", str(path), str(folder / name), "--licence=cc-by-4.0"])
    return {name: folder / name for name in sats}


@pytest.fixture(scope="module")
def state():
    return release.tensors(release.aar(release.TINY_AAR), 1)


@pytest.fixture(scope="module")
def imported(state, folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("aar")
    path = write(state, out / "AAR.pth", "model_state_dict")
    cli.main(["import", "aar", str(path), str(out / "aar"), f"--codec={folders['TINY_EQUAL']}"])
    return out / "aar"


def only_shapes(shapes: dict[str, tuple[int, ...]]) -> Source:
    """A file of which nothing is ever read."""
    return Source(Path("m"), {}, {name: Later(shape, np.dtype("float32"), None) for name, shape in shapes.items()})


def wanted(preset: str, **model) -> dict[str, tuple[int, ...]]:
    config = presets.read(f"configs/aar/{preset}")
    config.model.update(model)
    abstract = nnx.eval_shape(lambda: workdir.system(config).rooms.make_model(config)(nnx.Rngs(0)))
    return {name: leaf.shape for name, leaf in export.dotted(nnx.to_pure_dict(nnx.state(abstract))).items()}


@pytest.mark.parametrize(
    ("form", "preset", "millions"), [("SAT", "paper", (21.63, 1.05)), ("SAT128", "paper128", (15.74, 2.10))]
)
def test_every_tensor_of_a_codec_has_one_place(form, preset, millions):
    """At the published sizes, by shapes alone."""
    shapes = release.sat(getattr(release, form))
    books = sum(math.prod(shape) for name, shape in shapes.items() if name.endswith("_codebook.embed"))
    trained = sum(math.prod(shape) for name, shape in shapes.items() if "_codebook" not in name)
    assert (round(trained / 1e6, 2), round(books / 1e6, 2)) == millions
    source = only_shapes(shapes)
    model = published._sizes(source)
    config = presets.read(f"configs/aar/codec.py:{preset}").model.to_dict()
    assert {name: config[name] for name in model} == model
    table, biases = list(weights.codec(model)), weights.lstm_biases(model)
    found = {pair.ours: pair.later(source).shape for pair in table} | {"quantiser.initialised": ()}
    assert found | {name: shapes[halves[0]] for name, halves in biases.items()} == wanted(f"codec.py:{preset}")
    used = [*pairs.named(table), *weights.books(model, "inited"), *(name for pair in biases.values() for name in pair)]
    assert Counter(used) == Counter(shapes.keys())


def test_every_tensor_of_the_model_has_one_place():
    shapes, s = release.aar(release.AAR), release.AAR
    D, S = 64 * s.depth, sum(s.scales)
    assert S == 455 and shapes["head.weight"] == (1024, 1024)
    skipped = {"lvl_1L", "attn_bias_for_masking"} | {name for name in shapes if name.endswith("zero_k_bias")}
    count = sum(math.prod(shape) for name, shape in shapes.items() if name not in skipped | {"uncond_embedding"})
    assert round(count / 1e6, 1) == 307.6
    table, source = list(weights.prior(s.depth, s.cond, s.lat, s.codes, S, 16)), only_shapes(shapes)
    found = {pair.ours: pair.later(source).shape for pair in table}
    for name in ("query", "key", "value"):
        found[f"lm.trunk.layers.attention.{name}"] = (s.depth, D, s.depth, 64)
    found["lm.level_embed"] = (17, D)
    found |= {f"quantiser.{name}": shape for name, shape in (("codebooks", (16, 1024, 128)), ("phi_bias", (6, 128)))}
    found["quantiser.phi"] = (6, 9, 128, 128)
    assert found == wanted("lm.py:paper", listener=0)
    fused = [f"blocks.{i}.attn.mat_qkv.weight" for i in range(s.depth)]
    assert Counter([*pairs.named(table), "lvl_embed.weight", *fused]) == Counter(set(shapes) - skipped)


_latents = jax.jit(lambda codec, wav: (codec.encoder(wav), codec.encode(wav)))
_wave = jax.jit(lambda codec, codes: codec.decode(codes))


@pytest.mark.parametrize("form", ["TINY", "TINY_EQUAL"])
def test_codes_and_sound_are_theirs(sats, folders, form):
    s, w = getattr(release, form), sats[form]
    codec = workdir.load_codec(folders[form])
    wav_LC = (0.3 * np.random.default_rng(2).normal(size=(codec.packet, 1))).astype(np.float32)
    latents_TD, codes_S = release.encode(w, s, wav_LC)
    found = _latents(codec, wav_LC[None])
    np.testing.assert_allclose(found[0][0], latents_TD, atol=1e-4 * np.abs(latents_TD).max())
    np.testing.assert_array_equal(found[1][0, 0], codes_S)
    assert len(np.unique(codes_S)) > 8
    expected = release.decode(w, s, codes_S)
    wav = _wave(codec, codes_S[None, None].astype(np.int32))[0]
    np.testing.assert_allclose(wav, expected, atol=1e-4 * np.abs(expected).max())
    assert np.std(expected) > 0.01


def test_logits_are_theirs(state, sats, imported):
    config = workdir.read(imported)
    config.model.dtype = "float32"
    make = workdir.system(config).rooms.make_model(config)
    model = checkpoint.load_model(imported, lambda: make(nnx.Rngs(0)))
    s, rng = release.TINY_AAR, np.random.default_rng(3)
    codes_S, cond_U = rng.integers(0, s.codes, sum(s.scales)), rng.normal(size=s.cond)
    expected = release.logits(state, s, sats["TINY_EQUAL"], release.TINY_EQUAL, codes_S, cond_U)

    def run(model, codes_BS, cond_BU):
        rows = model._scales(codes_BS, codes_BS * 0 - 1, np.zeros(1, bool))
        x_BSD = model.lm.hidden({**rows, "cond": cond_BU}, visibility=model.config.visibility)
        return model.lm.level_logits(x_BSD, 0)[0]

    found = jax.jit(run)(model, codes_S[None].astype(np.int32), cond_U[None].astype(np.float32))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_array_equal(model.unconditional[...], state["uncond_embedding"][0])


def test_what_is_imported_says_what_it_is(folders, imported):
    told = json.loads((folders["TINY"] / "config.json").read_text())
    assert (told["system"], told["stage"], told["licences"]) == ("aar", "codec", ["cc-by-4.0"])
    assert told["model"]["levels"] == 5 and told["model"]["strides"] == [2, 3]
    told = json.loads((imported / "config.json").read_text())
    assert (told["system"], told["stage"]) == ("aar", "lm")
    assert told["licences"] == ["cc-by-4.0", "unknown"]  # that of its codec is carried on
    assert told["data"]["codec"] == str(folders["TINY_EQUAL"]) and told["tokens"]["scales"] == [1, 8, 23, 45, 75]
    assert (told["model"]["listener"], told["model"]["context"], told["model"]["depth"]) == (0, 0, 2)


def refused(capsys, *words: str) -> str:
    with pytest.raises(SystemExit):
        cli.main(list(words))
    err = capsys.readouterr().err.strip()
    assert err.count("\n") == 0, err
    return err


def test_bad_sources_are_one_line_and_leave_nothing(sats, state, folders, tmp_path, capsys):
    out, codec = str(tmp_path / "out"), f"--codec={folders['TINY_EQUAL']}"
    key = {"sat": "generator_state_dict", "aar": "model_state_dict"}
    held = {"sat": sats["TINY"], "aar": state}

    def changed(kind: str, name: str, **changes) -> list[str]:
        new = {one: value for one, value in (held[kind] | changes).items() if value is not None}
        return [kind, str(write(new, tmp_path / name, key[kind])), *([codec] if kind == "aar" else [])]

    bias = "encoder.model.7.lstm.bias_hh_l1"
    whole = changed("aar", "whole.pth")
    fused = {"blocks.1.attn.mat_qkv.weight": np.ones((8, 8), np.float32)}
    cases = {
        "no weights at": ["sat", str(tmp_path / "nowhere.pth")],
        "is no SAT: it has no encoder": ["sat", whole[1]],
        f"has no weight {bias}": changed("sat", "less.pth", **{bias: None}),
        "has the weight more": changed("sat", "more.pth", more=np.ones(2, np.float32)),
        "has the weight over": changed("aar", "over.pth", over=np.ones(2, np.float32)),
        "blocks.1.attn.mat_qkv.weight is (8, 8)": changed("aar", "fused.pth", **fused),
        "is it an AAR?": ["aar", changed("sat", "sat.pth")[1], codec],
        "give --codec=FOLDER": whole[:2],
        "which no published AAR is trained on": [*whole[:2], f"--codec={folders['TINY']}"],
        "is not a training workdir": [*whole[:2], f"--codec={tmp_path}"],
        "--codec means nothing": [*changed("sat", "s.pth"), codec],
    }
    for words, (kind, path, *flags) in cases.items():
        told = refused(capsys, "import", kind, path, out, *flags)
        assert words in told, told
    assert not list(tmp_path.glob("out*"))


def test_a_codec_of_other_codes_is_told(folders):
    shapes = release.aar(release.TINY_AAR) | {"word_embed.weight": (128, 9)}
    with pytest.raises(UserError, match=r"reads latents of 9 numbers, .* has 8"):
        published.read_aar(only_shapes(shapes), str(folders["TINY_EQUAL"]))
