"""The verb that brings in models that others have published."""

import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from hiermusic.console import say
from hiermusic.errors import UserError
from hiermusic.verbs.flags import Values, Verb, answer, boolean, integer, positional, string

if TYPE_CHECKING:
    from hiermusic.pretrained.family import Family, Imported


def _define_import(values: Values) -> None:
    string(values, "licence", "of the weights, such as mit or cc-by-nc-4.0; default: what their README.md says")
    string(values, "encoder", "of a kmeans: the imported HuBERT whose features it clusters, or log_mel or chroma")
    integer(values, "layer", "of a kmeans: the layer of these features; default: the folder's", lower=0)
    string(values, "tokenizer", "tokenizer.json of models that read words, where it does not lie beside the weights")
    integer(values, "bias", "times that biases in front of gates count, 1 or 2; default: 2", lower=1, upper=2)
    string(values, "codec", "of a model of tokens that does not come with its codec: that codec's folder")
    string(values, "audio", "music by whose likelihood to choose between --bias=1 and 2")
    boolean(values, "json", "print one JSON object")


_GIVEN = ("encoder", "layer", "tokenizer", "bias", "codec", "audio")  # flags that a family may take


def _import(values: Values, given: list[str]) -> None:
    kind, source, out = positional(given, "KIND", "SRC", "OUT")
    from hiermusic.pretrained import card, export
    from hiermusic.pretrained.family import Imported

    export.check_new(out)
    over = {name: values[name].value for name in _GIVEN if values[name].value is not None}
    family, licence, made = _read(kind, source, **over)
    licence = values.licence or licence
    card.check_licence(licence)
    of = {"family": family, "licence": licence, "source": Path(source).resolve().name}
    if isinstance(made, Imported):
        result = _write(Path(out), made, Path(out), **of)
        lines = [_told(result)]
    else:
        with export.whole_folder(out) as folder:
            parts = {name: _write(folder / name, part, Path(out), **of) for name, part in made.items()}
        for name, part in parts.items():
            part["out"] = str(Path(out) / name)
        lines = list(map(_told, parts.values()))
        result = {"out": out, "parts": parts, "licence": licence, "family": family.title}
    unknown = " (nothing tells it: give it with --licence)" if licence == "unknown" else ""
    say(f"{family.title}: the licence of these weights is {licence}{unknown}; models made from them carry it")
    answer(values, result, lines)


def _write(folder: Path, model: "Imported", out: Path, *, family: "Family", licence: str, source: str) -> dict:
    """Writes a model into a folder; what it names of others will lie in `out`."""
    from hiermusic.pretrained import card, export

    places = {name: os.path.abspath(out / place) for name, place in model.places.items()}
    config = _configured(model.preset or family.config, model.config, {**model.fields, **places})
    config["licences"] = sorted({licence, *config.get("licences", ())})
    shapes = {name: export.shape(weight) for name, weight in model.weights.items()}
    kinds = {shape.dtype.name for shape in shapes.values()} & {"float32", "float16", "bfloat16"}
    facts = {
        "hiermusic": importlib.metadata.version("hiermusic"),
        "step": 0,
        "weights": "model",
        "dtype": ", ".join(sorted(kinds)),
        "family": family.title,
        "from": source,
    }
    text = card.write(config, facts, shapes, [], None, None, family.use or _use(config))

    def read(names):
        return {name: model.weights[name] for name in names}

    files = export.write(folder, shapes, read, config, facts, {**model.files, "README.md": text})
    size = export.total_bytes(shapes)
    return {"out": str(folder), "files": files, "bytes": size, "arrays": len(shapes), "licence": licence, **facts}


def _told(made: dict) -> str:
    return f"{made['out']}: {', '.join(made['files'])} ({made['bytes'] / 1e6:,.1f} MB), {made['family']}"


def _read(kind: str, source: str, **over: str | int) -> "tuple[Family, str, Imported | Mapping[str, Imported]]":
    """The family, the licence that the source tells, and the model or models, made with what flags say besides."""
    family = _family(kind)
    if foreign := [name for name in over if name not in family.takes]:
        raise UserError(f"--{foreign[0]} means nothing to the import of {kind}: leave it out")
    published = family.open(source)
    return family, published.licence, family.read(published, **over)


def _family(kind: str) -> "Family":
    """The family of a kind, be it of a system's authors or of others."""
    from hiermusic.pretrained.kinds import KINDS
    from hiermusic.systems import catalogue

    owners = {name: system for system in catalogue.systems().values() for name in system.kinds}
    if kind not in KINDS and kind not in owners:
        told = ", ".join((*KINDS, *owners))
        raise UserError(f"there is no kind '{kind}' of published models: choose {told}")
    return KINDS[kind] if kind in KINDS else owners[kind].rooms.families[kind]


def _configured(preset: str, ours: dict, fields: dict) -> dict:
    """The configuration of an imported model: its own fields, in one that says how such a model is trained on."""
    if not preset:
        return dict(ours)
    from hiermusic import presets
    from hiermusic.systems import workdir

    config = presets.read(preset)
    config.model.update(ours)
    for name, value in fields.items():
        *parents, last = name.split(".")
        place = config[parents[0]] if parents else config
        place[last] = value
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
