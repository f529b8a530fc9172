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
from hiermusic.codec.discriminator import Discriminator, DiscriminatorConfig
from hiermusic.codec.objective import ObjectiveConfig
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
        return objective.generator_objective(config, wav, estimate, 0.7, discriminator, 44_100, norms)[:2]

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
            value, _, after = objective.generator_objective(
                SMALL, wav, estimate, commitment, discriminator, 44_100, norms
            )
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
    values = jax.eval_shape(lambda e: objective.reconstruction_losses(config, wav, e, 44_100), estimate)
    assert set(values) == {"mel"}


def test_training_without_a_discriminator():
    wav, estimate = _waves()
    _, metrics, norms = jax.eval_shape(
        lambda e: objective.generator_objective(SMALL, wav, e, 0.0, None, 44_100, objective.initial_norms(SMALL)),
        estimate,
    )
    assert set(metrics) == {"waveform", "stft", "commitment"}
    assert set(norms) == set(SMALL.balanced)


def test_discriminator_objective_trains_the_discriminator_alone():
    wav, estimate = _waves()
    graph, state = nnx.split(_discriminator())
    loss = jax.jit(lambda state, e: objective.discriminator_objective(nnx.merge(graph, state), wav, e))
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
