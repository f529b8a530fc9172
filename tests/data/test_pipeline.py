"""Batches as pure functions of (seed, i), and `resolve`."""

import errno
import hashlib
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import grain
import numpy as np
import pytest
import soundfile

from hiermusic.data import pipeline
from hiermusic.data.audio_records import AudioSource, write_audio
from hiermusic.data.fingerprint import of_files
from hiermusic.data.pipeline import (
    NoTracks,
    example_batches,
    in_use,
    resolve,
    row_generators,
    token_examples,
    waveform_batches,
)
from hiermusic.data.records import read_summary
from hiermusic.data.tokenise import tokenise
from hiermusic.data.tracks import Track
from hiermusic.errors import UserError
from hiermusic.tokens.hierarchy import Hierarchy

RATE = 1000


def ramp(index: int, samples: int) -> np.ndarray:
    """Samples that name their track and place: 2000 index + time, as 16-bit numbers."""
    return ((2000 * index + 1 + np.arange(samples)) / 32768).astype(np.float32)[:, None]


def places(batch_BLC: np.ndarray) -> np.ndarray:
    return np.rint(batch_BLC[..., 0] * 32768).astype(int)


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Twelve tracks of 1.25 s in segments of half a second: two whole ones and a quarter of a second."""
    out = tmp_path_factory.mktemp("audio")
    given = [
        Track(f"t{i}", lambda i=i: (ramp(i, 1250), RATE, {"tags": str(i)}), "valid" if i < 2 else "train")
        for i in range(12)
    ]
    write_audio(given, out, RATE, 1, segment_seconds=0.5, progress=False)
    return out


def test_train_batches_are_a_function_of_seed_and_step(audio):
    first = waveform_batches(audio, "train", 300, 4, seed=1)
    again = pickle.loads(pickle.dumps(waveform_batches(audio, "train", 300, 4, seed=1)))
    other = waveform_batches(audio, "train", 300, 4, seed=2)
    assert first[0].shape == (4, 300, 1) and first[0].dtype == np.float32
    for step in (0, 3, 1000, 17):
        np.testing.assert_array_equal(first[step], again[step])
        assert (first[step] != other[step]).any()


def test_train_crops_lie_inside_their_tracks_and_visit_everything(audio):
    batches = waveform_batches(audio, "train", 300, 5, seed=0)
    starts = np.concatenate([places(batches[i]) for i in range(60)])
    assert (np.diff(starts, axis=1) == 1).all()
    tracks, offsets = np.divmod(starts[:, 0] - 1, 2000)
    assert set(tracks) == set(range(2, 12)) and offsets.min() >= 0 and offsets.max() <= 1250 - 300
    assert len(set(offsets)) > 50
    # A short last segment is lengthened by what comes before it, not by silence.
    assert (offsets == 950).any()
    # Every segment comes exactly once an epoch: 30 segments are 6 batches of 5.
    epochs = [
        np.concatenate([places(batches[i])[:, 0] - 1 for i in range(6 * epoch, 6 * epoch + 6)]) for epoch in range(3)
    ]
    for rows in epochs:
        assert np.bincount(rows // 2000).tolist() == [0, 0] + [3] * 10
    # in another order, and at other places
    assert (epochs[0] // 2000 != epochs[1] // 2000).any() and (np.sort(epochs[0]) != np.sort(epochs[1])).any()


def test_valid_batches_are_centre_crops_whatever_the_seed(audio):
    batches = waveform_batches(audio, "valid", 300, 4, seed=1)
    assert len(batches) == 1
    np.testing.assert_array_equal(batches[0], waveform_batches(audio, "valid", 300, 4, seed=9)[0])
    offsets = (places(batches[0])[:, 0] - 1) % 2000
    assert set(offsets) <= {100, 600, 950}


def test_every_held_out_segment_is_in_one_batch_of_one(audio):
    batches = waveform_batches(audio, "valid", 300, 1)
    begins = [places(batches[i])[0, 0] for i in range(len(batches))]
    assert len(begins) == 6 == len(set(begins))


@pytest.mark.parametrize("split", ["train", "valid"])
def test_processes_share_the_rows_of_a_batch(audio, split):
    whole = waveform_batches(audio, split, 300, 6, seed=1)
    rows = [(0, 1), (2, 5), (3, 4)]
    parts = [waveform_batches(audio, split, 300, 6, seed=1, rows=part) for part in rows]
    assert all(len(part) == len(whole) or split == "train" for part in parts)
    for step in (0, 5) if split == "train" else range(len(whole)):
        for part, held in zip(parts, rows, strict=True):
            np.testing.assert_array_equal(part[step], whole[step][list(held)])


def test_small_sets_fill_a_batch_and_say_so(audio, capsys):
    batches = waveform_batches(audio, "valid", 500, 16)
    assert len(batches) == 1 and batches[0].shape == (16, 500, 1)
    assert "hint: " in capsys.readouterr().err
    waveform_batches(audio, "train", 500, 30)
    assert capsys.readouterr().err == ""
    waveform_batches(audio, "train", 500, 31)
    assert capsys.readouterr().err.count("hint: ") == 1


def test_short_tracks_are_padded_with_zeros(tmp_path):
    write_audio([Track("a", lambda: (ramp(0, 40), RATE, {}))], tmp_path, RATE, 1, segment_seconds=0.1, progress=False)
    batch_BLC = waveform_batches(tmp_path, "train", 100, 2)[0]
    assert batch_BLC.shape == (2, 100, 1)
    np.testing.assert_array_equal(batch_BLC[0, :40], ramp(0, 40))
    assert (batch_BLC[:, 40:] == 0).all()
    with pytest.raises(NoTracks, match=r"no valid tracks \(1 train\)"):
        waveform_batches(tmp_path, "valid", 100, 2)


def test_crops_longer_than_segments_are_refused(audio):
    with pytest.raises(UserError, match="501 samples does not fit"):
        waveform_batches(audio, "train", 501, 2)


@pytest.fixture(scope="module")
def tokens(audio, tmp_path_factory):
    """Ten tracks to train on and two held out, codes of three levels."""
    out = tmp_path_factory.mktemp("tokens")
    tokenise(
        lambda sounds: (np.repeat(places(wav_LC[None])[0, ::10, None] // 2000, 3, 1) for wav_LC in sounds),
        *(audio, out, Hierarchy.uniform(3, 100, 1024), 2, "fake"),
        progress=False,
    )
    return out


def test_token_examples(tokens):
    first, again = (token_examples(tokens, "train", 3, "coarse") for _ in range(2))
    other = token_examples(tokens, "train", 4, "coarse")
    names = [[dataset[i]["meta"]["id"] for i in range(30)] for dataset in (first, again, other)]
    assert names[0] == names[1] != names[2]
    for epoch in range(3):
        assert len(set(names[0][10 * epoch : 10 * epoch + 10])) == 10
    assert names[0][:10] != names[0][10:20]
    example = first[5]
    assert example["codes"].shape == (125, 2) and example["meta"]["tags"] == str(example["codes"][0, 0])
    valid = token_examples(tokens, "valid", 3)
    assert len(valid) == 2 and valid[0]["codes"].shape == (125, 3)
    with pytest.raises(NoTracks, match="no test tracks"):
        token_examples(tokens, "test")


def test_batches_of_examples_are_a_function_of_seed_batch_and_row(tokens):
    def names(examples):
        return [example["meta"]["id"] for example in examples]

    def made(seed=3, rows=range(4), split="train"):
        return example_batches(tokens, split, seed, "coarse", 4, rows)

    whole, one_by_one = made(), token_examples(tokens, "train", 3, "coarse")
    for index in (0, 2, 50):
        assert names(whole[index]) == names(one_by_one[4 * index + row] for row in range(4))
        assert names(made(rows=(1, 3))[index]) == names(whole[index][row] for row in (1, 3))
    assert names(whole[0] + whole[1]) != names(made(seed=4)[0] + made(seed=4)[1])
    # ten tracks are an epoch: two of them are five batches, the second in another order
    epochs = [name for index in range(5) for name in names(whole[index])]
    assert len(set(epochs[:10])) == len(set(epochs[10:])) == 10 and epochs[:10] != epochs[10:]
    assert whole[0][0]["codes"].shape == (125, 2)
    valid = made(split="valid")
    assert len(valid) == 1 and sorted(names(valid[0])) == ["t0", "t0", "t1", "t1"]  # filled up


def test_every_row_of_every_batch_draws_from_a_generator_of_its_own():
    drawn = {
        (seed, index, row): row_generators(seed, index, [row])[0].integers(2**62)
        for seed in (0, 3)
        for index in (0, 7)
        for row in (0, 1, 5)
    }
    whole_batch = {np.random.default_rng((seed, index)).integers(2**62) for seed in (0, 3) for index in (0, 7)}
    assert len({*drawn.values(), *whole_batch}) == 12 + 4
    together = [generator.integers(2**62) for generator in row_generators(3, 7, (5, 0))]
    assert together == [drawn[3, 7, 5], drawn[3, 7, 0]]


@pytest.fixture
def music(tmp_path) -> Path:
    place = tmp_path / "music"
    place.mkdir()
    for index in range(3):
        soundfile.write(place / f"{index}.wav", ramp(index, 1250), RATE)
    (place / "empty.wav").write_bytes(b"")
    return place


def test_resolve_writes_once_and_tells_what_was_skipped(music, tmp_path, capsys):
    cache = tmp_path / "cache"
    out = resolve(music, cache, RATE, 1, progress=False)
    told = capsys.readouterr()
    assert out.parent == cache and told.out == "" and "empty.wav: is empty" in told.err
    stamps = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    assert resolve(music, cache, RATE, 1, progress=False) == out
    assert resolve(out, cache, RATE, 1, progress=False) == out
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == stamps
    assert capsys.readouterr().err == ""
    assert resolve(music, cache, 2 * RATE, 1, progress=False) != out
    (music / "0.txt").write_text("la")
    assert resolve(music, cache, RATE, 1, progress=False) != out
    with pytest.raises(UserError, match="holds 1 channels at 1000 Hz where 2 at 1000"):
        resolve(out, cache, RATE, 2)


def test_music_is_known_by_its_content(tmp_path, capsys):
    music, cache = tmp_path / "music", tmp_path / "cache"
    music.mkdir()
    for index in range(4):
        soundfile.write(music / f"{index}.wav", ramp(index, 500), RATE)
    out = resolve(music, cache, RATE, 1, progress=False)
    capsys.readouterr()
    for file in music.iterdir():
        os.utime(file, ns=(1, 1))
    assert resolve(music, cache, RATE, 1, progress=False) == out and capsys.readouterr().err == ""
    stamp = (music / "2.wav").stat()
    for index in (2, 3):  # other music of the same length, size and time
        soundfile.write(music / f"{index}.wav", ramp(index + 4, 500), RATE)
        os.utime(music / f"{index}.wav", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    other = resolve(music, cache, RATE, 1, progress=False)
    assert other != out and AudioSource(other).tracks != AudioSource(out).tracks
    assert in_use(music, cache) == other and capsys.readouterr().err == f"{read_summary(other)}\n"
    assert resolve(music, cache, RATE, 1, progress=False) == other and capsys.readouterr().err == ""
    for index in (2, 3):
        soundfile.write(music / f"{index}.wav", ramp(index, 500), RATE)
    assert resolve(music, cache, RATE, 1, progress=False) == in_use(music, cache) == out
    assert in_use(other, cache) == other and in_use(music, tmp_path / "none") is None


def test_every_byte_of_a_file_counts(tmp_path):
    content = bytearray(np.random.default_rng(0).bytes(1 << 20))
    path, memory = tmp_path / "long.wav", tmp_path / "memory" / "files.json"
    path.write_bytes(content)
    stamp = path.stat()
    (before,) = of_files([path], memory)
    assert of_files([path]) == of_files([path], memory) == [before]
    for place in (0, 300_001, len(content) - 1):
        content[place] ^= 1
        path.write_bytes(content)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # as an editor that keeps the time leaves it
        (now,) = of_files([path], memory)
        assert now not in (before, None)
        before = now
    os.utime(path)
    assert of_files([path, tmp_path, tmp_path / "gone"], memory) == [before, None, None]


def test_what_was_not_written_to_is_not_read_again(tmp_path, monkeypatch):
    places, memory = [tmp_path / "a.wav", tmp_path / "b.wav"], tmp_path / "files.json"
    for place in places:
        place.write_bytes(place.name.encode())
    found, read = of_files(places, memory), []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, how: read.append(str(file.name)) or digest(file, how))
    assert of_files(places, memory) == found and not read
    os.utime(places[1], ns=(1, 1))
    assert of_files(places, memory) == found and read == [str(places[1])]
    for damage in ("", "[]", '{"a": 1}'):
        memory.write_text(damage)
        assert of_files(places, memory) == found


def test_a_fault_of_the_machine_is_no_other_file(tmp_path, monkeypatch):
    (tmp_path / "a.wav").write_bytes(b"a")
    monkeypatch.setattr("hiermusic.errors._PAUSES", (0.0,))

    def none_left(file, how):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(hashlib, "file_digest", none_left)
    with pytest.raises(OSError, match="Too many open files"):
        of_files([tmp_path / "a.wav"])


def test_the_processes_of_a_run_share_the_writing(tmp_path, monkeypatch):
    for index in range(33):
        soundfile.write(tmp_path / f"{index:02d}.wav", ramp(index, 500), RATE)
    alone = resolve(tmp_path, tmp_path / "alone", RATE, 1, progress=False)
    waited = []
    monkeypatch.setattr(pipeline, "wait_for_all", waited.append)
    for which in (1, 0):
        monkeypatch.setattr(pipeline, "workers", lambda which=which: (which, 2))
        out = resolve(tmp_path, tmp_path / "together", RATE, 1, progress=False)
        assert len(list(out.glob("*.arrayrecord"))) == 2 - which and (out / "info.json").is_file() == (which == 0)
    assert waited == [f"files of {tmp_path}", f"records {out.name}"] * 2
    assert len(AudioSource(alone)) == 33
    for name in ("info.json", *(path.name for path in alone.glob("*.arrayrecord"))):
        assert (out / name).read_bytes() == (alone / name).read_bytes()


@pytest.mark.parametrize(("which", "wanted"), [(0, ["read", "wait", "wait"]), (1, ["wait", "read", "wait"])])
def test_one_process_reads_a_folder_before_the_others(tmp_path, monkeypatch, which, wanted):
    steps, source = [], SimpleNamespace(fingerprint="f", name="music", tracks=[])
    monkeypatch.setattr(pipeline, "workers", lambda: (which, 2))
    monkeypatch.setattr(pipeline, "wait_for_all", lambda name: steps.append("wait"))
    monkeypatch.setattr(pipeline, "open_source", lambda *_: steps.append("read") or source)
    monkeypatch.setattr(pipeline, "write_audio", lambda *_, **how: None)
    resolve(tmp_path, tmp_path / "cache", RATE, 1, progress=False)
    assert steps == wanted


def test_a_damaged_shard_is_named_from_within_the_pipeline(audio, tmp_path):
    copy = shutil.copytree(audio, tmp_path / "audio")
    path = copy / "audio-00000-of-00001.arrayrecord"
    data = bytearray(path.read_bytes())
    for place in range(100, 20_000, 100):
        data[place] ^= 1
    path.write_bytes(data)
    batches = waveform_batches(copy, "train", 300, 4).to_iter_dataset(grain.ReadOptions(num_threads=2))
    with pytest.raises(UserError, match=r"audio-00000-of-00001.arrayrecord cannot be read"):
        for _ in zip(range(20), batches, strict=False):
            pass


def test_resolve_names_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match="/no/such/music does not exist"):
        resolve("/no/such/music", tmp_path, RATE, 1)
    with pytest.raises(UserError, match="no finished audio records"):
        resolve(tmp_path, tmp_path, RATE, 1, kind="records")
    with pytest.raises(UserError, match="kind 'tape'"):
        resolve(tmp_path, tmp_path, RATE, 1, kind="tape")


def test_the_records_of_a_folder_play_back(music, tmp_path):
    source = AudioSource(resolve(music, tmp_path / "cache", RATE, 1, progress=False))
    np.testing.assert_array_equal(source.track(1), ramp(1, 1250))


def test_crops_are_of_all_stems_that_are_asked_for(tmp_path):
    def track(i):
        vocals, instrumental = np.full((1250, 1), 0.25 + i / 100), np.full((1250, 1), -0.25 - i / 50)
        return {"vocals": vocals.astype(np.float32), "instrumental": instrumental.astype(np.float32)}, RATE, {}

    given = [Track(f"t{i}", lambda i=i: track(i), "valid" if i < 2 else "train") for i in range(8)]
    stems = ("mix", "vocals", "instrumental")
    write_audio(given, tmp_path, RATE, 1, segment_seconds=0.5, stems=stems, progress=False)

    def heard(split, *wanted, count):
        batches = waveform_batches(tmp_path, split, 250, 6, stems=wanted)
        return np.sort([batches[i][row, 0, 0] for i in range(count) for row in range(6)])

    vocals, both = heard("train", "vocals", count=3), heard("train", "vocals", "instrumental", count=6)
    assert (vocals > 0.2).all() and len(np.unique(vocals)) == 6
    np.testing.assert_array_equal(both[both > 0], vocals)  # an epoch of each
    assert len(np.unique(both[both < 0])) == 6 and len(both) == 2 * len(vocals)
    assert np.abs(heard("train", "mix", count=3)).max() < 0.1
    held = heard("valid", "vocals", "instrumental", count=2)
    assert (held > 0).any() and (held < 0).any() and np.abs(held).max() < 0.27
    with pytest.raises(UserError, match="drums"):
        waveform_batches(tmp_path, "train", 250, 6, stems=("drums",))
