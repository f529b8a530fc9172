"""Whether compressed files are whole: what Ogg pages and MPEG frames say of it, which decoders pass over."""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # by MPEG version bits
_KBITS = {True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)}  # of layer III, MPEG 1
_KBITS[False] = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)  # MPEG 2 and 2.5
_SEARCHED = 1 << 16  # bytes in which the next frame is looked for where one does not follow the other


def ogg_fault(path: str | Path) -> str | None:
    """What an Ogg file lacks, in a few words: a page, the end of its last page, or its last page; None if nothing."""
    size = Path(path).stat().st_size
    at = 0
    last = {}
    ended = False
    with open(path, "rb") as file:
        while at < size:
            file.seek(at)
            header = file.read(27)
            if header[:4] != b"OggS":
                return None if ended else "its pages break off"
            if len(header) < 27 or len(table := file.read(header[26])) < header[26]:
                return "its last page is cut short"
            serial = header[14:18]
            number = int.from_bytes(header[18:22], "little")
            if serial in last and number != last[serial] + 1:
                return f"page {last[serial] + 1} of it is missing"
            last[serial] = number
            ended = bool(header[5] & 4)
            at += 27 + len(table) + sum(table)
    if at > size:
        return "its last page is cut short"
    return None if ended else "its last page is missing"


@dataclass(frozen=True)
class Frames:
    """An mp3 file's frames: how many there are, how many its header says (None: it says nothing), samples in each, and
    whether the last one is cut short."""

    count: int
    claimed: int | None
    samples: int
    cut: bool


def mp3_frames(path: str | Path) -> Frames | None:
    """The frames of an mp3 file, counted one by one; None where no chain of layer III frames is found."""
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        at = _next_frame(file, _behind_tags(file), size)
        if at is None:
            return None
        file.seek(at)
        first = file.read(200)
        version, mono = first[1] >> 3 & 3, first[3] >> 6 == 3
        claimed = _claimed(first, 4 + ((17 if mono else 32) if version == 3 else (9 if mono else 17)))
        count = 0 if claimed is None else -1
        cut = False
        while at is not None:
            file.seek(at)
            header = file.read(4)
            length = _length(header)
            if length is None:
                cut |= 0 < len(header) < 4 and header[0] == 0xFF
                at = _next_frame(file, at, size)
                continue
            if at + length > size:
                cut = True
                break
            count, at = count + 1, at + length
    return Frames(max(count, 0), claimed, 1152 if version == 3 else 576, cut)


def _behind_tags(file: BinaryIO) -> int:
    """Where the ID3v2 tags at the beginning end."""
    at = 0
    while True:
        file.seek(at)
        header = file.read(10)
        if len(header) < 10 or header[:3] != b"ID3":
            return at
        at += 10 + sum((byte & 127) << shift for byte, shift in zip(header[6:], (21, 14, 7, 0), strict=True))


def _length(header: bytes) -> int | None:
    """Bytes of the layer III frame that a header begins; None where it is none, or of free format."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return None
    version, rate, kbits = header[1] >> 3 & 3, header[2] >> 2 & 3, header[2] >> 4
    if version == 1 or rate == 3 or not 1 <= kbits <= 14:
        return None
    per_bit = 144_000 if version == 3 else 72_000
    return per_bit * _KBITS[version == 3][kbits - 1] // _RATES[version][rate] + (header[2] >> 1 & 1)


def _next_frame(file: BinaryIO, at: int, size: int) -> int | None:
    """The first place from `at` on where one frame follows another, or the last one ends the file."""
    file.seek(at)
    window = file.read(_SEARCHED)
    start = window.find(b"\xff")
    while start >= 0:
        if length := _length(window[start : start + 4]):
            file.seek(at + start + length)
            if at + start + length >= size or _length(file.read(4)):
                return at + start
        start = window.find(b"\xff", start + 1)
    return None


def _claimed(first: bytes, at: int) -> int | None:
    """Frames that a Xing, Info or VBRI header speaks of."""
    if first[at : at + 4] in (b"Xing", b"Info") and first[at + 7 : at + 8] and first[at + 7] & 1:
        return int.from_bytes(first[at + 8 : at + 12], "big")
    if first[36:40] == b"VBRI":
        return int.from_bytes(first[50:54], "big")
    return None
