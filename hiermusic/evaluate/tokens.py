"""How predictable the tokens are: a model's cross-entropy per level beside what mere counting achieves."""

import math

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


def unigram(trained_KV: Int[np.ndarray, "K V"], counts_KV: Int[np.ndarray, "K V"]) -> Float[np.ndarray, "K"]:
    """What mere counting achieves, the least a model must beat: the frequency of each code, add-one smoothed.

    Args:
        trained_KV: how often each code stands in the training tracks.
        counts_KV: how often each is to be predicted, which is all that the cross-entropy depends on.
    Returns: nats a token of each level, as `per_token`.
    """
    smoothed_KV = np.asarray(trained_KV) + 1.0
    log_p_KV = np.log(smoothed_KV / smoothed_KV.sum(axis=1, keepdims=True))
    return per_token(-np.sum(counts_KV * log_p_KV, axis=1), counts_KV)


def bits_per_second(cross_entropy_K: Float[np.ndarray, "K"], hierarchy: Hierarchy) -> float:
    """Bits per second of audio: sum of rate_k * ce_k / ln 2, for ce in nats.

    The one figure that compares models over different tokenisers, and then only beside reconstruction quality.
    """
    rates = np.array([float(rate) for rate in hierarchy.rates])
    return float(np.sum(rates * np.asarray(cross_entropy_K)) / math.log(2))


def compare(model_K: Float[np.ndarray, "K"], unigram_K: Float[np.ndarray, "K"], hierarchy: Hierarchy) -> list[dict]:
    """Rows of one table: per level and in total, the model's cross-entropy beside the unigram's and the uniform's.

    Args:
        model_K: nats a token of each level, teacher forced; NaN for levels this model does not predict.
        unigram_K: from `unigram`, of the same tokens.
        hierarchy: of both.
    Returns: [{level, rate, model, unigram, uniform, saved}], cross-entropies in bits a token, `saved` the share of the
        unigram's bits the model does without; last a row of level "all" in bits per second of audio over the levels
        the model predicts.
    """
    model_K, unigram_K = np.asarray(model_K, np.float64), np.asarray(unigram_K, np.float64)
    if not len(model_K) == len(unigram_K) == len(hierarchy):
        raise UserError(
            f"cross-entropies of {len(model_K)} and {len(unigram_K)} levels do not fit a hierarchy of {len(hierarchy)}"
        )
    uniform_K = np.log([float(level.size) for level in hierarchy.levels])
    rates = np.array([float(rate) for rate in hierarchy.rates])
    rows = []
    for level in range(len(hierarchy)):
        model, unigram, uniform = (float(ce[level]) / math.log(2) for ce in (model_K, unigram_K, uniform_K))
        rows.append({"level": level, "rate": rates[level], "model": model, "unigram": unigram, "uniform": uniform})
    seen = ~np.isnan(model_K)
    model, unigram, uniform = (
        float(np.sum((rates * ce)[seen]) / math.log(2)) for ce in (model_K, unigram_K, uniform_K)
    )
    rate = float(rates[seen].sum())
    rows.append({"level": "all", "rate": rate, "model": model, "unigram": unigram, "uniform": uniform})
    return [row | {"saved": 1 - row["model"] / row["unigram"] if row["unigram"] else math.nan} for row in rows]
