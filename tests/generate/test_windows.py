"""Windows that follow a lead: lengths to the frame, what is handed on, and no trace of where they meet."""

from typing import NamedTuple

import numpy as np
import pytest

from hiermusic.errors import UserError
from hiermusic.generate import windows
from hiermusic.tokens.facts import TokenFacts


class Made(NamedTuple):
    semantic_T: np.ndarray
    codes_TK: np.ndarray


class Player:
    """Goes on as it began: semantic tokens are the lead plus one, codes count on from the last one that is given."""

    vocal = TokenFacts(16000, 320, "residual", 1, 500, 64)
    codes = TokenFacts(24000, 320, "residual", 8, 1024, 64)

    def __init__(self, window: int = 40):
        self.window, self.calls = window, []

    def frames(self, tokens: int) -> int:
        return int(tokens * 75 / 50)

    def accompany(self, vocals, *, seeds, given, given_semantic, **sampling):
        self.calls.append((seeds, given, given_semantic, sampling))
        return [self._one(*each) for each in zip(vocals, given, given_semantic, strict=True)]

    def _one(self, vocal_T, known_TK, known_T):
        assert len(vocal_T) <= self.window
        codes_T = np.arange(self.frames(len(vocal_T)))
        semantic_T = vocal_T + 1
        if known_TK is not None:
            assert 0 < len(known_TK) < len(codes_T)
            codes_T = codes_T + known_TK[0, 0]
            np.testing.assert_array_equal(known_TK[:, 0], codes_T[: len(known_TK)])
            np.testing.assert_array_equal(known_T, semantic_T[: len(known_T)])
        return Made(semantic_T, np.repeat(codes_T[:, None], 8, axis=1))


@pytest.mark.parametrize("overlap", [1, 7, 20, 38])
@pytest.mark.parametrize("total", [1, 2, 39, 40, 41, 42, 79, 80, 97, 301])
def test_any_length_is_covered_and_what_meets_is_one(total, overlap):
    player, vocal_T = Player(), np.arange(100, 100 + total)
    (made,) = windows.play(player, [vocal_T], seeds=[3], overlap=overlap)
    np.testing.assert_array_equal(made.semantic_T, vocal_T + 1)
    assert made.codes_TK.shape == (int(total * 1.5), 8)
    np.testing.assert_array_equal(made.codes_TK[:, 0], np.arange(int(total * 1.5)))
    assert len(made.seams) == len(player.calls) - 1 and list(made.seams) == sorted(set(made.seams))
    assert all(0 < seam < len(made.codes_TK) for seam in made.seams)


def test_ten_seconds_are_499_tokens_and_748_frames():
    player = Player(window=499)
    (made,) = windows.play(player, [np.zeros(499, int)], seeds=[0], overlap=100)
    assert made.codes_TK.shape == (748, 8) and made.seams == () and player.calls[0][1] == [None]


@pytest.mark.parametrize(
    ("total", "wanted"),
    [
        (40, [(0, 0, 40)]),
        (60, [(0, 0, 40), (20, 40, 60)]),
        (61, [(0, 0, 40), (22, 40, 61)]),  # at an even token, where a frame begins
        (101, [(0, 0, 40), (30, 40, 70), (60, 70, 100), (62, 100, 101)]),
    ],
)
def test_windows_are_as_long_as_they_can_be(total, wanted):
    assert windows.spans(total, 40, 10, 2) == [windows.Window(*one) for one in wanted]


def test_without_overlap_nothing_is_handed_on():
    player = Player()
    (made,) = windows.play(player, [np.arange(80)], seeds=[0], overlap=0)
    assert [given for _, given, _, _ in player.calls] == [[None], [None]]
    np.testing.assert_array_equal(made.codes_TK[:, 0], [*range(60), *range(60)])


def test_windows_that_stand_still_are_refused():
    assert windows.spans(41, 40, 38, 2)[1].start == 2
    with pytest.raises(UserError, match="windows of 40 tokens that share 39 never end: let them share fewer"):
        windows.spans(41, 40, 39, 2)


def test_a_song_is_the_same_in_any_batch():
    """Its windows' seeds follow from its own and no two are alike; what is sampled by is passed on."""
    vocals = [np.arange(length) for length in (90, 30, 61)]
    how = {"seeds": [5, 6, 7], "overlap": 10, "temperature": 0.5}
    alone, together, told = Player(), Player(), []
    one = windows.play(alone, vocals, **how)
    many = windows.play(together, vocals, rows=8, progress=lambda *done: told.append(done), **how)
    for left, right in zip(one, many, strict=True):
        np.testing.assert_array_equal(left.codes_TK, right.codes_TK)
    assert [len(seeds) for seeds, *_ in together.calls] == [3, 2, 1] and told == [(3, 6), (5, 6), (6, 6)]
    seeds = [[seed for call in player.calls for seed in call[0]] for player in (alone, together)]
    assert sorted(seeds[0]) == sorted(seeds[1]) and len(set(seeds[0])) == 6 and together.calls[0][0] == [5, 6, 7]
    assert all(sampling == {"temperature": 0.5} for *_, sampling in together.calls)
