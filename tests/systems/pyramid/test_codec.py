"""PyramidCodec's codec in miniature through the verbs, and its numbers at the paper's size."""

import json
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from hiermusic import presets
from hiermusic.data.token_records import TokenSource
from hiermusic.errors import UserError
from hiermusic.systems import workdir
from hiermusic.systems.pyramid import SYSTEM as system
from hiermusic.systems.pyramid import models
from hiermusic.tokens.facts import TokenFacts
from hiermusic.train.log import read_metrics

from ..conftest import CONFIGS, shared, work
from ..kills import ends_in_the_same_bits

CODEC = (
    f"--config={CONFIGS.parent}/pyramid/codec.py:tiny",
    "--config.model.sample_rate=4000",
    "--config.model.fold=2",
    "--config.model.strides=(2, 5)",
    "--config.model.dilations=(1,)",
    "--config.model.encoder_width=2",
    "--config.model.decoder_width=8",
    "--config.model.latent=6",
    "--config.model.books=(1, 2, 1)",
    "--config.model.codes=16",
    "--config.model.codebooks=factorised",
    "--config.model.code_width=3",
    "--config.model.residual=False",
    "--config.discriminator.period_widths=(2, 2)",
    "--config.discriminator.bands=(0.0, 0.5, 1.0)",
    "--config.discriminator.fft_sizes=(64,)",
    "--config.discriminator.filters=2",
    "--config.loss.mel_windows=(64,)",
    "--config.loss.mel_bands=8",
    "--config.loss.adversarial=0.1",
    "--config.loss.feature=0.1",
    "--config.train.crop_frames=48",
    "--config.train.batch_size=2",
    "--config.train.steps=4",
    "--config.train.quantise_start=0",
    "--config.train.warmup_steps=2",
    "--config.train.valid_every=4",
    "--config.train.valid_batches=1",
)
SLOTS = (1, 2, 2, 4)


def config(preset: str):
    return presets.read(f"configs/pyramid/codec.py:{preset}")


@pytest.fixture(scope="session")
def pyramid(tmp_path_factory, narrow) -> SimpleNamespace:
    """The workdir and records of a miniature of the codec; no test may change them."""

    def make(at):
        work(
            ("train", *CODEC, f"--workdir={at.codec}", f"--config.data.path={narrow}", "--noprogress"),
            ("tokenize", f"--codec={at.codec}", f"--data={narrow}", f"--out={at.tokens}"),
        )

    at = shared(tmp_path_factory, "pyramid", ("codec", "tokens"), make)
    at.corpus = narrow
    return at


# MARK: numbers of the paper


@cache
def told_of(preset: str) -> dict:
    return system.rooms.inspect(config(preset))


def test_the_released_sizes():
    code, dac = told_of("code"), told_of("dac")
    assert code["released_params"] == pytest.approx(334.37e6, rel=1e-4)
    assert code["params"]["total"] == pytest.approx(305e6, rel=1e-3)  # without the upsampler that nothing reads
    for part, millions in (("encoder", 13.95), ("mel_branch", 10.49), ("decoder", 13.95)):
        assert code["params"][part] == pytest.approx(millions * 1e6, rel=1e-3)
    assert dac["params"]["total"] == pytest.approx(76.65e6, rel=1e-4) and "released_params" not in dac
    assert code["discriminator_params"] == dac["discriminator_params"] == pytest.approx(42.52e6, rel=1e-4)
    paper = told_of("paper")["params"]
    assert 0.8 * dac["params"]["total"] < paper["total"] < dac["params"]["total"] and "mel_branch" not in paper


def test_a_pyramid_of_loudness_is_told_without_what_was_released():
    """Whose upsamplers it has not; of two levels it has none at all."""
    heard = config("code")
    change = {"books": (1, 1), "level_strides": (2, 4), "mel_finest": True}
    heard.model.update(change)
    told = system.rooms.inspect(heard)
    assert "released_params" not in told and told["levels"] == 2


def test_rates_are_the_papers():
    for preset in ("tiny", "small", "paper", "code"):
        told = told_of(preset)
        tokens, levels = (107.67, 5) if preset == "tiny" else (75.37, 3)
        assert told["tokens_per_second"] == pytest.approx(tokens, abs=0.005) and told["levels"] == levels
        rates = sorted({float(rate) for rate in models.hierarchy(config(preset)).rates})
        np.testing.assert_allclose(rates, [10.77, 21.53, 43.07], atol=0.005)
    assert told_of("dac")["tokens_per_second"] == pytest.approx(387.6, abs=0.01)


def test_token_models_are_told_of_the_presets_codec():
    from hiermusic.configs.pyramid import codec

    for preset in ("tiny", "small", "paper", "code", "dac"):
        assert TokenFacts.of(codec.tokens(preset).to_dict()) == models.codec_config(config(preset).model).facts


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quantiser": "ternary"}, "model.quantiser is 'ternary': choose pyramid or residual"),
        ({"quantiser": "residual", "books": (2,)}, "model.mel_finest=True: a residual quantiser has no finest level"),
        ({"mel_bands": 0}, "mel_finest is True: give mel_bands"),
        ({"codebooks": "neither"}, "model.codebooks is 'neither': choose factorised or averaged"),
        ({"books": (1, 1)}, "model.level_strides has 3 numbers for the 2 levels"),
        ({"books": (1, 1), "level_strides": (2, 1)}, "loss.level_weights has 3 numbers for a codec of 2 levels"),
        ({"heavy": True}, "model.latent=128: a trunk without convolutions of its own ends with 192 channels"),
        ({"books": (1, 0, 1)}, "model.books=(1, 0, 1): give whole numbers of 1 or more"),
        ({"level_strides": (2, 1, 1)}, "model.level_strides=(2, 1, 1): a level has at least 2 tokens"),
        (
            {"codebooks": "factorised", "quantiser_dropout": 2.0},
            "model.quantiser_dropout=2.0: give a share",
        ),
        ({"loss.level_weights": (0.2, 0.3, -0.5)}, "loss.level_weights is (0.2, 0.3, -0.5)"),
        ({"loss.mel_start": -1.0}, "loss.mel_start is -1.0"),
        ({"loss.adversary": "wasserstein"}, "loss.adversary is 'wasserstein'"),
        ({"discriminator.bands": (0.0, 0.5)}, "discriminator.bands is (0.0, 0.5)"),
        ({"discriminator.bands": (0.0, 0.001, 1.0)}, "one holds no bin of a spectrum of 512 samples"),
        ({"discriminator.periods": (0,)}, "discriminator.periods holds 0"),
        ({"train.discriminator_clip_norm": -1.0}, "train.discriminator_clip_norm is -1.0"),
        ({"train.decoder_start": 500}, "train.decoder_start=500 is not behind train.quantise_start=500"),
        ({"train.decoder_start": 0, "train.quantise_start": 0}, "name its run with init_from, or give a later step"),
    ],
)
def test_what_cannot_be_is_one_line(change, words):
    wrong = config("tiny")
    wrong.update_from_flattened_dict({n if "." in n else f"model.{n}": value for n, value in change.items()})
    with pytest.raises(UserError) as told:
        workdir.stage(wrong)
    assert words in str(told.value) and "\n" not in str(told.value)


def test_codec_and_discriminators_are_clipped_as_dacs():
    stage = workdir.stage(config("paper"))
    assert (stage.config.optimiser.clip_norm, stage.judging.clip_norm) == (1000, 10)


def test_crops_are_whole_packets():
    wrong = config("tiny")
    wrong.train.crop_frames = 30
    with pytest.raises(UserError, match="crop_frames=30 is no multiple of the quantiser's packets of 4 frames"):
        workdir.stage(wrong)


def test_dac_is_a_setting_of_the_same_parts():
    baseline = config("tiny")
    baseline.model.update({"quantiser": "residual", "books": (2,), "mel_finest": False, "mel_bands": 0})
    workdir.stage(baseline)  # weights of levels mean nothing to it
    assert models.codec_config(baseline.model).factors == (1,)
    assert float(models.hierarchy(baseline).tokens_per_second) == pytest.approx(86.13, abs=0.005)


# MARK: verbs


def test_training_tells_of_every_resolution(pyramid):
    *_, last = read_metrics(pyramid.codec)
    assert len(last["valid/si_sdr_J"]) == 3 and last["valid/si_sdr"] == last["valid/si_sdr_J"][-1]
    assert len(last["perplexity_K"]) == 4 and {"adversarial", "feature", "discriminator"} <= set(last)
    assert all(np.isfinite(last[name]) for name in ("loss", "mel", "waveform", "commitment", "discriminator"))


def test_tokens_lie_level_by_level(pyramid):
    source = TokenSource(pyramid.tokens)
    assert source.info["tokens"]["quantiser"] == "pyramid" and tuple(source.info["tokens"]["scales"]) == SLOTS
    coarse, middle, fine = source[0]["codes"]
    assert coarse.shape[1] == fine.shape[1] == 1 and middle.shape[1] == 2
    assert len(fine) == 2 * len(middle) == 4 * len(coarse) and fine.max() < 16


def test_a_file_is_encoded_and_decoded_by_any_number_of_levels(pyramid, run, tmp_path):
    wav = 0.3 * np.sin(np.arange(9001) / 5)
    soundfile.write(tmp_path / "in.wav", wav, 4000)
    for levels, slots in ((1, 1), (2, 3), (3, 5), (4, 9)):
        codes, out = tmp_path / f"{levels}.npz", tmp_path / f"{levels}.wav"
        run("encode", f"--codec={pyramid.codec}", f"--levels={levels}", tmp_path / "in.wav", codes)
        run("decode", f"--codec={pyramid.codec}", codes, out)
        assert np.load(codes)["codes"].shape == (slots, -(-9001 // 80))
        assert len(soundfile.read(out)[0]) == 9001
        run("decode", f"--codec={pyramid.codec}", f"--levels={levels}", tmp_path / f"{levels}.npz", tmp_path / "b.wav")
        np.testing.assert_array_equal(soundfile.read(tmp_path / "b.wav")[0], soundfile.read(out)[0])
    run("decode", f"--codec={pyramid.codec}", "--levels=1", tmp_path / "4.npz", tmp_path / "first.wav")
    one, other = (soundfile.read(tmp_path / name)[0] for name in ("first.wav", "1.wav"))
    np.testing.assert_allclose(one, other, atol=1e-4)


@pytest.mark.slow
def test_it_is_measured_and_exported(pyramid, run, capsys, tmp_path):
    work(("export", f"--workdir={pyramid.codec}", f"--out={tmp_path / 'card'}"),
         ("evaluate", f"--workdir={tmp_path / 'card'}", "--tracks=2", f"--data={pyramid.corpus}"))  # fmt: skip
    found = json.loads((tmp_path / "card" / "evaluation" / "results.json").read_text())
    assert [row["levels"] for row in found["reconstruction"]] == [1, 2, 3, 4]
    assert [row["levels"] for row in found["reconstruction"] if row.get("own_target")] == [1, 3]
    capsys.readouterr()
    run("inspect", f"--workdir={tmp_path / 'card'}", "--json")
    assert json.loads(capsys.readouterr().out)["tokens_per_second"] == pytest.approx(4000 / 80 * sum(SLOTS))


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bits(pyramid, tmp_path):
    steps = 16
    every = ("--config.train.log_every=1", "--config.train.checkpoint_every=2", f"--config.train.steps={steps}")

    def train(place):
        where = (f"--workdir={place}", f"--config.data.path={pyramid.corpus}", "--noprogress")
        return ["train", *CODEC, *every, *where]

    ends_in_the_same_bits(train, tmp_path, steps, steps // 2)
