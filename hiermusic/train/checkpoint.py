"""Checkpoints by Orbax: `workdir/checkpoints/<step>/{model, ema, train, data}`, and the config that explains them.

What only reads (`steps`, `read_config`, `load_model`, `load_weights`) takes an exported folder as well as a workdir.
"""

import gc
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from hiermusic.console import say
from hiermusic.data.streams import Tokenizer
from hiermusic.errors import UserError, check_writable, disk_errors, reading, reason, replacing
from hiermusic.parallel.hosts import check_shared
from hiermusic.pretrained import export
from hiermusic.train import checksum, lent
from hiermusic.train.tuning import TuningConfig, folded

Tree = dict[str, Any]

# what a run may be resumed with another value of: how long, where and on what, but not what is trained
FREE_FIELDS = (
    *(f"train.{name}" for name in ("steps", "log_every", "checkpoint_every", "keep", "keep_every", "max_skipped")),
    *(f"train.{name}" for name in ("valid_every", "valid_batches", "show_every", "accumulate")),
    *(f"train.{name}" for name in ("stop_worse", "stop_loss")),
    *(f"train.{name}" for name in ("peak_tflops", "profile_step", "profile_steps", "hang_seconds")),
    "model.remat",
    "mesh",
    "data.path",
    "data.codec",
    "data.prefix_codecs",
    "licences",
)


# Orbax logs one failure from each of its threads before it raises it: the raised one is enough
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


def _without_late_answers(told: Callable[[Any], None]) -> Callable[[Any], None]:
    """`sys.unraisablehook`, which says nothing of TensorStore's threads: where a save has failed, those that write its
    other arrays find the event loop closed that was to hear of them."""

    def hook(what: Any) -> None:
        if not (what.object is None and str(what.exc_value) == "Event loop is closed"):
            told(what)

    return hook


sys.unraisablehook = _without_late_answers(sys.unraisablehook)


_FALL_BACK = "delete it to fall back to an older one"


class DamagedError(UserError):
    """A checkpoint that is not what was saved."""


class Checkpoints:
    """The checkpoints of one run: saved in the background, the newest kept, leftovers of a killed save removed."""

    def __init__(self, workdir: str | Path, keep: int = 2, keep_every: int = 0):
        """Opens `workdir/checkpoints` to write, keeping the `keep` newest and every `keep_every`-th step (0 = none).

        Raises:
          UserError: `keep` below 1, or a full disk.
        """
        from orbax.checkpoint import v1 as ocp

        if keep < 1:
            raise UserError(f"train.keep is {keep}; at least 1 checkpoint must be kept")
        policies = ocp.training.preservation_policies
        kept = [policies.LatestN(keep)] + ([policies.EveryNSteps(keep_every)] if keep_every else [])
        self.directory = _directory(workdir)
        self._saving: Any = None
        self._base: dict[str, str] | None = None
        with disk_errors(self.directory):
            self._checkpointer = ocp.training.Checkpointer(
                self.directory, preservation_policy=policies.AnyPreservationPolicy(kept), cleanup_tmp_directories=True
            )

    def save(self, step: int, state: nnx.State, data: Mapping[str, int | str]) -> None:
        """Starts saving a stage's state and what the loop itself keeps; waits for an unfinished save first.

        Weights that are another run's are left out but for their fingerprint.
        """
        parts = {**split(nnx.to_pure_dict(lent.own(state))), "data": dict(data)}
        if self._base is None:  # it stays what it is while a run goes on
            self._base = lent.fingerprint(state)
        facts = {**checksums(parts), "base": self._base}
        self.wait()
        with disk_errors(self.directory):
            # force: the default policy silently skips a step; overwrite is not needed, no step is saved twice
            self._saving = self._checkpointer.save_checkpointables_async(step, parts, force=True, custom_metadata=facts)

    def restore(
        self, abstract: nnx.State, step: int | None = None, base: str = ""
    ) -> tuple[nnx.State, dict[str, int | str]]:
        """The state and what the loop kept at a step (default: the newest), placed as `abstract`'s shardings say.

        Where the newest is damaged and no step was asked for, the newest whole one is taken; the damaged ones are told
        of and set aside as STEP.damaged. With several processes, which may not all see the damage, it is an error.

        Args:
          abstract: `jax.ShapeDtypeStruct`s with shardings, in the structure that was saved; any mesh.
          step: which checkpoint.
          base: the run whose weights the state only borrows, WORKDIR or WORKDIR@STEP; "" where it borrows none.
        Raises:
          UserError: no such checkpoint, none that is whole, weights of other shapes, or another base.
        """
        ours = lent.own(abstract)
        damaged: dict[Path, DamagedError] = {}
        choice = find(self.directory.parent, step)
        alone = step is None and jax.process_count() == 1
        kept = steps(self.directory.parent)[::-1] if alone else [int(choice.name)]
        targets = {**split(nnx.to_pure_dict(ours)), "data": None}
        for path in (self.directory / str(number) for number in kept):
            try:
                parts = load(path, targets)
            except DamagedError as error:
                damaged[path] = error
                continue
            theirs = lent.borrowed(abstract, _base_of(path, base), base) if base else nnx.State({})
            self._set_aside(damaged, path)
            data = parts.pop("data")
            return nnx.merge_state(_filled(ours, {**parts.pop("train", {}), **parts}), theirs), data
        raise damaged[choice]

    def _set_aside(self, damaged: Mapping[Path, DamagedError], taken: Path) -> None:
        for path, error in damaged.items():
            aside = path.with_name(f"{path.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            what = str(error).removesuffix(f": {_FALL_BACK}")
            say(f"{what}: it is now called {aside.name}, the run goes on from step {taken.name}")
        if damaged:
            self._checkpointer.reload()

    def wait(self) -> None:
        """Returns when the last save is on disk."""
        saving, self._saving = self._saving, None
        with disk_errors(self.directory):
            if saving is not None:
                saving.result()  # waiting for the checkpointer alone leaves the save's thread and event loop open
            self._checkpointer.wait()

    def close(self) -> None:
        """Waits for the last save and releases Orbax's threads."""
        try:
            self.wait()
        finally:
            with disk_errors(self.directory):
                self._checkpointer.close()


def steps(workdir: str | Path) -> list[int]:
    """The steps of the finished checkpoints, ascending."""
    if export.is_export(workdir):
        return [exported_step(workdir)]
    # an unfinished save has a longer name until Orbax renames it
    return sorted(int(path.name) for path in _directory(workdir).glob("*") if path.name.isdigit() and path.is_dir())


def latest_step(workdir: str | Path) -> int | None:
    """The newest finished checkpoint's step, or None."""
    return max(steps(workdir), default=None)


def load_model(
    workdir: str | Path,
    make_model: Callable[[], nnx.Module],
    step: int | None = None,
    prefer_ema: bool = True,
    shardings: Callable[[nnx.State], Any] | None = None,
) -> nnx.Module:
    """The weights to infer with, without optimisers or discriminators.

    Args:
      workdir: of the training run.
      make_model: builds the module; only its shapes are used.
      step: which checkpoint; default the newest.
      prefer_ema: take the averaged weights where the run kept them.
      shardings: abstract state -> shardings of the same structure; default: everything on the first device.
    Raises:
      UserError: no checkpoint, unreadable files, or weights of other shapes than `make_model`'s.
    """
    graphdef, abstract = nnx.split(nnx.eval_shape(make_model))
    one_device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = place(abstract, shardings(abstract) if shardings else jax.tree.map(lambda _: one_device, abstract))
    wanted = nnx.to_pure_dict(abstract)
    if export.is_export(workdir):
        exported_step(workdir, step)
        weights = _load_exported(workdir, wanted)
    elif tuning_of(workdir).rank:
        weights = load_weights(workdir, step, prefer_ema)
        _check_shapes(Path(workdir), "model", _shapes(wanted), _shapes(weights))
        weights = jax.tree.map(lent.placed, weights, wanted)
    else:
        path = find(workdir, step)
        name = weights_part(path, prefer_ema)
        weights = load(path, {name: wanted})[name]
    return nnx.merge(graphdef, _filled(abstract, weights))


def load_weights(workdir: str | Path, step: int | None = None, prefer_ema: bool = True) -> Tree:
    """The inference weights as nested dicts of numpy arrays (keys are strings), to copy parts of into another model.

    Those of a run with adapters are the ones of the run that it adapts, with what it has learned added.
    """
    if export.is_export(workdir):
        exported_step(workdir, step)
        return export.nested(export.load(workdir))
    path = find(workdir, step)
    name = weights_part(path, prefer_ema)
    trained = load(path, {name: jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), saved(path, name))})[name]
    if not (tuning := tuning_of(workdir)).rank:
        return trained
    base = _base_of(path, tuning.base)
    return export.nested(folded(base, export.dotted(trained), tuning.alpha / tuning.rank))


def _base_of(path: Path, base: str) -> dict[str, np.ndarray]:
    """The weights by dotted name that a checkpoint's adapters lie beside; UserError where they are others by now."""
    whose = str(path.parent.parent)
    weights = export.dotted(load_base(base, whose))
    lent.check(weights, beside(path).get("base", {}), base, whose)
    return weights


def load_base(base: str, whose: str = "") -> Tree:
    """As `load_weights`, of WORKDIR or WORKDIR@STEP; UserError, of `whose` run it is the base, where there is none."""
    workdir, step = Tokenizer.named(base)
    if whose and not Path(workdir).is_dir():
        raise UserError(f"{whose} starts from {base}, which is not there: put it back")
    return load_weights(workdir, step)


def tuning_of(workdir: str | Path) -> TuningConfig:
    """What of its model a run trained; all of it where there are checkpoints and no configuration."""
    if not (Path(workdir) / "config.json").exists():
        return TuningConfig()
    with reading(Path(workdir) / "config.json", "the configuration of a workdir"):
        return TuningConfig.of(read_config(workdir))


def place(abstract: nnx.State, shardings: Any) -> nnx.State:
    """Abstract arrays with the shardings of a tree of the same structure."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, shardings)


def check(workdir: str | Path, fields: Mapping[str, Any], free: Sequence[str] = ()) -> None:
    """Sees to it that a workdir is new or describes the same run.

    Args:
      workdir: of a run.
      fields: its configuration, in JSON values.
      free: fields that do not change the weights, besides `FREE_FIELDS`.
    Raises:
      UserError: the first field that differs, free ones aside; an exported model; or a disk that is full or cannot be
        written.
    """
    if export.is_export(workdir):
        raise UserError(f"{workdir} is an exported model: train in a new workdir with --config.init_from={workdir}")
    check_writable(workdir)
    if (Path(workdir) / "config.json").exists():
        old, new = _flat(read_config(workdir)), _flat(fields)
        for name in sorted(old.keys() | new.keys()):
            may = any(name == field or name.startswith(field + ".") for field in (*FREE_FIELDS, *free))
            if not may and old.get(name) != new.get(name):
                raise UserError(
                    f"{workdir} was trained with {name}={old.get(name)!r}, not {new.get(name)!r}: "
                    "take another workdir or the same config"
                )


def claim(workdir: str | Path, fields: Mapping[str, Any], free: Sequence[str] = ()) -> None:
    """Makes `workdir` this configuration's: writes config.json. Called by every process of a run.

    Raises:
      UserError: as `check`, or a workdir that is another place for some of the processes.
    """
    check(workdir, fields, free)
    if jax.process_index() == 0:
        write_config(workdir, fields)
    if jax.process_count() > 1:
        check_shared(workdir)


def write_config(workdir: str | Path, fields: Mapping[str, Any]) -> None:
    """Writes config.json, whole or not at all."""
    path = Path(workdir) / "config.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def read_config(workdir: str | Path) -> Tree:
    """The config a workdir was trained with, as nested dicts."""
    config = _read_json(workdir)
    config.pop("export", None)
    return config


def _read_json(workdir: str | Path) -> Tree:
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise UserError(f"{workdir} is not a training workdir: it has no config.json")
    with reading(path, "the configuration of a workdir", "put it back, or take another workdir"):
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise TypeError(f"{type(config).__name__} where an object belongs")
        return config


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Tree:
    flat = {}
    for name, value in fields.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _directory(workdir: str | Path) -> Path:
    return Path(workdir).absolute() / "checkpoints"


def find(workdir: str | Path, step: int | None = None) -> Path:
    """The folder of a checkpoint of a run, the newest or that of a step; UserError when there is none."""
    if export.is_export(workdir):
        raise UserError(f"{workdir} is an exported or imported model, not a training run with checkpoints: give a run")
    directory = _directory(workdir)
    kept = steps(workdir)
    if not kept:
        raise UserError(f"{directory.parent} holds no checkpoint: train it first")
    if step is not None and step not in kept:
        raise UserError(f"{directory.parent} holds no checkpoint of step {step}: it has {', '.join(map(str, kept))}")
    return directory / str(kept[-1] if step is None else step)


def exported_step(folder: str | Path, step: int | None = None) -> int:
    """The step of an exported model; UserError when another one is asked for."""
    facts = _read_json(folder).get("export")
    stored = facts.get("step") if isinstance(facts, dict) else None
    if not isinstance(stored, int):
        raise UserError(f"{folder} is not whole: its config.json does not say which step it is of; {export.REMEDY}")
    if step is not None and step != stored:
        raise UserError(f"{folder} holds no checkpoint of step {step}: it was exported at step {stored}")
    return stored


def _load_exported(folder: str | Path, wanted: Tree) -> Tree:
    _check_shapes(Path(folder), "model", _shapes(wanted), _shapes(export.nested(export.shapes(folder))))
    return export.nested(export.place(folder, export.dotted(wanted)))


def split(tree: Tree) -> Tree:
    """A training state as the parts of a checkpoint: {model, ema?, everything else under train}."""
    weights = {name: tree[name] for name in ("model", "ema") if name in tree}
    rest = {name: leaf for name, leaf in tree.items() if name not in weights}
    return {**weights, **({"train": rest} if rest else {})}


def _filled(abstract: nnx.State, tree: Tree) -> nnx.State:
    state = jax.tree.map(lambda leaf: leaf, abstract)
    nnx.replace_by_pure_dict(state, tree)
    return state


def weights_part(path: Path, prefer_ema: bool = True) -> str:
    """The part of a checkpoint whose weights are to be inferred with."""
    return "ema" if prefer_ema and (path / "ema").is_dir() else "model"


def saved(path: Path, name: str) -> Tree:
    """What Orbax's metadata tells of the arrays of a part; UserError when it cannot be read or is empty."""
    return _part(path, _metadata(path), name)


def _metadata(path: Path) -> Any:
    from orbax.checkpoint import v1 as ocp

    with read_errors(path):
        return ocp.checkpointables_metadata(path)


def beside(path: Path) -> Tree:
    """What a checkpoint keeps beside its arrays: their checksums, and the fingerprint of a base that it lies upon."""
    return _metadata(path).custom_metadata or {}


def _part(path: Path, metadata: Any, name: str) -> Tree:
    part = metadata.metadata.get(name)
    if not part:
        raise DamagedError(f"checkpoint {path} is incomplete ({name} is missing): {_FALL_BACK}")
    return part


def load(path: Path, targets: Mapping[str, Tree | None]) -> Tree:
    """Parts of a checkpoint as their targets say (None: as saved); UserError when they cannot be read or do not fit.

    What was read is held against the checksums that were saved with it.
    """
    from orbax.checkpoint import v1 as ocp

    stored = {}
    metadata = _metadata(path)
    for name, target in targets.items():
        found = _part(path, metadata, name)
        if target is not None:
            _check_shapes(path, name, _shapes(target), _shapes(found))
            target = _as_saved(target, export.dotted(found, "/"))
        stored[name] = target
    with read_errors(path):
        parts = ocp.load_checkpointables(path, stored)
        sums = (metadata.custom_metadata or {}).get("checksums")
        if sums is not None:  # a checkpoint of a version that had none
            found = checksums(parts)["checksums"]
            wrong = [name for name in found if found[name] != sums.get(name)]
            if wrong:
                raise ValueError(f"the checksums of {len(wrong)} of its {len(found)} arrays differ, as of {wrong[0]}")
    return {name: part if targets[name] is None else _cast(part, targets[name]) for name, part in parts.items()}


def checksums(parts: Mapping[str, Tree]) -> Tree:
    """What a checkpoint of these parts keeps beside them, for `load` to hold them against."""
    values = {name: checksum.of_values(part) for name, part in parts.items() if name == "data"}
    arrays = export.dotted({name: part for name, part in parts.items() if name != "data"}, "/")
    return {"checksums": {**checksum.of_arrays(arrays), **values}}


def _as_saved(target: Tree, found: Mapping[str, Any]) -> Tree:
    """A target in the dtypes that were saved, which alone can be held against the checksums."""

    def leaf(keys: Any, wanted: Any) -> Any:
        dtype = found["/".join(str(getattr(key, "key", key)) for key in keys)].dtype
        if dtype == wanted.dtype or jax.dtypes.issubdtype(wanted.dtype, jax.dtypes.prng_key):
            return wanted
        if isinstance(wanted, np.ndarray):
            return np.empty(wanted.shape, dtype)
        return jax.ShapeDtypeStruct(wanted.shape, dtype, sharding=wanted.sharding)

    return jax.tree_util.tree_map_with_path(leaf, target)


def _cast(part: Tree, target: Tree) -> Tree:
    def leaf(found: Any, wanted: Any) -> Any:
        return found if found.dtype == wanted.dtype else found.astype(wanted.dtype)

    return jax.tree.map(leaf, part, target)


def _shapes(tree: Tree) -> Tree:
    is_key = jax.dtypes.prng_key
    leaves = export.dotted(tree, "/").items()
    return {name: tuple(leaf.shape) for name, leaf in leaves if not jax.dtypes.issubdtype(leaf.dtype, is_key)}


def _check_shapes(path: Path, name: str, wanted: Tree, saved: Tree) -> None:
    for leaf, shape in wanted.items():
        if saved.get(leaf) != shape:
            found = f"of shape {saved[leaf]}" if leaf in saved else "missing"
            raise UserError(f"{path} is of another model: {name}/{leaf} is {found}, expected {shape}")


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turns whatever Orbax and TensorStore raise on damaged files into one line."""
    # the reads that a failed one abandons would each print a page when they are collected
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        yield
    except Exception as error:
        words = reason(error)
        del error
        gc.collect()
        raise DamagedError(f"checkpoint {path} cannot be read ({words}): {_FALL_BACK}") from None
    finally:
        sys.unraisablehook = hook
