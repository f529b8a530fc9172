import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.signal
from flax import nnx

from hiermusic.codec import objective
from hiermusic.codec.discriminator import Discriminator, DiscriminatorConfig, Judgement
from hiermusic.codec.objective import Heard, ObjectiveConfig
from hiermusic.errors import UserError

SMALL = ObjectiveConfig(stft_sizes=(78, 126), mel_windows=(64,), mel_bands=(8,))


def _waves(seed=0):
    rng = np.random.default_rng(seed)
    wav = 0.3 * rng.normal(size=(2, 600, 2)).astype(np.float32)
    return wav, wav + 0.1 * rng.normal(size=wav.shape).astype(np.float32)


@functools.cache
def _discriminator():
    return nnx.jit(lambda: Discriminator(2, DiscriminatorConfig(sizes=(78,), filters=2), rngs=nnx.Rngs(0)))()


def test_hinge_losses_by_hand():
    real, fake = [jnp.array([2.0, 0.0]), jnp.array([0.5])], [jnp.array([-2.0, 1.0]), jnp.array([0.0])]
    assert float(objective.hinge_discriminator(real, fake)) == pytest.approx(((0.5 + 1.0) + (0.5 + 1.0)) / 2)
    assert float(objective.hinge_generator(fake)) == pytest.approx((0.5 + 0.0) / 2)
    assert float(objective.hinge_generator(fake, rectify=True)) == pytest.approx(((3 + 0) / 2 + 1) / 2)
    beyond = jax.grad(lambda logit: objective.hinge_generator([logit], rectify=True))(1.5)
    assert float(beyond) == 0


def test_feature_matching_is_relative_and_zero_for_equals():
    real, fake = [[jnp.array([1.0, -3.0])]], [[jnp.array([2.0, -3.0])]]
    assert float(objective.feature_matching(real, fake)) == pytest.approx(0.25)
    assert float(objective.feature_matching(real, real)) == 0


def test_stft_loss_by_hand():
    wav, _ = _waves()
    stft_loss = jax.jit(lambda estimate: objective.stft_loss(wav, estimate, (78, 126), -60.0))
    mel_loss = jax.jit(lambda estimate: objective.mel_loss(SMALL, wav, estimate, 44_100))
    assert float(stft_loss(wav)) == pytest.approx(0, abs=1e-4)
    # Half the amplitude: the logarithms differ by log 2 and the spectral convergence is one half.
    assert float(stft_loss(wav / 2)) == pytest.approx(np.log(2) + 0.5, rel=1e-3)
    assert float(mel_loss(wav / 10)) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("length", [3000, 3017])
def test_mel_loss_is_sats(length):
    """The sum that `ObjectiveConfig` names for SAT, from librosa's parts in double precision."""
    sizes, rate = tuple(2**e for e in range(5, 12)), 24_000
    config = ObjectiveConfig(
        mel_windows=sizes, mel_bands=(64,) * 7, mel_power=True, mel_square=1.0, mel_center=False, rectify=True
    )
    rng = np.random.default_rng(0)
    wav = 0.1 * rng.normal(size=(2, length, 1)).astype(np.float32)
    estimate = (0.7 * wav + 0.02 * rng.normal(size=wav.shape)).astype(np.float32)
    wav[0, 900:] = estimate[1, 1200:] = 0  # below the floor
    original = wav

    def spectrum(wav, size):
        padded = np.pad(wav[..., 0].astype(np.float64), ((0, 0), (3 * size // 8,) * 2), mode="reflect")
        power = np.abs(librosa.stft(padded, n_fft=size, hop_length=size // 4, center=False)) ** 2
        filters = librosa.filters.mel(sr=rate, n_fft=size, n_mels=64, fmin=0, fmax=rate / 2)
        energy = np.sum(scipy.signal.get_window("hann", size) ** 2)
        noise = 1e-6 * np.maximum(np.mean(original**2, axis=(1, 2)), 1e-2) * energy
        return np.log10(np.maximum(filters @ (power + noise[:, None, None]), 1e-20))

    expected = 0.0
    with warnings.catch_warnings(action="ignore"):
        for size in sizes:
            difference = spectrum(wav, size) - spectrum(estimate, size)
            expected += np.mean(np.abs(difference)) + np.mean(difference**2)
    with warnings.catch_warnings(action="error"):
        got = jax.jit(lambda *pair: objective.mel_loss(config, *pair, rate))(wav, estimate)
    assert float(got) == pytest.approx(expected, rel=1e-4)


def test_bins_that_hold_nothing_do_not_rule_the_gradient():
    """A rounding of the estimate, where the music has no overtones, must not turn the gradient over."""
    time = np.arange(2048) / 22_050
    wav = np.sum([np.sin(2 * np.pi * f * time) / f for f in (110, 220, 330)], axis=0)[None, :, None]
    wav = (0.5 * wav / np.abs(wav).max()).astype(np.float32)
    rounded = 0.9 * wav + 1e-7 * np.random.default_rng(0).normal(size=wav.shape).astype(np.float32)
    config = dataclasses.replace(SMALL, stft_sizes=(126, 542), mel_windows=(512,), mel_bands=(40,))
    losses = (
        lambda e: objective.stft_loss(wav, e, config.stft_sizes, config.floor_db),
        lambda e: objective.mel_loss(config, wav, e, 22_050),
    )
    for loss in losses:
        gradient = jax.jit(jax.grad(loss))
        one, other = gradient(0.9 * wav), gradient(rounded)
        assert np.linalg.norm(one - other) < 0.02 * np.linalg.norm(one)


def test_silence_is_not_magnified():
    """A pause is no place where a whisper of -100 dBFS counts like a wrong note."""
    silence = np.zeros((1, 2048, 1), np.float32)
    noise = np.random.default_rng(0).normal(size=silence.shape).astype(np.float32)
    whisper, note = 1e-5 * noise, 0.1 * noise
    for loss in (lambda *w: objective.stft_loss(*w, (126,), -60.0), lambda *w: objective.mel_loss(SMALL, *w, 22_050)):
        assert 0 < float(loss(silence, whisper)) < 0.01 * float(loss(silence, note))


def test_balance_gives_each_loss_its_share_whatever_its_scale():
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.normal(size=(3, 7)), jnp.float32) for _ in range(2))
    norms = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
    combined, state = objective.balance({"a": 1e4 * a, "b": 1e-3 * b}, {"a": 1.0, "b": 3.0}, norms, 0.9)
    unit = [g / np.mean(np.linalg.norm(g, axis=1)) for g in (a, b)]
    np.testing.assert_allclose(combined, 0.25 * unit[0] + 0.75 * unit[1], rtol=1e-4)
    # The second call divides by the average over both.
    combined, _ = objective.balance({"a": 2e4 * a, "b": 1e-3 * b}, {"a": 1.0, "b": 3.0}, state, 0.9)
    average = (0.9 * 1 + 2) / (0.9 + 1)
    np.testing.assert_allclose(combined, 0.25 * 2 / average * unit[0] + 0.75 * unit[1], rtol=1e-4)


def test_separate_gradients_are_those_of_each_loss_alone():
    def losses(x):
        return {"square": jnp.sum(x**2), "sine": jnp.sum(jnp.sin(x))}

    x = jnp.arange(4.0)
    values, gradients = objective.separate_gradients(losses, x)
    assert float(values["square"]) == 14
    np.testing.assert_allclose(gradients["square"], 2 * x)
    np.testing.assert_allclose(gradients["sine"], jnp.cos(x))


def test_unbalanced_objective_has_the_gradient_of_the_weighted_sum():
    config = dataclasses.replace(SMALL, balance=False, mel=1.5)
    wav, estimate = _waves()
    discriminator, norms = _discriminator(), objective.initial_norms(config)

    @jax.jit
    def scalar(estimate):
        return objective.generator_objective(config, [Heard(wav, estimate, 44_100)], 0.7, discriminator, norms)[:2]

    @jax.jit
    def reference(estimate):
        real, fake = discriminator(wav), discriminator(estimate)
        return (
            0.1 * jnp.mean(jnp.abs(wav - estimate))
            + 2 * objective.stft_loss(wav, estimate, (78, 126), -60.0)
            + 1.5 * objective.mel_loss(config, wav, estimate, 44_100)
            + 4 * objective.hinge_generator(fake.logits)
            + 4 * objective.feature_matching(real.features, fake.features)
        )

    gradient, metrics = jax.jit(jax.grad(scalar, has_aux=True))(estimate)
    np.testing.assert_allclose(gradient, jax.jit(jax.grad(reference))(estimate), rtol=1e-3, atol=1e-6)
    assert set(metrics) == {"waveform", "stft", "mel", "adversarial", "feature", "commitment"}


def test_balanced_objective_moves_its_state_and_passes_commitment_through():
    wav, estimate = _waves()
    discriminator, norms = _discriminator(), objective.initial_norms(SMALL)

    @jax.jit
    def gradients(estimate, commitment):
        def scalar(estimate, commitment):
            heard = [Heard(wav, estimate, 44_100)]
            value, _, after = objective.generator_objective(SMALL, heard, commitment, discriminator, norms)
            return value, after

        return jax.grad(scalar, argnums=(0, 1), has_aux=True)(estimate, commitment)

    (gradient, commitment), after = gradients(estimate, np.float32(0.3))
    assert float(commitment) == 1.0
    norm = float(np.mean(np.linalg.norm(np.asarray(gradient).reshape(2, -1), axis=1)))
    assert 0.1 < norm <= 1.001, "shares of a unit norm, which may partly cancel"
    assert jax.tree.structure(after) == jax.tree.structure(norms)
    assert all(float(v[0]) > 0 for v in after.values())


def test_only_losses_with_a_weight_are_computed():
    wav, estimate = _waves()
    config = dataclasses.replace(SMALL, waveform=0.0, stft=0.0, mel=1.0)
    values = jax.eval_shape(lambda e: objective.reconstruction_losses(config, [Heard(wav, e, 44_100)]), estimate)
    assert set(values) == {"mel"}


def test_training_without_a_discriminator():
    wav, estimate = _waves()
    _, metrics, norms = jax.eval_shape(
        lambda e: objective.generator_objective(
            SMALL, [Heard(wav, e, 44_100)], 0.0, None, objective.initial_norms(SMALL)
        ),
        estimate,
    )
    assert set(metrics) == {"waveform", "stft", "commitment"}
    assert set(norms) == set(SMALL.balanced)


def test_discriminator_objective_trains_the_discriminator_alone():
    wav, estimate = _waves()
    graph, state = nnx.split(_discriminator())
    loss = jax.jit(lambda state, e: objective.discriminator_objective(nnx.merge(graph, state), [Heard(wav, e, 1)]))
    weights, waveform = jax.jit(jax.grad(loss, argnums=(0, 1)))(state, estimate)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(weights) if g.ndim == 4)
    assert not np.any(waveform)


def test_fields_of_a_configuration_make_an_objective():
    made = ObjectiveConfig.of({"stft_sizes": [64, 128], "mel_windows": (32, 64), "mel_bands": 5, "mel": 1.0})
    assert made == ObjectiveConfig(stft_sizes=(64, 128), mel_windows=(32, 64), mel_bands=(5, 5), mel=1.0)
    assert ObjectiveConfig.of({"mel_bands": 3}).mel_bands == (3,) * 7


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"stft": -1.0}, "loss.stft is -1.0; it must be finite and not negative"),
        ({"mel": float("nan")}, "loss.mel is nan"),
        ({"stft_sizes": (64, 0)}, r"loss.stft_sizes is \(64, 0\); give whole numbers of 1 or more"),
        ({"mel_windows": ()}, r"loss.mel_windows is \(\)"),
        ({"mel_bands": (5, 10)}, "loss.mel_bands has 2 numbers for the 7 loss.mel_windows"),
    ],
)
def test_an_objective_out_of_range_is_told(wrong, words):
    with pytest.raises(UserError, match=words):
        ObjectiveConfig.of(wrong)


def test_least_squares_by_hand():
    """As DAC adds them up: over judges, and over all their activations, none in relation to its size."""
    real, fake = [jnp.array([2.0, 0.0]), jnp.array([0.5])], [jnp.array([-2.0, 1.0]), jnp.array([0.0])]
    assert float(objective.least_squares_discriminator(real, fake)) == (1 + 1) / 2 + (4 + 1) / 2 + 0.25 + 0
    assert float(objective.least_squares_generator(fake)) == (9 + 0) / 2 + 1
    maps = [[jnp.array([1.0, -3.0])], [jnp.array([4.0]), jnp.array([6.0])]]
    others = [[jnp.array([2.0, -3.0])], [jnp.array([1.0]), jnp.array([6.0])]]
    assert float(objective.feature_matching(maps, others, relative=False)) == 0.5 + 3 + 0


def _resolutions(weights=(0.2, 0.3, 0.5)):
    """Three targets and estimates, at three rates."""
    return [Heard(*_waves(seed), 44_100 // 2**seed, weight) for seed, weight in enumerate(weights)]


class _Linear(nnx.Module):
    """A judge of two scales, cheap and unlike at every sample."""

    def __call__(self, wav_BLC):
        ramp = jnp.linspace(0.5, 2.0, wav_BLC.shape[1])[:, None]
        return Judgement([ramp * wav_BLC, wav_BLC[:, ::2] ** 2], [[ramp * wav_BLC], [wav_BLC**2, wav_BLC[:, ::3]]])


@pytest.mark.parametrize("adversary", ["hinge", "least_squares"])
def test_every_resolution_counts_by_its_weight_in_every_loss(adversary):
    config = dataclasses.replace(
        SMALL, balance=False, mel=1.5, waveform=2.0, stft=0.7, adversarial=0.4, feature=0.6, adversary=adversary
    )
    heard, judge = _resolutions(), _Linear()
    commitment = jnp.array([1.0, 10.0, 100.0])

    @jax.jit
    def scalar(estimates):
        now = [dataclasses.replace(one, estimate_BLC=e) for one, e in zip(heard, estimates, strict=True)]
        return objective.generator_objective(config, now, commitment, judge, objective.initial_norms(config))[:2]

    estimates = [one.estimate_BLC for one in heard]
    gradients, values = jax.grad(scalar, has_aux=True)(estimates)
    assert float(values["commitment"]) == pytest.approx(0.2 + 3 + 50)
    each = []
    for one in heard:
        alone = dataclasses.replace(one, weight=1.0)

        @jax.jit
        def scalar_alone(e, alone=alone):
            now = [dataclasses.replace(alone, estimate_BLC=e)]
            return objective.generator_objective(config, now, 0.0, judge, objective.initial_norms(config))[:2]

        each.append(jax.grad(scalar_alone, has_aux=True)(one.estimate_BLC))
    # what is compared with the size of the real ones is so over all of them
    names = [name for name in values if name != "commitment" and (adversary != "hinge" or name != "feature")]
    for name in names:
        total = sum(one.weight * float(alone[name]) for one, (_, alone) in zip(heard, each, strict=True))
        assert float(values[name]) == pytest.approx(total, rel=1e-4), name
    if adversary == "least_squares":
        for one, gradient, (alone, _) in zip(heard, gradients, each, strict=True):
            np.testing.assert_allclose(gradient, one.weight * alone, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("adversary", ["hinge", "least_squares"])
def test_the_discriminator_judges_every_resolution_by_its_weight(adversary):
    heard, judge = _resolutions(), _Linear()
    loss = jax.jit(lambda *heard: objective.discriminator_objective(judge, heard, adversary))
    alone = [float(loss(dataclasses.replace(one, weight=1.0))) for one in heard]
    assert float(loss(*heard)) == pytest.approx(np.dot([0.2, 0.3, 0.5], alone), rel=1e-4)


def test_the_balancer_takes_several_outputs_as_one():
    heard = _resolutions((1.0, 1.0, 1.0))
    estimates = [one.estimate_BLC for one in heard]

    def scalar(estimates):
        now = [dataclasses.replace(one, estimate_BLC=e) for one, e in zip(heard, estimates, strict=True)]
        config = dataclasses.replace(SMALL, waveform=1.0, stft=0.0)
        return objective.generator_objective(config, now, np.zeros(3), None, objective.initial_norms(config))[0]

    gradients = jax.jit(jax.grad(scalar))(estimates)
    norm = np.mean(np.sqrt(sum(np.square(np.asarray(g)).sum((1, 2)) for g in gradients)))
    assert norm == pytest.approx(1, rel=1e-4)


def test_the_weight_of_the_mel_loss_rises_over_the_first_steps():
    config = dataclasses.replace(SMALL, mel=10.0, mel_start=2.0, mel_steps=100, balance=False)
    assert [float(config.weights(step)["mel"]) for step in (0, 50, 100, 9999)] == [2, 6, 10, 10]
    assert config.weights(50) | {"mel": 10.0} == config.balanced  # and no other
    assert dataclasses.replace(config, mel_steps=0).weights(0)["mel"] == 10
    wav, estimate = _waves()

    @jax.jit
    def gradient(estimate, step):
        def scalar(e):
            only = dataclasses.replace(config, waveform=0.0, stft=0.0)
            return objective.generator_objective(only, [Heard(wav, e, 44_100)], 0.0, None, {}, step)[0]

        return jax.grad(scalar)(estimate)

    np.testing.assert_allclose(gradient(estimate, 100), 5 * gradient(estimate, 0), rtol=1e-4, atol=1e-9)


def test_the_discriminator_judges_once_for_the_codec_and_for_itself():
    """In the compiled step; the logits of the originals, by the last of six convolutions, the codec never asked for."""
    config = dataclasses.replace(SMALL, stft=0.0, balance=False, adversary="least_squares")
    graph, weights = nnx.split(_discriminator())

    def step(weights, wav, estimate):
        def generator(estimate):
            judge = nnx.merge(graph, weights)
            return objective.generator_objective(config, [Heard(wav, estimate, 44_100)], 0.0, judge, {})[0]

        def discriminator(weights):
            heard = [Heard(wav, estimate, 44_100)]
            return objective.discriminator_objective(nnx.merge(graph, weights), heard, config.adversary)

        return jax.grad(generator)(estimate), jax.grad(discriminator)(weights)

    written = jax.jit(step).lower(weights, *_waves())
    run = written.compile().as_text().count(" convolution(")
    assert 0 < run <= written.as_text().count("stablehlo.convolution") - (6 + 5)


def test_a_mel_loss_that_falls_to_nothing_is_there_until_it_has():
    config = dataclasses.replace(SMALL, waveform=0.0, stft=0.0, mel=0.0, mel_start=2.0, mel_steps=100, balance=False)
    assert [float(config.weights(step)["mel"]) for step in (0, 50, 100, 9999)] == [2, 1, 0, 0]
    assert "mel" in objective.initial_norms(config) and config.balanced["mel"] == 0
    assert dataclasses.replace(config, mel_steps=0).balanced.keys() == {"adversarial", "feature"}
    wav, estimate = _waves()

    @jax.jit
    def gradient(estimate, step):
        def scalar(e):
            return objective.generator_objective(config, [Heard(wav, e, 44_100)], 0.0, None, {}, step)[0]

        return jax.grad(scalar)(estimate)

    assert np.any(gradient(estimate, 0)) and not np.any(gradient(estimate, 100))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"adversary": "wasserstein"}, "loss.adversary is 'wasserstein': choose hinge or least_squares"),
        ({"level_weights": (0.5, -1.0)}, "loss.level_weights is (0.5, -1.0)"),
        ({"mel_steps": -1}, "loss.mel_steps is -1"),
    ],
)
def test_an_objective_that_cannot_be_is_one_line(wrong, words):
    with pytest.raises(UserError) as told:
        dataclasses.replace(SMALL, **wrong)
    assert words in str(told.value)
