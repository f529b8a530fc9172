"""Hostile files, drawn by a seed, and the readers they are given to; `python tests/fuzz/cases.py SEED N` shows one.

A case is a number: it says the kind of file, which valid one is changed, and how. The process that runs cases tells of
each on standard output, before and after; one that takes too long is ended by the system, wherever it is.
"""

import copy
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import unicodedata
import zipfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np

SECONDS = 10  # of processor time that a case may take
MEMORY = 2 << 30  # bytes that its process may grow by
MOST = 8 << 30  # bytes that it can have at all, for the machine's sake
LONGEST = 1000  # characters of an answer

Chance = random.Random

# MARK: changes


def spoil(chance: Chance, data: bytes) -> bytes:
    """Bytes with a few changes of those that damage and malice make."""
    out = bytearray(data)
    for _ in range(min(1 + int(chance.expovariate(0.7)), 8)):
        at = chance.randrange(len(out) + 1)
        if chance.random() < 0.5:  # where headers and sizes are
            at = min(at, chance.randrange(200))
        size = chance.choice((1, 2, 4, 8, 64, 1000))
        match chance.randrange(7):
            case 0:
                out[at : at + 1] = bytes((chance.randrange(256),))
            case 1:
                number = chance.choice((0, 1, 255, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, chance.randrange(1 << 32)))
                out[at : at + 4] = number.to_bytes(4, chance.choice(("little", "big")))
            case 2:
                del out[at : at + size]
            case 3:
                out[at:at] = bytes((chance.randrange(256),)) * size
            case 4:
                out[at:at] = out[: at + size][-size:]
            case 5:
                del out[at:]
            case 6:
                out[at : at + size] = chance.randbytes(size)
    return bytes(out)


DEEP = "\uf8ff deep"  # stands for what `json.dumps` cannot write
# what stands where another thing was meant
ODD = [None, True, False, 0, 1, -1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")]
ODD += ["", " ", "0", "\0", "\ud800", "é\u2028\x1b[31m", "../../etc/passwd", "x" * 3000, "1/0", "9" * 400, "NaN"]
ODD += [10**400, "/", ".", "a", "song.wav", "no", "test", "None", ["a", 1], {"a": {"a": {}}}, [1] * 1000, DEEP]
ODD += [[], {}, [[]], [None], {"": None}]
# what was never a file of a kind that we read
JUNK = [b"", b"\n", b"{", b"[]", b"null", b"[" * 100_000, b"9" * 10_000, b'{"a":' * 20_000, b"\xff\xfe", b"\0" * 1000]
JUNK += [b"PK\x03\x04", b"RIFF\xff\xff\xff\xffWAVEfmt ", b'"' + b"\\" * 9999, b"1e999999", bytes(range(256))]


def places(value: object, found: list | None = None) -> list[tuple]:
    """(container, key) of everything in a JSON value."""
    found = [] if found is None else found
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        found.append((value, key))
        places(value[key], found)
    return found


def misfit(chance: Chance, value: dict) -> dict:
    """A JSON object of which one or two entries are missing, renamed, or of another kind."""
    value = json.loads(json.dumps(value))
    for _ in range(chance.randint(1, 2)):
        if not (open_places := places(value)):
            break
        holder, key = chance.choice(open_places)
        match chance.randrange(5):
            case 0:
                holder.pop(key)
            case 1 if isinstance(holder, dict):
                holder[str(chance.choice(ODD))] = holder.pop(key)
            case _:
                holder[key] = copy.deepcopy(chance.choice(ODD))
    return value


def json_text(chance: Chance, value: object) -> bytes:
    """JSON as text; sometimes of other letters, or damaged."""
    text = json.dumps(value, ensure_ascii=chance.random() < 0.5).replace(json.dumps(DEEP), "[" * 50_000 + "]" * 50_000)
    text = text.replace(json.dumps(DEEP, ensure_ascii=False), "[" * 50_000 + "]" * 50_000)
    data = text.encode(chance.choice(("utf-8",) * 8 + ("utf-16", "utf-8-sig", "latin-1")), "replace")
    return spoil(chance, data) if chance.random() < 0.25 else data


# MARK: the valid files


@cache
def sounds() -> list[tuple[str, bytes]]:
    """A tenth of a second in every format."""
    import soundfile

    wav_LC = np.random.default_rng(0).uniform(-0.5, 0.5, (2205, 2)).astype(np.float32)
    made = []
    kinds = (("wav", "PCM_16"), ("wav", "FLOAT"), ("wav", "PCM_U8"), ("aiff", "PCM_16"), ("flac", "PCM_16"))
    for suffix, subtype in (*kinds, ("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III")):
        file = io.BytesIO()
        soundfile.write(file, wav_LC, 22050, subtype=subtype, format=suffix.upper())
        made.append((suffix, file.getvalue()))
    return made


@cache
def configurations() -> list[dict]:
    """config.json of every stage of every system, tiny."""
    from hiermusic import presets

    files = sorted((Path(__file__).parents[2] / "configs").glob("[!s]*/*.py"))
    named = ((path, "style_lora_tiny" if path.stem == "finetune" else "tiny") for path in files)
    return [json.loads(presets.read(f"{path}:{preset}").to_json_best_effort()) for path, preset in named]


@cache
def recorded() -> dict[str, Path]:
    """A folder of audio records and one of token records."""
    from hiermusic.data import audio_records, token_records
    from hiermusic.data.tracks import Track
    from hiermusic.tokens.hierarchy import Hierarchy

    root = Path(tempfile.mkdtemp(prefix="fuzz-records-"))
    rng = np.random.default_rng(0)

    def load(index: int) -> tuple[np.ndarray, int, dict]:
        return rng.uniform(-0.5, 0.5, (3000, 1)).astype(np.float32), 2000, {"tags": f"tag {index}"}

    tracks = [Track(f"song-{i}", lambda i=i: load(i), split) for i, split in enumerate(("train", "train", "valid"))]
    audio_records.write_audio(tracks, root / "audio", 2000, 1, segment_seconds=1.0, progress=False)
    hierarchy = Hierarchy.of_packets((1, 1, 2), 10, 16)

    def encode(index: int) -> tuple[tuple[np.ndarray, ...], dict]:
        codes = tuple(rng.integers(0, 16, (15 * width, count)) for width, count in ((1, 2), (2, 1)))
        return codes, {"id": f"song-{index}", "split": "train", "seconds": 1.5, "meta": {}}

    token_records.write_tokens(
        2, partial(map, encode), root / "tokens", hierarchy, 1, settings={"codec": "c"}, progress=False
    )
    return {kind: root / kind for kind in ("audio", "tokens")}


@cache
def exported() -> dict[str, bytes]:
    """An exported model in two files."""
    import jax

    from hiermusic.pretrained import export

    with tempfile.TemporaryDirectory() as place:
        weights = {"a.weight": np.ones((3, 4), np.float32), "b.bias": np.arange(5, dtype=np.int32)}
        shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()}
        export.write(
            f"{place}/m", shapes, lambda names: {n: weights[n] for n in names}, {"stage": "codec"}, {"step": 3}, {}, 40
        )
        return {path.name: path.read_bytes() for path in sorted(Path(place, "m").iterdir())}


# MARK: kinds of files, and who reads them


def audio(chance: Chance, folder: Path) -> None:
    from hiermusic.audio import files

    suffix, data = chance.choice(sounds())
    if chance.random() < 0.1:
        suffix = chance.choice(files.EXTENSIONS).lstrip(".")
    path = folder / f"song.{suffix}"
    path.write_bytes(spoil(chance, data) if chance.random() < 0.95 else chance.choice(JUNK))
    try:
        files.probe(path)
    finally:
        wav_LC, rate = files.read(path)
        assert np.isfinite(wav_LC).all() and files.RATES[0] <= rate <= files.RATES[1]
        files.oddity(wav_LC)


def sidecars(chance: Chance, folder: Path) -> None:
    from hiermusic.data import sidecars as reader

    song = folder / "song.wav"
    lines = [{"start": 0.5, "end": 1.0, "text": "la"}, {"start": 1, "end": 2, "text": "lu"}]
    row = {"lyrics": "la\nlu", "tags": ["slow", "piano"], "style": "pop", "vocals": "no", "instrumental": False}
    row |= {"split": "train", "genre": "pop", "language": "en", "description": "a song", "lines": lines}
    stamps = "".join(f"[{chance.choice(('00:01.5', '99:99', '1:1', '0000:0000.000000', '-1:0'))}]" for _ in range(9))
    lrc = f"[ti:song]\n[offset:{chance.choice(ODD)}]\n[00:00.50]la <00:00.60>la\n{stamps}lu\n[00:02]\n"
    texts = {
        ".json": json_text(chance, misfit(chance, row)),
        ".lrc": spoil(chance, lrc.encode("utf-8", "replace")),
        ".txt": spoil(chance, "la la\nlu é\n".encode(chance.choice(("utf-8", "utf-16", "latin-1")))),
    }
    for suffix, data in texts.items():
        if chance.random() < 0.6:
            song.with_suffix(suffix).write_bytes(data if chance.random() < 0.9 else chance.choice(JUNK))
    reader.sidecar_split(song)
    json.dumps(reader.sidecars(song, chance.choice((0.0, 3.0, 1e6))))


def manifests(chance: Chance, folder: Path) -> None:
    from hiermusic.data import sources

    (folder / "song.wav").write_bytes(sounds()[0][1])
    row = {"path": "song.wav", "lyrics": "la", "tags": "slow", "split": "valid", "vocals": "yes", "style": "pop"}
    rows = [row, {**row, "path": "other.wav"}]
    kind = chance.choice(("csv", "jsonl", "jsonl.gz"))
    rows = [misfit(chance, each) if chance.random() < 0.7 else each for each in rows]
    if kind == "csv":
        cells = [",".join(map(str, row)), *(",".join(map(str, each.values())) for each in rows)]
        data = spoil(chance, "\n".join(cells).encode("utf-8", "replace"))
    else:
        data = b"\n".join(json_text(chance, each) for each in rows)
    data = chance.choice(JUNK) if chance.random() < 0.05 else data
    if kind.endswith(".gz"):
        data = gzip.compress(data if chance.random() < 0.98 else bytes(1 << 25), 1)
        data = spoil(chance, data) if chance.random() < 0.3 else data
    (folder / f"list.{kind}").write_bytes(data)
    for track in sources.open_source(str(folder / f"list.{kind}")).tracks[:3]:
        taken(track.load)


def names(chance: Chance, folder: Path) -> None:
    """Sources that are not files."""
    from hiermusic.data import sources

    text = chance.choice(
        ("builtin:3?seconds=2-3&seed=1&styles=pop", "tfds:gone?split=train&audio=a&sample_rate=9", "x")
    )
    data = spoil(chance, text.encode()).decode("utf-8", chance.choice(("replace", "surrogateescape")))
    sources.open_source(data, chance.choice(("auto",) * 5 + ("builtin", "tfds", "folder", "manifest", "none")))


def prompts(chance: Chance, folder: Path) -> None:
    from hiermusic.systems import requests
    from hiermusic.tokens.prompt import compose, excess
    from hiermusic.tokens.vocabulary import TextTokenizer, Vocabulary

    row = {"name": "one", "tags": "slow", "lyrics": "la\nlu", "description": "", "genre": "pop", "language": "en"}
    row |= {"seconds": 1.5, "seed": 3, "instrumental": False, "like": "clip.wav"}
    rows = [{**row, "name": f"song {n}"} for n in range(3)]
    data = b"\n".join(json_text(chance, misfit(chance, each) if chance.random() < 0.5 else each) for each in rows)
    (folder / "p.jsonl").write_bytes(data if chance.random() < 0.95 else chance.choice(JUNK))
    words = TextTokenizer(Vocabulary.byte_level())
    for request in requests.read(folder / "p.jsonl", seed=chance.choice((0, 2**32 - 2))):
        limit = chance.choice((1, 8, 100))
        assert len(compose(request.prompt, words, limit=limit)) <= limit
        excess(request.prompt, words, limit=limit)
        json.dumps(request.to_json())


def arrays(chance: Chance, folder: Path) -> None:
    """Codes files, and vectors in an .npz or .npy file."""
    from hiermusic.codec import chunked
    from hiermusic.data import arrays as reader
    from hiermusic.systems import workdir
    from hiermusic.systems.aar.rows import Vectors
    from hiermusic.tokens.hierarchy import Hierarchy

    codes = np.arange(12, dtype=np.uint16).reshape(3, 4)
    stored: dict[str, object] = {"codes": codes, "length": np.int64(38), "sample_rate": np.int64(100)}
    if chance.random() < 0.5:
        values = (codes.astype(np.float64) * np.nan, np.array("x"), np.zeros((0, 4), np.uint16), np.int64(-1), 1e308)
        values += (np.array([{}], object), np.full((3, 4), 2**63, np.uint64), np.zeros((3, 4), bool), 10**12, 1j)
        stored[chance.choice(list(stored))] = chance.choice(values)
    if chance.random() < 0.2:
        stored.pop(chance.choice(list(stored)))
    path = folder / "a.npz"
    np.savez(path, **stored)
    if chance.random() < 0.1:
        write_bomb(path, chance.choice((1 << 20, 1 << 31)))
    if chance.random() < 0.5:
        path.write_bytes(spoil(chance, path.read_bytes()))
    file = io.BytesIO()
    np.save(file, np.arange(4).astype(chance.choice(("<f4", "<i8", "S3", "<M8[s]"))))
    (folder / "a.npy").write_bytes(spoil(chance, file.getvalue()))
    taken(reader.read_npy, folder / "a.npy", "a vector", "save one")
    taken(Vectors, str(path), 4)
    hierarchy = Hierarchy.uniform(3, 10, 16)
    sizes = {"slots": (1, 1, 1), "sample_rate": 100, "channels": 1, "packet": 10}
    lengths = {"packets": lambda length: -(-length // 10), "length": lambda packets: 10 * packets}
    codec = SimpleNamespace(hierarchy=hierarchy, config=SimpleNamespace(segments=None), **sizes, **lengths)
    with (
        patch.object(workdir, "read"),
        patch.object(workdir, "load_codec", lambda *_: codec),
        patch.object(chunked, "decode_long", lambda codec, codes_PS, length, **_: np.zeros((length, 1), np.float32)),
    ):
        workdir.decode_file("codec", str(path), str(folder / "out.wav"), None)


def write_bomb(path: Path, size: int) -> None:
    """A small .npz file of one array so large, which is not there."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed, packed.open("codes.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
        file.write(bytes(min(size, 1 << 20)))


def settings(chance: Chance, folder: Path) -> None:
    """config.json of a workdir."""
    from hiermusic.systems import workdir
    from hiermusic.train import checkpoint

    config = chance.choice(configurations())
    data = json_text(chance, misfit(chance, config)) if chance.random() < 0.97 else chance.choice(JUNK)
    (folder / "config.json").write_bytes(data)
    taken(checkpoint.steps, folder)
    taken(workdir.read, folder)
    if chance.random() < 0.05:
        taken(workdir.inspect, None, str(folder))


def records(chance: Chance, folder: Path) -> None:
    from hiermusic.data import audio_records, pipeline, token_records
    from hiermusic.data.records import read_summary

    kind = chance.choice(("audio", "tokens"))
    place = Path(shutil.copytree(recorded()[kind], folder / kind))
    for path in chance.sample([path for path in sorted(place.rglob("*")) if path.is_file()], chance.randint(1, 2)):
        if path.suffix == ".arrayrecord" or chance.random() < 0.2:
            path.write_bytes(spoil(chance, path.read_bytes()) if chance.random() < 0.9 else chance.choice(JUNK))
        else:
            lines = [path.read_bytes()] if path.suffix == ".json" else path.read_bytes().splitlines()
            lines = [json_text(chance, misfit(chance, json.loads(line))) for line in lines]
            path.write_bytes(b"\n".join(lines))
            if path.name == "tracks.jsonl" and chance.random() < 0.8:  # with a checksum that fits
                info = json.loads((recorded()[kind] / "info.json").read_text()) | {"tracks_sha256": None}
                (place / "info.json").write_text(json.dumps(info))
    taken(lambda: str(read_summary(place)))
    if kind == "audio":
        taken(lambda: pipeline.resolve(place, folder / "cache", 2000, 1, progress=False))
        taken(audio_records.differences, place, recorded()[kind])
        source = audio_records.AudioSource(place)
        source.segments("valid")
        for index in range(min(len(source), 3)):
            taken(source.track, index)
    else:
        for levels in ("coarse", "all", slice(1, 3)):
            source = token_records.TokenSource(place, levels)
            for index in range(min(len(source), 3)):
                taken(source.__getitem__, index)


def exports(chance: Chance, folder: Path) -> None:
    from hiermusic.pretrained import export
    from hiermusic.train import stored

    spoilt = chance.choice([name for name in exported() if name != "README.md"])
    for name, data in exported().items():
        if name == spoilt and name.endswith(".json") and chance.random() < 0.8:
            data = json_text(chance, misfit(chance, json.loads(data)))
        elif name == spoilt:
            size = int.from_bytes(data[:8], "little")
            if chance.random() < 0.5 and name.endswith(".safetensors"):
                head = json_text(chance, misfit(chance, json.loads(data[8 : 8 + size])))
                data = len(head).to_bytes(8, "little") + head + data[8 + size :]
            else:
                data = spoil(chance, data)
        (folder / name).write_bytes(data)
    taken(export.load, folder)
    taken(lambda: export.nested(export.shapes(folder)))
    taken(lambda: json.dumps(stored.describe(folder, None, True)))


def songs(chance: Chance, folder: Path) -> None:
    """A folder of songs to be evaluated."""
    from hiermusic.evaluate import obedience
    from hiermusic.evaluate import songs as reader

    prompt = {"tags": "slow", "lyrics": "la", "seconds": 1.0, "instrumental": False}
    facts = {"name": "one", "prompt": prompt, "seed": 1, "seconds": 0.9, "ended": True, "peak": 0.5, "clipped": 0.0}
    data = json_text(chance, misfit(chance, facts)) if chance.random() < 0.9 else chance.choice(JUNK)
    (folder / "one.json").write_bytes(data)
    (folder / "one.wav").write_bytes(sounds()[0][1])
    for song in reader.read(folder):
        obedience.asked(song.facts["prompt"])
        reader._told(song, "songs", song.facts["seconds"])


KINDS: dict[str, Callable[[Chance, Path], None]] = {
    "audio": audio,
    "sidecars": sidecars,
    "manifests": manifests,
    "names": names,
    "prompts": prompts,
    "arrays": arrays,
    "configurations": settings,
    "records": records,
    "exports": exports,
    "songs": songs,
}

# MARK: running them


def taken(action: Callable[..., object], *arguments: object) -> None:
    """Lets a reader refuse a file, in a line, before the next one gets it."""
    from hiermusic.errors import UserError

    try:
        action(*arguments)
    except UserError as error:
        _check(error)


def _check(error: Exception) -> None:
    told = str(error)
    odd = {"Cc", "Cs", "Zl", "Zp"} & {unicodedata.category(letter) for letter in told}
    assert told and len(told) <= LONGEST and not odd, f"no line to read: {told!r}"


def case(seed: int, number: int) -> tuple[str, str | None]:
    """The kind of a case, and what is wrong with how it was taken; None where nothing is."""
    kind, chance = list(KINDS)[number % len(KINDS)], Chance(f"{seed} {number}")
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        taken(KINDS[kind], chance, folder)
    except BaseException as error:
        kept = traceback.format_exception(error, chain=False)
        return kind, f"{error.__class__.__name__}: {str(error)[:200]}\n{''.join(kept[-4:])[-1500:]}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return kind, None


def peak() -> int:
    """Bytes that this process had at most; `ru_maxrss` would begin with those of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def main(seed: int, first: int, stop: int) -> None:
    """Runs cases [first, stop), one JSON object a line: before each its number, after it what was wrong."""
    warm()
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (MOST if most == resource.RLIM_INFINITY else min(MOST, most), most))
    start = peak()
    for number in range(first, stop):
        print(json.dumps({"begun": number, "kind": list(KINDS)[number % len(KINDS)]}), flush=True)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # whoever began this process may ignore it
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # when it has had its time it ends, be it in Python or in C
        _, wrong = case(seed, number)
        signal.setitimer(signal.ITIMER_PROF, 0)
        if wrong is None and peak() - start > MEMORY:
            wrong, start = f"grew by {(peak() - start) >> 20} MiB", peak()
        print(json.dumps({"done": number, "wrong": wrong}), flush=True)


def warm() -> None:
    """Imports and valid files, which belong to no case."""
    from hiermusic.systems import catalogue

    for system in catalogue.systems().values():
        assert system.rooms
    for valid in (sounds, configurations, recorded, exported):
        valid()


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    print(case(int(sys.argv[1]), int(sys.argv[2])))
