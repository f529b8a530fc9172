"""The demos."""

from pathlib import Path

from hiermusic.errors import UserError
from hiermusic.presets import locate
from hiermusic.systems import catalogue
from hiermusic.verbs.flags import Values, Verb, positional, show, string


def _define(values: Values) -> None:
    names = list(catalogue.systems())
    string(values, "system", f"whose: {catalogue.spoken(names)}", names[0])
    string(values, "workdir", f"folder for everything; default: out/demo of {names[0]}, else out/demo-SYSTEM")
    string(values, "configs", "folder of configurations; where it is not here, the package's own", "configs")


def _demo(values: Values, given: list[str]) -> None:
    positional(given)
    system = catalogue.named(values.system)
    configs = Path(values.configs)
    if not locate(configs / system.name).is_dir():
        raise UserError(f"no configurations in {configs}: give --configs=FOLDER with a folder {system.name}")
    from hiermusic.demo import runner

    first = system.name == next(iter(catalogue.systems()))
    folder = Path(values.workdir or ("out/demo" if first else f"out/demo-{system.name}"))
    show(str(runner.run(system.rooms.demo(folder, configs), folder)))


VERBS = {
    "demo": Verb(
        "everything of a system once, small: corpus, codec, tokens, token models, music, a report",
        "hiermusic demo --workdir=out/demo",
        _define,
        _demo,
    ),
}
