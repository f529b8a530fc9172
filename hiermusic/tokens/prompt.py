"""What a person asks for, and the ids it becomes (Khala's template)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

from hiermusic.errors import UserError
from hiermusic.tokens.vocabulary import TextTokenizer


@dataclass(frozen=True)
class Prompt:
    """A request for music.

    Args:
      description: free text; used rather than `tags`, which are used rather than `genre`.
      tags: terse words separated by commas.
      genre: one word or two.
      language: language of the lyrics; empty is the usual request.
      lyrics: lines, section tags such as [Verse] on lines of their own.
      seconds: length asked for.
      instrumental: no voice; lyrics are left out.
    """

    description: str = ""
    tags: str = ""
    genre: str = ""
    language: str = ""
    lyrics: str = ""
    seconds: float | None = None
    instrumental: bool = False

    @classmethod
    def from_json(cls, value: Mapping) -> "Prompt":
        """A prompt from a JSON object; UserError for a field that is unknown or of another type."""
        if not isinstance(value, Mapping):
            raise UserError(f"a prompt is a JSON object, not {type(value).__name__}")
        types = {field.name: str for field in fields(cls)} | {"seconds": (int, float, type(None)), "instrumental": bool}
        for name, entry in value.items():
            if name not in types:
                raise UserError(f"a prompt has no field {name!r}: it has {', '.join(types)}")
            if not isinstance(entry, types[name]) or (name == "seconds" and isinstance(entry, bool)):
                raise UserError(f"the prompt's {name!r} cannot be {entry!r}")
        return cls(**value)


def compose(prompt: Prompt, tokenizer: TextTokenizer, *, keep_description: bool = True, limit: int = 4096) -> list[int]:
    """Prompt ids: BOS metadata EOM language EOM [BOL EOL lyrics EOM] duration EOT BOA (Khala `compose_prompt_text`).

    Args:
      prompt: the request; `seconds` must be set.
      tokenizer: text to ids.
      keep_description: False leaves the free description out (Khala's super-resolution).
      limit: at most so many ids; of a longer prompt the ends of the lyrics, then of the metadata, are left out, and all
        that says what is what is kept (the release keeps BOA only). `excess` tells how much.
    Raises:
      UserError: when the prompt names no positive length.
    """
    if prompt.seconds is None or not 0 < prompt.seconds < float("inf"):
        raise UserError(f"a prompt needs its length: set seconds to a positive number, not {prompt.seconds}")
    ids = tokenizer.vocabulary
    language, metadata, lyrics = _words(prompt, tokenizer, keep_description)
    end = [ids.duration_id(prompt.seconds), ids.eot, ids.boa]
    room = max(limit - _frame(prompt), 0)
    language = language[:room]
    metadata = metadata[: room - len(language)]
    lyrics = lyrics[: room - len(language) - len(metadata)]
    sung = [] if prompt.instrumental else [ids.bol, *lyrics, ids.eom]
    return [ids.bos, *metadata, ids.eom, *language, ids.eom, *sung, *end][-limit:]


def excess(prompt: Prompt, tokenizer: TextTokenizer, *, keep_description: bool = True, limit: int = 4096) -> int:
    """Ids of a prompt's words that `compose` leaves out; arguments as there."""
    words = sum(map(len, _words(prompt, tokenizer, keep_description)))
    return max(words - max(limit - _frame(prompt), 0), 0)


def _words(prompt: Prompt, tokenizer: TextTokenizer, keep_description: bool) -> tuple[list[int], list[int], list[int]]:
    """Ids of the language, the metadata and the lyrics, each line behind an EOL."""
    metadata = (keep_description and prompt.description) or prompt.tags or prompt.genre
    language = "Instrumental" if prompt.instrumental else prompt.language
    lyrics: list[int] = []
    if not prompt.instrumental:
        for line in prompt.lyrics.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
            lyrics += [tokenizer.vocabulary.eol, *tokenizer.encode(line)]
    return tokenizer.encode(language), tokenizer.encode(metadata), lyrics


def _frame(prompt: Prompt) -> int:
    """Ids of a prompt that are no words."""
    return 6 if prompt.instrumental else 8
