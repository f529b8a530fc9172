"""Whether tokens are what they are taken for: each check passes on what is right and fails on what was put wrong."""

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hiermusic.errors import UserError
from hiermusic.evaluate import run, sections, verify

LEVELS, CODES = 8, 16


@pytest.fixture
def books_KVD():
    """Codebooks of a residual quantiser: each level half as long as the one before."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(LEVELS, CODES, 4)) * 0.5 ** np.arange(LEVELS)[:, None, None]


@pytest.fixture
def codes_TK():
    return np.random.default_rng(1).integers(CODES, size=(60, LEVELS))


def decoder(books_KVD):
    def decode(codes_TK, levels):
        return sum(books_KVD[k][codes_TK[:, k]] for k in range(levels))

    return decode


def test_norms_of_codes_fall_with_depth_and_do_not_where_levels_stand_in_reverse(books_KVD, codes_TK):
    check = verify.norms(books_KVD, [codes_TK[:30], codes_TK[30:]])
    assert check.passed and check.figure == pytest.approx(-1)
    wanted_K = np.linalg.norm(books_KVD, axis=-1)[np.arange(LEVELS), codes_TK].mean(0)
    np.testing.assert_allclose(check.values, wanted_K)
    assert verify.norms(books_KVD[::-1], [codes_TK]).passed is False
    assert verify.norms(books_KVD[:1], [codes_TK[:, :1]]).passed is None


def test_the_ratio_rises_with_levels_and_does_not_where_one_makes_things_worse(books_KVD, codes_TK):
    check = verify.snr(decoder(books_KVD), [codes_TK])
    assert check.passed and check.figure > 3 and len(check.values) == 3  # of 1, 2 and 4 levels
    whole_TD = decoder(books_KVD)(codes_TK, LEVELS)
    error_TD = whole_TD - decoder(books_KVD)(codes_TK, 2)
    assert check.values[1] == pytest.approx(10 * math.log10(np.square(whole_TD).sum() / np.square(error_TD).sum()))
    worse = books_KVD.copy()
    worse[2] = -worse[1]  # which takes back what the level before it brought
    codes_TK[:, 2] = codes_TK[:, 1]
    assert verify.snr(decoder(worse), [codes_TK]).passed is False
    assert verify.snr(lambda codes_TK, levels: np.zeros((4, 1)), [codes_TK]).passed is None


def test_a_preference_passes_where_its_interval_is_above_nothing():
    rng, real = np.random.default_rng(2), np.full(12, 3.0)
    nats = {"real": real, "a": real + rng.uniform(0.1, 0.3, 12), "b": real + rng.normal(0, 1, 12), "c": real * np.nan}
    a, b, c = verify.prefers(nats, 12)
    assert a.passed and a.figure == pytest.approx(np.mean(nats["a"] - real) / math.log(2))
    assert b.passed is False and c.passed is None and "mean of 0 of 12 tracks" in c.unit


def tracks():
    rng = np.random.default_rng(3)
    words = [{"tags": "a", "lyrics": "la"}, {"tags": "b", "lyrics": "la"}, {"tags": "a"}, {"tags": "a", "lyrics": "lu"}]
    return [{"codes": rng.integers(9, size=(7, 3)), "meta": {"seconds": 2.0 + i, **w}} for i, w in enumerate(words)]


def changed(name, index):
    all_of = tracks()
    found = {part: change for key, change in verify.changes(3).items() for part in [key] if name in key}
    (change,) = found.values()
    return all_of[index], change(lambda i: all_of[i % 4], index)


def test_other_lyrics_are_those_of_the_next_song_that_has_others():
    own, other = changed("other lyrics", 0)
    assert other["meta"] == {"seconds": 2.0, "tags": "a", "lyrics": "lu"}
    assert other["codes"] is own["codes"] or np.array_equal(other["codes"], own["codes"])
    assert changed("other lyrics", 2)[1] is None  # has none


def test_another_songs_prompt_keeps_the_length_alone():
    _, other = changed("another song's prompt", 1)
    assert other["meta"] == {"seconds": 3.0, "tags": "a"}


def test_levels_swap_in_pairs_and_frames_are_shuffled_together():
    own, other = changed("swapped levels", 0)
    np.testing.assert_array_equal(other["codes"], own["codes"][:, [1, 0, 2]])
    own, other = changed("shuffled", 0)
    assert not np.array_equal(own["codes"], other["codes"])
    assert sorted(map(tuple, own["codes"])) == sorted(map(tuple, other["codes"]))
    assert not any("swapped" in name for name in verify.changes(1))


def test_the_verdicts_are_told(books_KVD, codes_TK):
    checks = [verify.norms(books_KVD, [codes_TK]), verify.norms(books_KVD[::-1], [codes_TK])]
    checks += verify.prefers({"real": np.zeros(2), "words": np.full(2, np.nan)}, 2)
    told = run.lines({"verification": [check.to_json() for check in checks]})
    assert [line.split(":")[0] for line in told] == ["pass", "FAIL", "not measured"]
    section = sections.verification([check.to_json() for check in checks])
    assert section.text == "1 of 3 checks fail."


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        ("none", "w reads no words, which tokens are verified by"),
        ("bytes", "w does not know the tokens of any music: give token records with --data=DIR"),
    ],
)
def test_what_cannot_be_verified_is_told_before_tokens_are_looked_for(monkeypatch, tokenizer, words):
    config = run.ConfigDict({"stage": "lm", "system": "x", "model": {"tokenizer": tokenizer}, "data": {"path": ""}})
    monkeypatch.setattr(run.workdirs, "load", lambda workdir: (config, None))
    rooms = SimpleNamespace(likelihood=lambda *told: {})
    monkeypatch.setattr(run.workdirs, "system", lambda config: SimpleNamespace(rooms=rooms))
    with pytest.raises(UserError, match=words):
        run._verified("w", Path("out"), None, 1.0, 1)


def test_a_codec_is_refused(monkeypatch):
    config = run.ConfigDict({"stage": "codec", "system": "x", "model": {"tokenizer": "none"}, "data": {"path": "t"}})
    monkeypatch.setattr(run.workdirs, "read", lambda workdir: config)
    with pytest.raises(UserError, match="--verify_tokens asks a token model about its tokens, w is a codec"):
        run.evaluate("w", "out", data=None, seconds=1.0, tracks=1, verify_tokens=True)


def test_tokens_of_segments_are_heard_from_the_beginning_of_one_on():
    """The middle six of 33 frames begin with frame 13; segments of five begin with frame 10."""
    codes_TK = np.arange(33)[:, None]
    hierarchy = SimpleNamespace(rates=(3,))
    for segments, first in ((None, 13), (SimpleNamespace(frames=5), 10)):
        codec = SimpleNamespace(hierarchy=hierarchy, config=SimpleNamespace(segments=segments))
        assert run._middle(codes_TK, codec, 2.0)[:, 0].tolist() == list(range(first, first + 6))
