import numpy as np
import pytest

from hiermusic.audio.limiter import CEILING, limit
from hiermusic.audio.measure import clipped_share, si_sdr

RATE = 8000


@pytest.mark.parametrize("gain", [1.2, 5.0])
@pytest.mark.parametrize("length", [1, 50, 8000])
def test_nothing_exceeds_full_scale(gain, length):
    wav_LC = gain * np.random.default_rng(0).uniform(-1, 1, (length, 2)).astype(np.float32)
    wav_LC[0, 1] = gain
    limited_LC = limit(wav_LC, RATE)
    assert limited_LC.shape == wav_LC.shape and limited_LC.dtype == np.float32
    assert np.abs(limited_LC).max() <= CEILING + 1e-6 and clipped_share(limited_LC) == 0


def test_what_is_far_from_a_peak_stays_as_it_is():
    wav_LC = 0.5 * np.sin(np.arange(RATE) / 5)[:, None] * np.ones((1, 2))
    assert limit(wav_LC, RATE) is wav_LC
    wav_LC[4000, 0] = -2.0
    limited_LC = limit(wav_LC, RATE)
    near = slice(4000 - 81, 4000 + 82)
    np.testing.assert_allclose(np.delete(limited_LC, near, axis=0), np.delete(wav_LC, near, axis=0), rtol=1e-12)
    assert limited_LC[4000, 0] == pytest.approx(-CEILING)
    gain_L = limited_LC[near, 1] / wav_LC[near, 1]  # channels are turned down together, and no step is heard
    assert gain_L.min() == pytest.approx(0.5, abs=1e-3) and np.abs(np.diff(gain_L)).max() < 0.05


def test_a_limited_sound_is_nearer_than_a_clipped_one():
    wav_LC = 2 * np.sin(np.arange(RATE) / 5)[:, None]
    assert si_sdr(wav_LC, limit(wav_LC, RATE)) > si_sdr(wav_LC, np.clip(wav_LC, -1, 1)) + 20
