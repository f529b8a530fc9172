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


def compose(
    prompt: Prompt,
    tokenizer: TextTokenizer,
    *,
    keep_description: bool = True,
    limit: int = 4096,
    as_released: bool = False,
) -> list[int]:
    """Prompt ids: BOS metadata EOM language EOM [BOL EOL lyrics EOM] duration EOT BOA (Khala `compose_prompt_text`).

    Args:
      prompt: the request; `seconds` must be set.
      tokenizer: text to ids.
      keep_description: False leaves the free description out (Khala's super-resolution).
      limit: at most so many ids; of a longer prompt the ends of the lyrics, then of the metadata, are left out, and all
        that says what is what is kept. `excess` tells how much.
      as_released: of a longer prompt the first ids and BOA are kept, whatever they are, and where a description is left
        out the tags are, too, as Khala's release has it.
    Raises:
      UserError: when the prompt names no positive length.
    """
    if prompt.seconds is None or not 0 < prompt.seconds < float("inf"):
        raise UserError(f"a prompt needs its length: set seconds to a positive number, not {prompt.seconds}")
    ids = tokenizer.vocabulary
    language, metadata, lyrics = _words(prompt, tokenizer, keep_description, as_released)
    end = [ids.duration_id(prompt.seconds), ids.eot, ids.boa]
    room = sum(map(len, (language, metadata, lyrics))) if as_released else max(limit - _frame(prompt), 0)
    language = language[:room]
    metadata = metadata[: room - len(language)]
    lyrics = lyrics[: room - len(language) - len(metadata)]
    sung = [] if prompt.instrumental else [ids.bol, *lyrics, ids.eom]
    whole = [ids.bos, *metadata, ids.eom, *language, ids.eom, *sung, *end]
    return [*whole[: limit - 1], ids.boa] if as_released and len(whole) > limit else whole[-limit:]


def excess(
    prompt: Prompt,
    tokenizer: TextTokenizer,
    *,
    keep_description: bool = True,
    limit: int = 4096,
    as_released: bool = False,
) -> int:
    """Ids of a prompt that `compose` leaves out, of its words unless `as_released`; arguments as there."""
    words = sum(map(len, _words(prompt, tokenizer, keep_description, as_released)))
    room = limit - _frame(prompt)
    return max(words - (room if as_released else max(room, 0)), 0)


def _words(
    prompt: Prompt, tokenizer: TextTokenizer, keep_description: bool, as_released: bool
) -> tuple[list[int], list[int], list[int]]:
    """Ids of the language, the metadata and the lyrics, each line behind an EOL."""
    description, tags = prompt.description.strip(), prompt.tags.strip()
    tags = "" if as_released and description else tags
    metadata = (keep_description and description) or tags or prompt.genre.strip()
    language = "Instrumental" if prompt.instrumental else prompt.language
    lyrics: list[int] = []
    if not prompt.instrumental:
        for line in prompt.lyrics.strip().replace("\r\n", "\n").replace("\r", "\n").split("\n"):
            lyrics += [tokenizer.vocabulary.eol, *tokenizer.encode(line)]
    return tokenizer.encode(language), tokenizer.encode(metadata), lyrics


def _frame(prompt: Prompt) -> int:
    """Ids of a prompt that are no words."""
    return 6 if prompt.instrumental else 8
