"""SAT and AAR (arXiv 2408.09027): a multi-scale audio tokenizer, and a model that predicts scale after scale.

SAT codes a window (one second) in 16 scales of 1 to 75 tokens. AAR predicts all tokens of a scale at once from the
coarser ones, in 16 passes (next-scale, block-causal). The baseline is the same transformer over the residual codes of
the same trunk, one token after another (flatten or delay, causal). Longer music is windows one after another: AAR's
windows read the last latent frames of the one before, the baseline's begin with its last codes.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from hiermusic.codec.codec import Codec
from hiermusic.codec.discriminator import Discriminator, DiscriminatorConfig
from hiermusic.codec.objective import ObjectiveConfig
from hiermusic.data.token_records import TokenSource
from hiermusic.generate import autoregressive, nextscale
from hiermusic.systems import aar_rows, parts
from hiermusic.systems import workdir as workdirs
from hiermusic.systems.aar_config import (
    check_codec,
    check_tokens,
    check_vectors,
    codec_config,
    codec_of,
    hierarchy,
    hop,
    length,
    prior_config,
    window_seconds,
    windows,
)
from hiermusic.systems.aar_model import Prior
from hiermusic.systems.aar_songs import generate
from hiermusic.tokens import sequence
from hiermusic.tokens.visibility import Visibility
from hiermusic.train import checkpoint
from hiermusic.train.codec import CodecStage
from hiermusic.train.lm import LMStage
from hiermusic.train.stage import Work

__all__ = ["cross_entropy", "generate", "inspect", "make_model", "program", "stage"]

STAGES = ("codec", "lm", "ar_baseline")

# MARK: models


def make_discriminator(config: ConfigDict) -> Callable[[nnx.Rngs], Discriminator]:
    """The constructor of the discriminator that a codec's configuration trains against."""
    ours = config.discriminator
    settings = DiscriminatorConfig(tuple(ours.fft_sizes), ours.filters, hop=ours.hop, dtype=config.model.dtype)
    return lambda rngs: Discriminator(config.model.channels, settings, rngs=rngs)


def make_model(config: ConfigDict) -> Callable[[nnx.Rngs], nnx.Module]:
    """The constructor of what a configuration trains, whichever stage it is."""
    if config.stage == "codec":
        codec = codec_config(config)
        return lambda rngs: Codec(codec, rngs=rngs)
    prior = prior_config(config)
    return lambda rngs: Prior(prior, rngs=rngs)


# MARK: stages


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
            counts_KV = _trained(config, make, config.data.path, TRACKS_COUNTED)
            parts.start_from_codec(codec, module.model.lm, counts_KV)
        parts.start_from(config.init_from, module.model)
        module.model.take_quantiser(codec.quantiser)

    return LMStage(
        config,
        make_model(config),
        train=lambda rows: aar_rows.batches(config, make, "train", rows),
        valid=lambda rows: aar_rows.batches(config, make, "valid", rows),
        examples=[(make.prior.visibility, aar_rows.shapes(make, config.train.batch_size))],
        work=partial(_work, config),
        length=length(config),
        trunk=make.prior.lm.transformer,
        prepare=prepare,
        open=open_tokens,
    )


def _work(config: ConfigDict, visibility: Visibility) -> Work:
    model, prior, batch = config.model, prior_config(config), config.train.batch_size
    heads = 1 if prior.next_scale else model.levels
    flops = prior.lm.flops(length(config), visibility, heads)
    seconds = window_seconds(model)
    tokens = float(hierarchy(config).tokens_per_second) * seconds
    return Work(flops=3 * flops * batch, tokens=round(tokens * batch), seconds=seconds * batch)


# MARK: facts

WINDOWS_MEASURED = 8  # of each held-out track, or as many as it has
TRACKS_COUNTED = 1000  # of those to learn from, before heads begin at what was counted


def inspect(config: ConfigDict) -> dict:
    """Parameters of each component, rates and sequence length, from abstract shapes alone.

    `total` is what gradients train, without a codec's codebooks (`buffers`, moved by averages) and its discriminator.
    """
    model = nnx.eval_shape(lambda: make_model(config)(nnx.Rngs(0)))
    params = parts.counts(model)
    params["total"] = sum(params.values())
    tokens, frame_rate = hierarchy(config), config.model.sample_rate / hop(config.model)
    positions = config.train.crop_frames if config.stage == "codec" else length(config)
    told = parts.facts(config, dict(params), tokens, frame_rate, positions)
    if config.stage == "codec":
        discriminator = nnx.eval_shape(lambda: make_discriminator(config)(nnx.Rngs(0)))
        told["discriminator_params"] = sum(parts.counts(discriminator).values())
        told["buffers"] = {"codebooks": int(np.prod(model.quantiser.codebooks.shape))}
    return told


def cross_entropy(
    config: ConfigDict, model: Prior, path: str, tracks: int, each: Callable, step: Callable[[], None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Teacher-forced cross-entropy of every level on held-out tracks, and what to set beside it.

    Args:
      config: of a token model.
      model: its weights.
      path: token records.
      tracks: at most so many of them.
      each: (name, tracks, measurement of a track) -> what was measured of every track.
      step: called after every track.
    Returns:
      of each track, nats of all predicted tokens of each level [N, K] and how often each code was one of them
      [N, K, V]; and how often it stands in the training tracks [K, V].
    """
    check_tokens(config, path)
    make, levels = windows(config), slice(0, config.model.levels)
    valid = TokenSource(path, levels, "valid")
    graphdef, weights = nnx.split(model)

    @jax.jit
    def loss(weights, batch: Mapping[str, np.ndarray]):
        return nnx.merge(graphdef, weights).loss(batch, visibility=make.prior.visibility)[1]

    def measure(index: int) -> dict[str, np.ndarray]:
        rows, counts_KV = make.spread(valid[index], WINDOWS_MEASURED)
        # one by one: tracks have different numbers of windows, and a program serves one size of batch
        found = [loss(weights, sequence.stack([row])) for row in rows]
        step()
        return {"sums": sum(np.asarray(one["ce_K"] * one["count_K"], np.float64) for one in found), "counts": counts_KV}

    measured = each("tokens", min(len(valid), tracks), measure)
    trained_KV = _trained(config, make, path)
    return *(np.stack([track[name] for track in measured]) for name in ("sums", "counts")), trained_KV


def _trained(config: ConfigDict, make: aar_rows.Windows, path: str, most: int | None = None) -> np.ndarray:
    """How often each code of each level stands in the training tracks, or in the first of them; [K, V]."""
    train = TokenSource(path, slice(0, config.model.levels), "train")
    return sum(make.counts(make.rows_of(train[index])) for index in range(len(train))[:most])


def program(config: ConfigDict, rows: int) -> parts.Generation:
    """The decoding of a piece, the passes of one window, or a chunk of the baseline's steps, in shapes.

    Args:
      config: of any stage.
      rows: songs made at once.
    """
    if config.stage == "codec":
        return parts.decoding(codec_config(config), rows)
    model, sampling, prior, make = config.model, config.sampling, prior_config(config), make_model(config)
    seconds, trunk = window_seconds(model) * rows, prior.lm.transformer
    cond_BU, uncond_U = np.zeros((rows, model.cond), np.float32), np.zeros(model.cond, np.float32)
    if prior.next_scale:

        def served() -> tuple[nnx.Module, nnx.Module]:
            whole = make(nnx.Rngs(0))
            return whole.lm.unstack(), whole.quantiser

        lm, quantiser = nnx.eval_shape(served)
        options = {"seeds": range(rows), "context": prior.context, "uncond_U": uncond_U, **sampling}
        run, arguments = nextscale.program(lm, quantiser, cond_BU, **options)
        name, positions, share = "generate: a window", length(config), 1.0
    else:
        lm = nnx.eval_shape(lambda: make(nnx.Rngs(0)).lm.unstack())
        layouts = [aar_rows.layout(model.pattern, model.window, model.levels)] * rows
        sizes = [model.codes] * model.levels
        options = {"seeds": range(rows), "sizes": sizes, "cond": cond_BU, "uncond": uncond_U, **sampling}
        run, arguments = autoregressive.chunk(lm, [[0]] * rows, layouts, cache_dtype=model.dtype, **options)
        positions = autoregressive.CHUNK
        name, share = f"generate: {positions} steps", positions / length(config)
    tokens = float(hierarchy(config).tokens_per_second) * seconds * share
    return parts.Generation(name, run.func, arguments, run.keywords, positions, tokens, seconds * share, trunk)
