"""Codecs, tokenizers of meaning and token models of no system of their own: what a configuration of each describes."""

import math
from collections.abc import Callable

from flax import nnx
from ml_collections import ConfigDict

from hiermusic.codec.codec import Codec, CodecConfig
from hiermusic.codec.dac import DacConfig
from hiermusic.codec.dac_discriminator import DacDiscriminator, DacDiscriminatorConfig
from hiermusic.codec.discriminator import Discriminator, DiscriminatorConfig
from hiermusic.codec.factorised import FactorisedConfig
from hiermusic.codec.residual import QuantiserConfig
from hiermusic.codec.seanet import SeanetConfig
from hiermusic.codec.segments import SegmentsConfig
from hiermusic.codec.spectro import SpectroConfig
from hiermusic.errors import UserError
from hiermusic.pretrained import semantic
from hiermusic.pretrained.semantic import Semantic, SemanticConfig
from hiermusic.systems.lm import models


def codec_config(model: ConfigDict) -> CodecConfig:
    """The codec of a configuration's `model`: EnCodec, DAC or SpectroStream."""
    trunk = _trunk(model)
    segments = None
    if seconds := model.get("segment_seconds"):  # a field that folders of earlier versions have not
        samples = int(seconds * model.sample_rate) if math.isfinite(seconds) else 0
        segments = SegmentsConfig(samples, model.overlap, trunk.hop, model.loudness)
    return CodecConfig(model.sample_rate, model.channels, trunk, _quantiser(model), segments=segments)


def _trunk(model: ConfigDict) -> SeanetConfig | DacConfig | SpectroConfig:
    shared = {"strides": tuple(model.strides), **{name: model[name] for name in ("latent", "init", "dtype", "remat")}}
    if model.trunk == "spectro":
        own = {"spectrum": model.spectrum, "width": model.width, "time_strides": tuple(model.time_strides)}
        return SpectroConfig(**shared, **own)
    shared |= {"dilations": tuple(model.dilations), "fold": model.fold}
    match model.trunk:
        case "seanet":
            own = ("width", "kernel", "last_kernel", "residual_kernel", "compress", "lstm_layers")
            own += ("causal", "norm", "shortcut", "ragged")
            padding = model.get("padding", "reflect")  # as above
            return SeanetConfig(**shared, **{name: model[name] for name in own}, padding=padding)
        case "dac":
            own = ("encoder_width", "decoder_width", "tanh", "short")
            return DacConfig(**shared, **{name: model[name] for name in own})
    raise UserError(f"model.trunk is '{model.trunk}': choose seanet, dac or spectro")


def _quantiser(model: ConfigDict) -> QuantiserConfig | FactorisedConfig:
    shared = {name: model[name] for name in ("levels", "codes", "decay", "kmeans_iterations", "dead_share")}
    match model.quantiser:
        case "residual":
            return QuantiserConfig(**shared, dropout=model.level_dropout)
        case "factorised":
            return FactorisedConfig(**shared, width=model.code_width, dropout=model.quantiser_dropout)
    raise UserError(f"model.quantiser is '{model.quantiser}': choose residual or factorised")


def make_discriminator(config: ConfigDict) -> Callable[[nnx.Rngs], nnx.Module]:
    """The constructor of the discriminators that a codec's configuration trains against: those of its trunk's paper."""
    ours, channels, dtype = config.discriminator, config.model.channels, config.model.dtype
    sizes, filters = tuple(ours.fft_sizes), ours.filters
    if config.model.trunk == "dac":
        periods = {name: tuple(ours[name]) for name in ("periods", "period_widths", "bands")}
        many = DacDiscriminatorConfig(sizes=sizes, filters=filters, dtype=dtype, **periods)
        return lambda rngs: DacDiscriminator(channels, many, rngs=rngs)
    one = DiscriminatorConfig(sizes, filters, hop=ours.hop, dtype=dtype)
    return lambda rngs: Discriminator(channels, one, rngs=rngs)


def semantic_config(config: ConfigDict) -> SemanticConfig:
    """The tokenizer of meaning of a configuration, whose features it names or has learnt."""
    model = config.model
    if config.features:
        features = semantic.of_fields(config.features.to_dict())
    elif model.encoder:
        features = semantic.features_of(model.encoder, model.layer)
    else:
        raise UserError(f"model.encoder is empty: give {semantic.CHOICES}")
    if not 1 < model.codes <= 1 << 16:  # what token records hold
        raise UserError(f"model.codes={model.codes}: give a number of clusters from 2 to {1 << 16:,}")
    if not 0 <= model.window < 3600 or not 0 <= model.dead_share < 1:
        raise UserError(f"model.window={model.window} is no number of seconds, or model.dead_share no share below 1")
    return SemanticConfig(features, model.codes, float(model.window), float(model.dead_share))


def make_model(config: ConfigDict) -> Callable[[nnx.Rngs], nnx.Module]:
    """The constructor of what a configuration trains, whichever stage it is."""
    if config.stage == "codec":
        codec = codec_config(config.model)
        return lambda rngs: Codec(codec, rngs=rngs)
    if config.stage == "semantic":
        tokenizer = semantic_config(config)
        return lambda rngs: Semantic(tokenizer, rngs=rngs)
    return models.make_model(config)
