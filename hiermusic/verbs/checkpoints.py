"""Verbs on finished checkpoints: reshard, export."""

import importlib.metadata
import json
import math
from dataclasses import asdict
from pathlib import Path

from ml_collections import ConfigDict

from hiermusic.errors import UserError, reading
from hiermusic.parallel.settings import AXES, MeshConfig
from hiermusic.verbs.flags import Values, Verb, answer, boolean, choice, integer, mesh_sizes, need, positional, string

_DTYPES = ("float32", "bfloat16")


def _dtype(values: Values) -> str | None:
    if values.dtype not in (None, *_DTYPES):
        raise UserError(f"--dtype={values.dtype}: choose {' or '.join(_DTYPES)}")
    return values.dtype


def _on_cpu(devices: int | None = None) -> None:
    """Keeps accelerators out of it and, unless JAX runs already, has so many CPU devices."""
    import jax

    try:
        jax.config.update("jax_platforms", "cpu")
        if devices:
            jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:
        pass  # it runs already; too few devices are told by the mesh


# MARK: reshard


def _define_reshard(values: Values) -> None:
    string(values, "workdir", "a training run")
    string(values, "out", "the new workdir")
    string(values, "mesh", "devices along each axis: fsdp=8,tensor=2; default: the run's own mesh")
    integer(values, "step", "which checkpoint; default: the newest", lower=0)
    boolean(values, "weights_only", "take the weights to infer with; training cannot go on from them")
    string(values, "dtype", "float32 or bfloat16, with --weights_only; default: as they are")
    boolean(values, "json", "print one JSON object")


def _mesh(named: dict[str, int], sizes: dict) -> dict:
    """The mesh of the new workdir; an axis that --mesh leaves out has size 1, but `data` fills what is there."""
    if named:
        sizes = asdict(MeshConfig.of({"across": sizes.get("across", "data"), **named}))
    open_axes = [axis for axis, size in sizes.items() if size == -1 and axis != "data"]
    if open_axes:
        raise UserError(f"mesh.{open_axes[0]} is -1, which says nothing of the shards: give a count with --mesh")
    return sizes


def _reshard(values: Values, given: list[str]) -> None:
    positional(given)
    need(values, "workdir", "out")
    from hiermusic.systems import workdir

    config = workdir.read(values.workdir)
    config.mesh = _mesh(mesh_sizes(values.mesh), dict(config.get("mesh", {})))
    devices = math.prod(max(size, 1) for axis, size in config.mesh.items() if axis != "across")
    _on_cpu(devices)
    import jax

    from hiermusic.parallel.mesh import BatchPlacement, mesh_of, shardings
    from hiermusic.train import loop, stored
    from hiermusic.train.checkpoint import place

    stage = workdir.stage(config)
    mesh = mesh_of(stage.config.mesh, jax.devices()[:devices])
    BatchPlacement(mesh, stage.config.loop.batch_size)
    abstract = loop.abstract_state(stage, stage.config.loop.seed)[1]
    facts = stored.reshard(
        values.workdir,
        values.out,
        stage.config.fields,
        place(abstract, shardings(abstract, mesh)),
        step=values.step,
        weights_only=values.weights_only,
        dtype=_dtype(values),
    )
    words = ", ".join(f"{axis}={config.mesh[axis]}" for axis in AXES if axis in config.mesh)
    lines = [f"{values.out}: step {facts['step']} for a mesh of {words}, {facts['bytes'] / 1e6:,.1f} MB"]
    answer(values, {"out": values.out, "mesh": dict(config.mesh), "checkpoint": facts}, lines)


# MARK: export


def _define_export(values: Values) -> None:
    string(values, "workdir", "a training run")
    string(values, "out", "new folder for model.safetensors, config.json, metrics.jsonl and README.md")
    integer(values, "step", "which checkpoint; default: the newest", lower=0)
    string(values, "dtype", "float32 or bfloat16; default: as they are")
    string(values, "licence", "identifier for the model card, such as cc-by-4.0; default: what it was made from has it")
    formats = {"transformers": "a folder that its classes load, of EnCodec, DAC, HuBERT and CLAP", **_formats()}
    told = "; ".join(f"{name}: {text}" for name, text in formats.items())
    choice(values, "format", told, tuple(formats))
    integer(values, "bias", "of a system's format: times its readers add biases of gates; default: 2", lower=1, upper=2)
    boolean(values, "json", "print one JSON object")


def _formats() -> dict[str, str]:
    """Formats of systems' authors, and what is told of them."""
    from hiermusic.systems import catalogue

    return {name: text for system in catalogue.systems().values() for name, text in system.formats.items()}


def _export(values: Values, given: list[str]) -> None:
    if values.format not in _formats():
        positional(given)
        if values.bias:
            raise UserError(f"--bias={values.bias} goes with --format={' or '.join(_formats())}: leave it out")
    need(values, "workdir", "out")
    _on_cpu()
    import jax.numpy as jnp

    from hiermusic.pretrained import card, export
    from hiermusic.systems import catalogue, workdir
    from hiermusic.train import log, stored

    config = workdir.read(values.workdir)
    if values.format in _formats():
        how = {"step": values.step, "dtype": _dtype(values), "licence": values.licence, "bias": values.bias}
        made = _as_published(values.format, [values.workdir, *given], values.out, **how)
        answer(values, made, [f"{values.out}: {', '.join(made['files'])} ({made['bytes'] / 1e6:,.1f} MB)"])
        return
    if values.format:
        if values.dtype:
            raise UserError("--dtype does not go with --format=transformers: weights are written as they are")
        made = _to_transformers(config, values.workdir, values.out, values.step, values.licence)
        words = f"{', '.join(made['files'])} ({made['bytes'] / 1e6:,.1f} MB) for transformers' {made['class']}"
        answer(values, made, [f"{values.out}: {words}"])
        return
    if export.is_export(values.workdir):
        raise UserError(f"{values.workdir} is exported or imported already: copy the folder, or give another --format")
    weights = stored.open_weights(values.workdir, values.step, _dtype(values))
    kinds = {shape.dtype.name for shape in weights.shapes.values() if jnp.issubdtype(shape.dtype, jnp.floating)}
    facts = {
        "hiermusic": importlib.metadata.version("hiermusic"),
        "step": weights.step,
        "weights": weights.part,
        "dtype": ", ".join(sorted(kinds)),
    }
    records = [record for record in log.read_metrics(values.workdir) if record["step"] <= weights.step]
    known = catalogue.systems().get(config.get("system"))
    use = known.uses.get(config.get("stage")) if known else None
    text = card.write(config, facts, weights.shapes, records, _evaluation(values.workdir), values.licence, use)
    texts = {"README.md": text, "metrics.jsonl": "".join(json.dumps(record) + "\n" for record in records)}
    files = export.write(values.out, weights.shapes, weights.read, config.to_dict(), facts, texts)
    size = export.total_bytes(weights.shapes)
    result = {"out": values.out, "files": files, "bytes": size, "arrays": len(weights.shapes), **facts}
    answer(values, result, [f"{values.out}: {', '.join(files)} ({size / 1e6:,.1f} MB, {facts['dtype']})"])


def _as_published(
    form: str, runs: list[str], out: str, *, step: int | None, dtype: str | None, licence: str | None, bias: int | None
) -> dict:
    """Writes the models of runs, the first at a step, into one folder as their system's authors publish them."""
    import jax.numpy as jnp

    from hiermusic.pretrained import card, export
    from hiermusic.systems import catalogue, workdir
    from hiermusic.train import checkpoint

    ours = next(system for system in catalogue.systems().values() if form in system.formats)
    told, licences = [workdir.read(run).to_dict() for run in runs], set()
    for run, fields in zip(runs, told, strict=True):
        if fields["system"] != ours.name:
            raise UserError(f"--format={form}: {run} is of the system {fields['system']}, not of {ours.name}")
        licences |= set(fields.get("licences", ()))

    def weights(run: str, fields: dict) -> dict:
        found = export.dotted(checkpoint.load_weights(run, step if run == runs[0] else None))
        if dtype and fields["stage"] != "codec":
            found = {name: weight.astype(jnp.dtype(dtype)) for name, weight in found.items()}
        return found

    models = ((fields, weights(run, fields), run) for run, fields in zip(runs, told, strict=True))
    front = card.front(licence, sorted(licences), ["music", "audio"])
    names = ", ".join(Path(run).resolve().name for run in runs)
    text = f"{front}\n# {ours.title}\n\nWritten by hiermusic from {names}.\n"
    with export.whole_folder(out) as folder:
        files = ours.rooms.formats[form](folder, models, bias or 0)
        (folder / "README.md").write_text(text, encoding="utf-8")
        size = sum((folder / file).stat().st_size for file in files)
    return {"out": out, "files": files, "bytes": size, "format": form}


def _to_transformers(config: ConfigDict, run: str, out: str, step: int | None, licence: str | None) -> dict:
    """Writes the model of a run, or of a folder that was exported or imported, as transformers has it."""
    from hiermusic.pretrained import card, export
    from hiermusic.pretrained.family import Imported
    from hiermusic.pretrained.kinds import KINDS
    from hiermusic.train import checkpoint

    fields = config.to_dict()
    family = next((family for family in KINDS.values() if family.write and family.owns(fields)), None)
    if family is None:
        told = ", ".join(family.title for family in KINDS.values() if family.write)
        raise UserError(f"{run} is none of the models that can be written for transformers: {told}")
    weights = export.dotted(checkpoint.load_weights(run, step))
    theirs, tensors = family.write(Imported(fields["model"] if family.config else fields, weights))
    front = card.front(licence, fields.get("licences", ()), ["music", "audio"])
    texts = {"README.md": f"{front}\n# {family.title}\n\nWritten by hiermusic from {Path(run).resolve().name}.\n"}
    texts |= family.beside(fields, Path(run))
    files = export.write_transformers(out, theirs, tensors, texts)
    size, (name,) = sum(tensor.nbytes for tensor in tensors.values()), theirs["architectures"]
    return {"out": out, "files": files, "bytes": size, "arrays": len(tensors), "class": name}


def _evaluation(run: str) -> list[str] | None:
    """The measures that `hiermusic evaluate` left in the workdir, as a table of lines."""
    path = Path(run) / "evaluation" / "results.json"
    if not path.is_file():
        return None
    from hiermusic.evaluate import run as evaluate

    with reading(path, "results", "run `hiermusic evaluate` again"):
        return evaluate.lines(json.loads(path.read_text(encoding="utf-8")))


VERBS = {
    "reshard": Verb(
        "rewrite a checkpoint for another mesh, on any machine with the memory for it",
        "hiermusic reshard --workdir=out/run --out=out/run-pod --mesh=fsdp=8,tensor=2",
        _define_reshard,
        _reshard,
    ),
    "export": Verb(
        "a trained model as safetensors, config.json and a model card",
        "hiermusic export --workdir=out/codec --out=out/codec-export --licence=cc-by-4.0",
        _define_export,
        _export,
        "[WORKDIR ...]",
    ),
}
