"""Khala's models: what a configuration of each stage describes, and how it is made."""

from collections.abc import Callable

from flax import nnx
from ml_collections import ConfigDict

from hiermusic.codec.codec import Codec, CodecConfig
from hiermusic.codec.dac import DacConfig
from hiermusic.codec.discriminator import Discriminator, DiscriminatorConfig
from hiermusic.codec.residual import QuantiserConfig
from hiermusic.errors import UserError
from hiermusic.systems.lm import models
from hiermusic.systems.token_facts import facts_of
from hiermusic.tokens import pattern
from hiermusic.tokens.hierarchy import Hierarchy


def hierarchy(config: ConfigDict) -> Hierarchy:
    """The tokens of a codec, or those that a token model knows."""
    return codec_config(config.model).hierarchy if config.stage == "codec" else models.hierarchy(config)


def codec_config(model: ConfigDict) -> CodecConfig:
    """The codec of a configuration's `model`."""
    quantiser = QuantiserConfig(
        levels=model.levels,
        codes=model.codes,
        decay=model.decay,
        kmeans_iterations=model.kmeans_iterations,
        dead_share=model.dead_share,
        dropout=model.quantiser_dropout,
    )
    trunk = DacConfig(
        strides=tuple(model.strides),
        dilations=tuple(model.dilations),
        encoder_width=model.encoder_width,
        decoder_width=model.decoder_width,
        latent=model.latent,
        init=model.init,
        dtype=model.dtype,
        remat=model.remat,
        fold=model.fold,
    )
    noise_db = tuple(model.noise_db)
    return CodecConfig(
        model.sample_rate, model.channels, trunk, quantiser, noise_db=noise_db, mel_bands=model.mel_bands
    )


def make_discriminator(config: ConfigDict) -> Callable[[nnx.Rngs], Discriminator]:
    """The constructor of the discriminator that a codec's configuration trains against."""
    settings = DiscriminatorConfig(
        tuple(config.discriminator.fft_sizes), config.discriminator.filters, dtype=config.model.dtype
    )
    return lambda rngs: Discriminator(config.model.channels, settings, rngs=rngs)


def make_model(config: ConfigDict) -> Callable[[nnx.Rngs], nnx.Module]:
    """The constructor of what a configuration trains, whichever stage it is."""
    if config.stage == "codec":
        codec = codec_config(config.model)
        return lambda rngs: Codec(codec, rngs=rngs)
    if (quantiser := facts_of(config).quantiser) != "residual":
        raise UserError(f"tokens.quantiser is '{quantiser}': Khala's token models know residual codes")
    order = {"backbone": "stepwise", "superres": "isolated"}[config.stage]
    if not getattr(models.pattern_of(config), order):
        raise UserError(
            f"model.pattern={config.model.pattern} is none of a {config.stage}'s: choose "
            f"{', '.join(pattern.STEPWISE) if order == 'stepwise' else 'layer_wise'}"
        )
    if config.stage == "superres" and "levels" not in config.sampling:  # which songs alone would ask for, much later
        raise KeyError("sampling.levels")
    return models.make_model(config)
