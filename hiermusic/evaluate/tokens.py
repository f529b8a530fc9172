"""How predictable the tokens are: a model's cross-entropy per level beside what mere counting achieves."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from hiermusic.errors import UserError
from hiermusic.tokens.hierarchy import Hierarchy


def per_token(sums_K: Float[np.ndarray, "K"], counts_KV: Int[np.ndarray, "K V"]) -> Float[np.ndarray, "K"]:
    """Mean cross-entropy of each level, in nats a token; NaN for levels that were not predicted.

    Args:
      sums_K: nats of all predicted tokens.
      counts_KV: how often each code was one of them.
    """
    tokens_K = np.sum(counts_KV, axis=1)
    return np.where(tokens_K > 0, sums_K / np.maximum(tokens_K, 1), np.nan)


def unigram(trained_KV: Int[np.ndarray, "K V"], counts_NKV: Int[np.ndarray, "*N K V"]) -> Float[np.ndarray, "*N K"]:
    """What mere counting achieves, the least a model must beat: the frequency of each code, add-one smoothed.

    Args:
      trained_KV: how often each code stands in the training tracks.
      counts_NKV: how often each is to be predicted, which is all that the cross-entropy depends on.
    Returns:
      nats of all tokens of each level.
    """
    smoothed_KV = np.asarray(trained_KV) + 1.0
    log_p_KV = np.log(smoothed_KV / smoothed_KV.sum(axis=1, keepdims=True))
    return -np.sum(counts_NKV * log_p_KV, axis=-1)


def bits_per_second(cross_entropy_K: Float[np.ndarray, "K"], hierarchy: Hierarchy) -> float:
    """Bits per second of audio: sum of rate_k * ce_k / ln 2, for ce in nats.

    The one figure that compares models over different tokenisers, and then only beside reconstruction quality.
    """
    rates = np.array([float(rate) for rate in hierarchy.rates])
    return float(np.sum(rates * np.asarray(cross_entropy_K)) / math.log(2))


def compare(
    sums_NK: Float[np.ndarray, "N K"],
    counts_NKV: Int[np.ndarray, "N K V"],
    trained_KV: Int[np.ndarray, "K V"],
    hierarchy: Hierarchy,
) -> list[dict]:
    """Rows of one table: per predicted level and in total, the model's cross-entropy beside unigram's and uniform's.

    Args:
      sums_NK: the model's nats, teacher forced, of all tokens it predicts of each held-out track.
      counts_NKV: how often each code was one of these tokens; a level without any is not predicted.
      trained_KV: how often each code stands in the training tracks.
      hierarchy: of all of them.
    Returns:
      [{level, rate, model, unigram, uniform, saved, difference}], cross-entropies in bits a token, `saved` the
      share of the unigram's bits the model does without, `difference` what the model spends less what the unigram
      does: {mean, low, high, count}, with a 95 % bootstrap interval over the `count` tracks. Last a row of level
      "all" in bits per second of audio over the levels the model predicts.
    """
    if not sums_NK.shape[1] == counts_NKV.shape[1] == len(trained_KV) == len(hierarchy):
        raise UserError(
            f"cross-entropies of {sums_NK.shape[1]} levels and counts of {len(trained_KV)} do not fit a hierarchy of "
            f"{len(hierarchy)}"
        )
    counts_KV = counts_NKV.sum(0)
    counted_NK = unigram(trained_KV, counts_NKV)
    model_K, unigram_K = (per_token(sums.sum(0), counts_KV) / math.log(2) for sums in (sums_NK, counted_NK))
    uniform_K = np.log2([float(level.size) for level in hierarchy.levels])
    rates = np.array([float(rate) for rate in hierarchy.rates])
    spread = _intervals((sums_NK - counted_NK) / math.log(2), counts_NKV.sum(-1), rates)
    rows = [
        {"level": level, "rate": rates[level], "model": model, "unigram": counted, "uniform": uniform}
        for level, (model, counted, uniform) in enumerate(zip(model_K, unigram_K, uniform_K, strict=True))
    ]
    seen = ~np.isnan(model_K)
    model, counted, uniform = (float(np.sum((rates * ce)[seen])) for ce in (model_K, unigram_K, uniform_K))
    rate = float(rates[seen].sum())
    rows.append({"level": "all", "rate": rate, "model": model, "unigram": counted, "uniform": uniform})
    tracks = {"count": len(sums_NK)}
    return [
        row
        | {"saved": 1 - row["model"] / row["unigram"] if row["unigram"] else math.nan}
        | {"difference": {"mean": row["model"] - row["unigram"], "low": low, "high": high} | tracks}
        for row, (low, high) in zip(rows, spread, strict=True)
        if not math.isnan(row["model"])
    ]


def losing(rows: Sequence[Mapping]) -> list[int]:
    """The levels on which a model spends more bits than counting; `rows` are from `compare`."""
    return [row["level"] for row in rows[:-1] if row["model"] > row["unigram"]]


def _intervals(
    more_NK: Float[np.ndarray, "N K"], tokens_NK: Int[np.ndarray, "N K"], rate_K: np.ndarray, resamples: int = 1000
) -> list[tuple[float, float]]:
    """95 % bootstrap percentile intervals over tracks of what a token of each level costs more, and of all a second."""
    tracks = len(more_NK)
    draws = np.random.default_rng(0).integers(tracks, size=(resamples, tracks))
    times_XN = np.stack([np.bincount(draw, minlength=tracks) for draw in draws])
    tokens_XK = times_XN @ tokens_NK
    each_XK = np.where(tokens_XK > 0, times_XN @ more_NK / np.maximum(tokens_XK, 1), np.nan)
    seen = tokens_NK.sum(0) > 0
    low_K, high_K = np.full((2, len(rate_K)), np.nan)
    low_K[seen], high_K[seen] = np.nanpercentile(each_XK[:, seen], [2.5, 97.5], axis=0)
    whole = np.nanpercentile((rate_K * each_XK)[:, seen].sum(1), [2.5, 97.5])
    return [(float(low), float(high)) for low, high in [*zip(low_K, high_K, strict=True), whole]]
