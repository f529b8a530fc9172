"""Verbs that make music: generate, continue, accompany."""

import sys
from pathlib import Path
from typing import Any

from hiermusic.errors import UserError
from hiermusic.systems import catalogue
from hiermusic.systems.system import ROWS, Flag, System
from hiermusic.verbs.flags import (
    Values,
    Verb,
    answer,
    boolean,
    declare,
    hosts,
    integer,
    mesh_sizes,
    need,
    number,
    positional,
    string,
    system_named,
    together,
)


def _define(values: Values) -> None:
    systems = catalogue.systems()
    string(values, "system", f"{catalogue.spoken(list(systems))}; default: that of the workdirs")
    string(values, "prompts", "JSONL file, one prompt a line: name, tags, description, lyrics, seconds, seed, ...")
    number(values, "seconds", "length of the song; with --prompts, of lines that name none", lower=0.1)
    string(values, "out", "folder for one wav and one JSON a prompt")
    integer(values, "seed", "seed of the first prompt that names none; the next prompt takes the next", 0)
    string(values, "mesh", "spread the models over the devices, e.g. fsdp=4,tensor=2; default: one device")
    declare(values, ROWS, ROWS.text)
    boolean(values, "json", "print one JSON object")
    hosts(values)
    # help is that of the system that is named; else all are read, so that a foreign flag is told to be one
    named = system_named() if {"-h", "--help"} & set(sys.argv) else None
    asked = [named] if named and named.flags else [system for system in systems.values() if system.flags]
    for flag in _flags(asked):
        declare(values, flag, _text(flag.name, asked))


def _flags(systems: list[System]) -> list[Flag]:
    """The flags of systems, each once; those of models in their order."""
    return list({flag.name: flag for system in systems for flag in system.flags}.values())


def _text(name: str, systems: list[System]) -> str:
    """What help says of a flag, with the systems that it means something to where not all agree on it."""
    texts = {system.title: flag.text for system in systems for flag in system.flags if flag.name == name}
    if len(texts) == len(systems) and len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{title}: {text}" for title, text in texts.items())


def _generate(values: Values, given: list[str], audio: str | None = None) -> None:
    positional(given)
    need(values, "out")
    systems = list(catalogue.systems().values())
    flags = _flags(systems)
    said: dict[str, Any] = {flag.name: values[flag.name].value for flag in flags}
    said = {name: value for name, value in said.items() if value is not None and value is not False}
    models = [flag.name for flag in flags if flag.of == "model"]
    first = next((said[name] for name in models if name in said), None)
    if not first:
        wanted = catalogue.spoken([f"--{name}" for name in models])
        raise UserError(f"{wanted} is needed: the workdir of a trained model")
    from hiermusic.systems import requests, workdir

    words = {flag.name: said[flag.name] for flag in flags if flag.of == "prompt" and flag.name in said}
    if "lyrics" in words:
        words["lyrics"] = words["lyrics"].replace("\\n", "\n")
    if values.prompts:
        kept = [version for system in systems for version in system.versions]
        unsaid = words if values.seconds is None else {**words, "seconds": values.seconds}
        asked = requests.read(values.prompts, values.seed, kept, unsaid)
    else:
        asked = requests.single(values.seconds, values.seed, **words)
    with together(values):
        songs = workdir.generate(
            asked,
            values.out,
            first,
            values.system,
            audio=audio,
            mesh=mesh_sizes(values.mesh),
            rows=values.rows,
            **said,
        )
        answer(values, {"songs": songs}, [f"{song['wav']}: {song['seconds']:.2f} s" for song in songs])


def _continue(values: Values, given: list[str]) -> None:
    (audio,) = positional(given, "IN.wav")
    _generate(values, [], audio)


def _define_accompany(values: Values) -> None:
    string(values, "workdir", "folder that holds the workdirs of the stages, each under the stage's name")
    string(values, "out", "folder for the accompaniment, the mix and report.html")
    string(values, "data", "audio records, to accompany the vocals of held-out tracks, instead of VOCAL.wav")
    integer(values, "tracks", "with --data: at most so many", 12, lower=1)
    integer(values, "seed", "seed of the first vocal; the next one takes the next", 0, lower=0, upper=2**32 - 1)
    number(values, "temperature", "temperature of all stages; default: their workdirs'", lower=0.0)
    integer(values, "top_k", "their top-k; default: their workdirs'", lower=0)
    number(values, "guidance", "their guidance scale, 1 = none; default: their workdirs'", lower=0.0)
    number(values, "overlap", "seconds that two windows share; default: a quarter of one", lower=0.0, upper=3600.0)
    number(
        values,
        "noise",
        "deviation of Gaussian noise on what the tokenizer hears; default: training's",
        lower=0.0,
        upper=1.0,
    )
    integer(values, "rows", "windows, of as many vocals, that are played at once", 8, lower=1)
    boolean(values, "json", "print one JSON object")


def _accompany(values: Values, given: list[str]) -> None:
    if values.data:
        positional(given)
    else:
        (path,) = positional(given, "VOCAL.wav")
    need(values, "workdir", "out")
    from hiermusic.systems import accompany

    accompany.stages_in(values.workdir)  # before sounds are read
    vocals = accompany.of_records(values.data, values.tracks) if values.data else [accompany.of_file(path)]
    sampling = {name: values[name].value for name in ("temperature", "top_k", "guidance")}
    songs = accompany.accompany(
        vocals,
        Path(values.out),
        values.workdir,
        seed=values.seed,
        overlap=values.overlap,
        noise=values.noise,
        rows=values.rows,
        **{name: value for name, value in sampling.items() if value is not None},
    )
    from hiermusic.evaluate import accompaniment

    results = accompaniment.evaluate(songs, vocals, Path(values.out))
    told = [*accompany.lines(songs), *accompaniment.lines(results), f"{values.out}/report.html"]
    answer(values, {"songs": songs, **results}, told)


VERBS = {
    "generate": Verb("prompts to songs", "", _define, _generate),
    "continue": Verb("go on from a piece of audio", "", _define, _continue, "IN.wav"),
    "accompany": Verb(
        "play an accompaniment to a vocal",
        "hiermusic accompany vocal.wav --workdir=out/stages --out=out/accompanied",
        _define_accompany,
        _accompany,
        "VOCAL.wav",
    ),
}
