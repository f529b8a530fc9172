"""Which tracks are held out: given splits, drawn ones, and copies, which never lie on both sides."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hiermusic import cli
from hiermusic.data import splits
from hiermusic.data.audio_records import AudioSource, write_audio
from hiermusic.data.pipeline import resolve, waveform_batches
from hiermusic.data.records import read_summary
from hiermusic.data.sources import open_source
from hiermusic.data.token_records import TokenSource
from hiermusic.data.tokenise import tokenise
from hiermusic.data.tracks import Track
from hiermusic.tokens.hierarchy import Hierarchy

RATE = 1000


def divided(valid_fraction: float = 0.1, **given: str) -> tuple[dict[str, str | None], dict]:
    """The splits after division of tracks, each "SOUND" or "SOUND split", and what is told."""
    entries = []
    for name, text in given.items():
        sound, _, split = text.partition(" ")
        entries.append({"id": name, "sha256": sound, "split": split or None})
    told = splits.divide(entries, valid_fraction)
    return {entry["id"]: entry["split"] for entry in entries}, told


def count(chosen: dict[str, str | None], split: str | None) -> int:
    return list(chosen.values()).count(split)


def test_what_is_given_stands_and_the_rest_is_trained_on():
    given = {f"v{i}": f"v{i} valid" for i in range(3)} | {f"t{i}": f"t{i} train" for i in range(5)}
    chosen, told = divided(0.5, **given, x="x", y="y", z="z test")
    assert chosen == {name: text.split()[-1] for name, text in given.items()} | {
        "x": "train",
        "y": "train",
        "z": "test",
    }
    assert told == {
        "given": {"test": 1, "train": 5, "valid": 3},
        "unsplit": 2,
        "drawn": 0,
        "copies": [],
        "left_out": [],
    }
    assert splits.describe(told) == ["splits given: 1 test, 5 train, 3 valid; tracks without one: 2"]


def test_valid_is_drawn_from_tracks_without_a_split_before_train():
    given = {f"t{i}": f"t{i} train" for i in range(20)} | {"z": "z test"}
    chosen, told = divided(0.1, **given)
    assert (count(chosen, "train"), count(chosen, "valid"), chosen["z"]) == (18, 2, "test")
    assert splits.describe(told) == ["splits given: 1 test, 20 train; drawn for valid, which is not given: 2"]
    chosen, told = divided(0.1, **given, x="x")  # one alone cannot be divided
    assert count(chosen, "valid") == 2 and told["unsplit"] == 1
    chosen, _ = divided(0.5, **given, x="x", y="y")
    assert count(chosen, "valid") == 1 and {chosen["x"], chosen["y"]} == {"train", "valid"}
    assert count(divided(0.0, **given)[0], "valid") == 0


def made_by(fraction: float, artists: str) -> dict[str, set]:
    """The sides that each artist's tracks lie on; "-" is nobody."""
    entries = [
        {"id": f"t{i}", "sha256": str(i), "split": None, "meta": {} if name == "-" else {"artist": name}}
        for i, name in enumerate(artists)
    ]
    splits.divide(entries, fraction)
    sides: dict[str, set] = {}
    for entry in entries:
        sides.setdefault(entry["meta"].get("artist", entry["id"]), set()).add(entry["split"])
    return sides


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5])
def test_an_artist_lies_on_one_side(fraction):
    artists = "AAAAABBBBBCCCCC-----"
    sides = made_by(fraction, artists)
    assert all(len(side) == 1 for side in sides.values()) and {"valid"} in sides.values()
    held = sum(sides.get(name, sides.get(f"t{i}")) == {"valid"} for i, name in enumerate(artists))
    assert abs(held - max(1, round(fraction * 20))) <= (0 if fraction < 0.5 else 2)
    sides = made_by(fraction, "AAAABBBBBBBB")  # each has made more than is wanted: the one who has made least
    assert sides == {"A": {"valid"}, "B": {"train"}}
    assert made_by(fraction, "AAAAAAAAAA") == {"A": {"train", "valid"}}
    assert made_by(0.0, artists)["A"] == {"train"}


def test_artists_that_the_source_trains_on_are_not_drawn():
    names = "AAAABBBBCC"
    entries = [
        {"id": f"t{i}", "sha256": str(i), "split": "train" if i < 2 else None, "meta": {"artist": name}}
        for i, name in enumerate(names)
    ]
    splits.divide(entries, 0.25)
    held = {entry["meta"]["artist"] for entry in entries if entry["split"] == "valid"}
    assert held and "A" not in held


def test_nothing_is_told_where_nothing_is_to_tell():
    assert splits.describe(divided(**{f"t{i}": str(i) for i in range(9)})[1]) == []


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.8])
def test_copies_lie_on_one_side_whatever_is_drawn(fraction):
    given = {f"t{i}": f"{i % 8}" for i in range(20)}
    chosen, told = divided(fraction, **given)
    sides = {sound: {chosen[name] for name, other in given.items() if other == sound} for sound in given.values()}
    assert all(len(side) == 1 for side in sides.values())
    assert sum(side == {"valid"} for side in sides.values()) == max(1, round(fraction * 8))
    assert len(told["copies"]) == 12 and told["drawn"] == count(chosen, "valid") and told["left_out"] == []
    backwards, _ = divided(fraction, **dict(reversed(given.items())))
    assert backwards == chosen


def test_recordings_that_are_there_once_are_held_out_first():
    given = {f"c{i}": "same" for i in range(30)} | {f"t{i}": f"{i}" for i in range(5)}
    chosen, _ = divided(0.5, **given)
    assert count(chosen, "valid") == 3 and {chosen[f"c{i}"] for i in range(30)} == {"train"}


def test_given_splits_that_conflict():
    chosen, told = divided(
        test="a test",
        test2="a test",
        train="a train",
        valid="a valid",
        loose="a",
        valid_b="b valid",
        train_b="b train",
        train_c="c train",
        loose_c="c",
    )
    assert chosen == {
        "test": "test",
        "test2": "test",
        "train": None,
        "valid": None,
        "loose": None,
        "valid_b": "valid",
        "train_b": None,
        "train_c": "train",
        "loose_c": "train",
    }
    assert told["copies"] == [["test2", "test"], ["loose_c", "train_c"]]
    assert told["left_out"] == [["train", "test"], ["valid", "test"], ["loose", "test"], ["train_b", "valid_b"]]
    assert splits.describe(told)[1:] == [
        "exact copies of another track, kept on its side: 2 (test2 = test, loose_c = train_c)",
        "exact copies of a held-out track, left out: 4 (train = test, valid = test, loose = test and 1 more)",
    ]


def test_a_valid_split_of_copies_of_the_test_set_is_drawn_anew():
    chosen, told = divided(0.2, a="a test", b="a valid", **{f"t{i}": f"{i} train" for i in range(10)})
    assert chosen["a"] == "test" and chosen["b"] is None and count(chosen, "valid") == told["drawn"] == 2


# Through the records


def noise(seed: int, samples: int = 250) -> np.ndarray:
    return (np.random.default_rng(seed).integers(-32768, 32768, (samples, 1)) / 32768).astype(np.float32)


def sound(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(seed), RATE)


@pytest.fixture
def music(tmp_path):
    """A folder with all three splits, a loose track, and copies: in other formats, across splits and within one."""
    names = ["train/a.wav", "train/b.wav", "train/c.wav", "Validation/d.wav", "Validation/e.wav", "test/f.wav", "g.wav"]
    for seed, name in enumerate(names):
        sound(tmp_path / "music" / name, seed)
    sound(tmp_path / "music/train/copy of f.flac", 5)
    sound(tmp_path / "music/train/zz copy of b.flac", 1)
    sound(tmp_path / "music/test/copy of d.wav", 3)
    return tmp_path / "music"


LEFT_OUT = [["Validation/d.wav", "test/copy of d.wav"], ["train/copy of f.flac", "test/f.wav"]]


def test_a_folder_of_splits_with_copies(capsys, music, tmp_path):
    command = ["data", f"--source={music}", f"--out={tmp_path / 'out'}", f"--sample_rate={RATE}", "--channels=1"]
    cli.main([*command, "--segment_seconds=0.1", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (told["tracks"], told["train"], told["valid"], told["test"]) == (8, 5, 1, 2) and told["skipped"] == []
    assert told["seconds"] == 8 * 0.25 and told["division"] == {
        "given": {"test": 2, "train": 5, "valid": 2},
        "unsplit": 1,
        "drawn": 0,
        "copies": [["train/zz copy of b.flac", "train/b.wav"]],
        "left_out": LEFT_OUT,
    }
    assert json.loads((tmp_path / "out/info.json").read_text())["division"] == told["division"]
    assert str(read_summary(tmp_path / "out")).splitlines()[1:] == [
        "splits given: 2 test, 5 train, 2 valid; tracks without one: 1",
        "exact copies of another track, kept on its side: 1 (train/zz copy of b.flac = train/b.wav)",
        "exact copies of a held-out track, left out: 2 (Validation/d.wav = test/copy of d.wav, "
        "train/copy of f.flac = test/f.wav)",
    ]
    source = AudioSource(tmp_path / "out")
    seeds = {"a": 0, "b": 1, "c": 2, "e": 4, "f": 5, "g": 6, "zz copy of b": 1, "copy of d": 3}
    assert {Path(track["id"]).stem for track in source.tracks} == set(seeds)
    for index, track in enumerate(source.tracks):  # the records of those left out are stepped over
        np.testing.assert_array_equal(source.track(index), noise(seeds[Path(track["id"]).stem]))


def test_tokens_are_made_of_the_tracks_that_are_used(music, tmp_path):
    audio = resolve(str(music), tmp_path, RATE, 1, segment_seconds=0.1, progress=False)
    codes = Hierarchy.uniform(2, RATE, 4)

    def encode(wav_LC: np.ndarray) -> np.ndarray:
        return np.zeros((len(wav_LC), 2), int)

    summary = tokenise(partial(map, encode), audio, tmp_path / "tokens", codes, 1, "fake", progress=False)
    assert summary.splits == {"test": 2, "train": 5, "valid": 1} and "copies" not in str(summary)
    ids = {track["id"] for track in TokenSource(tmp_path / "tokens").tracks}
    assert len(ids) == 8 and not ids & {copy for copy, _ in LEFT_OUT}


def test_tracks_that_share_a_segment_are_no_copies(tmp_path):
    silence = np.zeros((150, 1), np.float32)
    sounds = [np.concatenate(parts) for seed in (0, 1) for parts in ([noise(seed), silence], [silence, noise(seed)])]
    given = [Track(f"t{i}", lambda i=i: (sounds[i], RATE, {})) for i in range(4)]
    summary = write_audio(given, tmp_path, RATE, 1, segment_seconds=0.1, progress=False)
    assert summary.tracks == 4 and summary.division["copies"] == []


def test_any_number_of_processes_divides_alike(music, tmp_path):
    given, files = open_source(str(music)).tracks, ("info.json", "tracks.jsonl")

    def write(name: str, tracks: list[Track] = given, worker: tuple[int, int] = (0, 1)):
        return write_audio(tracks, tmp_path / name, RATE, 1, shards=4, worker=worker, progress=False)

    def broken():
        raise KeyboardInterrupt

    write("one")
    for which in (2, 0, 1):
        summary = write("three", worker=(which, 3))
    with pytest.raises(KeyboardInterrupt):
        write("cut", [Track(t.id, broken, t.split) if i == 5 else t for i, t in enumerate(given)])
    write("cut")
    assert summary.division["left_out"] == LEFT_OUT
    for name in files:
        whole = (tmp_path / "one" / name).read_bytes()
        assert (tmp_path / "three" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes() == whole


def test_a_column_is_respected(music, tmp_path):
    place = tmp_path / "music/list.csv"
    place.write_text("path,split\ntrain/a.wav,TESTING\ntrain/b.wav,training\ntrain/c.wav,Dev\ng.wav,\n")
    summary = write_audio(open_source(str(place)).tracks, tmp_path / "out", RATE, 1, progress=False)
    chosen = {track["id"]: track["split"] for track in AudioSource(tmp_path / "out").tracks}
    assert chosen == {"train/a.wav": "test", "train/b.wav": "train", "train/c.wav": "valid", "g.wav": "train"}
    assert "splits given: 1 test, 1 train, 1 valid; tracks without one: 1" in str(summary)


def test_segments_of_a_recording_never_lie_on_both_sides(tmp_path):
    def steady(index: int) -> np.ndarray:
        return np.full((730, 1), (index + 1) / 32768, np.float32)  # the samples name their track

    given = [Track(f"t{i}", lambda i=i: (steady(i), RATE, {})) for i in range(12)]
    write_audio(given, tmp_path, RATE, 1, segment_seconds=0.1, valid_fraction=0.3, progress=False)
    valid = waveform_batches(tmp_path, "valid", 50, 32)  # 4 tracks of 8 segments
    train = waveform_batches(tmp_path, "train", 50, 32)
    heard = [
        {int(number) for batch in batches for number in np.unique(np.rint(batch * 32768))}
        for batches in ([valid[0]], [train[step] for step in range(4)])
    ]
    assert len(heard[0]) == 4 and len(heard[1]) == 8 and not heard[0] & heard[1]
