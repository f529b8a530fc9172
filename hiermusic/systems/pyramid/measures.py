"""What is told and measured of PyramidCodec's models."""

from flax import nnx
from ml_collections import ConfigDict

from hiermusic.systems import measures
from hiermusic.systems.lm import measures as lm
from hiermusic.systems.lm.measures import cross_entropy  # noqa: F401  the system's own as it is
from hiermusic.systems.pyramid.models import hierarchy, make_discriminator, make_model


def inspect(config: ConfigDict) -> dict:
    """Parameters of each component, rates and sequence length, from abstract shapes alone."""
    if config.stage != "codec":
        return lm.inspect(config)
    params = measures.counts(nnx.eval_shape(lambda: make_model(config)(nnx.Rngs(0))))
    params["total"] = sum(params.values())
    tokens = hierarchy(config)
    told = measures.facts(config, dict(params), tokens, float(tokens.rates[-1]), config.train.crop_frames)
    discriminator = nnx.eval_shape(lambda: make_discriminator(config)(nnx.Rngs(0)))
    told["discriminator_params"] = sum(measures.counts(discriminator).values())
    return told
