"""The runs of a sweep file: their names, settings, configurations and commands."""

import hashlib
import importlib.util
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from ml_collections import ConfigDict

from hiermusic import presets
from hiermusic.errors import UserError
from hiermusic.sweep import hyper
from hiermusic.sweep.hyper import Settings

LONGEST_NAME = 100


@dataclass(frozen=True)
class Run:
    """One run of a sweep.

    Args:
      name: readable, and the same whenever the sweep is read again: the name of its folder.
      settings: the swept fields.
      config: FILE.py[:preset].
      common: fields set alike in every run.
      workdir: where it trains.
    """

    name: str
    settings: Settings
    config: str
    common: Settings = field(default_factory=dict)
    workdir: str = ""

    def arguments(self) -> list[str]:
        """What follows `hiermusic` to train it."""
        return ["train", f"--config={self.config}", f"--workdir={self.workdir}", *presets.overrides(self._settings())]

    def load(self) -> ConfigDict:
        """Its configuration, by the parser that the command line has.

        Raises:
          UserError: a field that is not there, or a value of another type.
        """
        try:
            return presets.load(self.config, self._settings())
        except UserError as error:
            raise UserError(f"run {self.name}: {error}") from error

    def _settings(self) -> Settings:
        return self.common | self.settings


def read(path: str) -> ModuleType:
    """A sweep file, or the package's own: `get_hyper(hyper)`, the `CONFIG` it sweeps, and `SCALING` where it is one.

    Raises:
      UserError: no such file, one that cannot be run, or one without `get_hyper`.
    """
    if not (file := presets.locate(path)).is_file():
        raise UserError(f"no sweep file at {path}: give --sweep=FILE.py")
    spec = importlib.util.spec_from_file_location(f"sweep_{file.stem}", file)
    if spec is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    if not hasattr(module, "get_hyper"):
        raise UserError(f"{path} is not a sweep file: it has no get_hyper(hyper)")
    return module


def runs_of(path: str, config: str, common: Settings, folder: str) -> list[Run]:
    """The runs of a sweep file, in its order.

    Args:
      path: the sweep file.
      config: FILE.py[:preset] of every run.
      common: fields set alike in every run.
      folder: each run trains in a folder of its name here.
    Raises:
      UserError: a file that does not give runs, two equal runs, or a swept field among `common`.
    """
    try:
        found = read(path).get_hyper(hyper)
    except UserError as error:
        raise UserError(f"{path}: {error}" if path not in str(error) else str(error)) from error
    except Exception as error:
        raise UserError(f"{path}: get_hyper failed: {type(error).__name__}: {error}") from error
    if not found or not all(isinstance(settings, dict) and settings for settings in found):
        raise UserError(f"{path}: get_hyper must return a list of runs, each a dict of fields and values")
    swept = dict.fromkeys(name for settings in found for name in settings)
    both = [name for name in swept if name in common]
    if both:
        raise UserError(f"{path} sweeps {both[0]}: leave --config.{both[0]} out")
    names = [_name(settings, _short(swept)) for settings in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{path}: the run {name} is there {names.count(name)} times")
    pairs = zip(names, found, strict=True)
    return [Run(name, settings, config, common, str(Path(folder) / name)) for name, settings in pairs]


def _short(fields) -> dict[str, str]:
    """Dotted field -> its last part, or the whole where two fields share that."""
    last = {name: name.rpartition(".")[2] for name in fields}
    return {name: part if list(last.values()).count(part) == 1 else name for name, part in last.items()}


def _name(settings: Settings, short: dict[str, str]) -> str:
    full = ",".join(f"{short[name]}={_shown(value)}" for name, value in settings.items())
    name = re.sub(r"[^\w.,=+-]+", "-", full, flags=re.ASCII)
    if name == full and len(name) <= LONGEST_NAME:
        return name
    # what was cut or replaced must still tell two runs apart
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - 9]}-{digest}"


def _shown(value) -> str:
    """A value in a name: of several, one after another."""
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else presets.as_text(value)
