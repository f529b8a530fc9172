"""What happens where parts of a sound meet, beside what happens elsewhere."""

import numpy as np

from hiermusic.evaluate import seams

RATE = 24000


def tone(seconds: float) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 220 * np.arange(round(seconds * RATE)) / RATE))[:, None].astype(np.float32)


def test_a_jump_shows_and_a_whole_sound_does_not():
    whole_LC = tone(2)
    whole_LC += np.random.default_rng(0).normal(0, 0.01, whole_LC.shape).astype(np.float32)
    cut_LC = whole_LC.copy()
    cut_LC[RATE:] *= -1  # at a place where the tone is not at rest
    cut_LC[RATE:] = np.roll(cut_LC[RATE:], 17, axis=0)
    places = [RATE / 2, RATE]
    smooth, broken = (seams.measure(wav_LC, RATE, places) for wav_LC in (whole_LC, cut_LC))
    assert all(0.2 < value < 3 for values in smooth.values() for value in values)
    assert broken["jump"][1] > 5 and broken["flux"][1] > 2 and broken["jump"][0] < 3
    assert seams.measure(whole_LC, RATE, []) == {"jump": [], "flux": []}


def test_seams_and_ends_are_not_elsewhere():
    values_N = np.array([9.0, 1, 1, 1, 5, 1, 1, 1, 9])
    places_N = np.arange(9.0)
    assert seams.ratios(values_N, places_N, [4], 1, 8) == [5.0]
    assert np.isnan(seams.ratios(values_N, places_N, [100], 1, 8)).all()
