"""How the table of flags is written: a verb's case, and the rows of its flags."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from hiermusic import presets
from hiermusic.systems.requests import Request
from hiermusic.tokens.prompt import Prompt

ROOT = Path(__file__).parents[2]
CODEC = f"{ROOT}/configs/khala/codec.py"
GONE = object()  # of a function that is then not called
RUN = SimpleNamespace(
    loop=SimpleNamespace(steps=900, batch_size=8, seed=3), mesh="the mesh", remat="none", fields="the fields"
)
STAGE = SimpleNamespace(config=RUN)


def configuration(preset: str = "tiny", steps: int | None = None, **mesh: int):
    config = presets.read(f"{CODEC}:{preset}")
    config.mesh.update(mesh)
    config.train.steps = steps or config.train.steps
    return config


def asked(name: str = "song", seed: int = 0, like: str = "", seconds: float = 2.0, **words) -> Request:
    return Request(name, Prompt(seconds=seconds, **words), seed, like)


class Case(NamedTuple):
    """A verb: words with which it runs, what the functions below return, and of each flag words and what they change.

    Where a flag belongs to another way to call the verb, the name of the case has a second word.
    """

    words: tuple[str, ...]
    below: dict[str, Any]
    flags: dict[str, tuple[tuple[str, ...], dict[str, Any]]]


def at(value: Any, *places: str) -> dict[str, Any]:
    """The same at each of these places."""
    return dict.fromkeys(places, value)


def one(flag: str, value: str, *places: str, to: Any = None) -> dict[str, tuple[tuple[str, ...], dict[str, Any]]]:
    """The row of a flag whose value, or what it is read as, arrives at these places."""
    return {flag: ((f"--{flag}={value}",), at(value if to is None else to, *places))}


def page(flag: str, value: str, folder: str, place: str, out: str) -> dict[str, tuple[tuple[str, ...], dict[str, Any]]]:
    """The row of a flag that also decides in which folder a report comes to lie."""
    return {flag: ((f"--{flag}={value}",), {place: value, out: folder, "out": f"a line\n{folder}/report.html"})}
