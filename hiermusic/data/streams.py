"""Streams of tokens: several of a track, each of one stem, with a tokenizer, a hierarchy and rates of its own.

A folder of streams holds one folder of token records a stream, at the stream's name: `vocals/semantic` is the stem that
was tokenized and a word that tells its streams apart, `vocals` a stem that has one. Where all there is is one stream of
the mix, it has no name, and its records lie in the folder itself.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hiermusic.data import stems
from hiermusic.data.records import read_info
from hiermusic.data.shards import REMEDY
from hiermusic.data.token_records import TokenSource
from hiermusic.errors import UserError, reading
from hiermusic.tokens.facts import TokenFacts
from hiermusic.tokens.hierarchy import Hierarchy

_NAME = re.compile(rf"({'|'.join(stems.NAMES)})(/(?!parts$)[a-z0-9][a-z0-9_-]{{0,39}})?")


class Tokenizer(NamedTuple):
    """The workdir or export of a tokenizer and the step of its weights, WORKDIR@STEP in writing; None, and WORKDIR
    alone, for its newest."""

    workdir: str
    step: int | None

    def __str__(self) -> str:
        return self.workdir if self.step is None else f"{self.workdir}@{self.step}"

    @classmethod
    def parse(cls, text: str) -> "Tokenizer":
        """The tokenizer written as WORKDIR@STEP; ValueError for other text."""
        workdir, at, step = text.rpartition("@")
        if not at:
            raise ValueError(f"{text!r} is no WORKDIR@STEP")
        return cls(workdir, int(step))

    @classmethod
    def named(cls, text: str) -> "Tokenizer":
        """The tokenizer that a person names by WORKDIR or WORKDIR@STEP; a folder that is called so is a workdir."""
        _, at, step = text.rpartition("@")
        whole = not (at and step.isdecimal()) or Path(text).is_dir()
        return cls(text, None) if whole else cls.parse(text)


@dataclass(frozen=True)
class Stream:
    """What token records say of themselves, so that whatever reads them need not be told.

    Attributes:
      stem: what was tokenized.
      hierarchy: all levels, with their rates and numbers of codes.
      tokenizer: what made the tokens.
      sample_rate: Hz of what it heard.
      facts: what else a model of these tokens has to know; None where the tokenizer does not say.
      noise: standard deviation of what was added before (`tokenise.noisy`).
    """

    stem: str
    hierarchy: Hierarchy
    tokenizer: Tokenizer
    sample_rate: int
    facts: TokenFacts | None = None
    noise: float = 0.0


def read_stream(path: str | os.PathLike) -> Stream:
    """What the token records of a folder say of themselves; UserError where there are none."""
    info = read_info(path, "tokens")
    with reading(Path(path) / "info.json", do=REMEDY):
        hierarchy, tokenizer = Hierarchy.from_json(info["hierarchy"]), Tokenizer.parse(info["codec"])
        facts = TokenFacts.of(info["tokens"]) if "tokens" in info else None
        if facts and (facts.hierarchy, facts.sample_rate) != (hierarchy, info["sample_rate"]):
            raise ValueError("its tokens are not those of its hierarchy")
        noise = float(info.get("noise", 0.0))
        return Stream(info.get("stem", stems.MIX), hierarchy, tokenizer, info["sample_rate"], facts, noise)


def stem_of(name: str) -> str:
    """The stem that the stream of a name is made of."""
    return name.partition("/")[0] or stems.MIX


def parse(given: Sequence[str]) -> dict[str, str]:
    """What NAME:TOKENIZER, once a stream, say; names to tokenizers.

    Raises:
      UserError: something else, or a name that comes twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, _, tokenizer = text.partition(":")
        if not _NAME.fullmatch(name) or not tokenizer:
            raise UserError(
                f"--stream={text}: give STEM:TOKENIZER or STEM/WORD:TOKENIZER, such as vocals/semantic:out/codec; the "
                f"stems are {', '.join(stems.NAMES)}"
            )
        if name in found:
            raise UserError(f"--stream={name} comes twice: tell them apart by a word, as in {stem_of(name)}/acoustic")
        found[name] = tokenizer
    return found


def _alike(one: Sequence[Mapping], two: Sequence[Mapping]) -> bool:
    """Whether entries are those of the same tracks; a stem that was trimmed to others may be a little shorter."""
    names = [[(track["id"], track["split"]) for track in tracks] for tracks in (one, two)]
    return names[0] == names[1] and all(
        abs(a["seconds"] - b["seconds"]) <= stems.TOLERANCE for a, b in zip(one, two, strict=True)
    )


class TokenStreams:
    """Random access to several streams of the same tracks, opening only the shards their levels need; picklable.

    Args:
      path: the folder of streams.
      levels: of each stream that is read, by name: "coarse", "all" or a slice of levels.
      split: "train", "valid" or None for every track.
    Raises:
      UserError: a stream that is not there, or streams of other tracks.

    An element is `{"codes": {stream: codes}, "meta": ...}`, else as `TokenSource`'s. `tracks` are those of the split,
    `hierarchies` what is read of each stream.
    """

    def __init__(self, path: str | os.PathLike, levels: Mapping[str, str | slice], split: str | None = None):
        self.path = Path(path)
        self._sources = {name: TokenSource(self.path / name, wanted, split) for name, wanted in levels.items()}
        self.hierarchies = {name: source.hierarchy for name, source in self._sources.items()}
        (first, source), *others = self._sources.items()
        self.info, self.tracks = source.info, source.tracks
        for name, other in others:
            if not _alike(source.tracks, other.tracks):
                raise UserError(f"{path}: {first} and {name} hold other tracks: tokenize both from the same records")

    def __len__(self) -> int:
        return len(self.tracks)

    def __getitem__(self, index: int) -> dict:
        examples = {name: source[index] for name, source in self._sources.items()}
        meta = next(iter(examples.values()))["meta"]
        return {"codes": {name: example["codes"] for name, example in examples.items()}, "meta": meta}
