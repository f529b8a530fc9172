"""Khala's models: what a configuration of each stage describes, and how it is made."""

from collections.abc import Callable

from flax import nnx
from ml_collections import ConfigDict

from hiermusic.codec.codec import Codec, CodecConfig
from hiermusic.codec.dac import DacConfig
from hiermusic.codec.discriminator import Discriminator, DiscriminatorConfig
from hiermusic.codec.residual import QuantiserConfig
from hiermusic.errors import UserError
from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.token_lm import TokenLM, TokenLMConfig
from hiermusic.systems.tokens import facts_of
from hiermusic.tokens.hierarchy import Hierarchy
from hiermusic.tokens.vocabulary import TextTokenizer, Vocabulary

# MARK: tokens


def vocabulary(model: ConfigDict) -> Vocabulary:
    """The text side of a token model: Llama 3.1's ids (khala.md 2.1) or bytes."""
    if model.tokenizer == "llama31":
        return Vocabulary.llama31()
    if model.tokenizer == "bytes":
        return Vocabulary.byte_level(model.duration_unit)
    raise UserError(f"model.tokenizer is '{model.tokenizer}': choose bytes or llama31")


def tokenizer(model: ConfigDict) -> TextTokenizer:
    """What turns prompts into ids; Llama 3.1's needs its tokenizer.json at `model.tokenizer_file`."""
    if model.tokenizer == "llama31" and not model.tokenizer_file:
        raise UserError("model.tokenizer is llama31: give its tokenizer.json with --config.model.tokenizer_file=PATH")
    return TextTokenizer(vocabulary(model), model.tokenizer_file or None)


def hierarchy(config: ConfigDict) -> Hierarchy:
    """The tokens of a codec, or those that a token model knows: the first `model.levels` of them, 0 for all."""
    if config.stage == "codec":
        return codec_config(config.model).hierarchy
    tokens = facts_of(config)
    levels = config.model.levels
    if tokens.quantiser != "residual":
        raise UserError(f"tokens.quantiser is '{tokens.quantiser}': Khala's token models know residual codes")
    if not 0 <= levels <= tokens.levels:
        raise UserError(f"model.levels={levels}: the tokens have {tokens.levels} levels; 0 takes all")
    return tokens.hierarchy.select(0, levels or tokens.levels)


# MARK: models


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


def token_lm_config(config: ConfigDict) -> TokenLMConfig:
    """The backbone or the super-resolution model of a configuration; songs end where the backbone ends them."""
    model = config.model
    trunk = TransformerConfig(
        layers=model.layers,
        width=model.width,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        ffn_width=model.ffn_width,
        rope_base=model.rope_base,
        base_width=model.base_width,
        bias=model.bias,
        qk_norm=model.qk_norm,
        dropout=model.dropout,
        dtype=model.dtype,
        remat=model.remat,
    )
    ids, tokens = vocabulary(model), hierarchy(config)
    return TokenLMConfig(
        levels=len(tokens),
        codes=tokens.sizes[0],
        text_size=ids.text_size,
        end=ids.eos if config.stage == "backbone" else None,
        transformer=trunk,
        head=model.head,
        code_bias=model.codec_tables,
        z_loss=model.z_loss,
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
    if config.stage == "superres" and "levels" not in config.sampling:  # which songs alone would ask for, much later
        raise KeyError("sampling.levels")
    token_lm = token_lm_config(config)
    return lambda rngs: TokenLM(token_lm, rngs=rngs)
