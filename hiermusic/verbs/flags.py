"""What verbs are made of: flags, arguments, and answers in words or JSON."""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from absl import flags
from ml_collections import ConfigDict

from hiermusic import presets
from hiermusic.console import say
from hiermusic.errors import UserError
from hiermusic.systems import catalogue
from hiermusic.systems.system import LARGEST, Flag, System

Values = flags.FlagValues
_WORDS = ("tags", "lyrics")  # flags whose text is no place


@dataclass(frozen=True)
class Verb:
    """A verb: what it does, how it is called (asked of a system where nothing stands there), and the functions that
    declare its flags and run it."""

    summary: str
    example: str
    define: Callable[[Values], None]
    run: Callable[[Values, list[str]], None]
    arguments: str = ""


def string(values: Values, name: str, text: str, default: str | None = None) -> None:
    flags.DEFINE_string(name, default, text, flag_values=values)


def strings(values: Values, name: str, text: str) -> None:
    """A flag that may be given several times: a list, or None where it is not."""
    flags.DEFINE_multi_string(name, None, text, flag_values=values)


def integer(
    values: Values,
    name: str,
    text: str,
    default: int | None = None,
    lower: int | None = None,
    upper: int | None = None,
) -> None:
    flags.DEFINE_integer(name, default, text, lower_bound=lower, upper_bound=upper, flag_values=values)


def number(
    values: Values, name: str, text: str, default: float | None = None, *, lower: float, upper: float | None = None
) -> None:
    flags.DEFINE_float(name, default, text, lower_bound=lower, upper_bound=upper, flag_values=values)
    flags.register_validator(name, lambda x: x is None or abs(x) < LARGEST, "give a finite number", flag_values=values)


def boolean(values: Values, name: str, text: str, default: bool = False) -> None:
    flags.DEFINE_bool(name, default, text, flag_values=values)


def choice(values: Values, name: str, text: str, words: Sequence[str], default: str | None = None) -> None:
    flags.DEFINE_enum(name, default, words, text, flag_values=values)


def declare(values: Values, flag: Flag, text: str) -> None:
    """A flag that a system has."""
    if flag.kind is bool:
        boolean(values, flag.name, text)
    elif flag.kind is str:
        string(values, flag.name, text)
    elif flag.kind is int:
        integer(values, flag.name, text, lower=flag.lower, upper=flag.upper)
    else:
        number(values, flag.name, text, lower=flag.lower, upper=flag.upper)


def system_named() -> System | None:
    """The system that --system on the command line means; None where it is not there, UserError for none there is."""
    values = Values()
    string(values, "system", "")
    try:
        values(sys.argv, known_only=True)
    except flags.Error as error:
        raise UserError(f"{error}: give a name behind --system=") from error
    return catalogue.named(values.system) if values.system else None


def example(name: str, verb: Verb) -> str:
    """How a verb is called: with what is its own, or as the system that is named, or the first one, says."""
    if verb.example:
        return verb.example
    first, *_ = known = list(catalogue.systems().values())
    asked = system_named() or first
    return next(system.examples[name] for system in (asked, *known) if name in system.examples)


def config(values: Values) -> None:
    presets.declare(values)


def mesh_sizes(text: str | None) -> dict[str, int]:
    """What --mesh=axis=devices,... says: axis -> devices; nothing where it is not given."""
    if not text:
        return {}
    pairs = [part.split("=") for part in text.split(",")]
    try:
        sizes = {axis.strip(): int(devices) for axis, devices in pairs}
    except ValueError:
        sizes = {}
    if len(sizes) < len(pairs):
        raise UserError(f"--mesh={text}: give each axis once with its devices, such as --mesh=fsdp=4,tensor=2")
    return sizes


def hosts(values: Values) -> None:
    """The flags of a verb whose work is shared by the processes of a run; `together` follows them."""
    string(values, "coordinator", "HOST:PORT of process 0, on every process; not needed on TPU slices, SLURM and GKE")
    integer(values, "processes", "how many processes run this command together; 1: this one alone", lower=1)
    integer(values, "process", "which of them this one is, from 0", lower=0)
    number(values, "start_timeout", "seconds to wait for the other processes to start", 120.0, lower=1.0)


def together(values: Values) -> AbstractContextManager[None]:
    """Runs a block as one of the processes that the flags, or else the cluster, name; see `hosts.joined`."""
    from hiermusic.parallel.hosts import joined

    return joined(values.coordinator, values.processes, values.process, values.start_timeout)


def need(values: Values, *names: str) -> None:
    missing = [f"--{name}" for name in names if not getattr(values, name)]
    if missing:
        raise UserError(f"{', '.join(missing)} is needed")


def local(values: Values, given: list[str]) -> None:
    """UserError where a flag, an argument or a field of --config is an address such as gs://bucket/x: all places are
    folders and files of this machine, and one named `gs:` is not what was meant."""
    places = [("", word) for word in given]
    for name in set(values) - set(_WORDS):
        value = values[name].value
        if isinstance(value, ConfigDict):
            places += _leaves(value, f"--{name}.")
        else:
            places += [(f"--{name}", one) for one in (value if isinstance(value, list) else [value])]
    for name, value in places:
        if isinstance(value, str) and re.match(r"(?:[\w/]*:)?[a-zA-Z][a-zA-Z0-9+.-]*://", value):
            place = f"{name}={value}" if name else value
            raise UserError(f"{place}: only places of this machine are read and written: mount it, or copy it here")


def _leaves(config: ConfigDict, prefix: str) -> Iterator[tuple[str, object]]:
    for name, value in config.items():
        yield from _leaves(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else [(prefix + name, value)]


def positional(given: list[str], *names: str) -> list[str]:
    if len(given) != len(names):
        raise UserError(f"expected {len(names)} arguments ({' '.join(names)}), got {len(given)}: {' '.join(given)}")
    return given


def show(text: str) -> None:
    """Writes to standard output; raises SystemExit where that fails, unless its reader has read enough."""
    encoding = sys.stdout.encoding or "utf-8"  # names of files need not be text, nor the terminal's alphabet wide
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        # Python would try again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            say(f"hiermusic: standard output cannot be written: {error.strerror}")
            sys.exit(1)


def answer(values: Values, result: dict, lines: list[str]) -> None:
    """One JSON object on standard output with --json, the words otherwise; from the first process of a run."""
    from hiermusic.parallel.hosts import workers

    if workers()[0] == 0:
        show(json.dumps(result) if values.json else "\n".join(lines))
