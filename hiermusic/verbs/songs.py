"""Verbs that make music: generate, continue."""

from hiermusic.errors import UserError
from hiermusic.verbs.flags import (
    Values,
    Verb,
    answer,
    boolean,
    hosts,
    integer,
    mesh_sizes,
    need,
    number,
    positional,
    string,
    together,
)


def _define_generate(values: Values) -> None:
    string(values, "system", "khala or aar; default: that of the workdirs")
    string(values, "superres", "Khala: workdir of a super-resolution model; without it the backbone's layers only")
    string(values, "backbone", "Khala: workdir of a backbone; default: the one --superres was started from")
    string(values, "lm", "AAR: workdir of a trained lm or ar_baseline")
    string(values, "codec", "workdir of a trained codec; default: the one that made the model's tokens")
    like = "AAR: clip to sound like (continue: default IN.wav), or .npy file of a CLAP vector; in --prompts, a field"
    string(values, "like", like)
    string(values, "prompts", "JSONL file, one prompt a line: name, tags, description, lyrics, seconds, seed, ...")
    string(values, "tags", "tags of a single prompt, separated by commas")
    string(values, "lyrics", "lyrics of a single prompt; \\n parts lines")
    boolean(values, "instrumental", "a single prompt without a voice")
    number(values, "seconds", "length of a single prompt's song", lower=0.1)
    string(values, "out", "folder for one wav and one JSON a prompt")
    integer(values, "seed", "seed of the first prompt that names none; the next prompt takes the next", 0)
    number(values, "temperature", "temperature of the model that begins; default: its workdir's", lower=0.0)
    integer(values, "top_k", "its top-k; default: its workdir's", lower=0)
    number(values, "top_p", "its top-p; default: its workdir's", lower=0.01, upper=1.0)
    guidance = "guidance scale, 1 = none; AAR grows to it from coarse to fine; default: the workdir's"
    number(values, "guidance", guidance, lower=0.0)
    least = "Khala: share of the asked length before which no song may end; default: 0"
    number(values, "min_share", least, lower=0.0, upper=1.0)
    boolean(values, "backbone_too", "also write NAME.backbone.wav, the backbone's layers alone")
    string(values, "mesh", "spread the models over this process's devices, e.g. fsdp=4,tensor=2; default: one device")
    boolean(values, "json", "print one JSON object")
    hosts(values)


def _define_continue(values: Values) -> None:
    _define_generate(values)


def _options(values: Values) -> dict:
    names = ("temperature", "top_k", "top_p", "guidance", "min_share")
    return {name: getattr(values, name) for name in names if getattr(values, name) is not None}


def _generate(values: Values, given: list[str], audio: str | None = None) -> None:
    positional(given)
    need(values, "out")
    first = values.superres or values.backbone or values.lm
    if not first:
        raise UserError("--superres, --backbone or --lm is needed: the workdir of a trained model")
    from hiermusic.systems import requests, workdir

    if values.prompts:
        asked = requests.read(values.prompts, seed=values.seed)
    else:
        words = (values.tags, values.lyrics, values.instrumental, values.seconds, values.seed)
        asked = requests.single(*words, like=values.like)
    with together(values):
        songs = workdir.generate(
            asked,
            values.out,
            first,
            values.system,
            superres=values.superres,
            lm=values.lm,
            backbone=values.backbone,
            codec=values.codec,
            options=_options(values),
            audio=audio,
            backbone_too=values.backbone_too,
            mesh=mesh_sizes(values.mesh),
        )
        answer(values, {"songs": songs}, [f"{song['wav']}: {song['seconds']:.2f} s" for song in songs])


def _continue(values: Values, given: list[str]) -> None:
    (audio,) = positional(given, "IN.wav")
    _generate(values, [], audio)


VERBS = {
    "generate": Verb(
        "prompts to songs",
        "hiermusic generate --superres=out/superres --tags='pop, piano' --lyrics='la la' --seconds=8 --out=out/songs",
        _define_generate,
        _generate,
    ),
    "continue": Verb(
        "go on from a piece of audio",
        "hiermusic continue --superres=out/superres --tags='pop, piano' --seconds=8 --out=out/songs in.wav",
        _define_continue,
        _continue,
        "IN.wav",
    ),
}
