"""Songs from PyramidCodec's language model: prompts, level after level, sound; and what generation compiles to."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from ml_collections import ConfigDict

from hiermusic.audio import files
from hiermusic.codec.chunked import encode_long
from hiermusic.codec.codec import Codec
from hiermusic.errors import UserError
from hiermusic.parallel.mesh import make_mesh
from hiermusic.systems import programs, songs
from hiermusic.systems import workdir as workdirs
from hiermusic.systems.lm import songs as drawing
from hiermusic.systems.lm.models import hierarchy, pattern_of
from hiermusic.systems.pyramid.models import codec_config
from hiermusic.systems.requests import Request
from hiermusic.systems.token_facts import check_codec, codec_of, facts_of
from hiermusic.tokens import packets
from hiermusic.tokens.prompt import Prompt


def generate(
    requests: Sequence[Request],
    out: Path,
    *,
    lm: str,
    finer_lms: str | None = None,
    codec: str | None = None,
    options: Mapping[str, float] = MappingProxyType({}),
    audio: str | None = None,
    levels_too: bool = False,
    mesh: Mapping[str, int] | None = None,
    rows: int | None = None,
) -> list[dict]:
    """Songs for prompts: the language model, those of the finer levels where it does not know them, then the codec.

    Args:
      requests: what to make; a song whose JSON stands with the same contents is not made again.
      out: folder for NAME.wav, NAME.npz and NAME.json.
      lm: workdir of the language model, of all levels or of the first ones; of the former, songs may be longer than its
        context.
      finer_lms: workdirs of the models of the levels behind those, by commas, each given what the ones before it made.
      codec: workdir of the codec; None for the one that made the model's tokens.
      options: temperature, top_k, top_p, guidance and levels where they differ from the first model's own.
      audio: file to go on from; its length counts in the prompt's seconds.
      levels_too: also write NAME.levels_1.wav and so on, the song after so many levels.
      mesh: axes and sizes to spread the token models over all devices of all processes; None for one of this one's.
      rows: songs made at once, all in one batch; as `songs.produce` has it when left out.
    Returns:
      What each JSON holds.
    """
    runs = [lm, *(finer_lms.split(",") if finer_lms else ())]
    configs = [workdirs.read(run, "lm") for run in runs]
    _check_chain(runs, configs)
    step, spread = None, make_mesh(mesh) if mesh else None
    if codec is None:
        codec, step = codec_of(configs[0])
    sampling = [config.sampling.to_dict() for config in configs]
    sampling[0] |= dict(options)
    levels = sampling[0].get("levels", 0)
    if finer_lms and levels:
        raise UserError(f"levels={levels} is of a single model: leave out of --finer_lms those that are not to be made")
    for request in requests:
        if request.like:
            raise UserError(f"{request.name}: this model takes words, not a clip: leave --like={request.like} out")
        if configs[0].model.tokenizer == "none" and request.prompt != Prompt(seconds=request.prompt.seconds):
            raise UserError(f"{request.name}: {lm} was trained without words: leave all but the length out")
    for config, settings in zip(configs, sampling, strict=True):
        drawing.check_levels(config, settings.get("levels", 0))
    guided = [(config, settings["guidance"]) for config, settings in zip(configs, sampling, strict=True)]
    for config, guidance in guided:
        drawing.check_guidance(requests, config, guidance)

    def make(requests: Sequence[Request]) -> list[songs.Song]:
        coder, known, samples = workdirs.load_codec(codec, step), None, []
        for run, config in zip(runs, configs, strict=True):
            check_codec(config, run, coder.facts, codec)
        if audio:
            codes_PS = encode_long(coder, files.read(audio, coder.sample_rate, coder.channels)[0]).astype(np.int32)
            known = packets.to_streams(codes_PS, coder.slots)
        for run, config, settings in zip(runs, configs, sampling, strict=True):
            _, model = workdirs.load(run, "lm", mesh=spread)
            if requests:  # of this process; the others read the checkpoint too
                model = drawing.ready(config, model)
                how = {
                    "known": known,
                    "mesh": spread,
                    "name": f"level {config.model.given + 1}" if finer_lms else "tokens",
                }
                if pattern_of(config).name == "level_major" and not finer_lms:
                    samples = drawing.draw_long(requests, config, model, settings, **how)
                else:
                    given = [sample.codes for sample in samples] or None
                    samples = drawing.draw(requests, config, model, settings, given=given, **how)
        return [_song(sample, coder) for sample in samples]

    def needs() -> list[songs.Need]:
        return [drawing.need(requests, config, guidance) for config, guidance in guided]

    names = ["lm", *(f"lm_{number}" for number in range(2, len(runs) + 1))]
    told, settings = dict(zip(names, runs, strict=True)), dict(zip(names, sampling, strict=True))
    versions = _versions(facts_of(configs[-1]).slots[: levels or len(hierarchy(configs[-1]))]) if levels_too else ()
    used, steps = {"codec": codec} | told, {"codec": step}
    return songs.produce(requests, out, make, used, settings, audio, versions, steps, rows, spread, needs)


def _check_chain(runs: Sequence[str], configs: Sequence[ConfigDict]) -> None:
    """UserError unless each model is given the levels that those before it know."""
    known = 0
    for run, config in zip(runs, configs, strict=True):
        if config.system != configs[0].system:
            raise UserError(f"{run} is of the system {config.system}, {runs[0]} is of {configs[0].system}")
        if config.model.given != known:
            behind = f"{run} predicts levels behind {config.model.given} that it is given"
            wrong = f"those before it make {known}" if known else "stands first: give it by --finer_lms"
            raise UserError(f"{behind}, and {wrong}")
        if config.tokens != configs[0].tokens:
            raise UserError(f"{run} knows other tokens than {runs[0]}: take models of one codec")
        known = len(hierarchy(config))


def _ends(slots: Sequence[int]) -> list[int]:
    """How many codebooks the first level of a pyramid has, the first two, and so on, of all that there are."""
    return [k for k in range(1, len(slots) + 1) if slots[k - 1 : k] != slots[k : k + 1]]


def _versions(slots: Sequence[int]) -> tuple[str, ...]:
    return tuple(f"levels_{number}" for number, _ in enumerate(_ends(slots)[:-1], 1))


def _song(sample: drawing.Sample, coder: Codec) -> songs.Song:
    """The sound of a song's levels, and of the first ones alone."""
    levels = packets.levels_of(sample.codes)
    slots = coder.slots[: len(levels)]
    parts = {
        name: packets.to_packets(levels[:end], slots) for name, end in zip(_versions(slots), _ends(slots), strict=False)
    }
    return songs.Song(packets.to_packets(levels, slots), sample.ended, coder, parts)


def program(config: ConfigDict, rows: int) -> programs.Generation:
    """The decoding of a piece, or the language model's steps, in shapes.

    Args:
      config: of any stage; songs fill its context.
      rows: songs made at once.
    """
    if config.stage == "codec":
        return programs.decoding(codec_config(config.model), rows)
    return drawing.program(config, rows)
