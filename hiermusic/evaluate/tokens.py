"""How predictable the tokens are: a model's cross-entropy per level beside what mere counting achieves."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from hiermusic.errors import UserError
from hiermusic.tokens.hierarchy import Hierarchy
from hiermusic.tokens.rows import levels_of


class Unigram:
    """The frequency of each code of each level, add-one smoothed: the least a model must beat."""

    def __init__(self, codes: Sequence[Any], hierarchy: Hierarchy):
        """
        Args:
            codes: training codes, one entry a track, in a form that `tokens.rows.levels_of` takes.
            hierarchy: of the codes.
        """
        self.log_probabilities: list[np.ndarray] = []  # nats, [V_k] a level
        for spec, *streams in zip(hierarchy.levels, *map(levels_of, codes), strict=True):
            counts = np.bincount(np.concatenate(streams).astype(np.int64), minlength=spec.size) + 1.0
            self.log_probabilities.append(np.log(counts / counts.sum()))

    def cross_entropy(self, codes: Sequence[Any]) -> Float[np.ndarray, "K"]:
        """Mean cross-entropy of each level of held-out codes, in nats a token."""
        streams = zip(self.log_probabilities, *map(levels_of, codes), strict=True)
        return np.array([-log_p_V[np.concatenate(level).astype(np.int64)].mean() for log_p_V, *level in streams])


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
        unigram_K: from `Unigram.cross_entropy` on the same held-out codes.
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
