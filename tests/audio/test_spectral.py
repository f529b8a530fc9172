import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest

from hiermusic.audio.spectral import mel, mel_filters, power, stft


def _wave(length=5000, seed=0):
    return (0.3 * np.random.default_rng(seed).normal(size=length)).astype(np.float32)


@pytest.mark.parametrize(
    ("n_fft", "hop", "win"), [(78, 39, None), (512, 128, None), (2296, 1148, None), (400, 90, 300)]
)
@pytest.mark.parametrize("center", [True, False])
def test_stft_is_librosas(n_fft, hop, win, center):
    wav = _wave()
    expected = librosa.stft(wav, n_fft=n_fft, hop_length=hop, win_length=win, center=center, pad_mode="reflect").T
    got = np.asarray(jax.jit(lambda w: stft(w, n_fft, hop, win, center=center))(wav))
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_leading_dimensions_are_a_batch():
    wav = np.stack([_wave(seed=s) for s in range(4)]).reshape(2, 2, -1)
    got = stft(jnp.asarray(wav), 64, 16)
    np.testing.assert_allclose(got[1, 0], stft(jnp.asarray(wav[1, 0]), 64, 16), atol=1e-5)


def test_normalised_spectra_keep_the_scale_of_the_signal():
    wav = jnp.asarray(_wave(100_000))
    for n_fft in (128, 1024):
        mean = jnp.mean(power(stft(wav, n_fft, n_fft // 2, normalized=True)))
        assert float(mean) == pytest.approx(float(jnp.mean(wav**2)), rel=0.05)


def test_gradient_by_hops_is_the_gradient_by_gather():
    wav, n_fft = jnp.asarray(_wave(700)), 64

    def loss(wav, padded_fft):
        return jnp.sum(power(stft(wav, padded_fft, 16, n_fft, center=False)))

    def direct(wav):
        frames = jnp.stack([wav[t * 16 : t * 16 + n_fft] for t in range((700 - n_fft) // 16 + 1)])
        window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
        return jnp.sum(jnp.abs(jnp.fft.rfft(frames * window)) ** 2)

    np.testing.assert_allclose(jax.jit(jax.grad(loss), static_argnums=1)(wav, n_fft), jax.grad(direct)(wav), rtol=1e-3)


def test_mel_is_librosas():
    wav = _wave(20_000)
    expected = librosa.feature.melspectrogram(
        y=wav, sr=44_100, n_fft=1024, hop_length=256, n_mels=80, power=1.0, pad_mode="reflect"
    ).T
    got = mel(jnp.asarray(wav), 44_100, 1024, 256, 80)
    np.testing.assert_allclose(got, expected, atol=1e-5 * expected.max())
    assert mel_filters(44_100, 1024, 80).dtype == np.float32


@pytest.mark.parametrize("length", [2400, 2431])
@pytest.mark.parametrize(("n_fft", "hop"), [(512, 128), (150, 75)])  # the other half of an odd number lies behind
def test_mel_without_centring_has_one_frame_a_hop(length, n_fft, hop):
    wav = _wave(length)
    got = mel(jnp.asarray(wav), 24_000, n_fft, hop, 40, center=False, squared=True)
    padded = np.pad(wav, ((n_fft - hop) // 2, (n_fft - hop + 1) // 2), mode="reflect")
    expected = librosa.feature.melspectrogram(
        y=padded, sr=24_000, n_fft=n_fft, hop_length=hop, n_mels=40, power=2.0, center=False
    ).T
    assert got.shape == expected.shape == (length // hop, 40)
    np.testing.assert_allclose(got, expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize("length", [1, 63, 64, 65])
@pytest.mark.parametrize("center", [True, False])
def test_short_signals_give_at_least_one_frame(length, center):
    spectrum = stft(jnp.ones((2, length)), 128, 64, center=center)
    assert spectrum.shape[-2] >= 1
    assert np.isfinite(spectrum).all()


@pytest.mark.parametrize("squared", [True, False])
def test_silence_has_a_finite_gradient(squared):
    def total(wav, floor):
        return jnp.sum(mel(wav, 24_000, 64, 32, 8, squared=squared, floor=floor))

    for floor in (0.0, 1e-3):
        assert np.isfinite(jax.grad(total)(jnp.zeros(500), floor)).all()


def test_a_floor_is_the_power_of_a_faint_noise():
    wav = jnp.asarray(_wave(4000))
    plain, raised = (mel(wav, 24_000, 512, 128, 20, squared=True, floor=floor) for floor in (0.0, 0.5))
    added = np.broadcast_to(0.5 * mel_filters(24_000, 512, 20).sum(1), plain.shape)
    np.testing.assert_allclose(raised - plain, added, rtol=1e-2)
