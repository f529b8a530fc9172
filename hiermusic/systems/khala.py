"""Khala (arXiv:2605.01790): a 64-layer codec, a causal backbone on layers 0 and 1, layer-wise super-resolution.

The backbone reads and predicts q0 q1 of every frame in turn (flatten, causal). The super-resolution model predicts
layer k of all frames at once from layers below k (layer-wise, full attention), trained together with causal
prediction of q0 so that it keeps listening to the words (Task 0).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hiermusic.audio import files
from hiermusic.codec.chunked import encode_long
from hiermusic.codec.codec import Codec, CodecConfig
from hiermusic.codec.dac import DacConfig
from hiermusic.codec.discriminator import Discriminator, DiscriminatorConfig
from hiermusic.codec.objective import ObjectiveConfig
from hiermusic.codec.residual import QuantiserConfig
from hiermusic.data.records import read_info
from hiermusic.data.token_records import TokenSource
from hiermusic.errors import UserError
from hiermusic.generate import autoregressive, layerwise
from hiermusic.nn.param import parameter_counts
from hiermusic.nn.token_lm import TokenLM, TokenLMConfig
from hiermusic.nn.transformer import TransformerConfig
from hiermusic.parallel.mesh import make_mesh
from hiermusic.systems import parts, songs
from hiermusic.systems import workdir as workdirs
from hiermusic.systems.khala_rows import (
    backbone_batches,
    hierarchy,
    make_rows,
    shapes,
    superres_batches,
    tell_cut,
    tokenizer,
    vocabulary,
)
from hiermusic.systems.requests import Request
from hiermusic.tokens import pattern, sequence
from hiermusic.tokens.prompt import Prompt, compose
from hiermusic.tokens.visibility import Visibility
from hiermusic.train import checkpoint
from hiermusic.train.codec import CodecStage
from hiermusic.train.lm import LMStage
from hiermusic.train.stage import Work

STAGES = ("codec", "backbone", "superres")

# MARK: models


def codec_config(model: ConfigDict) -> CodecConfig:
    """The codec of a configuration's `model`."""
    quantiser = QuantiserConfig(
        levels=model.codebooks,
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
    ids = vocabulary(model)
    return TokenLMConfig(
        levels=model.levels,
        codes=model.codes,
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
    token_lm = token_lm_config(config)
    return lambda rngs: TokenLM(token_lm, rngs=rngs)


# MARK: stages


def stage(config: ConfigDict) -> CodecStage | LMStage:
    """The training stage of a configuration, its data still to be opened."""
    if config.stage == "codec":
        objective = ObjectiveConfig(**config.loss, stft_sizes=tuple(config.discriminator.fft_sizes))
        return parts.codec_stage(config, codec_config(config.model), make_discriminator(config), objective)

    def open_tokens(workdir: Path) -> None:
        _check_tokens(config, config.data.path)
        tell_cut(config)
        if config.model.codec_tables and not checkpoint.steps(workdir):  # a run that goes on has its tables
            _check_codec(config.data.path)

    batches = backbone_batches if config.stage == "backbone" else superres_batches
    return LMStage(
        config,
        make_model(config),
        train=lambda rows: batches(config, "train", rows),
        valid=lambda rows: batches(config, "valid", rows),
        examples=shapes(config),
        work=partial(_work, config),
        length=config.model.length,
        trunk=token_lm_config(config).transformer,
        prepare=lambda module: _start(config, module.model),
        open=open_tokens,
    )


def _start(config: ConfigDict, model: TokenLM) -> None:
    """What a fresh token model begins with, in place: the codec's codes, then the weights of another run."""
    if config.model.codec_tables:
        parts.start_from_codec(workdirs.load_codec(*parts.stored_codec(config.data.path)), model)
    parts.start_from(config.init_from, model)


def _work(config: ConfigDict, visibility: Visibility) -> Work:
    """What one update of a token model amounts to; a super-resolution batch predicts one level of every frame."""
    model, tokens = config.model, hierarchy(config)
    positions = config.train.batch_size * model.length
    frames = positions / (model.levels if config.stage == "backbone" else 1)
    heads = model.levels if config.stage == "backbone" else 1
    flops = token_lm_config(config).flops(model.length, visibility, heads) * config.train.batch_size
    return Work(flops=3 * flops, tokens=positions, seconds=frames / float(tokens.rates[0]))


def _check_codec(tokens: str) -> None:
    """UserError where the codec that made these token records is gone."""
    codec, _ = parts.stored_codec(tokens)
    if not Path(codec).is_dir():
        raise UserError(
            f"{tokens} was made by the codec {codec}, which is not there: put it back, or begin without its tables by "
            "--config.model.codec_tables=False"
        )


def _check_tokens(config: ConfigDict, path: str) -> None:
    found, wanted = parts.stored_hierarchy(path, config.model.levels), hierarchy(config)
    if (found.sizes, found.rates) != (wanted.sizes, wanted.rates):
        stored = len(read_info(path, "tokens")["hierarchy"])
        raise UserError(
            f"{path} holds {stored} levels of {found.sizes[0]} codes at {found.rates[0]} Hz, the model wants "
            f"{len(wanted)} of {wanted.sizes[0]} at {wanted.rates[0]} Hz: set --config.model.codes={found.sizes[0]} "
            f"and --config.model.frame_rate={found.rates[0]}, or take tokens of another codec"
        )


# MARK: generation


def generate(
    requests: Sequence[Request],
    out: Path,
    *,
    superres: str | None = None,
    backbone: str | None = None,
    codec: str | None = None,
    options: Mapping[str, float] = MappingProxyType({}),
    audio: str | None = None,
    backbone_too: bool = False,
    mesh: Mapping[str, int] | None = None,
) -> list[dict]:
    """Songs for prompts: backbone, super-resolution, codec; one wav and one JSON each.

    Args:
      requests: what to make, all in one batch; a song whose JSON stands with the same contents is not made again.
      out: folder for NAME.wav and NAME.json.
      superres: workdir of the super-resolution model; None leaves it out.
      backbone: workdir of the backbone; None for the one `superres` was started from.
      codec: workdir of the codec; None for the one that made the backbone's tokens.
      options: temperature, top_k, top_p, guidance, min_share where they differ from the backbone's own.
      audio: file to go on from; its length counts in the prompt's seconds.
      backbone_too: also write NAME.backbone.wav from the backbone's layers alone.
      mesh: axes and sizes to spread the token models over all devices of this process; None for one device.
    Returns:
      What each JSON holds.
    """
    if backbone is None:
        backbone = workdirs.read(superres, "superres").init_from
        if not backbone:
            raise UserError(f"{superres} was not started from a backbone: give one with --backbone=WORKDIR")
    step, spread = None, make_mesh(mesh, jax.local_devices()) if mesh else None
    if codec is None:
        codec, step = parts.stored_codec(workdirs.read(backbone, "backbone").data.path)
    runs = {"codec": codec, "backbone": backbone} | ({"superres": superres} if superres else {})
    sampling = {"backbone": workdirs.read(backbone, "backbone").sampling.to_dict() | dict(options)}
    if superres:
        sampling["superres"] = workdirs.read(superres, "superres").sampling.to_dict()

    def make(requests: Sequence[Request]) -> list[songs.Song]:
        coder, known_TK = workdirs.load_codec(codec, step), None
        for run in (backbone, superres):
            _check_fits(run, coder)
        if audio:
            known_TK = encode_long(coder, files.read(audio, coder.sample_rate, coder.channels)[0]).astype(np.int32)
        samples = _coarse(requests, backbone, dict(sampling["backbone"]), known_TK, spread)
        coarse = [sample.codes for sample in samples]
        codes = coarse
        if superres:
            codes = _refine(requests, coarse, superres, sampling["superres"], known_TK, spread)
        return [songs.Song(c, sample.ended, coder, q) for c, q, sample in zip(codes, coarse, samples, strict=True)]

    if said := next((request for request in requests if request.like), None):
        raise UserError(f"{said.name}: Khala takes words, not a clip: leave --like={said.like} out")
    return songs.produce(requests, out, make, runs, sampling, audio, backbone_too, {"codec": step})


def _check_fits(run: str | None, coder: Codec) -> None:
    """UserError when the model of a workdir speaks of other tokens than the codec's."""
    if run is None:
        return
    tokens = hierarchy(workdirs.read(run))
    found = coder.hierarchy.select(0, len(tokens))
    if (found.sizes, found.rates) != (tokens.sizes, tokens.rates):
        raise UserError(
            f"{run} was trained on {len(tokens)} levels of {tokens.sizes[0]} codes at {float(tokens.rates[0]):.2f} Hz, "
            f"the codec makes {len(coder.hierarchy)} of {coder.hierarchy.sizes[0]} at "
            f"{float(coder.hierarchy.rates[0]):.2f} Hz: give the codec that made its tokens with --codec=WORKDIR"
        )


def _coarse(
    requests: Sequence[Request], backbone: str, sampling: dict, known_TK: np.ndarray | None, mesh: Mesh | None
) -> list[autoregressive.Sample]:
    """The backbone's layers, frame by frame."""
    config, model = workdirs.load(backbone, "backbone", mesh=mesh)
    if not requests:
        return []
    words, levels = tokenizer(config.model), config.model.levels
    rate = hierarchy(config).rates[0]
    how = {"keep_description": config.model.keep_description, "limit": config.model.text_limit}
    songs.tell_cut(requests, words, **how)
    prompts = [compose(r.prompt, words, **how) for r in requests]
    frames = [max(round(r.prompt.seconds * rate), 1) for r in requests]
    for request, prompt, frame in zip(requests, prompts, frames, strict=True):
        limit = sequence.room(prompt, config.model.length, shared=True, end=True) // levels
        if frame > limit:
            raise UserError(
                f"{request.name}: {request.prompt.seconds:g} s do not fit this backbone, whose context of "
                f"{config.model.length} positions holds {float(limit / rate):.1f} s behind this prompt"
            )
    min_share = sampling.pop("min_share", 0.0)  # of the length asked for, before which no song may end
    known = 0 if known_TK is None else len(known_TK)
    if known >= min(frames):
        raise UserError(f"the audio lasts {float(known / rate):.1f} s: ask for more --seconds than that")
    with songs.progress("backbone") as show, _on(mesh):
        return autoregressive.generate(
            model.unstack(),
            prompts,
            [pattern.flatten((frame,) * levels) for frame in frames],
            seeds=[r.seed for r in requests],
            sizes=[config.model.codes] * levels,
            eos=words.vocabulary.eos,
            min_frames=[max(known + 1, math.ceil(min_share * frame)) for frame in frames],
            unprompted=[compose(Prompt(seconds=r.prompt.seconds), words) for r in requests],
            given=[list(known_TK[:, :levels].T)] * len(requests) if known else None,
            cache_dtype=jnp.dtype(config.model.dtype),
            progress=show,
            **sampling,
        )


def _refine(
    requests: Sequence[Request],
    coarse: list[np.ndarray],
    superres: str,
    sampling: dict,
    known_TK: np.ndarray | None,
    mesh: Mesh | None,
) -> list[np.ndarray]:
    """The layers above the backbone's, one pass a layer."""
    config, model = workdirs.load(superres, "superres", mesh=mesh)
    if not requests:
        return []
    words, levels = tokenizer(config.model), config.model.levels
    keep, limit = config.model.keep_description, config.model.text_limit
    with songs.progress("super-resolution") as show, _on(mesh):
        return layerwise.refine(
            model,
            [compose(r.prompt, words, keep_description=keep, limit=limit) for r in requests],
            [codes_TK[:, : config.model.given] for codes_TK in coarse],
            markers=[words.vocabulary.task_marker(level) for level in range(levels)],
            seeds=[r.seed for r in requests],
            sizes=[config.model.codes] * levels,
            known=None if known_TK is None else known_TK[:, :levels],
            progress=show,
            **sampling | {"layers": sampling["layers"] or levels},
        )


def _on(mesh: Mesh | None) -> AbstractContextManager:
    return jax.set_mesh(mesh) if mesh else nullcontext()


def program(config: ConfigDict, rows: int) -> parts.Generation:
    """The decoding of a piece, a chunk of the backbone's steps, or one pass of super-resolution, in shapes.

    Args:
      config: of any stage; songs fill its context.
      rows: songs made at once.
    """
    model = config.model
    if config.stage == "codec":
        return parts.decoding(codec_config(model), rows)
    rate, make, trunk = float(hierarchy(config).rates[0]), make_model(config), token_lm_config(config).transformer
    prompts, frames = [[0] * model.text_limit] * rows, model.length - model.text_limit
    if frames < 1:
        raise UserError(f"model.text_limit={model.text_limit} leaves no room for music in model.length={model.length}")
    sizes = [model.codes] * model.levels
    sampling = {name: value for name, value in config.sampling.items() if name != "layers"}
    options = {"seeds": range(rows), "sizes": sizes, "unprompted": prompts, **sampling}
    if config.stage == "superres":
        token_lm = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
        codes = [np.zeros((frames, model.given), np.int32)] * rows
        run, arguments = layerwise.level_pass(token_lm, prompts, codes, markers=[0] * model.levels, **options)
        made = (rows * frames, rows * frames / rate / (model.levels - model.given))
        return parts.Generation("generate: one pass", run.func, arguments, run.keywords, model.length, *made, trunk)
    token_lm = nnx.eval_shape(lambda: make(nnx.Rngs(0)).unstack())
    layouts = [pattern.flatten((frames // model.levels,) * model.levels)] * rows
    run, arguments = autoregressive.chunk(
        token_lm, prompts, layouts, eos=token_lm.config.end, cache_dtype=model.dtype, **options
    )
    steps = autoregressive.CHUNK
    made = (rows * steps, rows * steps / model.levels / rate)
    return parts.Generation(f"generate: {steps} steps", run.func, arguments, run.keywords, steps, *made, trunk)


# MARK: facts

Each = Callable[[str, int, Callable[[int], dict[str, np.ndarray]]], list]
CROPS_MEASURED = 4  # of each held-out track, where training too takes crops from anywhere


def inspect(config: ConfigDict) -> dict:
    """Parameters of each component, rates and sequence length, from abstract shapes alone."""
    model = nnx.eval_shape(lambda: make_model(config)(nnx.Rngs(0)))
    params = parts.counts(model)
    tokens = hierarchy(config)
    if config.stage == "codec":
        params["quantiser"] += math.prod(model.quantiser.codebooks.shape)  # moved by averages, not by gradients
        discriminator = nnx.eval_shape(lambda: make_discriminator(config)(nnx.Rngs(0)))
        params["discriminator"] = sum(parameter_counts(discriminator).values())
    params["total"] = sum(params.values())
    length = config.train.crop_frames if config.stage == "codec" else config.model.length
    return parts.facts(config, dict(params), tokens, float(tokens.rates[0]), length)


def cross_entropy(
    config: ConfigDict, model: TokenLM, path: str, tracks: int, each: Each, step: Callable[[], None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Teacher-forced cross-entropy of every layer on held-out tracks, and what to set beside it.

    Args:
      config: of a backbone or a super-resolution model.
      model: its weights.
      path: token records.
      tracks: at most so many of them.
      each: (name, tracks, measurement of a track) -> what was measured of every track.
      step: called after every batch.
    Returns:
      of each track, nats of all predicted tokens of each layer [N, K] and how often each code was one of them
      [N, K, V]; and how often it stands in the training tracks [K, V].
    """
    _check_tokens(config, path)
    rows, levels = make_rows(config), slice(0, config.model.levels)
    train, valid = (TokenSource(path, levels, split) for split in ("train", "valid"))
    graphdef, weights = nnx.split(model)
    crops = CROPS_MEASURED if config.data.crop == "random" else 1

    @partial(jax.jit, static_argnums=2)
    def loss(weights, batch, visibility):
        return nnx.merge(graphdef, weights).loss(batch, visibility=visibility)[1]

    def counts(codes_TK: np.ndarray) -> np.ndarray:
        return np.stack([np.bincount(codes_T[codes_T >= 0], minlength=config.model.codes) for codes_T in codes_TK.T])

    def measure(index: int) -> dict[str, np.ndarray]:
        example, rng = valid[index], np.random.default_rng((config.train.seed, index))
        sums_K, counts_KV = np.zeros(config.model.levels), 0

        def add(row: sequence.Row, visibility: Visibility, **extra) -> None:
            nonlocal counts_KV
            batch = sequence.stack([row]) | extra
            batch.pop("text_targets")  # the end is no code, and layer 0 would answer for it
            metrics = loss(weights, batch, visibility)
            sums_K[:] += np.asarray(metrics["ce_K"] * metrics["count_K"])
            counts_KV = counts_KV + counts(row["targets"])
            step()

        for _ in range(crops):
            if config.stage == "backbone":
                add(rows.backbone(example, rng), Visibility.causal())
                continue
            add(rows.alignment(example, rng), Visibility.causal(), level=np.zeros(1, np.int32))
            for level in range(1, config.model.levels):
                add(rows.refinement(example, rng, level), Visibility.full(), level=np.full(1, level, np.int32))
        return {"sums": sums_K, "counts": counts_KV}

    measured = each("tokens", min(len(valid), tracks), measure)
    trained_KV = sum(counts(train[index]["codes"]) for index in range(len(train)))
    return *(np.stack([track[name] for track in measured]) for name in ("sums", "counts")), trained_KV
