"""Encoders in the forms of those who trained them, by their names; folders of ours, and what is none."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from hiermusic import presets
from hiermusic.data import embed
from hiermusic.data.audio_records import write_audio
from hiermusic.data.streams import TokenStreams
from hiermusic.data.tracks import Track
from hiermusic.errors import UserError
from hiermusic.pretrained import clap, encoder, encoders, export, hubert
from hiermusic.pretrained.clap import ClapConfig
from hiermusic.pretrained.hubert import HubertConfig
from hiermusic.pretrained.layers import check_blocks
from hiermusic.pretrained.plain import LogMelConfig
from hiermusic.pretrained.roberta import RobertaConfig
from hiermusic.pretrained.source import Source
from hiermusic.pretrained.swin import SwinConfig
from hiermusic.systems import workdir

BASE = HubertConfig(
    width=64, layers=2, heads=1, ffn_width=24, conv_widths=(6,) * 7, position_kernel=8, position_groups=4, layer=2
)
LARGE = {"conv_norm": "layer", "conv_bias": True, "norm_first": True, "normalise": True}
TINY_CLAP = ClapConfig(
    SwinConfig(bands=64, side=256, width=4, depths=(2, 1), heads=(1, 2), window=8),
    RobertaConfig(ids=30, width=64, layers=1, heads=1, ffn_width=12, positions=9, eps=1e-5),
    width=5,
    fmin=50.0,
)


def drawn(config, seed=0):
    dice = np.random.default_rng(seed)
    return {name: dice.normal(size=shape).astype(np.float32) for name, shape in encoder.shapes(config).items()}


def folder_of(config, place, weights=None):
    weights = weights or drawn(config)
    shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()}
    export.write(
        place, shapes, lambda names: {n: weights[n] for n in names}, encoder.to_fields(config), {"step": 0}, {}
    )
    return str(place)


# fairseq's names to transformers', after the script that the latter converted the releases with
FAIRSEQ = (
    (r"^post_extract_proj", "feature_projection.projection"),
    (r"^layer_norm", "feature_projection.layer_norm"),
    (r"^encoder\.pos_conv\.0", "encoder.pos_conv_embed.conv"),
    (r"self_attn\.", "attention."),
    (r"self_attn_layer_norm", "layer_norm"),
    (r"fc1", "feed_forward.intermediate_dense"),
    (r"fc2", "feed_forward.output_dense"),
    (r"(conv_layers\.\d+)\.0\.", r"\1.conv."),
    (r"(conv_layers\.\d+)\.2\.(1\.)?", r"\1.layer_norm."),
)


@pytest.mark.parametrize("more", [{}, LARGE], ids=["base", "large"])
def test_fairseqs_hubert_is_that_of_transformers(more):
    config = HubertConfig(**{**BASE.__dict__, **more})
    weights = drawn(config)
    wanted = encoders.names.give(weights, hubert.transformers_names(config))
    theirs = encoders.names.give(weights, hubert.fairseq_names(config))
    renamed = {}
    for name, tensor in theirs.items():
        for old, new in FAIRSEQ:
            name = re.sub(old, new, name)
        renamed[name] = tensor
    assert renamed.keys() == wanted.keys()
    assert all(renamed[name] is not None and np.array_equal(renamed[name], wanted[name]) for name in wanted)
    spare = {"mask_emb": np.zeros(64), "final_proj.weight": np.zeros((3, 64)), "label_embs_concat": np.zeros((5, 3))}
    imported = encoders.read_hubert(Source(Path("hubert.pt"), {}, {**theirs, **spare}))
    assert encoder.of_fields(json.loads(json.dumps(imported.config))) == config
    assert all(np.array_equal(imported.weights[name], weights[name]) for name in weights)
    with pytest.raises(UserError, match=r"hubert.pt has the weight w2v_encoder.proj.weight, which this model has not"):
        encoders.read_hubert(Source(Path("hubert.pt"), {}, {**theirs, "w2v_encoder.proj.weight": np.zeros(3)}))
    cut = {name: tensor for name, tensor in theirs.items() if name != "encoder.layers.1.fc2.bias"}
    with pytest.raises(UserError, match=r"hubert.pt has no weight encoder.layers.1.fc2.bias"):
        encoders.read_hubert(Source(Path("hubert.pt"), {}, cut))


def test_a_head_on_a_hubert_is_left_where_it_is(tmp_path):
    weights = drawn(BASE)
    theirs = encoders.names.give(weights, hubert.transformers_names(BASE))
    headed = {f"hubert.{name}": tensor for name, tensor in theirs.items()} | {"lm_head.weight": np.zeros((4, 64))}
    headed |= {"hubert.masked_spec_embed": np.zeros(64)}
    imported = encoders.read_hubert(Source(tmp_path, hubert.to_transformers(BASE), headed))
    assert all(np.array_equal(imported.weights[name], weights[name]) for name in weights)
    odd = {**hubert.to_transformers(BASE), "hidden_act": "relu"}
    with pytest.raises(UserError, match=r"hidden_act='relu', where only 'gelu' can be imported"):
        encoders.read_hubert(Source(tmp_path, odd, theirs))
    with pytest.raises(UserError, match=r"its config.json is of a wavlm, not of a hubert"):
        encoders.read_hubert(Source(tmp_path, {"model_type": "wavlm"}, theirs))


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("hidden_size", "64", "cannot be understood .TypeError"),
        ("conv_bias", 1, "its conv_bias is 1"),
        ("num_attention_heads", 5, "it has 2 blocks of width 64 and 5 heads"),
        ("num_hidden_layers", 10**6, "it has 1000000 blocks"),
        ("num_conv_pos_embedding_groups", 5, "its width 64 is no multiple of its 5 groups"),
        ("conv_kernel", [3], "other numbers of widths, kernels and strides"),
        ("conv_dim", None, "cannot be understood"),
    ],
)
def test_sizes_that_are_none_are_told(tmp_path, field, value, words):
    theirs = {**hubert.to_transformers(BASE), field: value}
    with pytest.raises(UserError, match=words):
        encoders.read_hubert(Source(tmp_path, theirs, {}))


@pytest.mark.parametrize(("layers", "heads", "known"), [(1, 4, True), (0, 4, False), (1, 0, False), (1, 8, False)])
def test_a_head_may_have_a_width_of_one(layers, heads, known):
    if known:
        return check_blocks(layers, 4, heads)
    with pytest.raises(ValueError, match=f"it has {layers} blocks of width 4 and {heads} heads"):
        check_blocks(layers, 4, heads)


def test_a_number_in_a_folder_is_below_a_bound():
    told = encoder.to_fields(BASE)
    for value, known in (((1 << 24) - 1, True), (1 << 24, False)):
        told["model"]["ffn_width"] = value
        if known:
            assert encoder.of_fields(told).ffn_width == value
        else:
            with pytest.raises(ValueError, match=f"its ffn_width is {value}"):
                encoder.of_fields(told)


class Echo(nnx.Module):
    """Gives back what it hears, in clips of ten seconds."""

    config = SimpleNamespace(sample_rate=10)

    def clips(self, wav_L):
        return wav_L.reshape(-1, 100)

    def __call__(self, clips_BL):
        return clips_BL


def test_clips_beyond_one_batch_come_back_in_their_order_and_number(batches, monkeypatch):
    monkeypatch.setattr(encoder.jax, "local_devices", lambda: jax.devices()[:1])
    sounds = [100 * count + np.arange(count * 100, dtype=np.float32) for count in (2, 3, 4, 7, 1, 9)]
    for wav_L, found_BL in zip(sounds, encoder.embed_each(Echo(), sounds), strict=True):
        np.testing.assert_array_equal(found_BL.ravel(), wav_L)
    assert [shape[0] for shape in batches] == [4, 4, 4, 4, 1, 4, 4, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"side": 96}, "is not whole windows of 8"),
        ({"window": 7}, "is not whole windows of 7"),
        ({"depths": (2, 1, 1)}, "3 depths and 2 numbers of heads"),
    ],
)
def test_a_picture_that_windows_do_not_fill_is_told(change, words):
    with pytest.raises(ValueError, match=words):
        SwinConfig(**{**TINY_CLAP.audio.__dict__, **change})


def laions(theirs):
    """The weights of a transformers CLAP by LAION's names."""
    found = {}
    for name, tensor in theirs.items():
        name = name.replace("audio_model.audio_encoder", "audio_branch").replace("text_model", "text_branch")
        name = name.replace("_projection.linear1", "_projection.0").replace("_projection.linear2", "_projection.2")
        if name.startswith("audio_branch"):
            for new, old in (
                ("batch_norm", "bn0"), ("layernorm_before", "norm1"), ("layernorm_after", "norm2"),
                ("attention.output.dense", "attn.proj"), ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2"),
                ("attention.self.", "attn."),
            ):  # fmt: skip
                name = name.replace(new, old)
        found[f"module.{name}"] = tensor
    for name in [name for name in found if "audio_branch" in name and ".attn.query." in name]:
        parts = [found.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        found[name.replace("query", "qkv")] = np.concatenate(parts)
    return found


def test_laions_clap_is_that_of_transformers():
    weights = drawn(TINY_CLAP)
    theirs = laions(encoders.names.give(weights, clap.transformers_names(TINY_CLAP)))
    assert "module.audio_branch.layers.0.blocks.1.attn.qkv.weight" in theirs
    spare = {
        "module.logit_scale_a": np.zeros(()),
        "module.audio_branch.spectrogram_extractor.stft.conv_real.weight": np.zeros((3, 1, 4)),
        "module.audio_branch.logmel_extractor.melW": np.zeros((3, 4)),
        "module.audio_branch.bn0.num_batches_tracked": np.zeros(()),
        "module.audio_branch.layers.0.blocks.1.attn_mask": np.zeros((4, 4)),
        "module.audio_branch.tscam_conv.weight": np.zeros((2, 2)),
        "module.text_branch.embeddings.position_ids": np.zeros((1, 9)),
        "module.audio_transform.sequential.0.weight": np.zeros((5, 5)),
    }
    imported = encoders.read_clap(Source(Path("clap.pt"), {}, {**theirs, **spare}))
    assert encoder.of_fields(json.loads(json.dumps(imported.config))) == TINY_CLAP
    assert all(np.array_equal(imported.weights[name], weights[name]) for name in weights)
    with pytest.raises(UserError, match=r"clap.pt: this is a fused CLAP"):
        encoders.read_clap(
            Source(Path("clap.pt"), {}, {**theirs, "module.audio_branch.patch_embed.mel_conv2d.bias": 0})
        )
    with pytest.raises(UserError, match=r"clap.pt: it has not what LAION's CLAP with HTSAT and RoBERTa has"):
        encoders.read_clap(Source(Path("clap.pt"), {}, {"module.conv.weight": np.zeros(3)}))


def test_a_sound_of_any_length_becomes_clips():
    ours = type("Of", (), {"config": ClapConfig(seconds=0.001)})  # 48 samples
    wav_L = np.arange(100, dtype=np.float32)
    np.testing.assert_array_equal(clap.Clap.clips(ours, wav_L)[:, 0], [0, 48, 52])
    np.testing.assert_array_equal(clap.Clap.clips(ours, wav_L[:96])[:, 0], [0, 48])
    np.testing.assert_array_equal(clap.Clap.clips(ours, wav_L[:20])[0], [*range(20)] * 2 + [0] * 8)


def test_words_become_ids(tmp_path):
    from tokenizers import ByteLevelBPETokenizer

    made = ByteLevelBPETokenizer()
    made.train_from_iterator(["a slow piano", "loud drums"], vocab_size=300, special_tokens=["<s>", "<pad>", "</s>"])
    made.save_model(str(tmp_path))
    text = clap.tokenizer_of(tmp_path)
    (tmp_path / clap.TOKENIZER).write_text(text)
    assert clap.tokenizer_of(tmp_path) == text and clap.tokenizer_of(tmp_path / "none") is None
    ids_BS = clap.ids_of(["piano", "a slow piano and many loud drums " * 9], tmp_path, RobertaConfig(positions=30))
    assert ids_BS.shape == (2, 28)
    assert ids_BS[0, 0] == ids_BS[1, 0] == 0 and ids_BS[1, -1] == 2 and ids_BS[0, -1] == 1
    assert (ids_BS[0] == 2).sum() == 1
    with pytest.raises(UserError, match="its ids are beyond the model's"):
        clap.ids_of(["piano"], tmp_path, RobertaConfig(ids=3))
    with pytest.raises(UserError, match="cannot be read as a tokenizer"):
        clap.ids_of(["piano"], tmp_path / "none", RobertaConfig())


@pytest.mark.parametrize(("window", "heard"), [(0.005, 1), (0.02, 1), (0.1, 5), (0.0, 24)])
def test_a_window_of_less_than_a_frame_is_one_frame_and_none_is_the_whole(window, heard):
    config = LogMelConfig()
    sound = encoder._frames(SimpleNamespace(config=config), np.zeros(8000), window)
    assert encoder.frame_count(config, sound.size) == heard and sound.count == -(-24 // heard)
    assert sound.piece(sound.count - 1)[0].shape == (sound.size,)
    assert len(sound.join([np.zeros((heard, 1))] * sound.count)) == 24


def test_a_sound_of_one_frame_is_long_enough():
    model = LogMelConfig(width=3).make(rngs=nnx.Rngs(0))
    assert encoder.embed(model, np.zeros(400), 0.0).shape == (1, 3)
    with pytest.raises(UserError, match="a sound of 399 samples is shorter than one frame"):
        encoder.embed(model, np.zeros(399), 0.0)


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    from hiermusic.audio import files

    path = tmp_path_factory.mktemp("sound") / "in.wav"
    files.write(path, 0.1 * np.random.default_rng(2).normal(size=(22_050, 2)).astype(np.float32), 44_100)
    return path


def test_embed_writes_frames_of_a_file(tmp_path, wav):
    folder, out = folder_of(BASE, tmp_path / "hubert"), str(tmp_path / "deep" / "out.npy")
    facts = embed.embed_file(folder, str(wav), out, layer=0, window=10.0)
    assert facts == {"out": out, "shape": [24, 64], "seconds": 0.5, "frame_rate": 50.0, "layer": 0}
    entered_TD = np.load(out)
    assert entered_TD.shape == (24, 64) and entered_TD.dtype == np.float32
    embed.embed_file(folder, str(wav), out, layer=None, window=10.0)
    assert np.abs(np.load(out) - entered_TD).max() > 0.1


def test_what_cannot_be_embedded_is_told_and_nothing_is_written(tmp_path, wav):
    from hiermusic.audio import files

    folder, out = folder_of(BASE, tmp_path / "hubert"), str(tmp_path / "out.npy")
    short = tmp_path / "short.wav"
    files.write(short, np.zeros((399, 1), np.float32), 16_000)
    other = tmp_path / "codec"
    other.mkdir()
    (other / "config.json").write_text('{"stage": "codec"}')
    published = tmp_path / "published"
    published.mkdir()
    (published / "config.json").write_text('{"model_type": "hubert"}')
    for words, arguments in {
        "features are written as .npy": (folder, str(wav), str(tmp_path / "out.npz"), None),
        "has the layers 0 to 2": (folder, str(wav), out, 3),
        "shorter than one frame, which has 400": (folder, str(short), out, None),
        "no such file": (folder, str(tmp_path / "none.wav"), out, None),
        "is a codec: give an imported encoder": (str(other), str(wav), out, None),
        "is not imported: give an imported encoder": (str(published), str(wav), out, None),
        "cannot be read as an encoder": (str(tmp_path / "none"), str(wav), out, None),
    }.items():
        model, source, target, layer = arguments
        with pytest.raises(UserError, match=words):
            embed.embed_file(model, source, target, layer=layer, window=10.0)
    assert not list(tmp_path.glob("out.*"))
    with pytest.raises(UserError, match="gives vectors of its last layer alone"):
        encoder.at_layer(TINY_CLAP, 3, "clap")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"family": "wavlm"}, "its family is wavlm, not hubert, clap, vggish"),
        ({"width": 0.5}, "its width is 0.5"),
        ({"width": -1}, "its width is -1"),
        ({"conv_widths": []}, "its conv_widths is"),
        ({"conv_widths": ["6"]}, "its conv_widths is"),
        ({"colour": 1}, "it has an unknown field colour"),
        ({"heads": None}, "it has no field heads"),
    ],
)
def test_a_folder_that_was_tampered_with_is_told(tmp_path, change, words):
    told = json.loads(json.dumps(encoder.to_fields(BASE)))
    for name, value in change.items():
        if name == "family":
            told[name] = value
        elif value is None:
            del told["model"][name]
        else:
            told["model"][name] = value
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=words):
        encoder.read_config(tmp_path)


def test_weights_of_another_size_are_told(tmp_path):
    weights = drawn(BASE)
    weights["project.kernel"] = weights["project.kernel"][:-1]
    folder = folder_of(BASE, tmp_path / "hubert", weights)
    with pytest.raises(UserError, match=r"the weight project.kernel is \(5, 64\), its config.json asks for \(6, 64\)"):
        encoder.load(folder)


# MARK: through the verbs


def published(config, theirs, folder, more):
    """A Hugging Face folder of random weights."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    save_file(theirs, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    for name, text in more.items():
        (folder / name).write_text(text)
    return str(folder)


def run(*words):
    from hiermusic import cli

    cli.main(list(map(str, words)))


def test_hubert_and_its_clusters_come_in_and_go_out_by_the_verbs(tmp_path, wav, capsys):
    weights = drawn(BASE)
    tensors = encoders.names.give(weights, hubert.transformers_names(BASE))
    front = {"README.md": "---\nlicense: apache-2.0\n---\n"}
    theirs = published(hubert.to_transformers(BASE), tensors, tmp_path / "theirs", front)
    run("import", "hubert", theirs, tmp_path / "hubert", "--json")
    out, err = capsys.readouterr()
    assert json.loads(out)["licence"] == "apache-2.0" and "the licence of these weights is apache-2.0" in err
    assert encoder.read_config(tmp_path / "hubert") == BASE
    run("export", f"--workdir={tmp_path / 'hubert'}", f"--out={tmp_path / 'back'}", "--format=transformers")
    run("import", "hubert", tmp_path / "back", tmp_path / "again", "--licence=mit")
    one, two = (export.load(tmp_path / name) for name in ("hubert", "again"))
    assert one.keys() == two.keys() == weights.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)

    np.save(tmp_path / "km.npy", np.random.default_rng(5).normal(size=(7, 64)))
    with pytest.raises(SystemExit):
        run("import", "kmeans", tmp_path / "km.npy", tmp_path / "km")
    assert "says nothing of what it clusters: give --encoder=HUBERT" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("import", "hubert", theirs, tmp_path / "km", "--layer=1")
    assert "--layer means nothing to the import of" in capsys.readouterr().err and not (tmp_path / "km").exists()
    run("import", "kmeans", tmp_path / "km.npy", tmp_path / "km", f"--encoder={tmp_path / 'hubert'}", "--layer=1")
    told = json.loads((tmp_path / "km" / "config.json").read_text())
    assert told["licences"] == ["apache-2.0", "unknown"] and told["features"]["model"]["layer"] == 1
    run("data", f"--source={wav.parent}", f"--out={tmp_path / 'records'}", "--sample_rate=16000", "--channels=1")
    run("tokenize", f"--codec={tmp_path / 'km'}", f"--data={tmp_path / 'records'}", f"--out={tmp_path / 'tokens'}")
    from hiermusic.data.token_records import TokenSource

    source = TokenSource(tmp_path / "tokens")
    assert source[0]["codes"].shape == (24, 1) and source.hierarchy.sizes == (7,)


def test_claps_words_go_with_it(tmp_path, capsys):
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = Tokenizer(WordLevel({"slow": 5, "piano": 6, "<unk>": 3}, unk_token="<unk>")).to_str()
    tensors = encoders.names.give(drawn(TINY_CLAP), clap.transformers_names(TINY_CLAP))
    front = {"preprocessor_config.json": json.dumps(clap.preprocessor(TINY_CLAP)), clap.TOKENIZER: words}
    theirs = published(clap.to_transformers(TINY_CLAP), tensors, tmp_path / "theirs", front)
    run("import", "clap", theirs, tmp_path / "clap")
    assert encoder.read_config(tmp_path / "clap") == TINY_CLAP
    np.testing.assert_array_equal(clap.ids_of(["slow"], tmp_path / "clap", TINY_CLAP.text), [[5]])
    run("export", f"--workdir={tmp_path / 'clap'}", f"--out={tmp_path / 'back'}", "--format=transformers")
    assert (tmp_path / "back" / clap.TOKENIZER).read_text() == words
    assert json.loads((tmp_path / "back" / "preprocessor_config.json").read_text())["frequency_min"] == 50
    run("import", "clap", tmp_path / "back", tmp_path / "again")
    one, two = (export.load(tmp_path / name) for name in ("clap", "again"))
    assert all(np.array_equal(one[name], two[name]) for name in one) and one.keys() == two.keys()


def of_samples(wav_LC):
    return Track(f"t{len(wav_LC)}", lambda: ({"mix": wav_LC.astype(np.float32)}, 16_000, {}))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Audio records of four tracks: of a second, of one sample less than HuBERT hears, of just as many, of one."""
    out = tmp_path_factory.mktemp("corpus") / "audio"
    dice = np.random.default_rng(4)
    tracks = [of_samples(0.1 * dice.normal(size=(length, 1))) for length in (16_000, 399, 400, 1)]
    write_audio(tracks, out, 16_000, 1, valid_fraction=0.0, fingerprint="", progress=False)
    return out


def test_tracks_that_are_too_short_stop_no_folder(tmp_path, corpus, capsys):
    """They are left out and counted: of vectors, and of tokens in all streams that one call makes."""
    weights = {name: 0.1 * array for name, array in drawn(BASE).items()}
    folder = folder_of(BASE, tmp_path / "hubert", weights)
    run("embed", f"--model={folder}", f"--data={corpus}", tmp_path / "v.npz", "--json")
    out, err = capsys.readouterr()
    assert json.loads(out)["skipped"] == ["t399", "t1"]
    assert "2 of 4 tracks are too short and have no vector: t399, t1" in err
    with np.load(tmp_path / "v.npz") as found:
        assert {name: len(found[name]) for name in found} == {"t16000": 49, "t400": 1}

    np.save(tmp_path / "km.npy", np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32))
    run("import", "kmeans", tmp_path / "km.npy", tmp_path / "km", "--encoder=log_mel")
    streams = (f"--stream=mix/one:{tmp_path / 'km'}", f"--stream=mix/two:{tmp_path / 'km'}")
    run("tokenize", *streams, f"--data={corpus}", f"--out={tmp_path / 'tokens'}", "--json")
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])["streams"]
    reason = "shorter than the 0.025 s of which there is a token"
    assert facts["mix/one"]["tracks"] == 2 and facts["mix/two"]["skipped"] == [["t399", reason], ["t1", reason]]
    both = TokenStreams(tmp_path / "tokens", {"mix/one": "all", "mix/two": "all"})
    assert [both[i]["meta"]["id"] for i in range(2)] == ["t16000", "t400"]
    assert [len(both[i]["codes"]["mix/one"]) for i in range(2)] == [49, 1]


def test_a_folder_of_tracks_that_are_all_too_short_is_told(tmp_path):
    write_audio(
        [of_samples(np.zeros((300, 1)))], tmp_path / "a", 16_000, 1, valid_fraction=0.0, fingerprint="", progress=False
    )
    np.save(tmp_path / "km.npy", np.ones((5, 64), np.float32))
    run("import", "kmeans", tmp_path / "km.npy", tmp_path / "km", "--encoder=log_mel")
    with pytest.raises(UserError, match=r"all of its 1 tracks are shorter than the 0.025 s"):
        workdir.tokenise({"": str(tmp_path / "km")}, str(tmp_path / "a"), str(tmp_path / "tokens"), split_at=1)
    folder = folder_of(BASE, tmp_path / "hubert")
    with pytest.raises(UserError, match="track t300: a sound of 300 samples is shorter than one frame"):
        embed.embed_tracks(folder, str(tmp_path / "a"), str(tmp_path / "v.npz"), layer=None, window=None)
    assert not (tmp_path / "v.npz").exists()


def test_vectors_carry_the_licence_of_their_encoder_into_what_learns_of_them(tmp_path, corpus):
    folder, vectors = Path(folder_of(BASE, tmp_path / "hubert")), tmp_path / "v.npz"
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(told | {"licences": ["cc-by-nc-4.0"]}))
    embed.embed_tracks(str(folder), str(corpus), str(vectors), layer=None, window=None)
    settings = {"data.clap": str(vectors), "model.listener": 0}
    config = presets.load("configs/aar/lm.py:tiny", settings)
    assert list(workdir.resolved(config).licences) == ["cc-by-nc-4.0"]
    np.savez(vectors, t=np.ones(64))  # somebody's own, which say nothing
    assert "licences" not in workdir.resolved(config)


def test_clips_have_one_length(tmp_path, wav):
    folder = folder_of(TINY_CLAP, tmp_path / "clap")
    with pytest.raises(UserError, match=r"--window=5: .* hears clips of one length and gives a vector for each"):
        embed.embed_file(folder, str(wav), str(tmp_path / "o.npy"), layer=None, window=5.0)
    assert encoder.window_of(TINY_CLAP, None, folder) == encoder.window_of(BASE, None, folder) == 10
    assert encoder.window_of(BASE, 0.0, folder) == 0
