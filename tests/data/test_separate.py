"""Mixes taken apart by a separator in a process of its own: a script stands in for it, called as demucs is."""

import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hiermusic.cli import main
from hiermusic.data.audio_records import AudioSource
from hiermusic.data.sources import open_source

RATE = 8000
SCRIPT = """#!{python}
import argparse, pathlib, sys
import soundfile
parser = argparse.ArgumentParser()
parser.add_argument("tracks", nargs="+")
for flag in ("--two-stems", "--clip-mode", "-o"):
    parser.add_argument(flag)
given = parser.parse_args()
with open("{calls}", "a") as calls:
    print(len(given.tracks), file=calls)
for track in map(pathlib.Path, given.tracks):
    wav, rate = soundfile.read(track)
    if abs(wav).max() == 0:
        print("Could not load it", file=sys.stderr)
        sys.exit(1)
    place = pathlib.Path(given.o) / "htdemucs" / track.stem
    place.mkdir(parents=True)
    soundfile.write(place / f"{{given.two_stems}}.wav", wav / 4, rate)
    soundfile.write(place / f"no_{{given.two_stems}}.wav", 3 * wav / 4, rate)
"""


@pytest.fixture
def demucs(tmp_path, monkeypatch):
    """How many files each call of the separator was given."""
    calls, place = tmp_path / "calls", tmp_path / "bin" / "demucs"
    place.parent.mkdir()
    place.write_text(SCRIPT.format(python=sys.executable, calls=calls))
    place.chmod(place.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{place.parent}{os.pathsep}{os.environ['PATH']}")
    return lambda: list(map(int, calls.read_text().split())) if calls.exists() else []


def put(path: Path, scale: int) -> np.ndarray:
    """A sound of whole quarters, so that its parts are exact."""
    wav_LC = (np.random.default_rng(scale).integers(-500, 500, (RATE, 1)) * 4 * scale / 32768).astype(np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wav_LC, RATE, subtype="PCM_16")
    return wav_LC


def data(source: Path, out: Path, *flags: str) -> int | str | None:
    try:
        main(["data", f"--source={source}", f"--out={out}", f"--sample_rate={RATE}", "--channels=1", *flags])
    except SystemExit as ended:
        return ended.code
    return 0


STEMS = "--stems=vocals,instrumental"


def test_mixes_are_separated_and_stems_taken_as_they_are(demucs, tmp_path, capsys):
    music = tmp_path / "music"
    one_LC, same_LC = put(music / "a" / "song.wav", 1), put(music / "b" / "song.wav", 2)
    (music / "a" / "song.txt").write_text("la la")
    own_LC = put(music / "c_vocals.wav", 3)
    put(music / "c_instrumental.wav", 1)
    put(music / "silent.wav", 0)
    assert not data(music, tmp_path / "out", STEMS, "--separate")
    told = capsys.readouterr()
    assert "silent.wav: demucs does not separate it (Could not load it)" in told.err
    assert "silent.wav: has no stem vocals" in told.out
    assert demucs() == [3, 1]  # the last of them alone once more, as it may be another's fault
    vocals, rest = (AudioSource(tmp_path / "out", stem) for stem in ("vocals", "instrumental"))
    found = {track["id"]: index for index, track in enumerate(vocals.tracks)}
    assert set(found) == {"a/song.wav", "b/song.wav", "c"}
    for name, wav_LC in (("a/song.wav", one_LC), ("b/song.wav", same_LC)):
        np.testing.assert_array_equal(vocals.track(found[name]), wav_LC / 4)
        np.testing.assert_array_equal(rest.track(found[name]), 3 * wav_LC / 4)
    np.testing.assert_array_equal(vocals.track(found["c"]), own_LC)
    assert vocals.tracks[found["a/song.wav"]]["meta"] == {"lyrics": "la la"}


def test_nothing_is_separated_twice_unless_it_changed(demucs, tmp_path):
    put(tmp_path / "music" / "a.wav", 1)
    put(tmp_path / "music" / "b.wav", 2)
    first = open_source(str(tmp_path / "music"), stems=("vocals",), separate=tmp_path / "apart")
    again = open_source(str(tmp_path / "music"), stems=("vocals",), separate=tmp_path / "apart")
    assert demucs() == [2] and first.fingerprint == again.fingerprint
    other_LC = put(tmp_path / "music" / "a.wav", 3)
    os.utime(tmp_path / "music" / "a.wav", ns=(1, 1))
    changed = open_source(str(tmp_path / "music"), stems=("vocals",), separate=tmp_path / "apart")
    assert demucs() == [2, 1] and changed.fingerprint != first.fingerprint
    np.testing.assert_array_equal(changed.tracks[0].load()[0]["vocals"], other_LC / 4)
    assert not [path for path in (tmp_path / "apart").iterdir() if path.name.startswith("separating")]


def test_what_is_kept_in_the_folder_itself_is_no_music_of_it(demucs, tmp_path):
    music = tmp_path / "music"
    put(music / "a.wav", 1)
    sources = [open_source(str(music), stems=("vocals",), separate=music / "out" / "separated") for _ in range(2)]
    assert [[track.id for track in source.tracks] for source in sources] == [["a.wav"]] * 2 and demucs() == [1]


@pytest.mark.parametrize(
    ("source", "flags", "words"),
    [
        ("music", (STEMS,), "--separate needs demucs, which is not on the PATH: pip install demucs"),
        ("builtin:2", (STEMS,), "--separate takes files apart, builtin:2 is builtin: give a folder or a manifest"),
        ("music", ("--stems=mix",), "--separate makes vocals and instrumental: keep them, as in --stems=vocals,instr"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, capsys, source, flags, words):
    monkeypatch.setenv("PATH", str(tmp_path))
    put(tmp_path / "music" / "a.wav", 1)
    place = tmp_path / source if source == "music" else source
    status = data(place, tmp_path / "out", *flags, "--separate")
    assert status and words in f"{status}{capsys.readouterr().err}"
    assert not (tmp_path / "out").exists()
