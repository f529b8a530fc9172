"""Token records: exact round trips, levels of several rates, and runs that were killed."""

import json
import os
import signal
import subprocess
import sys
import threading
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hiermusic.data.audio_records import AudioSource
from hiermusic.data.token_records import TokenSource
from hiermusic.data.tokenise import tokenise
from hiermusic.errors import UserError
from hiermusic.tokens.hierarchy import Hierarchy, Level

from .noise import RATE, UNIFORM, digests, encode_uniform, tracks, write

PYRAMID = Hierarchy(
    (
        Level("slow", Fraction(RATE, 400), 512),
        Level("mid a", Fraction(RATE, 200), 1024),
        Level("mid b", Fraction(RATE, 200), 1024),
        Level("fast", Fraction(RATE, 100), 65536),
    )
)


def encode_pyramid(wav_LC: np.ndarray) -> tuple[np.ndarray, ...]:
    hops = {400: 1, 200: 2, 100: 1}
    return tuple(
        (np.abs(wav_LC[: len(wav_LC) // hop * hop, 0].reshape(-1, hop)[:, :width]) * 511).astype(np.int64)
        for hop, width in hops.items()
    )


@pytest.fixture
def audio(tmp_path):
    write(tmp_path / "audio", tracks(7), shards=2)
    return tmp_path / "audio"


def test_token_round_trip(tmp_path, audio):
    summary = tokenise(partial(map, encode_uniform), audio, tmp_path / "tokens", UNIFORM, 2, "fake", progress=False)
    source, waves = TokenSource(tmp_path / "tokens"), AudioSource(audio)
    assert summary.tracks == len(source) == 7 and source.hierarchy == UNIFORM
    for index in range(7):
        example = source[index]
        assert example["codes"].dtype == np.uint16
        np.testing.assert_array_equal(example["codes"], encode_uniform(waves.track(index)))
        assert example["meta"]["id"] == f"t{index:03d}" and example["meta"]["tags"] == f"tag {index}"
        assert example["meta"]["seconds"] == waves.tracks[index]["seconds"]
    np.testing.assert_array_equal(
        TokenSource(tmp_path / "tokens", slice(1, 4))[3]["codes"], encode_uniform(waves.track(3))[:, 1:4]
    )
    valid = TokenSource(tmp_path / "tokens", split="valid")
    assert [valid[i]["meta"]["id"] for i in range(len(valid))] == [waves.tracks[i]["id"] for i in waves.valid]
    info = json.loads((tmp_path / "tokens/info.json").read_text())
    assert info["codec"] == "fake" and info["split_at"] == 2 and info["frames"] == [20 * 7]


def test_tracks_are_read_while_others_are_encoded(tmp_path, audio, monkeypatch):
    read, whole = [threading.Event() for _ in range(7)], AudioSource.track

    def track(source, index):
        read[index].set()
        return whole(source, index)

    def encode(wav_LC):
        assert read[min(len(encoded) + 1, 6)].wait(30)
        encoded.append(wav_LC)
        return encode_uniform(wav_LC)

    encoded = []
    monkeypatch.setattr(AudioSource, "track", track)
    tokenise(partial(map, encode), audio, tmp_path / "tokens", UNIFORM, 2, "fake", progress=False)
    assert len(encoded) == 7


def test_coarse_levels_need_no_fine_files(tmp_path, audio):
    tokenise(partial(map, encode_uniform), audio, tmp_path / "tokens", UNIFORM, 2, "fake", progress=False)
    for file in (tmp_path / "tokens").glob("fine-*"):
        file.unlink()
    coarse = TokenSource(tmp_path / "tokens", "coarse")
    np.testing.assert_array_equal(coarse[4]["codes"], encode_uniform(AudioSource(audio).track(4))[:, :2])
    assert coarse.hierarchy == UNIFORM.select(0, 2)
    with pytest.raises(UserError, match="is missing"):
        TokenSource(tmp_path / "tokens", "all")


def test_a_number_of_coarse_levels_that_is_none_is_told(tmp_path, audio):
    tokenise(partial(map, encode_uniform), audio, tmp_path / "tokens", UNIFORM, 2, "fake", progress=False)
    info = json.loads((tmp_path / "tokens/info.json").read_text())
    for split_at in (0.5, 0, 6, True, "2"):
        (tmp_path / "tokens/info.json").write_text(json.dumps(info | {"split_at": split_at}))
        with pytest.raises(UserError, match=r"info\.json cannot be read .*: remove the folder"):
            TokenSource(tmp_path / "tokens", "coarse")


def test_levels_of_several_rates(tmp_path, audio):
    tokenise(partial(map, encode_pyramid), audio, tmp_path / "tokens", PYRAMID, 2, "fake", progress=False)
    wanted = encode_pyramid(AudioSource(audio).track(1))
    for got, want in zip(TokenSource(tmp_path / "tokens")[1]["codes"], wanted, strict=True):
        np.testing.assert_array_equal(got, want)
    slow, mid = TokenSource(tmp_path / "tokens", "coarse")[1]["codes"]
    np.testing.assert_array_equal(slow, wanted[0])
    np.testing.assert_array_equal(mid, wanted[1][:, :1])
    np.testing.assert_array_equal(TokenSource(tmp_path / "tokens", slice(3, 4))[1]["codes"], wanted[2])
    assert json.loads((tmp_path / "tokens/info.json").read_text())["frames"] == [35, 70, 140]


def test_codes_that_do_not_fit_are_refused(tmp_path, audio):
    for wrong in (
        lambda wav_LC: encode_uniform(wav_LC)[:, :4],
        lambda wav_LC: encode_uniform(wav_LC) - 1024,
        lambda wav_LC: encode_uniform(wav_LC) + 1024,
        encode_pyramid,
    ):
        with pytest.raises(ValueError, match="codes"):
            tokenise(partial(map, wrong), audio, tmp_path / "tokens", UNIFORM, 2, "fake", progress=False)
    with pytest.raises(UserError, match="split_at is 6"):
        tokenise(partial(map, encode_uniform), audio, tmp_path / "tokens", UNIFORM, 6, "fake", progress=False)


def test_all_levels_coarse(tmp_path, audio):
    tokenise(partial(map, encode_uniform), audio, tmp_path / "tokens", UNIFORM, 5, "fake", progress=False)
    assert not list((tmp_path / "tokens").glob("fine-*"))
    assert TokenSource(tmp_path / "tokens", "coarse")[0]["codes"].shape == (20, 5)


def test_another_codec_is_refused(tmp_path, audio):
    tokenise(partial(map, encode_uniform), audio, tmp_path / "tokens", UNIFORM, 2, "fake", progress=False)
    with pytest.raises(UserError, match="another codec"):
        tokenise(partial(map, encode_uniform), audio, tmp_path / "tokens", UNIFORM, 2, "other", progress=False)


def test_workers_share_the_shards(tmp_path, audio):
    tokenise(partial(map, encode_uniform), audio, tmp_path / "one", UNIFORM, 2, "fake", shards=3, progress=False)
    args = (audio, tmp_path / "two", UNIFORM, 2, "fake")
    assert tokenise(partial(map, encode_uniform), *args, shards=3, worker=(1, 2), progress=False) is None
    assert tokenise(partial(map, encode_uniform), *args, shards=3, worker=(0, 2), progress=False).tracks == 7
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


KILLED = """
import os, signal, sys
from functools import partial
sys.path.insert(0, os.path.dirname(sys.argv[1]))
from noise import UNIFORM, encode_uniform
from hiermusic.data.tokenise import tokenise
calls = []
def encode(wav_LC):
    calls.append(0)
    if len(calls) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return encode_uniform(wav_LC)
tokenise(partial(map, encode), sys.argv[2], sys.argv[3], UNIFORM, 2, "fake", shards=3, progress=False)
"""


def test_killed_tokenising_ends_with_the_same_files(tmp_path, audio):
    tokenise(partial(map, encode_uniform), audio, tmp_path / "whole", UNIFORM, 2, "fake", shards=3, progress=False)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, __file__, audio, tmp_path / "cut"], env=os.environ, cwd=Path(__file__).parents[2]
    )
    assert killed.returncode == -signal.SIGKILL
    left = digests(tmp_path / "cut")
    assert "coarse-00000-of-00003.arrayrecord" in left and "info.json" not in left
    encoded = []
    tokenise(
        partial(map, lambda wav_LC: encoded.append(0) or encode_uniform(wav_LC)),
        *(audio, tmp_path / "cut", UNIFORM, 2, "fake"),
        shards=3,
        progress=False,
    )
    assert len(encoded) == 5  # the first shard's two tracks were not done again
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
