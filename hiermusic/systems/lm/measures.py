"""What is told and measured of a token model."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from hiermusic.data.streams import TokenStreams
from hiermusic.data.token_records import TokenSource
from hiermusic.nn.token_lm import TokenLM
from hiermusic.systems import measures
from hiermusic.systems.lm.models import given_streams, hierarchy, make_model
from hiermusic.systems.lm.rows import Rows, levels_of, make_rows, wanted
from hiermusic.systems.token_facts import check_records, facts_of, own_place
from hiermusic.tokens import sequence
from hiermusic.tokens.visibility import Visibility

Each = Callable[[str, int, Callable[[int], dict[str, np.ndarray]]], list]
Measured = Callable[[Rows, dict, np.random.Generator], Iterator[tuple[sequence.Row, Visibility]]]

CROPS_MEASURED = 4  # of each held-out track, where training too takes crops from anywhere


def inspect(config: ConfigDict) -> dict:
    """Parameters of each component, rates and sequence length, from abstract shapes alone."""
    params = measures.counts(nnx.eval_shape(lambda: make_model(config)(nnx.Rngs(0))))
    params["total"] = sum(params.values())
    told = measures.facts(
        config, dict(params), hierarchy(config), float(facts_of(config).frame_rate), config.model.length
    )
    return told | {"pattern": config.model.pattern}


def cross_entropy(
    config: ConfigDict,
    model: TokenLM,
    path: str,
    tracks: int,
    each: Each,
    step: Callable[[], None],
    measured: Measured = Rows.measured,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Teacher-forced cross-entropy of every level on held-out tracks, and what to set beside it.

    Args:
      config: of a token model.
      model: its weights.
      path: token records.
      tracks: at most so many of them.
      each: (name, tracks, measurement of a track) -> what was measured of every track.
      step: called after every batch.
      measured: the rows of a track, as `Rows.measured`.
    Returns:
      of each track, nats of all predicted tokens of each level [N, K] and how often each code was one of them
      [N, K, V]; and how often it stands in the training tracks [K, V].
    """
    check_records(config, path)
    rows, known = make_rows(config), hierarchy(config)
    train, valid = (_source(config, path, split) for split in ("train", "valid"))
    first = sum(given_streams(config))  # levels of the streams in front are nobody's to predict
    graphdef, weights = nnx.split(model)
    crops = CROPS_MEASURED if config.data.crop == "random" else 1

    @partial(jax.jit, static_argnums=2)
    def loss(weights, batch, visibility):
        return nnx.merge(graphdef, weights).loss(batch, visibility=visibility)[1]

    def counts(levels) -> np.ndarray:
        return np.stack([np.bincount(codes_T[codes_T >= 0], minlength=max(known.sizes)) for codes_T in levels])

    def measure(index: int) -> dict[str, np.ndarray]:
        example, rng = valid[index], np.random.default_rng((config.train.seed, index))
        sums_K = np.zeros(len(known))
        counts_KV = np.zeros((len(known), max(known.sizes)), np.int64)
        for _ in range(crops):
            for row, seen in measured(rows, example, rng):
                batch = sequence.stack([row])
                batch.pop("text_targets")  # the end is no code, and level 0 would answer for it
                metrics = loss(weights, batch, seen)
                sums_K[:] += np.asarray(metrics["ce_K"] * metrics["count_K"])
                if "level" in row:
                    counts_KV[row["level"]] += counts([row["targets"]])[0]
                else:
                    counts_KV += counts(row["targets"].T)
                step()
        return {"sums": sums_K[first:], "counts": counts_KV[first:]}

    found = each("tokens", min(len(valid), tracks), measure)
    trained_KV = sum(counts(levels_of(train[index]["codes"])[first:]) for index in range(len(train)))
    return *(np.stack([track[name] for track in found]) for name in ("sums", "counts")), trained_KV


def _source(config: ConfigDict, path: str, split: str) -> TokenSource | TokenStreams:
    levels = wanted(config, path)
    if isinstance(levels, dict):
        return TokenStreams(path, levels, split)
    return TokenSource(own_place(config, path), levels, split)
