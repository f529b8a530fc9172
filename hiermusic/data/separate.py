"""Vocals and accompaniment out of mixtures, by a separator that is no part of this package.

Demucs runs in a process of its own: what it is made of never enters this one. What it made of a file is kept under a
name that follows from the file, so that a run that was interrupted goes on: what one process of demucs was at,
`_AT_ONCE` files at most, is separated again.
"""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from hiermusic.console import bar, warn
from hiermusic.data.stems import INSTRUMENTAL, MIX, VOCALS
from hiermusic.errors import UserError

if TYPE_CHECKING:
    from hiermusic.data.file_sources import Listed

TOOL = "demucs"
_PARTS = {VOCALS: "vocals.wav", INSTRUMENTAL: "no_vocals.wav"}  # as --two-stems vocals names them
_AT_ONCE = 32  # files a process: it loads its weights each time


def check() -> None:
    """UserError where the separator is not installed."""
    if not shutil.which(TOOL):
        raise UserError(
            f"--separate needs {TOOL}, which is not on the PATH: pip install {TOOL} (an environment of its own will "
            "do), or give stems as docs/data.md lists them"
        )


def separated(listed: Sequence["Listed"], kept: Path) -> list["Listed"]:
    """Tracks of files, those that are mixes alone with their separated vocals and accompaniment besides.

    A file that the separator does not take is told, and stays a mix alone.

    Args:
      listed: the tracks.
      kept: the folder of what is separated; some of it may be there.
    """
    places = {id(one): kept / _key(file) for one in listed if (file := _mixture(one))}
    missing = [(one, place) for one in listed if (place := places.get(id(one))) and not _whole(place)]
    with bar("file", len(missing), label="separating", shown=bool(missing)) as shown:
        for start in range(0, len(missing), _AT_ONCE):
            group = [(_mixture(one), place) for one, place in missing[start : start + _AT_ONCE]]
            if _separate(group):  # it stops at the first file that it cannot read
                for pair in group:
                    if not _whole(pair[1]) and (problem := _separate([pair])):
                        warn(f"{pair[0]}: {TOOL} does not separate it ({problem})")
            shown.update(len(group))
    return [
        replace(one, stems={**one.stems, **{stem: [place / name] for stem, name in _PARTS.items()}})
        if (place := places.get(id(one))) and _whole(place)
        else one
        for one in listed
    ]


def _mixture(one: "Listed") -> Path | None:
    """The file of a track that has nothing but its mix."""
    files = one.stems.get(MIX, ())
    return files[0] if tuple(one.stems) == (MIX,) and len(files) == 1 else None


def _key(file: Path) -> str:
    """What a file's parts are kept under: another once it is written to."""
    try:
        state = os.stat(file)
        told = f"{os.path.realpath(file)} {state.st_size} {state.st_mtime_ns}"
    except OSError:  # it will be skipped by who reads it
        told = str(file)
    return hashlib.sha256(os.fsencode(told)).hexdigest()[:16]


def _whole(place: Path) -> bool:
    return all((place / name).is_file() for name in _PARTS.values())


def _separate(group: Sequence[tuple[Path, Path]]) -> str:
    """Separates files, each into the folder beside it; what the separator says where it does not do all of them."""
    kept = group[0][1].parent
    kept.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=kept, prefix="separating-") as scratch:
        links = []
        for file, place in group:  # two folders may hold files of one name
            links.append(Path(scratch) / f"{place.name}{file.suffix}")
            links[-1].symlink_to(file.resolve())
        command = [TOOL, "--two-stems", "vocals", "--clip-mode", "clamp", "-o", f"{scratch}/out", *map(str, links)]
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        for _, place in group:
            for made in Path(scratch, "out").glob(f"*/{place.name}"):
                if _whole(made) and not _whole(place):
                    shutil.rmtree(place, ignore_errors=True)
                    os.replace(made, place)
    if all(_whole(place) for _, place in group):
        return ""
    said = (ended.stderr or ended.stdout).strip().splitlines()
    return said[-1] if said else f"exit status {ended.returncode}"
