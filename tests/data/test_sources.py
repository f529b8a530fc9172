"""What each kind of source lists, and what its tracks carry."""

import gzip
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hiermusic.data import corpus
from hiermusic.data.sources import open_source, parse_lrc
from hiermusic.errors import UserError

MUSIC = Path(__file__).parents[3] / "shared/data/music"


def write(path: Path, seconds: float = 0.1, rate: int = 8000, value: float = 0.25) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full((round(seconds * rate), 1), value, np.float32), rate)
    return path


def by_id(source):
    return {track.id: track for track in source.tracks}


def test_folder_is_sorted_and_deterministic(tmp_path):
    for name in ("b.wav", "a/z.flac", "a/y.ogg", "c.aiff", "Ж Ünïcode 歌.wav"):
        write(tmp_path / name)
    (tmp_path / "cover.jpg").write_bytes(b"x")
    write(tmp_path / "._b.wav")
    source = open_source(str(tmp_path))
    ids = [track.id for track in source.tracks]
    assert ids == ["a/y.ogg", "a/z.flac", "b.wav", "c.aiff", "Ж Ünïcode 歌.wav"]
    assert source.fingerprint == open_source(str(tmp_path)).fingerprint
    wav_LC, rate, meta = by_id(source)["Ж Ünïcode 歌.wav"].load()
    assert wav_LC.shape == (800, 1) and rate == 8000 and meta == {}


def test_fingerprint_follows_files_and_sidecars(tmp_path):
    write(tmp_path / "a.wav")
    before = open_source(str(tmp_path)).fingerprint
    (tmp_path / "a.txt").write_text("la la")
    with_lyrics = open_source(str(tmp_path)).fingerprint
    os.utime(tmp_path / "a.wav", ns=(1, 1))
    assert open_source(str(tmp_path)).fingerprint == with_lyrics != before
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[-1] ^= 1
    (tmp_path / "a.wav").write_bytes(content)
    assert open_source(str(tmp_path)).fingerprint not in (before, with_lyrics)


def test_sidecars(tmp_path):
    write(tmp_path / "a.wav", seconds=9.0)
    (tmp_path / "a.txt").write_text("plain\n", encoding="utf-8-sig")
    assert by_id(open_source(str(tmp_path)))["a.wav"].load()[2] == {"lyrics": "plain"}
    (tmp_path / "a.lrc").write_text("[ar:Someone]\n[00:01.50]first <00:02.00>line\n[00:04.00]\n[00:05.25]second\n")
    meta = by_id(open_source(str(tmp_path)))["a.wav"].load()[2]
    assert meta["lyrics"] == "first line\nsecond"
    assert meta["lines"] == [[1.5, 4.0, "first line"], [5.25, 9.0, "second"]]
    sidecar = {"tags": ["slow", "piano"], "instrumental": False, "split": "val", "bpm": 90}
    (tmp_path / "a.json").write_text(json.dumps(sidecar))
    track = by_id(open_source(str(tmp_path)))["a.wav"]
    meta = track.load()[2]
    assert track.split == "valid"
    assert meta["tags"] == "slow, piano" and meta["instrumental"] is False
    assert meta["lyrics"] == "first line\nsecond" and "bpm" not in meta and "split" not in meta


def test_exported_songs_come_back_as_they_were_and_without_their_stems(tmp_path):
    song = corpus.song(3, 4.0)
    corpus.export(song, tmp_path, "take 1.final")
    write(tmp_path / "stems/other.vocals.wav")
    tracks = by_id(open_source(str(tmp_path)))
    assert list(tracks) == ["stems/other.vocals.wav", "take 1.final.wav"]
    wav_LC, _, meta = tracks["take 1.final.wav"].load()
    assert abs(wav_LC - song.mix).max() < 1e-4
    assert meta["tags"] == ", ".join(song.tags) and meta.get("lyrics", "") == song.lyrics
    assert [line[2] for line in meta.get("lines", [])] == [line.text for line in song.lines]


def test_subfolders_named_after_splits(tmp_path):
    wanted = {
        "Train/album/a.wav": "train",
        "training/a.wav": "train",
        "VAL/a.wav": "valid",
        "validation/a.wav": "valid",
        "dev/a.wav": "valid",
        "Test/a.wav": "test",
        "album/test/a.wav": None,  # a song's or an album's name
        "train.wav": None,
        "eval/a.wav": None,
        "testimony/a.wav": None,
    }
    for name in wanted:
        write(tmp_path / name)
    (tmp_path / "Test/a.json").write_text('{"split": "train", "tags": "slow"}')
    source = open_source(str(tmp_path))
    assert {track.id: track.split for track in source.tracks} == wanted
    assert by_id(source)["Test/a.wav"].load()[2] == {"tags": "slow"}
    assert {track.split for track in open_source(str(tmp_path / "Train")).tracks} == {None}


def test_broken_sidecar_is_told_by_the_track(tmp_path):
    write(tmp_path / "a.wav")
    (tmp_path / "a.json").write_text("{tags: ")
    with pytest.raises(UserError, match="is not JSON"):
        open_source(str(tmp_path)).tracks[0].load()


def test_lrc_repeats_and_offset():
    assert parse_lrc("[offset:+500]\n[00:10.5][01:00.50]chorus\n[00:20]verse") == [
        [10.0, 19.5, "chorus"],
        [19.5, 60.0, "verse"],
        [60.0, None, "chorus"],
    ]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "jsonl.gz"])
def test_manifest(tmp_path, kind):
    outside = write(tmp_path / "elsewhere/x.wav")
    write(tmp_path / "set/one.wav")
    rows = [
        {"path": "one.wav", "style": "folk", "vocals": "no", "split": "validation", "licence": "CC0"},
        {"path": str(outside), "style": "folk", "tags": "loud", "vocals": "yes+lyrics", "lyrics": "a, b"},
        {"path": "gone.wav", "instrumental": "true"},
    ]
    place = tmp_path / f"set/list.{kind}"
    if kind == "csv":
        columns = ["path", "style", "tags", "vocals", "split", "lyrics", "instrumental", "licence"]
        quoted = [",".join(f'"{row.get(column, "")}"' for column in columns) for row in rows]
        place.write_text("\n".join([",".join(columns), *quoted]), encoding="utf-8-sig")
    else:
        text = "\n".join(json.dumps(row) for row in rows) + "\n\n"
        place.write_bytes(gzip.compress(text.encode()) if kind.endswith("gz") else text.encode())
    tracks = by_id(open_source(str(place)))
    assert list(tracks) == ["one.wav", str(outside), "gone.wav"]
    assert tracks["one.wav"].split == "valid" and tracks["gone.wav"].split is None
    assert tracks["one.wav"].load()[2] == {"tags": "folk", "instrumental": True}
    assert tracks[str(outside)].load()[2] == {"tags": "loud", "instrumental": False, "lyrics": "a, b"}
    with pytest.raises(UserError, match="no such file"):
        tracks["gone.wav"].load()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "file,style\nx.wav,folk\n", "no column named path"),
        ("a.csv", "path\n", "lists no files"),
        (
            "a.csv",
            "path,split\nx.wav,holiday\n",
            "line 2: split 'holiday' is none of train, .*: give one, or leave it empty",
        ),
        ("a.csv", "path\nx.wav\nx.wav\n", "twice, in lines 2 and 3"),
        ("a.jsonl", '{"path": "x.wav"}\n{"path" "y"}\n', "line 2 is not JSON"),
        ("a.jsonl", '["x.wav"]\n', "line 1 is not a JSON object"),
        ("a.jsonl", '{"tags": "folk"}\n', "line 1 has no path"),
        ("a.jsonl.gz", "not gzip", "cannot be read"),
        ("a.xlsx", "path", "must end in"),
    ],
)
def test_manifest_errors_name_the_line(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=words) as told:
        open_source(str(tmp_path / name))
    assert "\n" not in str(told.value) and name in str(told.value)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/no/such/place", "/no/such/place does not exist"),
        ("builtin:many", "count"),
        ("builtin:3?second=4", "unknown option 'second'"),
        ("builtin:0", "builtin:0: give songs"),
        ("tfds:no_such_data_set_of_ours", "no_such_data_set_of_ours is not prepared"),
    ],
)
def test_bad_paths(path, words):
    with pytest.raises(UserError, match=words) as told:
        open_source(path)
    assert "\n" not in str(told.value)


def test_folder_without_audio(tmp_path):
    with pytest.raises(UserError, match="holds no audio files"):
        open_source(str(tmp_path))


def test_unicode_form_of_names_is_kept(tmp_path):
    name = unicodedata.normalize("NFD", "café.wav")
    write(tmp_path / name)
    assert open_source(str(tmp_path)).tracks[0].id == name


def test_builtin_songs():
    source = open_source("builtin:5?seconds=2-3&seed=7")
    assert len({track.id for track in source.tracks}) == 5
    wav_LC, rate, meta = source.tracks[3].load()
    again, _, _ = open_source("builtin:9?seconds=2-3&seed=7").tracks[3].load()
    np.testing.assert_array_equal(wav_LC, again)
    assert 2 <= len(wav_LC) / rate <= 3 and wav_LC.shape[1] == 2
    assert meta["tags"] and meta["truth"]["tempo"] > 0 and isinstance(meta["instrumental"], bool)
    json.dumps(meta)
    assert open_source("5?seconds=2-3&seed=7", kind="builtin").fingerprint == source.fingerprint
    other = open_source("builtin:5?seconds=2-3&seed=8")
    assert other.fingerprint != source.fingerprint
    assert other.tracks[3].load()[0].tobytes() != wav_LC.tobytes()


@pytest.mark.skipif(not (MUSIC / "manifest.csv").is_file(), reason="no real music beside the repository")
def test_manifest_of_real_music():
    source = open_source(str(MUSIC / "manifest.csv"))
    tracks = by_id(source)
    assert len(tracks) > 30
    wav_LC, rate, meta = tracks["mixes/librosa/sorohanro_-_solo-trumpet-06.hq.ogg"].load()
    assert meta == {"tags": "solo trumpet", "instrumental": True}
    assert abs(len(wav_LC) / rate - 5.33) < 0.05
