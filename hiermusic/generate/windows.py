"""Sounds that follow another, longer than a model hears at once: windows that overlap, each given what the last made.

Where two windows overlap the codes are the same, those of the earlier one; they are joined as codes, and a codec
decodes them as one. So nothing is cross-faded, and a seam is heard only where the model itself goes on badly.
"""

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from itertools import count
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Int

from hiermusic.errors import UserError
from hiermusic.tokens.facts import TokenFacts


class Made(Protocol):
    """What one window became."""

    semantic_T: Int[np.ndarray, "T"]
    codes_TK: Int[np.ndarray, "T K"]


class Player(Protocol):
    """What makes codes beside tokens that lead: the facts of both, how many tokens it takes at once, and itself.

    Attributes:
      vocal, codes: facts of the tokens that lead and of the codes that are made.
      window: the most leading tokens that it takes at once.
    """

    vocal: TokenFacts
    codes: TokenFacts
    window: int

    def frames(self, tokens: int, /) -> int: ...

    def accompany(
        self,
        vocals: Sequence[Int[np.ndarray, "T"]],
        /,
        *,
        seeds: Sequence[int],
        given: Sequence[Int[np.ndarray, "T K"] | None],
        given_semantic: Sequence[Int[np.ndarray, "T"] | None],
        **sampling,
    ) -> Sequence[Made]: ...


class Window(NamedTuple):
    """Leading tokens [start, stop), of which those before `done` were played before."""

    start: int
    done: int
    stop: int


class Whole(NamedTuple):
    """What a song became, its windows joined.

    Attributes:
      semantic_T, codes_TK: of all its windows.
      seams: frames at which a window's own codes begin, but for the first's.
    """

    semantic_T: Int[np.ndarray, "T"]
    codes_TK: Int[np.ndarray, "T K"]
    seams: tuple[int, ...]


def unit(player: Player) -> int:
    """The fewest leading tokens that last a whole number of frames: windows begin at multiples of it."""
    return Fraction(player.codes.frame_rate / player.vocal.frame_rate).denominator


def spans(total: int, window: int, overlap: int, unit: int) -> list[Window]:
    """Windows that cover `total` tokens, all as long as they can be; the last one overlaps as far as it takes.

    Args:
      total: tokens.
      window: the most tokens of one.
      overlap: the fewest that two neighbours share.
      unit: windows begin at multiples of it.
    Raises:
      UserError: windows that would not move on.
    """
    if window - overlap < unit:
        raise UserError(f"windows of {window} tokens that share {overlap} never end: let them share fewer")
    found = [Window(0, 0, min(window, total))]
    while (done := found[-1].stop) < total:
        start = max(done - overlap, 0) // unit * unit
        if start + window >= total:
            start = -(-(total - window) // unit) * unit
        found.append(Window(start, done, min(start + window, total)))
    return found


def play(
    player: Player,
    vocals: Sequence[Int[np.ndarray, "T"]],
    *,
    seeds: Sequence[int],
    overlap: int,
    rows: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **sampling,
) -> list[Whole]:
    """What is played beside each of some leads, of any length.

    Args:
      player: plays windows.
      vocals: tokens that lead, int [T] each.
      seeds: of each lead; every window draws from a seed of its own, so that a song is the same in any batch.
      overlap: leading tokens that neighbouring windows share at least; of 0 a window knows nothing of the last.
      rows: windows that are played at once, of as many songs.
      progress: called with how many windows are done, and how many there are.
      sampling: passed on to the player.
    """
    plans = [spans(len(vocal_T), player.window, overlap, unit(player)) for vocal_T in vocals]
    songs = [_Song(player, *one) for one in zip(vocals, plans, map(_seeds, seeds), strict=True)]
    done, total = 0, sum(map(len, plans))
    for at in range(max(map(len, plans), default=0)):
        going_on = [song for song in songs if at < len(song.plan)]
        for first in range(0, len(going_on), rows):
            group = going_on[first : first + rows]
            asked = [song.next(song.plan[at]) for song in group]
            vocal, given, given_semantic, own = map(list, zip(*asked, strict=True))
            made = player.accompany(vocal, seeds=own, given=given, given_semantic=given_semantic, **sampling)
            for song, one in zip(group, made, strict=True):
                song.add(one, song.plan[at])
            done += len(group)
            progress(done, total)
    return [song.whole() for song in songs]


def _seeds(seed: int) -> Iterator[int]:
    """Of each window of a song: the song's own, then others that follow from it."""
    yield seed
    yield from (int(np.random.SeedSequence((seed, n)).generate_state(1)[0]) for n in count(1))


class _Song:
    """A song of which some windows are played."""

    def __init__(self, player: Player, vocal_T: np.ndarray, plan: Sequence[Window], seeds: Iterator[int]):
        self.player, self.vocal_T, self.plan, self.seeds = player, vocal_T, plan, seeds
        self.semantic: list[np.ndarray] = []
        self.codes: list[np.ndarray] = []

    def next(self, window: Window) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, int]:
        """A window's leading tokens, what is known of it, and its seed."""
        vocal_T, seed = self.vocal_T[window.start : window.stop], next(self.seeds)
        if window.start == window.done:
            return vocal_T, None, None, seed
        known_TK = np.concatenate(self.codes)[self.player.frames(window.start) :]
        return vocal_T, known_TK, np.concatenate(self.semantic)[window.start :], seed

    def add(self, made: Made, window: Window) -> None:
        """Takes of what a window became all that was not there."""
        known = self.player.frames(window.done) - self.player.frames(window.start)
        self.semantic.append(made.semantic_T[window.done - window.start :])
        self.codes.append(made.codes_TK[known:])

    def whole(self) -> Whole:
        lengths = np.cumsum([len(codes_TK) for codes_TK in self.codes])[:-1]
        return Whole(np.concatenate(self.semantic), np.concatenate(self.codes), tuple(map(int, lengths)))
