"""AAR's training rows: one window of a track, and what says how it should sound."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from hiermusic.data import pipeline
from hiermusic.data.arrays import read_npz
from hiermusic.data.token_records import TokenSource
from hiermusic.errors import UserError, reading
from hiermusic.nn.norms import unit
from hiermusic.systems.aar.models import pattern_of, prior_config, window_frames, window_seconds
from hiermusic.systems.aar.prior import PriorConfig
from hiermusic.tokens import packets, sequence
from hiermusic.tokens.pattern import Pattern


class Vectors:
    """Precomputed condition vectors by track, from an .npz file with one array [U] or [n, U] for each track's id.

    Args:
      path: the file.
      width: U, numbers in a vector.
    Raises:
      UserError: no such file, or vectors that `as_condition` refuses.
    """

    def __init__(self, path: str, width: int):
        self.path = path
        stored = read_npz(path, "vectors", "give an .npz file, one array for each track")
        with reading(path, "vectors", "give an .npz file, one array for each track"):
            found = {name: np.atleast_2d(array).astype(np.float32) for name, array in stored.items()}
        self.by_track: dict[str, Float[np.ndarray, "N U"]] = {}
        for name, vectors_NU in found.items():
            if not len(vectors_NU):
                raise UserError(f"{path}, track {name}: no vector")
            own = [as_condition(f"{path}, track {name}", vector_U, width) for vector_U in vectors_NU]
            self.by_track[name] = np.stack(own)

    def of(self, track: str) -> Float[np.ndarray, "N U"]:
        """The vectors of a track; UserError where it has none."""
        if track not in self.by_track:
            raise UserError(f"{self.path} has no vector of track {track}: write one for every track of the records")
        return self.by_track[track]


def as_condition(name: str, vector_U: np.ndarray, width: int) -> Float[np.ndarray, "U"]:
    """A vector at unit length, as a listener's are; UserError where it is of the wrong size, not finite, or zero."""
    if vector_U.shape != (width,):
        raise UserError(f"{name}: a vector of shape {vector_U.shape}, the model takes {width} numbers")
    if not np.isfinite(vector_U).all():
        raise UserError(f"{name}: a vector with numbers that are not finite")
    if not vector_U.any():
        raise UserError(f"{name}: a vector of zeros, which points nowhere")
    return np.asarray(unit(vector_U))


def evenly(last: int, count: int) -> Int[np.ndarray, "count"]:
    """`count` places in 0..last at even distances, the ends among them; all different where that many fit."""
    return np.arange(count) * last // max(count - 1, 1)


@dataclass(frozen=True)
class Windows:
    """Turns tracks into rows of a model of one window.

    Args:
      prior: the model.
      frames: latent frames of a window.
      seconds: length of a window.
      pattern: its order of prediction.
      references: how many windows of the track say how it should sound, where the model listens.
      vectors: precomputed conditions, where the model does not listen; None for rows that are only looked at.
    """

    prior: PriorConfig
    frames: int
    seconds: float
    pattern: Pattern
    references: int
    vectors: Vectors | None

    @property
    def size(self) -> int:
        """Packets of codes in a window."""
        return 1 if self.prior.next_scale else self.frames

    def packets_of(self, example: dict) -> Int[np.ndarray, "P S"]:
        """A track as packets of codes: windows of scales, or frames of levels."""
        return self.filled(packets.to_packets(example["codes"], self.prior.quantiser.slots), example["meta"]["seconds"])

    def filled(self, codes_PS: Int[np.ndarray, "P S"], seconds: float) -> Int[np.ndarray, "P S"]:
        """The packets of a track of this length that music fills, one window at least.

        A codec fills the last window up with silence, up to a second of it, which is not music to learn from. The last
        of the baseline's frames is too short to matter.
        """
        if self.prior.next_scale:
            return codes_PS[: max(int(seconds / self.seconds + 1e-4), 1)]  # records round seconds to a millionth
        return np.pad(codes_PS, ((0, max(self.frames - len(codes_PS), 0)), (0, 0)), mode="edge")

    def starts(self, codes_PS: np.ndarray) -> int:
        """At how many places a window can begin."""
        return len(codes_PS) - self.size + 1

    def others(self, codes_PS: np.ndarray, start: int) -> Int[np.ndarray, "N"]:
        """Where windows begin that share nothing with the one at `start`, or, where there are none, the farthest."""
        distance = abs(np.arange(self.starts(codes_PS)) - start)
        return np.flatnonzero(distance >= min(self.size, distance.max()))

    def row(self, codes_PS: np.ndarray, start: int) -> dict[str, np.ndarray]:
        """The window that begins at packet `start`, without what says how it should sound.

        Args:
          codes_PS: from `packets_of`.
          start: below `starts`.
        """
        if self.prior.next_scale:
            before_S = codes_PS[start - 1] if start else np.full(codes_PS.shape[1], -1)
            return {"codes": codes_PS[start].astype(np.int32), "before": before_S.astype(np.int32)}
        order = self.pattern.layout(self.frames)
        row = sequence.pack([sequence.START], order, codes_PS[start : start + self.frames].T, order.positions)
        return {name: row[name] for name in ("text", "reads", "targets")}

    def at(self, codes_PS: np.ndarray, places: Sequence[int]) -> Int[np.ndarray, "N S"]:
        """The windows that begin at these places, one behind the other, as a model listens to them."""
        return np.concatenate([codes_PS[at : at + self.size] for at in places]).astype(np.int32)

    def clip(self, codes_PS: np.ndarray) -> Int[np.ndarray, "N S"]:
        """What a model listens to of a whole clip."""
        return self.at(codes_PS, evenly(self.starts(codes_PS) - 1, self.references))

    def draw(self, example: dict, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """A window from anywhere in a track, and what says how it should sound: other windows, or a vector."""
        codes_PS = self.packets_of(example)
        start = int(rng.integers(self.starts(codes_PS)))
        row = self.row(codes_PS, start)
        if not self.prior.listener:
            return row | {"cond": rng.choice(self.vectors.of(example["meta"]["id"]))}
        places = rng.choice(self.others(codes_PS, start), self.references)
        return row | {"reference": self.at(codes_PS, places)}

    def spread(self, example: dict, count: int) -> tuple[list[dict[str, np.ndarray]], Int[np.ndarray, "K V"]]:
        """Windows at even distances over a track, the same ones every time; and how often each code stands in them.

        Args:
          example: the track.
          count: at most so many windows; no two share anything.
        """
        codes_PS = self.packets_of(example)
        found = []
        places = evenly(self.starts(codes_PS) - 1, min(count, len(codes_PS) // self.size))
        for start in places:
            row = self.row(codes_PS, start)
            if self.prior.listener:
                others = self.others(codes_PS, start)
                row["reference"] = self.at(codes_PS, others[evenly(len(others) - 1, self.references)])
            else:
                row["cond"] = self.vectors.of(example["meta"]["id"])[0]
            found.append(row)
        return found, self.counts(self.at(codes_PS, places))

    def counts(self, codes_PS: np.ndarray) -> Int[np.ndarray, "K V"]:
        """How often each code of each level stands in packets of codes."""
        levels = packets.levels_of(packets.to_streams(codes_PS, self.prior.quantiser.slots))
        return np.stack([np.bincount(codes_T, minlength=self.prior.lm.codes) for codes_T in levels])


def batches(config: ConfigDict, windows: Windows, split: str, which: Sequence[int]):
    """These rows of batch i: a function of (seed, i)."""
    settings = config.train
    examples = pipeline.example_batches(config.data.path, split, settings.seed, "all", settings.batch_size, which)

    def build(index: int, tracks: Sequence[dict]):
        rngs = pipeline.row_generators(settings.seed, index, which)
        drawn = [windows.draw(*pair) for pair in zip(tracks, rngs, strict=True)]
        return windows.prior.visibility, sequence.stack(drawn)

    return examples.map_with_index(build)


def shapes(windows: Windows, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The arrays of a batch."""
    codes_PS = np.zeros((windows.size, sum(windows.prior.quantiser.slots)), np.int32)
    row = windows.row(codes_PS, 0)
    if windows.prior.listener:
        row["reference"] = windows.clip(codes_PS)
    else:
        row["cond"] = np.zeros(windows.prior.lm.cond, np.float32)
    return {name: jax.ShapeDtypeStruct((batch_size, *value.shape), value.dtype) for name, value in row.items()}


def windows(config: ConfigDict, data: bool = True) -> Windows:
    """The rows of a token model's configuration, with its condition vectors only where `data` is wanted."""
    model = config.model
    prior = prior_config(config)  # first, as it knows whether the pattern goes with the tokens
    vectors = None
    if data and not model.listener:
        if not config.data.clap:
            raise UserError(
                "model.listener is 0, so every track needs a vector: give them with --config.data.clap=FILE.npz"
            )
        vectors = Vectors(config.data.clap, model.cond)
    if data and model.listener and config.data.clap:
        raise UserError("data.clap gives vectors, which a model with a listener does not read: set model.listener=0")
    frames, seconds = window_frames(config), window_seconds(config)
    return Windows(prior, frames, seconds, pattern_of(config), model.references, vectors)


def trained_counts(make: Windows, path: str, most: int | None = None) -> np.ndarray:
    """How often each code of each level stands in the training tracks, or in the first of them; [K, V]."""
    train = TokenSource(path, "all", "train")
    return sum(make.counts(make.packets_of(train[index])) for index in range(len(train))[:most])
