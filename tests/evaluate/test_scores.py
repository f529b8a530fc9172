"""Intervals beside distributions whose quantiles are known, and hashes that tell apart what must not be compared."""

import math

import numpy as np
import pytest
from scipy import stats

from hiermusic.errors import UserError
from hiermusic.evaluate import scores
from hiermusic.evaluate.tokens import compare
from hiermusic.tokens.hierarchy import Hierarchy

HALVES = [0.0, 1.0] * 50  # resampled, their sum is binomial
LOW, HIGH = (stats.binom.ppf(q, 100, 0.5) / 100 for q in (0.025, 0.975))


def test_an_interval_holds_95_per_cent_of_a_known_distribution():
    """At 90 % it would be 0.42 to 0.58, at 99 % 0.37 to 0.63."""
    assert (LOW, HIGH) == (0.40, 0.60)
    found = scores.interval(HALVES, resamples=20_000)
    assert (found["low"], found["mean"], found["high"]) == (pytest.approx(LOW), 0.5, pytest.approx(HIGH))
    assert found["count"] == 100 and found["values"] == HALVES


def test_a_gap_holds_95_per_cent_of_a_known_distribution():
    """The difference of two such sums is binomial too, of twice as many."""
    found = scores.gap(np.array(HALVES) + 3, HALVES, resamples=20_000)
    low, high = ((stats.binom.ppf(q, 200, 0.5) - 100) / 100 for q in (0.025, 0.975))
    assert found["mean"] == 3 and (found["low"], found["high"]) == (pytest.approx(3 + low), pytest.approx(3 + high))


def test_the_interval_of_a_table_of_tokens_is_one_of_95_per_cent():
    """100 tracks of a token each, half of which cost a bit more than counting and half of which a bit less."""
    counts_NKV = np.tile([[[1, 0]]], (100, 1, 1))
    sums_NK = math.log(2) * (1 + np.array(HALVES)[:, None] * 2 - 1)
    rows = compare(sums_NK, counts_NKV, np.zeros((1, 2), int), Hierarchy.uniform(1, 1, 2))
    for row in rows:
        found = row["difference"]
        low, high = 2 * LOW - 1, 2 * HIGH - 1
        assert (found["low"], found["high"]) == (pytest.approx(low, abs=0.021), pytest.approx(high, abs=0.021))


def test_intervals_cover_the_truth_as_often_as_they_say():
    draw = np.random.default_rng(0)
    covers = [found["low"] <= 0 <= found["high"] for found in
              (scores.interval(draw.normal(size=60), seed=seed, resamples=400) for seed in range(600))]  # fmt: skip
    assert 0.92 < np.mean(covers) < 0.965


def test_a_seed_gives_the_same_interval_and_another_one_another():
    values = np.random.default_rng(0).normal(size=20)
    one, again, other = (scores.interval(values, seed) for seed in (0, 0, 1))
    assert one == again and one["low"] != other["low"]
    one, again, other = (scores.gap(values, values, seed) for seed in (0, 0, 1))
    assert one == again and one["low"] != other["low"]
    table = [scores.summarise([{"a": value} for value in values], seed)["a"] for seed in (0, 1)]
    assert [cell["low"] for cell in table] == [scores.interval(values, seed)["low"] for seed in (0, 1)]
    pairs = scores.interval(values), scores.interval(values**2)
    assert scores.difference(*pairs, seed=1) == scores.interval(values - values**2, seed=1)


def test_clips_below_the_gate_are_not_heard():
    level = 10 ** (-40 / 20)
    clips = [np.full((8, 2), gain * level) for gain in (1.01, 0.99, 0.0)]
    (kept,) = scores.audible(clips, -40.0)
    assert kept is clips[0]
    with pytest.raises(UserError, match=r"none of the 2 clips reaches -40\.0 dBFS"):
        scores.audible(clips[1:], -40.0)


def test_any_sample_any_length_and_any_order_makes_another_hash():
    clips = [np.zeros((4, 1), np.float32), np.ones((4, 1), np.float32)]
    same = scores.clips_hash([clip.astype(np.float64) for clip in clips])
    assert scores.clips_hash(clips) == same and len(same) == 12
    changed = clips[1].copy()
    changed[-1] += 1e-6
    others = [clips[::-1], [clips[0], changed], [clips[0].reshape(2, 2), clips[1]], clips[:1]]
    assert len({same, *map(scores.clips_hash, others)}) == 5


def test_a_score_is_all_measures_of_the_pair(monkeypatch):
    draw = np.random.default_rng(0)
    ref_LC = draw.normal(0, 0.1, (4000, 1))
    est_LC = ref_LC + draw.normal(0, 0.01, (4000, 1))
    est_LC[2000:] = 0
    found = scores.score(ref_LC, est_LC, 8000)
    measure = scores.measure
    assert found == {
        "si_sdr": measure.si_sdr(ref_LC, est_LC),
        "sdr": measure.sdr(ref_LC, est_LC),
        "mel": measure.mel_distance(ref_LC, est_LC, 8000),
        "stft": measure.stft_distance(ref_LC, est_LC),
        "silence": 0.5,
    }
    assert [(name, higher) for name, (_, _, higher) in scores.SCORES.items()] == [
        ("si_sdr", True), ("sdr", True), ("mel", False), ("stft", False)
    ]  # fmt: skip
