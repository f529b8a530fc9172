"""The `hiermusic` command: verbs, one thin function each."""

import json
import math
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from absl import flags, logging
from ml_collections import config_flags

from hiermusic.errors import UserError

Values = flags.FlagValues


@dataclass(frozen=True)
class Verb:
    """A verb: what it does, how it is called, and the functions that declare its flags and run it."""

    summary: str
    example: str
    define: Callable[[Values], None]
    run: Callable[[Values, list[str]], None]
    arguments: str = ""


def _string(values: Values, name: str, text: str, default: str | None = None) -> None:
    flags.DEFINE_string(name, default, text, flag_values=values)


def _integer(
    values: Values,
    name: str,
    text: str,
    default: int | None = None,
    lower: int | None = None,
    upper: int | None = None,
) -> None:
    flags.DEFINE_integer(name, default, text, lower_bound=lower, upper_bound=upper, flag_values=values)


def _float(
    values: Values, name: str, text: str, default: float | None = None, *, lower: float, upper: float | None = None
) -> None:
    flags.DEFINE_float(name, default, text, lower_bound=lower, upper_bound=upper, flag_values=values)
    # NaN passes every bound
    flags.register_validator(name, lambda x: x is None or math.isfinite(x), "give a finite number", flag_values=values)


def _boolean(values: Values, name: str, text: str, default: bool = False) -> None:
    flags.DEFINE_bool(name, default, text, flag_values=values)


def _config(values: Values) -> None:
    config_flags.DEFINE_config_file(
        "config", None, "FILE.py[:preset]; --config.a.b=value overrides a field", flag_values=values
    )


def _need(values: Values, *names: str) -> None:
    missing = [f"--{name}" for name in names if not getattr(values, name)]
    if missing:
        raise UserError(f"{', '.join(missing)} is needed")


def _positional(given: list[str], *names: str) -> list[str]:
    if len(given) != len(names):
        raise UserError(f"expected {len(names)} arguments ({' '.join(names)}), got {len(given)}: {' '.join(given)}")
    return given


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _print(text: str) -> None:
    """Writes to standard output; where that fails the process ends at once, or Python would try again at its end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        os._exit(0)
    except OSError as error:
        _say(f"hiermusic: standard output cannot be written: {error.strerror}")
        os._exit(1)


def _answer(values: Values, result: dict, lines: list[str]) -> None:
    """One JSON object on standard output with --json, the words otherwise."""
    _print(json.dumps(result) if values.json else "\n".join(lines))


# MARK: data


def _define_data(values: Values) -> None:
    _string(
        values, "source", "folder, manifest (.csv, .jsonl, .jsonl.gz), tfds:NAME?split=train or builtin:N?seconds=8-16"
    )
    _string(values, "out", "folder for the records")
    _integer(values, "sample_rate", "samples a second of the records", 44100, lower=1)
    _integer(values, "channels", "channels of the records", 2, lower=1, upper=2)
    _float(values, "valid_fraction", "share of tracks held out", 0.1, lower=0.0, upper=1.0)
    _string(values, "tfds", "also write the records as a TensorFlow Datasets data set below this folder")
    _float(values, "segment_seconds", "seconds a record holds", 10.0, lower=0.1)
    _boolean(values, "json", "print one JSON object")


def _data(values: Values, given: list[str]) -> None:
    _positional(given)
    _need(values, "source", "out")
    from hiermusic.data import records, sources

    source = sources.open_source(values.source)
    summary = records.write_audio(
        source.tracks,
        values.out,
        values.sample_rate,
        values.channels,
        segment_seconds=values.segment_seconds,
        valid_fraction=values.valid_fraction,
        fingerprint=source.fingerprint,
    )
    _export(values.out, values.tfds)
    _answer(values, _summary(summary), [str(summary)])


def _export(records: str, folder: str | None) -> None:
    if folder:
        from hiermusic.data.tfds_builder import export_tfds

        _say(f"written as a TFDS data set: {export_tfds(records, folder)}")


def _summary(summary) -> dict:
    facts = {"out": str(summary.path), "tracks": summary.tracks, "seconds": summary.seconds, **summary.splits}
    return facts | {"skipped": [list(entry) for entry in summary.skipped]}


# MARK: training


def _define_train(values: Values) -> None:
    _config(values)
    _string(values, "workdir", "folder that keeps config, checkpoints, logs and samples; run again to go on")
    _boolean(values, "progress", "show a progress bar", True)
    _boolean(values, "json", "print one JSON object")


def _train(values: Values, given: list[str]) -> None:
    _positional(given)
    _need(values, "config", "workdir")
    from hiermusic.systems import workdir
    from hiermusic.train import loop

    stage = workdir.stage(values.config, values.workdir)
    metrics = loop.run(stage, values.config, values.workdir, progress=values.progress)
    if metrics["step"] < values.config.train.steps:
        _say(f"hiermusic train: stopped and saved after step {metrics['step']}; run the same command to go on")
        sys.exit(130)
    _answer(values, metrics, [f"{values.workdir}: trained to step {metrics['step']}, loss {metrics.get('loss')}"])


# MARK: tokens


def _define_tokenize(values: Values) -> None:
    _string(values, "codec", "workdir of a trained codec")
    _string(values, "data", "audio records, folder, manifest, TFDS name or builtin:N")
    _string(values, "out", "folder for the token records")
    _string(values, "tfds", "also write the records as a TensorFlow Datasets data set below this folder")
    _integer(values, "split_at", "codec layers kept apart from the rest, for models that read only those", 2, lower=1)
    _boolean(values, "json", "print one JSON object")


def _tokenize(values: Values, given: list[str]) -> None:
    _positional(given)
    _need(values, "codec", "data", "out")
    from hiermusic.systems import workdir

    summary = workdir.tokenise(values.codec, values.data, values.out, split_at=values.split_at)
    _export(values.out, values.tfds)
    _answer(values, _summary(summary), [str(summary)])


def _define_encode(values: Values) -> None:
    _string(values, "codec", "workdir of a trained codec")
    _integer(values, "layers", "codec layers to keep; all when left out", lower=1)
    _boolean(values, "json", "print one JSON object")


def _encode(values: Values, given: list[str]) -> None:
    source, target = _positional(given, "IN.wav", "CODES.npz")
    _need(values, "codec")
    from hiermusic.systems import workdir

    result = workdir.encode_file(values.codec, source, target, layers=values.layers)
    _answer(values, result, [f"{target}: codes {result['codes']} of {result['seconds']:.2f} s"])


def _decode(values: Values, given: list[str]) -> None:
    source, target = _positional(given, "CODES.npz", "OUT.wav")
    _need(values, "codec")
    from hiermusic.systems import workdir

    result = workdir.decode_file(values.codec, source, target, layers=values.layers)
    _answer(values, result, [f"{target}: {result['seconds']:.2f} s"])


# MARK: generation


def _define_generate(values: Values) -> None:
    _string(values, "superres", "workdir of a trained super-resolution model; without it the backbone's layers only")
    _string(values, "backbone", "workdir of a trained backbone; default: the one --superres was started from")
    _string(values, "codec", "workdir of a trained codec; default: the one that made the backbone's tokens")
    _string(values, "prompts", "JSONL file, one prompt a line: name, tags, description, lyrics, seconds, seed, ...")
    _string(values, "tags", "tags of a single prompt, separated by commas")
    _string(values, "lyrics", "lyrics of a single prompt; \\n parts lines")
    _boolean(values, "instrumental", "a single prompt without a voice")
    _float(values, "seconds", "length of a single prompt's song", lower=0.1)
    _string(values, "out", "folder for one wav and one JSON a prompt")
    _integer(values, "seed", "seed of the first prompt that names none; the next prompt takes the next", 0)
    _float(values, "temperature", "backbone temperature; default: the workdir's", lower=0.0)
    _integer(values, "top_k", "backbone top-k; default: the workdir's", lower=0)
    _float(values, "top_p", "backbone top-p; default: the workdir's", lower=0.01, upper=1.0)
    _float(values, "guidance", "classifier-free guidance scale; default: the workdir's", lower=0.0)
    _boolean(values, "backbone_too", "also write NAME.backbone.wav, the backbone's layers alone")
    _boolean(values, "json", "print one JSON object")


def _define_continue(values: Values) -> None:
    _define_generate(values)


def _options(values: Values) -> dict:
    names = ("temperature", "top_k", "top_p", "guidance")
    return {name: getattr(values, name) for name in names if getattr(values, name) is not None}


def _generate(values: Values, given: list[str], audio: str | None = None) -> None:
    _positional(given)
    _need(values, "out")
    if not (values.superres or values.backbone):
        raise UserError("--superres or --backbone is needed: the workdir of a trained model")
    from hiermusic.systems import requests, workdir

    if values.prompts:
        asked = requests.read(values.prompts, seed=values.seed)
    else:
        asked = requests.single(values.tags, values.lyrics, values.instrumental, values.seconds, values.seed)
    songs = workdir.generate(
        asked,
        values.out,
        superres=values.superres,
        backbone=values.backbone,
        codec=values.codec,
        options=_options(values),
        audio=audio,
        backbone_too=values.backbone_too,
    )
    _answer(values, {"songs": songs}, [f"{song['wav']}: {song['seconds']:.2f} s" for song in songs])


def _continue(values: Values, given: list[str]) -> None:
    (audio,) = _positional(given, "IN.wav")
    _generate(values, [], audio)


# MARK: looking


def _define_inspect(values: Values) -> None:
    _config(values)
    _string(values, "workdir", "a training run, instead of --config")
    _boolean(values, "json", "print one JSON object")


def _inspect(values: Values, given: list[str]) -> None:
    _positional(given)
    if bool(values.config) == bool(values.workdir):
        raise UserError("give either --config or --workdir")
    from hiermusic.systems import workdir

    facts = workdir.inspect(values.config, values.workdir)
    width = max(len(name) for name in facts["params"])
    lines = [f"{name:<{width}}  {count:>15,}" for name, count in facts["params"].items()]
    lines += [f"{name}: {value}" for name, value in facts.items() if name != "params"]
    _answer(values, facts, lines)


def _define_evaluate(values: Values) -> None:
    _string(values, "workdir", "a trained codec or token model")
    _string(values, "data", "data to take the held-out tracks from; default: what it was trained on")
    _string(values, "out", "folder for results.json and report.html; default: WORKDIR/evaluation")
    _float(values, "seconds", "seconds of each held-out track that are measured", 10.0, lower=1.0)
    _integer(values, "tracks", "at most so many tracks", 32, lower=1)
    _boolean(values, "json", "print one JSON object")


def _evaluate(values: Values, given: list[str]) -> None:
    _positional(given)
    _need(values, "workdir")
    from hiermusic.evaluate import run

    out = values.out or str(Path(values.workdir) / "evaluation")
    results = run.evaluate(values.workdir, out, data=values.data, seconds=values.seconds, tracks=values.tracks)
    _answer(values, results, [*run.lines(results), f"{out}/report.html"])


def _define_demo(values: Values) -> None:
    _string(values, "workdir", "folder for everything the demo makes", "out/demo")
    _string(values, "configs", "folder of the configuration files", "configs")


def _demo(values: Values, given: list[str]) -> None:
    _positional(given)
    from hiermusic import demo

    _print(str(demo.run(Path(values.workdir), Path(values.configs))))


VERBS = {
    "demo": Verb(
        "everything once, small: corpus, codec, tokens, two token models, three songs, a report",
        "hiermusic demo --workdir=out/demo",
        _define_demo,
        _demo,
    ),
    "data": Verb(
        "turn music into sharded audio records",
        "hiermusic data --source=FOLDER_OF_MUSIC --out=out/corpus",
        _define_data,
        _data,
    ),
    "train": Verb(
        "train any stage; run again to go on where it stopped",
        "hiermusic train --config=configs/khala/codec.py:tiny --workdir=out/codec --config.data.path=FOLDER_OF_MUSIC",
        _define_train,
        _train,
    ),
    "tokenize": Verb(
        "turn audio into token records with a trained codec",
        "hiermusic tokenize --codec=out/codec --data=out/corpus --out=out/tokens",
        _define_tokenize,
        _tokenize,
    ),
    "encode": Verb(
        "one audio file to codes",
        "hiermusic encode --codec=out/codec in.wav codes.npz",
        _define_encode,
        _encode,
        "IN.wav CODES.npz",
    ),
    "decode": Verb(
        "codes back to one audio file",
        "hiermusic decode --codec=out/codec codes.npz out.wav",
        _define_encode,
        _decode,
        "CODES.npz OUT.wav",
    ),
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
    "evaluate": Verb(
        "measure a trained codec or token model on held-out tracks",
        "hiermusic evaluate --workdir=out/codec",
        _define_evaluate,
        _evaluate,
    ),
    "inspect": Verb(
        "what a configuration or a workdir is made of, without allocating it",
        "hiermusic inspect --config=configs/khala/backbone.py:paper --json",
        _define_inspect,
        _inspect,
    ),
}


# MARK: entry


def _usage() -> str:
    width = max(map(len, VERBS))
    rows = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(["usage: hiermusic VERB --flag=value ...", "", *rows, "", "hiermusic VERB -h explains one."])


def _help(name: str, verb: Verb, values: Values) -> str:
    rows = []
    for flag in sorted({id(flag): flag for flag in map(values.__getitem__, values)}.values(), key=lambda f: f.name):
        default = "" if flag.default in (None, "") else f" (default {flag.default})"
        rows.append(f"  --{flag.name:<16} {flag.help}{default}")
    head = f"usage: hiermusic {name} --flag=value ... {verb.arguments}".rstrip()
    return "\n".join([head, "", f"  {verb.summary}", "", *rows, "", f"example:\n  {verb.example}"])


def _parse(name: str, verb: Verb, values: Values, argv: list[str]) -> list[str]:
    # config_flags finds overrides such as --config.a.b=1 in sys.argv itself.
    sys.argv = [f"hiermusic {name}", *argv]
    for argument in argv:
        if argument.startswith("--config="):
            path = argument.removeprefix("--config=").split(":")[0]
            if not Path(path).is_file():
                raise UserError(f"no configuration file at {path}: give --config=FILE.py[:preset]")
    try:
        return values(sys.argv)[1:]
    except flags.Error as error:
        raise UserError(f"{error} (hiermusic {name} -h lists the flags)") from error
    except (AttributeError, KeyError) as error:
        field = re.sub(r"[\\'\"]", "", str(error).replace("\\n", "; "))  # a message in several layers of quotes
        raise UserError(f"the configuration has no field {field} (look into the file given with --config)") from error


def _keep_compiled_programs() -> None:
    """Lets a second run of anything start without compiling it again, unless the environment says where or how."""
    cache = Path.home() / ".cache" / "hiermusic" / "compiled"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def main(argv: list[str] | None = None) -> None:
    """Runs one verb; bad input ends in one line on standard error and exit status 1."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        _print(_usage())
        return
    name, *rest = argv
    if name not in VERBS:
        _say(f"hiermusic: there is no verb '{name}'; there are {', '.join(VERBS)}")
        sys.exit(2)
    _keep_compiled_programs()
    verb, values = VERBS[name], Values()
    verb.define(values)
    if {"-h", "--help"} & set(rest):
        _print(_help(name, verb, values))
        return
    logging.set_verbosity(logging.ERROR)
    try:
        verb.run(values, _parse(name, verb, values, rest))
    except UserError as error:
        _say(f"hiermusic {name}: {error}")
        sys.exit(1)
    except BrokenPipeError:
        os._exit(0)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _say(f"hiermusic {name}: {place}{error.strerror or error}")
        sys.exit(1)
    except KeyboardInterrupt:
        _say(f"hiermusic {name}: interrupted; run the same command to go on")
        sys.exit(130)
