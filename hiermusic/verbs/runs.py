"""Verbs on training runs: train, evaluate, inspect."""

import sys
from pathlib import Path

from ml_collections import ConfigDict

from hiermusic.console import say
from hiermusic.errors import UserError
from hiermusic.verbs.flags import (
    Values,
    Verb,
    answer,
    boolean,
    config,
    hosts,
    integer,
    need,
    number,
    positional,
    show,
    string,
    together,
)


def _define_train(values: Values) -> None:
    config(values)
    string(values, "workdir", "folder that keeps config, checkpoints, logs and samples; run again to go on")
    boolean(values, "progress", "show a progress bar", True)
    boolean(values, "json", "print one JSON object")
    hosts(values)


def _train(values: Values, given: list[str]) -> None:
    positional(given)
    need(values, "config", "workdir")
    if told := [name for name in values if name.startswith("config.tokens.")]:
        raise UserError(f"--{told[0]}: what the tokens are is learnt from their records: leave it out")
    from hiermusic.parallel.hosts import workers
    from hiermusic.systems import workdir
    from hiermusic.train import loop
    from hiermusic.train.checkpoint import latest_step
    from hiermusic.train.lock import owned

    with together(values):
        stage = workdir.stage(workdir.resolved(values.config, values.workdir))
        mesh = loop.check(stage)
        first = workers()[0] == 0
        steps = stage.config.loop.steps
        with owned(values.workdir):
            workdir.open_data(stage, values.workdir)
            if first:
                say(f"{values.workdir}: from step {latest_step(values.workdir) or 0} to step {steps}")
            metrics = loop.run(stage, values.workdir, values.progress and first, mesh)
        if metrics["step"] < steps and "stopped" not in metrics:
            if first:
                say(f"hiermusic train: stopped and saved after step {metrics['step']}; run the same command to go on")
            sys.exit(130)
        answer(values, metrics, [f"{values.workdir}: trained to step {metrics['step']}, loss {metrics.get('loss')}"])


def _define_inspect(values: Values) -> None:
    config(values)
    string(values, "workdir", "a training run or an exported model, instead of --config")
    integer(values, "step", "which checkpoint of the workdir; default: the newest", lower=0)
    boolean(values, "weights", "also list the name, shape and dtype of every weight of the checkpoint")
    boolean(values, "resolved", "print every field of the configuration as one JSON object, and nothing else")
    boolean(values, "json", "print one JSON object")


def _inspect(values: Values, given: list[str]) -> None:
    positional(given)
    if bool(values.config) == bool(values.workdir):
        raise UserError("give either --config or --workdir")
    if values.config and (values.step is not None or values.weights):
        raise UserError("--step and --weights look at a checkpoint: give --workdir instead of --config")
    if values.resolved and (values.step is not None or values.weights):
        raise UserError("--resolved looks at the configuration alone: leave --step and --weights out")
    if values.config and values.resolved:
        show(_resolved(values.config))
        return
    import jax

    jax.config.update("jax_platforms", "cpu")  # nothing runs, so a training run may have the accelerator
    from hiermusic.systems import workdir

    if values.resolved:
        show(_resolved(workdir.read(values.workdir)))
        return
    facts = workdir.inspect(values.config, values.workdir, values.step, values.weights)
    params, stored = facts.get("params", {}), facts.get("checkpoint")
    width = max(map(len, params), default=0)
    lines = [f"{name:<{width}}  {count:>15,}" for name, count in params.items()]
    lines += [f"{name}: {value}" for name, value in facts.items() if name not in ("params", "checkpoint")]
    answer(values, facts, lines + (_checkpoint(stored) if stored else []))


def _resolved(config: ConfigDict) -> str:
    """Every field, as config.json has them."""
    return config.to_json_best_effort(indent=2, sort_keys=True)


def _checkpoint(facts: dict) -> list[str]:
    """What a checkpoint holds, as plain lines."""
    lines = [f"checkpoints: {', '.join(map(str, facts['steps']))}"]
    lines.append(f"step {facts['step']}: {facts['bytes'] / 1e6:,.1f} MB on disk")
    if facts["mesh"]:
        lines.append("written on a mesh of " + ", ".join(f"{axis}={size}" for axis, size in facts["mesh"].items()))
    for name, part in facts["parts"].items():
        dtypes = ", ".join(part["dtypes"])
        lines.append(f"{name:<6} {part['arrays']:>5} arrays {part['numbers']:>15,} numbers  {dtypes}".rstrip())
    weights = facts.get("weights", [])
    width = max((len(weight["name"]) for weight in weights), default=0)
    return lines + [f"{weight['name']:<{width}}  {weight['dtype']:<9} {weight['shape']}" for weight in weights]


def _define_evaluate(values: Values) -> None:
    string(values, "workdir", "a trained codec or token model")
    string(values, "songs", "folder of generated songs, instead of --workdir: are they music, and what was asked for?")
    string(values, "data", "data to take held-out tracks from; default: what it, or the songs' codec, was trained on")
    string(values, "out", "folder for results.json and report.html; default: WORKDIR/evaluation, or SONGS/...")
    number(values, "seconds", "seconds of each held-out track that a codec is measured on", 10.0, lower=1.0)
    integer(values, "tracks", "at most so many tracks", 32, lower=1)
    string(values, "embedding", "with --songs: folder of an imported VGGish or CLAP, for the Frechet distance by it")
    told = "check whether a token model's tokens are what it takes them for: order of levels, words, time"
    boolean(values, "verify_tokens", told)
    boolean(values, "json", "print one JSON object")
    hosts(values)


def _evaluate(values: Values, given: list[str]) -> None:
    positional(given)
    if bool(values.workdir) == bool(values.songs):
        raise UserError("give either --workdir or --songs")
    if values.embedding and not values.songs:
        raise UserError("--embedding compares songs with their corpus: give --songs")
    if values.verify_tokens and values.songs:
        raise UserError("--verify_tokens asks a token model about its tokens: give --workdir instead of --songs")
    from hiermusic.evaluate import run

    name = "verification" if values.verify_tokens else "evaluation"
    out = values.out or str(Path(values.workdir or values.songs) / name)
    with together(values):
        if values.songs:
            options = {"data": values.data, "tracks": values.tracks, "embedding": values.embedding}
            results = run.evaluate_songs(values.songs, out, **options)
        else:
            options = {"data": values.data, "seconds": values.seconds, "tracks": values.tracks}
            results = run.evaluate(values.workdir, out, **options, verify_tokens=values.verify_tokens)
        answer(values, results, [*run.lines(results), f"{out}/report.html"])


VERBS = {
    "train": Verb(
        "train any stage; run again to go on where it stopped",
        "",
        _define_train,
        _train,
    ),
    "evaluate": Verb(
        "measure a trained codec or token model on held-out tracks, or generated songs beside them",
        "hiermusic evaluate --workdir=out/codec",
        _define_evaluate,
        _evaluate,
    ),
    "inspect": Verb(
        "what a configuration or a workdir is made of, without allocating it",
        "",
        _define_inspect,
        _inspect,
    ),
}
