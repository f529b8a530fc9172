"""AAR's models: what a configuration of each stage describes, and how it is made."""

from collections.abc import Callable

from flax import nnx
from ml_collections import ConfigDict

from hiermusic.codec.codec import Codec, CodecConfig, quantiser_of
from hiermusic.codec.discriminator import Discriminator, DiscriminatorConfig
from hiermusic.codec.multiscale import MultiscaleConfig
from hiermusic.codec.residual import QuantiserConfig
from hiermusic.codec.seanet import SeanetConfig
from hiermusic.errors import UserError
from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.token_lm import TokenLMConfig
from hiermusic.systems.aar.prior import Prior, PriorConfig
from hiermusic.systems.token_facts import facts_of
from hiermusic.tokens import sampling, scales
from hiermusic.tokens.facts import TokenFacts
from hiermusic.tokens.pattern import Pattern

_LARGEST = 1 << 24  # positions of a window times levels


def quantiser_config(model: ConfigDict) -> MultiscaleConfig | QuantiserConfig:
    """The quantiser of a codec's `model`, with how it learns."""
    learning = {name: model[name] for name in ("decay", "kmeans_iterations", "dead_share")}
    match model.quantiser:
        case "residual":
            return QuantiserConfig(levels=model.levels, codes=model.codes, **learning)
        case "multiscale":
            sizes = tuple(model.scales) or scales.schedule(model.schedule, model.window, model.levels)
            scales.check_scales(sizes)
            if sizes[-1] != model.window:
                raise UserError(f"model.scales end at {sizes[-1]}, model.window is {model.window}: make them equal")
            if len(sizes) != model.levels:
                raise UserError(f"model.scales has {len(sizes)} scales: set model.levels={len(sizes)}")
            return MultiscaleConfig(
                scales=sizes,
                codes=model.codes,
                latent=model.code_latent,
                phi=model.phi,
                phi_count=model.phi_count,
                kernel=model.phi_kernel,
                gamma=model.gamma,
                straight_through=model.straight_through,
                objective=model.quantiser_objective,
                **learning,
            )
    raise UserError(f"model.quantiser is '{model.quantiser}': choose multiscale or residual")


def codec_config(model: ConfigDict) -> CodecConfig:
    """The codec of a configuration's `model`: SAT, or the same trunk with a residual quantiser."""
    trunk = SeanetConfig(
        fold=model.fold,
        strides=tuple(model.strides),
        latent=model.latent,
        width=model.width,
        lstm_layers=model.lstm_layers,
        init=model.init,
        dtype=model.dtype,
        remat=model.remat,
    )
    windowed = model.windowed and model.quantiser == "multiscale"  # a row of the other is a single frame
    more = {"noise_db": tuple(model.noise_db), "mel_bands": model.mel_bands}
    return CodecConfig(model.sample_rate, model.channels, trunk, quantiser_config(model), windowed, **more)


def prior_config(config: ConfigDict) -> PriorConfig:
    """AAR of a depth, or the baseline of the same depth."""
    model = config.model
    tokens = facts_of(config)
    depth = model.depth
    next_scale = model.pattern == "next_scale"
    if next_scale != (tokens.quantiser == "multiscale"):
        raise UserError(
            f"model.pattern={model.pattern} does not go with the tokens of a {tokens.quantiser} quantiser: next_scale "
            "predicts those of a multiscale one, the others those of a residual one"
        )
    if next_scale and not 0 <= model.context <= tokens.frames:
        raise UserError(f"model.context={model.context} must lie in 0..{tokens.frames}, the frames of a window")
    if model.listener and model.references < 1:
        raise UserError(
            f"model.references={model.references}: a model that listens hears 1 window or more (one that takes vectors "
            "has model.listener=0)"
        )
    trunk = TransformerConfig(
        layers=depth,
        width=64 * depth,
        heads=depth,
        kv_heads=depth,
        head_dim=64,
        ffn_width=256 * depth,
        norm="layer",
        adaptive=True,
        ffn="gelu",
        positions="learned",
        max_positions=length(config),
        qk_norm="unit",
        bias="all_but_key",
        drop_path=model.drop_path * depth / 24,
        dtype=model.dtype,
        remat=model.remat,
        init_std=(1 / (3 * 64 * depth)) ** 0.5,
    )
    lm = TokenLMConfig(
        transformer=trunk,
        levels=tokens.levels,
        codes=tokens.codes,
        text_size=1,
        head="shared" if next_scale else "window",
        head_init=0.02,
        reads=not next_scale,
        inputs=tokens.latent if next_scale else 0,
        level_embed=next_scale,
        cond=model.cond,
        code_bias=model.codec_tables,
        z_loss=model.z_loss,
    )
    return PriorConfig(
        lm,
        quantiser_of(tokens),
        latent=tokens.latent,
        context=model.context if next_scale else 0,
        context_dropout=model.context_dropout if next_scale else 0.0,
        listener=model.listener,
        cond_dropout=model.cond_dropout,
    )


def length(config: ConfigDict) -> int:
    """Positions of a token model's row."""
    order = pattern_of(config)
    return order.positions(config.model.window) if order.stepwise else config.model.context + order.positions(1)


def pattern_of(config: ConfigDict) -> Pattern:
    """The order of a window: level after level, or the baseline's; UserError for a window that is too long."""
    model, tokens = config.model, facts_of(config)
    if model.pattern == "layer_wise":
        raise UserError("model.pattern is 'layer_wise', whose passes no window of this system has: choose another")
    if model.pattern != "next_scale" and model.window * tokens.levels**2 > _LARGEST:
        raise UserError(f"a window of {model.window} frames of {tokens.levels} levels is too long: lower it")
    return Pattern(model.pattern, tokens.slots)


def tokens_of(config: ConfigDict) -> TokenFacts:
    """The tokens of a codec, or those that a token model predicts."""
    return codec_config(config.model).facts if config.stage == "codec" else facts_of(config)


def window_frames(config: ConfigDict) -> int:
    """Latent frames of a token model's window: the quantiser's, or those that the baseline takes together."""
    return facts_of(config).frames if config.model.pattern == "next_scale" else config.model.window


def window_seconds(config: ConfigDict) -> float:
    """Length of a token model's window."""
    return float(window_frames(config) / facts_of(config).frame_rate)


def make_discriminator(config: ConfigDict) -> Callable[[nnx.Rngs], Discriminator]:
    """The constructor of the discriminator that a codec's configuration trains against."""
    ours = config.discriminator
    settings = DiscriminatorConfig(tuple(ours.fft_sizes), ours.filters, hop=ours.hop, dtype=config.model.dtype)
    return lambda rngs: Discriminator(config.model.channels, settings, rngs=rngs)


def make_model(config: ConfigDict) -> Callable[[nnx.Rngs], nnx.Module]:
    """The constructor of what a configuration trains, whichever stage it is."""
    if config.stage == "codec":
        codec = codec_config(config.model)
        return lambda rngs: Codec(codec, rngs=rngs)
    sampling.check(config.sampling)
    prior = prior_config(config)
    return lambda rngs: Prior(prior, rngs=rngs)
