"""AAR's training rows: one window of a track, and what says how it should sound."""

import functools
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from hiermusic.data import pipeline
from hiermusic.errors import UserError
from hiermusic.systems.aar_model import PriorConfig
from hiermusic.tokens import pattern, rows, sequence

UNREADABLE = (OSError, ValueError, TypeError, AttributeError, EOFError, KeyError, zipfile.BadZipFile)  # by np.load


@functools.cache
def layout(name: str, frames: int, levels: int) -> pattern.Layout:
    """A window of the baseline in a pattern's order; UserError for a pattern that is not one of its own."""
    patterns = {"flatten": pattern.flatten, "delay": pattern.delay}
    if name not in patterns:
        raise UserError(f"model.pattern is '{name}': choose next_scale, {', '.join(patterns)}")
    return patterns[name]((frames,) * levels)


class Vectors:
    """Precomputed condition vectors by track, from an .npz file with one array [U] or [n, U] for each track's id.

    Args:
      path: the file.
      width: U, numbers in a vector.
    Raises:
      UserError: no such file, or vectors of another size.
    """

    def __init__(self, path: str, width: int):
        self.path = path
        try:
            with np.load(path, allow_pickle=False) as stored:
                self.by_track = {name: np.atleast_2d(stored[name]).astype(np.float32) for name in stored.files}
        except UNREADABLE as error:
            raise UserError(
                f"{path} holds no vectors ({type(error).__name__}): give an .npz file, one array for each track"
            ) from None
        for name, vectors_NU in self.by_track.items():
            if not len(vectors_NU):
                raise UserError(f"{path}, track {name}: no vector")
            for vector_U in vectors_NU:
                check_vector(f"{path}, track {name}", vector_U, width)

    def of(self, track: str) -> Float[np.ndarray, "N U"]:
        """The vectors of a track; UserError where it has none."""
        if track not in self.by_track:
            raise UserError(f"{self.path} has no vector of track {track}: write one for every track of the records")
        return self.by_track[track]


def check_vector(name: str, vector_U: np.ndarray, width: int) -> None:
    """UserError where a condition vector is of the wrong size or not finite."""
    if vector_U.shape != (width,):
        raise UserError(f"{name}: a vector of shape {vector_U.shape}, the model takes {width} numbers")
    if not np.isfinite(vector_U).all():
        raise UserError(f"{name}: a vector with numbers that are not finite")


@dataclass(frozen=True)
class Windows:
    """Turns tracks into rows of a model of one window.

    Args:
      prior: the model.
      frames: latent frames of a window.
      pattern: "next_scale", "flatten" or "delay".
      references: how many windows of the track say how it should sound.
      vectors: precomputed conditions, where the model does not listen; None for rows that are only looked at.
    """

    prior: PriorConfig
    frames: int
    pattern: str
    references: int
    vectors: Vectors | None

    def rows_of(self, example: dict) -> Int[np.ndarray, "R S"]:
        """A track as rows of codes: windows of scales, or frames of levels."""
        codes_RS = rows.to_rows(example["codes"], self.prior.quantiser.slots)
        if self.prior.next_scale or len(codes_RS) >= self.frames:
            return codes_RS
        return np.pad(codes_RS, ((0, self.frames - len(codes_RS)), (0, 0)), mode="edge")

    def starts(self, codes_RS: np.ndarray) -> int:
        """At how many places a window can begin."""
        return len(codes_RS) if self.prior.next_scale else len(codes_RS) - self.frames + 1

    def row(self, codes_RS: np.ndarray, start: int, references: Sequence[int]) -> dict[str, np.ndarray]:
        """The window that begins at row `start`, without vectors.

        Args:
          codes_RS: from `rows_of`.
          start: below `starts`.
          references: where the windows begin that say how it should sound.
        """
        size = 1 if self.prior.next_scale else self.frames
        reference = np.concatenate([codes_RS[at : at + size] for at in references]).astype(np.int32)
        heard = {"reference": reference} if self.prior.listener else {}
        if self.prior.next_scale:
            before_S = codes_RS[start - 1] if start else np.full(codes_RS.shape[1], -1)
            return {"codes": codes_RS[start].astype(np.int32), "before": before_S.astype(np.int32), **heard}
        order = layout(self.pattern, self.frames, codes_RS.shape[1])
        row = sequence.pack(
            [0], *order.build(codes_RS[start : start + self.frames].T), order.positions, shared=True
        )
        return {name: row[name] for name in ("text", "reads", "targets")} | heard

    def draw(self, example: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A window from anywhere in a track."""
        codes_RS = self.rows_of(example)
        start, *references = rng.integers(self.starts(codes_RS), size=1 + self.references)
        row = self.row(codes_RS, start, references)
        if not self.prior.listener:
            row["cond"] = rng.choice(self.vectors.of(example["meta"]["id"]))
        return row

    def spread(self, example: dict, count: int) -> list[dict[str, np.ndarray]]:
        """`count` windows at even distances over a track; the same ones every time."""
        codes_RS = self.rows_of(example)
        last = self.starts(codes_RS) - 1
        references = np.linspace(0, last, self.references).round().astype(int)
        cond = {} if self.prior.listener else {"cond": self.vectors.of(example["meta"]["id"])[0]}
        return [self.row(codes_RS, at, references) | cond for at in np.linspace(0, last, count).round().astype(int)]


def batches(config: ConfigDict, windows: Windows, split: str, which: Sequence[int]):
    """These rows of batch i: a function of (seed, i)."""
    settings, levels = config.train, slice(0, config.model.levels)
    examples = pipeline.example_batches(
        config.data.path, split, settings.seed, levels, settings.batch_size, which
    )

    def build(index: int, tracks: Sequence[dict]):
        rngs = pipeline.row_generators(settings.seed, index, which)
        drawn = [windows.draw(*pair) for pair in zip(tracks, rngs, strict=True)]
        return windows.prior.visibility, sequence.stack(drawn)

    return examples.map_with_index(build)


def shapes(windows: Windows, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch."""
    slots = windows.prior.quantiser.slots
    codes_RS = np.zeros((1 if windows.prior.next_scale else windows.frames, sum(slots)), np.int32)
    row = windows.row(codes_RS, 0, [0] * windows.references)
    if not windows.prior.listener:
        row["cond"] = np.zeros(windows.prior.lm.cond, np.float32)
    return {name: jax.ShapeDtypeStruct((batch_size, *value.shape), value.dtype) for name, value in row.items()}
