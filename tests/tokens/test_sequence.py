import numpy as np
import pytest

from hiermusic.tokens import pattern
from hiermusic.tokens.sequence import START, pack, room, stack, window

CODES = [np.array([3, 5]), np.array([4, 6])]
NONE = [-1, -1]


def test_a_causal_row_by_hand():
    """The begin marker is where the first token is predicted; the last token is read to predict the end."""
    row = pack([7, 8], pattern.flatten((2, 2)), CODES, 7, end=9)
    assert row["text"].tolist() == [7, 8, -1, -1, -1, -1, -1]
    assert row["reads"].tolist() == [NONE, NONE, [3, -1], [-1, 4], [5, -1], [-1, 6], NONE]
    assert row["targets"].tolist() == [NONE, [3, -1], [-1, 4], [5, -1], [-1, 6], NONE, NONE]
    assert row["text_targets"].tolist() == [-1, -1, -1, -1, -1, 9, -1]
    assert row["valid"].tolist() == [True] * 6 + [False]
    assert {name: array.dtype for name, array in row.items()} == dict.fromkeys(row, np.int32) | {"valid": bool}


def test_a_row_of_delayed_levels_ends_where_its_first_level_does():
    """As decoding may end there: the finer levels of the last frames are predicted after the end."""
    row = pack([7, 8], pattern.delay((2, 2, 2)), [*CODES, np.array([0, 2])], 6, end=9)
    none = [-1] * 3
    assert row["targets"].tolist() == [none, [3, -1, -1], [5, 4, -1], [-1, 6, 0], [-1, -1, 2], none]
    assert row["reads"].tolist() == [none, none, [3, -1, -1], [5, 4, -1], [-1, 6, 0], none]
    assert row["text_targets"].tolist() == [-1, -1, -1, 9, -1, -1] and row["valid"].sum() == 5
    row = pack([8], pattern.parallel((2, 2)), CODES, 4, end=9)
    assert row["reads"].tolist() == [NONE, [3, 4], [5, 6], NONE] and row["text_targets"].tolist() == [-1, -1, 9, -1]
    with pytest.raises(ValueError, match="cannot end early"):
        pack([8], pattern.level_major((2, 2)), CODES, 9, end=9)


def test_a_row_behind_its_prompt_by_hand():
    row = pack([7, 8], pattern.layer_pass((2, 2), 1), CODES, 6)
    assert row["text"].tolist() == [7, 8, -1, -1, -1, -1]
    assert row["reads"].tolist() == [NONE, NONE, [3, -1], [5, -1], NONE, NONE]
    assert row["targets"].tolist() == [NONE, NONE, [-1, 4], [-1, 6], NONE, NONE]
    assert (row["text_targets"] == -1).all() and row["valid"].tolist() == [True] * 4 + [False] * 2


def test_a_row_of_one_level_says_which_and_holds_its_targets_alone():
    whole, alone = (pack([7, 8], pattern.layer_pass((2, 2), 1), CODES, 6, level=level) for level in (None, 1))
    assert alone["level"] == 1 and alone["targets"].tolist() == whole["targets"][:, 1].tolist() == [
        -1,
        -1,
        4,
        6,
        -1,
        -1,
    ]
    for name in ("text", "reads", "text_targets", "valid"):
        np.testing.assert_array_equal(alone[name], whole[name])


@pytest.mark.parametrize(("most", "kind"), [(1 << 15, np.int16), ((1 << 15) + 1, np.int32)])
def test_codes_are_read_in_16_bits_where_these_hold_them_all(most, kind):
    codes_T = np.array([most - 1, 0], np.uint16)
    row = pack([7], pattern.flatten((2,)), [codes_T], 3, most=most)
    assert row["reads"].dtype == kind and row["reads"][:, 0].tolist() == [-1, most - 1, -1]
    assert row["targets"][:, 0].tolist() == [most - 1, 0, -1]


def test_where_there_is_no_code_to_read_the_begin_marker_is_read():
    """But not where there is none to predict either: behind the end of a track that is shorter than its window."""
    row = pack([7, 8], pattern.next_scale((2, 2)), [np.array([3, -1]), np.array([4, -1])], 6)
    assert row["text"].tolist() == [7, 8, 8, -1, -1, -1]
    assert row["reads"].tolist() == [NONE, NONE, NONE, NONE, [3, -1], NONE]
    assert row["targets"].tolist() == [NONE, NONE, [3, -1], NONE, [-1, 4], NONE]


def test_given_levels_stand_between_the_prompt_and_its_last_id():
    layout = pattern.prefixed(pattern.flatten((2,)), pattern.flatten((2,)))
    row = pack([7, 8], layout, CODES, 6)
    assert row["text"].tolist() == [7, -1, -1, 8, -1, -1]
    assert row["reads"].tolist() == [NONE, [3, -1], [5, -1], NONE, [-1, 4], NONE]
    assert row["targets"].tolist() == [NONE, NONE, NONE, [-1, 4], [-1, 6], NONE]


def test_places_stand_behind_the_prompt_which_begins_the_last_segment():
    layout = pattern.prefixed(pattern.flatten((2,)), pattern.flatten((2,)))
    places = np.array([5, 8, pattern.SEGMENT + 4, pattern.SEGMENT + 6])
    row = pack([7, 8], layout, CODES, 6, places=places)
    assert row["positions"][:5].tolist() == [pattern.SEGMENT, *1 + places]
    assert row["positions"].dtype == np.int32 and "positions" not in pack([7, 8], layout, CODES, 6)


def test_a_level_begins_at_its_marker():
    row = pack([7, 8], pattern.level_major((2, 2), separate=True), CODES, 8, markers=[0, 9])
    assert row["text"].tolist() == [7, 8, -1, -1, 9, -1, -1, -1]
    assert row["reads"].tolist() == [NONE, NONE, [3, -1], [5, -1], NONE, [-1, 4], NONE, NONE]
    assert row["targets"].tolist() == [NONE, [3, -1], [5, -1], NONE, [-1, 4], [-1, 6], NONE, NONE]
    assert row["valid"].sum() == 6 and (row["text_targets"] == -1).all()


def test_a_window_of_latents_begins_at_level_0_behind_its_context():
    text_S, levels_S = window(pattern.next_scale((1, 2)), 2)
    assert text_S.tolist() == [-1, -1, START, -1, -1] and levels_S.tolist() == [2, 2, 0, 1, 1]
    assert text_S.dtype == levels_S.dtype == np.int32


def test_every_position_reads_what_the_one_before_it_predicted():
    codes = [np.arange(4) + 10 * k for k in range(3)]
    row = pack([1], pattern.flatten((4, 4, 4)), codes, 14, end=0)
    np.testing.assert_array_equal(row["reads"][1:13], row["targets"][:12])


@pytest.mark.parametrize("stepwise", [True, False])
@pytest.mark.parametrize("end", [None, 9])
def test_as_many_positions_fit_as_there_is_room_for(stepwise, end):
    if end and not stepwise:
        return
    fits = room([7, 8, 9], 8, stepwise=stepwise, end=end is not None)
    make = pattern.flatten if stepwise else pattern.layer_wise
    assert pack([7, 8, 9], make((fits,)), [np.zeros(fits, int)], 8, end=end)["valid"].all()
    with pytest.raises(ValueError, match="do not fit into 8"):
        pack([7, 8, 9], make((fits + 1,)), [np.zeros(fits + 1, int)], 8, end=end)


def test_rows_are_stacked_name_by_name():
    one, other = (pack([first], pattern.flatten((1, 1)), [[3], [4]], 4) for first in (1, 2))
    batch = stack([one, other])
    assert batch["text"][:, 0].tolist() == [1, 2] and batch["reads"].shape == (2, 4, 2)
    assert set(batch) == {"text", "reads", "targets", "text_targets", "valid"}
