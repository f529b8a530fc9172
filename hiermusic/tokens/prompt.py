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
      limit: at most so many ids; of a longer prompt the words are cut and the length kept (the release keeps BOA only).
    Raises:
      UserError: when the prompt names no positive length.
    """
    if prompt.seconds is None or not 0 < prompt.seconds < float("inf"):
        raise UserError(f"a prompt needs its length: set seconds to a positive number, not {prompt.seconds}")
    ids, encode = tokenizer.vocabulary, tokenizer.encode
    metadata = (keep_description and prompt.description) or prompt.tags or prompt.genre
    language = "Instrumental" if prompt.instrumental else prompt.language
    out = [ids.bos, *encode(metadata), ids.eom, *encode(language), ids.eom]
    if not prompt.instrumental:
        out += [ids.bol]
        for line in prompt.lyrics.replace("\r\n", "\n").replace("\r", "\n").split("\n"):
            out += [ids.eol, *encode(line)]
        out += [ids.eom]
    end = [ids.duration_id(prompt.seconds), ids.eot, ids.boa]
    return [*out[: max(limit - len(end), 0)], *end][-limit:]
