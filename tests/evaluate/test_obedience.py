"""Whether songs are what was asked for: permutations on made-up answers, detectors on sounds that are known."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from hiermusic.evaluate import detectors, obedience

RATE = 22050


def test_what_prompts_and_tracks_say():
    said = obedience.asked({"tags": "Pop, fast, happy, piano, no drums, 128 bpm", "lyrics": "la", "seconds": 8})
    assert said == {"drums": "no", "mode": "major", "pace": "fast", "voice": "yes", "tempo": 128.0, "length": 8.0}
    assert obedience.asked({"tags": "slow, sad, drums, female voice", "truth": {"tempo": 71.5}}) == {
        "drums": "yes",
        "mode": "minor",
        "pace": "slow",
        "voice": "yes",
        "tempo": 71.5,
    }
    assert obedience.asked({"tags": "medium tempo", "instrumental": True}) == {"pace": "medium", "voice": "no"}
    assert obedience.asked({"tags": "instrumental, medium"}) == {"pace": "medium", "voice": "no"}
    assert obedience.asked({"tags": "slow, fast, invoice, drumsticks"}) == {}  # neither both nor parts of words


def test_tempo_and_length_match_within_their_tolerance():
    assert obedience.tempo_matches(124.7, 120) and not obedience.tempo_matches(125, 120)
    assert obedience.tempo_matches(61, 120) and obedience.tempo_matches(239, 120)
    assert not obedience.tempo_matches(90, 120) and not obedience.tempo_matches(float("nan"), 120)
    assert obedience.length_matches(8.1, 10) and not obedience.length_matches(7.9, 10)


def test_prompts_of_known_tracks():
    """More prompts than tracks: the same words again with another seed; what a prompt cannot say is left out."""
    make = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "prompts.py"))["prompts"]
    meta = {"tags": "slow, drums", "lyrics": "", "description": "A song.", "truth": {"tempo": 70.0}}
    asked = make([(5.04, meta), (8.0, {"instrumental": True})], 3)
    assert [one.pop("name") for one in asked] == ["prompt-000", "prompt-001", "prompt-002"]
    assert asked[0] == {"tags": "slow, drums", "seconds": 5.0, "seed": 0} == asked[2] | {"seed": 0}
    assert asked[1] == {"instrumental": True, "seconds": 8.0, "seed": 1} and asked[2]["seed"] == 2


def equal(heard, wanted) -> bool:
    return heard == wanted


def test_obeying_songs_stand_out_from_permuted_prompts():
    wanted = ["yes", "no"] * 20
    found = obedience.agreement(wanted, wanted, equal)
    assert found["share"]["mean"] == 1 and found["share"]["count"] == 40
    assert found["permuted"] == pytest.approx(0.5) and found["gain"]["low"] > 0.4 and found["p"] < 0.01


def test_songs_that_are_always_the_same_gain_nothing():
    """Nine of ten prompts want drums: songs that always have them obey 90 %, and so they do under any prompts."""
    found = obedience.agreement(["yes"] * 40, (["yes"] * 9 + ["no"]) * 4, equal)
    assert found["share"]["mean"] == pytest.approx(0.9) == found["permuted"]
    assert found["gain"]["low"] <= 0 <= found["gain"]["high"] and found["p"] == 1


def test_songs_by_chance_gain_nothing_beyond_doubt():
    draw = np.random.default_rng(1)
    heard, wanted = (draw.choice(["a", "b", "c"], 60).tolist() for _ in range(2))
    found = obedience.agreement(heard, wanted, equal)
    assert found["gain"]["low"] < 0 < found["gain"]["high"] and found["p"] > 0.05


def groups(sure: float, seed: int, count: int = 30):
    """Songs of which timbre tells drums with some sureness, and the rest nothing."""
    draw, songs = np.random.default_rng(seed), []
    for _ in range(count):
        drums = draw.integers(2)
        one = {"timbre": draw.normal(size=4) + sure * drums, "harmony": draw.normal(size=4), "rhythm": np.zeros(3)}
        said = {"drums": ("no", "yes")[drums], "mode": ("minor", "major")[draw.integers(2)]}
        tempo = 100.0 + 30 * drums
        songs.append((one | {"tempo": np.float64(tempo), "length": np.float64(8)}, said | {"tempo": tempo}))
    return songs


def test_detectors_are_learnt_and_tried_on_the_corpus():
    found = obedience.measure(groups(3.0, 0), groups(3.0, 1, 60), groups(3.0, 2))
    assert set(found) == {"tempo", "drums", "mode"}  # nothing says anything of voice, pace and length
    assert found["drums"]["corpus"]["share"]["mean"] > 0.9 < found["drums"]["songs"]["share"]["mean"]
    assert found["drums"]["trusted"] and found["tempo"]["trusted"]
    assert not found["mode"]["trusted"]  # its features are noise, and the held-out songs say so


def test_what_has_too_few_examples_is_not_learnt():
    features = [{"timbre": np.array([float(n)])} for n in range(12)]
    labels = ["yes"] * 8 + ["no"] * 4
    assert detectors.fit(features, labels, "drums") is None
    detect = detectors.fit([*features, {"timbre": np.array([12.0])}], [*labels, "no"], "drums")
    assert [detect({"timbre": np.array([n])}) for n in (0.0, 12.0)] == ["yes", "no"]


def chords(minor: bool, key: int) -> np.ndarray:
    """I-IV-V-I of a key, major or natural minor, with the root in the bass; a click on every beat of 0.5 s."""
    time_L, parts = np.arange(RATE // 2) / RATE, []
    for root, triad in zip((0, 5, 7, 0) * 2, ((0, 3 if minor else 4, 7),) * 8, strict=True):
        notes = [48 + key + root - 12, *(60 + (key + root) % 12 + step for step in triad)]
        tone_L = sum(np.sin(2 * np.pi * 440 * 2 ** ((note - 69) / 12) * time_L) for note in notes)
        parts.append(np.exp(-4 * time_L) * tone_L)
    return 0.05 * np.concatenate(parts)[:, None]


def test_harmony_is_the_same_in_every_key():
    major, higher, minor = (detectors.hear(chords(*how), RATE) for how in ((False, 0), (False, 5), (True, 0)))
    near, far = (np.abs(major["harmony"] - other["harmony"]).sum() for other in (higher, minor))
    assert near < 0.5 * far
    assert major["length"] == pytest.approx(4) and obedience.tempo_matches(major["tempo"], 120)


def test_features_of_silence_are_finite():
    heard = detectors.hear(np.zeros((RATE // 4, 2), np.float32), RATE)
    assert all(np.isfinite(heard[name]).all() for name in ("timbre", "harmony", "rhythm"))


def test_a_rhythm_is_the_same_however_strong_its_onsets():
    onset_T = np.tile([1.0, 0.2, 0.5, 0.2], 100) + 0.1 * np.random.default_rng(0).random(400)
    one, other = (detectors._rhythm(gain * onset_T, 0.02) for gain in (0.1, 7.0))
    np.testing.assert_allclose(one, other, rtol=1e-6)
    assert np.ptp(one) > 0.5
