"""Every pattern over random hierarchies: nothing lost, nothing twice, nothing seen too early."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiermusic.errors import UserError
from hiermusic.tokens import pattern
from hiermusic.tokens.visibility import Visibility

any_lengths = st.lists(st.integers(1, 9), min_size=1, max_size=5)
one_length = st.tuples(st.integers(1, 5), st.integers(1, 9)).map(lambda kt: [kt[1]] * kt[0])
positive_rates = st.fractions(min_value=Fraction(1, 9), max_value=50, max_denominator=512)


@st.composite
def flattened(draw):
    lengths = draw(any_lengths)
    rates = draw(st.none() | st.lists(positive_rates, min_size=len(lengths), max_size=len(lengths)))
    return pattern.flatten(lengths, rates), sum(lengths)


@st.composite
def delayed(draw):
    lengths = draw(one_length)
    delays = draw(st.lists(st.integers(0, 12), min_size=len(lengths), max_size=len(lengths)))
    delays[draw(st.integers(0, len(lengths) - 1))] = 0
    return pattern.delay(lengths, delays), lengths[0] + max(delays)


@st.composite
def by_level(draw, make):
    lengths = draw(any_lengths)
    first = draw(st.integers(0, len(lengths) - 1))
    return make(lengths, first), len(lengths) - first


@st.composite
def behind_given_levels(draw):
    prefix = pattern.flatten(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    layout, passes = draw(flattened() | delayed())
    return pattern.prefixed(prefix, layout), passes + prefix.positions


@st.composite
def marked_behind_given(draw):
    lengths = draw(any_lengths)
    known = draw(st.integers(0, len(lengths) - 1))
    return pattern.level_major(lengths, separate=True, given=known), sum(lengths) + len(lengths) - 1


layouts = {  # pattern -> (layout, number of passes it must take)
    "flatten": flattened(),
    "delay": delayed(),
    "default delay": one_length.map(lambda ls: (pattern.delay(ls), ls[0] + len(ls) - 1)),
    "parallel": one_length.map(lambda ls: (pattern.parallel(ls), ls[0])),
    "level major": any_lengths.map(lambda ls: (pattern.level_major(ls), sum(ls))),
    "level major with marks": any_lengths.map(lambda ls: (pattern.level_major(ls, True), sum(ls) + len(ls) - 1)),
    "level major behind given levels": marked_behind_given(),
    "layer wise": by_level(pattern.layer_wise),
    "next scale": by_level(pattern.next_scale),
    "behind given levels": behind_given_levels(),
}


def check(layout, passes):
    codes = [np.random.default_rng(k).integers(0, 1000, n) for k, n in enumerate(layout.lengths)]
    reads_SK, targets_SK = layout.build(codes)
    assert reads_SK.dtype == targets_SK.dtype == np.int32
    for k, (before, after) in enumerate(zip(codes, layout.revert(targets_SK), strict=True)):
        np.testing.assert_array_equal(after, before if k >= layout.given else -np.ones_like(before))

    decoded = [np.full(n, -1) for n in layout.lengths]  # pass in which each token becomes known; -1 = given
    for k, length in enumerate(layout.lengths):
        due_S = layout.predicts_SK[:, k] >= 0
        predicted = np.sort(layout.predicts_SK[due_S, k])
        np.testing.assert_array_equal(predicted, np.arange(length if k >= layout.given else 0))
        decoded[k][layout.predicts_SK[due_S, k]] = layout.pass_S[due_S]

    everything = np.arange(layout.positions)
    sees_SS = layout.sees(everything[:, None], everything[None, :])
    assert sees_SS.diagonal().all()
    latest_S = np.max([np.where(t_S >= 0, decoded[k][t_S], -1) for k, t_S in enumerate(layout.reads_SK.T)], axis=0)
    assert (np.where(sees_SS, latest_S[None, :], -1) < layout.pass_S[:, None]).all()
    # A position's state is computed in its own pass, so it cannot lean on positions of later ones.
    assert (np.where(sees_SS, layout.pass_S[None, :], -1) <= layout.pass_S[:, None]).all()
    assert layout.passes == passes

    one_pass = everything[layout.pass_S == layout.pass_S[0]] if layout.isolated else everything
    same_shape = np.resize(one_pass, 60)  # for every layout, so that few programs are compiled
    seen = np.asarray(layout.visibility.mask(same_shape, same_shape))[: len(one_pass), : len(one_pass)]
    np.testing.assert_array_equal(seen, sees_SS[np.ix_(one_pass, one_pass)])


@pytest.mark.parametrize("name", layouts)
def test_patterns_are_bijective_and_causal(name):
    settings(max_examples=60, deadline=None)(given(layouts[name])(lambda made: check(*made)))()


def test_a_layout_that_peeks_is_caught():
    honest = pattern.flatten((3, 3))
    peeking = pattern.Layout(honest.lengths, honest.predicts_SK, honest.predicts_SK, honest.group_S, honest.pass_S)
    with pytest.raises(AssertionError):
        check(peeking, 6)


def test_flatten_is_interleaved_by_frame():
    layout = pattern.flatten((4, 4))
    for s in range(8):
        assert layout.predicts_SK[s, s % 2] == s // 2 and layout.predicts_SK[s, 1 - s % 2] == -1
    assert (layout.reads_SK[0] == -1).all()
    np.testing.assert_array_equal(layout.reads_SK[1:], layout.predicts_SK[:-1])
    assert layout.visibility == Visibility.causal()


def test_flatten_of_unequal_rates_goes_by_time():
    layout = pattern.flatten((2, 4))
    order = [(k, t) for row in layout.predicts_SK for k, t in enumerate(row) if t >= 0]
    assert order == [(0, 0), (1, 0), (1, 1), (0, 1), (1, 2), (1, 3)]
    by_rate = pattern.flatten((2, 3), (Fraction(44100, 2048), Fraction(44100, 1024)))
    order = [(k, t) for row in by_rate.predicts_SK for k, t in enumerate(row) if t >= 0]
    assert order == [(0, 0), (1, 0), (1, 1), (0, 1), (1, 2)]


def test_delay_reads_the_position_before():
    layout = pattern.delay((3, 3))
    np.testing.assert_array_equal(layout.predicts_SK, [[0, -1], [1, 0], [2, 1], [-1, 2]])
    np.testing.assert_array_equal(layout.reads_SK, [[-1, -1], [0, -1], [1, 0], [2, 1]])


def test_a_level_begins_at_its_mark():
    """`BOS a b MARK c d e f`: what is read, and below it what is predicted there, of two levels of two and four."""
    layout = pattern.level_major((2, 4), separate=True)
    reads, predicts = layout.build([np.array([10, 11]), np.array([20, 21, 22, 23])])
    assert reads.max(1).tolist() == [-1, 10, 11, -1, 20, 21, 22] and layout.marks == ((3, 1),)
    assert predicts.max(1).tolist() == [10, 11, -1, 20, 21, 22, 23]
    assert layout.marked([7, 8]).tolist() == [-1, -1, -1, 8, -1, -1, -1]
    behind = pattern.level_major((2, 4), separate=True, given=1)
    np.testing.assert_array_equal(behind.reads_SK, layout.reads_SK)
    assert behind.predicts_SK.max(1).tolist() == [-1, -1, -1, 0, 1, 2, 3] and behind.given == 1 and behind.begin == 0
    three = pattern.level_major((1, 1, 1), separate=True)
    assert three.marks == ((2, 1), (4, 2)) and three.predicts_SK.max(1).tolist() == [0, -1, 0, -1, 0]
    assert pattern.prefixed(pattern.flatten((2, 1)), three).marks == ((5, 3), (7, 4))


def test_the_first_levels_alone_take_the_first_positions():
    layout = pattern.level_major((2, 4, 8), separate=True)
    for levels, positions in ((1, 2), (2, 7), (3, 16)):
        part = layout.first(levels)
        assert part.positions == positions and part.lengths == layout.lengths and len(part.marks) == levels - 1
        np.testing.assert_array_equal(part.reads_SK, layout.reads_SK[:positions])
        assert [(part.predicts_SK[:, k] >= 0).sum() for k in range(3)] == [2, 4 * (levels > 1), 8 * (levels > 2)]
    flat = pattern.level_major((2, 4))
    assert flat.first(1).positions == 2 and flat.first(1).reads_SK[:, 0].tolist() == [-1, 0]


def test_next_scale_sees_coarser_levels_and_what_stands_before_it():
    layout = pattern.next_scale((1, 2, 4))
    assert layout.level_S.tolist() == [0, 1, 1, 2, 2, 2, 2] and layout.visibility == Visibility.block_causal((1, 2, 4))
    assert layout.behind(2) == Visibility.block_causal((2, 1, 2, 4)) and layout.behind(0) == layout.visibility
    assert pattern.next_scale((1, 1)).behind(2) == Visibility.block_causal((2, 1, 1))
    np.testing.assert_array_equal(layout.reads_SK[3:], [[0, 0, -1], [0, 0, -1], [0, 1, -1], [0, 1, -1]])


def test_given_levels_are_read_before_what_is_predicted():
    layout = pattern.prefixed(pattern.flatten((2, 1)), pattern.delay((2, 2)))
    np.testing.assert_array_equal(layout.reads_SK[:3, :2], [[0, -1], [-1, 0], [1, -1]])
    assert (layout.predicts_SK[:3] == -1).all() and (layout.reads_SK[3] == -1).all() and layout.begin == 3
    np.testing.assert_array_equal(layout.predicts_SK[3:, 2:], [[0, -1], [1, 0], [-1, 1]])
    two = pattern.Pattern("flatten", (1, 1, 1, 1), 3, (1,)).layout(2)  # a stream and two levels of another in front
    order = [(k, int(t)) for row in two.reads_SK[:6] for k, t in enumerate(row) if t >= 0]
    assert order == [(0, 0), (0, 1), (1, 0), (2, 0), (1, 1), (2, 1)] and two.begin == 6 and two.given == 3


def test_a_layer_pass_is_that_pass_of_layer_wise():
    whole, one = pattern.layer_wise((3, 3, 3, 3), given=1), pattern.layer_pass((3, 3, 3, 3), level=2)
    of_pass = whole.pass_S == 1
    np.testing.assert_array_equal(one.reads_SK, whole.reads_SK[of_pass])
    np.testing.assert_array_equal(one.predicts_SK, whole.predicts_SK[of_pass])
    np.testing.assert_array_equal(one.reads_SK, [[t, t, -1, -1] for t in range(3)])
    assert one.visibility == whole.visibility == Visibility.full()
    assert one.positions == 3 and one.passes == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: pattern.delay((3, 4)),
        lambda: pattern.parallel((3, 4)),
        lambda: pattern.delay((3, 3), (1, 2)),
        lambda: pattern.delay((3, 3), (0,)),
        lambda: pattern.flatten(()),
        lambda: pattern.level_major((2, 0)),
        lambda: pattern.level_major((2, 2), given=2),
        lambda: pattern.layer_wise((3, 3), given=2),
        lambda: pattern.layer_pass((3, 3), level=2),
    ],
)
def test_impossible_patterns_are_refused_in_a_line(make):
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)


def test_build_refuses_codes_of_another_length():
    with pytest.raises(ValueError, match="do not fit"):
        pattern.flatten((3, 3)).build([np.zeros(3), np.zeros(4)])


COARSE = pattern.Pattern("flatten", (2, 2, 3, 3, 3, 3), 2, (1, 1), units=(2, 2, 3))  # HAFM's, at 50 and 75 Hz


def test_streams_are_cut_between_packets_where_their_own_tokens_end():
    """As HAFM has it: int(T * 75 / 50) frames of codes beside T tokens of the vocal, 3,990 positions of ten seconds."""
    for tokens in range(1, 600):
        lengths = COARSE.lengths(Fraction(tokens, 2))
        assert lengths == (tokens, tokens, *[int(tokens * 75 / 50)] * 4)
        assert COARSE.packets(lengths) == Fraction(tokens, 2) and COARSE.packets(lengths[:1]) == Fraction(tokens, 2)
    assert COARSE.positions(Fraction(499, 2)) == 3990 == COARSE.layout(Fraction(499, 2)).positions
    assert [COARSE.most(n) for n in (3989, 3990, 3999, 4000, 3)] == [249, Fraction(499, 2), Fraction(499, 2), 250, 0]
    assert COARSE.packets((499, 500, 748, 748, 748, 748)) == Fraction(499, 2)
    assert COARSE.packets((499, 499, 747, 748, 748, 748)) == 249
    passes = pattern.Pattern(
        "layer_wise", (2, 1), 1, (1,), units=(2, 1)
    )  # a position a packet, whose first half has none
    assert [passes.most(n) for n in (0, 1, 9)] == [Fraction(1, 2), Fraction(3, 2), Fraction(19, 2)]
    windows = pattern.Pattern("flatten", (4, 4, 8), 1, (1,), units=(4, 1))  # beside packets of four and eight tokens
    assert windows.lengths(Fraction(7, 4)) == (7, 4, 8) and windows.packets((7, 7, 15)) == Fraction(7, 4)


def test_places_are_moments_of_segments():
    """HuBERT's frame i at tick 3 i, EnCodec's frame j at tick 2 j of 150 a second, whatever is read there."""
    assert COARSE.segments == (0, 1, 2, 2, 2, 2) and [len(part) for part in COARSE.parts] == [1, 1, 4]
    places = COARSE.places(COARSE.layout(Fraction(3, 2)), (3, 3, 2, 2, 2, 2))
    segment, tick = np.divmod(places, pattern.SEGMENT)
    assert segment.tolist() == [0] * 3 + [1] * 3 + [2] * 16
    assert tick.tolist() == [0, 3, 6, 0, 3, 6, *np.repeat([0, 2, 4, 6], 4)]
    fine = pattern.Pattern("flatten", (1, 1, 1, 1), 2)
    places = fine.places(fine.layout(2), (2, 2, 2, 2))
    assert [divmod(int(place), pattern.SEGMENT) for place in places] == [
        *[(0, 0), (0, 0), (0, 2), (0, 2)], *[(1, 0), (1, 0), (1, 2), (1, 2)]]  # fmt: skip


PACKETS = {"frames": (1, 1, 1), "windows": (1, 2, 4), "one level": (2,)}


@pytest.mark.parametrize("slots", PACKETS.values(), ids=PACKETS)
@pytest.mark.parametrize("name", [*pattern.STEPWISE, *pattern.BY_LEVEL])
def test_what_a_setting_names_knows_its_positions(name, slots):
    for known in range(len(slots)):
        if name in ("delay", "parallel") and len(set(slots[known:])) > 1:
            with pytest.raises(UserError, match=f"the {name} pattern needs levels of one length, not .*: flatten, "):
                pattern.Pattern(name, slots, known)
            continue
        order = pattern.Pattern(name, slots, known)
        for packets in (1, 2, 5):
            layout = order.layout(packets)
            assert layout.lengths == tuple(packets * count for count in slots) and layout.given == known
            rows = layout.positions
            if order.isolated:
                rows = max(pattern.layer_pass(layout.lengths, k).positions for k in range(known, len(slots)))
            assert order.positions(packets) == rows and order.isolated == layout.isolated
            assert order.stepwise == (layout.begin is not None) and order.ends == (layout.end is not None)
            assert order.most(rows) == packets and order.most(rows - 1) == packets - 1
        assert order.most(0) == 0


def test_marks_take_a_position_each_and_fill_the_papers_context():
    """`BOS 2000 SEP 4000 SEP 8000 EOS`, of which the last is not read: 14,004 positions of 2,000 packets."""
    order = pattern.Pattern("level_major", (1, 2, 4), separate=True)
    assert order.positions(2000) == 14_002 and order.most(14_004) == 2000 and order.most(14_001) == 1999
    for known in (0, 2):
        part = pattern.Pattern("level_major", (1, 2, 4), known, separate=True)
        for packets in (1, 3):
            assert part.layout(packets).positions == part.positions(packets) == 7 * packets + 2
            assert part.layout(packets).given == known
    with pytest.raises(UserError, match=r"model\.separators stand between levels: set it to False for the flatten"):
        pattern.Pattern("flatten", (1, 2), separate=True)


@pytest.mark.parametrize("make", [pattern.flatten, pattern.delay, pattern.parallel])
def test_music_ends_where_a_longer_layout_has_its_next_token(make):
    for lengths in ((1,), (4, 4, 4)):
        longer = make([n + 1 for n in lengths])
        (due,) = np.flatnonzero(longer.predicts_SK[:, 0] == lengths[0])
        assert make(lengths).end == due
    for layout in (pattern.level_major((3, 3)), pattern.flatten((2, 4)), pattern.next_scale((3, 3))):
        assert layout.end is None


def test_an_order_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"model\.pattern is 'later': choose flatten, delay, "):
        pattern.Pattern("later", (1, 1))
    with pytest.raises(UserError, match=r"model\.given=2 leaves nothing to predict of 2 levels"):
        pattern.Pattern("flatten", (1, 1), 2)
