"""Stems: found in folders and manifests, added up, cut alike, kept in records and read one without the other."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hiermusic.cli import main
from hiermusic.data import file_sources, stems
from hiermusic.data.audio_records import AudioSource, to_pcm, write_audio
from hiermusic.data.pipeline import resolve
from hiermusic.data.sources import open_source
from hiermusic.data.tfds_builder import export_tfds
from hiermusic.data.tracks import Track
from hiermusic.errors import UserError

RATE = 8000
THREE = ("mix", "vocals", "instrumental")


def noise(seed: int, samples: int = 2000) -> np.ndarray:
    """Quiet enough for four of them to stay below full scale; 16-bit, so that files and records return them exactly."""
    return (np.random.default_rng(seed).integers(-8000, 8000, (samples, 1)) / 32768).astype(np.float32)


def put(path: Path, wav_LC: np.ndarray, rate: int = RATE) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wav_LC, rate, subtype="PCM_16")
    return wav_LC


def write(out: Path, given, wanted=THREE, **kwargs):
    defaults = {"segment_seconds": 0.1, "stems": wanted, "progress": False}
    return write_audio(given, out, RATE, 1, **(defaults | kwargs))


def records(out: Path, given, wanted=THREE, **kwargs) -> dict[str, AudioSource]:
    write(out, given, wanted, **kwargs)
    return {stem: AudioSource(out, stem) for stem in wanted}


def song(index: int, **longer: int) -> Track:
    parts = {"vocals": noise(2 * index), "instrumental": noise(2 * index + 1)}
    parts["mix"] = parts["vocals"] + parts["instrumental"]
    parts = {stem: np.pad(wav_LC, ((0, longer.get(stem, 0)), (0, 0))) for stem, wav_LC in parts.items()}
    return Track(f"t{index}", lambda: (parts, RATE, {"tags": str(index)}))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Names


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("a/song_vocals.wav", ("a/song", "vocals")),
        ("a/song.Vocals.flac", ("a/song", "vocals")),
        ("a/song_(Instrumental).ogg", ("a/song", "instrumental")),
        ("a/take 1.final_no_vocals.wav", ("a/take 1.final", "instrumental")),
        ("a/song/mixture.wav", ("a/song", "mix")),
        ("a/song/accompaniment.wav", ("a/song", "instrumental")),
        ("a/song/drums.wav", ("a/song", "drums")),
        ("a/stems/song.vocals.wav", ("a/song", "vocals")),
        ("a/song.wav", None),
        ("a/backing vocalsx.wav", None),
        ("a/unmixed.wav", None),
        ("a/contrabass.wav", None),
    ],
)
def test_names_of_stems(name, wanted):
    root = Path("music")
    assert stems.place(root / name, root) == (wanted and (root / wanted[0], wanted[1]))


def test_a_folder_that_is_called_stems_is_one_like_others():
    root = Path("data/stems")
    assert stems.place(root / "song_vocals.ogg", root) == (root / "song", "vocals")


def test_stems_that_are_asked_for():
    assert stems.parse("vocals,mix, vocals") == ("mix", "vocals")
    with pytest.raises(UserError, match="--stems=mix,vocal: 'vocal' is no stem; there are mix, vocals, instrumental"):
        stems.parse("mix,vocal")
    with pytest.raises(UserError, match="--stems=: '' is no stem"):
        stems.parse("")


@pytest.mark.parametrize(
    ("given", "wanted", "read"),
    [
        ("mix vocals drums bass", "mix", "mix"),
        ("mix vocals drums bass", "mix instrumental", "mix drums bass"),
        ("vocals drums bass", "mix vocals", "vocals drums bass"),
        ("vocals instrumental drums bass", "mix", "vocals instrumental"),  # drums and bass are in it already
        ("vocals instrumental", "vocals", "vocals"),
        ("instrumental", "mix", "instrumental"),
    ],
)
def test_what_is_read_for_what_is_wanted(given, wanted, read):
    assert stems.needed(wanted.split(), given.split()) == tuple(read.split())


@pytest.mark.parametrize(
    ("given", "wanted"), [("mix vocals", "instrumental"), ("mix", "vocals"), ("mix vocals", "bass")]
)
def test_what_does_not_follow(given, wanted):
    with pytest.raises(UserError, match=rf"has no stem {wanted}, nor any that add up to it \(it has {given[:3]}"):
        stems.needed([wanted], given.split())


# Folders and manifests


def sounds(path: Path | str, *wanted: str, kind: str = "auto") -> dict:
    return {track.id: track.load() for track in open_source(str(path), kind, wanted).tracks}


def test_a_folder_of_songs_and_their_stems(tmp_path):
    vocals, band = put(tmp_path / "train/a_vocals.wav", noise(1)), put(tmp_path / "train/a_instrumental.wav", noise(2))
    mix = put(tmp_path / "train/a.wav", noise(3))
    put(tmp_path / "test/b_vocals.wav", vocals)
    put(tmp_path / "test/b_instrumental.wav", band)
    (tmp_path / "test/b.txt").write_text("la la")
    put(tmp_path / "c.wav", noise(4))
    put(tmp_path / "d.wav", noise(5))
    put(tmp_path / "d_bass.wav", noise(6))  # another song, for all one can know
    put(tmp_path / "e_vocals.wav", noise(7))  # alone
    source = open_source(str(tmp_path))
    splits = {track.id: track.split for track in source.tracks}
    assert splits == {
        **{"c.wav": None, "d.wav": None, "d_bass.wav": None, "e_vocals.wav": None},
        **{"test/b": "test", "train/a.wav": "train"},
    }
    alone = sounds(tmp_path, "mix")
    np.testing.assert_array_equal(alone["train/a.wav"][0], mix)
    assert alone["test/b"][0].keys() == {"vocals", "instrumental"} and alone["test/b"][2] == {"lyrics": "la la"}
    both = records(tmp_path / "out", open_source(str(tmp_path), stems=THREE).tracks)
    assert [track["id"] for track in both["mix"].tracks] == ["test/b", "train/a.wav"]
    for index, (what, wav_LC) in enumerate([("sum", vocals + band), ("file", mix)]):
        np.testing.assert_array_equal(both["mix"].track(index), wav_LC, err_msg=what)
        np.testing.assert_array_equal(both["vocals"].track(index), vocals)
        np.testing.assert_array_equal(both["instrumental"].track(index), band)
    skipped = dict(json.loads((tmp_path / "out/info.json").read_text())["skipped"])
    assert skipped["c.wav"] == "has no stem vocals, nor any that add up to it (it has mix)" and len(skipped) == 4


def test_the_layout_of_musdb18(tmp_path):
    parts = {name: put(tmp_path / f"test/A - B/{name}.wav", noise(i)) for i, name in enumerate(stems.NAMES[3:])}
    vocals = put(tmp_path / "test/A - B/vocals.wav", noise(8))
    put(tmp_path / "test/A - B/mixture.wav", noise(9))
    (tmp_path / "test/A - B.stem.mp4").write_bytes(b"what it was decoded from")
    (source,) = open_source(str(tmp_path), stems=THREE).tracks
    assert (source.id, source.split) == ("test/A - B/mixture.wav", "test")
    out = records(tmp_path / "out", [source], ("vocals", "instrumental"))
    np.testing.assert_array_equal(out["instrumental"].track(0), sum(parts.values()))
    np.testing.assert_array_equal(out["vocals"].track(0), vocals)
    words = r"keeps of its tracks the vocals and instrumental, not the mix: .*--stems=mix,vocals,instrumental"
    with pytest.raises(UserError, match=words):
        AudioSource(tmp_path / "out")


def test_packed_stems_are_refused_with_what_decodes_them(tmp_path):
    put(tmp_path / "ok.wav", noise(1))
    (tmp_path / "A.stem.mp4").write_bytes(b"\0\0\0\x18ftypM4A ")
    packed, _ = open_source(str(tmp_path)).tracks
    with pytest.raises(UserError, match=r"packs several sounds in one file: decode it .*ffmpeg -i X\.stem\.mp4 -map"):
        packed.load()


def test_columns_of_a_manifest(tmp_path):
    vocals, drums = put(tmp_path / "x/v.wav", noise(1)), put(tmp_path / "x/d.wav", noise(2))
    put(tmp_path / "m.wav", noise(3))
    text = "path,vocals_path,drums_path,vocals,tags\nm.wav,x/v.wav,x/d.wav,yes,loud\n,x/v.wav,x/d.wav,,\nm2.wav,,,,\n"
    (tmp_path / "list.csv").write_text(text)
    found = open_source(str(tmp_path / "list.csv"), stems=THREE).tracks
    assert [track.id for track in found] == ["m.wav", "x/v.wav", "m2.wav"]
    assert found[0].load()[2] == {"tags": "loud", "instrumental": False}
    out = records(tmp_path / "out", found)
    np.testing.assert_array_equal(out["mix"].track(0), noise(3))
    np.testing.assert_array_equal(out["mix"].track(1), vocals + drums)
    np.testing.assert_array_equal(out["instrumental"].track(1), drums)


@pytest.mark.parametrize("wanted", [("mix",), ("vocals",), ("instrumental",), ("mix", "vocals")])
def test_only_what_is_wanted_is_read(tmp_path, monkeypatch, wanted):
    for name in ("mixture", "vocals", "drums", "other"):
        put(tmp_path / f"song/{name}.wav", noise(1))
    real, read = file_sources.files.read, []
    monkeypatch.setattr(file_sources.files, "read", lambda path: read.append(path.stem) or real(path))
    sounds(tmp_path, *wanted)
    files = {"mix": ["mixture"], "vocals": ["vocals"], "instrumental": ["drums", "other"]}
    assert read == [name for stem in wanted for name in files[stem]]


def test_two_files_of_a_stem_are_told(tmp_path):
    for name in ("a.wav", "a_vocals.wav", "a_vocals.flac", "a_instrumental.wav"):
        put(tmp_path / name, noise(1))
    with pytest.raises(UserError, match=r"has two files of its vocals, a_vocals.flac and a_vocals.wav: keep one"):
        sounds(tmp_path, "vocals")
    assert list(sounds(tmp_path, "mix")) == ["a.wav"]


def test_a_broken_stem_is_named_and_its_track_skipped(tmp_path):
    put(tmp_path / "a.wav", noise(1))
    put(tmp_path / "b_instrumental.wav", noise(2))
    (tmp_path / "b_vocals.wav").write_bytes(b"")
    ((name, reason),) = write(tmp_path / "out", open_source(str(tmp_path)).tracks, ("mix",)).skipped
    assert name == "b" and reason == "b_vocals.wav: is empty (0 bytes); get it again."


def test_stems_of_several_rates_come_to_the_highest(tmp_path):
    put(tmp_path / "a_vocals.wav", noise(1), 4000)
    put(tmp_path / "a_instrumental.wav", noise(2, 4000))
    sound, rate, _ = sounds(tmp_path, "vocals", "instrumental")["a"]
    assert rate == RATE and {len(wav_LC) for wav_LC in sound.values()} == {4000}


def test_other_stems_and_other_files_of_them_make_other_records(tmp_path):
    put(tmp_path / "music/a_vocals.wav", noise(1))
    put(tmp_path / "music/a_instrumental.wav", noise(2))
    put(tmp_path / "music/a.wav", noise(3))

    def where(*wanted: str) -> Path:
        return resolve(tmp_path / "music", tmp_path / "cache", RATE, 1, stems=wanted, progress=False)

    before = [where("mix"), where("vocals"), where("mix", "vocals")]
    assert len(set(before)) == 3
    put(tmp_path / "music/a_vocals.wav", noise(4))
    assert where("mix") == before[0] and where("vocals") != before[1]
    with pytest.raises(UserError, match="keeps of its tracks the vocals, not the mix"):
        resolve(before[1], tmp_path / "cache", RATE, 1)


def test_built_in_songs_with_other_stems_are_other_records(tmp_path):
    mixes, parts = (
        resolve("builtin:1?seconds=1-1", tmp_path, RATE, 1, stems=wanted, progress=False)
        for wanted in (("mix",), ("vocals", "instrumental"))
    )
    assert AudioSource(mixes).stems == ("mix",) and AudioSource(parts, "vocals").stems == ("vocals", "instrumental")


# Lengths and levels


def test_lengths_that_differ_a_little_are_cut_alike_and_told(tmp_path, capsys):
    out = records(tmp_path, [song(0, vocals=80), song(1)])
    assert {source.tracks[0]["samples"] for source in out.values()} == {2000}
    assert {len(source.track(0)) for source in out.values()} == {2000}
    told = "t0: its stems differ in length by 0.010 s: all end with the shortest, instrumental\n"
    assert capsys.readouterr().err == told


def test_lengths_that_differ_are_refused(tmp_path):
    ((name, reason),) = write(tmp_path, [song(0, vocals=801), song(1)]).skipped
    assert (name, reason) == (
        "t0",
        "has 0.25 s of instrumental and 0.35 s of vocals, more than 0.1 s apart: stems begin together and end together",
    )


def test_sums_beyond_full_scale_turn_all_stems_down(tmp_path, capsys):
    loud = {"vocals": np.full((100, 1), 0.75, np.float32), "drums": np.full((100, 1), 0.5, np.float32)}
    out = records(tmp_path, [Track("t", lambda: (loud, RATE, {}))], ("mix", "vocals"))
    assert out["mix"].track(0).max() > 0.9999
    np.testing.assert_allclose(out["vocals"].track(0), 0.6, atol=1e-4)
    assert capsys.readouterr().err == "t: its stems add up to 1.25 of full scale: all are turned down by that\n"
    just = {"vocals": loud["vocals"], "drums": 0.25 + 0 * loud["drums"]}
    stems.combine("t", just, ("mix", "vocals"), RATE)
    assert capsys.readouterr().err == ""


# Records


def test_stems_lie_sample_for_sample(tmp_path):
    out = records(tmp_path, [song(index) for index in range(5)], shards=2)
    assert len({json.dumps(source.tracks) for source in out.values()}) == 1
    assert len({tuple(map(tuple, source.segments("train"))) for source in out.values()}) == 1
    for index in range(5):
        parts = song(index).load()[0]
        for stem, source in out.items():
            np.testing.assert_array_equal(source.track(index), parts[stem])
    names = sorted(path.name for path in tmp_path.glob("*00000-of*"))
    assert names == [f"audio{which}-00000-of-00002.arrayrecord" for which in ("", ".instrumental", ".vocals")]


@pytest.mark.parametrize("stem", THREE)
def test_the_bytes_of_other_stems_are_never_read(tmp_path, stem):
    write(tmp_path, [song(index) for index in range(3)])
    for path in tmp_path.glob("audio*.arrayrecord"):
        if not path.name.startswith({"mix": "audio-"}.get(stem, f"audio.{stem}-")):
            path.write_bytes(b"nothing of this is a record")
    source = AudioSource(tmp_path, stem)
    np.testing.assert_array_equal(source.track(2), song(2).load()[0][stem])
    with pytest.raises(UserError, match="cannot be read"):
        AudioSource(tmp_path, "vocals" if stem == "mix" else "mix")


def test_a_track_without_a_wanted_stem_is_skipped(tmp_path):
    plain = Track("plain", lambda: (noise(9), RATE, {}))
    summary = write(tmp_path, [song(0), plain])
    assert summary.skipped == (("plain", "has no stem vocals, nor any that add up to it (it has mix)"),)


def test_an_interrupted_writing_goes_on_with_all_stems(tmp_path):
    write(tmp_path / "whole", [song(index) for index in range(6)], shards=3)

    def broken():
        raise KeyboardInterrupt

    cut = [song(index) if index != 3 else Track("t3", broken) for index in range(6)]
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "cut", cut, shards=3)
    (tmp_path / "cut/audio.vocals-00000-of-00003.arrayrecord").unlink()
    write(tmp_path / "cut", [song(index) for index in range(6)], shards=3, worker=(1, 2))
    write(tmp_path / "cut", [song(index) for index in range(6)], shards=3, worker=(0, 2))
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_records_begun_with_other_stems_are_refused(tmp_path):
    write(tmp_path / "more", [song(0)])
    with pytest.raises(UserError, match="was begun with another stems"):
        write(tmp_path / "more", [song(0)], ("mix",))
    write(tmp_path / "less", [song(0)], ("mix",))
    with pytest.raises(UserError, match="was begun with another stems"):
        write(tmp_path / "less", [song(0)])


def test_copies_are_of_one_mix_or_of_all_stems(tmp_path):
    one, two = song(0).load()[0], song(1).load()[0]
    given = [
        Track("a", lambda: (one, RATE, {}), "train"),
        Track("b", lambda: ({**two, "mix": one["mix"]}, RATE, {}), "test"),  # the same mix
        Track("c", lambda: ({**two, "vocals": one["vocals"]}, RATE, {}), "valid"),  # the same voice
    ]
    assert [track["id"] for track in records(tmp_path / "mix", given)["mix"].tracks] == ["b", "c"]
    rest = ("vocals", "instrumental")
    assert [track["id"] for track in records(tmp_path / "rest", given, rest)["vocals"].tracks] == ["a", "b", "c"]


def test_records_of_mixes_alone_say_nothing_of_stems(tmp_path):
    write(tmp_path, [song(0), song(1)], ("mix",))
    assert "stems" not in (tmp_path / "info.json").read_text() and AudioSource(tmp_path).stems == ("mix",)
    assert [path.name for path in tmp_path.glob("*.arrayrecord")] == ["audio-00000-of-00001.arrayrecord"]


def test_the_built_in_corpus_keeps_its_exact_stems(tmp_path):
    given = open_source("builtin:1?seconds=1-1", stems=THREE).tracks
    sound, rate, _ = given[0].load()
    np.testing.assert_array_equal(sound["mix"], sound["vocals"] + sound["instrumental"])
    np.testing.assert_array_equal(open_source("builtin:1?seconds=1-1").tracks[0].load()[0], sound["mix"])
    write_audio(given, tmp_path, rate, 2, stems=THREE, progress=False)
    kept = {stem: to_pcm(AudioSource(tmp_path, stem).track(0)).astype(int) for stem in THREE}
    assert abs(kept["mix"] - kept["vocals"] - kept["instrumental"]).max() <= 1  # each is rounded by itself
    with pytest.raises(UserError, match="has no stem drums: its songs have mix, vocals and instrumental"):
        open_source("builtin:1", stems=("drums",))


def test_the_verb_keeps_the_stems_that_are_asked_for(tmp_path):
    for name in ("a_vocals.wav", "a_instrumental.wav", "b_vocals.wav", "b_instrumental.wav"):
        put(tmp_path / "music" / name, noise(len(name)))
    where = (f"--source={tmp_path / 'music'}", f"--out={tmp_path / 'out'}", f"--sample_rate={RATE}", "--channels=1")
    main(["data", *where, "--stems=instrumental,vocals"])
    assert AudioSource(tmp_path / "out", "vocals").stems == ("vocals", "instrumental")


def test_stems_through_tfds(tmp_path):
    before = records(tmp_path / "a", [song(index) for index in range(3)])
    place = export_tfds(tmp_path / "a", tmp_path / "tfds")
    after = records(tmp_path / "b", open_source(f"tfds:{place}", stems=THREE).tracks)
    order = [[track["meta"]["tags"] for track in source["mix"].tracks] for source in (before, after)]
    for stem in THREE:
        for index, tags in enumerate(order[1]):
            np.testing.assert_array_equal(after[stem].track(index), before[stem].track(order[0].index(tags)))
    with pytest.raises(UserError, match="has no feature 'audio_drums'"):
        open_source(f"tfds:{place}", stems=("drums",))


# Silence


def test_tracks_in_which_a_stem_is_silent_are_dropped_and_named(tmp_path):
    """By the level of the stem that is asked for, whatever the others do."""

    def track(name: str, level: float) -> Track:
        parts = {"vocals": np.float32(level) * noise(1) / 0.14, "instrumental": noise(2)}
        return Track(name, lambda: (parts, RATE, {}))

    given = [track("sung", 1.0), track("soft", 0.006), track("remains", 0.002), track("silent", 0.0)]
    wanted = ("vocals", "instrumental")
    summary = write(tmp_path / "out", given, wanted, sounding=("vocals",))
    assert dict(summary.skipped) == {
        "remains": "its vocals: at -54 dB, where -50 dB is silence",
        "silent": "its vocals: without a sound, where -50 dB is silence",
    }
    assert [entry["id"] for entry in AudioSource(tmp_path / "out", "vocals").tracks] == ["sung", "soft"]
    assert write(tmp_path / "all", given, wanted, sounding=("instrumental",)).tracks == 4
    with pytest.raises(UserError, match="was begun"):
        write(tmp_path / "out", given, wanted)


def test_a_stem_that_must_be_heard_is_one_that_is_kept(tmp_path, capsys):
    flags = ["--source=builtin:1?seconds=1-1", f"--out={tmp_path / 'out'}", "--stems=mix", "--sounding=vocals"]
    with pytest.raises(SystemExit):
        main(["data", *flags])
    assert "--sounding=vocals: vocals is none of --stems=mix: keep it too" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
