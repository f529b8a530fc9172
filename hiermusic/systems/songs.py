"""Finished songs on disk: one wav, its codes and one JSON each, made once."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from hiermusic.audio import files, measure
from hiermusic.audio.limiter import limit
from hiermusic.codec.chunked import decode_long
from hiermusic.codec.codec import Codec
from hiermusic.console import bar, warn
from hiermusic.data.arrays import write_npz
from hiermusic.data.records import read_json, remove_leftovers
from hiermusic.errors import reading, write_atomically
from hiermusic.parallel import memory
from hiermusic.parallel.hosts import wait_for_all, workers
from hiermusic.systems.requests import Request
from hiermusic.tokens.prompt import excess
from hiermusic.tokens.vocabulary import TextTokenizer
from hiermusic.train import checkpoint

TOGETHER = 64  # songs that are made at once when nobody says and there is room; on disk before the next are begun
T = TypeVar("T")
SHORT = 0.8  # songs of a smaller share of the length asked for are told


@dataclass(frozen=True)
class Song:
    """A song as packets of codes, whether it ended itself, what decodes it, the codes of its other versions by their
    names, and, where they are told, at which sample it ends and at which it begins."""

    codes_PS: np.ndarray
    ended: bool
    codec: Codec
    versions: Mapping[str, np.ndarray] = field(default_factory=dict)
    length: int | None = None
    skip: int = 0


class Need(NamedTuple):
    """What a model takes of the memory of its devices together, in bytes: for itself, and for every song."""

    weights: int
    song: int

    @classmethod
    def of(cls, make: Callable[[], nnx.Module], song: int) -> "Need":
        """That of what `make` makes, read from shapes alone."""
        held = jax.tree.leaves(nnx.eval_shape(make))
        return cls(sum(one.size * one.dtype.itemsize for one in held), song)


def produce(
    requests: Sequence[Request],
    out: Path,
    make: Callable[[Sequence[Request]], list[Song]],
    runs: Mapping[str, str],
    sampling: Mapping[str, dict],
    audio: str | None = None,
    versions: Sequence[str] = (),
    steps: Mapping[str, int | None] = MappingProxyType({}),
    rows: int | None = None,
    mesh: Mesh | None = None,
    needs: Callable[[], Sequence[Need]] = tuple,
) -> list[dict]:
    """Makes the songs that are not there yet and writes NAME.wav, NAME.npz with its codes as `hiermusic decode` reads
    them, then NAME.json with all that decided it.

    The processes of a run share what is missing: each n-th song is of one of them. Over a mesh, which spans the devices
    of all, they make all of a batch together and then share decoding and writing. What exceeds full scale is limited;
    that, and a song far shorter than asked for, is told on standard error. A JSON also holds the sound's peak, share of
    samples beyond full scale and loudness in LUFS before the limiter.

    Args:
      requests: names, prompts and seeds.
      out: the folder.
      make: requests -> songs, called as often in every process, with at most `rows` of its share of what is missing,
        which may be nothing: checkpoints are read by all processes together.
      runs: the workdirs used, by role.
      sampling: settings, by role.
      audio: the file that is continued, if any.
      versions: of each song, those that are also written, as NAME.VERSION.wav.
      steps: the checkpoints used, by role; of those left out the newest.
      rows: songs that are made at once; when left out TOGETHER, or as many as there is room for: their caches are in
        memory together.
      mesh: of the models, if they lie on one.
      needs: those of the models, one of which is in memory at a time; asked for where `rows` is left out.
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
    missing = [i for i, fact in enumerate(facts) if not _stands(out, fact, versions)]
    remove_leftovers(out)  # waits until every process has seen what is missing
    if missing:
        which, count = workers() if mesh is None else (0, 1)
        rows = rows or _together(needs(), mesh, -(-len(missing) // count))
        for start in range(0, len(missing), rows * count):
            share = missing[start + which : start + rows * count : count]
            made = zip(share, make([requests[i] for i in share]), strict=True)
            for i, song in made if mesh is None else _own(made):
                _write(out, facts[i], song, versions)
    wait_for_all("songs")
    return [read_json(out / f"{fact['name']}.json") for fact in facts]


def _together(needs: Sequence[Need], mesh: Mesh | None, songs: int) -> int:
    """How many of a process's songs are made at once when nobody says; told where that is not all of them."""
    room = memory.room() * (mesh.size if mesh else 1)
    fitting = [max((room - need.weights) // need.song, 1) for need in needs]
    rows = memory.least(min([TOGETHER, *fitting]))
    if rows < songs and workers()[0] == 0:
        why = "" if rows == TOGETHER else f", which fit beside the model into {room / 2**30:.3g} GiB"
        warn(f"{songs} songs are made {rows} at a time{why}; --rows says otherwise")
    return rows


def _own(made: Iterable[T]) -> Iterator[T]:
    """Of what all processes made together, what this one writes."""
    which, count = workers()
    return islice(made, which, None, count)


def _identity(path: str) -> dict[str, str]:
    with reading(path, "what to go by"), open(path, "rb") as file:
        return {"path": path, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _stands(out: Path, fact: dict, versions: Sequence[str]) -> bool:
    path = out / f"{fact['name']}.json"
    beside = (".wav", ".npz", *(f".{version}.wav" for version in versions))
    try:
        if not all(path.with_suffix(suffix).stat().st_size for suffix in beside):  # as a power cut leaves them
            return False
        stored = read_json(path)
    except (OSError, ValueError, RecursionError):  # none, someone else's file, or a damaged one
        return False
    if not isinstance(stored, dict) or any(stored.get(name) != value for name, value in fact.items()):
        return False
    told = stored.get("versions")
    return not versions or (isinstance(told, dict) and set(versions) <= set(told))


def _write(out: Path, fact: dict, song: Song, versions: Sequence[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{fact['name']}.wav"
    rate = song.codec.sample_rate
    wav_LC = decode_long(song.codec, song.codes_PS, length=song.length)[song.skip :]
    made = len(wav_LC) / rate
    asked = fact["prompt"]["seconds"]
    whole = fact | {"wav": str(path), "seconds": round(made, 3), "ended": song.ended}
    if versions:
        sounds = {name: (path.with_suffix(f".{name}.wav"), song.versions[name]) for name in versions}
        whole["versions"] = {
            name: write_sound(place, decode_long(song.codec, codes_PS), rate)
            for name, (place, codes_PS) in sounds.items()
        }
    whole |= write_sound(path, wav_LC, rate)
    codes_SP, length = song.codes_PS.T.astype(np.uint16), len(wav_LC) + song.skip
    write_npz(path.with_suffix(".npz"), {"codes": codes_SP, "length": length, "sample_rate": rate})
    if made < SHORT * asked:
        warn(f"{fact['name']}: ended itself after {made:.1f} s of the {asked:g} s asked for")
    write_atomically(path.with_suffix(".json"), json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


def write_sound(path: Path, wav_LC: np.ndarray, rate: int) -> dict[str, float | None]:
    """Writes a sound within full scale; its peak, clipped share and loudness in LUFS as it was made."""
    facts = {"peak": measure.peak(wav_LC), "clipped": measure.clipped_share(wav_LC)}
    loudness = measure.loudness(wav_LC, rate)
    if facts["clipped"]:
        beyond = f"{facts['clipped']:.2%} of its samples exceed full scale, the greatest {facts['peak']:.2f} times"
        warn(f"{path.name}: {beyond}: limited")
    files.write(path, limit(wav_LC, rate), rate)
    return facts | {"loudness": loudness if math.isfinite(loudness) else None}


def tell_cut(requests: Sequence[Request], words: TextTokenizer, how: Mapping[str, Any]) -> None:
    """Says which prompts, composed as `how` says, are longer than a model reads, and by how much."""
    for request in requests:
        if lost := excess(request.prompt, words, **how):
            told = f"its prompt is {lost} ids longer than the {how['limit']} read"
            warn(f"{request.name}: {told}: the end of its words is left out")


@contextmanager
def progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on standard error as a function of (done, total)."""
    with bar("step", label=name) as shown:

        def show(done: int, total: int) -> None:
            shown.total = total
            shown.update(done - shown.n)

        yield show
