"""Shards and what lies beside them: few files open at once, and damage that is told and never read as music."""

import json
import os
import pickle
import random
import shutil
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hiermusic.data import shards
from hiermusic.data.audio_records import AudioSource, write_audio
from hiermusic.data.records import read_summary
from hiermusic.data.shards import Shards, shard_paths, shard_writers
from hiermusic.data.token_records import TokenSource
from hiermusic.data.tokenise import tokenise
from hiermusic.data.tracks import Track
from hiermusic.errors import UserError
from hiermusic.tokens.hierarchy import Hierarchy

RATE = 8000
LEVELS = Hierarchy.uniform(3, Fraction(RATE, 100), 1024)


def noise(seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).integers(-(2**15), 2**15, (900 + seed, 1)) / 2**15).astype(np.float32)


def tracks(count: int) -> list[Track]:
    return [Track(f"t{i:03d}", lambda i=i: (noise(i), RATE, {"lyrics": "a\u2028b", "tags": "x"})) for i in range(count)]


def write(out: Path, count: int = 6, **kwargs):
    return write_audio(tracks(count), out, RATE, 1, segment_seconds=0.05, progress=False, **kwargs)


def encode(wav_LC: np.ndarray) -> np.ndarray:
    return (np.abs(wav_LC[: len(wav_LC) // 100 * 100, 0].reshape(-1, 100)[:, :3]) * 1023).astype(np.int32)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    write(folder / "audio", shards=2)
    tokenise(partial(map, encode), folder / "audio", folder / "tokens", LEVELS, 1, "fake", shards=2, progress=False)
    return folder


def everything(path: Path) -> list:
    if path.name == "audio":
        source = AudioSource(path)
        return [(source.tracks[i], source.track(i).tobytes()) for i in range(len(source))]
    source = TokenSource(path)
    return [(source[i]["meta"], source[i]["codes"].tobytes()) for i in range(len(source))]


def opened_below(folder):
    """How many files of a folder this process has open."""
    places = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            places.append(os.readlink(link))
    return sum(place.startswith(f"{folder}/") for place in places)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files as Linux does")
def test_few_shards_are_open_at_a_time(tmp_path):
    paths = shard_paths(tmp_path, "audio", 3 * shards.MAX_OPEN)
    with shard_writers(paths, "group_size:1,uncompressed") as writers:
        for index, writer in enumerate(writers):
            writer.write(f"first of {index}".encode())
            writer.write(f"second of {index}".encode())
    source = Shards(paths)
    assert len(source) == 2 * len(paths)
    for index in random.Random(0).sample(range(len(source)), len(source)):
        assert source[index].decode() == f"{('first', 'second')[index % 2]} of {index // 2}"
        assert 0 < opened_below(tmp_path) <= shards.MAX_OPEN
    copy = pickle.loads(pickle.dumps(source))
    assert copy[5] == source[5] and len(copy) == len(source)


@pytest.mark.parametrize("kind", ["audio", "tokens"])
def test_damage_is_one_line_or_does_no_harm(folders, tmp_path, kind):
    """Cut, flipped, zeroed, emptied and garbled files: never a traceback, never other music than was written."""
    wanted, dice = everything(folders / kind), random.Random(3)
    names = sorted(path.name for path in (folders / kind).iterdir() if path.is_file())
    told = 0
    for trial in range(60):
        bad = tmp_path / str(trial) / kind
        shutil.copytree(folders / kind, bad)
        path = bad / names[trial % len(names)]
        data = bytearray(path.read_bytes())
        where = dice.randrange(len(data))
        match ("cut", "flip", "zeros", "empty", "garbage")[trial // len(names) % 5]:
            case "cut":
                del data[where:]
            case "flip":
                data[where] ^= 1 << dice.randrange(8)
            case "zeros":
                data[where : where + 64] = bytes(len(data[where : where + 64]))
            case "empty":
                data.clear()
            case _:
                data[:] = dice.randbytes(len(data))
        path.write_bytes(data)
        try:
            found = everything(bad)
        except UserError as error:
            told += 1
            assert str(bad) in str(error) and "\n" not in str(error) and len(str(error)) < 400 + len(str(bad))
        else:  # a bit that nothing hangs on: padding of a shard, a number in info.json that is only told
            assert found == wanted
    assert told >= 40


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", "[" * 99_999, '{"kind": "audio", "shards": 1e99}', '{"kind": 1' + "0" * 9000 + "}"]
)
def test_info_that_is_none(folders, tmp_path, text):
    shutil.copytree(folders / "audio", tmp_path / "audio")
    (tmp_path / "audio/info.json").write_text(text)
    for look in (AudioSource, read_summary, TokenSource):
        with pytest.raises(UserError, match=r"info.json cannot be read|holds") as told:
            look(tmp_path / "audio")
        assert len(str(told.value)) < 400 + len(str(tmp_path)) and "\n" not in str(told.value)


def test_a_flipped_bit_in_a_shard_names_the_file(folders, tmp_path):
    shutil.copytree(folders / "audio", tmp_path / "audio")
    path = tmp_path / "audio/audio-00001-of-00002.arrayrecord"
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)
    source = AudioSource(tmp_path / "audio")
    with pytest.raises(UserError, match=r"audio-00001-of-00002.arrayrecord cannot be read .*hash mismatch"):
        for index in range(len(source)):
            source.track(index)


@pytest.mark.parametrize("kind", ["audio", "tokens"])
def test_entries_that_are_not_those_written_are_told(folders, tmp_path, kind):
    shutil.copytree(folders / kind, tmp_path / kind)
    path = tmp_path / kind / "tracks.jsonl"
    path.write_text(path.read_text().replace('"train"', '"valid"', 1))  # as good an entry as the one that was written
    with pytest.raises(UserError, match=r"tracks.jsonl cannot be read \(its checksum differs"):
        {"audio": AudioSource, "tokens": TokenSource}[kind](tmp_path / kind)


@pytest.mark.parametrize("name", ["parts/00001.jsonl", "audio-00001-of-00002.arrayrecord"])
@pytest.mark.parametrize("left", [b"", None])
def test_what_a_power_cut_emptied_is_written_again(folders, tmp_path, name, left):
    shutil.copytree(folders / "audio", tmp_path / "audio")
    (tmp_path / "audio/info.json").unlink()
    if left is None:
        (tmp_path / "audio" / name).unlink()
    else:
        (tmp_path / "audio" / name).write_bytes(left)
    assert write(tmp_path / "audio", shards=2).tracks == 6
    assert everything(tmp_path / "audio") == everything(folders / "audio")


def test_half_a_part_is_written_again(folders, tmp_path):
    shutil.copytree(folders / "audio", tmp_path / "audio")
    (tmp_path / "audio/info.json").unlink()
    part = tmp_path / "audio/parts/00000.jsonl"
    part.write_text("".join(part.read_text().splitlines(keepends=True)[:-1]))
    write(tmp_path / "audio", shards=2)
    assert everything(tmp_path / "audio") == everything(folders / "audio")


def test_a_directory_begun_by_an_older_version_is_told(folders, tmp_path):
    shutil.copytree(folders / "audio", tmp_path / "audio")
    (tmp_path / "audio/info.json").unlink()
    for part in (tmp_path / "audio/parts").glob("*.jsonl"):
        entries = [json.loads(line) for line in part.open()]
        for entry in entries:
            del entry["sha256"]
        part.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with pytest.raises(UserError, match=r"begun by an older version .*remove it and start again"):
        write(tmp_path / "audio", shards=2)


def test_how_many_shards_is_settled_by_who_began(folders, tmp_path):
    shutil.copytree(folders / "audio", tmp_path / "audio")
    (tmp_path / "audio/info.json").unlink()
    assert write(tmp_path / "audio").tracks == 6
    assert len(list((tmp_path / "audio").glob("*.arrayrecord"))) == 2
