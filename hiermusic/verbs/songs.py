"""Verbs that make music: generate, continue."""

import sys
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
    asked = [named] if named else list(systems.values())
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


VERBS = {
    "generate": Verb("prompts to songs", "", _define, _generate),
    "continue": Verb("go on from a piece of audio", "", _define, _continue, "IN.wav"),
}
