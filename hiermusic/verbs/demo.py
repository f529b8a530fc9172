"""The demo."""

from pathlib import Path

from hiermusic.verbs.flags import Values, Verb, positional, show, string


def _define_demo(values: Values) -> None:
    string(values, "workdir", "folder for everything the demo makes", "out/demo")
    string(values, "configs", "folder of the configuration files", "configs")


def _demo(values: Values, given: list[str]) -> None:
    positional(given)
    from hiermusic import demo

    show(str(demo.run(Path(values.workdir), Path(values.configs))))


VERBS = {
    "demo": Verb(
        "everything once, small: corpus, codec, tokens, two token models, three songs, a report",
        "hiermusic demo --workdir=out/demo",
        _define_demo,
        _demo,
    ),
}
