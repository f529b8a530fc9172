"""What the systems' stages are made of: which split is trained on and which is held out, where weights come from."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hiermusic.data.pipeline import NoTracks
from hiermusic.errors import UserError
from hiermusic.systems import stages, start, token_facts
from hiermusic.systems.aar import models as aar_models
from hiermusic.systems.aar import rows as aar_rows
from hiermusic.systems.aar import stages as aar
from hiermusic.systems.khala import stages as khala
from hiermusic.systems.lm import models as lm_models
from hiermusic.systems.lm import rows as lm_rows
from hiermusic.systems.lm import stages as lm

from .fakes import configuration

STAGES = ["khala/backbone", "khala/superres", "aar/lm", "aar/ar_baseline", "tokens/lm"]


def system_of(name: str):
    return {"khala": khala, "aar": aar, "tokens": lm}[name.partition("/")[0]]


@pytest.fixture
def made(monkeypatch):
    """What `LMStage` and `CodecStage` are given, in place of the stages; batches are told by their arguments."""
    it = SimpleNamespace(given=None)

    def keep(config, make_model, *rest, **given):
        it.given = SimpleNamespace(config=config, **given)
        return it

    monkeypatch.setattr(lm, "LMStage", keep)
    monkeypatch.setattr(aar, "LMStage", keep)
    monkeypatch.setattr(stages, "CodecStage", keep)
    monkeypatch.setattr(lm_rows, "example_batches", lambda *asked: SimpleNamespace(map_with_index=lambda _: asked))
    monkeypatch.setattr(aar, "batches", lambda config, windows, split, rows: (windows, split, rows))
    return it


@pytest.mark.parametrize("name", STAGES)
def test_token_models_train_on_one_split_and_are_validated_on_the_other(made, name):
    config = configuration(f"{name}:tiny")
    system = system_of(name)
    system.stage(config)
    for given, split in ((made.given.train, "train"), (made.given.valid, "valid")):
        if name == "khala/superres" and split == "valid":
            continue  # whose batches are repeated
        which, found, rows = given([1, 2])
        assert (found, rows) == (split, [1, 2])
        if system is not aar:
            assert which == config
        else:
            assert which.pattern.name == config.model.pattern and which.prior == aar_models.prior_config(config)


@pytest.mark.parametrize("name", ["khala", "aar"])
def test_codecs_train_on_one_split_and_are_validated_on_the_other(made, monkeypatch, name):
    config, asked = configuration(f"{name}/codec:tiny"), []
    config.data.update({"path": "music", "segment_seconds": 7.0, "valid_fraction": 0.4})
    config.train.update({"seed": 5, "batch_size": 3})
    monkeypatch.setattr(stages.pipeline, "resolve", lambda *where, **how: asked.append((where, how)) or "records")
    monkeypatch.setattr(stages.pipeline, "waveform_batches", lambda *arguments: arguments)
    system = khala if name == "khala" else aar
    system.stage(config)
    assert asked == []
    made.given.open(Path("w"))
    codec = system.codec_config(config.model)
    how = {"kind": config.data.kind, "segment_seconds": 7.0, "valid_fraction": 0.4, "stems": ("mix",)}
    assert asked == [(("music", Path("w/data"), codec.sample_rate, codec.channels), how)]
    samples = config.train.crop_frames * codec.hop
    assert made.given.crop == (samples, codec.channels)
    for given, split in ((made.given.train, "train"), (made.given.valid, "valid")):
        assert given([1]) == ("records", split, samples, 3, 5, [1], ("mix",))


def test_a_stage_that_is_only_looked_at_touches_no_data(made, monkeypatch):
    monkeypatch.setattr(stages.pipeline, "resolve", None)
    for name in ("khala/codec", "aar/codec"):
        system = khala if name.startswith("khala") else aar
        system.stage(configuration(f"{name}:tiny"))


@pytest.mark.parametrize("tables", [True, False])
@pytest.mark.parametrize("name", ["khala/backbone", "khala/superres"])
def test_khalas_token_models_begin_with_their_codec_and_then_another_run(made, monkeypatch, name, tables):
    config, order = configuration(f"{name}:tiny", codec_tables=tables), []
    config.data.path, config.init_from = "tokens", "other"
    monkeypatch.setattr(token_facts, "codec_of", lambda config: (f"codec of {config.data.path}", 6))
    monkeypatch.setattr(lm.workdirs, "load_codec", lambda run, step: f"{run}@{step}")
    monkeypatch.setattr(start, "from_codec", lambda codec, model: order.append((codec, model)))
    monkeypatch.setattr(start, "from_run", lambda source, model: order.append((source, model)))
    khala.stage(config)
    made.given.prepare(SimpleNamespace(model="the model"))
    assert order == [("codec of tokens@6", "the model")] * tables + [("other", "the model")]


@pytest.mark.parametrize("tables", [True, False])
def test_aars_models_begin_with_their_codec_another_run_and_the_codecs_codes(made, monkeypatch, tables):
    config, order = configuration("aar/lm:tiny", codec_tables=tables), []
    config.data.path, config.init_from = "tokens", "other"
    quantiser = SimpleNamespace(quantiser="the quantiser")
    monkeypatch.setattr(token_facts, "codec_of", lambda config: ("codec", 6))
    monkeypatch.setattr(aar.workdirs, "load_codec", lambda run, step: order.append((run, step)) or quantiser)
    monkeypatch.setattr(aar, "trained_counts", lambda windows, path, most: (path, most))
    monkeypatch.setattr(start, "from_codec", lambda codec, lm, counts: order.append((codec, lm, counts)))
    monkeypatch.setattr(start, "from_run", lambda source, model: order.append((source, model)))
    aar.stage(config)
    model = SimpleNamespace(lm="the lm", take_quantiser=lambda taken: order.append(taken))
    made.given.prepare(SimpleNamespace(model=model))
    begun = [(quantiser, "the lm", ("tokens", aar.TRACKS_COUNTED))] * tables
    assert order == [("codec", 6), *begun, ("other", model), "the quantiser"]


def test_data_of_another_kind_are_refused_before_anything_else(made, monkeypatch):
    """Of a run that begins: one that goes on has its codec's codes in its checkpoint."""
    checked = []
    monkeypatch.setattr(token_facts, "check_records", lambda config, path: checked.append(path))
    monkeypatch.setattr(aar, "check_codec", lambda config, run, codec: checked.append(codec))
    monkeypatch.setattr(aar, "check_vectors", lambda vectors, path: checked.append((vectors, path)))
    monkeypatch.setattr(token_facts, "codec_of", lambda config: "codec")
    config = configuration("aar/lm:tiny")
    config.data.path = "tokens"
    for steps, expected in (([], ["tokens", "codec"]), ([4], ["tokens"])):
        checked.clear()
        monkeypatch.setattr(aar.checkpoint, "steps", lambda workdir, steps=steps: steps)
        aar.stage(config)
        assert checked == []
        made.given.open(Path("w"))
        assert checked == expected
    config.model.listener, config.data.clap = 0, "v.npz"
    monkeypatch.setattr(aar_rows, "Vectors", lambda path, width: (path, width))
    aar.stage(config)
    made.given.open(Path("w"))
    assert checked[-1] == (("v.npz", config.model.cond), "tokens")
    assert made.given.train([1])[0].vectors == made.given.valid([1])[0].vectors == ("v.npz", config.model.cond)

    checked.clear()
    monkeypatch.setattr(lm_rows, "tell_cut", lambda config: checked.append("told"))
    monkeypatch.setattr(token_facts, "codec_of", lambda config: checked.append("codec"))
    config = configuration("khala/backbone:tiny")
    config.data.path = "tokens"
    for steps, tables, expected in (([], True, 3), ([], False, 2), ([4], True, 2)):
        checked.clear()
        config.model.codec_tables = tables
        monkeypatch.setattr(lm.checkpoint, "steps", lambda workdir, steps=steps: steps)
        khala.stage(config)
        assert checked == []
        made.given.open(Path("w"))
        assert checked == ["tokens", "told", "codec"][:expected]


def test_a_corpus_in_which_nothing_is_held_out_is_not_validated_on():
    """By a real stage: where the data set has no such track there are no held-out batches."""
    stage = khala.stage(configuration("khala/backbone:tiny"))

    def none(rows):
        raise NoTracks("none")

    stage._valid = none
    assert stage.valid_batches([0]) is None


@pytest.mark.parametrize("name", STAGES)
def test_work_is_counted_over_a_whole_batch(name):
    """Three times a forward pass; tokens and seconds of all rows."""
    config = configuration(f"{name}:tiny")
    system = system_of(name)
    stage = system.stage(config)
    task = stage.examples()[0][0]
    one = stage.work(task)
    config.train.batch_size *= 2
    two = system.stage(config).work(task)
    assert (two.flops, two.tokens, two.seconds) == (2 * one.flops, 2 * one.tokens, 2 * one.seconds)
    model, batch = config.model, config.train.batch_size
    if system is aar:
        seconds, rate = aar_models.window_seconds(config), {"aar/lm": 455, "aar/ar_baseline": 450}[name]
        lm = aar_models.prior_config(config).lm
        forward = lm.flops(aar_models.length(config), task, 1 if name == "aar/lm" else 6)
        assert two.seconds == seconds * batch == batch and two.tokens == rate * batch
    else:
        rate = 22050 / 512
        levels = 1 if name == "khala/superres" else model.levels
        forward = lm_models.token_lm_config(config).flops(model.length, task, levels)
        frames = model.length // 2 if name == "khala/backbone" else model.length - (name == "tokens/lm")
        assert two.tokens == batch * frames * levels
        assert two.seconds == pytest.approx(batch * frames / rate)
    assert two.flops == pytest.approx(3 * forward * batch)


def test_a_codecs_codebooks_are_compared_number_by_number():
    def holder(value: float):
        return SimpleNamespace(quantiser=SimpleNamespace(codebooks=np.array([[0.0, value]])))

    aar.check_codebooks(holder(1.0), "codec", holder(1.0), "lm")
    with pytest.raises(UserError, match="codec has other codebooks than lm was trained with"):
        aar.check_codebooks(holder(1.0), "codec", holder(1.1), "lm")


@pytest.mark.parametrize("wanted", [(), ("mix", "mix"), ("voice",)])
def test_stems_that_none_has_are_refused(wanted):
    config = configuration("khala/codec:tiny")
    assert stages.stems_of(config) == ("mix",)
    config.data.stems = ("vocals", "instrumental")
    assert stages.stems_of(config) == ("vocals", "instrumental")
    config.data.stems = wanted
    with pytest.raises(UserError, match=r"data.stems=.*: give stems, each once: mix, vocals, instrumental, drums"):
        stages.stems_of(config)
    del config.data["stems"]  # of a workdir from before there were any
    assert stages.stems_of(config) == ("mix",)
