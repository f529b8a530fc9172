import numpy as np
import pytest

from hiermusic.tokens import pattern
from hiermusic.tokens.sequence import pack, room, stack

READS = np.array([[-1, -1], [3, -1], [-1, 4]], np.int32)
TARGETS = np.array([[3, -1], [-1, 4], [5, -1]], np.int32)
NONE = [-1, -1]


def test_a_causal_row_by_hand():
    """The begin marker is where the first token is predicted; the last token is read to predict the end."""
    row = pack([7, 8], READS, TARGETS, 6, shared=True, end=9)
    assert row["text"].tolist() == [7, 8, -1, -1, -1, -1]
    assert row["reads"].tolist() == [NONE, NONE, [3, -1], [-1, 4], [5, -1], NONE]
    assert row["targets"].tolist() == [NONE, [3, -1], [-1, 4], [5, -1], NONE, NONE]
    assert row["text_targets"].tolist() == [-1, -1, -1, -1, 9, -1]
    assert row["valid"].tolist() == [True] * 5 + [False]
    assert {name: array.dtype for name, array in row.items()} == dict.fromkeys(row, np.int32) | {"valid": bool}


def test_a_row_behind_its_prompt_by_hand():
    row = pack([7, 8], READS, TARGETS, 7, shared=False)
    assert row["text"].tolist() == [7, 8, -1, -1, -1, -1, -1]
    assert row["reads"].tolist() == [NONE, NONE, *READS.tolist(), NONE, NONE]
    assert row["targets"].tolist() == [NONE, NONE, *TARGETS.tolist(), NONE, NONE]
    assert (row["text_targets"] == -1).all() and row["valid"].tolist() == [True] * 5 + [False] * 2


def test_every_position_reads_what_the_one_before_it_predicted():
    codes = [np.arange(4) + 10 * k for k in range(3)]
    row = pack([1], *pattern.flatten((4, 4, 4)).build(codes), 14, shared=True, end=0)
    np.testing.assert_array_equal(row["reads"][1:13], row["targets"][:12])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("end", [None, 9])
def test_as_many_positions_fit_as_there_is_room_for(shared, end):
    fits = room([7, 8, 9], 8, shared=shared, end=end is not None)
    codes_SK = np.zeros((fits, 2), np.int32)
    assert pack([7, 8, 9], codes_SK, codes_SK, 8, shared=shared, end=end)["valid"].all()
    more_SK = np.zeros((fits + 1, 2), np.int32)
    with pytest.raises(ValueError, match="do not fit into 8"):
        pack([7, 8, 9], more_SK, more_SK, 8, shared=shared, end=end)


def test_rows_are_stacked_name_by_name():
    one, other = (pack([first], READS, TARGETS, 4, shared=True) for first in (1, 2))
    batch = stack([one, other])
    assert batch["text"][:, 0].tolist() == [1, 2] and batch["reads"].shape == (2, 4, 2)
    assert set(batch) == {"text", "reads", "targets", "text_targets", "valid"}
