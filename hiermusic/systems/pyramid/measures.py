"""What is told and measured of PyramidCodec's models."""

from flax import nnx
from ml_collections import ConfigDict

from hiermusic.systems import measures
from hiermusic.systems.lm import measures as lm
from hiermusic.systems.lm.measures import cross_entropy, likelihood  # noqa: F401  the system's own as they are
from hiermusic.systems.pyramid.models import hierarchy, make_discriminator, make_model


def inspect(config: ConfigDict) -> dict:
    """Parameters of each component, rates and sequence length, from abstract shapes alone.

    `total` is without the discriminators; `released_params`, of a heavy pyramid, is it with the upsampler that the
    released code has behind its finest level, which nothing reads and which is not made here. That code knows no
    `mel_finest`.
    """
    if config.stage != "codec":
        return lm.inspect(config)
    model = nnx.eval_shape(lambda: make_model(config)(nnx.Rngs(0)))
    params = measures.counts(model)
    params["total"] = sum(params.values())
    tokens = hierarchy(config)
    told = measures.facts(config, dict(params), tokens, float(tokens.rates[-1]), config.train.crop_frames)
    discriminator = nnx.eval_shape(lambda: make_discriminator(config)(nnx.Rngs(0)))
    told["discriminator_params"] = sum(measures.counts(discriminator).values())
    heavy = config.model.quantiser == "pyramid" and config.model.heavy
    if heavy and len(config.model.books) > 1 and not config.model.mel_finest:
        unread = sum(measures.counts(model.quantiser.raises[-1]).values())
        told["released_params"] = params["total"] + unread
    return told
