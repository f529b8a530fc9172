"""Finished songs on disk: one wav and one JSON each, made once."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from tqdm import tqdm

from hiermusic.audio import files
from hiermusic.codec.chunked import decode_long
from hiermusic.codec.codec import Codec
from hiermusic.data.records import read_json, remove_leftovers
from hiermusic.errors import write_atomically
from hiermusic.parallel.hosts import wait_for_all, workers
from hiermusic.systems.requests import Request
from hiermusic.train import checkpoint


@dataclass(frozen=True)
class Song:
    """A song as rows of codes, whether it ended itself, what decodes it, and, where they are told, the first model's
    layers alone, at which sample it ends, and at which it begins."""

    codes_RS: np.ndarray
    ended: bool
    codec: Codec
    coarse_RS: np.ndarray | None = None
    length: int | None = None
    skip: int = 0


def produce(
    requests: Sequence[Request],
    out: Path,
    make: Callable[[Sequence[Request]], list[Song]],
    runs: Mapping[str, str],
    sampling: Mapping[str, dict],
    audio: str | None = None,
    coarse_too: bool = False,
    steps: Mapping[str, int | None] = MappingProxyType({}),
) -> list[dict]:
    """Makes the songs that are not there yet and writes NAME.wav, then NAME.json with all that decided it.

    The processes of a run share what is missing: each n-th song is of one of them.

    Args:
      requests: names, prompts and seeds.
      out: the folder.
      make: requests -> songs, called once in every process with its share of what is missing, which may be nothing:
        checkpoints are read by all processes together.
      runs: the workdirs used, by role.
      sampling: settings, by role.
      audio: the file that is continued, if any.
      coarse_too: also write NAME.backbone.wav from the first model's layers.
      steps: the checkpoints used, by role; of those left out the newest.
    Returns:
      What each JSON holds.
    """
    if audio:
        files.probe(audio)  # a bad file is told before any model is loaded
    steps = {name: steps.get(name) or checkpoint.latest_step(run) for name, run in runs.items()}
    common = {"sampling": sampling, "workdirs": runs, "steps": steps, "continues": audio and _identity(audio)}
    facts = []
    for request in requests:
        prompt = request.to_json()
        name, seed = prompt.pop("name"), prompt.pop("seed")
        like = {"like": _identity(request.like)} if request.like else {}
        facts.append({"name": name, "prompt": prompt, "seed": seed, **like, **common})
    missing = [i for i, fact in enumerate(facts) if not _stands(out, fact, coarse_too)]
    remove_leftovers(out)  # waits until every process has seen what is missing
    if missing:
        which, count = workers()
        share = missing[which::count]
        made = make([requests[i] for i in share])
        for i, song in zip(share, made, strict=True):
            _write(out, facts[i], song, coarse_too)
    wait_for_all("songs")
    return [read_json(out / f"{fact['name']}.json") for fact in facts]


def _identity(path: str) -> dict[str, str]:
    with open(path, "rb") as file:
        return {"path": path, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _stands(out: Path, fact: dict, coarse_too: bool) -> bool:
    path = out / f"{fact['name']}.json"
    sounds = (".wav", ".backbone.wav") if coarse_too else (".wav",)
    if not (path.is_file() and all(path.with_suffix(suffix).is_file() for suffix in sounds)):
        return False
    try:
        stored = read_json(path)
    except ValueError:  # someone else's file, or a damaged one
        return False
    return isinstance(stored, dict) and all(stored.get(name) == value for name, value in fact.items())


def _write(out: Path, fact: dict, song: Song, coarse_too: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path, rate = out / f"{fact['name']}.wav", song.codec.sample_rate
    if coarse_too:
        coarse_LC = decode_long(song.codec, song.coarse_RS)
        files.write(path.with_suffix(".backbone.wav"), coarse_LC, rate)
    wav_LC = decode_long(song.codec, song.codes_RS, length=song.length)[song.skip :]
    files.write(path, wav_LC, rate)
    whole = fact | {"wav": str(path), "seconds": round(len(wav_LC) / rate, 3), "ended": song.ended}
    write_atomically(path.with_suffix(".json"), json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error as a function of (done, total)."""
    with tqdm(desc=name, file=sys.stderr) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show
