import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiermusic.errors import UserError
from hiermusic.tokens.scales import check_scales, schedule

PAPER = {
    "quadratic": (1, 2, 4, 6, 9, 12, 16, 20, 25, 31, 37, 43, 50, 58, 66, 75),
    "linear": (1, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75),
    "logarithmic": (1, 2, 3, 4, 5, 6, 7, 8, 10, 13, 17, 23, 31, 42, 56, 75),
}


@pytest.mark.parametrize(("kind", "total"), [("quadratic", 455), ("linear", 601), ("logarithmic", 303)])
def test_the_papers_schedules(kind, total):
    assert schedule(kind, 75, 16) == PAPER[kind]
    assert sum(schedule(kind, 75, 16)) == total


@settings(deadline=None)
@given(st.sampled_from(sorted(PAPER)), st.data())
def test_any_window_and_count_give_increasing_scales_up_to_the_window(kind, data):
    window = data.draw(st.integers(1, 2000))
    count = data.draw(st.integers(1, min(window, 200)))
    scales = schedule(kind, window, count)
    assert len(scales) == count and scales[-1] == window
    assert scales[0] == (1 if count > 1 else window)
    assert np.all(np.diff(scales) >= 1)
    check_scales(scales)
    check_scales([5 * n for n in scales])


def test_as_many_scales_as_frames_leave_no_choice():
    assert all(schedule(kind, 9, 9) == tuple(range(1, 10)) for kind in PAPER)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("cubic", 75, 16), "'cubic' is unknown"),
        (("linear", 10, 11), "11 scales do not fit a window of 10 frames"),
        (("linear", 10, 0), "0 scales do not fit"),
    ],
)
def test_bad_schedules_are_named(arguments, words):
    with pytest.raises(UserError, match=words) as caught:
        schedule(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scales", [(), (0, 3), (1, 3, 3), (3, 1), (1, 2.5, 4)])
def test_scales_must_increase(scales):
    with pytest.raises(UserError, match="increase"):
        check_scales(scales)
