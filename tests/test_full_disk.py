"""A disk that really is full: one line, and nothing half-written under a name that counts."""

import os
import subprocess
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hiermusic.audio import files
from hiermusic.data import audio_records, records, token_records
from hiermusic.data.tracks import Track
from hiermusic.errors import UserError, is_disk_full, replacing, write_atomically
from hiermusic.tokens.hierarchy import Hierarchy
from hiermusic.train.log import Log, read_metrics

SIZE = 1 << 20


@pytest.fixture
def disk(tmp_path):
    """A file system of one mebibyte."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"mounting a small disk is not permitted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def fill(disk: Path, leaving: int) -> None:
    (disk / "filler").write_bytes(bytes(SIZE - leaving))


def others(disk: Path) -> list[str]:
    found = (path for path in disk.rglob("*") if path.is_file() and path.name != "filler")
    return sorted(path.relative_to(disk).as_posix() for path in found)


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (samples, 2)).astype(np.float32)


def test_the_old_file_stands_and_the_room_is_given_back(disk):
    (disk / "a.txt").write_text("old")
    with pytest.raises(UserError, match=r"the disk is full: .*a\.txt cannot be written; free some space"):
        with replacing(disk / "a.txt") as temporary:
            temporary.write_bytes(bytes(2 * SIZE))
    assert others(disk) == ["a.txt"] and (disk / "a.txt").read_text() == "old"
    fill(disk, 3 * 4096)


def test_sounds(disk):
    with pytest.raises(UserError, match=r"the disk is full: .*song\.wav") as caught:
        files.write(disk / "song.wav", noise(SIZE), 44_100)
    assert others(disk) == [] and "\n" not in str(caught.value)


def tracks(count: int) -> list[Track]:
    return [Track(f"t{i}", lambda: (noise(44_100), 44_100, {})) for i in range(count)]


def write(place: Path) -> records.Summary:
    return audio_records.write_audio(tracks(8), place, 44_100, 2, shards=4, progress=False)


def test_audio_records_go_on_where_the_disk_was_full(disk, tmp_path):
    with pytest.raises(UserError, match=r"the disk is full: .*audio-0000.-of-00004\.arrayrecord") as caught:
        write(disk / "records")
    assert "\n" not in str(caught.value)
    left = others(disk)
    assert not [name for name in left if name.endswith(".tmp") or name.endswith(("info.json", "tracks.jsonl"))]
    finished = [name for name in left if name.endswith(".arrayrecord")]
    assert 0 < len(finished) < 4 and len(finished) == sum(name.endswith(".jsonl") for name in left)
    subprocess.run(["mount", "-o", f"remount,size={8 * SIZE}", disk], check=True)
    write(disk / "records")
    write(tmp_path / "whole")
    for name in ("info.json", "tracks.jsonl", *(path.name for path in (tmp_path / "whole").glob("*.arrayrecord"))):
        assert (disk / "records" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_token_records_keep_no_half_of_a_shard(disk):
    fill(disk, 64 * 1024)
    codes_TK = np.random.default_rng(0).integers(0, 1024, (4000, 64))

    def encode(index):
        return codes_TK, {"id": str(index), "split": "train", "seconds": 1.0, "meta": {}}

    with pytest.raises(UserError, match="the disk is full"):
        token_records.write_tokens(
            2,
            partial(map, encode),
            disk / "t",
            Hierarchy.uniform(64, Fraction(21), 1024),
            2,
            settings={},
            progress=False,
        )
    assert others(disk) == ["t/parts/made.json", "t/parts/plan.json"]


@pytest.mark.parametrize("leaving", [0, 4096])
def test_json(disk, leaving):
    fill(disk, leaving)
    with pytest.raises(UserError, match="the disk is full"):
        write_atomically(disk / "info.json", "x" * 10_000)
    assert others(disk) == []


def test_training_ends_where_its_log_cannot_grow(disk):
    log = Log(disk)
    with pytest.raises(UserError, match="the disk is full"):
        for step in range(1, 100_000):
            log.write(step, {"loss": 1.0, "ce_K": np.zeros(64)})
    with pytest.raises(UserError, match="the disk is full"):
        log.close()
    assert len(read_metrics(disk)) >= step - 1 > 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_an_answer_that_cannot_be_written_is_no_success():
    command = [sys.executable, "-m", "hiermusic", "-h"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert done.returncode == 1
    assert done.stderr == "hiermusic: standard output cannot be written: No space left on device\n"


def test_other_failures_are_not_taken_for_it():
    assert not is_disk_full(OSError(2, "No such file or directory")) and not is_disk_full(None)
    assert is_disk_full(RuntimeError("write() failed: No space left on device; writing x"))
