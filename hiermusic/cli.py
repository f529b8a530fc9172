"""The `hiermusic` command: finds the verb, reads its flags, and says in one line whatever is wrong."""

import os
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from absl import flags, logging

from hiermusic.children import end_with_parent
from hiermusic.console import open_closed_streams, say
from hiermusic.errors import UserError, brief
from hiermusic.presets import unquoted
from hiermusic.verbs import checkpoints, compile, data, demo, published, runs, songs, sweep
from hiermusic.verbs.flags import Values, Verb, example, local, show

OPEN_FILES = 65536

_ORDER = (
    *("demo", "data", "train", "tokenize", "encode", "decode", "embed", "generate", "continue", "accompany"),
    *("evaluate", "sweep", "inspect", "reshard", "import", "export", "compile"),
)
_ALL = checkpoints.VERBS | compile.VERBS | demo.VERBS | data.VERBS | published.VERBS | runs.VERBS
_ALL |= songs.VERBS | sweep.VERBS
VERBS = {name: _ALL[name] for name in _ORDER}


def _usage() -> str:
    width = max(map(len, VERBS))
    rows = [f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items()]
    return "\n".join(["usage: hiermusic VERB --flag=value ...", "", *rows, "", "hiermusic VERB -h explains one."])


def _explain(name: str, verb: Verb, values: Values) -> str:
    rows = []
    for flag in sorted({id(flag): flag for flag in map(values.__getitem__, values)}.values(), key=lambda f: f.name):
        default = "" if flag.default in (None, "") else f" (default {flag.default})"
        rows.append(f"  --{flag.name:<16} {flag.help}{default}")
    head = f"usage: hiermusic {name} --flag=value ... {verb.arguments}".rstrip()
    return "\n".join([head, "", f"  {verb.summary}", "", *rows, "", f"example:\n  {example(name, verb)}"])


def _with_flagfiles(argv: list[str]) -> list[str]:
    """The arguments with those of every --flagfile in its place."""
    try:
        return Values().read_flags_from_files(argv, force_gnu=False)
    except (flags.Error, OSError, UnicodeDecodeError) as error:
        raise UserError(f"--flagfile cannot be read ({error}): give a text file with one flag a line") from error


def _parse(name: str, values: Values) -> list[str]:
    try:
        return values(sys.argv)[1:]
    except UserError:
        raise
    except flags.Error as error:
        raise UserError(f"{error} (hiermusic {name} -h lists the flags)") from error
    except (AttributeError, KeyError) as error:
        field = unquoted(error)
        raise UserError(f"the configuration has no field {field} (look into the file given with --config)") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"the configuration does not take its settings: {unquoted(error)}") from error


def _keep_compiled_programs() -> None:
    """Lets a second run of anything start without compiling it again, unless the environment says where or how."""
    home = os.path.expanduser("~")
    if os.path.isabs(home):  # a bare container may have neither HOME nor a user: then nothing is kept
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.join(home, ".cache", "hiermusic", "compiled"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def _leave_out_absent_tpu() -> None:
    """Keeps JAX from starting libtpu where it is there for its compiler only: it would print a page of warnings."""
    tpu = [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("*")]
    plugins = find_spec("jax_plugins")
    if find_spec("libtpu") and not tpu and not plugins:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def _allow_open_files() -> None:
    """Raises the number of files that a process may have open as far as the system lets it, within reason."""
    with suppress(ImportError, OSError, ValueError):  # no such limit, or none that may be changed
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(argv: list[str] | None = None) -> None:
    """Runs one verb; bad input ends in one line on standard error and exit status 1."""
    open_closed_streams()
    end_with_parent()
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        show(_usage())
        return
    name, *rest = argv
    if name not in VERBS:
        say(f"hiermusic: there is no verb '{name}'; there are {', '.join(VERBS)}")
        sys.exit(2)
    _keep_compiled_programs()
    _leave_out_absent_tpu()
    _allow_open_files()
    verb = VERBS[name]
    values = Values()
    logging.set_verbosity(logging.ERROR)
    try:
        rest = _with_flagfiles(rest)
        sys.argv = [f"hiermusic {name}", *rest]  # where config_flags looks for --config and its overrides
        verb.define(values)
        if {"-h", "--help"} & set(rest):
            show(_explain(name, verb, values))
            return
        given = _parse(name, values)
        local(values, given)
        verb.run(values, given)
    except UserError as error:
        say(f"hiermusic {name}: {error}")
        sys.exit(1)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        say(brief(f"hiermusic {name}: {place}{error.strerror or error}"))
        sys.exit(1)
    except MemoryError as error:
        say(brief(f"hiermusic {name}: there is not enough memory ({error}); ask for less at a time"))
        sys.exit(1)
    except KeyboardInterrupt:
        say(f"hiermusic {name}: interrupted; run the same command to go on")
        sys.exit(130)
