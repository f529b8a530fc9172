"""Whether token records hold what their codec and a model take them for: checks that each give a figure and a verdict.

A level in another's place, a stream of another codec or words of another song cost nothing at training time but the
model; here each is put in on purpose, and the model must mind.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from hiermusic.evaluate.scores import interval

Track = Mapping[str, Any]  # `codes`, and `meta` with what its prompt is made of
Change = Callable[[Callable[[int], Track], int], Track | None]

WORDS = ("description", "tags", "genre", "language", "lyrics", "instrumental")
LEVELS_DECODED = (1, 2, 4, 8, 16, 32, 64)
_OTHERS = 8  # tracks that are asked for words that differ


@dataclass(frozen=True)
class Check:
    """One check.

    Args:
      name: of what it is about.
      figure: what was measured; NaN where it could not be.
      unit: of the figure, in words.
      wanted: what the figure must be, in words.
      passed: whether it is; None where nothing could be measured.
      values: what the figure sums up.
    """

    name: str
    figure: float
    unit: str
    wanted: str
    passed: bool | None
    values: Sequence[float] = ()

    def to_json(self) -> dict[str, Any]:
        """The check as JSON values."""
        return dict(vars(self), values=list(map(float, self.values)))


def norms(books_KVD: Float[np.ndarray, "K V D"], tracks: Sequence[Int[np.ndarray, "T K"]]) -> Check:
    """Whether what a level adds gets smaller with its depth, as what is left over does.

    Args:
      books_KVD: the codec's codebooks.
      tracks: codes of tracks.
    """
    norm_KV = np.linalg.norm(books_KVD, axis=-1)
    codes_TK = np.concatenate(tracks)
    mean_K = norm_KV[np.arange(len(norm_KV)), codes_TK].mean(0)
    figure = _rank_correlation(mean_K)
    unit, wanted = "rank correlation of a level's depth and the mean norm of its codes", "below -0.5"
    return Check("norms fall with depth", figure, unit, wanted, _verdict(figure, figure < -0.5), mean_K)


def snr(decode: Callable[[np.ndarray, int], np.ndarray], tracks: Sequence[Int[np.ndarray, "T K"]]) -> Check:
    """Whether each further level brings the sound nearer to what all of them decode to.

    Args:
      decode: (codes [T, K], levels) -> the sound of so many.
      tracks: codes of tracks.
    """
    depth = tracks[0].shape[1]
    counts = [n for n in LEVELS_DECODED if n < depth]
    ratios = []
    for codes_TK in tracks:
        whole_LC = decode(codes_TK, depth)
        power = np.square(whole_LC, dtype=np.float64).sum()
        if power > 0:
            errors = [np.square(whole_LC - decode(codes_TK, n), dtype=np.float64).sum() for n in counts]
            ratios.append([10 * math.log10(power / max(error, 1e-12 * power)) for error in errors])
    mean_n = np.mean(ratios, axis=0) if ratios else np.zeros(0)
    figure = float(np.diff(mean_n).min()) if len(mean_n) > 1 else math.nan
    unit = f"dB, the least that a step of {', '.join(map(str, counts))} levels adds to the ratio to what all decode to"
    return Check(
        "the ratio of signal to noise rises with levels", figure, unit, "above 0", _verdict(figure, figure > 0), mean_n
    )


def prefers(nats: Mapping[str, Float[np.ndarray, "N"]], tracks: int) -> list[Check]:
    """Whether a model finds real tokens under their own prompt likelier than what they were changed to.

    Args:
      nats: of `changes` by name and "real", nats a token of each track.
      tracks: how many were to be measured.
    """
    rows = []
    for name, spent_N in nats.items():
        if name == "real":
            continue
        told = interval((spent_N - nats["real"]) / math.log(2))
        figure = told["mean"]
        unit = f"bits a token more than the real ones, mean of {told['count']} of {tracks} tracks"
        wanted = f"95 % interval above 0 (it is {told['low']:.3f} … {told['high']:.3f})"
        rows.append(Check(name, figure, unit, wanted, _verdict(figure, told["low"] > 0), told["values"]))
    return rows


def changes(levels: int) -> dict[str, Change]:
    """What is done to the tracks of a model of so many levels, by what it is then to prefer."""
    swaps = {"real tokens before swapped levels": _swapped} if levels > 1 else {}
    return {
        "real tokens before ones under other lyrics": _other_words(("lyrics",)),
        "real tokens before ones under another song's prompt": _other_words(WORDS),
        **swaps,
        "real tokens before shuffled frames": _shuffled,
    }


def _other_words(names: Sequence[str]) -> Change:
    def change(track: Callable[[int], Track], index: int) -> Track | None:
        own = track(index)
        for step in range(1, _OTHERS + 1):
            other = track(index + step)["meta"]
            words = {name: other[name] for name in names if name in other}
            if names == ("lyrics",) and not (words.get("lyrics") and own["meta"].get("lyrics")):
                continue
            if any(own["meta"].get(name) != words.get(name) for name in names):
                kept = {name: value for name, value in own["meta"].items() if name not in names}
                return {**own, "meta": kept | words}
        return None

    return change


def _swapped(track: Callable[[int], Track], index: int) -> Track | None:
    own = track(index)
    if not isinstance(own["codes"], np.ndarray):
        return None
    codes_TK = own["codes"].copy()
    pairs = codes_TK.shape[1] // 2 * 2
    codes_TK[:, 0:pairs:2], codes_TK[:, 1:pairs:2] = own["codes"][:, 1:pairs:2], own["codes"][:, 0:pairs:2]
    return {**own, "codes": codes_TK}


def _shuffled(track: Callable[[int], Track], index: int) -> Track | None:
    own = track(index)
    if not isinstance(own["codes"], np.ndarray):
        return None
    return {**own, "codes": np.random.default_rng((0, index)).permutation(own["codes"])}


def _rank_correlation(values: np.ndarray) -> float:
    if len(values) < 2:
        return math.nan
    ranks = np.argsort(np.argsort(values))
    return float(np.corrcoef(np.arange(len(values)), ranks)[0, 1])


def _verdict(figure: float, passed: bool) -> bool | None:
    return None if math.isnan(figure) else bool(passed)
