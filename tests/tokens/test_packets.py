"""Codes in packets, level after level, and as streams of each level: one is the other."""

import numpy as np
import pytest

from hiermusic.tokens import packets


@pytest.mark.parametrize(
    ("slots", "widths"),
    [((1, 1, 1), [3]), ((1, 2, 2, 4), [1, 2, 1]), ((2, 1, 2), [1, 1, 1]), ((3,), [1])],
)
def test_levels_of_one_rate_that_stand_together_are_one_stream(slots, widths):
    codes_PS = np.arange(5 * sum(slots)).reshape(5, -1)
    streams = packets.to_streams(codes_PS, slots)
    groups = streams if isinstance(streams, tuple) else (streams,)
    assert isinstance(streams, tuple) == (len(widths) > 1) and [group.shape[1] for group in groups] == widths
    begins = np.cumsum((0, *slots))
    for codes_T, begin, n in zip(packets.levels_of(streams), begins, slots, strict=False):
        np.testing.assert_array_equal(codes_T, codes_PS[:, begin : begin + n].reshape(-1))
    np.testing.assert_array_equal(packets.to_packets(streams, slots), codes_PS)
    again = packets.like(streams, packets.levels_of(streams))
    for one, other in zip(groups, again if isinstance(again, tuple) else (again,), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_first_levels_alone_and_tokens_that_fill_no_packet():
    codes_PS = np.arange(15).reshape(5, 3)
    coarse, fine = packets.to_streams(codes_PS, (1, 2, 4))
    np.testing.assert_array_equal(packets.to_packets((coarse, fine[:-1]), (1, 2, 4)), codes_PS[:4])
    with pytest.raises(ValueError, match="packets of 2 codes hold no whole number of levels"):
        packets.to_streams(codes_PS[:, :2], (1, 2, 4))
