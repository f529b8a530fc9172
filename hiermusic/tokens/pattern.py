"""Orders of prediction over a hierarchy: what each position reads, predicts and sees, and in which pass."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from math import ceil, gcd, lcm

import numpy as np
from jaxtyping import Int

from hiermusic.errors import UserError
from hiermusic.tokens.visibility import Visibility

SEGMENT = 1 << 20  # ticks: where segment n begins among places, which say segment and tick in one number


@dataclass(frozen=True, eq=False)
class Layout:
    """A pattern laid out over levels of known lengths.

    Args:
      lengths: tokens of each of the K levels.
      reads_SK: int32, index t of the level-k token whose embedding position s sums in; -1 = none.
      predicts_SK: int32, index t of the level-k token predicted at position s; -1 = none.
      group_S: int32, position i sees position j iff group_S[j] <= group_S[i] (and, if isolated, they share a pass).
      pass_S: int32, the decoding pass that computes the position.
      isolated: every pass re-reads everything and sees only its own positions, so nothing can be cached.
      given: the first `given` levels are known beforehand and never predicted.
      begin: the position that carries the last id of a prompt, where what is predicted begins, behind given levels that
        are read in front; None where every pass begins anew, behind the whole prompt.
      end: the position at which one more token of level 0 would be due, so that music may end there instead; None where
        levels differ in length or do not go by time.
      marks: (position, level) of each position that reads the marker of a level that begins there.
    """

    lengths: tuple[int, ...]
    reads_SK: Int[np.ndarray, "S K"]
    predicts_SK: Int[np.ndarray, "S K"]
    group_S: Int[np.ndarray, "S"]
    pass_S: Int[np.ndarray, "S"]
    isolated: bool = False
    given: int = 0
    begin: int | None = 0
    end: int | None = None
    marks: tuple[tuple[int, int], ...] = ()

    @property
    def positions(self) -> int:
        return len(self.pass_S)

    @property
    def passes(self) -> int:
        return len(np.unique(self.pass_S))

    @property
    def level_S(self) -> Int[np.ndarray, "S"]:
        """The level that each position predicts, the first of them where there are several; -1 for none."""
        due_SK = self.predicts_SK >= 0
        return np.where(due_SK.any(1), due_SK.argmax(1), -1).astype(np.int32)

    @property
    def visibility(self) -> Visibility:
        """The rule between positions (of one pass, when isolated)."""
        if not self.isolated:
            return Visibility.of_groups(self.group_S)
        groups = self.group_S[self.pass_S == self.pass_S[0]]
        return Visibility.of_groups(groups) if np.diff(groups).any() else Visibility.full()

    def sees(self, i: Int[np.ndarray, "*i"], j: Int[np.ndarray, "*j"]) -> np.ndarray:
        """True where position i may attend to position j (arrays broadcast)."""
        seen = self.group_S[j] <= self.group_S[i]
        return seen & (self.pass_S[j] == self.pass_S[i]) if self.isolated else seen

    def behind(self, n: int) -> Visibility:
        """The rule of the layout in a row behind `n` positions that see each other and that all of it sees."""
        return Visibility.of_groups(np.concatenate([np.zeros(n, int), self.group_S + (n > 0)]))

    def first(self, levels: int) -> "Layout":
        """As much of a layout that goes by level as it takes to predict the first `levels` of them."""
        stop = int(np.flatnonzero((self.predicts_SK[:, :levels] >= 0).any(1))[-1]) + 1
        parts = {name: getattr(self, name)[:stop] for name in ("reads_SK", "predicts_SK", "group_S", "pass_S")}
        return replace(self, marks=tuple(mark for mark in self.marks if mark[0] < stop), **parts)

    def build(self, codes: Sequence[np.ndarray]) -> tuple[Int[np.ndarray, "S K"], Int[np.ndarray, "S K"]]:
        """Model inputs and targets of one example.

        Args:
          codes: K integer arrays, level k of `lengths[k]` tokens.
        Returns:
          (reads, targets), both int32 [S, K] of codes, -1 = none.
        Raises:
          ValueError: when a level has another length than the layout.
        """
        lengths = tuple(len(codes_T) for codes_T in codes)
        if lengths != self.lengths:
            raise ValueError(f"codes of lengths {lengths} do not fit a layout of lengths {self.lengths}")
        return _gather(codes, self.reads_SK), _gather(codes, self.predicts_SK)

    def marked(self, markers: Sequence[int]) -> Int[np.ndarray, "S"]:
        """The marker that each position reads, of the ids of all levels; -1 for none."""
        text_S = np.full(self.positions, -1, np.int32)
        for position, level in self.marks:
            text_S[position] = markers[level]
        return text_S

    def revert(self, targets_SK: Int[np.ndarray, "S K"]) -> list[Int[np.ndarray, "T"]]:
        """The codes of every level from codes at the predicting positions; -1 where the layout predicts none."""
        codes = []
        for k, length in enumerate(self.lengths):
            codes_T = np.full(length, -1, np.int32)
            due_S = self.predicts_SK[:, k] >= 0
            codes_T[self.predicts_SK[due_S, k]] = targets_SK[due_S, k]
            codes.append(codes_T)
        return codes


def _gather(codes: Sequence[np.ndarray], index_SK: np.ndarray) -> np.ndarray:
    gathered_KS = np.full(index_SK.shape[::-1], -1, np.int32)
    for k in np.flatnonzero((index_SK >= 0).any(0)):  # a pass of one level predicts one of many, and reads some
        index_S = index_SK[:, k]
        gathered_KS[k] = np.where(index_S >= 0, np.asarray(codes[k], np.int32)[index_S], -1)
    return gathered_KS.T


def _checked(lengths: Sequence[int], same: str = "") -> tuple[int, ...]:
    lengths = tuple(int(length) for length in lengths)
    if not lengths or min(lengths) < 1:
        raise UserError(f"a pattern needs at least one token in every level, not lengths {lengths}")
    if same and len(set(lengths)) > 1:
        raise UserError(
            f"the {same} pattern needs levels of one length, not {lengths}: flatten, level_major, layer_wise and "
            "next_scale take these"
        )
    return lengths


def _one_by_one(lengths: tuple[int, ...], level_S: np.ndarray, t_S: np.ndarray, **facts: int | None) -> Layout:
    # Position s predicts token s of the order and reads token s-1.
    order_S = np.arange(len(level_S), dtype=np.int32)
    predicts_SK = np.full((len(order_S), len(lengths)), -1, np.int32)
    predicts_SK[order_S, level_S] = t_S
    reads_SK = np.concatenate([np.full((1, len(lengths)), -1, np.int32), predicts_SK[:-1]])
    return Layout(lengths, reads_SK, predicts_SK, group_S=order_S, pass_S=order_S, **facts)


def flatten(lengths: Sequence[int], rates: Sequence[Fraction] | None = None) -> Layout:
    """One token a position, by time and then by level (Khala 4.2: q0 q1 of frame 0, q0 q1 of frame 1, ...).

    Args:
      lengths: tokens of each level.
      rates: tokens per second of each level; without them the levels span the same time.
    """
    lengths = _checked(lengths)
    rates = [Fraction(rate) for rate in (rates or lengths)]
    common = lcm(*(rate.numerator for rate in rates))
    steps = [common // rate.numerator * rate.denominator for rate in rates]
    steps = [step // gcd(*steps) for step in steps]
    level_S = np.repeat(np.arange(len(lengths)), lengths)
    t_S = np.concatenate([np.arange(length) for length in lengths])
    order_S = np.lexsort((level_S, t_S * np.asarray(steps, np.int64)[level_S]))
    end = sum(lengths) if len(set(zip(lengths, rates, strict=True))) == 1 else None
    return _one_by_one(lengths, level_S[order_S], t_S[order_S], end=end)


def level_major(lengths: Sequence[int], separate: bool = False, given: int = 0) -> Layout:
    """One token a position, the whole coarse level and then the next (PyramidCodec's language model).

    Args:
      lengths: tokens of each level.
      separate: between two levels stands one position more, which reads the marker of the level that begins.
      given: the first levels that are known beforehand; they are read where they would otherwise be predicted.
    """
    lengths = _checked(lengths)
    level_S = np.repeat(np.arange(len(lengths)), lengths)
    layout = _one_by_one(lengths, level_S, np.concatenate([np.arange(length) for length in lengths]))
    reads_SK, predicts_SK, marks = layout.reads_SK, layout.predicts_SK, ()
    if separate:  # where a level's last token is read, nothing is predicted; the next level's first is, at its marker
        begins = np.cumsum(lengths)[:-1]
        reads_SK, predicts_SK = np.insert(reads_SK, begins + 1, -1, 0), np.insert(predicts_SK, begins, -1, 0)
        marks = tuple((int(begin) + level, level) for level, begin in enumerate(begins, 1))
    predicts_SK[:, : _open(lengths, given).start] = -1
    order_S = np.arange(len(reads_SK), dtype=np.int32)
    return Layout(lengths, reads_SK, predicts_SK, group_S=order_S, pass_S=order_S, given=given, marks=marks)


def delay(lengths: Sequence[int], delays: Sequence[int] | None = None) -> Layout:
    """One token of every level a position, level k late by delays[k] positions (MusicGen; default 0, 1, 2, ...).

    Args:
      lengths: tokens of each level, all the same.
      delays: one number >= 0 for every level, the smallest 0.
    Raises:
      UserError: when the lengths differ or the delays are not as said.
    """
    lengths = _checked(lengths, same="delay")
    delays = tuple(range(len(lengths))) if delays is None else tuple(delays)
    if len(delays) != len(lengths) or min(delays) != 0:
        raise UserError(f"delays {delays} must hold one number for each of {len(lengths)} levels, the smallest 0")
    order_S = np.arange(lengths[0] + max(delays), dtype=np.int32)
    t_SK = order_S[:, None] - np.asarray(delays, np.int32)
    predicts_SK = np.where((t_SK >= 0) & (t_SK < lengths[0]), t_SK, -1).astype(np.int32)
    t_SK = t_SK - 1
    reads_SK = np.where((t_SK >= 0) & (t_SK < lengths[0]), t_SK, -1).astype(np.int32)
    end = lengths[0] + delays[0]
    return Layout(lengths, reads_SK, predicts_SK, group_S=order_S, pass_S=order_S, end=end)


def parallel(lengths: Sequence[int]) -> Layout:
    """All levels of a frame at once, frame by frame, each level blind to the others of its frame."""
    return delay(_checked(lengths, same="parallel"), (0,) * len(lengths))


def _by_level(lengths: tuple[int, ...], levels: range, given: int, isolated: bool = True) -> Layout:
    # A position of level k stands at the middle of its token and reads the coarser tokens that sound there.
    level_S = np.repeat(np.asarray(levels), [lengths[k] for k in levels])
    t_S = np.concatenate([np.arange(lengths[k]) for k in levels])
    length_S = np.asarray(lengths)[level_S]
    coarser = lengths[: levels[-1]]
    sounding = {length: (2 * t_S + 1) * length // (2 * length_S) for length in set(coarser)}
    reads_KS = np.full((len(lengths), len(t_S)), -1, np.int32)
    for j, length in enumerate(coarser):
        reads_KS[j] = np.where(j < level_S, sounding[length], -1)
    predicts_SK = np.full_like(reads_KS.T, -1)
    predicts_SK[np.arange(len(t_S)), level_S] = t_S
    pass_S = (level_S - levels[0]).astype(np.int32)
    facts = {"isolated": isolated, "given": given, "begin": None}
    return Layout(lengths, reads_KS.T, predicts_SK, group_S=pass_S, pass_S=pass_S, **facts)


def _open(lengths: tuple[int, ...], given: int) -> range:
    if not 0 <= given < len(lengths):
        raise UserError(f"{given} given levels leave nothing to predict of {len(lengths)}")
    return range(given, len(lengths))


def layer_wise(lengths: Sequence[int], given: int = 0) -> Layout:
    """One pass a level, each over the whole track with full attention (Khala section 3's super-resolution).

    Args:
      lengths: tokens of each level.
      given: the first levels that are known beforehand.
    """
    lengths = _checked(lengths)
    return _by_level(lengths, _open(lengths, given), given)


def layer_pass(lengths: Sequence[int], level: int) -> Layout:
    """Pass `level` of `layer_wise` alone: its positions read every coarser level and predict this one."""
    lengths = _checked(lengths)
    if not 0 <= level < len(lengths):
        raise UserError(f"there is no level {level} among {len(lengths)}")
    return _by_level(lengths, range(level, level + 1), given=level)


def next_scale(lengths: Sequence[int], given: int = 0) -> Layout:
    """One pass a level, each seeing the passes before it (AAR).

    A position reads the coarser codes that sound there, or, in a model that reads latents, what all of them add up to.

    Args:
      lengths: tokens of each level.
      given: the first levels that are known beforehand.
    """
    lengths = _checked(lengths)
    return _by_level(lengths, _open(lengths, given), given, isolated=False)


def prefixed(prefix: Layout, layout: Layout) -> Layout:
    """A causal layout behind tokens of other levels that are all known: these come first, as given levels.

    Args:
      prefix: a causal layout, at whose positions the given tokens are read that it predicts.
      layout: of what is predicted, perhaps behind other given levels.
    """
    n, K = prefix.positions, len(prefix.lengths)
    reads_SK, predicts_SK = (
        np.pad(x_SK, ((n, 0), (K, 0)), constant_values=-1) for x_SK in (layout.reads_SK, layout.predicts_SK)
    )
    reads_SK[:n, :K] = prefix.predicts_SK
    order_S = np.arange(len(reads_SK), dtype=np.int32)
    lengths = (*prefix.lengths, *layout.lengths)
    marks = tuple((n + position, K + level) for position, level in layout.marks)
    facts = {"given": K + layout.given, "begin": n + layout.begin, "marks": marks}
    return Layout(lengths, reads_SK, predicts_SK, group_S=order_S, pass_S=order_S, **facts)


STEPWISE = {"flatten": flatten, "delay": delay, "parallel": parallel, "level_major": level_major}
BY_LEVEL = {"layer_wise": layer_wise, "next_scale": next_scale}


@dataclass(frozen=True)
class Pattern:
    """An order of prediction over levels that come in packets (see `tokens.packets`): what `model.pattern` names.

    Args:
      name: of `STEPWISE`, where each position sees those before it, or of `BY_LEVEL`.
      slots: tokens of each level in a packet.
      given: the first levels that are known beforehand: read in front, flattened, by the stepwise patterns.
      streams: how many of the first given levels belong to each other stream, which are read one after the other.
      separate: see `level_major`, whose given levels are then read as it says.
      units: of each other stream and then of the model's own, how many of the packets that its tokenizer makes are in
        one of these; () where there is one stream.
    Raises:
      UserError: an unknown name, or levels that the pattern cannot take.
    """

    name: str
    slots: tuple[int, ...]
    given: int = 0
    streams: tuple[int, ...] = ()
    separate: bool = False
    units: tuple[int, ...] = ()

    def __post_init__(self):
        if self.name not in STEPWISE | BY_LEVEL:
            raise UserError(f"model.pattern is '{self.name}': choose {', '.join(STEPWISE | BY_LEVEL)}")
        if not 0 <= self.given < len(self.slots):
            raise UserError(f"model.given={self.given} leaves nothing to predict of {len(self.slots)} levels")
        if self.separate and self.name != "level_major":
            raise UserError(f"model.separators stand between levels: set it to False for the {self.name} pattern")
        if self.name in ("delay", "parallel"):
            _checked(self.slots[self.given :], same=self.name)

    @property
    def stepwise(self) -> bool:
        return self.name in STEPWISE

    @property
    def isolated(self) -> bool:
        """Every pass is a row of its own, which reads all coarser levels."""
        return self.name == "layer_wise"

    @property
    def ends(self) -> bool:
        """Its layouts have an `end`."""
        return self.name in ("flatten", "delay", "parallel") and not self.given and len(set(self.slots)) == 1

    @property
    def parts(self) -> tuple[range, ...]:
        """The levels of each segment of a row: of every other stream, what is given of the model's own, the rest."""
        stops = np.cumsum([0, *self.streams, self.given - sum(self.streams), len(self.slots) - self.given]).tolist()
        return tuple(range(*pair) for pair in pairwise(stops) if pair[0] < pair[1])

    @property
    def segments(self) -> tuple[int, ...]:
        """The segment that each level belongs to."""
        return tuple(number for number, part in enumerate(self.parts) for _ in part)

    def lengths(self, packets: int | Fraction) -> tuple[int, ...]:
        """Tokens of each level in so many packets; of a part of one, the whole packets of each stream's own.

        At 50 Hz beside 75 Hz a packet has 2 and 3 tokens: 249 and a half have 499 and int(499 * 75 / 50) = 748.
        """
        pairs = zip(self._units, self.slots, strict=True)
        return tuple(int(packets * unit) * (slot // unit) for unit, slot in pairs)

    def packets(self, lengths: Sequence[int]) -> int | Fraction:
        """The most packets that all, or the first, levels of these lengths hold, in whole ones of the first stream."""
        of_level = zip(lengths, self._units, self.slots, strict=False)
        first = self._units[0]
        held = [ceil(Fraction((n // (slot // unit) + 1) * first, unit)) - 1 for n, unit, slot in of_level]
        return _whole(Fraction(min(held), first))

    def layout(self, packets: int | Fraction) -> Layout:
        """The pattern over so many packets."""
        return _layout(self, packets)

    def places(self, layout: Layout, steps: Sequence[int]) -> Int[np.ndarray, "S"]:
        """Where each position of a layout stands in time and in which segment: segment * `SEGMENT` + tick, int32.

        A position stands where the token begins that it predicts, or else reads.

        Args:
          layout: of this pattern.
          steps: ticks from token to token of each level.
        """
        predicts_S = (layout.predicts_SK >= 0).any(1)
        tokens_SK = np.where(predicts_S[:, None], layout.predicts_SK, layout.reads_SK)
        level_S = (tokens_SK >= 0).argmax(1)
        t_S = np.maximum(tokens_SK[np.arange(len(level_S)), level_S], 0)
        return (np.asarray(self.segments)[level_S] * SEGMENT + t_S * np.asarray(steps)[level_S]).astype(np.int32)

    def positions(self, packets: int | Fraction) -> int:
        """Positions of a row of so many packets; of an isolated pattern, of its longest pass."""
        lengths = self.lengths(packets)
        open_lengths = lengths[self.given :]
        if self.isolated:
            return max(open_lengths)
        if self.name in ("delay", "parallel"):
            late = len(open_lengths) - 1 if self.name == "delay" else 0
            return open_lengths[0] + sum(lengths[: self.given]) + late
        marks = (len(lengths) - 1) * self.separate
        return (sum(lengths) if self.stepwise else sum(open_lengths)) + marks

    def most(self, positions: int) -> int | Fraction:
        """How many packets fit into so many positions, in whole packets of the first stream."""
        first = self._units[0]
        packets = range(1, first * (positions + 1))
        held = bisect_right(packets, positions, key=lambda n: self.positions(Fraction(n, first)))
        return _whole(Fraction(held, first))

    @property
    def _units(self) -> tuple[int, ...]:
        """Of each level, how many packets of its own stream a packet holds."""
        if not self.units:
            return (1,) * len(self.slots)
        counts = (*self.streams, len(self.slots) - sum(self.streams))
        return tuple(unit for unit, count in zip(self.units, counts, strict=True) for _ in range(count))


def _whole(number: Fraction) -> int | Fraction:
    return int(number) if number.denominator == 1 else number


@lru_cache(maxsize=32)
def _layout(pattern: Pattern, packets: int | Fraction) -> Layout:
    lengths = pattern.lengths(packets)
    if not pattern.stepwise:
        return BY_LEVEL[pattern.name](lengths, pattern.given)
    if pattern.separate:
        return level_major(lengths, True, pattern.given)
    layout = STEPWISE[pattern.name](lengths[pattern.given :])
    stops = np.cumsum([0, *pattern.streams, pattern.given - sum(pattern.streams)]).tolist()
    for start, stop in reversed(list(pairwise(stops))):
        layout = prefixed(flatten(lengths[start:stop]), layout) if start < stop else layout
    return layout
