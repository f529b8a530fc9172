"""Training rows: a prompt in front, a layout behind it, padded to a fixed number of positions."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32

from hiermusic.tokens.pattern import SEGMENT, Layout

Row = Mapping[str, np.ndarray]

START = 0  # the one text id of models that take no words: it begins a row


def pack(
    text: Sequence[int],
    layout: Layout,
    codes: Sequence[np.ndarray],
    length: int,
    *,
    end: int | None = None,
    level: int | None = None,
    most: int = 1 << 16,
    markers: Sequence[int] = (),
    places: Int32[np.ndarray, "S"] | None = None,
) -> Row:
    """One training row of `length` positions: text ids, codes read, codes predicted, text predicted, validity.

    A causal layout begins where the prompt's last id stands; any other begins behind the prompt, and where there is no
    code to read it reads that last id.

    Args:
      text: the prompt's ids, at least one; the last is the begin marker.
      layout: of what is read and predicted; it must fit.
      codes: K integer arrays, level k of `layout.lengths[k]` tokens; -1 for a token that is not there.
      length: positions of the row.
      end: id predicted where one more token of level 0 would be due; None to predict no end.
      level: the only one that the layout predicts; None where there are several.
      most: codes of a level: those read come in 16 bits where these hold them, as they do most of what a row is.
      markers: the id of each level that stands where the layout has a mark.
      places: where the layout's positions stand (`Pattern.places`), counted from the prompt's last id; its other ids
        stand one by one in front, in the segment that the last place is in.
    Returns:
      `text` [length], `reads` [length, K], `targets` [length, K], `text_targets` [length], all int32 (`reads` perhaps
      int16) with -1 for none, and `valid` [length] bool; of a row of one level `targets` are [length], and `level` []
      says which; with `places`, `positions` [length] int32.
    Raises:
      ValueError: when prompt and layout do not fit into `length`, or a layout cannot end early.
    """
    reads_SK, targets_SK = layout.build(codes)
    if layout.begin is None:
        start, begins_S = len(text), (reads_SK < 0).all(1) & (targets_SK >= 0).any(1)
    else:
        start, begins_S = len(text) - 1, np.arange(len(reads_SK)) == layout.begin
    stop = start + len(reads_SK)
    if end is not None and layout.end is None:
        raise ValueError(f"a layout of lengths {layout.lengths} that cannot end early predicts no end")
    used = stop if end is None else max(stop, start + layout.end + 1)
    if used > length:
        raise ValueError(f"{len(text)} prompt ids and {len(reads_SK)} positions do not fit into {length}")
    K = reads_SK.shape[1]
    row = {
        "text": np.full(length, -1, np.int32),
        "reads": np.full((length, K), -1, np.int16 if most <= 1 << 15 else np.int32),
        "targets": np.full((length, K) if level is None else length, -1, np.int32),
        "text_targets": np.full(length, -1, np.int32),
        "valid": np.arange(length) < used,
    }
    row["text"][:start] = text[:start]
    row["text"][start:stop] = np.where(begins_S, text[-1], layout.marked(markers))
    row["reads"][start:stop] = reads_SK
    row["targets"][start:stop] = targets_SK if level is None else targets_SK[:, level]
    if level is not None:
        row["level"] = np.int32(level)
    if places is not None:
        row["positions"] = (places[-1] // SEGMENT * SEGMENT + np.arange(length)).astype(np.int32)
        row["positions"][start:stop] = start + places
    if end is not None:
        row["reads"][stop:used] = targets_SK[-1]
        row["text_targets"][start + layout.end] = end
    return row


def window(layout: Layout, context: int = 0) -> tuple[Int32[np.ndarray, "S"], Int32[np.ndarray, "S"]]:
    """Text ids and levels at the positions of a window that reads latents (AAR), behind frames of the one before.

    Args:
      layout: `pattern.next_scale`, whose first level reads `START`.
      context: so many frames.
    Returns:
      `text` [context + S], -1 for none, and `levels` [context + S], K for the context.
    """
    K, front = len(layout.lengths), (context, 0)
    text_S = np.where(layout.level_S == 0, START, -1).astype(np.int32)
    return np.pad(text_S, front, constant_values=-1), np.pad(layout.level_S, front, constant_values=K)


def room(text: Sequence[int], length: int, *, stepwise: bool, end: bool) -> int:
    """How many layout positions fit behind a prompt of these ids into `length` positions."""
    return length - len(text) + int(stepwise) - int(end)


def stack(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Rows of equal length as one batch: every array gains a leading B axis."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
