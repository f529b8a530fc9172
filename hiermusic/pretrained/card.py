"""The model card of an exported model: facts that are known, and headings for those that only its author knows."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from hiermusic.errors import UserError

_TASKS = {  # of stages that make no music, what the hub calls them, and a tag
    "codec": ("audio-to-audio", "audio-codec"),
    "encoder": ("feature-extraction", "audio-encoder"),
    "semantic": ("feature-extraction", "audio-tokenizer"),
}
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
      facts: `hiermusic` (version), `step`, `weights` (model or ema) and `dtype`; of published weights that were
        imported, also their `family` and where they came `from`.
      shapes: every weight's shape by dotted name.
      records: of metrics.jsonl up to the step; the last of each loss is told.
      results: the measures of `hiermusic evaluate` as lines of a table, None where it was not run.
      licence: an identifier such as cc-by-4.0; None for the one that the configuration names, if it does.
      use: the command that uses such a model, FOLDER being its place; None where none is known.
    Raises:
      UserError: for a licence that is no identifier.
    """
    system, stage = config.get("system", "unknown"), config.get("stage", "unknown")
    licences = config.get("licences", ())
    task, tag = _TASKS.get(stage, ("text-to-audio", "music-generation"))
    tags = ["music", tag, "jax", *([system] if "system" in config else []), stage]
    more = {"library_name": "hiermusic", "pipeline_tag": task}
    averaged = "an average over the last updates" if facts["weights"] == "ema" else "as the last update left them"
    lines = front(licence, licences, tags, **more).split("\n")
    if family := facts.get("family"):
        lines += [f"# {family}", "", f"{family}, brought in with hiermusic {facts['hiermusic']} from {facts['from']}."]
        lines += [f"The weights are those that were published, in {facts['dtype']}.", ""]
    else:
        lines += [f"# {system} {stage}", ""]
        lines += [f"The {stage} of {system}, trained with hiermusic {facts['hiermusic']} for {facts['step']} steps."]
        lines += [f"The weights are {averaged}, in {facts['dtype']}.", ""]
    if licences:
        lines += [f"Made from published weights, or from tokens that these make, of the licence {', '.join(licences)}."]
        lines += ["What it allows is for whoever uses this model to find out.", ""]
    parts: Counter[str] = Counter()
    for name, shape in shapes.items():
        parts[name.partition(".")[0]] += shape.size
    parts["total"] = sum(parts.values())
    lines += _table(("component", "weights"), [(name, f"{count:,}") for name, count in parts.items()])
    lines += ["", "## Use", "", "```sh", use or "hiermusic inspect --workdir=FOLDER", "```", ""]
    lines += ["`config.json` holds the whole configuration: all that rebuilding the model takes.", ""]
    if not family:
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


def front(licence: str | None, licences: Sequence[str], tags: Sequence[str], **more: str) -> str:
    """The front matter of a card.

    Args:
      licence: an identifier; None for that of what the model was made from.
      licences: of what the model was made from.
      tags: that the hub sorts by.
      more: further fields.
    Raises:
      UserError: for a licence that is no identifier.
    """
    if licence is not None:
        check_licence(licence)
    carried = licences[0] if len(licences) == 1 else "other" if licences else "unknown"
    return "\n".join(["---", *_yaml({"license": licence or carried, **more, "tags": list(tags)}), "---", ""])


def check_licence(licence: str) -> None:
    """UserError for a licence that is no identifier."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", licence):
        raise UserError(f"the licence '{licence}' is no identifier such as cc-by-4.0 or apache-2.0")


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
