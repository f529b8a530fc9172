"""The model card of an exported model: facts that are known, and headings for those that only its author knows."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from hiermusic.errors import UserError

_UNWRITTEN = "*Not yet written: to be filled in by the author of this model.*"


def write(
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    shapes: Mapping[str, jax.ShapeDtypeStruct],
    records: Sequence[Mapping[str, Any]],
    results: Sequence[str] | None,
    licence: str | None,
    use: str | None,
) -> str:
    """The text of README.md, with the front matter that the Hugging Face hub reads.

    Args:
      config: of the run.
      facts: `hiermusic` (version), `step`, `weights` (model or ema) and `dtype`.
      shapes: every weight's shape by dotted name.
      records: of metrics.jsonl up to the step; the last of each loss is told.
      results: the measures of `hiermusic evaluate` as lines of a table, None where it was not run.
      licence: an identifier such as cc-by-4.0; None when it is not known.
      use: the command that uses such a model, FOLDER being its place; None where none is known.
    Raises:
      UserError: for a licence that is no identifier.
    """
    if licence is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", licence):
        raise UserError(f"the licence '{licence}' is no identifier such as cc-by-4.0 or apache-2.0")
    system, stage = config.get("system", "unknown"), config.get("stage", "unknown")
    codec = stage == "codec"
    front = {
        "license": licence or "unknown",
        "library_name": "hiermusic",
        "pipeline_tag": "audio-to-audio" if codec else "text-to-audio",
        "tags": ["music", "audio-codec" if codec else "music-generation", "jax", system, stage],
    }
    averaged = "an average over the last updates" if facts["weights"] == "ema" else "as the last update left them"
    lines = ["---", *_yaml(front), "---", "", f"# {system} {stage}", ""]
    lines += [f"The {stage} of {system}, trained with hiermusic {facts['hiermusic']} for {facts['step']} steps."]
    lines += [f"The weights are {averaged}, in {facts['dtype']}.", ""]
    parts: Counter[str] = Counter()
    for name, shape in shapes.items():
        parts[name.partition(".")[0]] += shape.size
    parts["total"] = sum(parts.values())
    lines += _table(("component", "weights"), [(name, f"{count:,}") for name, count in parts.items()])
    lines += ["", "## Use", "", "```sh", use or "hiermusic inspect --workdir=FOLDER", "```", ""]
    lines += ["`config.json` holds the whole configuration: all that rebuilding the model takes.", ""]
    lines += ["## Training", "", *_training(config, facts, records), ""]
    lines += ["## Evaluation", ""]
    if results:
        lines += ["By `hiermusic evaluate` on held-out tracks; it does not note the step it found.", ""]
        lines += ["```", *results, "```"]
    else:
        lines += ["Not measured: `hiermusic evaluate` had not been run."]
    for title in ("Training data, its source and its consent", "Intended use", "Limits, biases and risks"):
        lines += ["", f"## {title}", "", _UNWRITTEN]
    return "\n".join(lines) + "\n"


def _training(config: Mapping[str, Any], facts: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[str]:
    train = config.get("train", {})
    names = ("batch_size", "learning_rate", "schedule", "seed")
    rows = [("steps", facts["step"]), *((name.replace("_", " "), train[name]) for name in names if name in train)]
    losses = {name: (value, record["step"]) for record in records for name, value in record.items() if _is_loss(name)}
    rows += [(f"{name} at step {step}", value) for name, (value, step) in sorted(losses.items())]
    return _table(("", ""), rows)


def _is_loss(name: str) -> bool:
    return name == "loss" or name.endswith("/loss")


def _table(head: tuple[str, str], rows: Sequence[tuple[str, Any]]) -> list[str]:
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]


def _yaml(front: Mapping[str, str | list[str]]) -> list[str]:
    lines = []
    for name, value in front.items():
        if isinstance(value, list):
            lines += [f"{name}:", *(f"- {_scalar(item)}" for item in value)]
        else:
            lines.append(f"{name}: {_scalar(value)}")
    return lines


def _scalar(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z][A-Za-z0-9._-]*", text) else json.dumps(text)
