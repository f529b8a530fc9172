"""Khala's release: every tensor has one place, what is computed is theirs, the six files come out as they came in."""

import json
import math
import weakref
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
from flax import nnx
from safetensors.numpy import load_file, save_file

from hiermusic import cli, presets
from hiermusic.pretrained import export, pairs, pickles
from hiermusic.pretrained.later import Later
from hiermusic.pretrained.source import Source
from hiermusic.systems import workdir
from hiermusic.systems.khala import published, weights
from hiermusic.tokens import sequence
from hiermusic.tokens.pattern import flatten, layer_pass
from hiermusic.tokens.visibility import Visibility
from hiermusic.train import checkpoint

from ...pretrained.torch_files import save, stand_in, tensor
from . import release
from .release import EOS, FILES, PAPER, TEXT, TINY


@pytest.fixture(scope="module")
def made():
    return release.tensors()


@pytest.fixture(scope="module")
def source(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("release") / "six"
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        release.write(folder, made)
    return folder


@pytest.fixture(scope="module")
def imported(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("imported") / "khala"
    cli.main(["import", "khala", str(source), str(out)])
    return out


def only_shapes(shapes: dict[str, tuple[int, ...]], told: dict) -> Source:
    """A file of which nothing is ever read."""
    return Source(Path("m"), told, {name: Later(shape, np.dtype("float32"), None) for name, shape in shapes.items()})


def wanted(stage: str) -> dict[str, tuple[int, ...]]:
    config = presets.read(f"configs/khala/{stage}.py:paper")
    abstract = nnx.eval_shape(lambda: workdir.system(config).rooms.make_model(config)(nnx.Rngs(0)))
    return {name: leaf.shape for name, leaf in export.dotted(nnx.to_pure_dict(nnx.state(abstract))).items()}


@pytest.mark.parametrize(
    ("stage", "levels", "count"), [("backbone", 2, 1_616_922_624), ("superres", 64, 1_876_969_472)]
)
def test_every_tensor_of_a_token_model_has_one_place(stage, levels, count):
    """At the paper's sizes, by shapes alone."""
    shapes = release.transformer(PAPER, levels)
    assert len(shapes) == 387 and sum(map(math.prod, shapes.values())) == count
    tokens = presets.read(f"configs/khala/{stage}.py:paper").tokens.to_dict()
    told = only_shapes(shapes, release.arguments(PAPER, levels, 16_384))
    model = published._token_model(told, stage, tokens, 2)
    assert {name: weight.shape for name, weight in model.weights.items()} == wanted(stage)
    table = list(weights.transformer(model.config, 2))
    used = Counter(pairs.named(table))
    assert used + Counter(weights.TABLES.values()) == Counter(shapes.keys())
    for more in ("layers.24.norm", "extra"):
        with pytest.raises(published.UserError, match=f"has the weight {more}, which this model has not"):
            published._token_model(only_shapes(shapes | {more: (1,)}, told.config), stage, tokens, 2)


def test_every_tensor_of_the_codec_has_one_place():
    shapes = release.codec(PAPER)
    assert len(shapes) == 558
    told = only_shapes(shapes, {})
    model = published._sizes(told)
    table = list(weights.codec(model))
    found = {pair.ours: pair.later(told).shape for pair in table} | {"quantiser.initialised": ()}
    assert found == wanted("codec")
    used = Counter(pairs.named(table))
    used += Counter([*weights.books(model, "inited"), *map(weights.alias, range(64))])
    assert used == Counter(shapes.keys())


def test_what_is_imported_stands_together(source, imported, capsys):
    for stage in ("codec", "backbone", "superres"):
        told = json.loads((imported / stage / "config.json").read_text())
        assert (told["system"], told["stage"], told["licences"]) == ("khala", stage, ["cc-by-nc-4.0"])
        assert (imported / stage / "README.md").read_text().startswith("---\nlicense: cc-by-nc-4.0\n")
        if stage != "codec":
            assert told["data"]["codec"] == str(imported / "codec")
            assert told["model"]["tokenizer_file"] == str(imported / stage / "tokenizer.json")
            assert told["model"]["as_released"] and told["tokens"]["levels"] == TINY.levels
            assert {shape.dtype.name for shape in export.shapes(imported / stage).values()} == {"bfloat16"}
            assert Path(told["model"]["tokenizer_file"]).read_text() == (source / "tokenizer.json").read_text()
    assert json.loads((imported / "superres" / "config.json").read_text())["init_from"] == str(imported / "backbone")
    assert sorted(path.name for path in imported.iterdir()) == ["backbone", "codec", "superres"]


def exact(folder: Path) -> nnx.Module:
    """A token model that computes in float32."""
    config = workdir.read(folder)
    config.model.dtype = "float32"
    make = workdir.system(config).rooms.make_model(config)
    return checkpoint.load_model(folder, lambda: make(nnx.Rngs(0)))


def as_theirs(row) -> list[list[int]]:
    """The ids that their table is asked for at each position of a row."""
    positions = zip(row["text"].tolist(), row["reads"].tolist(), strict=True)
    return [
        [i for i in [text] if i >= 0] + [TEXT + k * TINY.codes + code for k, code in enumerate(reads) if code >= 0]
        for text, reads in positions
    ]


@pytest.mark.parametrize("stage", ["backbone", "superres"])
def test_logits_are_theirs(made, imported, stage):
    """Double biases, and of the super-resolution model codes of several levels at a position, and padding behind it."""
    rng = np.random.default_rng(1)
    ids, causal, level = [128_000, 77, 128_008, 128_010], stage == "backbone", 3
    if causal:
        codes = rng.integers(0, TINY.codes, (2, 9))
        row = sequence.pack(ids, flatten((9, 9)), codes, 21)
    else:
        codes = rng.integers(0, TINY.codes, (TINY.levels, 9))
        row = sequence.pack(
            [*ids[:-1], TEXT - 1 - level], layer_pass((9,) * TINY.levels, level), codes, 20, level=level
        )
    w = {name: value.astype(np.float64) for name, value in made[stage].items()}
    used = int(row["valid"].sum())
    x_SD = np.stack([sum((w["embed.weight"][i] for i in at), np.zeros(TINY.width)) for at in as_theirs(row)[:used]])
    expected = release.hidden(w, TINY, x_SD, causal) @ w["lm_head.weight"].T

    def logits(model, batch):
        x_SD = model.hidden(batch, visibility=Visibility.causal() if causal else Visibility.full())[0]
        some = [model.level_logits(x_SD, k) for k in ((0, 1) if causal else (level,))]
        return [model.text_logits(x_SD, np.array([EOS])), *some]

    end, *found = jax.jit(logits)(exact(imported / stage), sequence.stack([row]))
    size = np.abs(expected[:, : TEXT + TINY.codes * len(codes)]).max()
    np.testing.assert_allclose(end[:used, 0], expected[:, EOS], atol=1e-4 * size)
    for k, one in zip((0, 1) if causal else (level,), found, strict=True):
        start = TEXT + k * TINY.codes
        np.testing.assert_allclose(one[:used], expected[:, start : start + TINY.codes], atol=1e-4 * size)


def test_codes_and_sound_are_theirs(made, imported):
    codec = workdir.load_codec(imported / "codec")
    wav_LC = (0.3 * np.random.default_rng(2).normal(size=(40 * codec.hop, 2))).astype(np.float32)
    latents_TD, codes_TK = release.encode(made["codec"], TINY, wav_LC)
    size = np.abs(latents_TD).max()
    found = jax.jit(lambda codec, wav: (codec.encoder(wav), codec.encode(wav)))(codec, wav_LC[None])
    np.testing.assert_allclose(found[0][0], latents_TD, atol=1e-4 * size)
    np.testing.assert_array_equal(found[1][0], codes_TK)
    assert all(len(np.unique(codes_T)) > 3 for codes_T in codes_TK.T)
    expected = release.decode(made["codec"], TINY, codes_TK)
    wav = jax.jit(lambda codec, codes: codec.decode(codes))(codec, codes_TK[None].astype(np.int32))[0]
    np.testing.assert_allclose(wav, expected, atol=1e-4 * np.abs(expected).max())


def test_the_six_files_come_out_as_they_came_in(made, source, imported, tmp_path, capsys):
    runs = [str(imported / stage) for stage in ("codec", "backbone", "superres")]
    cli.main(["export", f"--workdir={runs[2]}", f"--out={tmp_path / 'six'}", "--format=shao", *runs[:2]])
    assert sorted(path.name for path in (tmp_path / "six").iterdir()) == sorted([*FILES, "README.md"])
    assert (tmp_path / "six" / "README.md").read_text().startswith("---\nlicense: cc-by-nc-4.0\n")
    for stage in ("backbone", "superres"):
        back = load_file(tmp_path / "six" / f"khala_{stage}.safetensors")
        assert back.keys() == made[stage].keys()
        for name, value in made[stage].items():
            assert back[name].dtype == value.dtype and back[name].tobytes() == value.tobytes(), name
        told = json.loads((source / f"{stage}_megatron_args.json").read_text())
        again = json.loads((tmp_path / "six" / f"{stage}_megatron_args.json").read_text())
        assert all(again[name] == told[name] for name in set(told) - {"lr", "tokenizer_type"})
    back = pickles.read(tmp_path / "six" / "decoder_weights.pt")
    assert back.keys() == made["codec"].keys()
    for name, value in made["codec"].items():
        assert back[name].dtype == value.dtype and back[name].tobytes() == value.tobytes(), name
    text = (tmp_path / "six" / "decoder_config.yaml").read_text()
    assert "n_filters: 4\n  strides: [4, 2]\n" in text and "n_filters: 4\n  rates: [2, 4]\n" in text
    assert "codebook_size: 16\n  num_quantizers: 5\n" in text


def test_biases_count_as_often_as_is_said(made, source, tmp_path, capsys):
    cli.main(["import", "khala", str(source), str(tmp_path / "once"), "--bias=1"])
    name = "layers.1.mlp.gate_proj.bias"
    found = export.load(tmp_path / "once" / "backbone")["trunk.layers.ffn.gate_bias"][1]
    np.testing.assert_array_equal(found, made["backbone"][name])
    run = f"--workdir={tmp_path / 'once' / 'backbone'}"
    cli.main(["export", run, f"--out={tmp_path / 'six'}", "--format=shao", "--bias=1", "--dtype=float32"])
    back = load_file(tmp_path / "six" / "khala_backbone.safetensors")[name]
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back, made["backbone"][name].astype(np.float32))


def test_music_tells_how_often_biases_count(made, source, tmp_path, monkeypatch, capsys):
    """A backbone that is sure of silence's first code where they count once, and one that is where they count twice."""
    soundfile.write(tmp_path / "a.wav", np.zeros((400, 2)), 44_100)
    (first, *_), *_ = release.encode(made["codec"], TINY, np.zeros((400, 2)))[1]
    for often, best in ((1, "once"), (2, "twice")):
        kind = np.float16 if often == 1 else None  # which is no type that is computed in
        w = {name: np.zeros_like(value, dtype=kind) for name, value in made["backbone"].items()}
        w["norm.weight"][...] = 1
        w["layers.0.mlp.gate_proj.bias"][...] = 1
        w["layers.0.mlp.up_proj.bias"][...] = 1
        w["layers.0.mlp.down_proj.weight"][0, 0] = 1  # biases once: 0.73 there, twice: 3.52
        w["layers.0.mlp.down_proj.bias"][0] = -2
        w["lm_head.weight"][TEXT + first, 0] = -3 if often == 1 else 3
        (tmp_path / best).mkdir()
        for name in FILES:
            (tmp_path / best / name).symlink_to(source / name)
        (tmp_path / best / "khala_backbone.safetensors").unlink()
        save_file(w, tmp_path / best / "khala_backbone.safetensors")
        words = [f"--audio={tmp_path / 'a.wav'}", f"--tokenizer={source / 'tokenizer.json'}"]
        cli.main(["import", "khala", str(tmp_path / best), str(tmp_path / f"{best}-out"), *words])
        assert f"taken {best}" in capsys.readouterr().err
        bias = export.load(tmp_path / f"{best}-out" / "superres")["trunk.layers.ffn.up_bias"][0]
        np.testing.assert_array_equal(bias, often * made["superres"]["layers.0.mlp.up_proj.bias"])


def test_the_codecs_own_checkpoint_comes_in_alone(made, imported, tmp_path, monkeypatch):
    """What a trainer keeps beside it is passed over; a code that replaced a dead one takes its average along."""
    stand_in(monkeypatch)
    changed = dict(made["codec"])
    book = "quantizer.vq_layer_1._codebook"
    changed[f"{book}.embed_avg"] = changed[f"{book}.embed_avg"].copy()
    changed[f"{book}.embed_avg"][3] += 10
    state = {f"generator.{name}": tensor(value) for name, value in changed.items()}
    state["discriminator.conv.weight"] = tensor(np.ones(3, np.float32))
    path = save({"state_dict": state, "epoch": 3, "loops": {"a": [1]}}, tmp_path / "dac_rvq.ckpt")
    cli.main(["import", "khala", str(path), str(tmp_path / "out"), "--licence=cc-by-nc-4.0"])
    found, expected = export.load(tmp_path / "out" / "codec"), export.load(imported / "codec")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found if name != "quantiser.ema_sums")
    sums, code = found["quantiser.ema_sums"], found["quantiser.codebooks"][1, 3]
    np.testing.assert_allclose(sums[1, 3], code * found["quantiser.ema_counts"][1, 3], rtol=1e-6)
    sums[1, 3] = expected["quantiser.ema_sums"][1, 3]
    np.testing.assert_array_equal(sums, expected["quantiser.ema_sums"])


def refused(capsys, *words: str) -> str:
    with pytest.raises(SystemExit):
        cli.main(list(words))
    err = capsys.readouterr().err.strip()
    assert err.count("\n") == 0, err
    return err


def test_bad_sources_are_one_line_and_leave_nothing(made, source, imported, tmp_path, monkeypatch, capsys):
    stand_in(monkeypatch)
    out = str(tmp_path / "out")

    def folder(name: str, *without: str) -> Path:
        place = tmp_path / "sources" / name
        place.mkdir(parents=True)
        for file in source.iterdir():
            if file.name not in without:
                (place / file.name).symlink_to(file)
        return place

    def arguments(name: str, **changes) -> Path:
        place = folder(name, "backbone_megatron_args.json")
        told = release.arguments(TINY, 2, 1536) | changes
        (place / "backbone_megatron_args.json").write_text(json.dumps(told))
        return place

    def weights_of(name: str, file: str, tensors) -> Path:
        place = folder(name, file)
        if file.endswith(".pt"):
            save({key: tensor(value) for key, value in tensors.items()}, place / file)
        else:
            save_file(tensors, place / file)
        return place

    shards = tmp_path / "sources" / "original" / "backbone" / "iter_0036000"
    shards.mkdir(parents=True)
    (shards / "__0_0.distcp").write_bytes(b"")
    codec, backbone = made["codec"], made["backbone"]
    alias, less = codec | {"quantizer.embed_2": codec["quantizer.embed_1"]}, dict(backbone)
    less.pop("layers.1.attn.o_proj.bias")
    short = backbone | {"lm_head.weight": backbone["lm_head.weight"][: TEXT + 31]}
    file = "khala_backbone.safetensors"
    cases = {
        "shards of Megatron's (.distcp), which only PyTorch reads: convert them with": shards.parent.parent,
        "holds none of decoder_weights.pt": tmp_path / "sources" / "empty",
        "no release at": tmp_path / "nowhere",
        "has no tokenizer.json": folder("wordless", "tokenizer.json"),
        "backbone_megatron_args.json cannot be read": folder("untold", "backbone_megatron_args.json"),
        "norm_epsilon is 1e-05, where only 1e-06": arguments("eps", norm_epsilon=1e-5),
        "swiglu is False": arguments("gelu", swiglu=False),
        "vocab_size is 128260": arguments("vocabulary", vocab_size=128_260),
        "its configuration asks for": arguments("wide", ffn_hidden_size=32),
        "rotary_base is 0: a number above 1": arguments("base", rotary_base=0),
        "num_layers is 0": arguments("flat", num_layers=0),
        "embed_2 are other codes than those of level 2": weights_of("alias", "decoder_weights.pt", alias),
        "has no weight layers.1.attn.o_proj.bias": weights_of("less", file, less),
        "has the weight more": weights_of("more", file, backbone | {"more": np.ones(2, np.float32)}),
        "lm_head.weight is (128287, 16)": weights_of("short", file, short),
    }
    (tmp_path / "sources" / "empty").mkdir()
    for words, place in cases.items():
        told = refused(capsys, "import", "khala", str(place), out)
        assert words in told, told
    cut = folder("cut", file)
    (cut / file).write_bytes((source / file).read_bytes()[:1000])
    assert "cannot be read" in refused(capsys, "import", "khala", str(cut), out)
    given = str(source)
    assert "--audio chooses what --bias says" in refused(capsys, "import", "khala", given, out, "--audio=a", "--bias=1")
    codec_alone = [str(folder("codec", *FILES[2:])), out, "--bias=1"]
    assert "are of token models, of which" in refused(capsys, "import", "khala", *codec_alone)
    assert "--layer means nothing" in refused(capsys, "import", "khala", given, out, "--layer=1")
    assert "no tokenizer file at" in refused(capsys, "import", "khala", given, out, "--tokenizer=nowhere")
    assert "is not empty" in refused(capsys, "import", "khala", given, str(imported))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("out*"))


def test_what_the_files_have_no_form_for_is_told(imported, tmp_path, capsys):
    run = str(imported / "backbone")
    export_ = ["export", f"--workdir={run}", f"--out={tmp_path / 'six'}"]
    assert "is a second backbone" in refused(capsys, *export_, "--format=shao", run)
    assert "--bias=1 goes with --format=shao" in refused(capsys, *export_, "--bias=1")
    config = workdir.read(imported / "codec").to_dict()
    for stage, change in (("codec", {"fold": 2}), ("codec", {"dilations": (1, 2)}), ("backbone", {"qk_norm": "rms"})):
        config = workdir.read(imported / stage).to_dict()
        config["model"] |= change
        with pytest.raises(published.UserError, match=next(iter(change))):
            published.write(tmp_path, [(config, {}, "a")], 0)
    found = {"extra.scale": np.ones(2, np.float32)}
    with pytest.raises(published.UserError, match=r"a has the weight extra\.scale, for which"):
        published.write(tmp_path, [(workdir.read(imported / "codec").to_dict(), found, "a")], 0)
    assert not list(tmp_path.iterdir())


def test_one_model_at_a_time_is_in_memory_on_the_way_out(imported, tmp_path):
    seen = []

    def models():
        for stage in ("codec", "backbone", "superres"):
            assert not any(ref() is not None for ref in seen)
            model = workdir.read(imported / stage).to_dict(), export.load(imported / stage), stage
            seen[:] = map(weakref.ref, model[1].values())
            yield model
            del model

    (tmp_path / "six").mkdir()
    assert set(published.write(tmp_path / "six", models(), 0)) == set(FILES)


@pytest.mark.slow
def test_songs_and_tokens_come_of_what_was_imported(imported, tmp_path):
    """With no token records about: the codec is the one that came along."""
    rng = np.random.default_rng(0)
    soundfile.write(tmp_path / "in.wav", 0.2 * rng.normal(size=(400, 2)), 44_100)
    (tmp_path / "music").mkdir()
    for i in range(10):
        soundfile.write(tmp_path / "music" / f"{i}.wav", 0.2 * rng.normal(size=(3000, 2)), 44_100)
    asked = [f"--superres={imported / 'superres'}", "--tags=slow piano", "--seconds=0.1", "--min_share=1"]
    cli.main(["generate", *asked, f"--out={tmp_path / 'songs'}"])
    cli.main(["continue", *asked, f"--out={tmp_path / 'more'}", str(tmp_path / "in.wav")])
    for folder in ("songs", "more"):
        assert soundfile.info(tmp_path / folder / "song.wav").duration == pytest.approx(0.1, abs=1e-3)
    words = [f"--data={tmp_path / 'music'}", f"--out={tmp_path / 'tokens'}"]
    cli.main(["tokenize", f"--codec={imported / 'codec'}", *words])
    words = [f"--data={tmp_path / 'tokens'}", "--tracks=1", f"--out={tmp_path / 'report'}"]
    cli.main(["evaluate", f"--workdir={imported / 'backbone'}", *words])
    assert json.loads((tmp_path / "report" / "results.json").read_text())["stage"] == "backbone"
