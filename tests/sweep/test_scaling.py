"""The law of a scaling sweep."""

import numpy as np
import pytest

from hiermusic.sweep import scaling

from .files import law


def test_a_known_law_is_found():
    compute = np.logspace(15, 19, 6)
    fit = scaling.fit(compute, law(compute), samples=5)
    assert fit.floor == pytest.approx(1.7, abs=1e-4) and fit.exponent == pytest.approx(0.15, abs=1e-4)
    assert fit.scale == pytest.approx(400, rel=1e-2) and fit.r2 > 0.999999 and fit.left_out < 1e-4
    np.testing.assert_allclose(fit(compute), law(compute), rtol=1e-6)


def test_noise_widens_the_interval_round_the_truth():
    compute = np.logspace(15, 19, 8)
    little, much = (scaling.fit(compute, law(compute, noise, seed=3), samples=40) for noise in (0.001, 0.01))
    for fit in (little, much):
        assert fit.interval[0] < 0.15 < fit.interval[1] and 0.9 < fit.r2 < 1
    width = [fit.interval[1] - fit.interval[0] for fit in (little, much)]
    assert width[1] > 3 * width[0] and much.left_out > 3 * little.left_out


def test_one_bad_run_does_not_bend_the_law():
    compute = np.logspace(15, 19, 9)
    loss = law(compute)
    loss[4] *= 1.2
    assert scaling.fit(compute, loss, samples=2).exponent == pytest.approx(0.15, abs=0.01)


def test_too_few_runs_give_no_law():
    compute = np.logspace(15, 19, 3)
    assert scaling.fit(compute, law(compute)) is None
    assert scaling.fit(np.repeat(compute, 2), np.repeat(law(compute), 2)) is None
    four = np.logspace(15, 19, 4)
    assert scaling.fit(four, law(four), samples=2).left_out is None


def test_the_frontier_leaves_out_what_cheaper_runs_beat():
    assert scaling.frontier([4.0, 1.0, 2.0, 3.0, 2.0], [1.0, 3.0, 2.0, 2.5, 2.9]) == [1, 2, 0]
