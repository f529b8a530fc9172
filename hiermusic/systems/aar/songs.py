"""Music from AAR or its baseline: a clip to sound like, windows of codes, sound."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType

import jax
import numpy as np
from flax import nnx
from jaxtyping import Int
from ml_collections import ConfigDict

from hiermusic.audio import files
from hiermusic.codec.chunked import encode_long
from hiermusic.codec.codec import Codec
from hiermusic.data.arrays import read_npy
from hiermusic.data.streams import Tokenizer
from hiermusic.errors import UserError, reading
from hiermusic.generate import autoregressive, nextscale
from hiermusic.generate.batching import everywhere
from hiermusic.parallel.mesh import make_mesh
from hiermusic.pretrained import clap as claps
from hiermusic.pretrained import encoder as encoders
from hiermusic.systems import programs, songs
from hiermusic.systems import workdir as workdirs
from hiermusic.systems.aar.models import (
    codec_config,
    length,
    make_model,
    pattern_of,
    prior_config,
    tokens_of,
    window_frames,
    window_seconds,
)
from hiermusic.systems.aar.prior import Prior
from hiermusic.systems.aar.rows import as_condition, windows
from hiermusic.systems.aar.stages import check_codebooks, check_codec
from hiermusic.systems.requests import Request
from hiermusic.systems.token_facts import codec_of
from hiermusic.tokens import sequence
from hiermusic.tokens.prompt import Prompt

Condition = tuple[np.ndarray, int] | np.ndarray  # a waveform and its rate, or a vector

HEARD_SECONDS = 30.0  # of a clip that music should sound like


def generate(
    requests: Sequence[Request],
    out: Path,
    *,
    lm: str,
    codec: str | None = None,
    clap: str | None = None,
    options: Mapping[str, float] = MappingProxyType({}),
    audio: str | None = None,
    mesh: Mapping[str, int] | None = None,
    rows: int | None = None,
) -> list[dict]:
    """Music that sounds like a clip: the token model window by window, then the codec; one wav and one JSON each.

    Args:
      requests: what to make, each with the clip (or the .npy vector) it should sound like, or a description; what goes
        on from `audio` sounds like that where the model listens and nothing else is named.
      out: folder for NAME.wav, NAME.npz and NAME.json.
      lm: workdir of AAR or of the baseline.
      codec: workdir of the codec; None for the one that made the model's tokens.
      clap: folder of an imported CLAP, which makes vectors of descriptions and clips for a model that takes these.
      options: temperature, top_k, top_p, guidance where they differ from the model's own.
      audio: file to go on from; its length counts in the seconds asked for.
      mesh: axes and sizes to spread the token model over all devices of all processes; None for one of this one's.
      rows: songs made at once, all in one batch; as `songs.produce` has it when left out.
    Returns:
      What each JSON holds.
    """
    config = workdirs.read(lm, "lm", "ar_baseline")
    step = None
    spread = make_mesh(mesh) if mesh else None
    if codec is None:
        codec, step = codec_of(config)
    check_codec(config, lm, Tokenizer(codec, step))
    sampling = config.sampling.to_dict() | dict(options)
    if audio and config.model.listener:
        requests = [replace(request, like=request.like or audio) for request in requests]
    conditions = [_condition(request, config, clap) for request in requests]
    _clap.cache_clear()  # it makes no music, and gives its memory to what does

    def make(chosen: Sequence[Request]) -> list[songs.Song]:
        coder = workdirs.load_codec(codec, step)
        model = workdirs.load(lm, "lm", "ar_baseline", mesh=spread)[1]
        check_codebooks(coder, codec, model, lm)
        if not chosen:
            return []
        model.lm = model.lm.compact().unstack()  # and what it was made of is let go, or it is in memory twice
        where = {request.name: condition for request, condition in zip(requests, conditions, strict=True)}
        told = [_told(coder, config, where[request.name]) for request in chosen]
        known_PS, skip = _known(coder, audio) if audio else (None, 0)
        lengths = [skip + round(request.prompt.seconds * coder.sample_rate) for request in chosen]
        needed = [-(-length // coder.packet) for length in lengths]
        if audio and len(known_PS) * coder.packet >= min(lengths):
            lasts = (len(known_PS) * coder.packet - skip) / coder.sample_rate
            raise UserError(f"the audio lasts {lasts:.1f} s: ask for more --seconds than that")
        draw = _by_scale if model.config.next_scale else _by_token
        with songs.progress("windows") as show, jax.set_mesh(spread) if spread else nullcontext():
            cond_BU = np.stack([one if one.ndim == 1 else _asked(Prior.listen, model, one[None])[0] for one in told])
            codes_BPS = draw(
                model, cond_BU, max(needed), known_PS, config, sampling, [request.seed for request in chosen], show
            )
        return [
            songs.Song(codes_PS[:count], False, coder, length=length, skip=skip)
            for codes_PS, count, length in zip(codes_BPS, needed, lengths, strict=True)
        ]

    def needs() -> list[songs.Need]:
        prior, make_prior = prior_config(config), make_model(config)
        row = prior.lm.transformer.cache_bytes(length(config))
        return [songs.Need.of(lambda: make_prior(nnx.Rngs(0)), row if sampling["guidance"] == 1.0 else 2 * row)]

    runs, steps, how = {"codec": codec, "lm": lm}, {"codec": step}, {"rows": rows, "mesh": spread, "needs": needs}
    runs |= {"clap": clap} if clap else {}
    return songs.produce(requests, out, make, runs, {"lm": sampling}, audio, steps=steps, **how)


def _condition(request: Request, config: ConfigDict, clap: str | None = None) -> Condition:
    """What a request should sound like: a waveform with its rate, or a vector, as the model takes it."""
    path = request.like
    listens = bool(config.model.listener)
    words = request.prompt
    text = words.description
    if words != Prompt(seconds=words.seconds, description="" if listens else text):
        more = "" if listens else ", or --text"
        raise UserError(f"{request.name}: AAR takes no words, but what to sound like: leave all but --like{more} out")
    if clap and listens:
        raise UserError(f"--clap={clap}: this model listens to a clip itself: leave it out")
    if text and path:
        raise UserError(f"{request.name}: give words or --like={path}, not both")
    if text:
        if not clap:
            raise UserError(f"{request.name}: words need a CLAP that knows them: give it with --clap=FOLDER")
        return as_condition(clap, _of_words(clap, text), config.model.cond)
    if not path:
        wanted = "--like=CLIP.wav, the music" if listens else "--text, or --like=VECTOR.npy, the CLAP vector of what"
        raise UserError(f"{request.name}: give {wanted} that it should sound like")
    if path.endswith(".npy"):
        if listens:
            raise UserError(f"{path}: this model listens to a clip itself: give a sound file with --like")
        stored_U = read_npy(path, "a vector", "save one with numpy.save")
        with reading(path, "a vector", "save one with numpy.save"):
            vector_U = stored_U.astype(np.float32)
        return as_condition(path, vector_U, config.model.cond)
    if not listens and not clap:
        raise UserError(
            f"{path}: this model was trained on CLAP vectors: give one of a clip with --like=VECTOR.npy, or the CLAP "
            "itself with --clap=FOLDER"
        )
    if not listens:
        return as_condition(path, _of_clip(clap, path), config.model.cond)
    wav_LC, rate = files.read(path)
    window = window_seconds(config)
    if len(wav_LC) < window * rate:
        raise UserError(f"{path} lasts {len(wav_LC) / rate:.2f} s: a clip must fill a window of {window:g} s")
    start = max(len(wav_LC) - round(HEARD_SECONDS * rate), 0) // 2
    return wav_LC[start : start + round(HEARD_SECONDS * rate)], rate


@lru_cache(1)
def _clap(folder: str) -> claps.Clap:
    model = encoders.load(folder)
    if not isinstance(model, claps.Clap):
        raise UserError(f"--clap={folder} is another encoder: give a folder that `hiermusic import clap` wrote")
    return model


def _of_words(folder: str, text: str) -> np.ndarray:
    """The vector of a description."""
    model = _clap(folder)
    return np.asarray(model.read(claps.ids_of([text], folder, model.config.text))[0])


def _of_clip(folder: str, path: str) -> np.ndarray:
    """The vector of a clip; of a longer one, the mean of those of its parts."""
    model = _clap(folder)
    return encoders.embed(model, files.read(path, model.config.sample_rate, 1)[0][:, 0]).mean(axis=0)


def _known(coder: Codec, path: str) -> tuple[Int[np.ndarray, "P S"], int]:
    """Rows of codes, the last ending where a recording does, and the samples of silence that fill the first one up."""
    wav_LC = files.read(path, coder.sample_rate, coder.channels)[0]
    if len(wav_LC) < coder.packet:
        raise UserError(f"{path} is shorter than a window of {coder.packet / coder.sample_rate:g} s")
    skip = -len(wav_LC) % coder.packet
    return encode_long(coder, np.pad(wav_LC, ((skip, 0), (0, 0)))).astype(np.int32), skip


def _told(coder: Codec, config: ConfigDict, condition: Condition) -> np.ndarray:
    """What a model is told of what a request should sound like: packets of codes [P, S] to listen to, or a vector."""
    if isinstance(condition, np.ndarray):
        return condition
    make, (wav_LC, rate) = windows(config, data=False), condition
    ours_LC = files.resample(files.to_channels(wav_LC, coder.channels), rate, coder.sample_rate)
    codes_PS = make.filled(encode_long(coder, ours_LC), len(wav_LC) / rate)
    return make.clip(codes_PS)


def _asked(what: Callable[[Prior, np.ndarray], jax.Array], model: Prior, codes: np.ndarray) -> np.ndarray:
    """What a method of a model makes of codes; every process whose devices the model lies on has to ask."""
    return np.asarray(_answer(what, *nnx.split(model), codes))


@partial(jax.jit, static_argnums=(0, 1))
def _answer(what, graphdef, weights, codes):
    return everywhere(what(nnx.merge(graphdef, weights), codes))


def _by_scale(model: Prior, cond_BU, total: int, known_PS, config, sampling: dict, seeds, show) -> np.ndarray:
    """Windows up to `total`, AAR's way."""
    known, before_BcE = 0, None
    if known_PS is not None:
        known, before_BcE = len(known_PS), np.repeat(_asked(Prior.context, model, known_PS[None, -1]), len(seeds), 0)
    drawn_BWS = nextscale.generate(
        model.lm,
        model.quantiser,
        cond_BU,
        seeds=seeds,
        windows=total - known,
        context=model.config.context,
        before_BcE=before_BcE,
        uncond_U=np.asarray(model.unconditional[...]),
        progress=show,
        **sampling,
    )
    return drawn_BWS if not known else np.concatenate([np.repeat(known_PS[None], len(seeds), 0), drawn_BWS], 1)


def _by_token(model: Prior, cond_BU, total: int, known_PS, config, sampling: dict, seeds, show) -> np.ndarray:
    """Frames up to `total`, token by token: every window but the first begins with the last half of what there is."""
    size, levels, B = window_frames(config), model.config.lm.levels, len(seeds)
    order = pattern_of(config).layout(size)
    codes_BTK = np.zeros((B, 0, levels), np.int32) if known_PS is None else np.repeat(known_PS[None], B, 0)
    begun = codes_BTK.shape[1]
    while codes_BTK.shape[1] < total:
        given = codes_BTK[:, max(codes_BTK.shape[1] - size // 2, 0) :]
        drawn = autoregressive.generate(
            model.lm,
            [[sequence.START]] * B,
            [order] * B,
            # a window of its own draws: its first new frame is not the first window's
            seeds=[int(np.random.default_rng((seed, codes_BTK.shape[1])).integers(2**32)) for seed in seeds],
            sizes=[model.config.lm.codes] * levels,
            given=[list(codes_TK.T) for codes_TK in given] if given.shape[1] else None,
            cond=cond_BU,
            uncond=np.asarray(model.unconditional[...]),
            **sampling,
        )
        fresh_BTK = np.stack([sample.codes for sample in drawn])[:, given.shape[1] :]
        codes_BTK = np.concatenate([codes_BTK, fresh_BTK], axis=1)
        show(min(codes_BTK.shape[1], total) - begun, total - begun)
    return codes_BTK[:, :total]


def program(config: ConfigDict, rows: int) -> programs.Generation:
    """The decoding of a piece, the passes of one window, or a chunk of the baseline's steps, in shapes.

    Args:
      config: of any stage.
      rows: songs made at once.
    """
    if config.stage == "codec":
        return programs.decoding(codec_config(config.model), rows)
    model = config.model
    sampling = config.sampling
    prior = prior_config(config)
    make = make_model(config)
    seconds = window_seconds(config) * rows
    trunk = prior.lm.transformer
    cond_BU, uncond_U = np.zeros((rows, model.cond), np.float32), np.zeros(model.cond, np.float32)
    if prior.next_scale:

        def served() -> tuple[nnx.Module, nnx.Module]:
            whole = make(nnx.Rngs(0))
            return whole.lm.compact().unstack(), whole.quantiser

        lm, quantiser = nnx.eval_shape(served)
        options = {"seeds": range(rows), "context": prior.context, "uncond_U": uncond_U, **sampling}
        run, arguments = nextscale.program(lm, quantiser, cond_BU, **options)
        name, positions, share = "generate: a window", length(config), 1.0
    else:
        lm = nnx.eval_shape(lambda: make(nnx.Rngs(0)).lm.compact().unstack())
        layouts = [pattern_of(config).layout(model.window)] * rows
        sizes = [prior.lm.codes] * prior.lm.levels
        options = {"seeds": range(rows), "sizes": sizes, "cond": cond_BU, "uncond": uncond_U, **sampling}
        prompts = [[sequence.START]] * rows
        run, arguments = autoregressive.chunk(lm, prompts, layouts, cache_dtype=model.dtype, **options)
        positions = autoregressive.CHUNK
        name, share = f"generate: {positions} steps", positions / length(config)
    tokens = float(tokens_of(config).hierarchy.tokens_per_second) * seconds * share
    return programs.Generation(name, run.func, arguments, run.keywords, positions, tokens, seconds * share, trunk)
