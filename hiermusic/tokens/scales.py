"""How many tokens each level has in a packet, coarse first: SAT's three schedules (arXiv 2408.09027), or one's own."""

from collections.abc import Sequence

import numpy as np

from hiermusic.errors import UserError

_CURVES = {
    "quadratic": lambda window, count: np.linspace(1, np.sqrt(window), count) ** 2,
    "linear": lambda window, count: np.linspace(1, window, count),
    "logarithmic": lambda window, count: np.geomspace(1, window, count),
}


def schedule(kind: str, window: int, count: int) -> tuple[int, ...]:
    """Scales from one token to one a frame: the curve rounded down, then up where a scale would not exceed the last.

    At 75 frames and 16 scales these are the paper's 455, 601 and 303 tokens. For its window of five seconds the paper
    has five times as many at every scale, `tuple(5 * n for n in schedule(kind, 75, 16))`, rather than a curve to 375.

    Args:
      kind: "quadratic", "linear" or "logarithmic".
      window: frames, the last scale.
      count: scales, 1 to `window`; a single one is the window itself.
    Raises:
      UserError: for another kind, or more scales than the window has frames.
    """
    if kind not in _CURVES:
        raise UserError(f"schedule '{kind}' is unknown: choose from {', '.join(_CURVES)}")
    if not 1 <= count <= window:
        raise UserError(f"{count} scales do not fit a window of {window} frames: choose 1 to {window} scales")
    if count == 1:
        return (window,)
    # A square root squared may fall short of the whole number it came from.
    scales = np.floor(_CURVES[kind](window, count) + 1e-9).astype(int)
    steps = np.arange(count)
    return tuple((np.maximum.accumulate(scales - steps) + steps).tolist())


def check_scales(scales: Sequence[int]) -> None:
    """UserError unless the scales are whole numbers that increase; the last is the window."""
    if not scales or any(n != int(n) for n in scales) or any(np.diff([0, *scales]) < 1):
        words = ", ".join(map(str, scales))
        raise UserError(f"scales ({words}): give whole numbers that increase from 1 or more up to the window's frames")


def check_nested(scales: Sequence[int]) -> None:
    """UserError unless the scales are whole numbers of which each is the one before it, or so many of it."""
    before = 1
    for n in scales:
        if n != int(n) or n < 1 or n % before:
            words = ", ".join(map(str, scales))
            raise UserError(f"scales ({words}): give whole numbers from 1, each a multiple of the one before it")
        before = int(n)
    if not scales:
        raise UserError("scales (): give one number for each level")
