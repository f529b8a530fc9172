"""AAR's sizes, what its models begin with, and what their predictions depend on, on a miniature of a few steps."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.data.token_records import TokenSource
from hiermusic.systems import workdir
from hiermusic.systems.aar import SYSTEM as system
from hiermusic.systems.aar.models import prior_config, tokens_of
from hiermusic.systems.aar.rows import windows
from hiermusic.tokens import sequence

from ..fakes import awake, configuration

MODELS = ["aar", pytest.param("baseline", marks=pytest.mark.slow)]  # fixtures


# MARK: sizes


@cache
def facts_of(name: str) -> dict:
    return system.rooms.inspect(configuration(name))


@pytest.mark.parametrize("preset, millions", [("paper", 21.63), ("paper128", 15.74)])
def test_sat_has_the_released_sizes(preset, millions):
    facts = facts_of(f"aar/codec:{preset}")
    assert facts["params"]["total"] / 1e6 == pytest.approx(millions, rel=0.005)
    assert (facts["tokens_per_second"], facts["frame_rate_hz"], facts["levels"]) == (455, 75, 16)


@pytest.mark.parametrize("depth, millions", [(8, 39.7), (12, 130.9), (16, 307.6), (20, 597.8), (24, 1030.1)])
def test_aar_has_the_released_sizes(depth, millions):
    facts = system.rooms.inspect(configuration("aar/lm:paper", depth=depth))
    assert facts["params"]["lm"] / 1e6 == pytest.approx(millions, rel=5e-3)
    assert facts["sequence_length"] == 455


@pytest.mark.parametrize("schedule, tokens", [("quadratic", 455), ("linear", 601), ("logarithmic", 303)])
def test_schedules_have_the_papers_rates(schedule, tokens):
    assert tokens_of(configuration("aar/codec:paper", schedule=schedule)).hierarchy.tokens_per_second == tokens


def test_the_baseline_predicts_750_tokens_a_second():
    facts = facts_of("aar/ar_baseline:paper")
    assert facts["tokens_per_second"] == facts["sequence_length"] == 750
    assert system.rooms.inspect(configuration("aar/ar_baseline:paper", pattern="delay"))["sequence_length"] == 84


@pytest.mark.parametrize("stage", ["codec", "lm", "ar_baseline"])
def test_every_preset_is_built(stage):
    for preset in ("tiny", "small", "paper"):
        config = configuration(f"aar/{stage}:{preset}")
        assert facts_of(f"aar/{stage}:{preset}")["params"]["total"] > 0
        built = system.rooms.stage(config)
        if stage != "codec":
            work = built.work(prior_config(config).visibility)
            assert work.seconds == config.train.batch_size and work.flops > 0


# MARK: training


@pytest.mark.parametrize("which", MODELS)
def test_a_model_begins_at_the_frequencies_of_its_codes(request, which, tmp_path):
    at = request.getfixturevalue(which)
    config = workdir.read(at.lm)
    assert config.model.codec_tables
    stage = system.rooms.stage(config)
    stage.open(tmp_path)
    module = stage.create(nnx.Rngs(0))
    stage.prepare(module)
    make, train = windows(config), TokenSource(config.data.path, split="train")
    counts_KV = sum(make.counts(make.packets_of(train[index])) for index in range(len(train))) + 0.5
    expected_KV = counts_KV / counts_KV.sum(1, keepdims=True)
    assert np.ptp(expected_KV, axis=1).min() > 0
    np.testing.assert_allclose(jax.nn.softmax(module.model.lm.code_bias[...]), expected_KV, rtol=1e-4)


@pytest.mark.parametrize("which", MODELS)
def test_what_is_measured_is_what_is_counted(request, which):
    config, model = workdir.load(request.getfixturevalue(which).lm)
    make = windows(config)
    track = TokenSource(config.data.path, split="valid")[0]
    found, counts_KV = make.spread(track, 100)
    assert len(found) == len(make.packets_of(track)) // make.size
    whole = [np.concatenate([np.ravel(row[name]) for name in row if name != "reference"]) for row in found]
    assert len(np.unique(whole, axis=0)) == len(found)
    count_K = nnx.jit(lambda model, batch: model.loss(batch, visibility=make.prior.visibility)[1]["count_K"])
    np.testing.assert_array_equal(count_K(model, sequence.stack(found)), counts_KV.sum(1))


def test_batches_are_a_function_of_seed_and_step(aar):
    stage = workdir.stage(workdir.read(aar.lm))
    stage.open(aar.lm)
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
    stage = system.rooms.stage(config)
    stage.open(tmp_path)
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


@pytest.fixture(scope="module")
def prior(aar):
    return awake(workdir.load(aar.lm)[1])


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
