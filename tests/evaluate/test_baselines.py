import itertools
import json

import numpy as np
import pytest

from hiermusic.audio.measure import sdr
from hiermusic.evaluate import baselines

RATE = 8000


@pytest.fixture
def wav_LC():
    times = np.arange(3 * RATE) / RATE
    tones = [0.2 * np.sin(2 * np.pi * f * times * (1 + 0.02 * times)) for f in (220, 330, 1500)]
    noise = 0.01 * np.random.default_rng(0).normal(size=(len(times), 2))
    return (np.stack([tones[0] + tones[1], tones[0] + tones[2]], axis=1) + noise).astype(np.float32)


@pytest.mark.parametrize("length", [1, 63, 64, 1000])
def test_mdct_is_orthonormal_and_inverts(length):
    wav = np.random.default_rng(1).normal(size=(length, 2))
    coefficients = baselines.mdct(wav, 64)
    assert coefficients.shape == (-(-length // 64) + 1, 64, 2)
    assert np.sum(coefficients**2) == pytest.approx(np.sum(wav**2))
    np.testing.assert_allclose(baselines.inverse_mdct(coefficients, length), wav, atol=1e-12)


def test_transform_codec_meets_its_rate_and_improves_with_it(wav_LC):
    rates = (250, 1000, 4000, 16000, 64000)
    coded = [baselines.transform_codec(wav_LC, RATE, rate) for rate in rates]
    for rate, result in zip(rates, coded, strict=True):
        assert result.wav_LC.shape == wav_LC.shape
        assert 0.97 * rate < result.bits_per_second <= rate
    ratios = [sdr(wav_LC, result.wav_LC) for result in coded]
    assert all(b > a + 1 for a, b in itertools.pairwise(ratios))


def test_a_rate_below_the_empty_code_gives_silence_and_says_its_cost(wav_LC):
    result = baselines.transform_codec(wav_LC, RATE, 1.0)
    assert not result.wav_LC.any() and result.bits_per_second > 1
    assert not baselines.transform_codec(0 * wav_LC, RATE, 1000).wav_LC.any()


def test_code_length_is_that_of_the_sequential_code():
    """The closed form equals an adaptive coder run symbol by symbol, escapes and signs included."""
    generator = np.random.default_rng(2)
    magnitudes, context = generator.poisson(4, size=300) ** 2 // 4, generator.integers(3, size=300)
    counts, bits = np.full((3, 16), 1 / 16), 32.0
    for magnitude, place in zip(magnitudes, context, strict=True):
        symbol = min(magnitude, 15)
        bits -= np.log2(counts[place, symbol] / counts[place].sum())
        counts[place, symbol] += 1
        bits += magnitude > 0
        if symbol == 15:
            bits += 2 * (int(magnitude - 15 + 1).bit_length() - 1) + 1
    assert baselines._code_bits(magnitudes, context) == pytest.approx(bits)


def test_low_pass_keeps_below_and_removes_above():
    times = np.arange(RATE) / RATE
    low, high = (np.sin(2 * np.pi * f * times)[:, None] for f in (400, 2400))
    np.testing.assert_allclose(baselines.low_pass(low + high, RATE, 1000), low, atol=1e-5)


def test_the_table_of_baselines(wav_LC):
    result = baselines.evaluate_baselines([wav_LC[:RATE], 0 * wav_LC], RATE, (500, 4000), cutoffs=(1000,))
    assert [row["limit"] for row in result["transform"]] == [500, 4000]
    assert result["transform"][0]["sdr"]["mean"] < result["transform"][1]["sdr"]["mean"]
    assert result["silence"]["sdr"]["mean"] == 0 and result["silence"]["silence"]["mean"] == 1
    assert result["low_pass"][0]["sdr"]["count"] == 1  # the silent clip is gated
    json.dumps(result)
