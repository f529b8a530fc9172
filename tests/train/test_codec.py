from dataclasses import replace
from types import SimpleNamespace

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp

from hiermusic.audio.bands import low_passed
from hiermusic.codec.codec import Codec, CodecConfig, CodecOutput
from hiermusic.codec.dac import DacConfig
from hiermusic.codec.discriminator import Discriminator, DiscriminatorConfig
from hiermusic.codec.factorised import FactorisedConfig
from hiermusic.codec.objective import ObjectiveConfig
from hiermusic.codec.pyramid import PyramidConfig
from hiermusic.codec.residual import QuantiserConfig
from hiermusic.data.pipeline import NoTracks
from hiermusic.errors import UserError
from hiermusic.train.checkpoint import load_model
from hiermusic.train.codec import CodecStage, Phase, PhasesConfig
from hiermusic.train.log import read_metrics
from hiermusic.train.loop import run
from hiermusic.train.optimiser import OptimiserConfig, begin_average
from hiermusic.train.stage import RunConfig

CODEC = CodecConfig(
    sample_rate=8000,
    channels=1,
    trunk=DacConfig(strides=(8,), dilations=(1,), encoder_width=4, decoder_width=16, latent=8),
    quantiser=QuantiserConfig(levels=2, codes=16, kmeans_iterations=3),
)


def tones(index):
    draw = np.random.default_rng(index)
    seconds_L = np.arange(512) / CODEC.sample_rate
    pitches_B = draw.uniform(100, 800, size=4)
    return (0.5 * np.sin(2 * np.pi * pitches_B[:, None] * seconds_L))[..., None].astype(np.float32)


def make_stage(steps=4, updates=(1, 1), quantise_start=0, decoder_start=None, clips=(0.0, None), **objective):
    train = {
        **{"steps": steps, "batch_size": 4, "seed": 0, "log_every": 1, "valid_every": 4, "show_every": 4},
        **{"checkpoint_every": 1, "keep": 9, "clip_norm": clips[0], "ema_decay": 0.9},
        **{"optimiser": "adam", "learning_rate": 2e-3, "schedule": "constant", "warmup_steps": 2},
    }
    return CodecStage(
        RunConfig.of({"train": train}),
        PhasesConfig(quantise_start, adversarial_start=2, decoder_start=decoder_start, discriminator_updates=updates),
        lambda rngs: Codec(CODEC, rngs=rngs),
        lambda rngs: Discriminator(1, DiscriminatorConfig(sizes=(78,), filters=4), rngs=rngs),
        ObjectiveConfig(stft_sizes=(64,), **objective),
        crop=(512, 1),
        discriminator_clip_norm=clips[1],
        train=lambda rows: grain.MapDataset.range(10**6).map(tones),
        valid=lambda rows: grain.MapDataset.range(10**6, 10**6 + 2).map(lambda index: tones(index)[list(rows)]),
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("codec")
    run(make_stage(), workdir, progress=False)
    return workdir


def test_no_track_held_out_is_no_validation_and_no_showcase():
    stage = make_stage()

    def absent(rows):
        raise NoTracks("records has no valid tracks (1 train)")

    stage._valid = absent
    assert stage.valid_batches(range(4)) is None
    stage.showcase(None, None, 1)


def test_the_zeros_that_fill_up_a_short_track_are_no_audio():
    stage = make_stage()
    wav_BLC = np.full((4, 512, 1), 0.1, np.float32)
    wav_BLC[:, 100] = 0  # silence within a crop is audio
    assert stage.held({"wav": wav_BLC}) == (1.0, 1.0)
    wav_BLC[0, 256:], wav_BLC[1] = 0, 0
    assert stage.held({"wav": wav_BLC}) == (0.625, 0.625)


def test_phases_follow_the_step():
    stage = make_stage()
    plain, judged = Phase(True, False, False), Phase(True, True, True)
    assert [task for task, _ in stage.train_batches(range(4))[:4]] == [plain] * 2 + [judged] * 2
    later = make_stage(quantise_start=2)
    assert [later.phase(i).quantise for i in range(3)] == [False, False, True]
    alone = make_stage(adversarial=0.0, feature=0.0)
    assert alone.phase(100) == plain
    assert not hasattr(nnx.eval_shape(lambda: alone.create(nnx.Rngs(0))), "discriminator")


def test_the_discriminator_may_rest_in_some_steps():
    stage = make_stage(steps=100, updates=(2, 3))
    updated, resting = Phase(True, True, True), Phase(True, True, False)
    assert [stage.phase(i) for i in range(2, 9)] == [updated, *2 * (resting, updated, updated)]
    assert {task for task, _ in stage.examples()} == {updated, resting}
    assert stage.work(updated).flops > stage.work(resting).flops > stage.work(Phase(True, False, False)).flops
    assert stage.work(resting).tokens == 4 * (512 // 8) * 2
    for wrong in ((0, 3), (4, 3), (1,)):
        with pytest.raises(UserError, match="discriminator_updates"):
            make_stage(updates=wrong)
    for name in ("quantise_start", "decoder_start"):
        with pytest.raises(UserError, match=f"train.{name} is -1; it must be at least 0"):
            make_stage(**{name: -1})


def test_the_decoder_may_end_alone():
    """`compile` looks at the steps before, which take most, and at those."""
    stage = make_stage(steps=9, decoder_start=4, quantise_start=2, updates=(1, 2))
    assert [stage.phase(i).decoder for i in range(3, 6)] == [False, True, True]
    whole, alone = Phase(True, True, True, False), Phase(True, True, True, True)
    assert {task for task, _ in stage.examples()} == {
        *(replace(one, discriminate=d) for one in (alone, whole) for d in (True, False))
    }
    forward = stage.work(whole).flops - stage.work(alone).flops
    assert 0 < forward < stage.work(Phase(True, False, False)).flops * 2 / 3
    never = make_stage(steps=2, decoder_start=4)
    assert [task.decoder for task, _ in never.examples()] == [False]
    assert make_stage(decoder_start=0).phase(0).decoder
    for start in (3, 4, 0):  # codes are first learnt in step 4
        with pytest.raises(
            UserError, match=f"train.decoder_start={start} is not behind train.quantise_start=4: the dec"
        ):
            make_stage(quantise_start=4, decoder_start=start)


@pytest.mark.parametrize(("clips", "judged"), [((1000.0, 10.0), 10.0), ((1000.0, None), 1000.0), ((1.0, 0.0), 0.0)])
def test_the_discriminators_gradient_is_clipped_by_a_norm_of_its_own(clips, judged, monkeypatch):
    seen = {}

    def transform(optimiser, model, steps):
        seen[type(model)] = optimiser.clip_norm
        return optax.identity()

    monkeypatch.setattr(OptimiserConfig, "transform", transform)
    stage = make_stage(clips=clips)
    nnx.eval_shape(lambda: stage.create(nnx.Rngs(0)))
    assert seen == {Codec: clips[0], Discriminator: judged}


@pytest.mark.parametrize("clip", [-1.0, float("inf"), float("nan")])
def test_a_clip_that_is_no_norm_is_told(clip):
    with pytest.raises(UserError, match=f"train.discriminator_clip_norm is {clip}; it must be finite"):
        make_stage(clips=(0.0, clip))


def test_records_tell_of_every_phase_and_of_the_codes(trained):
    records = read_metrics(trained)
    assert [{"adversarial", "feature", "discriminator"} <= set(r) for r in records] == [False, False, True, True]
    assert all(r["skipped"] == 0 for r in records)
    last = records[-1]
    for name, most in (("perplexity", 16), ("usage", 1)):
        assert len(last[f"{name}_K"]) == 2 and all(0 < value <= most for value in last[f"{name}_K"])
        assert last[name] == pytest.approx(np.mean(last[f"{name}_K"]), rel=1e-5)
    assert {"valid/loss", "valid/si_sdr", "valid/stft", "valid/perplexity", "valid/usage_K"} <= set(last)


def test_the_loss_is_the_weighted_sum_of_its_terms_and_no_judges(trained):
    weights = ObjectiveConfig()
    for record in read_metrics(trained):
        for place in ("", "valid/") if "valid/loss" in record else ("",):
            terms = {name: record[place + name] for name in ("waveform", "stft", "commitment")}
            assert min(terms.values()) > 0
            total = sum(getattr(weights, name) * value for name, value in terms.items())
            assert record[f"{place}loss"] == pytest.approx(total, rel=1e-5)


def test_the_balancer_remembers_every_step(trained):
    """Each norm beside the weight of what it averages: 1 - decay^n after n steps in which its loss was there."""
    for step in (1, 2, 3, 4):
        train = ocp.load_checkpointables(trained / "checkpoints" / str(step), {"train": None})["train"]
        for name, norm in train["norms"].items():
            seen = step if name in ("waveform", "stft") else max(step - 2, 0)
            assert norm[1] == pytest.approx(1 - 0.999**seen, rel=1e-3)
            assert (norm[0] > 0) == (seen > 0)


class Recorded(nnx.Module):
    """A codec that says what it was called with and scales its input; the quantiser's numbers are made up."""

    sample_rate, config = CODEC.sample_rate, CODEC

    def __init__(self, rngs):
        self.scale = nnx.Param(jnp.ones(()), axes=())

    def forward(self, wav_BLC, *, key=None, train=False, quantise=True, coarser=False):
        drawn = jnp.zeros(()) if key is None else jax.random.uniform(key)
        told = jnp.array([drawn, train, quantise])
        stats = {"perplexity_K": told, "usage_K": self.scale[...][None]}
        return CodecOutput(wav_BLC * self.scale[...], jnp.zeros((4, 1, 1), jnp.int32), jnp.float32(0.25), stats)


@pytest.fixture
def recorded():
    """A stage without a judge whose codec is `Recorded`, and its state, the average unlike the model."""
    stage = make_stage(adversarial=0.0, feature=0.0, stft=0.0)
    stage.make_codec = lambda rngs: Recorded(rngs)
    module = stage.create(nnx.Rngs(0))
    module.model.scale[...], module.ema.scale[...] = jnp.float32(0.5), jnp.float32(0.9)
    return stage, module


def test_a_step_trains_with_its_key_and_by_its_phase(recorded):
    stage, module = recorded
    wav = {"wav": jnp.asarray(tones(0))}
    told = [
        np.asarray(stage.step(module, wav, Phase(quantise, False, False), jax.random.key(seed))["perplexity_K"])
        for quantise, seed in ((True, 1), (True, 1), (True, 2), (False, 2))
    ]
    assert told[0][0] == told[1][0] != told[2][0] and told[0][0] > 0
    assert [tuple(one[1:]) for one in told] == [(1, 1), (1, 1), (1, 1), (1, 0)]


def test_validation_is_of_the_average_and_trains_nothing(recorded):
    stage, module = recorded
    found = stage.evaluate(module, {"wav": jnp.asarray(tones(0))}, None, jax.random.key(1))
    assert found["usage"] == np.float32(0.9) and found["perplexity_K"].tolist() == [0, 0, 1]
    assert found["waveform"] == pytest.approx(0.1 * np.abs(tones(0)).mean(), rel=1e-5)
    stage.ema_decay = 0.0
    assert stage.evaluate(module, {"wav": jnp.asarray(tones(0))}, None, jax.random.key(1))["usage"] == 0.5


def test_a_step_moves_the_average_by_its_decay(recorded):
    stage, module = recorded
    stage.step(module, {"wav": jnp.asarray(tones(0))}, Phase(True, False, False), jax.random.key(0))
    newest = float(module.model.scale[...])
    assert newest != 0.5 and float(module.ema.scale[...]) == pytest.approx(0.1 * 0.9 + 0.9 * newest, rel=1e-5)


def test_a_showcase_can_be_heard(trained):
    assert {path.name for path in (trained / "samples").iterdir()} == {
        f"{name}-{index}-4.wav" for name in ("original", "rebuilt") for index in (0, 1)
    }


def test_the_averages_codebooks_are_the_newest(trained):
    best, newest = (load_model(trained, lambda: Codec(CODEC, rngs=nnx.Rngs(0)), prefer_ema=e) for e in (True, False))
    assert np.array_equal(best.quantiser.codebooks[...], newest.quantiser.codebooks[...])
    assert bool(best.quantiser.initialised[...])
    differs = jax.tree.map(lambda a, b: not np.array_equal(a, b), nnx.state(best.decoder), nnx.state(newest.decoder))
    assert any(jax.tree.leaves(differs))


def test_the_discriminator_moves_once_it_is_heard(trained):
    def weights(step):
        train = ocp.load_checkpointables(trained / "checkpoints" / str(step), {"train": None})["train"]
        return jax.tree.leaves(train["discriminator"])

    first, before, after = (weights(step) for step in (1, 2, 3))
    assert all(np.array_equal(*pair) for pair in zip(first, before, strict=True))
    assert any(not np.array_equal(*pair) for pair in zip(before, after, strict=True))


# MARK: several resolutions

LEVELS = replace(CODEC, quantiser=PyramidConfig((1, 1), (2, 1), FactorisedConfig(codes=16, width=4), init="fan_in"))


def test_each_resolution_is_held_to_its_own_target():
    """The whole to the original, the first level to the lower half of its band, with the mel bands of half its rate."""
    stage = make_stage(level_weights=(0.25, 0.75))
    wav = tones(0)
    output = CodecOutput(wav, None, jnp.zeros(2), {}, (0.5 * wav,))
    model = SimpleNamespace(config=LEVELS, sample_rate=8000)
    coarse, fine = stage._heard(model, jnp.asarray(wav), output)
    np.testing.assert_allclose(coarse.target_BLC, low_passed(jnp.asarray(wav), 2), atol=1e-6)
    np.testing.assert_array_equal(coarse.estimate_BLC, 0.5 * wav)
    np.testing.assert_array_equal(fine.target_BLC, wav)
    assert (coarse.rate, coarse.weight, fine.rate, fine.weight) == (4000, 0.25, 8000, 0.75)


def test_a_codec_of_two_resolutions_is_trained_and_judged_at_both(tmp_path):
    stage = make_stage(steps=4, level_weights=(0.25, 0.75), adversary="least_squares", balance=False, mel_steps=2)
    stage.make_codec = lambda rngs: Codec(LEVELS, rngs=rngs)
    stage.phases = PhasesConfig()
    flops = [stage.work(phase).flops for phase in (Phase(True, False, False), Phase(True, True, True))]
    assert 0 < flops[0] < flops[1]
    run(stage, tmp_path, progress=False)
    *_, last = read_metrics(tmp_path)
    assert len(last["valid/si_sdr_J"]) == 2 and last["valid/si_sdr"] == last["valid/si_sdr_J"][1]
    assert {"adversarial", "feature", "discriminator"} <= set(last) and last["skipped"] == 0
    assert all(np.isfinite(last[name]) for name in ("loss", "discriminator", "grad_norm", "valid/loss"))


# MARK: the decoder alone

GRADIENTS = FactorisedConfig(codes=16, width=4)


@pytest.mark.parametrize(
    ("codec", "learns"),
    [
        (replace(CODEC, quantiser=replace(CODEC.quantiser, dropout="uniform")), ("decoder",)),
        (replace(CODEC, quantiser=replace(GRADIENTS, levels=2)), ("decoder",)),
        (LEVELS, ("decoder", "quantiser.ups")),
        (
            replace(LEVELS, quantiser=replace(LEVELS.quantiser, dilations=(1,))),
            ("decoder", "quantiser.ups", "quantiser.pres"),
        ),
    ],
    ids=["averaged", "factorised", "pyramid", "heavy pyramid"],
)
def test_in_the_decoders_steps_nothing_else_moves(codec, learns):
    """Neither by what Adam remembers, nor by decay, nor the averages that codes are: every code stays what it was."""
    stage = make_stage(adversarial=0.0, feature=0.0, level_weights=(0.25, 0.75))
    stage.config = replace(stage.config, optimiser=replace(stage.config.optimiser, optimiser="adamw", weight_decay=0.1))
    stage.make_codec = lambda rngs: Codec(codec, rngs=rngs)
    module = stage.create(nnx.Rngs(0))
    step = nnx.jit(stage.step, static_argnums=2)
    wav = {"wav": jnp.asarray(tones(0))}

    def weights(model):
        flat = nnx.to_flat_state(nnx.state(model))
        return {".".join(map(str, path)): np.array(weight[...]) for path, weight in flat}

    step(module, wav, Phase(True, False, False), jax.random.key(0))
    begin_average(module.ema, module.model)
    before = weights(module.model)
    metrics = [step(module, wav, Phase(True, False, False, True), jax.random.key(i)) for i in (1, 2)]
    assert metrics[1]["grad_norm"] > 0
    for model in (module.model, module.ema):
        moved = {name for name, weight in weights(model).items() if not np.array_equal(weight, before[name])}
        assert moved == {name for name in before if name.startswith(learns)}
