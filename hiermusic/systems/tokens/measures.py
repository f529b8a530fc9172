"""What is told and measured of the codecs and the token models that are of no system of their own."""

import math

from flax import nnx
from ml_collections import ConfigDict

from hiermusic.nn.param import parameter_counts
from hiermusic.systems import measures
from hiermusic.systems.lm import measures as lm
from hiermusic.systems.lm.measures import cross_entropy, likelihood  # noqa: F401  the system's own as they are
from hiermusic.systems.tokens.models import codec_config, make_discriminator, make_model, semantic_config


def inspect(config: ConfigDict) -> dict:
    """Parameters of each component, rates and sequence length, from abstract shapes alone."""
    if config.stage == "lm":
        return lm.inspect(config)
    if config.stage == "semantic":
        return _semantic(config)
    model = nnx.eval_shape(lambda: make_model(config)(nnx.Rngs(0)))
    params, tokens = measures.counts(model), codec_config(config.model).hierarchy
    if config.model.quantiser == "residual":
        params["quantiser"] += math.prod(model.quantiser.codebooks.shape)  # moved by averages, not by gradients
    params["total"] = sum(params.values())
    told = measures.facts(config, dict(params), tokens, float(tokens.rates[0]), config.train.crop_frames)
    discriminator = nnx.eval_shape(lambda: make_discriminator(config)(nnx.Rngs(0)))
    told["discriminator_params"] = sum(parameter_counts(discriminator).values())
    return told


def _semantic(config: ConfigDict) -> dict:
    model = nnx.eval_shape(lambda: make_model(config)(nnx.Rngs(0)))
    facts = semantic_config(config).facts
    params = {"features": measures.counts(model)["features"], "clusters": facts.codes * facts.latent}
    params["total"] = sum(params.values())
    frames = round(config.train.crop_seconds * float(facts.frame_rate))
    return measures.facts(config, params, facts.hierarchy, float(facts.frame_rate), frames)
