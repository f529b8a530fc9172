"""Khala (arXiv:2605.01790): a 64-layer codec, a causal backbone on layers 0 and 1, layer-wise super-resolution.

The backbone reads and predicts q0 q1 of every frame in turn (flatten, causal). The super-resolution model predicts
layer k of all frames at once from layers below k (layer-wise, full attention), trained together with causal
prediction of q0 so that it keeps listening to the words (Task 0).
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from hiermusic.audio import files
from hiermusic.codec.chunked import encode_long
from hiermusic.codec.codec import Codec, CodecConfig
from hiermusic.codec.discriminator import Discriminator, DiscriminatorConfig
from hiermusic.codec.objective import ObjectiveConfig
from hiermusic.codec.residual import QuantiserConfig
from hiermusic.data import pipeline
from hiermusic.data.records import AudioSource, TokenSource, read_info
from hiermusic.errors import UserError
from hiermusic.generate import autoregressive, layerwise
from hiermusic.nn.param import parameter_counts
from hiermusic.nn.token_lm import TokenLM, TokenLMConfig
from hiermusic.nn.transformer import TransformerConfig
from hiermusic.systems import songs
from hiermusic.systems import workdir as workdirs
from hiermusic.systems.requests import Request
from hiermusic.tokens import pattern, sequence
from hiermusic.tokens.hierarchy import Hierarchy
from hiermusic.tokens.prompt import Prompt, compose
from hiermusic.tokens.visibility import Visibility
from hiermusic.tokens.vocabulary import TextTokenizer, Vocabulary
from hiermusic.train import checkpoint
from hiermusic.train.codec import CodecStage
from hiermusic.train.lm import LMStage

# MARK: models


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


def hierarchy(model: ConfigDict) -> Hierarchy:
    """The token hierarchy of a codec's or a token model's configuration."""
    if "strides" in model:
        rate = Fraction(model.sample_rate, int(np.prod(model.strides)))
        return Hierarchy.uniform(model.codebooks, rate, model.codes)
    return Hierarchy.uniform(model.levels, Fraction(model.frame_rate), model.codes)


def make_codec(model: ConfigDict) -> Callable[[nnx.Rngs], Codec]:
    """The constructor of the codec of a configuration's `model`."""
    quantiser = QuantiserConfig(
        levels=model.codebooks,
        codes=model.codes,
        decay=model.decay,
        kmeans_iterations=model.kmeans_iterations,
        dead_share=model.dead_share,
        dropout=model.quantiser_dropout,
    )
    config = CodecConfig(
        sample_rate=model.sample_rate,
        channels=model.channels,
        strides=tuple(model.strides),
        dilations=tuple(model.dilations),
        encoder_width=model.encoder_width,
        decoder_width=model.decoder_width,
        latent=model.latent,
        quantiser=quantiser,
    )
    return lambda rngs: Codec(config, rngs=rngs)


def make_token_lm(model: ConfigDict) -> Callable[[nnx.Rngs], TokenLM]:
    """The constructor of the backbone or the super-resolution model of a configuration's `model`."""
    trunk = TransformerConfig(
        layers=model.layers,
        width=model.width,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        ffn_width=model.ffn_width,
        rope_base=model.rope_base,
        bias=model.bias,
        qk_norm=model.qk_norm,
        dropout=model.dropout,
        dtype=model.dtype,
        remat=model.remat,
    )
    ids = vocabulary(model)
    config = TokenLMConfig(
        levels=model.levels,
        codes=model.codes,
        text_size=ids.text_size,
        end=None if "given" in model else ids.eos,
        transformer=trunk,
        head=model.head,
        z_loss=model.z_loss,
    )
    return lambda rngs: TokenLM(config, rngs=rngs)


def make_discriminator(config: ConfigDict) -> Callable[[nnx.Rngs], Discriminator]:
    """The constructor of the discriminator that a codec's configuration trains against."""
    settings = DiscriminatorConfig(tuple(config.discriminator.fft_sizes), config.discriminator.filters)
    return lambda rngs: Discriminator(config.model.channels, settings, rngs=rngs)


def make_model(config: ConfigDict) -> Callable[[nnx.Rngs], nnx.Module]:
    """The constructor of what a configuration trains, whichever stage it is."""
    return (make_codec if config.stage == "codec" else make_token_lm)(config.model)


# MARK: batches

PROBED_LAYERS = (0, 1, 2, 4, 8, 16, 32, 63)


@dataclass(frozen=True)
class Rows:
    """Turns tracks into training rows of a token model: which part of the track, which prompt, which layout."""

    model: ConfigDict
    crop: str
    tokenizer: TextTokenizer

    def backbone(self, example: dict, rng: np.random.Generator) -> sequence.Row:
        """q0 q1 of every frame in turn, ended by EOS where the track ends within the row."""
        ids = self._prompt(example["meta"], rng)
        room = sequence.room(ids, self.model.length, shared=True, end=True)
        codes_TK, whole = self._crop(example["codes"], room // self.model.levels, rng)
        layout = pattern.flatten((len(codes_TK),) * self.model.levels)
        end = self.tokenizer.vocabulary.eos if whole else None
        return sequence.pack(ids, *layout.build(codes_TK.T), self.model.length, shared=True, end=end)

    def refinement(self, example: dict, rng: np.random.Generator, level: int) -> sequence.Row:
        """One layer of every frame, read from the layers below it (Task 1)."""
        ids = self._marked(example["meta"], rng, level)
        codes_TK, _ = self._crop(example["codes"], self.model.length - len(ids), rng)
        layout = pattern.layer_pass((len(codes_TK),) * self.model.levels, level)
        return sequence.pack(ids, *layout.build(codes_TK.T), self.model.length, shared=False)

    def alignment(self, example: dict, rng: np.random.Generator) -> sequence.Row:
        """q0 of every frame in turn, read from the q0 before it (Task 0)."""
        ids = self._marked(example["meta"], rng, 0)
        room = sequence.room(ids, self.model.length, shared=True, end=False)
        codes_TK, _ = self._crop(example["codes"], room, rng)
        reads_S1, targets_S1 = pattern.flatten((len(codes_TK),)).build([codes_TK[:, 0]])
        others = ((0, 0), (0, self.model.levels - 1))
        reads_SK, targets_SK = (np.pad(x, others, constant_values=-1) for x in (reads_S1, targets_S1))
        return sequence.pack(ids, reads_SK, targets_SK, self.model.length, shared=True)

    def _prompt(self, meta: dict, rng: np.random.Generator) -> list[int]:
        prompt = Prompt.from_json({name: meta[name] for name in Prompt.__dataclass_fields__ if name in meta})
        if rng.random() < self.model.get("prompt_dropout", 0.0):
            prompt = Prompt(seconds=prompt.seconds)
        keep = self.model.get("keep_description", True)
        return compose(prompt, self.tokenizer, keep_description=keep, limit=self.model.text_limit)

    def _marked(self, meta: dict, rng: np.random.Generator, level: int) -> list[int]:
        return [*self._prompt(meta, rng)[:-1], self.tokenizer.vocabulary.task_marker(level)]

    def _crop(self, codes_TK: np.ndarray, room: int, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
        """At most `room` frames, and whether the track's last frame is among them."""
        spare = max(len(codes_TK) - room, 0)
        start = int(rng.integers(spare + 1)) if self.crop == "random" else 0
        return codes_TK[start : start + room], start == spare


def _rows(config: ConfigDict) -> Rows:
    if config.data.crop not in ("start", "random"):
        raise UserError(f"data.crop is '{config.data.crop}': choose start or random")
    return Rows(config.model, config.data.crop, tokenizer(config.model))


def layer_weights(levels: int, distribution: str) -> np.ndarray:
    """How often Task 1 trains each layer; layer 0 is Task 0's.

    Args:
      levels: K.
      distribution: "uniform" over 1..K-1 (VALL-E), or "low_biased": layers 1-16 twice as often as 17-32, four times as
        often as the rest (the density of SpectroStream's targets).
    """
    layer_K = np.arange(levels)
    match distribution:
        case "uniform":
            weight_K = np.ones(levels)
        case "low_biased":
            weight_K = np.where(layer_K <= 16, 1.0, np.where(layer_K <= 32, 0.5, 0.25))
        case _:
            raise UserError(f"train.layer_distribution is '{distribution}': choose uniform or low_biased")
    weight_K[0] = 0.0
    return weight_K / weight_K.sum()


def _examples(config: ConfigDict, split: str, times: int = 1):
    """Batches of raw examples, element i the one of step i; the held-out tracks come `times` times over."""
    levels = slice(0, config.model.levels)
    examples = pipeline.token_examples(config.data.path, split, config.train.seed, levels)
    if split == "train":
        return examples.batch(config.train.batch_size, batch_fn=list)
    return examples.repeat(times).batch(min(config.train.batch_size, len(examples)), batch_fn=list)


def backbone_batches(config: ConfigDict, split: str):
    """Batch i of the backbone's causal rows: a function of (seed, i)."""
    rows = _rows(config)

    def build(index: int, examples: Sequence[dict]):
        rng = np.random.default_rng((config.train.seed, index))
        return Visibility.causal(), sequence.stack([rows.backbone(example, rng) for example in examples])

    return _examples(config, split).map_with_index(build)


def superres_batches(config: ConfigDict, split: str):
    """Batch i of the super-resolution mixture, one task and one layer a batch.

    In training both are drawn from (seed, i); the held-out tracks are asked for a few layers from coarse to fine.
    """
    rows = _rows(config)
    weight_K = layer_weights(config.model.levels, config.train.layer_distribution)
    probes = [level for level in PROBED_LAYERS if level < config.model.levels]
    batches = _examples(config, split, times=len(probes))

    def draw(index: int, rng: np.random.Generator) -> int:
        if split != "train":
            return probes[index * len(probes) // len(batches)]
        return 0 if rng.random() < config.train.task0_share else int(rng.choice(len(weight_K), p=weight_K))

    def build(index: int, examples: Sequence[dict]):
        rng = np.random.default_rng((config.train.seed, index))
        level = draw(index, rng)
        if level == 0:
            visibility, rows_B = Visibility.causal(), [rows.alignment(example, rng) for example in examples]
        else:
            visibility, rows_B = Visibility.full(), [rows.refinement(example, rng, level) for example in examples]
        return visibility, sequence.stack(rows_B) | {"level": np.int32(level)}

    return batches.map_with_index(build)


# MARK: stages


def stage(config: ConfigDict, workdir: Path) -> CodecStage | LMStage:
    """The training stage of a configuration; waveforms are first turned into records under `workdir`."""
    if config.stage == "codec":
        return _codec_stage(config, workdir)
    if not config.data.path:
        raise UserError(
            "data.path is empty: make token records with `hiermusic tokenize`, then give --config.data.path=DIR"
        )
    _check_tokens(config)
    batches = backbone_batches if config.stage == "backbone" else superres_batches
    return LMStage(
        config,
        make_model(config),
        train=lambda: batches(config, "train"),
        valid=lambda: batches(config, "valid"),
        prepare=partial(_start_from, config),
    )


def _codec_stage(config: ConfigDict, workdir: Path) -> CodecStage:
    model, settings, data = config.model, config.train, config.data
    records = pipeline.resolve(
        data.path,
        workdir / "data",
        model.sample_rate,
        model.channels,
        kind=data.kind,
        segment_seconds=data.segment_seconds,
        valid_fraction=data.valid_fraction,
    )
    samples = settings.crop_frames * math.prod(model.strides)

    def batches(split: str):
        return pipeline.waveform_batches(records, split, samples, settings.batch_size, settings.seed)

    return CodecStage(
        config,
        make_codec(model),
        make_discriminator(config),
        ObjectiveConfig(**config.loss, stft_sizes=tuple(config.discriminator.fft_sizes)),
        train=lambda: batches("train"),
        valid=lambda: batches("valid") if AudioSource(records).valid else None,
        prepare=partial(_start_from, config),
    )


def _check_tokens(config: ConfigDict) -> None:
    info = read_info(config.data.path, "tokens")
    stored, wanted = Hierarchy.from_json(info["hierarchy"]), hierarchy(config.model)
    if len(stored) < len(wanted) or stored.select(0, len(wanted)).sizes != wanted.sizes:
        raise UserError(
            f"{config.data.path} holds {len(stored)} levels of {stored.sizes[0]} codes, the model wants {len(wanted)} of "
            f"{wanted.sizes[0]}: set --config.model.codes={stored.sizes[0]} or take tokens of another codec"
        )


def _start_from(config: ConfigDict, module: nnx.Module) -> None:
    """Copies the weights of `init_from` where there are any: all of a run of the same stage, or a backbone's into a
    super-resolution model, whose rows for the levels the backbone does not know stay as they were drawn."""
    if not config.init_from:
        return
    weights = checkpoint.load_weights(config.init_from)
    target = nnx.state(module.model)
    for path, variable in nnx.to_flat_state(target):
        source = weights
        for key in path:
            source = source.get(str(key), {}) if isinstance(source, dict) else {}
        if isinstance(source, dict):
            raise UserError(f"{config.init_from} has no weight {'.'.join(map(str, path))}: it is of another model")
        value = variable[...]
        rows = len(source) if path[0] in ("code_embed", "code_head") else len(value) if value.ndim else None
        if source.shape[1:] != value.shape[1:] or (value.ndim and (len(source) != rows or rows > len(value))):
            name = ".".join(map(str, path))
            raise UserError(f"{config.init_from}: {name} is {source.shape}, this model's is {value.shape}")
        variable[...] = value.at[:rows].set(source) if value.ndim else jnp.asarray(source)
    nnx.update(module.model, target)


# MARK: generation


def generate(
    requests: Sequence[Request],
    out: Path,
    *,
    superres: str | None,
    backbone: str | None,
    codec: str | None,
    options: dict[str, float],
    audio: str | None = None,
    backbone_too: bool = False,
) -> list[dict]:
    """Songs for prompts: backbone, super-resolution, codec; one wav and one JSON each.

    Args:
      requests: what to make, all in one batch; a song whose JSON stands with the same contents is not made again.
      out: folder for NAME.wav and NAME.json.
      superres: workdir of the super-resolution model; None leaves it out.
      backbone: workdir of the backbone; None for the one `superres` was started from.
      codec: workdir of the codec; None for the one that made the backbone's tokens.
      options: temperature, top_k, top_p, guidance where they differ from the backbone's own.
      audio: file to go on from; its length counts in the prompt's seconds.
      backbone_too: also write NAME.backbone.wav from the backbone's layers alone.
    Returns:
      What each JSON holds.
    """
    if backbone is None:
        backbone = workdirs.read(superres, "superres").init_from
        if not backbone:
            raise UserError(f"{superres} was not started from a backbone: give one with --backbone=WORKDIR")
    if codec is None:
        codec = read_info(workdirs.read(backbone, "backbone").data.path, "tokens")["codec"].rpartition("@")[0]
    runs = {"codec": codec, "backbone": backbone} | ({"superres": superres} if superres else {})
    sampling = {"backbone": workdirs.read(backbone, "backbone").sampling.to_dict() | options}
    if superres:
        sampling["superres"] = workdirs.read(superres, "superres").sampling.to_dict()

    def make(requests: Sequence[Request]) -> list[songs.Song]:
        coder, known_TK = workdirs.load_codec(codec), None
        if audio:
            known_TK = encode_long(coder, files.read(audio, coder.sample_rate, coder.channels)[0]).astype(np.int32)
        samples = _coarse(requests, backbone, sampling["backbone"], known_TK)
        coarse = [sample.codes for sample in samples]
        codes = _refine(requests, coarse, superres, sampling["superres"]) if superres else coarse
        if known_TK is not None:
            codes = [np.concatenate([known_TK[:, : c.shape[1]], c[len(known_TK) :]]) for c in codes]
        return [songs.Song(c, q, sample.ended, coder) for c, q, sample in zip(codes, coarse, samples, strict=True)]

    return songs.produce(requests, out, make, runs, sampling, audio, backbone_too)


def _coarse(
    requests: Sequence[Request], backbone: str, sampling: dict, known_TK: np.ndarray | None
) -> list[autoregressive.Sample]:
    """The backbone's layers, frame by frame."""
    config, model = workdirs.load(backbone, "backbone")
    words, levels = tokenizer(config.model), config.model.levels
    rate = hierarchy(config.model).rates[0]
    prompts = [compose(r.prompt, words, limit=config.model.text_limit) for r in requests]
    frames = [max(round(r.prompt.seconds * rate), 1) for r in requests]
    for request, prompt, frame in zip(requests, prompts, frames, strict=True):
        limit = sequence.room(prompt, config.model.length, shared=True, end=True) // levels
        if frame > limit:
            raise UserError(
                f"{request.name}: {request.prompt.seconds:g} s do not fit this backbone, whose context of "
                f"{config.model.length} positions holds {float(limit / rate):.1f} s behind this prompt"
            )
    known = 0 if known_TK is None else len(known_TK)
    if known >= min(frames):
        raise UserError(f"the audio lasts {float(known / rate):.1f} s: ask for more --seconds than that")
    with songs.progress("backbone") as show:
        return autoregressive.generate(
            model.unstack(),
            prompts,
            [pattern.flatten((frame,) * levels) for frame in frames],
            seeds=[r.seed for r in requests],
            sizes=[config.model.codes] * levels,
            eos=words.vocabulary.eos,
            min_frames=known + 1,
            unprompted=compose(Prompt(seconds=requests[0].prompt.seconds), words),
            given=[list(known_TK[:, :levels].T)] * len(requests) if known else None,
            cache_dtype=jnp.dtype(config.model.dtype),
            progress=show,
            **sampling,
        )


def _refine(requests: Sequence[Request], coarse: list[np.ndarray], superres: str, sampling: dict) -> list[np.ndarray]:
    """The layers above the backbone's, one pass a layer."""
    config, model = workdirs.load(superres, "superres")
    words, levels = tokenizer(config.model), config.model.levels
    keep, limit = config.model.keep_description, config.model.text_limit
    with songs.progress("super-resolution") as show:
        return layerwise.refine(
            model,
            [compose(r.prompt, words, keep_description=keep, limit=limit) for r in requests],
            [codes_TK[:, : config.model.given] for codes_TK in coarse],
            markers=[words.vocabulary.task_marker(level) for level in range(levels)],
            seeds=[r.seed for r in requests],
            sizes=[config.model.codes] * levels,
            progress=show,
            **sampling,
        )


# MARK: facts


def inspect(config: ConfigDict) -> dict:
    """Parameters of each component, rates and sequence length, from abstract shapes alone."""
    model = nnx.eval_shape(lambda: make_model(config)(nnx.Rngs(0)))
    params: Counter[str] = Counter()
    for name, count in parameter_counts(model).items():
        params[name.partition(".")[0]] += count
    tokens = hierarchy(config.model)
    if config.stage == "codec":
        params["quantiser"] += math.prod(model.quantiser.codebooks.shape)  # moved by averages, not by gradients
        discriminator = nnx.eval_shape(lambda: make_discriminator(config)(nnx.Rngs(0)))
        params["discriminator"] = sum(parameter_counts(discriminator).values())
    params["total"] = sum(params.values())
    length = config.train.crop_frames if config.stage == "codec" else config.model.length
    return {
        "params": dict(params),
        "sequence_length": length,
        "frame_rate_hz": float(tokens.rates[0]),
        "tokens_per_second": float(tokens.tokens_per_second),
        "levels": len(tokens),
        "codes": tokens.sizes[0],
        "batch_size": config.train.batch_size,
        "steps": config.train.steps,
    }


def cross_entropy(config: ConfigDict, model: TokenLM, path: str, tracks: int, step: Callable[[], None]) -> np.ndarray:
    """Teacher-forced cross-entropy of every layer on held-out tracks, nats a token; NaN where nothing is predicted.

    Args:
      config: of a backbone or a super-resolution model.
      model: its weights.
      path: token records.
      tracks: at most so many of them.
      step: called after every batch.
    """
    rows, source = _rows(config), TokenSource(path, slice(0, config.model.levels), "valid")
    rng = np.random.default_rng(config.train.seed)
    sums_K, counts_K = np.zeros(config.model.levels), np.zeros(config.model.levels)
    graphdef, weights = nnx.split(model)

    @partial(jax.jit, static_argnums=2)
    def measure(weights, batch, visibility):
        return nnx.merge(graphdef, weights).loss(batch, visibility=visibility)[1]

    def add(row: sequence.Row, visibility: Visibility, **extra) -> None:
        metrics = measure(weights, sequence.stack([row]) | extra, visibility)
        sums_K[:] += np.asarray(metrics["ce_K"] * metrics["count_K"])
        counts_K[:] += np.asarray(metrics["count_K"])
        step()

    for index in range(min(len(source), tracks)):
        example = source[index]
        if config.stage == "backbone":
            add(rows.backbone(example, rng), Visibility.causal())
            continue
        add(rows.alignment(example, rng), Visibility.causal(), level=np.int32(0))
        for level in range(1, config.model.levels):
            add(rows.refinement(example, rng, level), Visibility.full(), level=np.int32(level))
    return np.where(counts_K > 0, sums_K / np.maximum(counts_K, 1), np.nan)
