"""Songs from a token model: prompts, codes in its order, sound."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from ml_collections import ConfigDict

from hiermusic.audio import files
from hiermusic.codec.chunked import encode_long
from hiermusic.errors import UserError
from hiermusic.parallel.mesh import make_mesh
from hiermusic.systems import programs, songs
from hiermusic.systems import workdir as workdirs
from hiermusic.systems.lm import songs as drawing
from hiermusic.systems.requests import Request
from hiermusic.systems.token_facts import check_codec, codec_of
from hiermusic.systems.tokens.models import codec_config
from hiermusic.tokens import packets
from hiermusic.tokens.prompt import Prompt


def generate(
    requests: Sequence[Request],
    out: Path,
    *,
    lm: str,
    codec: str | None = None,
    options: Mapping[str, float] = MappingProxyType({}),
    audio: str | None = None,
    mesh: Mapping[str, int] | None = None,
    rows: int | None = None,
) -> list[dict]:
    """Songs for prompts: the token model, then the codec; one wav and one JSON each.

    Args:
      requests: what to make; a song whose JSON stands with the same contents is not made again.
      out: folder for NAME.wav, NAME.npz and NAME.json.
      lm: workdir of the token model.
      codec: workdir of the codec; None for the one that made the model's tokens.
      options: temperature, top_k, top_p, guidance where they differ from the model's own.
      audio: file to go on from; its length counts in the prompt's seconds.
      mesh: axes and sizes to spread the token model over all devices of all processes; None for one of this one's.
      rows: songs made at once, all in one batch; as `songs.produce` has it when left out.
    Returns:
      What each JSON holds.
    """
    config, step = workdirs.read(lm, "lm"), None
    spread = make_mesh(mesh) if mesh else None
    if codec is None:
        codec, step = codec_of(config)
    sampling = config.sampling.to_dict() | dict(options)
    if config.model.given or config.prefix:
        raise UserError(f"{lm} predicts tokens behind others that it is given, and no flag gives these")
    for request in requests:
        if request.like:
            raise UserError(f"{request.name}: this model takes words, not a clip: leave --like={request.like} out")
        if config.model.tokenizer == "none" and request.prompt != Prompt(seconds=request.prompt.seconds):
            raise UserError(f"{request.name}: {lm} was trained without words: leave all but the length out")
    drawing.check_guidance(requests, config, sampling["guidance"])

    def make(requests: Sequence[Request]) -> list[songs.Song]:
        coder, known = workdirs.load_codec(codec, step), None
        check_codec(config, lm, coder.facts, codec)
        if audio:
            codes_PS = encode_long(coder, files.read(audio, coder.sample_rate, coder.channels)[0])
            known = packets.to_streams(codes_PS, coder.slots)
        _, model = workdirs.load(lm, "lm", mesh=spread)
        if not requests:  # of this process; the others read the checkpoint too
            return []
        model = drawing.ready(config, model)
        samples = drawing.draw(requests, config, model, sampling, known=known, mesh=spread)
        return [songs.Song(packets.to_packets(one.codes, coder.slots), one.ended, coder) for one in samples]

    def needs() -> list[songs.Need]:
        return [drawing.need(requests, config, sampling["guidance"])]

    runs, steps, how = {"codec": codec, "lm": lm}, {"codec": step}, {"rows": rows, "mesh": spread, "needs": needs}
    return songs.produce(requests, out, make, runs, {"lm": sampling}, audio, steps=steps, **how)


def program(config: ConfigDict, rows: int) -> programs.Generation:
    """The program that generating with a stage's model spends its time in."""
    if config.stage == "semantic":
        raise UserError("a tokenizer of meaning makes no sound: nothing of it is compiled for generation")
    if config.stage == "codec":
        return programs.decoding(codec_config(config.model), rows)
    return drawing.program(config, rows)
