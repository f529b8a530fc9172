"""The reconstruction scores every table shares, and their confidence intervals."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from hiermusic.audio import measure
from hiermusic.errors import UserError

SCORES = {  # name: (heading, unit, True if higher is better)
    "si_sdr": ("SI-SDR", "dB", True),
    "sdr": ("SDR", "dB", True),
    "mel": ("Mel distance", "", False),
    "stft": ("STFT distance", "", False),
}

Wave = Float[np.ndarray, "L C"]


def score(ref_LC: Wave, est_LC: Wave, sample_rate: int) -> dict[str, float]:
    """The four scores of `SCORES` and `silence`, the share of silent 50 ms frames of the estimate.

    Silence is reported because an empty output passes some distances well: read no score without it.
    """
    return {
        "si_sdr": measure.si_sdr(ref_LC, est_LC),
        "sdr": measure.sdr(ref_LC, est_LC),
        "mel": measure.mel_distance(ref_LC, est_LC, sample_rate),
        "stft": measure.stft_distance(ref_LC, est_LC),
        "silence": measure.silence_share(est_LC, sample_rate),
    }


def interval(values: Sequence[float], seed: int = 0, resamples: int = 1000) -> dict[str, Any]:
    """Mean over clips with its 95 % bootstrap percentile interval: {mean, low, high, count, values}.

    Args:
      values: one a clip, returned as given; NaN (undefined for that clip) is left out of the rest, and `count` says
        how many remained.
      seed: of the resampling, so that a table can be made again to the last digit.
      resamples: bootstrap draws.
    """
    given = np.asarray(values, np.float64)
    kept = given[~np.isnan(given)]
    if not kept.size:
        return {"mean": math.nan, "low": math.nan, "high": math.nan, "count": 0, "values": given.tolist()}
    draws = np.random.default_rng(seed).integers(kept.size, size=(resamples, kept.size))
    low, high = np.percentile(kept[draws].mean(axis=1), [2.5, 97.5])
    return {
        "mean": float(kept.mean()),
        "low": float(low),
        "high": float(high),
        "count": int(kept.size),
        "values": given.tolist(),
    }


def difference(scores: Mapping[str, Any], others: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
    """What a score gains over another on the same clips, clip by clip: the `interval` of the differences.

    Clips differ far more than codecs do, so two intervals may overlap where their difference is beyond doubt.

    Args:
      scores, others: from `interval`, of the same clips in the same order.
      seed: of the resampling.
    """
    pairs = zip(scores["values"], others["values"], strict=True)
    return interval([value - other for value, other in pairs], seed)


def gap(values: Sequence[float], others: Sequence[float], seed: int = 0, resamples: int = 1000) -> dict[str, Any]:
    """Difference of two means with its 95 % bootstrap percentile interval, of clips that are not the same ones.

    Args:
      values, others: one a clip; NaN is left out.
      seed: of the resampling.
      resamples: bootstrap draws, each of both groups anew.
    Returns:
      {mean, low, high}; NaN where a group has no value.
    """
    kept = [given[~np.isnan(given)] for given in (np.asarray(values, float), np.asarray(others, float))]
    if not all(group.size for group in kept):
        return dict.fromkeys(("mean", "low", "high"), math.nan)
    draw = np.random.default_rng(seed)
    one, other = (group[draw.integers(group.size, size=(resamples, group.size))].mean(axis=1) for group in kept)
    low, high = np.percentile(one - other, [2.5, 97.5])
    return {"mean": float(kept[0].mean() - kept[1].mean()), "low": float(low), "high": float(high)}


def summarise(per_clip: Sequence[Mapping[str, float]], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Dictionaries of one value a clip -> one dictionary of `interval`s."""
    return {name: interval([clip[name] for clip in per_clip], seed) for name in per_clip[0]}


def audible(clips: Sequence[Wave], gate_db: float) -> list[Wave]:
    """The clips whose RMS reaches `gate_db` dBFS: ratios on silence say nothing. UserError if none does."""
    kept = [clip for clip in clips if float(np.mean(np.square(clip, dtype=np.float64))) >= 10 ** (gate_db / 10)]
    if not kept:
        raise UserError(f"none of the {len(clips)} clips reaches {gate_db} dBFS; evaluate on clips that sound")
    return kept


def to_json(value: Any) -> Any:
    """A result as JSON may hold it: what is not a finite number becomes null."""
    return _each(value, lambda leaf: None if isinstance(leaf, float) and not math.isfinite(leaf) else leaf)


def from_json(value: Any) -> Any:
    """A result to calculate with and to show: null becomes NaN."""
    return _each(value, lambda leaf: math.nan if leaf is None else leaf)


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _each(item, change) for key, item in value.items()}
    return [_each(item, change) for item in value] if isinstance(value, list | tuple) else change(value)


def clips_hash(clips: Sequence[Wave]) -> str:
    """Twelve hex digits that differ as soon as any sample of the clips does: figures compare only where they agree."""
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(str(clip.shape).encode() + np.ascontiguousarray(clip, "<f4").tobytes())
    return digest.hexdigest()[:12]


def protocol_hash(protocol: Mapping) -> str:
    """Twelve hex digits that differ as soon as any setting of an evaluation does."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:12]
