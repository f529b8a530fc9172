"""AAR's configurations as the things they describe, and whether they fit the data and the codec they are used with."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from hiermusic.codec.codec import Codec, CodecConfig
from hiermusic.codec.multiscale import MultiscaleConfig
from hiermusic.codec.residual import QuantiserConfig
from hiermusic.codec.seanet import SeanetConfig
from hiermusic.data.token_records import TokenSource
from hiermusic.errors import UserError
from hiermusic.nn.token_lm import TokenLMConfig
from hiermusic.nn.transformer import TransformerConfig
from hiermusic.systems import aar_rows, parts
from hiermusic.systems import workdir as workdirs
from hiermusic.systems.aar_model import Prior, PriorConfig
from hiermusic.tokens import scales
from hiermusic.tokens.hierarchy import Hierarchy


def quantiser_config(config: ConfigDict) -> MultiscaleConfig | QuantiserConfig:
    """The quantiser that a codec has, with how it learns, or whose codes a token model predicts."""
    model, learning = config.model, {}
    if config.stage == "codec":
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
            if config.stage == "codec":
                learning |= {"straight_through": model.straight_through, "objective": model.quantiser_objective}
            return MultiscaleConfig(
                scales=sizes,
                codes=model.codes,
                latent=model.code_latent,
                phi=model.phi,
                phi_count=model.phi_count,
                kernel=model.phi_kernel,
                gamma=model.gamma,
                **learning,
            )
    raise UserError(f"model.quantiser is '{model.quantiser}': choose multiscale or residual")


def codec_config(config: ConfigDict) -> CodecConfig:
    """SAT, or the same trunk with a residual quantiser."""
    model = config.model
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
    return CodecConfig(model.sample_rate, model.channels, trunk, quantiser_config(config), windowed)


def prior_config(config: ConfigDict) -> PriorConfig:
    """AAR of a depth, or the baseline of the same depth."""
    model = config.model
    quantiser, depth, next_scale = quantiser_config(config), model.depth, model.pattern == "next_scale"
    if next_scale != (model.quantiser == "multiscale"):
        raise UserError(
            f"model.pattern={model.pattern} does not go with model.quantiser={model.quantiser}: next_scale predicts "
            "the codes of a multiscale one, flatten and delay those of a residual one"
        )
    if next_scale and not 0 <= model.context <= model.window:
        raise UserError(f"model.context={model.context} must lie in 0..{model.window}, the frames of a window")
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
        levels=model.levels,
        codes=model.codes,
        text_size=1,
        head="shared" if next_scale else "window",
        head_init=0.02,
        reads=not next_scale,
        inputs=model.code_latent if next_scale else 0,
        level_embed=next_scale,
        cond=model.cond,
        code_bias=model.codec_tables,
        z_loss=model.z_loss,
    )
    return PriorConfig(
        lm,
        quantiser,
        latent=model.code_latent,
        context=model.context if next_scale else 0,
        context_dropout=model.context_dropout if next_scale else 0.0,
        listener=model.listener,
        cond_dropout=model.cond_dropout,
    )


def length(config: ConfigDict) -> int:
    """Positions of a token model's row."""
    model = config.model
    if model.pattern == "next_scale":
        return model.context + sum(quantiser_config(config).slots)
    return aar_rows.layout(model.pattern, model.window, model.levels).positions


def hop(model: ConfigDict) -> int:
    """Samples a latent frame."""
    return model.fold * math.prod(model.strides)


def hierarchy(config: ConfigDict) -> Hierarchy:
    """The tokens of a codec, or those that a token model predicts."""
    model, quantiser = config.model, quantiser_config(config)
    rate = Fraction(model.sample_rate, hop(model) * quantiser.frames)
    return Hierarchy.of_rows(quantiser.slots, rate, model.codes)


def window_seconds(model: ConfigDict) -> float:
    """Length of a token model's window."""
    return model.window * hop(model) / model.sample_rate


def windows(config: ConfigDict, data: bool = True) -> aar_rows.Windows:
    """The rows of a token model's configuration, with its condition vectors only where `data` is wanted."""
    model, vectors = config.model, None
    if data and not model.listener:
        if not config.data.clap:
            raise UserError(
                "model.listener is 0, so every track needs a vector: give them with --config.data.clap=FILE.npz"
            )
        vectors = aar_rows.Vectors(config.data.clap, model.cond)
    if data and model.listener and config.data.clap:
        raise UserError("data.clap gives vectors, which a model with a listener does not read: set model.listener=0")
    seconds = window_seconds(model)
    return aar_rows.Windows(prior_config(config), model.window, seconds, model.pattern, model.references, vectors)


def check_vectors(vectors: aar_rows.Vectors, path: str) -> None:
    """UserError when a track of the token records at `path` that is trained or measured on has no vector."""
    for split in ("train", "valid"):
        for track in TokenSource(path, split=split).tracks:
            vectors.of(track["id"])


def check_tokens(config: ConfigDict, path: str) -> None:
    """UserError when the token records at `path` are not what a configuration's model predicts."""
    found, wanted = parts.stored_hierarchy(path, config.model.levels), hierarchy(config)
    if (found.sizes, found.rates) != (wanted.sizes, wanted.rates):
        raise UserError(
            f"{path} holds {_rates(found)}, the model predicts {_rates(wanted)}: take tokens of a codec with the same "
            "quantiser, or set the model's quantiser, levels, codes, schedule and window to the codec's"
        )


def codec_of(config: ConfigDict) -> tuple[str, int]:
    """Workdir and step of the codec that made a token model's tokens; `data.codec`, if given, is where it lies now."""
    made_by, step = parts.stored_codec(config.data.path)
    return config.data.codec or made_by, step


def check_codec(config: ConfigDict, codec: str) -> None:
    """UserError when the codec of a workdir makes other codes than those a token model was made for."""
    if not Path(codec).is_dir():
        raise UserError(f"no codec at {codec}, which made the tokens: give its workdir with --config.data.codec=DIR")
    theirs = workdirs.read(codec, "codec")
    if theirs.get("system") != "aar":
        raise UserError(f"{codec} is a codec of the system {theirs.get('system')}: give one of configs/aar/codec.py")
    wanted, model = quantiser_config(config), config.model
    found = quantiser_config(theirs)
    width = theirs.model.code_latent if theirs.model.quantiser == "multiscale" else theirs.model.latent
    names = ("slots", "codes", "phis", "kernel", "gamma")
    same = type(found) is type(wanted) and width == model.code_latent
    same = same and hierarchy(theirs).rates == hierarchy(config).rates
    if not same or any(getattr(found, n, None) != getattr(wanted, n, None) for n in names):
        raise UserError(
            f"{codec} has a {theirs.model.quantiser} quantiser of {_described(theirs, width)}, the model was "
            f"made for a {model.quantiser} one of {_described(config, model.code_latent)}: make them equal"
        )


def check_codebooks(coder: Codec, codec: str, model: Prior, lm: str) -> None:
    """UserError when a trained codec, of the workdir `codec`, is not the one whose codes the model of `lm` predicts."""
    if not np.array_equal(coder.quantiser.codebooks[...], model.quantiser.codebooks[...]):
        raise UserError(f"{codec} has other codebooks than {lm} was trained with: give the codec of its tokens")


def _described(config: ConfigDict, width: int) -> str:
    model, rate = config.model, float(hierarchy(config).tokens_per_second)
    told = f"{model.levels} levels, {model.codes} codes of {width} channels, {rate:g} tokens a second"
    if model.quantiser == "multiscale":
        told += f", windows of {model.window} frames, phi {model.phi}"
    return told


def _rates(tokens: Hierarchy) -> str:
    return f"{len(tokens)} levels of {tokens.sizes[0]} codes, {float(tokens.tokens_per_second):g} tokens a second"
