"""What is told and measured of Khala's models."""

import math
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from hiermusic.data.token_records import TokenSource
from hiermusic.nn.param import parameter_counts
from hiermusic.nn.token_lm import TokenLM
from hiermusic.systems import measures
from hiermusic.systems.khala.models import hierarchy, make_discriminator, make_model
from hiermusic.systems.khala.rows import make_rows
from hiermusic.systems.tokens import check_records
from hiermusic.tokens import sequence
from hiermusic.tokens.visibility import Visibility

Each = Callable[[str, int, Callable[[int], dict[str, np.ndarray]]], list]

CROPS_MEASURED = 4  # of each held-out track, where training too takes crops from anywhere


def inspect(config: ConfigDict) -> dict:
    """Parameters of each component, rates and sequence length, from abstract shapes alone."""
    model = nnx.eval_shape(lambda: make_model(config)(nnx.Rngs(0)))
    params = measures.counts(model)
    tokens = hierarchy(config)
    if config.stage == "codec":
        params["quantiser"] += math.prod(model.quantiser.codebooks.shape)  # moved by averages, not by gradients
        discriminator = nnx.eval_shape(lambda: make_discriminator(config)(nnx.Rngs(0)))
        params["discriminator"] = sum(parameter_counts(discriminator).values())
    params["total"] = sum(params.values())
    length = config.train.crop_frames if config.stage == "codec" else config.model.length
    return measures.facts(config, dict(params), tokens, float(tokens.rates[0]), length)


def cross_entropy(
    config: ConfigDict, model: TokenLM, path: str, tracks: int, each: Each, step: Callable[[], None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Teacher-forced cross-entropy of every level on held-out tracks, and what to set beside it.

    Args:
      config: of a backbone or a super-resolution model.
      model: its weights.
      path: token records.
      tracks: at most so many of them.
      each: (name, tracks, measurement of a track) -> what was measured of every track.
      step: called after every batch.
    Returns:
      of each track, nats of all predicted tokens of each level [N, K] and how often each code was one of them
      [N, K, V]; and how often it stands in the training tracks [K, V].
    """
    check_records(config, path)
    rows, known = make_rows(config), hierarchy(config)
    train, valid = (TokenSource(path, slice(0, len(known)), split) for split in ("train", "valid"))
    graphdef, weights = nnx.split(model)
    crops = CROPS_MEASURED if config.data.crop == "random" else 1

    @partial(jax.jit, static_argnums=2)
    def loss(weights, batch, visibility):
        return nnx.merge(graphdef, weights).loss(batch, visibility=visibility)[1]

    def counts(codes_TK: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(codes_T[codes_T >= 0], minlength=known.sizes[0]) for codes_T in codes_TK.T])

    def measure(index: int) -> dict[str, np.ndarray]:
        example, rng = valid[index], np.random.default_rng((config.train.seed, index))
        sums_K = np.zeros(len(known))
        counts_KV = 0

        def add(row: sequence.Row, visibility: Visibility, **extra) -> None:
            nonlocal counts_KV
            batch = sequence.stack([row]) | extra
            batch.pop("text_targets")  # the end is no code, and level 0 would answer for it
            metrics = loss(weights, batch, visibility)
            sums_K[:] += np.asarray(metrics["ce_K"] * metrics["count_K"])
            counts_KV = counts_KV + counts(row["targets"])
            step()

        for _ in range(crops):
            if config.stage == "backbone":
                add(rows.backbone(example, rng), Visibility.causal())
                continue
            add(rows.alignment(example, rng), Visibility.causal(), level=np.zeros(1, np.int32))
            for level in range(1, len(known)):
                add(rows.refinement(example, rng, level), Visibility.full(), level=np.full(1, level, np.int32))
        return {"sums": sums_K, "counts": counts_KV}

    measured = each("tokens", min(len(valid), tracks), measure)
    trained_KV = sum(counts(train[index]["codes"]) for index in range(len(train)))
    return *(np.stack([track[name] for track in measured]) for name in ("sums", "counts")), trained_KV
