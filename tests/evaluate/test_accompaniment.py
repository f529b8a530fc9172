"""Whether accompaniments go with their vocals: against others of their style, the true pairs, and what is known."""

import json

import numpy as np
import pytest

from hiermusic.data.composer import NAMES
from hiermusic.evaluate import accompaniment, plots
from hiermusic.evaluate.accompaniment import OTHERS, OWN, TRUE, TRUE_OTHERS, Heard, Pair
from hiermusic.evaluate.music import Lead

FRAME = accompaniment.FRAME


def song(seed: int, seconds: float = 8.0) -> Heard:
    """Beats at a tempo and a beginning of its own, a triad a second."""
    rng = np.random.default_rng(seed)
    beats_N = np.arange(rng.uniform(0, 0.5), seconds, rng.uniform(0.4, 0.6))
    chroma_Tn = np.zeros((int(seconds / FRAME) + 1, 12))
    for start in range(int(seconds)):
        triad = accompaniment.chord_chroma(f"{NAMES[rng.integers(12)]}:{('maj', 'min')[rng.integers(2)]}")
        chroma_Tn[int(start / FRAME) :] = triad
    return Heard(Lead(chroma_Tn, beats_N), seconds)


def test_triads_have_their_notes():
    assert np.flatnonzero(accompaniment.chord_chroma("A:min")).tolist() == [0, 4, 9]
    assert np.flatnonzero(accompaniment.chord_chroma("Bb:maj")).tolist() == [2, 5, 10]


def test_chords_are_the_triads_a_chroma_is_most_like():
    chroma_Tn = np.repeat([accompaniment.chord_chroma(name) for name in ("C:maj", "A:min", "G:maj")], 40, axis=0)
    chroma_Tn = np.concatenate([np.zeros((40, 12)), chroma_Tn * np.linspace(1, 2, 12)])
    found = accompaniment.chords(chroma_Tn)
    assert [name for name, _, _ in found] == ["C:maj", "A:min", "G:maj"]
    assert [round(end / FRAME) for _, _, end in found] == pytest.approx([80, 120, 160], abs=2)
    assert accompaniment.chords(np.zeros((0, 12))) == []


def test_truth_is_what_the_song_says():
    told = {"truth": {"beats": [0.5, 1.0, 1.5], "chords": [["C:maj", 0.0, 1.0], ["G:maj", 1.0, 2.0]]}}
    truth = accompaniment.truth_of(told, 2.0)
    assert truth.lead.beats_N.tolist() == [0.5, 1.0, 1.5]
    assert accompaniment.chords(truth.lead.chroma_Tn)[1][0] == "G:maj"
    assert accompaniment.truth_of({"truth": {"beats": [0.5]}}, 2.0) is None
    assert accompaniment.truth_of({}, 2.0) is None


def test_two_sounds_are_compared_over_the_time_that_both_last():
    long, short = song(0, 8.0), song(0, 4.0)
    assert accompaniment.agree(long, short)["beat_agreement"] == 1.0
    assert accompaniment.agree(short, long)["beat_agreement"] == 1.0
    assert accompaniment.agree(long, short)["chroma_agreement"] == pytest.approx(1.0, abs=0.03)  # but for a last frame


def pairs(count: int, follows: bool, styles: int = 2) -> list[Pair]:
    songs = [song(seed) for seed in range(count)]
    made = songs if follows else [song(seed) for seed in range(1000, 1000 + count)]
    return [
        Pair(f"style {i % styles}", own, one, own, own) for i, (own, one) in enumerate(zip(songs, made, strict=True))
    ]


def test_what_follows_lies_above_chance_and_what_does_not_does_not():
    good, bad = (accompaniment.measure(pairs(12, follows)) for follows in (True, False))
    for key in accompaniment.MEASURES:
        assert good["above"][key]["low"] > 0.1 and good["of_the_way"][key] == pytest.approx(1.0)
        assert good["rows"][OWN][key]["mean"] == good["rows"][TRUE][key]["mean"] == pytest.approx(1.0)
        assert good["rows"][OTHERS][key]["mean"] < 0.7
        assert bad["above"][key]["low"] < 0.05 and abs(bad["of_the_way"][key]) < 0.3
        assert bad["rows"][TRUE_OTHERS][key] == good["rows"][OTHERS][key]
    assert "above chance" in good["verdict"] and "not beyond doubt above chance" in bad["verdict"]


def test_songs_are_exchanged_within_their_style_alone():
    """Two styles of one harmony and beat each: nothing within a style tells its songs apart."""
    one, other = song(1), song(2)
    same = [Pair(style, heard, heard) for style, heard in [("a", one), ("b", other)] * 5]
    found = accompaniment.measure(same)
    assert found["rows"][OTHERS]["chroma_agreement"]["mean"] == pytest.approx(1.0)
    assert found["above"]["chroma_agreement"]["mean"] == pytest.approx(0.0) and TRUE not in found["rows"]
    alone = accompaniment.measure([*same, Pair("c", song(3), song(3))])
    assert alone["rows"][OWN]["chroma_agreement"]["count"] == 11
    assert alone["rows"][OTHERS]["chroma_agreement"]["count"] == alone["above"]["chroma_agreement"]["count"] == 10


def test_few_songs_say_nothing():
    found = accompaniment.measure(pairs(3, True, styles=1))
    assert found["verdict"].startswith("3 songs: over fewer than 8 nothing can be said")
    (line, *_) = accompaniment.lines(found)[1:]
    assert "…" not in line
    assert accompaniment.measure(pairs(8, True, styles=8))["verdict"].startswith("No song has another of its style")


def test_sounds_are_found_beside_what_is_told_of_them(tmp_path):
    told = {"vocal": "a.wav", "sounds": {"mix": {"path": "as/it/was/a.mix.wav"}}}
    (tmp_path / "a.json").write_text(json.dumps(told))
    (tmp_path / "results.json").write_text('{"vocal": 1}')
    results, songs = accompaniment.read(tmp_path)
    assert results == {"vocal": 1} and [song["sounds"]["mix"]["path"] for song in songs] == [f"{tmp_path}/a.mix.wav"]


def test_a_timeline_names_its_lanes():
    svg = plots.timeline(4.0, {"beats": np.arange(4.0)}, {"chords": [("C:maj", 0.0, 2.0), ("G:maj", 2.0, 2.01)]}, [2.0])
    assert "beats" in svg and "C:maj" in svg and "G:maj" not in svg
