"""Audio records: exact round trips, splits, broken inputs, and runs that were killed."""

import json
import os
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hiermusic.data import ahead, audio_records, records
from hiermusic.data.audio_records import AudioSource
from hiermusic.data.sources import open_source
from hiermusic.data.token_records import TokenSource
from hiermusic.data.tracks import Track
from hiermusic.errors import UserError

from .noise import RATE, digests, noise, tracks, write


def test_how_far_writing_has_come_is_told_by_who_writes_first(tmp_path, monkeypatch):
    told, bar = [], records.bar
    monkeypatch.setattr(records, "bar", lambda unit, total, **how: told.append((unit, total, how)) or bar(unit, total))
    for name, worker in (("one", (0, 1)), ("two", (1, 2))):
        write(tmp_path / name, tracks(3), progress=True, worker=worker)
    write(tmp_path / "three", tracks(3))
    (_, _, first), (_, _, second), (_, _, quiet) = told
    assert told[0][:2] == ("track", 3) and first == {"label": "reading audio", "shown": True}
    assert not second["shown"] and not quiet["shown"]


@pytest.mark.parametrize("change", [{"seconds": []}, {"splits": []}, {"division": {"given": 1}}])
def test_a_summary_that_cannot_be_told_is_refused(tmp_path, change):
    write(tmp_path, tracks(2))
    info = json.loads((tmp_path / "info.json").read_text())
    (tmp_path / "info.json").write_text(json.dumps(info | change))
    with pytest.raises(UserError, match=r"info\.json cannot be read .*: remove the folder"):
        records.read_summary(tmp_path)


DEEP = "[" * 100_000  # on which a parser gives up with another error than on what is no JSON


def test_notes_of_a_begun_run_that_are_no_notes_are_written_anew(tmp_path):
    write(tmp_path, tracks(2), worker=(0, 2), shards=2)
    for name in ("00000.jsonl", "00001.jsonl"):
        (tmp_path / "parts" / name).write_text(DEEP + "\n")
    assert write(tmp_path, tracks(2), shards=2).tracks == 2
    (tmp_path / "info.json").unlink()
    (tmp_path / "parts" / "plan.json").write_text(DEEP)
    with pytest.raises(UserError, match=r"plan\.json cannot be read .*: remove the folder"):
        write(tmp_path, tracks(2))


def test_round_trip_is_exact(tmp_path):
    written = write(tmp_path, tracks(5), shards=2)
    source = AudioSource(tmp_path)
    assert written.tracks == len(source) == 5 and written.skipped == ()
    assert sorted(p.name for p in tmp_path.glob("*.arrayrecord")) == [
        "audio-00000-of-00002.arrayrecord",
        "audio-00001-of-00002.arrayrecord",
    ]
    for index, entry in enumerate(source.tracks):
        np.testing.assert_array_equal(source.track(index), noise(index, 2000 + index))
        assert entry["id"] == f"t{index:03d}" and entry["meta"] == {"tags": f"tag {index}", "lyrics": "ü\nö"}
    assert len(source.segment(0)) == 800
    train, valid = source.segments("train"), source.segments("valid")
    assert sorted([*train[:, 0], *valid[:, 0]]) == list(range(15))
    info = json.loads((tmp_path / "info.json").read_text())
    assert info["sample_rate"] == RATE and info["channels"] == 1 and info["segment_seconds"] == 0.1
    assert info["splits"] == {"train": 4, "valid": 1} and info["skipped"] == []


def test_tracks_of_whole_segments_lie_side_by_side(tmp_path):
    """Of 800 samples: 1,600 are two of them and nothing behind, where the next track begins."""
    sounds = [noise(seed, samples) for seed, samples in enumerate((1600, 800, 900))]
    write(tmp_path, [Track(f"t{i}", lambda wav_LC=wav_LC: (wav_LC, RATE, {})) for i, wav_LC in enumerate(sounds)])
    source = AudioSource(tmp_path)
    for index, wav_LC in enumerate(sounds):
        np.testing.assert_array_equal(source.track(index), wav_LC)


def test_directories_differ_in_the_tracks_that_one_alone_has_with_this_sound(tmp_path):
    changed = Track("t001", lambda: (noise(9, 2000), RATE, {}))
    write(tmp_path / "one", tracks(3))
    write(tmp_path / "two", [tracks(1)[0], changed])
    assert audio_records.differences(tmp_path / "one", tmp_path / "two") == (2, 1)
    assert audio_records.differences(tmp_path / "one", tmp_path / "one") == (0, 0)


def test_rate_and_channels_are_brought_to_the_records(tmp_path):
    stereo = Track("s", lambda: (noise(1, 4410, 2), 44100, {}))
    seven = Track("q", lambda: (noise(2, 1600, 7), 16000, {}))
    write(tmp_path, [stereo, seven], channels=2)
    source = AudioSource(tmp_path)
    assert source.track(0).shape == (800, 2) and source.track(1).shape == (800, 2)


def test_seconds_are_those_of_the_sound_at_whatever_rate_it_came(tmp_path):
    lengths = {"a": (4000, 16000, 0.25), "b": (4410, 44100, 0.1), "c": (1000, RATE, 0.125)}
    given = [Track(name, lambda n=n, rate=rate: (noise(1, n), rate, {})) for name, (n, rate, _) in lengths.items()]
    summary = write(tmp_path, given)
    for entry in AudioSource(tmp_path).tracks:
        seconds = lengths[entry["id"]][2]
        assert (entry["seconds"], entry["samples"]) == (seconds, round(seconds * RATE))
    assert summary.seconds == pytest.approx(0.475)
    assert json.loads((tmp_path / "info.json").read_text())["seconds"] == pytest.approx(0.475)


def test_samples_round_to_the_nearest_and_clip():
    pcm_LC = audio_records.to_pcm(np.asarray([[0.4 / 32768], [0.6 / 32768], [-0.6 / 32768], [1.0], [-2.0]], np.float32))
    assert pcm_LC.dtype == np.int16 and pcm_LC.ravel().tolist() == [0, 1, -1, 32767, -32768]


def test_rounding_takes_the_memory_of_its_result(monkeypatch):
    wav_LC = np.random.default_rng(0).uniform(-1, 1, (1 << 18, 2)).astype(np.float32)
    whole_LC = audio_records.to_pcm(wav_LC)
    monkeypatch.setattr(audio_records, "_BLOCK", 1 << 12)
    tracemalloc.start()
    pcm_LC = audio_records.to_pcm(wav_LC)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * pcm_LC.nbytes
    np.testing.assert_array_equal(pcm_LC, whole_LC)


@pytest.mark.parametrize(
    ("count", "fraction", "wanted"), [(1, 0.1, 0), (2, 0.1, 1), (10, 0.1, 1), (40, 0.1, 4), (30, 0.2, 6), (9, 0.0, 0)]
)
def test_split_sizes_are_exact(tmp_path, count, fraction, wanted):
    write(tmp_path, tracks(count, 100), valid_fraction=fraction)
    source = AudioSource(tmp_path)
    assert len(source.valid) == wanted and len(source.train) == count - wanted


def test_splits_do_not_depend_on_the_order_and_follow_the_manifest(tmp_path):
    write(tmp_path / "a", tracks(20, 100))
    write(tmp_path / "b", tracks(20, 100)[::-1])
    chosen = [{s.tracks[i]["id"] for i in s.valid} for s in map(AudioSource, (tmp_path / "a", tmp_path / "b"))]
    assert chosen[0] == chosen[1] and len(chosen[0]) == 2
    given = tracks(8, 100, split="train") + [Track(f"v{t.id}", t.load, "valid") for t in tracks(3, 100)]
    write(tmp_path / "c", given)
    source = AudioSource(tmp_path / "c")
    assert [source.tracks[i]["id"] for i in source.valid] == ["vt000", "vt001", "vt002"]


def test_a_broken_track_cannot_take_the_only_valid_place(tmp_path):
    def broken():
        raise UserError("is empty")

    good = tracks(3, 100)
    for place in range(3):
        given = [Track(t.id, broken) if i == place else t for i, t in enumerate(good)]
        summary = write(tmp_path / str(place), given)
        assert summary.splits == {"train": 1, "valid": 1} and summary.skipped == ((f"t{place:03d}", "is empty"),)


def test_broken_files_are_skipped_and_named(tmp_path):
    music = tmp_path / "music"
    music.mkdir()
    tone_L = 0.3 * np.sin(np.arange(4 * RATE) / 10)
    soundfile.write(music / "good 歌.wav", tone_L, RATE)
    soundfile.write(music / "eight bit.wav", tone_L, RATE, subtype="PCM_U8")
    soundfile.write(music / "seven.wav", np.repeat(tone_L[:, None], 7, 1), RATE)
    soundfile.write(music / "one.wav", tone_L[:1], RATE)
    soundfile.write(music / "float.wav", tone_L * 2, RATE, subtype="FLOAT")
    (music / "zero.wav").write_bytes(b"")
    (music / "text.wav").write_text("this is not music\n" * 50)
    (music / "header only.wav").write_bytes((music / "eight bit.wav").read_bytes()[:44])
    soundfile.write(music / "nan.wav", np.where(np.arange(len(tone_L)) == 77, np.nan, tone_L), RATE, subtype="FLOAT")
    soundfile.write(music / "whole.mp3", tone_L, RATE)
    (music / "cut.mp3").write_bytes((music / "whole.mp3").read_bytes()[:100])
    mp3 = (music / "whole.mp3").read_bytes()
    (music / "half.mp3").write_bytes(mp3[: len(mp3) // 2])
    (music / "film.m4a").write_bytes(b"\0\0\0\x18ftypM4A " + b"\0" * 64)
    summary = write(tmp_path / "out", open_source(str(music)).tracks, channels=2)
    reasons = dict(summary.skipped)
    assert set(reasons) == {"zero.wav", "text.wav", "header only.wav", "nan.wav", "cut.mp3", "half.mp3", "film.m4a"}
    assert all(reason and "\n" not in reason and str(music) not in reason for reason in reasons.values())
    source = AudioSource(tmp_path / "out")
    lengths = {entry["id"]: entry["samples"] for entry in source.tracks}
    assert lengths["good 歌.wav"] == lengths["eight bit.wav"] == lengths["seven.wav"] == 4 * RATE
    assert lengths["one.wav"] == 1
    loud = [entry["id"] for entry in source.tracks].index("float.wav")
    assert abs(source.track(loud)).max() <= 1.0
    assert "skipped 7" in str(summary) and "zero.wav: " in str(summary)
    assert json.loads((tmp_path / "out/info.json").read_text())["skipped"] == [list(s) for s in summary.skipped]


def test_arrays_without_sense_are_skipped(tmp_path):
    given = tracks(1, 100)
    for name, wav_LC in {"empty": np.zeros((0, 1)), "inf": np.full((9, 1), np.inf)}.items():
        given.append(Track(name, lambda wav_LC=wav_LC: (wav_LC.astype(np.float32), RATE, {})))
    assert [name for name, _ in write(tmp_path, given).skipped] == ["empty", "inf"]


def test_nothing_readable_is_an_error_and_a_repaired_file_is_seen(tmp_path):
    music = tmp_path / "music"
    music.mkdir()
    (music / "a.wav").write_bytes(b"")
    for out in (tmp_path / "new" / "out", tmp_path / "out"):
        with pytest.raises(UserError, match=r"no readable audio among 1 inputs; the first: a\.wav: "):
            write(out, open_source(str(music)).tracks)
        assert sorted(tmp_path.iterdir()) == [music]
    (tmp_path / "out").mkdir()  # what was there stays
    with pytest.raises(UserError, match="no readable audio"):
        write(tmp_path / "out", open_source(str(music)).tracks)
    assert not any((tmp_path / "out").iterdir())
    own = tmp_path / "out" / "parts" / "violin.txt"
    own.parent.mkdir()
    own.write_text("bars 1 to 8")
    with pytest.raises(UserError, match="no readable audio"):
        write(tmp_path / "out", open_source(str(music)).tracks)
    assert [place for place in (tmp_path / "out").rglob("*") if place.is_file()] == [own]
    with pytest.raises(UserError, match="no finished audio records"):
        AudioSource(tmp_path / "out")
    soundfile.write(music / "a.wav", np.zeros(100), RATE)
    assert write(tmp_path / "out", open_source(str(music)).tracks).tracks == 1


@pytest.mark.parametrize("there", [0, 1, 2])
def test_of_workers_that_find_nothing_no_folder_stays_but_those_that_were_there(tmp_path, there):
    """The worker that ends last takes away what another one made."""

    def silent():
        raise UserError("no sound")

    out, given = tmp_path / "a" / "b", [Track(f"t{index}", silent) for index in range(4)]
    for place in (out.parent, out)[:there]:
        place.mkdir()
    for _ in range(2):
        assert write(out, given, shards=2, worker=(1, 2)) is None
        with pytest.raises(UserError, match="no readable audio among 4 inputs; the first: t0: no sound"):
            write(out, given, shards=2, worker=(0, 2))
        assert list(tmp_path.rglob("*")) == [out.parent, out][:there]
    write(out, tracks(2))
    assert not (out / "parts" / "made.json").exists()


def test_a_shard_of_broken_files_only_does_no_harm(tmp_path):
    def broken():
        raise UserError("is empty")

    given = [Track(f"b{i}", broken) for i in range(2)] + tracks(4, 900)
    write(tmp_path, given, shards=3)
    source = AudioSource(tmp_path)
    np.testing.assert_array_equal(source.track(3), noise(3, 903))


def test_interrupted_audio_goes_on_at_the_missing_shard(tmp_path):
    write(tmp_path / "whole", tracks(6), shards=3)
    read = []

    def counted(track: Track, stop: bool) -> Track:
        def load():
            if stop and track.id == "t003":
                raise KeyboardInterrupt
            read.append(track.id)
            return track.load()

        return Track(track.id, load)

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cut", [counted(t, True) for t in tracks(6)], shards=3)
    assert not (tmp_path / "cut/info.json").exists()
    read.clear()
    write(tmp_path / "cut", [counted(t, False) for t in tracks(6)], shards=3)
    assert sorted(read) == ["t002", "t003", "t004", "t005"]
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
    read.clear()
    write(tmp_path / "cut", [counted(t, False) for t in tracks(6)], shards=3)
    assert read == []


def test_tracks_are_read_ahead_in_their_order_but_not_all_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(ahead, "THREADS", 1)
    write(tmp_path / "one", tracks(9), shards=3)
    monkeypatch.setattr(ahead, "THREADS", 3)
    started, second = [], threading.Event()

    def watched(track: Track) -> Track:
        def load():
            started.append(track.id)
            if track.id == "t000":
                assert second.wait(60)  # until a later one has been read
                time.sleep(0.1)
                assert len(started) <= 4
            result = track.load()
            if track.id == "t001":
                second.set()
            return result

        return Track(track.id, load)

    write(tmp_path / "three", [watched(t) for t in tracks(9)], shards=3)
    assert digests(tmp_path / "one") == digests(tmp_path / "three")


def test_workers_share_the_audio_shards(tmp_path):
    write(tmp_path / "one", tracks(6), shards=3)
    assert write(tmp_path / "two", tracks(6), shards=3, worker=(1, 2)) is None
    assert write(tmp_path / "two", tracks(6), shards=3, worker=(0, 2)).splits == {"train": 5, "valid": 1}
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_a_directory_of_other_settings_is_refused(tmp_path):
    write(tmp_path, tracks(3, 100))
    with pytest.raises(UserError, match="another sample_rate"):
        write(tmp_path, tracks(3, 100), sample_rate=16000)
    with pytest.raises(UserError, match="another inputs"):
        write(tmp_path, tracks(4, 100))
    with pytest.raises(UserError, match="holds audio records where tokens"):
        TokenSource(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    write(tmp_path, tracks(2, 100))
    (tmp_path / "audio-00000-of-00001.arrayrecord").unlink()
    with pytest.raises(UserError, match="is missing"):
        AudioSource(tmp_path)


def test_only_our_own_leftovers_are_removed(tmp_path):
    for name in ("notes.tmp", "a.b.tmp", "info.json.0123abcd.tmp", "audio-00000-of-00001.arrayrecord.89abcdef.tmp"):
        (tmp_path / name).touch()
    records.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.b.tmp", "notes.tmp"]


@pytest.mark.parametrize(("which", "left"), [(0, []), (1, ["info.json.0123abcd.tmp"])])
def test_nobody_writes_before_the_first_has_removed_leftovers(tmp_path, monkeypatch, which, left):
    (tmp_path / "info.json.0123abcd.tmp").touch()
    seen = []
    monkeypatch.setattr(records, "workers", lambda: (which, 2))
    monkeypatch.setattr(records, "wait_for_all", lambda name: seen.append((name, os.listdir(tmp_path))))
    records.remove_leftovers(tmp_path)
    assert seen == [(f"leftovers of {tmp_path}", left)]


def test_what_is_skipped_for_one_reason_is_counted():
    """Silent vocals, of which a corpus has hundreds, in one line; a few by their names."""
    silent = tuple((f"s{n}", "its vocals: without a sound") for n in range(5))
    told = str(records.Summary(Path("out"), 2, 60.0, {"train": 2}, (("a", "is empty"), *silent, ("b", "is empty"))))
    assert told.splitlines()[1:] == [
        "skipped 7:",
        "  a: is empty",
        "  b: is empty",
        "  5 of one kind, s0, s1, s2 among them: its vocals: without a sound",
    ]
