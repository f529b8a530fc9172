"""The verb that brings in models that others have published."""

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING

from hiermusic.console import say
from hiermusic.errors import UserError
from hiermusic.verbs.flags import Values, Verb, answer, boolean, integer, positional, string

if TYPE_CHECKING:
    from hiermusic.pretrained.family import Family, Imported


def _define_import(values: Values) -> None:
    string(values, "licence", "of the weights, such as mit or cc-by-nc-4.0; default: what their README.md says")
    string(values, "encoder", "of a kmeans: folder of the imported HuBERT whose features it clusters, or log_mel")
    integer(values, "layer", "of a kmeans: the layer of these features; default: the folder's", lower=0)
    boolean(values, "json", "print one JSON object")


def _import(values: Values, given: list[str]) -> None:
    kind, source, out = positional(given, "KIND", "SRC", "OUT")
    from hiermusic.pretrained import card, export

    export.check_new(out)
    over = {name: values[name].value for name in ("encoder", "layer") if values[name].value is not None}
    family, licence, model = _read(kind, source, **over)
    licence = values.licence or licence
    config = _configured(family.config, model.config)
    config["licences"] = sorted({licence, *config.get("licences", ())})
    facts = {
        "hiermusic": importlib.metadata.version("hiermusic"),
        "step": 0,
        "weights": "model",
        "dtype": "float32",
        "family": family.title,
        "from": Path(source).resolve().name,
    }
    shapes = {name: export.shape(weight) for name, weight in model.weights.items()}
    card.check_licence(licence)
    text = card.write(config, facts, shapes, [], None, None, family.use or _use(config))

    def read(names):
        return {name: model.weights[name] for name in names}

    files = export.write(out, shapes, read, config, facts, {**model.files, "README.md": text})
    size = export.total_bytes(shapes)
    unknown = " (nothing tells it: give it with --licence)" if licence == "unknown" else ""
    say(f"{family.title}: the licence of these weights is {licence}{unknown}; models made from them carry it")
    result = {"out": out, "files": files, "bytes": size, "arrays": len(shapes), "licence": licence, **facts}
    answer(values, result, [f"{out}: {', '.join(files)} ({size / 1e6:,.1f} MB), {family.title}"])


def _read(kind: str, source: str, **over: str | int) -> "tuple[Family, str, Imported]":
    """The family, the licence that the source tells, and the model, made over an encoder where that is named."""
    from hiermusic.pretrained.kinds import KINDS

    if kind not in KINDS:
        raise UserError(f"there is no kind '{kind}' of published models: choose {', '.join(KINDS)}")
    family = KINDS[kind]
    if over and not family.over_encoder:
        raise UserError(f"--{next(iter(over))} is of a kmeans: leave it out of the import of a {kind}")
    published = family.open(source)
    return family, published.licence, family.read(published, **over)


def _configured(preset: str, ours: dict) -> dict:
    """The configuration of an imported model: its own fields, in one that says how such a model is trained on."""
    if not preset:
        return dict(ours)
    from hiermusic import presets
    from hiermusic.systems import workdir

    config = presets.read(preset)
    config.model.update(ours)
    config.preset = "imported"
    config = workdir.resolved(config)
    workdir.stage(config)  # which refuses sizes that no model has
    return config.to_dict()


def _use(config: dict) -> str | None:
    from hiermusic.systems import catalogue

    known = catalogue.systems().get(config.get("system"))
    return known.uses.get(config.get("stage")) if known else None


VERBS = {
    "import": Verb(
        "a model that others have published, as a folder that every verb takes",
        "hiermusic import encodec FOLDER_OF_HUGGING_FACE out/encodec",
        _define_import,
        _import,
        "KIND SRC OUT",
    )
}
