"""What is known of a piece of music beside its sound: the fields of a row, and the files that lie next to it."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hiermusic.data import splits
from hiermusic.errors import UserError, reading

TEXT_FIELDS = ("lyrics", "tags", "description", "genre", "language", "artist")
SUFFIXES = (".txt", ".lrc", ".json")
_TIME = r"\d{1,4}:\d{1,4}(?:[.:]\d{1,6})?"  # minutes:seconds.hundredths
# [ \t], not \s, which runs on over line ends, in all as often as the square of their number
_OFFSET = re.compile(r"^[ \t]*\[offset:[ \t]*([+-]?\d{1,9})[ \t]*\]", re.MULTILINE | re.IGNORECASE)
_LARGEST = 1 << 24  # bytes of a sidecar

Meta = dict[str, Any]


def fields(row: Mapping[str, Any]) -> Meta:
    """The metadata among a row's values, under our names, with `split` where it names one."""
    row = {key: value for key, value in row.items() if value not in (None, "")}
    if "style" in row:
        row.setdefault("tags", row["style"])
    if "vocals" in row:
        row.setdefault("instrumental", not _truth(row["vocals"]))
    meta: Meta = {}
    for name in TEXT_FIELDS:
        if name in row:
            value = row[name]
            with reading(f"its {name}", "text"):  # a number may have too many digits to be told
                joined = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            meta[name] = joined.strip()
    if "instrumental" in row:
        meta["instrumental"] = _truth(row["instrumental"])
    if "split" in row:
        split = splits.named(row["split"])
        if split is None:
            raise UserError(f"split {row['split']!r} is none of {', '.join(splits.NAMES)}: give one, or leave it empty")
        meta["split"] = split
    return meta


def _truth(value: Any) -> bool:
    return str(value).strip().lower() not in ("no", "false", "0", "0.0", "none", "n")


def parse_lrc(text: str) -> list[list]:
    """Timed lyrics of an .lrc file: [[start, end, text], ...] in seconds, the last end None.

    A line with several stamps is sung several times; stamps inside a line are dropped, an empty line ends the one
    before it, and `[offset:+ms]` moves all of them earlier.
    """
    offset = _OFFSET.search(text)
    shift = int(offset.group(1)) / 1000 if offset else 0.0
    timed = []
    for line in text.splitlines():
        stamps = re.match(rf"\s*((?:\[{_TIME}\]\s*)+)(.*)", line)
        if stamps:
            words = re.sub(rf"<{_TIME}>", "", stamps.group(2)).strip()
            for minutes, seconds in re.findall(r"\[(\d{1,4}):(\d{1,4}(?:[.:]\d{1,6})?)\]", stamps.group(1)):
                start = 60 * int(minutes) + float(seconds.replace(":", ".")) - shift
                timed.append((round(max(start, 0.0), 3), words))
    timed.sort(key=lambda entry: entry[0])
    ends = [*(start for start, _ in timed[1:]), None][: len(timed)]
    return [[start, end, " ".join(words.split())] for (start, words), end in zip(timed, ends, strict=True) if words]


def sidecars(file: Path, seconds: float) -> Meta:
    """Metadata beside an audio file of so many seconds: song.json over song.lrc over song.txt.

    Raises:
      UserError: one that cannot be read, is no UTF-8 (or UTF-16 with its mark), or is not what its name says.
    """
    meta: Meta = {}
    if (place := file.with_suffix(".txt")).is_file() and (lyrics := _text(place).strip()):
        meta["lyrics"] = lyrics
    if (place := file.with_suffix(".lrc")).is_file():
        meta |= _lrc(_text(place), seconds)
    if file.with_suffix(".json").is_file():
        meta |= _json(file.with_suffix(".json"))
    meta.pop("split", None)
    return meta


def sidecar_split(file: Path) -> str | None:
    """The split that an audio file's song.json names; None where it names none, or cannot be read."""
    place = file.with_suffix(".json")
    try:
        return _json(place).get("split") if place.is_file() else None
    except UserError:  # told when the track is loaded, where it is skipped with this reason
        return None


def _lrc(text: str, seconds: float) -> Meta:
    lines = parse_lrc(text)
    if not lines:  # without a time: words all the same
        plain = [line for line in text.splitlines() if not re.match(r"\s*\[[a-zA-Z#]+:", line)]
        lyrics = "\n".join(plain).strip()
        return {"lyrics": lyrics} if lyrics else {}
    lines[-1][1] = max(round(seconds, 3), lines[-1][0])
    return {"lyrics": "\n".join(words for _, _, words in lines), "lines": lines}


def _json(place: Path) -> Meta:
    text = _text(place)
    with reading(f"its sidecar {place.name}", "JSON"):
        row = json.loads(text)
    if not isinstance(row, dict):
        raise UserError(f"its sidecar {place.name} is not a JSON object")
    lines = timed_lines(row.get("lines"))
    return fields(row) | ({"lines": lines} if lines else {})


def timed_lines(lines: Any) -> list[list]:
    """[[start, end, text], ...] of the lines that `corpus.truth` writes; nothing of anything else."""
    kept = [line for line in lines if isinstance(line, dict)] if isinstance(lines, list) else []
    found = [[line.get(key) for key in ("start", "end", "text")] for line in kept]
    return [row for row in found if isinstance(row[2], str) and _is_time(row[0]) and _is_time(row[1])]


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1e6


def _text(place: Path) -> str:
    name = f"its sidecar {place.name}"
    with reading(name, "text"):
        if (size := place.stat().st_size) > _LARGEST:
            raise UserError(f"{name} has {size:,} bytes, too many for words of one song")
        data = place.read_bytes()
    marked = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        kind = "UTF-16" if marked else "UTF-8"
        raise UserError(f"{name} is not {kind} (byte {error.start + 1}): save it as UTF-8") from None
    if "\0" in text:
        raise UserError(f"{name} holds bytes that are no text: save it as UTF-8")
    return text
