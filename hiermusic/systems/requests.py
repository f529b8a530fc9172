"""What a person asks for: prompts with a name and a seed each, from a file or from a few words."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hiermusic.errors import UserError, brief, reading
from hiermusic.systems.system import Flag
from hiermusic.tokens.prompt import Prompt

_LONGEST_NAME = 200  # bytes: file systems hold 255, of which endings and temporary names take some
_MOST_SECONDS = 1e6

WORDS = (
    Flag("tags", "tags, separated by commas; with --prompts, of lines that name none", "prompt"),
    Flag("lyrics", "lyrics; \\n parts lines; with --prompts, of lines that have none", "prompt"),
    Flag("instrumental", "without a voice; with --prompts, lines that do not say", "prompt", bool),
)
LIKE = Flag(
    "like",
    "clip to sound like (continue: default IN.wav), or .npy file of a vector of one; with --prompts, of lines without",
    "prompt",
)
TEXT = Flag("text", "in words, what a single prompt's music is (in --prompts, the field description)", "prompt")


@dataclass(frozen=True)
class Request:
    """One song to make: its file name, its prompt, its seed (0..2^32 - 1) and the file that it should sound like."""

    name: str
    prompt: Prompt
    seed: int
    like: str = ""

    def __post_init__(self):
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise UserError(f"the seed {self.seed!r} is not an integer in 0..{2**32 - 1}")
        if (self.prompt.seconds or 0) > _MOST_SECONDS:
            raise UserError(f"{brief(self.prompt.seconds, 20)} seconds are more than a song has: ask for less")

    def to_json(self) -> dict:
        """The request as a JSON object, without the file."""
        return {"name": self.name, "seed": self.seed, **asdict(self.prompt)}


def single(
    seconds: float | None,
    seed: int,
    *,
    tags: str = "",
    lyrics: str = "",
    instrumental: bool = False,
    like: str = "",
    text: str = "",
) -> list[Request]:
    """One request from the values of `WORDS`, `LIKE` and `TEXT`; `\\n` in the lyrics parts lines.

    Raises:
      UserError: when there are no seconds.
    """
    if not seconds:
        raise UserError("--seconds is needed with a single prompt (or give --prompts=FILE.jsonl)")
    words = {"description": text, "tags": tags, "lyrics": lyrics, "instrumental": instrumental}
    prompt = Prompt(**words, seconds=seconds)
    return [Request("song", prompt, seed, like)]


def read(
    path: str | Path, seed: int, kept: Sequence[str] = (), unsaid: Mapping[str, Any] = MappingProxyType({})
) -> list[Request]:
    """Requests from a JSONL file: a prompt's fields, and optionally `name`, `seed` and `like`, on every line.

    Args:
      path: the file.
      seed: seed of the first line without one; line n gets seed + n.
      kept: endings that no name may have: versions of songs that lie beside them.
      unsaid: fields of the lines that leave them out.
    Raises:
      UserError: a missing file, a line that is no prompt, a name used twice, or no prompt at all.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no prompts at {path}: give a file with one JSON object a line")
    with reading(path, "prompts", "give UTF-8 text with one JSON object a line"):
        text = path.read_text(encoding="utf-8-sig")
    # and not splitlines, which JSON may hold line ends of
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path} holds no prompt: give one JSON object a line")

    def understood(line: str) -> object:
        fields = json.loads(line)
        return {**unsaid, **fields} if isinstance(fields, dict) else fields

    return _requests(lines, understood, seed, kept, f"{path}, line ", str(path))


def parse(prompts: Sequence[Mapping], seed: int, kept: Sequence[str] = ()) -> list[Request]:
    """As `read`, from objects instead of the lines of a file.

    Args:
      prompts: the objects.
      seed, kept: as in `read`.
    Raises:
      UserError: an object that is no prompt, a name used twice, or no prompt at all.
    """
    if not prompts:
        raise UserError("there is no prompt: give at least one")
    return _requests(list(enumerate(prompts, 1)), dict, seed, kept, "prompt ", "the prompts")


def _requests(
    rows: Sequence[tuple[int, object]], understood: Callable, seed: int, kept: Sequence[str], place: str, whole: str
) -> list[Request]:
    """Requests of numbered rows; what is wrong is told of `place` and the row's number, or of the `whole`."""
    requests: list[Request] = []
    for number, row in rows:
        try:
            requests.append(_request(understood(row), number, seed + len(requests), kept))
        except (UserError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{place}{number}: {error}") from None
    twice, times = Counter(request.name for request in requests).most_common(1)[0]
    if times > 1:
        raise UserError(f"{whole}: the name '{twice}' is used twice")
    return requests


def _request(fields: object, number: int, seed: int, kept: Sequence[str]) -> Request:
    if not isinstance(fields, dict):
        raise UserError(f"a prompt is a JSON object, not {type(fields).__name__}")
    name = _file_name(fields.pop("name", f"song-{number:03d}"), kept)
    own_seed, like = fields.pop("seed", seed), str(fields.pop("like", ""))
    request = Request(name, like=like, prompt=Prompt.from_json(fields), seed=own_seed)
    if not 0 < (request.prompt.seconds or 0) < float("inf"):
        raise UserError('a prompt needs "seconds", a positive number')
    return request


def _file_name(name: object, kept: Sequence[str]) -> str:
    text = re.sub(r"[^\w.-]+", "-", str(name)).strip("-.")
    if not text:
        raise UserError(f"the name {name!r} cannot be a file name: use letters, digits, '-' and '_'")
    if len(os.fsencode(text)) > _LONGEST_NAME:
        raise UserError(f"the name {text[:20]}... has {len(os.fsencode(text))} bytes: use {_LONGEST_NAME} at most")
    if version := next((version for version in kept if text.endswith(f".{version}")), None):
        raise UserError(f"the name {text!r} is kept for the {version}'s own sound: choose another")
    return text
