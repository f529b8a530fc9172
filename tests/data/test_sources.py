"""What each kind of source lists, and what its tracks carry."""

import errno
import gzip
import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hiermusic.data import corpus, file_sources, sidecars
from hiermusic.data.sidecars import parse_lrc
from hiermusic.data.sources import open_source
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
    with pytest.raises(UserError, match=r"its sidecar a\.json cannot be read as JSON"):
        open_source(str(tmp_path)).tracks[0].load()


def test_lrc_repeats_and_offset():
    assert parse_lrc("[offset:+500]\n[00:10.5][01:00.50]chorus\n[00:20]verse") == [
        [10.0, 19.5, "chorus"],
        [19.5, 60.0, "verse"],
        [60.0, None, "chorus"],
    ]


def test_an_lrc_without_a_time_is_words_all_the_same(tmp_path):
    write(tmp_path / "a.wav")
    for text, meta in (("[ar:Someone]\nfirst\nsecond\n", {"lyrics": "first\nsecond"}), ("\n", {}), ("[by:x]", {})):
        (tmp_path / "a.lrc").write_text(text)
        assert open_source(str(tmp_path)).tracks[0].load()[2] == meta


def test_lrc_of_many_lines_and_digits():
    """What is looked for stays within its line: 300,000 empty ones took a minute."""
    assert sidecars._OFFSET.search("\n\n \n[offset:+500]").start() == 4
    assert parse_lrc("\n" * 300_000) == []
    assert parse_lrc(f"[offset:{'9' * 5000}]\n[{'9' * 5000}:00]a\n[00:{'9' * 5000}]b\n[00:02]c") == [[2.0, None, "c"]]


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", "naïve café".encode("cp1252"), "its sidecar a.txt is not UTF-8 (byte 3): save it as UTF-8"),
        ("a.txt", "爵士乐".encode("gbk"), "its sidecar a.txt is not UTF-8 (byte 1)"),
        ("a.lrc", "[00:01]é".encode("latin-1"), "its sidecar a.lrc is not UTF-8 (byte 8)"),
        ("a.txt", "la la".encode("utf-16-le"), "its sidecar a.txt holds bytes that are no text"),
        ("a.txt", b"\xff\xfel", "its sidecar a.txt is not UTF-16 (byte 3)"),
        ("a.txt", bytes(1 << 25), "its sidecar a.txt has 33,554,432 bytes"),
        ("a.json", DEEP.encode(), "its sidecar a.json cannot be read as JSON (RecursionError"),
        ("a.json", b'{"bpm": ' + b"9" * 5000 + b"}", "its sidecar a.json cannot be read as JSON (Exceeds"),
        ("a.json", b'{"tags": "\xe9"}', "its sidecar a.json is not UTF-8"),
    ],
)
def test_a_sidecar_that_cannot_be_read_is_told_by_its_track_alone(tmp_path, name, data, words):
    write(tmp_path / "a.wav")
    write(tmp_path / "b.wav")
    (tmp_path / name).write_bytes(data)
    bad, good = open_source(str(tmp_path)).tracks
    with pytest.raises(UserError) as told:
        bad.load()
    assert str(told.value).startswith(words)
    assert good.load()[2] == {}


def test_a_sidecar_that_may_not_be_read(tmp_path, monkeypatch):
    write(tmp_path / "a.wav")
    (tmp_path / "a.json").write_text("{}")

    def refuse(self):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    (track,) = open_source(str(tmp_path)).tracks
    with pytest.raises(UserError, match=r"its sidecar a.json cannot be read as text \(Permission denied\)"):
        track.load()


def test_utf_16_with_its_mark_is_read(tmp_path):
    write(tmp_path / "a.wav")
    (tmp_path / "a.txt").write_text("爵士 é\n", encoding="utf-16")
    assert open_source(str(tmp_path)).tracks[0].load()[2] == {"lyrics": "爵士 é"}


def test_times_of_a_sidecar_are_numbers_of_seconds():
    good = {"start": 0, "end": 1.5, "text": "la"}
    bad = [{"start": "0"}, {"end": float("nan")}, {"end": 10**400}, {"text": 3}, {"start": -1}]
    assert sidecars.timed_lines([good, *(good | change for change in bad), 3]) == [[0, 1.5, "la"]]


def test_names_that_are_no_text(tmp_path):
    write(tmp_path / "a.wav").rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav"))
    (track,) = open_source(str(tmp_path)).tracks
    assert track.id == "\\xff.wav" and len(track.load()[0]) == 800
    (tmp_path / "list.jsonl").write_text('{"path": "a\\u0000.wav"}\n{"path": "\\ud800.wav"}\n')
    for track in open_source(str(tmp_path / "list.jsonl")).tracks:
        with pytest.raises(UserError, match=r"^no file has such a name|^no such file"):
            track.load()


def test_linked_folders_are_followed_and_none_for_ever(tmp_path, capsys):
    write(tmp_path / "elsewhere/x.wav")
    write(tmp_path / "music/a.wav")
    (tmp_path / "music/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "music/deep").mkdir()
    (tmp_path / "music/deep/self").symlink_to(tmp_path / "music")
    (tmp_path / "music/gone").symlink_to(tmp_path / "no-such-folder")
    assert list(by_id(open_source(str(tmp_path / "music")))) == ["a.wav", "more/x.wav"]
    assert capsys.readouterr().err == f"{tmp_path}/music/deep/self: a link to a folder that it lies in: passed over\n"


def test_a_folder_that_may_not_be_read_is_told(tmp_path, capsys, monkeypatch):
    write(tmp_path / "a.wav")
    write(tmp_path / "locked/b.wav")
    real = os.scandir

    def scandir(place):
        if str(place).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", place)
        return real(place)

    monkeypatch.setattr(os, "scandir", scandir)
    assert list(by_id(open_source(str(tmp_path)))) == ["a.wav"]
    assert (
        capsys.readouterr().err
        == f"{tmp_path}/locked: cannot be read (Permission denied): this folder is passed over\n"
    )


def test_a_fault_that_passes_skips_nothing(tmp_path, monkeypatch):
    """Too many open files, once: read at the next try; for good: the run ends, and no track counts as unreadable."""
    write(tmp_path / "a.wav")
    (track,) = open_source(str(tmp_path)).tracks
    real, left = file_sources.files.read, [2]

    def read(path):
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(errno.EMFILE, "Too many open files", str(path))
        return real(path)

    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setattr(file_sources.files, "read", read)
    assert len(track.load()[0]) == 800 and left == [-1]
    left[0] = 100
    with pytest.raises(OSError, match="Too many open files"):
        track.load()


def test_channels_that_cancel_are_told(tmp_path, capsys):
    wav_L = np.sin(np.arange(800))
    soundfile.write(tmp_path / "a.wav", np.stack([wav_L, -wav_L], axis=1), 8000)
    assert len(open_source(str(tmp_path)).tracks[0].load()[0]) == 800
    assert f"{tmp_path}/a.wav: its channels cancel each other" in capsys.readouterr().err


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
        ("a.jsonl", '{"path": "x.wav"}\n{"path" "y"}\n', "line 2 cannot be read as JSON"),
        ("a.jsonl", '["x.wav"]\n', "line 1 is not a JSON object"),
        ("a.jsonl", '{"tags": "folk"}\n', "line 1 has no path"),
        ("a.jsonl", '{"path": "/"}\n', "line 1: / is no file: every row names one"),
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
        ("builtin:3?styles=pop&tempi=129.2", "style 'pop' plays none of the tempi"),
        ("builtin:3?tempi=fast", "tempi"),
        ("builtin:1?seconds=inf", "builtin:1.seconds=inf: give songs"),
        ("builtin:1?seconds=nan", "builtin:1.seconds=nan: give songs"),
        ("builtin:99999999999", "give songs"),
        ("tfds:no_such_data_set_of_ours", "no_such_data_set_of_ours is not prepared"),
        ("x" * 300, "x does not exist"),
        ("tfds:" + "x" * 300, "x is not prepared"),
    ],
)
def test_bad_paths(path, words):
    with pytest.raises(UserError, match=words) as told:
        open_source(path)
    assert "\n" not in str(told.value)


def test_a_manifest_packed_to_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(file_sources, "_LONGEST_LINE", 100)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"path": "a.wav"}\n' + b" " * 10_000))
    (tmp_path / "a.csv").write_text("path\n" + "a" * 10_000)
    for name in ("a.jsonl.gz", "a.csv"):
        with pytest.raises(UserError, match="line 2 has 100 letters or more, too many for one track"):
            open_source(str(tmp_path / name))


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
