"""AAR's stages: what trains its models, and whether data, codec and model fit each other."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from hiermusic.codec.codec import Codec
from hiermusic.data.streams import Tokenizer
from hiermusic.data.token_records import TokenSource
from hiermusic.errors import UserError
from hiermusic.systems import stages, start, token_facts
from hiermusic.systems import workdir as workdirs
from hiermusic.systems.aar.models import (
    codec_config,
    length,
    make_discriminator,
    make_model,
    prior_config,
    tokens_of,
    window_seconds,
)
from hiermusic.systems.aar.prior import Prior
from hiermusic.systems.aar.rows import Vectors, batches, shapes, trained_counts, windows
from hiermusic.tokens.visibility import Visibility
from hiermusic.train import checkpoint
from hiermusic.train.codec import CodecStage
from hiermusic.train.lm import LMStage
from hiermusic.train.stage import Work

TRACKS_COUNTED = 1000  # of those to learn from, before heads begin at what was counted


def stage(config: ConfigDict) -> CodecStage | LMStage:
    """The training stage of a configuration, its data still to be opened."""
    if config.stage == "codec":
        return stages.codec_stage(config, codec_config(config.model), make_discriminator(config))
    make = windows(config, data=False)

    def open_tokens(workdir: Path) -> None:
        nonlocal make
        make = windows(config)
        token_facts.check_records(config, config.data.path)
        if make.vectors:
            check_vectors(make.vectors, config.data.path)
        if not checkpoint.steps(workdir):  # a run that goes on has the quantiser in its checkpoint
            check_codec(config, "the model", token_facts.codec_of(config))

    def prepare(module: nnx.Module) -> None:
        codec = workdirs.load_codec(*token_facts.codec_of(config))
        if config.model.codec_tables:
            counts_KV = trained_counts(make, config.data.path, TRACKS_COUNTED)
            start.from_codec(codec, module.model.lm, counts_KV)
        start.from_run(config.init_from, module.model)
        module.model.take_quantiser(codec.quantiser)

    return LMStage(
        stages.run_config(config),
        make_model(config),
        train=lambda rows: batches(config, make, "train", rows),
        valid=lambda rows: batches(config, make, "valid", rows),
        examples=[(make.prior.visibility, shapes(make, config.train.batch_size))],
        work=partial(_work, config),
        length=length(config),
        trunk=make.prior.lm.transformer,
        prepare=prepare,
        open=open_tokens,
    )


def _work(config: ConfigDict, visibility: Visibility) -> Work:
    prior = prior_config(config)
    batch = config.train.batch_size
    heads = 1 if prior.next_scale else prior.lm.levels
    flops, seconds = prior.lm.flops(length(config), visibility, heads), window_seconds(config)
    made = float(tokens_of(config).hierarchy.tokens_per_second) * seconds
    return Work(flops=3 * flops * batch, tokens=round(made * batch), seconds=seconds * batch)


def check_vectors(vectors: Vectors, path: str) -> None:
    """UserError when a track of the token records at `path` that is trained or measured on has no vector."""
    for split in ("train", "valid"):
        for track in TokenSource(path, split=split).tracks:
            vectors.of(track["id"])


def check_codec(config: ConfigDict, run: str, codec: Tokenizer) -> None:
    """UserError when a codec makes other tokens than those that the model of a `run` knows."""
    theirs = workdirs.read(codec.workdir, "codec")
    if theirs.get("system") != "aar":
        raise UserError(f"{codec.workdir} is a codec of the system {theirs.get('system')}: give one of AAR's")
    token_facts.check_codec(config, run, codec_config(theirs.model).facts, codec.workdir)


def check_codebooks(coder: Codec, codec: str, model: Prior, lm: str) -> None:
    """UserError when a trained codec, of the workdir `codec`, is not the one whose codes the model of `lm` predicts."""
    ours, theirs = np.asarray(coder.quantiser.codebooks[...]), model.quantiser.codebooks[...]
    if not jax.jit(jnp.array_equal)(ours, theirs):  # theirs may lie on devices of several processes
        raise UserError(f"{codec} has other codebooks than {lm} was trained with: give the codec of its tokens")
