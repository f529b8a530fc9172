"""AAR from the outside: sizes, rows, conditions, music, and bad input, on a miniature trained for a few steps."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx

from hiermusic import cli
from hiermusic.audio import files
from hiermusic.codec.chunked import decode_long, encode_long
from hiermusic.data.token_records import TokenSource
from hiermusic.errors import UserError
from hiermusic.systems import aar as system
from hiermusic.systems import aar_config, songs, workdir
from hiermusic.tokens import rows, sequence
from hiermusic.train.log import read_metrics

CONFIGS = Path(__file__).parents[2] / "configs" / "aar"
MODELS = ["aar", pytest.param("baseline", marks=pytest.mark.slow)]  # fixtures


def configuration(name: str, **changes):
    """A configuration with fields of its model changed."""
    import importlib.util

    file, _, preset = name.partition(":")
    spec = importlib.util.spec_from_file_location(file, CONFIGS / f"{file}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(preset)
    config.model.update(changes)
    return config


def fails(capsys, *arguments) -> str:
    """The one line a failing verb leaves on standard error, progress bars aside."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert ending.value.code == 1 and out == "" and "Traceback" not in err
    (line,) = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("hiermusic")]
    return line


# MARK: sizes


@pytest.mark.parametrize("preset, millions", [("paper", 21.63), ("paper128", 15.74)])
def test_sat_has_the_released_sizes(preset, millions):
    facts = system.inspect(configuration(f"codec:{preset}"))
    assert facts["params"]["total"] / 1e6 == pytest.approx(millions, rel=0.005)
    assert (facts["tokens_per_second"], facts["frame_rate_hz"], facts["levels"]) == (455, 75, 16)


@pytest.mark.parametrize("depth, millions", [(8, 39.7), (12, 130.9), (16, 307.6), (20, 597.8), (24, 1030.1)])
def test_aar_has_the_released_sizes(depth, millions):
    facts = system.inspect(configuration("lm:paper", depth=depth))
    assert facts["params"]["lm"] / 1e6 == pytest.approx(millions, rel=5e-3)
    assert facts["sequence_length"] == 455


@pytest.mark.parametrize("schedule, tokens", [("quadratic", 455), ("linear", 601), ("logarithmic", 303)])
def test_schedules_have_the_papers_rates(schedule, tokens):
    assert system.inspect(configuration("codec:paper", schedule=schedule))["tokens_per_second"] == tokens


def test_the_baseline_predicts_750_tokens_a_second():
    facts = system.inspect(configuration("ar_baseline:paper"))
    assert facts["tokens_per_second"] == facts["sequence_length"] == 750
    assert system.inspect(configuration("ar_baseline:paper", pattern="delay"))["sequence_length"] == 84


@pytest.mark.parametrize("stage", ["codec", "lm", "ar_baseline"])
def test_every_preset_is_built(stage):
    for preset in ("tiny", "small", "paper"):
        config = configuration(f"{stage}:{preset}")
        assert system.inspect(config)["params"]["total"] > 0
        built = system.stage(config, None)
        if stage != "codec":
            work = built.work(aar_config.prior_config(config.model).visibility)
            assert work.seconds == config.train.batch_size and work.flops > 0


# MARK: rows and training


@pytest.mark.parametrize("which", MODELS)
def test_every_stage_trains_to_finite_losses(request, which):
    at = request.getfixturevalue(which)
    for run in (at.codec, at.lm):
        losses = [line["loss"] for line in read_metrics(run) if "loss" in line]
        assert np.isfinite(losses).all()


@pytest.mark.parametrize("which", MODELS)
def test_a_model_begins_at_the_frequencies_of_its_codes(request, which, tmp_path):
    at = request.getfixturevalue(which)
    config = workdir.read(at.lm)
    assert config.model.codec_tables
    stage = system.stage(config, tmp_path)
    module = stage.create(nnx.Rngs(0))
    stage.prepare(module)
    make, train = aar_config.windows(config), TokenSource(config.data.path, split="train")
    counts_KV = sum(make.counts(make.rows_of(train[index])) for index in range(len(train))) + 0.5
    expected_KV = counts_KV / counts_KV.sum(1, keepdims=True)
    assert np.ptp(expected_KV, axis=1).min() > 0
    np.testing.assert_allclose(jax.nn.softmax(module.model.lm.code_bias[...]), expected_KV, rtol=1e-4)


def test_rows_are_windows_of_the_track(aar):
    """What a row predicts, read back, is what the records hold at one place."""
    config = workdir.read(aar.lm)
    windows = aar_config.windows(config)
    example = TokenSource(config.data.path, split="train")[0]
    codes_RS = windows.rows_of(example)
    row = windows.row(codes_RS, 1)
    np.testing.assert_array_equal(row["codes"], codes_RS[1])
    np.testing.assert_array_equal(row["before"], codes_RS[0])
    assert (windows.row(codes_RS, 0)["before"] == -1).all()
    slots = windows.prior.quantiser.slots
    streams = rows.levels_of(example["codes"])
    np.testing.assert_array_equal(codes_RS[1, : slots[0]], streams[0][slots[0] : 2 * slots[0]])


def _track(make, count: int, seconds: float) -> dict:
    """A track of `count` windows in which every row has a code of its own."""
    slots, size = make.prior.quantiser.slots, count * make.size
    return {"codes": rows.to_streams(np.repeat(np.arange(size)[:, None], sum(slots), 1), slots),
            "meta": {"id": "track", "seconds": seconds}}  # fmt: skip


def _codes_in(row, name: str) -> set[int]:
    return set(row[name][row[name] >= 0].tolist())


@pytest.mark.parametrize("stage, target", [("lm", "codes"), ("ar_baseline", "targets")])
def test_references_share_nothing_with_the_window_they_go_with(stage, target):
    make = aar_config.windows(configuration(f"{stage}:tiny"), data=False)
    track, rng = _track(make, 3, 3.0), np.random.default_rng(0)
    for row in [make.draw(track, rng) for _ in range(50)] + make.spread(track, 8)[0]:
        assert _codes_in(row, target) and not _codes_in(row, target) & _codes_in(row, "reference")
    alone = make.draw(_track(make, 1, 1.0), rng)
    assert _codes_in(alone, target) == _codes_in(alone, "reference")
    # a track in which nothing fits beside some windows: the farthest there is
    assert make.others(np.zeros((make.size * 2, 1)), make.size // 2).tolist() == [make.size]


def test_silence_that_fills_the_last_window_up_is_left_out():
    make = aar_config.windows(configuration("lm:tiny"), data=False)
    for seconds, kept in ((2.4, 2), (2.999999, 3), (3.0, 3), (0.4, 1)):
        assert len(make.rows_of(_track(make, 3, seconds))) == kept
    baseline = aar_config.windows(configuration("ar_baseline:tiny"), data=False)
    assert len(baseline.rows_of(_track(baseline, 2, 1.999))) == 150


@pytest.mark.parametrize("which", MODELS)
def test_what_is_measured_is_what_is_counted(request, which):
    config, model = workdir.load(request.getfixturevalue(which).lm)
    make = aar_config.windows(config)
    track = TokenSource(config.data.path, split="valid")[0]
    found, counts_KV = make.spread(track, 100)
    assert len(found) == len(make.rows_of(track)) // make.size
    whole = [np.concatenate([np.ravel(row[name]) for name in row if name != "reference"]) for row in found]
    assert len(np.unique(whole, axis=0)) == len(found)
    count_K = nnx.jit(lambda model, batch: model.loss(batch, visibility=make.prior.visibility)[1]["count_K"])
    np.testing.assert_array_equal(count_K(model, sequence.stack(found)), counts_KV.sum(1))


def test_batches_are_a_function_of_seed_and_step(aar):
    stage = workdir.stage(workdir.read(aar.lm), aar.lm)
    _, whole = stage.train_batches([0, 1])[7]
    _, second = stage.train_batches([1])[7]
    for name, value in second.items():
        np.testing.assert_array_equal(value, whole[name][1:])


def test_the_model_knows_the_codecs_codes(aar):
    """The frozen quantiser is the codec's, and training does not move it."""
    _, model = workdir.load(aar.lm)
    codec = workdir.load_codec(aar.codec)
    for name in ("codebooks", "phi", "phi_bias"):
        np.testing.assert_array_equal(getattr(model.quantiser, name)[...], getattr(codec.quantiser, name)[...])
    assert "quantiser" not in {path[0] for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))}


def test_weights_to_start_from_leave_the_codecs_codebooks(aar, monkeypatch, tmp_path):
    """A model that goes on from another run still speaks the codes of the codec that made its tokens."""
    codec = workdir.load_codec(aar.codec)
    codec.quantiser.codebooks[...] = codec.quantiser.codebooks[...] + 1
    monkeypatch.setattr(workdir, "load_codec", lambda *_: codec)
    config = workdir.read(aar.lm)
    config.init_from = str(aar.lm)
    stage = system.stage(config, tmp_path)
    module = stage.create(nnx.Rngs(1))
    stage.prepare(module)
    np.testing.assert_array_equal(module.model.quantiser.codebooks[...], codec.quantiser.codebooks[...])
    found = workdir.load(aar.lm)[1].lm.code_head[...]
    np.testing.assert_array_equal(module.model.lm.code_head[...], found)


# MARK: what predictions depend on


def _batch(model, seed: int = 0):
    draw = np.random.default_rng(seed)
    size = sum(model.config.quantiser.slots)
    codes = draw.integers(16, size=(2, size)).astype(np.int32)
    before = draw.integers(16, size=(2, size)).astype(np.int32)
    return {"codes": codes, "before": before, "reference": draw.integers(16, size=(2, 2, size)).astype(np.int32)}


def _awake(model):
    """The model with gates that are open, which an untrained one's nearly are not."""
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if path[-1] in ("kernel", "code_head", "cond_out"):
            leaf[...] = 0.2 * jax.random.normal(jax.random.key(len(str(path))), leaf.shape)
    return model


@pytest.fixture(scope="module")
def prior(aar):
    return _awake(workdir.load(aar.lm)[1])


@nnx.jit
def _levels(model, batch):
    return model.loss(batch, visibility=model.config.visibility)[1]["ce_K"]


@nnx.jit
def _logits(model, batch):
    """What every token of a window is predicted from, scale after scale."""
    row = model._scales(batch["codes"], batch["before"], batch["before"][:, 0] >= 0)
    row["cond"] = model.listen(batch["reference"])
    x_BSD = model.lm.hidden(row, visibility=model.config.visibility)
    return model.lm.level_logits(x_BSD[:, model.config.context :], 0)


def test_a_token_changes_only_finer_scales(prior):
    batch = _batch(prior)
    slots = prior.config.quantiser.slots
    ends, before_BSV = np.cumsum(slots), _logits(prior, batch)
    for level, end in enumerate(ends):
        changed = batch["codes"].copy()
        changed[:, end - 1] = (changed[:, end - 1] + 5) % 16
        after_BSV = _logits(prior, {**batch, "codes": changed})
        np.testing.assert_array_equal(after_BSV[:, :end], before_BSV[:, :end])
        for start, stop in zip(ends[level:-1], ends[level + 1 :], strict=True):
            assert (after_BSV[:, start:stop] != before_BSV[:, start:stop]).any()


def test_the_window_before_and_the_reference_are_heard(prior):
    batch = _batch(prior)
    before_K = _levels(prior, batch)
    for name in ("before", "reference"):
        assert (_levels(prior, {**batch, name: (batch[name] + 3) % 16}) != before_K).all()
    alone = {**batch, "before": np.full_like(batch["before"], -1)}
    assert (_levels(prior, alone) != before_K).all()


def test_the_condition_reaches_every_block_and_teaches_the_listener(prior):
    batch = _batch(prior)

    @nnx.jit
    def gradients(model, batch):
        return nnx.grad(lambda model: model.loss(batch, visibility=model.config.visibility)[0])(model)

    found = gradients(prior, batch)
    adapt = found["lm"]["trunk"]["layers"]["adapt"]["kernel"][...]
    assert (jnp.abs(adapt).reshape(len(adapt), -1).max(-1) > 0).all()
    assert all(jnp.abs(leaf).max() > 0 for leaf in jax.tree.leaves(found["listener"]) if leaf.ndim > 1)


# MARK: music


def _clip(path: Path, seconds: float = 2.0, rate: int = 8000) -> Path:
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 220 * time), rate)
    return path


@pytest.mark.parametrize("which", MODELS)
def test_music_is_as_long_as_asked_and_the_same_again(request, run, tmp_path, which):
    model = request.getfixturevalue(which).lm
    clip = _clip(tmp_path / "clip.wav")
    sounds = []
    for name in ("a", "b"):
        run(
            "generate",
            "--system=aar",
            f"--lm={model}",
            f"--like={clip}",
            "--seconds=1.3",
            f"--out={tmp_path / name}",
        )
        sounds.append(files.read(tmp_path / name / "song.wav")[0])
    assert len(sounds[0]) == round(1.3 * 4000)
    np.testing.assert_array_equal(*sounds)
    facts = json.loads((tmp_path / "a" / "song.json").read_text())
    assert facts["like"]["path"] == str(clip) and facts["sampling"]["lm"]["temperature"] == 1.0


def test_a_batch_is_its_members(aar, run, tmp_path):
    """Requests of one file: the same music as alone, whatever stands beside it, and another for another clip."""
    low, high = _clip(tmp_path / "low.wav"), _clip(tmp_path / "high.wav", 1.0, 22_050)
    prompts = [
        {"name": "one", "seconds": 1.0, "seed": 5, "like": str(low)},
        {"name": "two", "seconds": 0.5, "seed": 6, "like": str(high)},
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    run("generate", f"--lm={aar.lm}", f"--prompts={tmp_path / 'prompts.jsonl'}", f"--out={tmp_path / 'both'}")
    run("generate", f"--lm={aar.lm}", f"--like={low}", "--seconds=1", "--seed=5", f"--out={tmp_path / 'alone'}")
    both, alone = (files.read(path)[0] for path in (tmp_path / "both" / "one.wav", tmp_path / "alone" / "song.wav"))
    np.testing.assert_array_equal(both, alone)


@pytest.fixture
def decoded(monkeypatch):
    """The codes of every song that is written from now on, drawn by models that hear what they read."""
    load, decode, codes = workdir.load, songs.decode_long, []

    def awake(*where, **how):
        config, model = load(*where, **how)
        if config.stage != "codec":
            _awake(model)
        if config.stage != "codec":  # a codec of four steps has latents near zero
            table = model.lm.input_proj if config.stage == "lm" else model.lm.code_embed
            table[...] = 100 * table[...]
            for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
                if path[-1] in ("value", "out"):  # of attention, by which a window hears the one before
                    leaf[...] = 10 * leaf[...]
        return config, model

    def heard(codec, codes_RS, **how):
        codes.append(codes_RS)
        return decode(codec, codes_RS, **how)

    monkeypatch.setattr(workdir, "load", awake)
    monkeypatch.setattr(songs, "decode_long", heard)
    return codes


@pytest.mark.parametrize("which", MODELS)
def test_music_goes_on_from_the_end_of_a_recording(request, run, tmp_path, decoded, which):
    """It is no whole number of windows or frames, and what follows hears the last window."""
    at, like, rate = request.getfixturevalue(which), _clip(tmp_path / "like.wav"), 4000
    wav_L, made = np.random.default_rng(0).uniform(-0.5, 0.5, 4410), []
    for name, last in (("a", wav_L[-3000:]), ("b", np.zeros(3000))):
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, np.concatenate([wav_L[:-3000], last]), rate)
        run("continue", f"--lm={at.lm}", f"--like={like}", "--seconds=1.75", f"--out={tmp_path / name}", path)
        made.append(files.read(tmp_path / name / "song.wav")[0])
    assert [len(sound) for sound in made] == [7000, 7000]
    codec = workdir.load_codec(at.codec)
    skip = -4410 % codec.row
    known_RS = encode_long(codec, np.pad(files.read(tmp_path / "a.wav")[0], ((skip, 0), (0, 0))))
    np.testing.assert_array_equal(decoded[0][: len(known_RS)], known_RS)
    # up to where the decoder sees what follows
    np.testing.assert_allclose(made[0][:3000], decode_long(codec, known_RS)[skip:][:3000].clip(-1, 1), atol=1e-3)
    assert (decoded[0][len(known_RS) :] != decoded[1][len(known_RS) :]).any()


def test_what_goes_on_sounds_like_itself(aar, run, tmp_path):
    clip = _clip(tmp_path / "clip.wav", 1.1)
    run("continue", f"--lm={aar.lm}", "--seconds=1.3", f"--out={tmp_path / 'out'}", clip)
    facts = json.loads((tmp_path / "out" / "song.json").read_text())
    assert facts["like"] == facts["continues"] and facts["like"]["path"] == str(clip) and facts["seconds"] == 1.3


@pytest.mark.parametrize("which", MODELS)
def test_evaluation(request, run, tmp_path, which):
    at = request.getfixturevalue(which)
    for name in ("codec", "lm"):
        run("evaluate", f"--workdir={getattr(at, name)}", f"--out={tmp_path / name}")
        result = json.loads((tmp_path / name / "results.json").read_text())
        assert result["system"] == "aar" and (tmp_path / name / "report.html").is_file()
    levels = result["predictability"]
    assert len(levels) == {"aar": 4, "baseline": 3}[which] + 1 and all(np.isfinite(level["model"]) for level in levels)


# MARK: bad input


def test_a_clip_shorter_than_a_window(capsys, aar, tmp_path):
    clip = _clip(tmp_path / "short.wav", 0.1)
    line = fails(capsys, "generate", f"--lm={aar.lm}", f"--like={clip}", "--seconds=1", f"--out={tmp_path / 'out'}")
    assert "lasts 0.10 s" in line and "window of 0.25 s" in line and not (tmp_path / "out").exists()
    like = _clip(tmp_path / "clip.wav")
    common = ("continue", f"--lm={aar.lm}", f"--out={tmp_path / 'out'}")
    line = fails(capsys, *common, f"--like={like}", "--seconds=1", clip)
    assert "short.wav is shorter than a window of 0.25 s" in line and not (tmp_path / "out").exists()
    assert "the audio lasts 2.0 s: ask for more --seconds" in fails(capsys, *common, "--seconds=1.9", like)


def test_no_clip_and_a_vector_where_a_clip_belongs(capsys, aar, tmp_path):
    common = ("generate", f"--lm={aar.lm}", "--seconds=1", f"--out={tmp_path / 'out'}")
    assert "give --like=CLIP.wav" in fails(capsys, *common)
    np.save(tmp_path / "clap.npy", np.zeros(12))
    assert "listens to a clip itself" in fails(capsys, *common, f"--like={tmp_path / 'clap.npy'}")


def test_another_systems_workdir(capsys, aar, khala, tmp_path):
    clip = _clip(tmp_path / "clip.wav")
    common = ("generate", f"--lm={aar.lm}", f"--like={clip}", "--seconds=1", f"--out={tmp_path / 'out'}")
    assert "is of the system aar" in fails(capsys, *common, "--system=khala")
    assert "--min_share means nothing to the system aar" in fails(capsys, *common, "--min_share=0.5")
    assert "is a codec of the system khala" in fails(capsys, *common, f"--codec={khala.codec}")


@pytest.mark.slow
def test_a_codec_of_another_quantiser(capsys, aar, baseline, tmp_path):
    clip = _clip(tmp_path / "clip.wav")
    common = ("generate", f"--lm={aar.lm}", f"--like={clip}", "--seconds=1", f"--out={tmp_path / 'out'}")
    assert "was made for a multiscale one" in fails(capsys, *common, f"--codec={baseline.codec}")


def test_tokens_of_another_codec(capsys, khala, tmp_path):
    line = fails(
        capsys, "train", f"--config={CONFIGS}/lm.py:tiny", f"--workdir={tmp_path / 'out'}",
        f"--config.data.path={khala.tokens}",
    )  # fmt: skip
    assert "6 levels of 16 codes" in line and "take tokens of a codec with the same quantiser" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, words",
    [
        ("--config.model.levels=76", "do not fit a window of 75 frames"),
        ("--config.model.schedule=cubic", "schedule 'cubic' is unknown"),
        ("--config.model.scales=(1, 2, 3)", "model.scales end at 3"),
        ("--config.model.phi=some", "phi is 'some'"),
        ("--config.model.quantiser=lattice", "model.quantiser is 'lattice'"),
        ("--config.train.crop_frames=74", "no multiple of the quantiser's window"),
    ],
)
def test_a_codec_that_cannot_be(capsys, tmp_path, change, words):
    line = fails(capsys, "train", f"--config={CONFIGS}/codec.py:tiny", f"--workdir={tmp_path / 'out'}", change)
    assert words in line and not (tmp_path / "out").exists()


def test_a_model_that_listens_to_nothing(capsys, tmp_path):
    common = ("train", f"--config={CONFIGS}/lm.py:tiny", f"--workdir={tmp_path / 'out'}")
    assert "model.references=0: a model that listens" in fails(capsys, *common, "--config.model.references=0")


def test_a_codec_of_another_training(aar):
    """One of the same sizes with other codebooks is refused."""
    codec = workdir.load_codec(aar.codec)
    codec.quantiser.codebooks[...] = codec.quantiser.codebooks[...] + 1
    _, model = workdir.load(aar.lm)
    with pytest.raises(UserError, match="other codebooks than LM was trained with"):
        aar_config.check_codebooks(codec, "SAT", model, "LM")


def _clap_run(at, folder: Path) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """How a model of the miniature's sizes is trained on vectors of 12 numbers, and such vectors of every track."""
    config = workdir.read(at.lm)
    settings = [f"--config.{part}.{name}={value}" for part in ("model", "train") for name, value in config[part].items()
                if not isinstance(value, str) and name not in ("listener", "betas")]  # fmt: skip
    common = ("train", f"--config={CONFIGS}/lm.py:tiny", f"--config.data.path={at.tokens}", "--noprogress", *settings)
    common += ("--config.model.listener=0", "--config.train.batch_size=8", f"--workdir={folder / 'lm'}")
    draw = np.random.default_rng(0)
    tracks = TokenSource(at.tokens).tracks
    return common, {track["id"]: draw.normal(size=(2, 12)).astype(np.float32) for track in tracks}


def test_vectors_that_do_not_do(capsys, aar, tmp_path):
    """All is told before anything is trained: no vectors, none for a track of either split, and one of zeros."""
    common, vectors = _clap_run(aar, tmp_path)
    assert "every track needs a vector" in fails(capsys, *common)
    for split in ("train", "valid"):
        track = TokenSource(aar.tokens, split=split).tracks[-1]["id"]
        np.savez(tmp_path / "some.npz", **{name: value for name, value in vectors.items() if name != track})
        assert f"has no vector of track {track}" in fails(capsys, *common, f"--config.data.clap={tmp_path}/some.npz")
        np.savez(tmp_path / "zero.npz", **vectors | {track: np.zeros(12)})
        assert f"track {track}: a vector of zeros" in fails(capsys, *common, f"--config.data.clap={tmp_path}/zero.npz")
    assert not (tmp_path / "lm").exists()


@pytest.mark.slow
def test_vectors_instead_of_a_listener(capsys, aar, run, tmp_path):
    """CLAP's vectors, of whatever length: trained on, asked for, and named where they are of the wrong size."""
    common, vectors = _clap_run(aar, tmp_path)
    np.savez(tmp_path / "clap.npz", **vectors)
    run(*common, f"--config.data.clap={tmp_path / 'clap.npz'}", "--config.train.steps=2")
    windows = aar_config.windows(workdir.read(tmp_path / "lm"))
    row = windows.draw(TokenSource(aar.tokens)[0], np.random.default_rng(0))
    assert "reference" not in row and np.linalg.norm(row["cond"]) == pytest.approx(1)
    one = next(iter(vectors.values()))[0]
    ask = ("generate", f"--lm={tmp_path / 'lm'}", "--seconds=0.25")
    for name, vector in (("short", one), ("long", 10 * one)):
        np.save(tmp_path / f"{name}.npy", vector)
        run(*ask, f"--out={tmp_path / name}", f"--like={tmp_path / name}.npy")
    np.testing.assert_array_equal(*(files.read(tmp_path / name / "song.wav")[0] for name in ("short", "long")))
    for vector, words in ((np.zeros(13), "the model takes 12 numbers"), (np.zeros(12), "a vector of zeros")):
        np.save(tmp_path / "bad.npy", vector)
        assert words in fails(capsys, *ask, f"--out={tmp_path / 'out'}", f"--like={tmp_path / 'bad.npy'}")
