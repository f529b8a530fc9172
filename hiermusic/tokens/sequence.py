"""Training rows: a prompt in front, a layout behind it, padded to a fixed number of positions."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int32

Row = Mapping[str, np.ndarray]


def pack(
    text: Sequence[int],
    reads_SK: Int32[np.ndarray, "S K"],
    targets_SK: Int32[np.ndarray, "S K"],
    length: int,
    *,
    shared: bool,
    end: int | None = None,
) -> Row:
    """One training row of `length` positions: text ids, codes read, codes predicted, text predicted, validity.

    Args:
      text: the prompt's ids, at least one; the last is the begin marker.
      reads_SK: codes read at each layout position, -1 where none.
      targets_SK: codes predicted at each layout position, -1 where none.
      length: positions of the row; what the layout needs must fit.
      shared: the layout's first position is the prompt's last token (causal layouts, whose first position reads
        nothing); otherwise the layout begins after the prompt (layer-wise passes).
      end: id predicted after the last token, by one more position that reads it; None to predict no end.
    Returns:
      `text` [length], `reads` [length, K], `targets` [length, K], `text_targets` [length], all int32 with -1 for
      none, and `valid` [length] bool.
    Raises:
      ValueError: when prompt and layout do not fit into `length`.
    """
    start = len(text) - 1 if shared else len(text)
    stop = start + len(reads_SK)
    used = stop + (end is not None)
    if used > length:
        raise ValueError(f"{len(text)} prompt ids and {len(reads_SK)} positions do not fit into {length}")
    K = reads_SK.shape[1]
    row = {
        "text": np.full(length, -1, np.int32),
        "reads": np.full((length, K), -1, np.int32),
        "targets": np.full((length, K), -1, np.int32),
        "text_targets": np.full(length, -1, np.int32),
        "valid": np.arange(length) < used,
    }
    row["text"][: len(text)] = text
    row["reads"][start:stop] = reads_SK
    row["targets"][start:stop] = targets_SK
    if end is not None:
        row["reads"][stop] = targets_SK[-1]
        row["text_targets"][stop] = end
    return row


def room(text: Sequence[int], length: int, *, shared: bool, end: bool) -> int:
    """How many layout positions fit behind a prompt of these ids into `length` positions."""
    return length - len(text) + int(shared) - int(end)


def stack(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    """Rows of equal length as one batch: every array gains a leading B axis."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
