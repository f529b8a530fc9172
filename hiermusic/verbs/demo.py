"""The demos."""

import importlib
from pathlib import Path

from hiermusic.errors import UserError
from hiermusic.presets import locate
from hiermusic.verbs.flags import Values, Verb, positional, show, string

_SYSTEMS = ("khala", "aar")


def _define_demo(values: Values) -> None:
    string(values, "system", f"whose: {' or '.join(_SYSTEMS)}", "khala")
    string(values, "workdir", "folder for everything the demo makes; default: out/demo, out/demo-aar")
    string(values, "configs", "folder of configurations; where it is not here, the package's own", "configs")


def _demo(values: Values, given: list[str]) -> None:
    positional(given)
    name, configs = values.system, Path(values.configs)
    if name not in _SYSTEMS:
        raise UserError(f"--system={name}: there is a demo of {', '.join(_SYSTEMS)}")
    if not locate(configs / name / "codec.py").is_file():
        raise UserError(f"no configurations in {configs}: give --configs=FOLDER with {name}/codec.py and its like")
    from hiermusic.demo import runner

    folder = Path(values.workdir or ("out/demo" if name == "khala" else f"out/demo-{name}"))
    show(str(runner.run(importlib.import_module(f"hiermusic.systems.{name}.demo").demo(folder, configs), folder)))


VERBS = {
    "demo": Verb(
        "everything of a system once, small: corpus, codec, tokens, token models, music, a report",
        "hiermusic demo --workdir=out/demo",
        _define_demo,
        _demo,
    ),
}
