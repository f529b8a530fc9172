"""What a system's demo is: a list of verbs, and the names of what they leave for its page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Step:
    """One command of a demo.

    Args:
      name: what the ledger keeps it under.
      words: what is said and shown of it.
      arguments: what follows `hiermusic`.
    """

    name: str
    words: str
    arguments: Sequence[str]


@dataclass(frozen=True)
class Demo:
    """What a system shows; what is made lies in the demo's folder, each thing under its name.

    Args:
      title, intro: of the page.
      files: small files that the steps read, by name, written first.
      steps: the commands, in order; each can be typed by hand.
      songs: folders of generated songs, evaluated, and how the page speaks of each.
      runs: evaluated workdirs, and how the page speaks of each.
      accompanied: folders of accompaniments, and how the page speaks of each.
    """

    title: str
    intro: str
    files: Mapping[str, str]
    steps: Sequence[Step]
    songs: Mapping[str, str]
    runs: Mapping[str, str]
    accompanied: Mapping[str, str] = field(default_factory=dict)
