"""What is told and measured of AAR's models."""

from collections.abc import Callable, Mapping

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from hiermusic.data.token_records import TokenSource
from hiermusic.systems import measures
from hiermusic.systems.aar.models import length, make_discriminator, make_model, tokens_of
from hiermusic.systems.aar.prior import Prior
from hiermusic.systems.aar.rows import trained_counts, windows
from hiermusic.systems.token_facts import check_records
from hiermusic.tokens import sequence

WINDOWS_MEASURED = 8  # of each held-out track, or as many as it has


def inspect(config: ConfigDict) -> dict:
    """Parameters of each component, rates and sequence length, from abstract shapes alone.

    `total` is what gradients train, without a codec's codebooks (`buffers`, moved by averages) and its discriminator.
    """
    model = nnx.eval_shape(lambda: make_model(config)(nnx.Rngs(0)))
    params = measures.counts(model)
    params["total"] = sum(params.values())
    tokens = tokens_of(config)
    positions = config.train.crop_frames if config.stage == "codec" else length(config)
    told = measures.facts(config, dict(params), tokens.hierarchy, float(tokens.frame_rate), positions)
    if config.stage != "codec":
        told["pattern"] = config.model.pattern
    else:
        discriminator = nnx.eval_shape(lambda: make_discriminator(config)(nnx.Rngs(0)))
        told["discriminator_params"] = sum(measures.counts(discriminator).values())
        told["buffers"] = {"codebooks": int(np.prod(model.quantiser.codebooks.shape))}
    return told


def cross_entropy(
    config: ConfigDict, model: Prior, path: str, tracks: int, each: Callable, step: Callable[[], None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Teacher-forced cross-entropy of every level on held-out tracks, and what to set beside it.

    Args:
      config: of a token model.
      model: its weights.
      path: token records.
      tracks: at most so many of them.
      each: (name, tracks, measurement of a track) -> what was measured of every track.
      step: called after every track.
    Returns:
      of each track, nats of all predicted tokens of each level [N, K] and how often each code was one of them
      [N, K, V]; and how often it stands in the training tracks [K, V].
    """
    check_records(config, path)
    make, valid = windows(config), TokenSource(path, "all", "valid")
    graphdef, weights = nnx.split(model)

    @jax.jit
    def loss(weights, batch: Mapping[str, np.ndarray]):
        return nnx.merge(graphdef, weights).loss(batch, visibility=make.prior.visibility)[1]

    def measure(index: int) -> dict[str, np.ndarray]:
        rows, counts_KV = make.spread(valid[index], WINDOWS_MEASURED)
        # one by one: tracks have different numbers of windows, and a program serves one size of batch
        found = [loss(weights, sequence.stack([row])) for row in rows]
        step()
        return {"sums": sum(np.asarray(one["ce_K"] * one["count_K"], np.float64) for one in found), "counts": counts_KV}

    measured = each("tokens", min(len(valid), tracks), measure)
    trained_KV = trained_counts(make, path)
    return *(np.stack([track[name] for track in measured]) for name in ("sums", "counts")), trained_KV
