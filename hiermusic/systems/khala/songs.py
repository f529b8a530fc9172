"""Songs from Khala's models: prompts, backbone, super-resolution, sound."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from ml_collections import ConfigDict

from hiermusic.audio import files
from hiermusic.codec.chunked import encode_long
from hiermusic.data.streams import Tokenizer
from hiermusic.errors import UserError
from hiermusic.parallel.mesh import make_mesh
from hiermusic.systems import programs, songs
from hiermusic.systems import workdir as workdirs
from hiermusic.systems.khala.models import codec_config
from hiermusic.systems.lm import songs as lm
from hiermusic.systems.requests import Request
from hiermusic.systems.token_facts import check_codec, codec_of
from hiermusic.train import checkpoint


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
      out: folder for NAME.wav, NAME.npz and NAME.json.
      superres: workdir of the super-resolution model; None leaves it out.
      backbone: workdir of the backbone; None for the one `superres` was started from, at the step that names, if any.
      codec: workdir of the codec; None for the one that made the backbone's tokens.
      options: temperature, top_k, top_p, guidance, min_share where they differ from the backbone's own.
      audio: file to go on from; its length counts in the prompt's seconds.
      backbone_too: also write NAME.backbone.wav from the backbone's levels alone.
      mesh: axes and sizes to spread the token models over all devices of all processes; None for one of this one's.
      rows: songs made at once, all in one batch; as `songs.produce` has it when left out.
    Returns:
      What each JSON holds.
    """
    steps: dict[str, int | None] = {"codec": None}
    if backbone is None:
        backbone, steps["backbone"] = _started_from(superres)
    spread = make_mesh(mesh) if mesh else None
    if codec is None:
        codec, steps["codec"] = codec_of(workdirs.read(backbone, "backbone"))
    runs = {"codec": codec, "backbone": backbone} | ({"superres": superres} if superres else {})
    sampling = {"backbone": workdirs.read(backbone, "backbone").sampling.to_dict() | dict(options)}
    if superres:
        sampling["superres"] = workdirs.read(superres, "superres").sampling.to_dict()

    def make(requests: Sequence[Request]) -> list[songs.Song]:
        coder = workdirs.load_codec(codec, steps["codec"])
        known_TK = None
        for run in (backbone, superres):
            if run:
                check_codec(workdirs.read(run), run, coder.facts, codec)
        if audio:
            known_TK = encode_long(coder, files.read(audio, coder.sample_rate, coder.channels)[0]).astype(np.int32)

        def draw(role: str, run: str, name: str, coarse: Sequence[np.ndarray] | None = None):
            config, model = workdirs.load(run, role, step=steps.get(role), mesh=spread)
            if not requests:  # of this process; the others read the checkpoint too
                return []
            model = lm.ready(config, model)
            given = coarse and [codes_TK[:, : config.model.given] for codes_TK in coarse]
            how = {"known": known_TK, "given": given, "mesh": spread, "name": name}
            return lm.draw(requests, config, model, sampling[role], **how)

        samples = draw("backbone", backbone, "backbone")
        codes = coarse = [sample.codes for sample in samples]
        if superres:
            codes = [sample.codes for sample in draw("superres", superres, "super-resolution", coarse)]
        made = zip(codes, coarse, samples, strict=True)
        return [songs.Song(c, sample.ended, coder, {"backbone": q}) for c, q, sample in made]

    if said := next((request for request in requests if request.like), None):
        raise UserError(f"{said.name}: Khala takes words, not a clip: leave --like={said.like} out")
    guided = {role: settings.get("guidance", 1.0) for role, settings in sampling.items()}
    for role, guidance in guided.items():
        lm.check_guidance(requests, workdirs.read(runs[role], role), guidance)

    def needs() -> list[songs.Need]:
        return [lm.need(requests, workdirs.read(runs[role], role), guidance) for role, guidance in guided.items()]

    versions = ("backbone",) if backbone_too else ()
    return songs.produce(requests, out, make, runs, sampling, audio, versions, steps, rows, spread, needs)


def _started_from(superres: str) -> Tokenizer:
    """The backbone that super-resolution was started from, and its step where that is told; perhaps by way of one that
    it was fine-tuned from. UserError where it was from none, or where that step is gone."""
    found = Tokenizer(superres, None)
    while (config := workdirs.read(found.workdir)).stage == "superres":
        found = Tokenizer.named(config.init_from)
        if not found.workdir:
            raise UserError(f"{superres} was not started from a backbone: give one with --backbone=WORKDIR")
    if found.step is not None and found.step not in checkpoint.steps(found.workdir):
        raise UserError(f"{superres} was started from {found}, which is gone: give a backbone with --backbone=WORKDIR")
    return found


def program(config: ConfigDict, rows: int) -> programs.Generation:
    """The decoding of a piece, a chunk of the backbone's steps, or one pass of super-resolution, in shapes.

    Args:
      config: of any stage; songs fill its context.
      rows: songs made at once.
    """
    return programs.decoding(codec_config(config.model), rows) if config.stage == "codec" else lm.program(config, rows)
