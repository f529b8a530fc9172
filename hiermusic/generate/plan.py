"""The layouts of a batch as arrays, of which step-by-step decoding takes some positions at a time."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32

from hiermusic.generate.batching import bucket, padded
from hiermusic.tokens.pattern import SEGMENT, Layout

CHUNK = 64  # steps between two looks from the host


class Plan(NamedTuple):
    """The layouts of a batch, padded to one size with -1.

    Attributes:
      reads_BSK, predicts_BSK: of the layouts.
      marks_BS: ids that stand where levels begin.
      places_BS: where positions stand, of layouts that are told; None where it is at their index.
      level_S: the level due at s, where all samples agree.
    """

    reads_BSK: Int32[np.ndarray, "B S K"]
    predicts_BSK: Int32[np.ndarray, "B S K"]
    marks_BS: Int32[np.ndarray, "B S"]
    places_BS: Int32[np.ndarray, "B S"] | None
    level_S: Int32[np.ndarray, "S"] | None

    @classmethod
    def of(
        cls, layouts: Sequence[Layout], markers: Sequence[int], places: Sequence[Int32[np.ndarray, "S"]] | None
    ) -> "Plan":
        """The plan of some layouts; arguments as in `autoregressive.generate`."""
        S = -(-max(layout.positions for layout in layouts) // CHUNK) * CHUNK
        reads_BSK, predicts_BSK = (
            np.stack([np.pad(x, ((0, S - len(x)), (0, 0)), constant_values=-1) for x in arrays])
            for arrays in ([layout.reads_SK for layout in layouts], [layout.predicts_SK for layout in layouts])
        )
        marks_BS = padded([layout.marked(markers) for layout in layouts], S, left=False)
        due_SK = (predicts_BSK >= 0).any(axis=0)
        one_level = due_SK.shape[1] > 1 and (due_SK.sum(axis=1) <= 1).all()
        level_S = due_SK.argmax(axis=1).astype(np.int32) if one_level else None
        places_BS = None if places is None else np.maximum(padded(places, S, left=False), 0)
        return cls(reads_BSK, predicts_BSK, marks_BS, places_BS, level_S)

    def front(self, p: int, first: int) -> Int32[np.ndarray, "B s"] | None:
        """Where p positions up to a prompt's end and the first ones behind it stand, the prompt in the last segment."""
        if self.places_BS is None:
            return None
        begin_B1 = self.places_BS.max(axis=1, keepdims=True) // SEGMENT * SEGMENT
        return np.concatenate([begin_B1 + np.arange(p, dtype=np.int32), p + self.places_BS[:, :first]], axis=1)

    def steps(self, start: int) -> tuple:
        """What a chunk of steps scans over: position, reads, predicts, marks, places and level, step by step."""
        chunk = slice(start, start + CHUNK)
        level_S = None if self.level_S is None else self.level_S[chunk]
        places_SB = None if self.places_BS is None else self.places_BS[:, chunk].T
        reads_SBK, predicts_SBK = self.reads_BSK[:, chunk].swapaxes(0, 1), self.predicts_BSK[:, chunk].swapaxes(0, 1)
        order_S = np.arange(start, start + CHUNK, dtype=np.int32)
        return order_S, reads_SBK, predicts_SBK, self.marks_BS[:, chunk].T, places_SB, level_S

    def first_unknown(self, codes_BKT: Int32[np.ndarray, "B K T"]) -> int:
        """The first position at which some sample has a token to draw, codes being -1 where they are unknown."""
        b, k = np.ogrid[: codes_BKT.shape[0], : codes_BKT.shape[1]]
        known_BSK = codes_BKT[b[:, None], k[None], self.predicts_BSK] >= 0
        open_S = ((self.predicts_BSK >= 0) & ~known_BSK).any(axis=(0, 2))
        return int(open_S.argmax()) if open_S.any() else len(open_S)

    def due(self, start: int, length_B: Int32[np.ndarray, "B"]) -> bool:
        """Whether any sample of these lengths has a token to draw from position `start` on."""
        predicts_BSK = self.predicts_BSK[:, start:]
        return bool(((predicts_BSK >= 0) & (predicts_BSK < length_B[:, None, None])).any())


def known(layouts: Sequence[Layout], given: Sequence[Sequence[np.ndarray]] | None) -> Int32[np.ndarray, "B K T"]:
    """The codes that are given, as the first tokens of each level; -1 for those that are not."""
    T = bucket(max(max(layout.lengths) for layout in layouts))
    codes_BKT = np.full((len(layouts), len(layouts[0].lengths), T), -1, np.int32)
    for b, codes in enumerate(given or ()):
        for k, codes_T in enumerate(codes):
            length = min(len(codes_T), layouts[b].lengths[k])
            codes_BKT[b, k, :length] = codes_T[:length]
    return codes_BKT
