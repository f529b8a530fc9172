"""Songs from Khala's models: prompts, backbone, super-resolution, sound."""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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
from hiermusic.errors import UserError
from hiermusic.generate import autoregressive, layerwise
from hiermusic.parallel.mesh import make_mesh
from hiermusic.systems import programs, songs
from hiermusic.systems import workdir as workdirs
from hiermusic.systems.khala.models import codec_config, hierarchy, make_model, token_lm_config, tokenizer
from hiermusic.systems.requests import Request
from hiermusic.systems.tokens import check_codec, codec_of
from hiermusic.tokens import pattern, sequence
from hiermusic.tokens.prompt import Prompt, compose


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
    rows: int | None = None,
) -> list[dict]:
    """Songs for prompts: backbone, super-resolution, codec; one wav and one JSON each.

    Args:
      requests: what to make; a song whose JSON stands with the same contents is not made again.
      out: folder for NAME.wav and NAME.json.
      superres: workdir of the super-resolution model; None leaves it out.
      backbone: workdir of the backbone; None for the one `superres` was started from.
      codec: workdir of the codec; None for the one that made the backbone's tokens.
      options: temperature, top_k, top_p, guidance, min_share where they differ from the backbone's own.
      audio: file to go on from; its length counts in the prompt's seconds.
      backbone_too: also write NAME.backbone.wav from the backbone's layers alone.
      mesh: axes and sizes to spread the token models over all devices of all processes; None for one of this one's.
      rows: songs made at once, all in one batch.
    Returns:
      What each JSON holds.
    """
    if backbone is None:
        backbone = workdirs.read(superres, "superres").init_from
        if not backbone:
            raise UserError(f"{superres} was not started from a backbone: give one with --backbone=WORKDIR")
    step = None
    spread = make_mesh(mesh) if mesh else None
    if codec is None:
        codec, step = codec_of(workdirs.read(backbone, "backbone"))
    runs = {"codec": codec, "backbone": backbone} | ({"superres": superres} if superres else {})
    sampling = {"backbone": workdirs.read(backbone, "backbone").sampling.to_dict() | dict(options)}
    if superres:
        sampling["superres"] = workdirs.read(superres, "superres").sampling.to_dict()

    def make(requests: Sequence[Request]) -> list[songs.Song]:
        coder = workdirs.load_codec(codec, step)
        known_TK = None
        for run in (backbone, superres):
            if run:
                check_codec(workdirs.read(run), run, coder.facts, codec)
        if audio:
            known_TK = encode_long(coder, files.read(audio, coder.sample_rate, coder.channels)[0]).astype(np.int32)
        samples = _coarse(requests, backbone, dict(sampling["backbone"]), known_TK, spread)
        coarse = [sample.codes for sample in samples]
        codes = coarse
        if superres:
            codes = _refine(requests, coarse, superres, sampling["superres"], known_TK, spread)
        made = zip(codes, coarse, samples, strict=True)
        return [songs.Song(c, sample.ended, coder, {"backbone": q}) for c, q, sample in made]

    if said := next((request for request in requests if request.like), None):
        raise UserError(f"{said.name}: Khala takes words, not a clip: leave --like={said.like} out")
    versions = ("backbone",) if backbone_too else ()
    return songs.produce(requests, out, make, runs, sampling, audio, versions, {"codec": step}, rows, spread)


def _coarse(
    requests: Sequence[Request], backbone: str, sampling: dict, known_TK: np.ndarray | None, mesh: Mesh | None
) -> list[autoregressive.Sample]:
    """The backbone's layers, frame by frame."""
    config, model = workdirs.load(backbone, "backbone", mesh=mesh)
    model = model.compact().unstack()
    if not requests:
        return []
    words, tokens = tokenizer(config.model), hierarchy(config)
    levels = len(tokens)
    rate = tokens.rates[0]
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
            model,
            prompts,
            [pattern.flatten((frame,) * levels) for frame in frames],
            seeds=[r.seed for r in requests],
            sizes=list(tokens.sizes),
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
    model = model.compact()
    if not requests:
        return []
    words, tokens = tokenizer(config.model), hierarchy(config)
    levels = len(tokens)
    keep, limit = config.model.keep_description, config.model.text_limit
    with songs.progress("super-resolution") as show, _on(mesh):
        return layerwise.refine(
            model,
            [compose(r.prompt, words, keep_description=keep, limit=limit) for r in requests],
            [codes_TK[:, : config.model.given] for codes_TK in coarse],
            markers=[words.vocabulary.task_marker(level) for level in range(levels)],
            seeds=[r.seed for r in requests],
            sizes=list(tokens.sizes),
            known=None if known_TK is None else known_TK[:, :levels],
            progress=show,
            **sampling | {"layers": sampling["layers"] or levels},
        )


def _on(mesh: Mesh | None) -> AbstractContextManager:
    return jax.set_mesh(mesh) if mesh else nullcontext()


def program(config: ConfigDict, rows: int) -> programs.Generation:
    """The decoding of a piece, a chunk of the backbone's steps, or one pass of super-resolution, in shapes.

    Args:
      config: of any stage; songs fill its context.
      rows: songs made at once.
    """
    model = config.model
    if config.stage == "codec":
        return programs.decoding(codec_config(model), rows)
    tokens = hierarchy(config)
    make = make_model(config)
    trunk = token_lm_config(config).transformer
    rate = float(tokens.rates[0])
    levels = len(tokens)
    sizes = list(tokens.sizes)
    prompts, frames = [[0] * model.text_limit] * rows, model.length - model.text_limit
    if frames < 1:
        raise UserError(f"model.text_limit={model.text_limit} leaves no room for music in model.length={model.length}")
    sampling = {name: value for name, value in config.sampling.items() if name != "layers"}
    options = {"seeds": range(rows), "sizes": sizes, "unprompted": prompts, **sampling}
    if config.stage == "superres":
        token_lm = nnx.eval_shape(lambda: make(nnx.Rngs(0)).compact())
        codes = [np.zeros((frames, model.given), np.int32)] * rows
        run, arguments = layerwise.level_pass(token_lm, prompts, codes, markers=[0] * levels, **options)
        made = (rows * frames, rows * frames / rate / (levels - model.given))
        return programs.Generation("generate: one pass", run.func, arguments, run.keywords, model.length, *made, trunk)
    token_lm = nnx.eval_shape(lambda: make(nnx.Rngs(0)).compact().unstack())
    layouts = [pattern.flatten((frames // levels,) * levels)] * rows
    run, arguments = autoregressive.chunk(
        token_lm, prompts, layouts, eos=token_lm.config.end, cache_dtype=model.dtype, **options
    )
    steps = autoregressive.CHUNK
    made = (rows * steps, rows * steps / levels / rate)
    return programs.Generation(f"generate: {steps} steps", run.func, arguments, run.keywords, steps, *made, trunk)
