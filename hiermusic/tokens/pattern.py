"""Orders of prediction over a hierarchy: what each position reads, predicts and sees, and in which pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from hiermusic.errors import UserError
from hiermusic.tokens.visibility import Visibility


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
    """

    lengths: tuple[int, ...]
    reads_SK: Int[np.ndarray, "S K"]
    predicts_SK: Int[np.ndarray, "S K"]
    group_S: Int[np.ndarray, "S"]
    pass_S: Int[np.ndarray, "S"]
    isolated: bool = False
    given: int = 0

    @property
    def positions(self) -> int:
        return len(self.pass_S)

    @property
    def passes(self) -> int:
        return len(np.unique(self.pass_S))

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
    columns = [
        np.where(index_S >= 0, np.asarray(codes_T, np.int32)[index_S], -1)
        for codes_T, index_S in zip(codes, index_SK.T, strict=True)
    ]
    return np.stack(columns, axis=1).astype(np.int32)


def _checked(lengths: Sequence[int], same: str = "") -> tuple[int, ...]:
    lengths = tuple(int(length) for length in lengths)
    if not lengths or min(lengths) < 1:
        raise UserError(f"a pattern needs at least one token in every level, not lengths {lengths}")
    if same and len(set(lengths)) > 1:
        raise UserError(f"the {same} pattern needs levels of one length, not {lengths}: use flatten or level_major")
    return lengths


def _one_by_one(lengths: tuple[int, ...], level_S: np.ndarray, t_S: np.ndarray) -> Layout:
    # Position s predicts token s of the order and reads token s-1.
    order_S = np.arange(len(level_S), dtype=np.int32)
    predicts_SK = np.full((len(order_S), len(lengths)), -1, np.int32)
    predicts_SK[order_S, level_S] = t_S
    reads_SK = np.concatenate([np.full((1, len(lengths)), -1, np.int32), predicts_SK[:-1]])
    return Layout(lengths, reads_SK, predicts_SK, group_S=order_S, pass_S=order_S)


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
    return _one_by_one(lengths, level_S[order_S], t_S[order_S])


def level_major(lengths: Sequence[int]) -> Layout:
    """One token a position, the whole coarse level and then the next (PyramidCodec's language model)."""
    lengths = _checked(lengths)
    level_S = np.repeat(np.arange(len(lengths)), lengths)
    return _one_by_one(lengths, level_S, np.concatenate([np.arange(length) for length in lengths]))


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
    return Layout(lengths, reads_SK, predicts_SK, group_S=order_S, pass_S=order_S)


def parallel(lengths: Sequence[int]) -> Layout:
    """All levels of a frame at once, frame by frame, each level blind to the others of its frame."""
    return delay(_checked(lengths, same="parallel"), (0,) * len(lengths))


def _scales(lengths: tuple[int, ...], levels: range, given: int) -> Layout:
    # A position of level k stands at the middle of its token and reads the coarser tokens that sound there.
    level_S = np.repeat(np.asarray(levels), [lengths[k] for k in levels])
    t_S = np.concatenate([np.arange(lengths[k]) for k in levels])
    length_S = np.asarray(lengths)[level_S]
    reads_SK = np.stack(
        [np.where(j < level_S, (2 * t_S + 1) * length // (2 * length_S), -1) for j, length in enumerate(lengths)],
        axis=1,
    ).astype(np.int32)
    predicts_SK = np.full_like(reads_SK, -1)
    predicts_SK[np.arange(len(t_S)), level_S] = t_S
    pass_S = (level_S - levels[0]).astype(np.int32)
    return Layout(lengths, reads_SK, predicts_SK, group_S=pass_S, pass_S=pass_S, isolated=True, given=given)


def layer_wise(lengths: Sequence[int], given: int = 0) -> Layout:
    """One pass a level, each over the whole track with full attention (Khala section 3's super-resolution).

    Args:
      lengths: tokens of each level.
      given: the first levels that are known beforehand.
    """
    lengths = _checked(lengths)
    if not 0 <= given < len(lengths):
        raise UserError(f"{given} given levels leave nothing to predict of {len(lengths)}")
    return _scales(lengths, range(given, len(lengths)), given=given)


def layer_pass(lengths: Sequence[int], level: int) -> Layout:
    """Pass `level` of `layer_wise` alone: its positions read every coarser level and predict this one."""
    lengths = _checked(lengths)
    if not 0 <= level < len(lengths):
        raise UserError(f"there is no level {level} among {len(lengths)}")
    return _scales(lengths, range(level, level + 1), given=level)


START = 0  # the text id that level 0 of a next-scale row reads


class ScaleRow(NamedTuple):
    """The slots of a window that is predicted scale by scale (AAR), in training as in decoding.

    Not a `Layout`: a slot of level k > 0 reads no codes, but the latents that all coarser ones add up to.

    Args:
      text_S: `START` at level 0, else -1.
      levels_S: the level of each slot, K for the context.
      visibility: a slot sees its own level, all coarser ones, and the context.
    """

    text_S: Int[np.ndarray, "S"]
    levels_S: Int[np.ndarray, "S"]
    visibility: Visibility


def next_scale(slots: Sequence[int], context: int = 0) -> ScaleRow:
    """A window with so many tokens of each level behind so many frames of context, one pass a level."""
    sizes = (context, *_checked(slots))
    levels_S = np.repeat(np.array([len(slots), *range(len(slots))], np.int32), sizes)
    text_S = np.where(levels_S == 0, START, -1).astype(np.int32)
    return ScaleRow(text_S, levels_S, Visibility.block_causal([n for n in sizes if n]))
