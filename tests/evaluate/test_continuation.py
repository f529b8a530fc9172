"""How a song goes on from a sound, beside the same behind other beginnings and real music."""

import hashlib
import json
from types import SimpleNamespace

import numpy as np
import pytest

from hiermusic.audio import files
from hiermusic.evaluate import continuation, report, sections, songs
from hiermusic.evaluate.by_track import in_memory
from hiermusic.evaluate.scores import to_json

RATE = 22050


def tune(hertz: float, seconds: float, beat: float = 0.5, gain: float = 0.3) -> np.ndarray:
    """One note on a beat."""
    time_L = np.arange(round(seconds * RATE)) / RATE
    wav_L = np.sin(2 * np.pi * hertz * time_L) * np.exp(-6 * (time_L % beat))
    return (gain * wav_L)[:, None].astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    """Two songs that go on as they began, from clips of other notes; one that goes on from nothing."""
    for name, hertz in (("a", 220.0), ("b", 330.0), ("alone", 220.0)):
        wav_LC = tune(hertz, 9.0)
        files.write(tmp_path / f"{name}.wav", wav_LC, RATE)
        facts = {"name": name, "prompt": {"seconds": 9.0}, "seconds": 9.0, "continues": None}
        if name != "alone":
            clip = tmp_path / "clips" / f"{name}.wav"
            files.write(clip, wav_LC[: 3 * RATE], RATE)
            facts["continues"] = {"path": str(clip), "sha256": hashlib.sha256(clip.read_bytes()).hexdigest()}
        (tmp_path / f"{name}.json").write_text(json.dumps(facts))
    return tmp_path


def measured(folder, tracks: int = 8):
    """With a corpus of two held-out tracks that end on another note than they begin with, at a third."""
    sounds = [np.concatenate([tune(220, 3), tune(hertz, 6)]) for hertz in (311.1, 466.2)]
    corpus = SimpleNamespace(sample_rate=RATE, valid=[0, 1], track=lambda index: sounds[index])
    return continuation.evaluate(songs.read(folder), corpus, tracks, lambda words: None, in_memory)


def test_the_same_music_agrees_and_other_music_does_not(folder):
    rows = measured(folder)
    assert list(rows) == [continuation.SONGS, continuation.OTHERS, continuation.CORPUS]
    own, others, real = rows.values()
    assert own["harmony"]["mean"] > 0.9 > 0.5 > max(others["harmony"]["mean"], real["harmony"]["mean"])
    assert own["distance"]["mean"] + 2 < min(others["distance"]["mean"], real["distance"]["mean"])
    assert own["tempo"]["mean"] == 100 and own["loudness"]["mean"] < 1
    assert [row["distance"]["count"] for row in rows.values()] == [2, 2, 2]
    assert measured(folder, 1)[continuation.CORPUS]["distance"]["count"] == 1
    html = report.write(
        report.Page("Songs", sections=[sections.continuation(to_json(rows))]), folder / "page.html"
    ).read_text()
    assert continuation.OTHERS in html and "harmony, correlation" in html


def test_tempo_and_loudness_are_told():
    one = continuation.part(tune(220, 8, 0.5), RATE)
    for other, same in ((tune(220, 8, 1.0, 0.03), 100.0), (tune(220, 8, 0.66), 0.0)):
        assert continuation.agreement(one, continuation.part(other, RATE))["tempo"] == same
    quiet = continuation.agreement(one, continuation.part(tune(220, 8, 0.5, 0.03), RATE))
    assert quiet["loudness"] == pytest.approx(20, abs=0.5)
    silent = continuation.agreement(one, continuation.part(np.zeros((RATE * 3, 1), np.float32), RATE))
    assert all(np.isnan(silent[name]) for name in ("harmony", "tempo", "loudness")) and silent["distance"] > 0


def test_what_can_no_longer_be_compared_is_told_and_left_out(folder, capsys):
    (folder / "clips" / "a.wav").unlink()
    files.write(folder / "clips" / "b.wav", tune(100, 3), RATE)
    assert measured(folder) == {}
    said = capsys.readouterr().err
    assert "a goes on from" in said and "b goes on from" in said and "is another sound by now" in said
