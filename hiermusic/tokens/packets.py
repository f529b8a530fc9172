"""Packets of codes, as a codec makes them, and streams of levels, as records keep them.

A packet holds the tokens of one step of the codec, level after level: one of each for a residual quantiser's frame, n_k
of level k for a multi-scale quantiser's window. Streams are an int array [T, K] where all levels have one rate, and
otherwise a tuple of such arrays, one for each run of neighbouring levels of one rate.
"""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from jaxtyping import Int

Streams = np.ndarray | tuple[np.ndarray, ...]


def to_streams(codes_PS: Int[np.ndarray, "P S"], slots: Sequence[int]) -> Streams:
    """The streams in packets of codes.

    Args:
      codes_PS: packets; they may hold the first levels only.
      slots: tokens of each level in a packet, of all levels or of those that are there.
    """
    slots = _present(slots, codes_PS.shape[1])
    parts = np.split(codes_PS, np.cumsum(slots)[:-1], axis=1)
    alike = [list(group) for _, group in groupby(range(len(slots)), key=slots.__getitem__)]
    groups = [np.stack([parts[k].reshape(-1) for k in levels], axis=1) for levels in alike]
    return groups[0] if len(groups) == 1 else tuple(groups)


def to_packets(streams: Streams, slots: Sequence[int]) -> Int[np.ndarray, "P S"]:
    """The packets that streams of levels were taken from; tokens that fill no whole packet are left out."""
    levels = levels_of(streams)
    count = min(len(codes_T) // n for codes_T, n in zip(levels, slots, strict=False))
    return np.concatenate(
        [codes_T[: count * n].reshape(count, n) for codes_T, n in zip(levels, slots, strict=False)], 1
    )


def levels_of(streams: Streams | Sequence[Int[np.ndarray, "T"]]) -> list[Int[np.ndarray, "T"]]:
    """One array a level, from streams or from what is one array a level already."""
    groups = [np.asarray(group) for group in (streams if isinstance(streams, tuple | list) else (streams,))]
    return [codes_T for group in groups for codes_T in (group.T if group.ndim == 2 else [group])]


def like(streams: Streams, levels: Sequence[Int[np.ndarray, "T"]]) -> Streams:
    """Other codes, one array a level, in the form of `streams`."""
    if not isinstance(streams, tuple):
        return np.stack(levels, axis=1).astype(streams.dtype)
    rest = iter(levels)
    return tuple(np.stack([next(rest) for _ in group.T], axis=1).astype(group.dtype) for group in streams)


def _present(slots: Sequence[int], width: int) -> tuple[int, ...]:
    """The levels whose slots come to a packet of this width; ValueError where none do."""
    ends = np.cumsum(slots).tolist()
    if width not in ends:
        raise ValueError(f"packets of {width} codes hold no whole number of levels of {tuple(slots)} tokens")
    return tuple(slots[: ends.index(width) + 1])
