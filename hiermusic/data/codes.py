"""How codes lie in a token record: runs of levels of one rate as arrays [T, K], cut where the fine ones begin."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from hiermusic.tokens.hierarchy import Hierarchy

Codes = np.ndarray | tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Piece:
    """Columns [start, stop) of one rate group: what a token record stores as one array [T, stop - start]."""

    group: int
    start: int
    stop: int


def rate_groups(hierarchy: Hierarchy) -> tuple[int, ...]:
    """Levels in each run of consecutive levels of one rate: codes are one array [T, K] a group."""
    return tuple(len(list(run)) for _, run in groupby(hierarchy.rates))


def pieces(hierarchy: Hierarchy, start: int, stop: int) -> list[Piece]:
    """The parts of the rate groups that levels [start, stop) fall into."""
    found = []
    first = 0
    for group, width in enumerate(rate_groups(hierarchy)):
        low, high = max(start - first, 0), min(stop - first, width)
        if low < high:
            found.append(Piece(group, low, high))
        first += width
    return found


def as_groups(codes: Codes, hierarchy: Hierarchy) -> list[np.ndarray]:
    """Codes as uint16 arrays [T, K], one a rate group; ValueError where they do not fit the hierarchy."""
    groups = [np.asarray(part) for part in (codes if isinstance(codes, tuple) else (codes,))]
    widths, sizes = rate_groups(hierarchy), iter(hierarchy.sizes)
    if [part.shape[1:] for part in groups] != [(width,) for width in widths]:
        raise ValueError(f"codes of shapes {[part.shape for part in groups]} where groups of {widths} levels belong")
    for part, width in zip(groups, widths, strict=True):
        limit_K = np.asarray([next(sizes) for _ in range(width)])
        if part.size and (part.min() < 0 or (part.max(axis=0) >= limit_K).any()):
            raise ValueError(f"codes outside [0, {limit_K.tolist()})")
    return [part.astype("<u2") for part in groups]


def encode_tokens(groups: Sequence[np.ndarray], wanted: Sequence[Piece]) -> bytes:
    """A token record: the frames of each piece (uint32), then each piece's uint16 codes [T, K]."""
    frames = np.asarray([len(groups[piece.group]) for piece in wanted], "<u4")
    return frames.tobytes() + b"".join(groups[p.group][:, p.start : p.stop].tobytes() for p in wanted)


def decode_tokens(record: bytes, stored: Sequence[Piece]) -> list[np.ndarray]:
    """The pieces of a token record, uint16 [T, K] each."""
    frames = np.frombuffer(record, "<u4", len(stored))
    parts = []
    offset = 4 * len(stored)
    for count, piece in zip(frames.tolist(), stored, strict=True):
        width = piece.stop - piece.start
        parts.append(np.frombuffer(record, "<u2", count * width, offset).reshape(count, width))
        offset += 2 * count * width
    return parts
