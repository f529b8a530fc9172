import math

import jax
import numpy as np
import pytest

from hiermusic.audio import measure
from hiermusic.errors import UserError

RATE = 16_000


@pytest.fixture
def ref_LC():
    return np.random.default_rng(0).normal(size=(RATE, 2)).astype(np.float32) * 0.1


def orthogonal_noise(ref_LC, ratio_db):
    """Noise without mean and without correlation to the reference, `ratio_db` below it."""
    ref_LC = ref_LC - ref_LC.mean(axis=0)
    noise_LC = np.random.default_rng(1).normal(size=ref_LC.shape)
    noise_LC -= noise_LC.mean(axis=0)
    noise_LC -= np.sum(noise_LC * ref_LC) / np.sum(ref_LC**2) * ref_LC
    return noise_LC * np.sqrt(np.sum(ref_LC**2) / np.sum(noise_LC**2)) * 10 ** (-ratio_db / 20)


@pytest.mark.parametrize("ratio_db", [-7.0, 0.0, 12.5])
def test_ratios_of_known_noise(ref_LC, ratio_db):
    ref_LC = ref_LC - ref_LC.mean(axis=0)
    est_LC = ref_LC + orthogonal_noise(ref_LC, ratio_db)
    assert measure.si_sdr(ref_LC, est_LC) == pytest.approx(ratio_db, abs=1e-3)
    assert measure.sdr(ref_LC, est_LC) == pytest.approx(ratio_db, abs=1e-3)


def test_si_sdr_ignores_scale_sign_and_offset_and_sdr_does_not(ref_LC):
    est_LC = ref_LC + orthogonal_noise(ref_LC, 10)
    expected = measure.si_sdr(ref_LC, est_LC)
    for changed in (3.7 * est_LC, 1e-3 * est_LC, -est_LC, est_LC + 0.25):
        assert measure.si_sdr(ref_LC, changed) == pytest.approx(expected, abs=1e-6)
    assert measure.sdr(ref_LC, 0.5 * ref_LC) == pytest.approx(-20 * math.log10(0.5), abs=1e-6)


def test_ratios_at_their_ends(ref_LC):
    silence_LC = np.zeros_like(ref_LC)
    assert measure.si_sdr(ref_LC, ref_LC) == measure.sdr(ref_LC, ref_LC) == 80
    assert measure.si_sdr(ref_LC, silence_LC) == -80  # not the 0 dB of an absolute epsilon
    assert measure.sdr(ref_LC, silence_LC) == 0
    assert math.isnan(measure.si_sdr(silence_LC, ref_LC)) and math.isnan(measure.sdr(silence_LC + 0.3, ref_LC))


@pytest.mark.parametrize(("level", "silent"), [(0.9e-5, True), (1.1e-5, False)])
def test_what_stays_below_the_last_bit_is_silent(ref_LC, level, silent):
    ref_LC = ref_LC.astype(np.float64) - ref_LC.mean(axis=0, dtype=np.float64)
    ref_LC *= level / np.sqrt(np.mean(ref_LC**2))
    assert measure.is_silent(ref_LC) == silent
    for ratio in (measure.si_sdr, measure.sdr):
        assert math.isnan(ratio(ref_LC, ref_LC)) == silent


def test_a_batch_on_the_device_scores_as_each_pair_on_the_host(ref_LC):
    ref_BLC = np.stack([ref_LC, ref_LC, ref_LC, 0 * ref_LC])
    noise_LC = orthogonal_noise(ref_LC, 10).astype(np.float32)
    est_BLC = np.stack([ref_LC + noise_LC, ref_LC, 0 * ref_LC, ref_LC])
    expected = [measure.si_sdr(*pair) for pair in zip(ref_BLC, est_BLC, strict=True)]
    np.testing.assert_allclose(expected[1:], [80, -80, np.nan])
    np.testing.assert_allclose(jax.jit(measure.batch_si_sdr)(ref_BLC, est_BLC), expected, atol=1e-3)


def test_stereo_is_one_signal(ref_LC):
    """A channel gone quiet is an error of scale-invariant SDR, since both channels share one scale."""
    est_LC = ref_LC * np.array([1.0, 0.5])
    a, b = (np.sum((ref_LC[:, c] - ref_LC[:, c].mean()) ** 2) for c in (0, 1))
    scale = (a + 0.5 * b) / (a + b)
    expected = 10 * math.log10(scale**2 * (a + b) / ((1 - scale) ** 2 * a + (0.5 - scale) ** 2 * b))
    assert measure.si_sdr(ref_LC, est_LC) == pytest.approx(expected, abs=1e-4)


def test_distances_vanish_on_identity_and_grow_with_noise(ref_LC):
    distances = [
        lambda e: measure.mel_distance(ref_LC, e, RATE),
        lambda e: measure.stft_distance(ref_LC, e),
    ]
    for distance in distances:
        values = [distance(ref_LC + orthogonal_noise(ref_LC, r).astype(np.float32)) for r in (30, 20, 10, 0)]
        assert distance(ref_LC) == 0
        assert values == sorted(values) and values[0] > 0


def test_spectral_distances_equal_the_published_formula(ref_LC):
    import librosa

    est_LC = 0.6 * ref_LC + orthogonal_noise(ref_LC, 3).astype(np.float32)
    stft_total = mel_total = 0.0
    for window, bands in ((2048, 150), (512, 80)):
        spectra = [
            np.abs(librosa.stft(w.T.astype(np.float64), n_fft=window, hop_length=window // 4, pad_mode="reflect"))
            for w in (ref_LC, est_LC)
        ]
        filters = librosa.filters.mel(sr=RATE, n_fft=window, n_mels=bands)
        mels = [filters @ s for s in spectra]

        def distance(x, y):
            log = [np.log10(np.clip(m, 1e-5, None) ** 2) for m in (x, y)]
            return np.abs(log[0] - log[1]).mean() + np.abs(x - y).mean()

        stft_total += distance(*spectra)
        mel_total += distance(*mels)
    assert measure.stft_distance(ref_LC, est_LC) == pytest.approx(stft_total, rel=1e-3)
    assert measure.mel_distance(ref_LC, est_LC, RATE) == pytest.approx(mel_total, rel=1e-3)


def test_spectral_distances_of_silence_are_finite(ref_LC):
    silence_LC = np.zeros_like(ref_LC)
    assert np.isfinite(measure.mel_distance(silence_LC, ref_LC, RATE))
    assert measure.stft_distance(silence_LC, silence_LC) == 0


def test_silence_share():
    wav_LC = np.zeros((RATE, 1))
    wav_LC[: RATE // 4] = 0.1
    wav_LC[:160] = -1.0
    assert measure.silence_share(wav_LC, RATE) == pytest.approx(0.75)
    assert measure.silence_share(wav_LC[: RATE // 4], RATE) == 0


@pytest.mark.parametrize("limit", [-60.0, -40.0])
def test_a_frame_is_silent_below_the_limit(limit):
    """Frames of 50 ms, and a last one of whatever is left, over both channels together."""
    level = 10 ** (limit / 20)
    for gain, share in ((1.01, 0.0), (0.99, 1.0)):
        wav_LC = np.full((RATE, 2), gain * level)
        assert measure.silence_share(wav_LC, RATE, limit) == share
        wav_LC *= [np.sqrt(2), 0]
        assert measure.silence_share(wav_LC, RATE, limit) == share
    frame = RATE // 20
    wav_LC = np.zeros((3 * frame + 10, 1))
    wav_LC[-10:] = 1
    assert measure.silence_share(wav_LC, RATE, limit) == 0.75
    assert measure.is_silent(np.full((9, 1), 0.5)) and not measure.is_silent(np.array([[1.1e-5], [-1.1e-5]]))
    assert measure.is_silent(np.array([[0.9e-5], [-0.9e-5]]))


def test_loudness_of_the_standards_sine():
    """BS.1770: a full-scale 997 Hz sine in one channel reads -3.01 LUFS; silence lies below the gate."""
    sine_LC = np.sin(2 * np.pi * 997 * np.arange(4 * 48_000) / 48_000)[:, None]
    assert measure.loudness(sine_LC, 48_000) == pytest.approx(-3.01, abs=0.05)
    assert measure.loudness(np.repeat(0.1 * sine_LC, 2, axis=1), 48_000) == pytest.approx(-20, abs=0.05)
    five = -23.01 + 10 * math.log10(3 + 2 * 1.41)  # what comes from behind weighs more
    assert measure.loudness(np.repeat(0.1 * sine_LC, 5, axis=1), 48_000) == pytest.approx(five, abs=0.05)
    padded_LC = np.concatenate([sine_LC, np.zeros((8 * 48_000, 1))])
    assert measure.loudness(padded_LC, 48_000) == pytest.approx(-3.01, abs=0.4)
    assert measure.loudness(np.zeros((48_000, 2)), 48_000) == -math.inf


@pytest.mark.parametrize("function", [measure.si_sdr, measure.sdr, measure.stft_distance])
def test_pairs_that_do_not_match_are_refused(ref_LC, function):
    for other in (ref_LC[:-1], ref_LC[:, :1], ref_LC[:, 0], np.full_like(ref_LC, np.nan)):
        with pytest.raises(UserError):
            function(ref_LC, other)


def test_loudness_of_a_sound_shorter_than_a_block():
    sine_LC = np.sin(2 * np.pi * 997 * np.arange(4800) / 48_000)[:, None]
    assert measure.loudness(sine_LC, 48_000) == pytest.approx(-3.01, abs=0.5)
    assert measure.loudness(np.zeros((1, 1)), 48_000) == -math.inf
    assert 7 / 48_000 * 48_000 > 7 and math.isfinite(measure.loudness(np.ones((7, 1)), 48_000))


def test_peak_and_clipped_share():
    wav_LC = np.array([[0.5, -1.5], [1.0, 0.0], [-1.0, 1.01], [0.0, 0.0]])
    assert measure.peak(wav_LC) == 1.5
    assert measure.clipped_share(wav_LC) == 2 / 8
