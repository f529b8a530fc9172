"""The systems there are. A further one is imported here, and takes its place in the order."""

from collections.abc import Sequence

from hiermusic.errors import UserError
from hiermusic.systems import aar, hafm, khala, pyramid, tokens
from hiermusic.systems.system import System


def systems() -> dict[str, System]:
    """Every system by its name; the first is the one that is meant where none is named."""
    return {each.SYSTEM.name: each.SYSTEM for each in (khala, aar, pyramid, hafm, tokens)}


def named(name: str) -> System:
    """The system that --system=NAME means; UserError where there is none of that name."""
    known = systems()
    if name not in known:
        raise UserError(f"--system={name}: there is {spoken(list(known))}")
    return known[name]


def spoken(names: Sequence[str]) -> str:
    """Names as a choice: a, b or c."""
    return " or ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)
