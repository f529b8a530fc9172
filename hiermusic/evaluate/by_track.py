"""Measurements track by track: shared by the processes of a run, each kept on disk until all of them are there."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from hiermusic.data.arrays import write_npz
from hiermusic.data.records import remove_leftovers
from hiermusic.parallel.hosts import wait_for_all, workers

Measured = Mapping[str, np.ndarray]
# (name of the measurement, tracks, index of a track -> what is measured of it) -> the same of every track
Each = Callable[[str, int, Callable[[int], Measured]], list[Measured]]


def in_memory(name: str, count: int, measure: Callable[[int], Measured]) -> list[Measured]:
    """Measures every track here and now."""
    return [measure(index) for index in range(count)]


def on_disk(folder: Path, facts: Mapping) -> Each:
    """Measures each n-th track in one of the run's n processes, but for those whose file a killed run left.

    Args:
      folder: for the files; all processes must see it, and come here together.
      facts: JSON values that decide what is measured; files of others are not taken up.
    """
    identity = json.dumps(facts, sort_keys=True)
    place = folder / hashlib.sha256(identity.encode()).hexdigest()[:12]
    place.mkdir(parents=True, exist_ok=True)
    remove_leftovers(place)

    def each(name: str, count: int, measure: Callable[[int], Measured]) -> list[Measured]:
        paths = [place / f"{name}-{index:05d}.npz" for index in range(count)]
        which, processes = workers()
        for index in range(which, count, processes):
            if not paths[index].is_file():
                write_npz(paths[index], measure(index))
        wait_for_all(f"{name} {place}")
        return [_read(path) for path in paths]

    return each


def columns(rows: Sequence[Mapping[str, float]], kind: str = "score") -> dict[str, np.ndarray]:
    """Scores of one kind of several versions of a track as arrays, one a score."""
    return {f"{kind} {name}": np.array([row[name] for row in rows]) for name in rows[0]}


def scores_of(measured: Measured, index: int, kind: str = "score") -> dict[str, float]:
    """The scores of one kind of one version of a track, of those that `columns` took."""
    names = (name for name in measured if name.startswith(f"{kind} "))
    return {name.removeprefix(f"{kind} "): float(measured[name][index]) for name in names}


def _read(path: Path) -> Measured:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}
