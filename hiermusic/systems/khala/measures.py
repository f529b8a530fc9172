"""What is told and measured of Khala's models."""

import math

from flax import nnx
from ml_collections import ConfigDict

from hiermusic.nn.param import parameter_counts
from hiermusic.systems import measures
from hiermusic.systems.khala import rows
from hiermusic.systems.khala.models import hierarchy, make_discriminator, make_model
from hiermusic.systems.lm import measures as lm

_MEASURED = {"superres": {"measured": rows.measured}}


def inspect(config: ConfigDict) -> dict:
    """Parameters of each component, rates and sequence length, from abstract shapes alone."""
    if config.stage != "codec":
        return lm.inspect(config)
    model = nnx.eval_shape(lambda: make_model(config)(nnx.Rngs(0)))
    params, tokens = measures.counts(model), hierarchy(config)
    params["quantiser"] += math.prod(model.quantiser.codebooks.shape)  # moved by averages, not by gradients
    discriminator = nnx.eval_shape(lambda: make_discriminator(config)(nnx.Rngs(0)))
    params["discriminator"] = sum(parameter_counts(discriminator).values())
    params["total"] = sum(params.values())
    return measures.facts(config, dict(params), tokens, float(tokens.rates[0]), config.train.crop_frames)


def cross_entropy(config: ConfigDict, *arguments):
    """Teacher-forced cross-entropy of every level on held-out tracks; see `systems.lm.measures.cross_entropy`."""
    return lm.cross_entropy(config, *arguments, **_MEASURED.get(config.stage, {}))


def likelihood(config: ConfigDict, *arguments):
    """The same of tracks as they are and as they were changed; see `systems.lm.measures.likelihood`."""
    return lm.likelihood(config, *arguments, **_MEASURED.get(config.stage, {}))
