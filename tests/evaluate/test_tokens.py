import math
from fractions import Fraction

import numpy as np
import pytest

from hiermusic.errors import UserError
from hiermusic.evaluate.tokens import bits_per_second, compare, losing, per_token, unigram
from hiermusic.tokens.hierarchy import Hierarchy, Level

HIERARCHY = Hierarchy((Level("a", Fraction(50), 4), Level("b", Fraction(25), 2)))


def test_unigram_in_closed_form():
    """Counts 3, 1, 0, 0 smooth to 4, 2, 1, 1 of 8; counts 2, 2, 0, 0 to 3, 3, 1, 1 of 8."""
    trained_KV = np.array([[3, 1, 0, 0], [2, 2, 0, 0], [1, 1, 1, 1]])
    counts_KV = np.array([[1, 1, 1, 1], [2, 0, 0, 0], [0, 0, 0, 0]])
    expected_K = np.array([math.log(2) + math.log(4) + 2 * math.log(8), 2 * math.log(8 / 3), 0])
    np.testing.assert_allclose(unigram(trained_KV, counts_KV), expected_K)
    np.testing.assert_allclose(unigram(trained_KV, np.stack([counts_KV, 3 * counts_KV]))[1], 3 * expected_K)


def test_a_mean_is_of_the_tokens_that_were_predicted():
    found = per_token(np.array([6.0, 0.0]), np.array([[1, 2, 0], [0, 0, 0]]))
    np.testing.assert_array_equal(found, [2.0, math.nan])


def test_bits_per_second_weighs_levels_by_rate():
    assert bits_per_second(np.log([4.0, 2.0]), HIERARCHY) == pytest.approx(50 * 2 + 25)


# Counts by which the unigram spends 2 bits a token of either level, whatever the tokens are.
FLAT = np.array([[4, 4, 4, 4], [0, 0, 0, 0]])


def tracks(*bits: tuple[float, float], tokens: tuple[int, ...] = (8, 8)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `compare` takes of tracks on which the model spends so many bits a token of either level."""
    counts_NKV = np.zeros((len(bits), 2, 4), int)
    counts_NKV[:, :, 0] = np.asarray(tokens)[: len(bits), None]
    return np.log(2) * np.array(bits) * counts_NKV.sum(-1), counts_NKV, FLAT


def test_comparison_rows_and_total():
    rows = compare(*tracks((1, 2), (1, 2)), HIERARCHY)
    assert [row["level"] for row in rows] == [0, 1, "all"]
    assert rows[0]["model"] == pytest.approx(1) and rows[0]["saved"] == pytest.approx(0.5)
    assert rows[1]["uniform"] == pytest.approx(1) and rows[1]["saved"] == pytest.approx(0)
    assert (rows[2]["model"], rows[2]["unigram"]) == (pytest.approx(100), pytest.approx(150))
    assert losing(compare(*tracks((1, 2.1), (1, 2.1)), HIERARCHY)) == [1]


def test_levels_the_model_does_not_predict_stay_out_of_the_total():
    sums_NK, counts_NKV, trained_KV = tracks((1, 2), (1, 2))
    sums_NK[:, 1], counts_NKV[:, 1] = 0, 0
    rows = compare(sums_NK, counts_NKV, trained_KV, HIERARCHY)
    assert [row["level"] for row in rows] == [0, "all"]
    assert (rows[1]["model"], rows[1]["unigram"], rows[1]["rate"]) == (pytest.approx(50), pytest.approx(100), 50)
    assert rows[1]["difference"] == {"mean": -50, "low": -50, "high": -50, "count": 2} and losing(rows) == []
    with pytest.raises(UserError, match="hierarchy of 2"):
        compare(np.zeros((2, 3)), counts_NKV, trained_KV, HIERARCHY)


def test_the_interval_is_over_tracks_and_weighs_them_by_their_tokens():
    """Two tracks, one of three times the tokens: both, one, or either twice, each as often as the other."""
    rows = compare(*tracks((1, 2), (3, 2), tokens=(24, 8)), HIERARCHY)
    found = rows[0]["difference"]
    assert found["mean"] == pytest.approx((24 * 1 + 8 * 3) / 32 - 2) and found["count"] == 2
    assert (found["low"], found["high"]) == (pytest.approx(-1), pytest.approx(1))
    assert (rows[2]["difference"]["low"], rows[2]["difference"]["high"]) == (pytest.approx(-50), pytest.approx(50))
    alike = compare(*tracks(*[(1.9, 2)] * 20, tokens=(8,) * 20), HIERARCHY)[2]["difference"]
    assert alike["high"] == pytest.approx(-5) and alike["low"] == pytest.approx(-5)
