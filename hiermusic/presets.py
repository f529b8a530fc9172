"""Configurations by name, `FILE.py[:preset]`: files of this machine, and the package's own where `configs/` is not."""

import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from hiermusic.errors import UserError, brief

_OWN = Path(__file__).parent / "configs"


def locate(path: str | Path) -> Path:
    """A file or folder as it is named, or the package's own of that name: `configs/...` is in reach from any folder."""
    named = Path(path)
    if named.parts[:1] == ("configs",) and not named.exists():
        return _OWN.joinpath(*named.parts[1:])
    return named


def read(name: str) -> ConfigDict:
    """A configuration as its file makes it.

    Args:
      name: FILE.py, or FILE.py:preset.
    Raises:
      UserError: no such file, one that makes no configuration, or a preset that it has not.
    """
    path, *preset = name.split(":", 1)
    if not (file := locate(path)).is_file():
        raise UserError(f"no configuration file at {path}: give --config=FILE.py[:preset]")
    try:
        made = runpy.run_path(str(file))
        if "get_hyper" in made and "get_config" not in made:
            raise UserError(f"{path} is a sweep and no configuration: `hiermusic sweep` takes it as --sweep={path}")
        config = made["get_config"](*preset)
        if not isinstance(config, ConfigDict):
            raise TypeError(f"get_config gives a {type(config).__name__} where a ConfigDict belongs")
    except UserError:
        raise
    except Exception as error:  # a configuration file is a program
        told = brief(f"{type(error).__name__}: {error}", 500)
        raise UserError(f"the configuration cannot be made ({told}): look into {path}") from error
    return config


def load(name: str, settings: Mapping[str, Any] | None = None) -> ConfigDict:
    """A configuration with some of its fields set, by the parser of the command line.

    Args:
      name: as for `read`.
      settings: dotted field -> value.
    Raises:
      UserError: as `read`; a field that is not there, or a value of another type.
    """
    values = flags.FlagValues()
    argv = ["hiermusic", f"--config={name}", *overrides(settings or {})]
    declare(values, argv)
    try:
        values(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{name} does not take its settings: {unquoted(error)}") from error
    return values.config


def overrides(settings: Mapping[str, Any]) -> list[str]:
    """Fields and values as flags."""
    return [f"--config.{field}={as_text(value)}" for field, value in settings.items()]


def as_text(value: Any) -> str:
    """A value as a flag gives it."""
    return str(tuple(value) if isinstance(value, list) else value)


def declare(values: flags.FlagValues, argv: Sequence[str] | None = None) -> None:
    """Declares --config, with --config.a.b=value for its fields.

    Args:
      values: gets the flag.
      argv: where the fields that are set stand; `sys.argv` when left out.
    """
    text = "FILE.py[:preset]; --config.a.b=value overrides a field"
    config_flags.DEFINE_config_file("config", None, text, flag_values=values, sys_argv=argv)
    values["config"].parser = _Parser()


class _Parser(flags.ArgumentParser):
    """Reads what --config names; a field that the file does not make cannot be set."""

    def parse(self, name: str) -> ConfigDict:
        return read(name).lock()


def unquoted(error: Exception) -> str:
    """What config_flags says of a field, which it wraps in several layers of quotes."""
    return str(error).replace("\\n", "; ").translate(str.maketrans("", "", "\\'\""))
