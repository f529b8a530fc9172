"""PyramidCodec's models: what a configuration of each stage describes, and how it is made."""

from collections.abc import Callable

from flax import nnx
from ml_collections import ConfigDict

from hiermusic.codec.codec import Codec, CodecConfig
from hiermusic.codec.dac import DacConfig
from hiermusic.codec.dac_discriminator import DacDiscriminator, DacDiscriminatorConfig
from hiermusic.codec.factorised import FactorisedConfig
from hiermusic.codec.pyramid import PyramidConfig
from hiermusic.codec.residual import QuantiserConfig
from hiermusic.errors import UserError
from hiermusic.systems.lm import models
from hiermusic.tokens.hierarchy import Hierarchy


def hierarchy(config: ConfigDict) -> Hierarchy:
    """The tokens of a codec, or those that a token model knows."""
    return codec_config(config.model).hierarchy if config.stage == "codec" else models.hierarchy(config)


def quantiser_config(model: ConfigDict) -> PyramidConfig | FactorisedConfig | QuantiserConfig:
    """The quantiser of a codec's `model`: a pyramid, or one level's residual codebooks, which know no `mel_finest`."""
    book = _book(model)
    match model.quantiser:
        case "residual":
            if model.mel_finest:
                raise UserError(
                    "model.mel_finest=True: a residual quantiser has no finest level that alone hears bands: set it to "
                    "False, and model.mel_bands to 0 for a codec that hears none"
                )
            return book
        case "pyramid":
            return PyramidConfig(
                tuple(model.books),
                tuple(model.level_strides),
                book,
                dilations=tuple(model.dilations) if model.heavy else (),
                residual=model.residual,
                mel_finest=model.mel_finest,
                dtype=model.dtype,
                init=model.init,
            )
    raise UserError(f"model.quantiser is '{model.quantiser}': choose pyramid or residual")


def _book(model: ConfigDict) -> FactorisedConfig | QuantiserConfig:
    """What the codebooks are and learn by."""
    shared = {"levels": sum(model.books), "codes": model.codes, "decay": model.decay, "dead_share": model.dead_share}
    shared["kmeans_iterations"] = model.kmeans_iterations
    match model.codebooks:
        case "factorised":
            return FactorisedConfig(**shared, width=model.code_width, dropout=model.quantiser_dropout)
        case "averaged":
            return QuantiserConfig(**shared)
    raise UserError(f"model.codebooks is '{model.codebooks}': choose factorised or averaged")


def codec_config(model: ConfigDict) -> CodecConfig:
    """The codec of a configuration's `model`."""
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
        bare=model.heavy and model.quantiser == "pyramid",
        tanh=model.tanh,
    )
    more = {"noise_db": tuple(model.noise_db), "mel_bands": model.mel_bands, "mel_width": model.mel_width}
    return CodecConfig(model.sample_rate, model.channels, trunk, quantiser_config(model), **more)


def make_discriminator(config: ConfigDict) -> Callable[[nnx.Rngs], DacDiscriminator]:
    """The constructor of the discriminators that a codec's configuration trains against."""
    ours = config.discriminator
    settings = DacDiscriminatorConfig(
        periods=tuple(ours.periods),
        period_widths=tuple(ours.period_widths),
        sizes=tuple(ours.fft_sizes),
        bands=tuple(ours.bands),
        filters=ours.filters,
        dtype=config.model.dtype,
    )
    return lambda rngs: DacDiscriminator(config.model.channels, settings, rngs=rngs)


def make_model(config: ConfigDict) -> Callable[[nnx.Rngs], nnx.Module]:
    """The constructor of what a configuration trains, whichever stage it is."""
    if config.stage == "codec":
        codec = codec_config(config.model)
        return lambda rngs: Codec(codec, rngs=rngs)
    return models.make_model(config)
