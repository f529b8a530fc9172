import math
from fractions import Fraction

import numpy as np
import pytest

from hiermusic.errors import UserError
from hiermusic.evaluate.tokens import bits_per_second, compare, per_token, unigram
from hiermusic.tokens.hierarchy import Hierarchy, Level

HIERARCHY = Hierarchy((Level("a", Fraction(50), 4), Level("b", Fraction(25), 2)))


def test_unigram_in_closed_form():
    """Counts 3, 1, 0, 0 smooth to 4, 2, 1, 1 of 8; counts 2, 2, 0, 0 to 3, 3, 1, 1 of 8."""
    trained_KV = np.array([[3, 1, 0, 0], [2, 2, 0, 0], [1, 1, 1, 1]])
    counts_KV = np.array([[1, 1, 1, 1], [2, 0, 0, 0], [0, 0, 0, 0]])
    expected = [(math.log(2) + math.log(4) + 2 * math.log(8)) / 4, math.log(8 / 3), math.nan]
    np.testing.assert_allclose(unigram(trained_KV, counts_KV), expected)


def test_a_mean_is_of_the_tokens_that_were_predicted():
    found = per_token(np.array([6.0, 0.0]), np.array([[1, 2, 0], [0, 0, 0]]))
    np.testing.assert_array_equal(found, [2.0, math.nan])


def test_bits_per_second_weighs_levels_by_rate():
    assert bits_per_second(np.log([4.0, 2.0]), HIERARCHY) == pytest.approx(50 * 2 + 25)


def test_comparison_rows_and_total():
    rows = compare(np.log([2.0, 2.0]), np.log([4.0, 2.0]), HIERARCHY)
    assert [row["level"] for row in rows] == [0, 1, "all"]
    assert rows[0]["model"] == pytest.approx(1) and rows[0]["saved"] == pytest.approx(0.5)
    assert rows[1]["uniform"] == pytest.approx(1) and rows[1]["saved"] == pytest.approx(0)
    assert (rows[2]["model"], rows[2]["unigram"]) == (pytest.approx(75), pytest.approx(125))


def test_levels_the_model_does_not_predict_stay_out_of_the_total():
    rows = compare(np.array([math.log(2), math.nan]), np.log([4.0, 2.0]), HIERARCHY)
    assert math.isnan(rows[1]["model"])
    assert (rows[2]["model"], rows[2]["unigram"], rows[2]["rate"]) == (pytest.approx(50), pytest.approx(100), 50)
    with pytest.raises(UserError, match="hierarchy of 2"):
        compare(np.zeros(3), np.zeros(3), HIERARCHY)
