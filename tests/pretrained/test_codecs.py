"""Published codecs without torch: every release's names and sizes, the originals' files, and what the verbs make."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from flax import nnx
from ml_collections import ConfigDict

import hiermusic
from hiermusic import cli, presets
from hiermusic.codec.codec import CodecConfig
from hiermusic.errors import UserError
from hiermusic.pretrained import dac, encodec, export, pairs
from hiermusic.pretrained.family import Imported
from hiermusic.pretrained.kinds import KINDS
from hiermusic.pretrained.source import Source
from hiermusic.systems import workdir

from .torch_files import save, stand_in, tensor

ENCODEC = {
    "sampling_rate": 8000,
    "num_filters": 4,
    "hidden_size": 8,
    "upsampling_ratios": [4, 3, 2],
    "codebook_size": 16,
}
TINY = {
    "encodec": {"model_type": "encodec", **ENCODEC, "target_bandwidths": [4.008]},
    "dac": {
        **{"model_type": "dac", "encoder_hidden_size": 4, "downsampling_ratios": [2, 5], "decoder_hidden_size": 16},
        **{"n_codebooks": 3, "codebook_size": 32, "codebook_dim": 4, "sampling_rate": 8000},
    },
}
RELEASES = {  # numbers that are trained, in millions, as PyTorch counts them
    "encodec_24khz": (14.852, 75, 32),
    "encodec_32khz": (56.885, 50, 4),
    "encodec_48khz": (14.856, 150, 16),
    "dac_16khz": (74.18, 50, 12),
    "dac_24khz": (74.71, 75, 32),
    "dac_44khz": (76.65, 86.13, 9),
    "dac_44khz_16kbps": (64.21, 86.13, 18),
}


def random_weights(model: dict) -> dict[str, np.ndarray]:
    """Of the codec that these fields of `model` describe, as the configuration of its kind has the others."""
    config = presets.read(KINDS[{"seanet": "encodec"}.get(model["trunk"], model["trunk"])].config)
    config.model.update(model)
    abstract = nnx.eval_shape(lambda: workdir.system(config).rooms.make_model(config)(nnx.Rngs(0)))
    shapes, rng = export.dotted(nnx.to_pure_dict(nnx.state(abstract))), np.random.default_rng(0)
    drawn = {name: rng.normal(size=shape.shape).astype(np.float32) for name, shape in shapes.items()}
    drawn["quantiser.initialised"] = np.ones((), bool)
    if "quantiser.in_proj" in drawn:
        drawn["quantiser.ema_counts"] *= 0
    return drawn


def theirs(kind: str) -> tuple[dict, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A tiny model of a kind as transformers has it, configuration and weights, and its weights as we have it."""
    # its sizes first: an empty model has them all
    levels = 3
    names = {f"quantizer.layers.{k}.codebook.embed": np.zeros((16, 8), np.float32) for k in range(levels)}
    describe = {"encodec": encodec._model, "dac": dac._model}[kind]
    model = describe(Source("m", TINY[kind], names))
    weights = random_weights(model)
    config, tensors = KINDS[kind].write(Imported(_whole(kind, model), weights))
    return config, tensors, weights


def _whole(kind: str, model: dict) -> ConfigDict:
    config = presets.read(KINDS[kind].config)
    config.model.update(model)
    return config.model.to_dict()


@pytest.fixture(scope="module", params=TINY)
def published(request, tmp_path_factory):
    """A kind, a folder of transformers', and the model's weights as we have it."""
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp(request.param)
    config, tensors, weights = theirs(request.param)
    (folder / "m").mkdir()
    (folder / "m" / "config.json").write_text(json.dumps(config))
    (folder / "m" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    save_file(tensors, folder / "m" / "model.safetensors")
    return request.param, folder / "m", weights


@pytest.fixture(scope="module")
def imported(published, tmp_path_factory):
    kind, folder, _ = published
    out = tmp_path_factory.mktemp("out") / kind
    cli.main(["import", kind, str(folder), str(out)])
    return out


@pytest.mark.parametrize("preset", RELEASES)
def test_presets_have_the_sizes_of_the_releases(preset):
    millions, rate, levels = RELEASES[preset]
    model = presets.read(f"configs/tokens/codec.py:{preset}").model
    table = list((dac if model.trunk == "dac" else encodec)._table(model))
    count = sum(
        math.prod(pair.shape) * (1 if isinstance(pair.theirs, str) else len(pair.theirs))
        for pair in table
        if model.trunk == "dac" or not pair.ours.startswith("quantiser")  # EnCodec's codes are moved by averages
    )
    # the two biases that PyTorch's LSTM has in either half, which no table has
    count += 2 * 2 * model.get("lstm_layers", 0) * 4 * model.get("width", 0) * 2 ** len(model.strides)
    assert count / 1e6 == pytest.approx(millions, abs=0.006)
    assert model.sample_rate / math.prod(model.strides) == pytest.approx(rate, abs=0.01) and model.levels == levels


def test_what_comes_in_is_what_was_there(published, imported, capsys):
    """What was written for transformers comes back: weights to the bit, but for products of a weight norm."""
    kind, _folder, weights = published
    found = export.load(imported)
    assert {name: found[name].shape for name in found} == {name: weights[name].shape for name in weights}
    if kind == "encodec":
        assert all(np.array_equal(found[name], weights[name]) for name in weights)
    else:  # transformers keeps no norms: gains are those of the weights they have made
        alone = [name for name in weights if "weight_" not in name and "_proj" not in name and "_gain" not in name]
        assert alone and all(np.array_equal(found[name], weights[name]) for name in alone)
        norm = np.sqrt(np.square(found["encoder.conv_in.weight_v"]).sum((0, 1)))
        np.testing.assert_allclose(norm, np.abs(weights["encoder.conv_in.weight_g"]), rtol=1e-5)
    config = json.loads((imported / "config.json").read_text())
    assert config["licences"] == ["cc-by-nc-4.0"] and config["system"] == "tokens" and config["stage"] == "codec"
    card = (imported / "README.md").read_text()
    assert card.startswith("---\nlicense: cc-by-nc-4.0\n") and "hiermusic encode --codec=FOLDER" in card
    assert f"# {KINDS[kind].title}\n" in card and "## Training\n" not in card


def test_import_tells_the_licence(published, tmp_path, capsys):
    kind, folder, _ = published
    cli.main(["import", kind, str(folder), str(tmp_path / "a"), "--licence=mit", "--json"])
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["licence"] == "mit" and told["family"] == KINDS[kind].title and told["from"] == "m"
    assert "the licence of these weights is mit; models made from them carry it" in err
    assert json.loads((tmp_path / "a" / "config.json").read_text())["licences"] == ["mit"]
    assert (tmp_path / "a" / "README.md").read_text().startswith("---\nlicense: mit\n")


def test_what_is_made_from_it_carries_the_licence(published, imported, tmp_path):
    config = presets.load("configs/tokens/codec.py:tiny", {"init_from": str(imported)})
    assert list(workdir.resolved(config).licences) == ["cc-by-nc-4.0"]
    tokens = presets.load("configs/tokens/lm.py:tiny", {"data.codec": f"{imported}@0"})
    assert list(workdir.resolved(tokens).licences) == ["cc-by-nc-4.0"]
    (tmp_path / "config.json").write_text('{"licences": ["mit"]}')  # a run whose source may be gone by now
    assert list(workdir.resolved(config, tmp_path).licences) == ["cc-by-nc-4.0", "mit"]
    assert "licences" not in workdir.resolved(presets.read("configs/tokens/codec.py:tiny"), tmp_path / "new")


@pytest.mark.parametrize("zipped", [True, False])
def test_the_originals_files_give_the_same(published, imported, tmp_path, monkeypatch, zipped):
    kind, _folder, _ = published
    stand_in(monkeypatch)
    state = {_original(kind, name): tensor(weight) for name, weight in theirs(kind)[1].items()}
    if kind == "encodec":  # as audiocraft has it; the encodec package tells no sizes at all
        value = {"best_state": state, "xp.cfg": "sample_rate: 8000\nencodec:\n  causal: true\n"}
    else:
        told = {"encoder_dim": 4, "encoder_rates": [2, 5], "decoder_dim": 16, "decoder_rates": [5, 2]}
        told |= {"n_codebooks": 3, "codebook_size": 32, "codebook_dim": 4, "sample_rate": 8000, "latent_dim": None}
        value = {"state_dict": state, "metadata": {"kwargs": told}}
    path = save(value, tmp_path / "weights.pth", zipped)
    cli.main(["import", kind, str(path), str(tmp_path / "out")])
    found, expected = export.load(tmp_path / "out"), export.load(imported)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)
    models = [json.loads((place / "config.json").read_text())["model"] for place in (tmp_path / "out", imported)]
    assert models[0] == models[1]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["licences"] == ["unknown"]


def _original(kind: str, name: str) -> str:
    """A name of transformers' as the original has it, written from the layers of the papers' code."""
    import re

    if kind == "encodec":
        name = name.replace("parametrizations.weight.original0", "weight_g")
        name = name.replace("parametrizations.weight.original1", "weight_v")
        name = re.sub(r"^quantizer\.layers\.(\d+)\.codebook\.", r"quantizer.vq.layers.\1._codebook.", name)
        up = re.match(r"decoder\.layers\.(3|6|9)\.conv\.", name)  # three blocks: LSTM at 1, ELU in front of each
        name = name.replace(".layers.", ".model.", 1) if name.startswith(("encoder", "decoder")) else name
        return re.sub(r"\.conv\.(?=weight|bias)", ".convtr.convtr." if up else ".conv.conv.", name)
    half, _, rest = name.partition(".")
    if half == "quantizer":
        return name
    last, first = 3, {"encoder": "encoder.block", "decoder": "decoder.model"}[half]
    unit = {"snake1.alpha": "0.alpha", "conv1": "1", "snake2.alpha": "2.alpha", "conv2": "3"}
    for stem, place in (("conv1.", 0), ("snake1.", last), ("conv2.", last + 1)):
        if rest.startswith(stem):
            return f"{first}.{place}.{rest.removeprefix(stem)}"
    number, rest = re.match(r"block\.(\d+)\.(.+)", rest).groups()
    block = f"{first}.{int(number) + 1}.block"
    if found := re.match(r"res_unit(\d)\.(.+)", rest):
        place = int(found[1]) - 1 + (2 if half == "decoder" else 0)
        key = next(key for key in unit if found[2].startswith(key))
        return f"{block}.{place}.block.{unit[key]}{found[2][len(key) :]}"
    inner = {"encoder": {"snake1": 3, "conv1": 4}, "decoder": {"snake1": 0, "conv_t1": 1}}[half]
    stem, _, rest = rest.partition(".")
    return f"{block}.{inner[stem]}.{rest}"


def test_the_verbs_take_it_in_place_of_a_workdir(published, imported, tmp_path, capsys):
    wav = 0.3 * np.random.default_rng(0).normal(size=4001).astype(np.float32)
    soundfile.write(tmp_path / "in.wav", wav, 8000, subtype="FLOAT")
    codes, out = str(tmp_path / "c.npz"), str(tmp_path / "out.wav")
    cli.main(["encode", f"--codec={imported}", "--levels=2", str(tmp_path / "in.wav"), codes])
    cli.main(["decode", f"--codec={imported}", codes, out])
    codec = hiermusic.load(imported)
    frames = -(-4001 // codec.codec.hop)
    with np.load(codes) as stored:
        assert stored["codes"].shape == (2, frames) and len(np.unique(stored["codes"])) > 1
        np.testing.assert_array_equal(stored["codes"], codec.encode(wav, 8000, levels=2))
    assert soundfile.info(out).frames == 4001 and np.isfinite(soundfile.read(out)[0]).all()


def refused(capsys, *words: str) -> str:
    with pytest.raises(SystemExit):
        cli.main(list(words))
    err = capsys.readouterr().err.strip()
    assert err.count("\n") == 0, err
    return err


def test_bad_sources_are_one_line_and_leave_nothing(published, imported, tmp_path, capsys):
    kind, folder, _ = published
    config, tensors, _ = theirs(kind)
    other = {"encodec": "dac", "dac": "encodec"}[kind]
    out = str(tmp_path / "out")

    def source(config, tensors):
        from safetensors.numpy import save_file

        (tmp_path / "m").mkdir(exist_ok=True)
        (tmp_path / "m" / "config.json").write_text(json.dumps(config))
        save_file(tensors, tmp_path / "m" / "model.safetensors")
        return str(tmp_path / "m")

    name = next(name for name in tensors if name.endswith("bias"))
    cases = {
        "a model of the type": (other, str(folder)),
        "there is no kind 'wav2vec' of published models: choose encodec, dac": ("wav2vec", str(folder)),
        f"has no weight {name}": (kind, source(config, {key: one for key, one in tensors.items() if key != name})),
    }
    for words, (named, place) in cases.items():
        assert words in refused(capsys, "import", named, place, out)
    wrong = source(config, tensors | {name: np.ones(1000, np.float32)})
    assert f"{name} is (1000,), its configuration asks for" in refused(capsys, "import", kind, wrong, out)
    strides = {"dac": "downsampling_ratios", "encodec": "upsampling_ratios"}[kind]
    wrong = source({**config, strides: [0]}, tensors)
    assert f"{strides} is [0] in its configuration: whole numbers" in refused(capsys, "import", kind, wrong, out)
    assert "is no identifier" in refused(capsys, "import", kind, str(folder), out, "--licence=my own")
    assert f"{imported} is not empty: give a new folder" in refused(capsys, "import", kind, str(folder), str(imported))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_a_form_that_transformers_has_not_is_told(tmp_path):
    for kind, change, words in (
        ("dac", {"latent": 8}, "has frames of 16 channels where this codec has 8"),
        ("dac", {"tanh": False}, "this codec is another"),
        ("encodec", {"ragged": False}, "ragged ends"),
        ("encodec", {"dilations": (1, 5, 7)}, r"no dilations \(1, 5, 7\)"),
    ):
        base = {"encoder_width": 4, "strides": (2, 5), "latent": 16} if kind == "dac" else {}
        with pytest.raises(UserError, match=words):
            KINDS[kind].write(Imported(_whole(kind, {**base, **change}), {}))


@pytest.mark.parametrize(
    "odd",
    [
        {"pad_mode": "replicate"},
        {"trim_right_ratio": 0.5},
        {"norm_type": "x"},
        {"normalize": True},
        {"chunk_length_s": 1.0},
        {"chunk_length_s": 0, "normalize": True, "overlap": 0.1},
        {"overlap": 1.0, "normalize": True, "chunk_length_s": 1.0},
        {"overlap": None, "normalize": True, "chunk_length_s": 1.0},
    ],
)
def test_a_form_of_encodec_that_is_not_known_is_told(odd):
    with pytest.raises(UserError, match=f"m: .*{next(iter(odd))} is"):
        KINDS["encodec"].read(Source("m", TINY["encodec"] | odd, {}))


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        ("dac", "n_codebooks", 1001),
        ("dac", "encoder_hidden_size", 0),
        ("dac", "downsampling_ratios", [2] * 65),
        ("encodec", "num_lstm_layers", 101),
        ("encodec", "num_residual_layers", 9),
        ("encodec", "hidden_size", 1 << 25),
    ],
)
def test_sizes_that_no_model_has_are_told_before_anything_is_made_of_them(kind, field, value):
    with pytest.raises(UserError, match=rf"m: {field} is .* in its configuration: "):
        KINDS[kind].read(Source("m", TINY[kind] | {field: value}, {}))


def test_what_the_originals_say_is_heeded_or_told_in_one_line():
    with pytest.raises(UserError, match="m cannot be understood"):
        KINDS["dac"].read(Source("m", {"metadata": {"kwargs": {"encoder_rates": None}}}, {}))
    state = {_original("encodec", name): weight for name, weight in theirs("encodec")[1].items()}
    told = "seanet:\n  pad_mode: {}\n"
    for padding in ("constant", "reflect"):
        model = KINDS["encodec"].read(Source("m", {"xp.cfg": told.format(padding)}, state)).config
        assert (model["padding"], model["norm"], model["segment_seconds"]) == (padding, "weight", 0.0)
    with pytest.raises(UserError, match="m: normalize is True and chunk_length_s is None; only models that have both"):
        KINDS["encodec"].read(Source("m", {"xp.cfg": "encodec:\n  renormalize: true\n"}, state))
    state["quantizer.vq.layers.0._codebook.embed"] = np.float32(1.0)
    with pytest.raises(UserError, match="m cannot be understood"):
        KINDS["encodec"].read(Source("m", {}, state))


def test_weights_of_other_precisions_become_float32():
    assert pairs.vector("a", "b", 3).read(Source("m", {}, {"b": np.ones(3)})).dtype == np.float32


def test_streams_that_are_read_in_front_carry_their_licences(imported, tmp_path):
    """What training has learnt of them, from the records that stand in front and one whose maker is gone."""
    made_by = (str(imported), str(tmp_path / "gone"))
    config = presets.load("configs/tokens/lm.py:tiny", {"data.prefix_codecs": made_by})
    assert list(workdir.resolved(config).licences) == ["cc-by-nc-4.0"]


SECONDS = {"audio_channels": 2, "use_causal_conv": False, "norm_type": "time_group_norm"}
SECONDS |= {"normalize": True, "chunk_length_s": 1.0, "overlap": 0.01}


@pytest.fixture(scope="module")
def of_seconds(tmp_path_factory):
    """The folder of an imported EnCodec that codes seconds one by one; its configuration and tensors as published."""
    from safetensors.numpy import save_file

    names = {f"quantizer.layers.{k}.codebook.embed": np.zeros((16, 8), np.float32) for k in range(3)}
    model = encodec._model(Source("m", TINY["encodec"] | SECONDS, names))
    config, tensors = KINDS["encodec"].write(Imported(_whole("encodec", model), random_weights(model)))
    folder = tmp_path_factory.mktemp("seconds")
    (folder / "m").mkdir()
    (folder / "m" / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "m" / "model.safetensors")
    cli.main(["import", "encodec", str(folder / "m"), str(folder / "out")])
    return folder / "out", config, tensors


def test_the_original_that_codes_seconds_tells_no_sizes(of_seconds):
    """The encodec package saves tensors alone; what codes seconds is what has the other norm."""
    folder, config, tensors = of_seconds
    assert {name: config[name] for name in SECONDS} == SECONDS
    state = {_original("encodec", name).replace("conv.conv.norm", "conv.norm"): one for name, one in tensors.items()}
    ups = {int(name.split(".")[2]) for name in tensors if name.startswith("decoder.layers.") and ".norm." in name}
    model = KINDS["encodec"].read(Source("m", {}, state)).config
    expected = json.loads((folder / "config.json").read_text())["model"] | {"sample_rate": 48_000}
    assert ups and {name: expected[name] for name in model} == {
        name: list(value) if isinstance(value, tuple) else value for name, value in model.items()
    }


def test_as_many_codes_as_no_sound_has_are_decoded_too(of_seconds, tmp_path):
    """A song may end with a whole segment, behind which `encode` would have begun another."""
    config = workdir.load_codec(of_seconds[0]).config
    frames = config.segments.frames
    for packets in (frames, frames + 1, 2 * frames, 5):
        length, codes = config.length(packets), np.zeros((1, packets), np.uint16)
        np.savez(tmp_path / "song.npz", codes=codes, length=length, sample_rate=config.sample_rate)
        made = workdir.decode_file(str(of_seconds[0]), str(tmp_path / "song.npz"), str(tmp_path / "song.wav"), None)
        assert made["seconds"] == length / config.sample_rate
        for wrong in (length + 1, length - 2 * config.hop - 240, 0):
            np.savez(tmp_path / "song.npz", codes=codes, length=wrong, sample_rate=config.sample_rate)
            with pytest.raises(UserError, match="use the codec that made it"):
                workdir.decode_file(str(of_seconds[0]), str(tmp_path / "song.npz"), str(tmp_path / "song.wav"), None)


def test_tokens_of_seconds_keep_their_scales(of_seconds, tmp_path):
    """Of a file in its .npz, of tracks in their entries: with them the sound is as loud as it was."""
    from hiermusic.codec.chunked import decode_long
    from hiermusic.data.audio_records import AudioSource
    from hiermusic.data.token_records import TokenSource

    folder, tokens = of_seconds[0], tmp_path / "tokens"
    cli.main(["tokenize", f"--codec={folder}", "--data=builtin:2?seconds=2-3", f"--out={tokens}"])
    source, audio = TokenSource(tokens), AudioSource(next((tokens / "audio").iterdir()))
    wav_LC, entry = audio.track(0), source.tracks[0]
    codec = workdir.load_codec(folder)
    np.testing.assert_allclose(entry["scales"], workdir.scales(codec, wav_LC), rtol=1e-6)
    assert entry["frames"] == [codec.config.packets(len(wav_LC))]
    soundfile.write(tmp_path / "in.wav", wav_LC, 8000, subtype="FLOAT")
    codes, out = str(tmp_path / "c.npz"), str(tmp_path / "out.wav")
    cli.main(["encode", f"--codec={folder}", str(tmp_path / "in.wav"), codes])
    cli.main(["decode", f"--codec={folder}", codes, out])
    with np.load(codes) as stored:
        np.testing.assert_array_equal(stored["codes"].T, source[0]["codes"])
        np.testing.assert_array_equal(stored["scales"], np.float32(entry["scales"]))
        loose = dict(stored)
    scales_N = np.float32(entry["scales"])
    made_LC = decode_long(codec, source[0]["codes"], length=len(wav_LC), scales_N=scales_N)
    np.testing.assert_allclose(soundfile.read(out)[0], made_LC.clip(-1, 1), atol=2**-15 + 1e-6)
    heard_LC = hiermusic.load(folder).decode(loose["codes"], length=len(wav_LC), scales_N=entry["scales"])
    np.testing.assert_array_equal(heard_LC, made_LC)  # lists will do
    for scales, words in (
        (scales_N[1:], "c.npz holds 2 scales for 3 segments: one belongs to each"),
        (scales_N.astype(str), "holds scales that are no loudness"),
        (np.full_like(scales_N, np.nan), "holds scales that are no loudness"),
        (scales_N[None], "holds scales that are no loudness"),
    ):
        np.savez(codes, **loose | {"scales": scales})
        with pytest.raises(UserError, match=words):
            workdir.decode_file(str(folder), codes, out, None)
    with pytest.raises(UserError, match="this codec has none"):
        workdir.check_scales(SimpleNamespace(config=CodecConfig()), scales_N, 1, "c.npz")


@pytest.mark.slow
def test_a_backbone_learns_tokens_of_an_imported_codec_by_configuration_alone(imported, tmp_path, capsys):
    tokens, run = str(tmp_path / "tokens"), str(tmp_path / "run")
    cli.main(["tokenize", f"--codec={imported}", "--data=builtin:6?seconds=2-3", f"--out={tokens}"])
    cli.main(
        [
            "train",
            "--config=configs/khala/backbone.py:tiny",
            f"--workdir={run}",
            f"--config.data.path={tokens}",
            "--config.train.steps=3",
            "--config.train.batch_size=8",
            "--config.model.layers=1",
            "--noprogress",
        ]
    )
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["tokens"]["sample_rate"] == 8000 and config["licences"] == ["cc-by-nc-4.0"]
    cli.main(["export", f"--workdir={run}", f"--out={tmp_path / 'x'}"])
    assert "license: cc-by-nc-4.0" in (tmp_path / "x" / "README.md").read_text()
    assert math.isfinite(json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"])


@pytest.mark.slow
def test_an_imported_codec_is_trained_on(imported, tmp_path):
    from hiermusic.train import checkpoint

    config = json.loads((imported / "config.json").read_text())
    preset = {"seanet": "encodec_24khz", "dac": "dac_44khz"}[config["model"]["trunk"]]
    fields = [f"--config.model.{name}={tuple(value) if isinstance(value, list) else value}"
              for name, value in config["model"].items()]  # fmt: skip
    small = [
        "--config.discriminator.filters=2",
        "--config.discriminator.fft_sizes=(64,)",
        "--config.train.batch_size=8",
    ]
    if preset == "dac_44khz":
        small += ["--config.discriminator.periods=(2,)", "--config.discriminator.period_widths=(2,2)"]
    mel = ["--config.loss.mel_windows=(64,)", "--config.train.crop_frames=40", "--config.train.steps=2"]
    mel += ["--config.loss.mel_bands=(5,)"] if preset == "dac_44khz" else ["--config.loss.mel_bands=5"]
    cli.main(
        [
            "train",
            f"--config=configs/tokens/codec.py:{preset}",
            f"--workdir={tmp_path / 'run'}",
            "--noprogress",
            "--config.data.path=builtin:4?seconds=2-3",
            f"--config.init_from={imported}",
            *fields,
            *small,
            *mel,
        ]
    )
    before, after = export.load(imported), export.dotted(checkpoint.load_weights(tmp_path / "run"))
    assert before.keys() == after.keys()
    moved = max(float(np.abs(after[name] - before[name]).max()) for name in before if name.endswith("bias"))
    assert 0 < moved < 0.1
