import numpy as np
import pytest

from hiermusic.errors import UserError
from hiermusic.train.guard import Guard


def feed(guard, index, loss, task="a", grad_norm=1.0, rate=0.1):
    """One step as the loop makes it: limits first, then whether they are kept."""
    limits = guard.limits(index, task)
    skipped = not (np.isfinite(loss) and loss <= limits[0] and grad_norm <= limits[1])
    metrics = {"loss": np.float32(loss), "grad_norm": np.float32(grad_norm), "learning_rate": rate}
    return guard.observe(index, task, metrics, limits, skipped), limits


def steady(steps, **options):
    guard = Guard(**{"window": 8, "sigma": 6.0, "patience": 0, "max_skipped": 5, **options})
    for index in range(steps):
        assert feed(guard, index, 2.0 + index % 2)[0] is None
    return guard


def test_limits_are_mean_and_deviations_of_steps_before_the_last():
    guard = steady(20)
    limits = guard.limits(20, "a")  # steps 11..18: four of 2 and four of 3, mean 2.5, deviation 0.5
    np.testing.assert_allclose(limits, [2.5 + 6 * 0.5, 1.0 + 6 * 0.01], rtol=1e-6)
    guard.observe(20, "a", {"loss": 5.0, "grad_norm": 1.0}, limits, False)
    np.testing.assert_array_equal(guard.limits(21, "a"), limits)
    assert guard.limits(22, "a")[0] > limits[0]


def test_nothing_is_limited_before_half_a_window_or_without_sigma():
    guard = steady(5)
    assert np.isfinite(guard.limits(5, "a")).all()
    assert np.isinf(steady(4).limits(4, "a")).all()
    assert np.isinf(steady(50, sigma=0.0).limits(50, "a")).all()


def test_causes_name_what_was_too_large():
    guard = steady(20)
    assert feed(guard, 20, 9.0)[0] == "loss 9 above 5.5"
    assert feed(guard, 21, 2.0, grad_norm=7.0)[0] == "gradient norm 7 above 1.06"
    assert feed(guard, 22, 9.0, grad_norm=7.0)[0].count("above") == 2
    assert "not finite" in feed(guard, 23, np.nan)[0]
    assert guard.skipped == 4


def test_skipped_steps_do_not_fill_the_window():
    guard = steady(20, max_skipped=100)
    feed(guard, 20, 2.0)
    before = guard.limits(22, "a")
    for index in range(22, 60):
        assert feed(guard, index, 50.0)[0]
    np.testing.assert_array_equal(guard.limits(60, "a"), before)


def test_tasks_have_windows_of_their_own():
    guard = steady(20)
    assert feed(guard, 20, 100.0, task="b")[0] is None


def test_too_many_in_a_row_end_the_run():
    guard = steady(20)
    for index in range(20, 24):
        assert guard.check(index + 1, "a", feed(guard, index, 50.0)[0]) is None
    with pytest.raises(UserError, match="5 steps in a row up to step 25 were skipped, the last for loss 50 above"):
        guard.check(25, "a", feed(guard, 24, 50.0)[0])


def test_a_task_that_is_always_skipped_ends_the_run_though_others_go_on():
    guard = steady(20)
    for index in range(20, 28, 2):
        guard.check(index + 1, "a", feed(guard, index, 50.0)[0])
        assert feed(guard, index + 1, 3.0, task="b")[0] is None
    with pytest.raises(UserError, match="5 steps in a row of one task"):
        guard.check(29, "a", feed(guard, 28, 50.0)[0])


def test_a_level_that_stays_is_accepted_and_learned_anew():
    """After three spikes in a row; the step behind them is under way with the old limits."""
    guard = steady(20, patience=3, max_skipped=50)
    told = []
    for index in range(20, 24):
        cause, _ = feed(guard, index, 49.0 + 2 * (index % 2))
        told.append(guard.check(index + 1, "a", cause))
    assert told[:2] == told[3:] * 2 == [None] * 2
    assert "the last 3 steps of one task up to step 23 were spikes" in told[2] and "from step 25 on" in told[2]
    for index in range(24, 29):
        assert feed(guard, index, 49.0 + 2 * (index % 2))[0] is None
    limits = guard.limits(29, "a")  # half a window, of the new level alone
    np.testing.assert_allclose(limits[0], 50 + 6 * 1.0)
    assert feed(guard, 29, 60.0)[0] == "loss 60 above 56" and guard.skipped == 5


def test_spikes_that_end_leave_the_limits_alone():
    guard = steady(20, patience=3, max_skipped=50)
    for index in range(20, 40):
        cause, limits = feed(guard, index, 2.5 if index % 3 == 2 else 50.0)
        assert (cause is None) == (index % 3 == 2) and limits[0] < 6
        assert cause is None or guard.check(index + 1, "a", cause) is None


def test_what_is_not_finite_is_no_level_to_accept():
    guard = steady(20, patience=3, max_skipped=9)
    for index, loss in enumerate((50.0, np.nan, 50.0, np.inf, np.nan), 20):
        cause, limits = feed(guard, index, loss)
        assert guard.check(index + 1, "a", cause) is None and limits[0] < 6
    assert guard.check(26, "a", feed(guard, 25, 50.0)[0])  # the third that was finite
    assert guard.check(27, "a", feed(guard, 26, np.nan)[0]) is None  # told once
    assert np.isinf(guard.limits(27, "a")).all() and guard.check(28, "a", feed(guard, 27, np.nan)[0]) is None
    with pytest.raises(UserError, match=r"9 steps in a row up to step 29 were skipped, the last for a number that is"):
        guard.check(29, "a", feed(guard, 28, np.nan)[0])


def test_each_task_has_a_level_of_its_own():
    guard = steady(20, patience=2, max_skipped=50)
    for index in range(20, 40):
        feed(guard, index, 2.0 + index % 2, task="b")
    for index in range(40, 43):
        feed(guard, index, 50.0)
    assert np.isinf(guard.limits(43, "a")).all() and np.isfinite(guard.limits(43, "b")).all()


def test_what_is_saved_goes_on_as_if_nothing_had_happened():
    draw = np.random.default_rng(0)
    losses = draw.normal(3, 1, 60) + 20 * (draw.random(60) < 0.1)
    losses[40:50] += 30  # for good, as far as the guard sees
    whole, parts = (Guard(8, 4.0, 3, 50) for _ in range(2))
    seen = [feed(whole, index, loss, task=index % 2) for index, loss in enumerate(losses)]
    again = []
    for index, loss in enumerate(losses):
        fresh = Guard(8, 4.0, 3, 50)
        fresh.load(parts.dump())
        parts = fresh
        again.append(feed(parts, index, loss, task=index % 2))
    assert [cause for cause, _ in seen] == [cause for cause, _ in again] and whole.skipped == parts.skipped > 0
    assert all(cause is None for cause, _ in seen[48:50]) and seen[44][0] and seen[45][0]
    np.testing.assert_array_equal([limits for _, limits in seen], [limits for _, limits in again])
