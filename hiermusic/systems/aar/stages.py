"""AAR's stages: what trains its models, and whether data, codec and model fit each other."""

from functools import partial
from pathlib import Path

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from hiermusic.codec.codec import Codec
from hiermusic.codec.objective import ObjectiveConfig
from hiermusic.data.token_records import TokenSource
from hiermusic.errors import UserError
from hiermusic.systems import parts
from hiermusic.systems import workdir as workdirs
from hiermusic.systems.aar.models import (
    codec_config,
    hierarchy,
    length,
    make_discriminator,
    make_model,
    prior_config,
    quantiser_config,
    window_seconds,
)
from hiermusic.systems.aar.prior import Prior
from hiermusic.systems.aar.rows import Vectors, batches, shapes, trained_counts, windows
from hiermusic.tokens.hierarchy import Hierarchy
from hiermusic.tokens.visibility import Visibility
from hiermusic.train import checkpoint
from hiermusic.train.codec import CodecStage
from hiermusic.train.lm import LMStage
from hiermusic.train.stage import Work

TRACKS_COUNTED = 1000  # of those to learn from, before heads begin at what was counted


def stage(config: ConfigDict) -> CodecStage | LMStage:
    """The training stage of a configuration, its data still to be opened."""
    if config.stage == "codec":
        spectra = tuple(config.loss.mel_windows)
        bands = (config.loss.mel_bands,) * len(spectra)
        objective = ObjectiveConfig(**{**config.loss, "mel_windows": spectra, "mel_bands": bands})
        return parts.codec_stage(config, codec_config(config), make_discriminator(config), objective)
    make = windows(config, data=False)

    def open_tokens(workdir: Path) -> None:
        nonlocal make
        make = windows(config)
        check_tokens(config, config.data.path)
        if make.vectors:
            check_vectors(make.vectors, config.data.path)
        if not checkpoint.steps(workdir):  # a run that goes on has the quantiser in its checkpoint
            check_codec(config, codec_of(config)[0])

    def prepare(module: nnx.Module) -> None:
        codec = workdirs.load_codec(*codec_of(config))
        if config.model.codec_tables:
            counts_KV = trained_counts(config, make, config.data.path, TRACKS_COUNTED)
            parts.start_from_codec(codec, module.model.lm, counts_KV)
        parts.start_from(config.init_from, module.model)
        module.model.take_quantiser(codec.quantiser)

    return LMStage(
        config,
        make_model(config),
        train=lambda rows: batches(config, make, "train", rows),
        valid=lambda rows: batches(config, make, "valid", rows),
        examples=[(make.prior.visibility, shapes(make, config.train.batch_size))],
        work=partial(_work, config),
        length=length(config),
        trunk=make.prior.lm.transformer,
        prepare=prepare,
        open=open_tokens,
        places=("data.clap",),
    )


def _work(config: ConfigDict, visibility: Visibility) -> Work:
    model, prior, batch = config.model, prior_config(config), config.train.batch_size
    heads = 1 if prior.next_scale else model.levels
    flops = prior.lm.flops(length(config), visibility, heads)
    seconds = window_seconds(model)
    tokens = float(hierarchy(config).tokens_per_second) * seconds
    return Work(flops=3 * flops * batch, tokens=round(tokens * batch), seconds=seconds * batch)


def check_vectors(vectors: Vectors, path: str) -> None:
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
