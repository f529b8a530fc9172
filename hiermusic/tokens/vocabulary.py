"""Text ids: which ids have a part to play, and how text becomes ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from pathlib import Path

from hiermusic.errors import UserError


@dataclass(frozen=True)
class Vocabulary:
    """Ids of the text vocabulary that have a role.

    Args:
      text_size: number of text ids.
      bos, eos: begin of text; end of audio.
      pad: an id that never stands in a prompt.
      bol, eol: begin of lyrics; end of a lyric line.
      eom, eot, boa: field separator; end of text; begin of audio.
      durations: the ids of duration buckets 0, 1, 2, ...
      duration_unit: seconds of one bucket.
      task_markers: how many ids at the end of the vocabulary mark the target level of a layer-wise pass.
    """

    text_size: int
    bos: int
    eos: int
    pad: int
    bol: int
    eol: int
    eom: int
    eot: int
    boa: int
    durations: tuple[int, ...]
    duration_unit: float = 60.0
    task_markers: int = 64

    @classmethod
    def llama31(cls) -> "Vocabulary":
        """The Llama 3.1 ids Khala gives its roles to (released `tokenizer_config.json` and `backend_worker.py`)."""
        minutes = (128002, 128003, 128005, *(128008 + n for n in range(3, 11)))
        return cls(
            text_size=128256,
            bos=128000,
            eos=128001,
            pad=128004,
            bol=128006,
            eol=128007,
            eom=128008,
            eot=128009,
            boa=128010,
            durations=minutes,
        )

    @classmethod
    def byte_level(cls, duration_unit: float = 60.0) -> "Vocabulary":
        """256 bytes, then the roles, 11 durations and 64 task markers: needs no tokenizer file."""
        roles = dict(zip(("bos", "eos", "pad", "bol", "eol", "eom", "eot", "boa"), range(256, 264), strict=True))
        return cls(text_size=264 + 11 + 64, durations=tuple(range(264, 275)), duration_unit=duration_unit, **roles)

    def task_marker(self, level: int) -> int:
        """The id that stands in the place of `boa` when level `level` is to be predicted (Khala: 128255 - level)."""
        if not 0 <= level < self.task_markers:
            raise UserError(f"level {level} has no task marker: this vocabulary marks {self.task_markers} levels")
        return self.text_size - 1 - level

    def duration_id(self, seconds: float) -> int:
        """The id of the duration bucket nearest to `seconds` (the last bucket holds all that is longer)."""
        bucket = floor(max(seconds, 0.0) / self.duration_unit + 0.5)
        return self.durations[min(bucket, len(self.durations) - 1)]


class TextTokenizer:
    """Text to ids: bytes, or a `tokenizer.json` read by the `tokenizers` package.

    Args:
      vocabulary: the roles of ids.
      path: a tokenizer.json; None = UTF-8 bytes.
    Raises:
      UserError: when the file cannot be read, does not fit the vocabulary, or `tokenizers` is not installed.
    """

    def __init__(self, vocabulary: Vocabulary, path: str | Path | None = None):
        self.vocabulary = vocabulary
        self._tokenizer = None if path is None else _load(Path(path), vocabulary.text_size)

    def encode(self, text: str) -> list[int]:
        """Ids of plain text: nothing in it is taken for a special token, and any unicode will do."""
        data = text.encode("utf-8", errors="replace")
        if self._tokenizer is None:
            return list(data)
        return self._tokenizer.encode(data.decode("utf-8"), add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; those with a role are left out."""
        if self._tokenizer is None:
            return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)


def _load(path: Path, text_size: int):
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise UserError(f"reading {path} needs the tokenizers package: pip install 'hiermusic[text]'") from None
    if not path.is_file():
        raise UserError(f"no tokenizer file at {path}: give the path of a tokenizer.json")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises bare Exception
        raise UserError(f"{path} is not a tokenizer.json: {error}") from None
    if tokenizer.get_vocab_size() > text_size:
        raise UserError(
            f"{path} has {tokenizer.get_vocab_size()} ids but the vocabulary holds {text_size}: "
            "use the tokenizer the model was made for"
        )
    tokenizer.encode_special_tokens = True  # a prompt that spells out a special token is still only text
    return tokenizer
