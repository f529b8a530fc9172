import dataclasses
import json
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from hiermusic.errors import UserError
from hiermusic.evaluate.codec import Coder, Protocol, code_statistics, evaluate_codec
from hiermusic.evaluate.scores import difference, from_json, interval, protocol_hash, score, to_json
from hiermusic.tokens.hierarchy import Hierarchy, Level
from hiermusic.tokens.packets import levels_of

RATE, LEVELS = 4000, 4
HIERARCHY = Hierarchy.uniform(LEVELS, Fraction(RATE), 4)


def encode(wav_LC):
    """Two bits a level: a sample in [-1, 1) written in base 4, coarsest digit first."""
    whole = np.floor((wav_LC[:, 0] + 1) / 2 * 4**LEVELS).astype(int).clip(0, 4**LEVELS - 1)
    return np.stack([whole // 4 ** (LEVELS - 1 - k) % 4 for k in range(LEVELS)], axis=1)


def decode(codes, levels, clip=None):
    weights = 4.0 ** -np.arange(1, levels + 1)
    return ((codes[:, :levels] @ weights + weights[-1] / 2) * 2 - 1)[:, None]


@pytest.fixture
def clips():
    times = np.arange(RATE) / RATE
    return [(0.8 * np.sin(2 * np.pi * f * times))[:, None].astype(np.float32) for f in (100, 230, 345)]


@pytest.fixture
def coder():
    return Coder(encode, decode, RATE, 1, HIERARCHY)


def test_more_levels_rebuild_better(coder, clips):
    result = evaluate_codec(coder, clips, Protocol(levels=(1, 2, 3, 16)))
    rows = result["reconstruction"]
    assert [row["levels"] for row in rows] == [1, 2, 3, LEVELS]
    assert [row["bits_per_second"] for row in rows] == [2 * RATE * n for n in (1, 2, 3, 4)]
    for name, order in (("si_sdr", 1), ("sdr", 1), ("mel", -1), ("stft", -1)):
        means = [order * row[name]["mean"] for row in rows]
        assert means == sorted(means)
    # a uniform quantiser gains 6.02 dB a bit
    assert rows[3]["sdr"]["mean"] - rows[2]["sdr"]["mean"] == pytest.approx(12.04, abs=1)
    assert rows[0]["sdr"]["low"] <= rows[0]["sdr"]["mean"] <= rows[0]["sdr"]["high"]
    assert result["anchors"]["random_codes"]["si_sdr"]["mean"] < rows[0]["si_sdr"]["mean"]
    assert result["anchors"]["shuffled_clips"]["si_sdr"]["mean"] < rows[0]["si_sdr"]["mean"]
    assert result["clips"] == 3 and result["seconds"] == pytest.approx(3)
    music = result["music"]
    assert next(iter(music)) == "the clips themselves"
    assert list(music)[3:] == ["1 level", "2 levels", "3 levels", "4 levels"]
    heard = [music[name]["tonality"]["mean"] for name in ("the clips themselves", "4 levels", "noise shaped like it")]
    assert heard[0] == pytest.approx(heard[1], abs=0.1) and heard[1] > heard[2]
    agreed = {name: row["chroma_agreement"]["mean"] for name, row in music.items()}
    assert agreed["the clips themselves"] == pytest.approx(1, abs=1e-5)
    assert agreed["4 levels"] > 0.9 > agreed["noise shaped like it"]
    json.dumps(result)


def test_effective_rate_is_the_entropy(coder, clips):
    result = evaluate_codec(coder, clips, Protocol(levels=()))
    (row,) = result["reconstruction"]
    assert row["effective_bits_per_second"] == pytest.approx(RATE * sum(r["entropy_bits"] for r in result["codes"]))
    assert row["efficiency"] == pytest.approx(np.mean([r["efficiency"] for r in result["codes"]]))
    assert 0 < row["efficiency"] <= 1


def test_silent_clips_are_left_out_and_counted(coder, clips):
    result = evaluate_codec(coder, [*clips, 1e-5 * clips[0]], Protocol(levels=(1,)))
    assert result["silent_clips"] == 1 and result["reconstruction"][0]["sdr"]["count"] == 3
    with pytest.raises(UserError, match="dBFS"):
        evaluate_codec(coder, [0 * clips[0]])


def test_levels_of_unequal_rate(clips):
    """Codes as one array a level: a slow level of block means, a fast one of what remains."""
    hierarchy = Hierarchy((Level("slow", Fraction(RATE, 40), 64), Level("fast", Fraction(RATE), 64)))

    def encode_pyramid(wav_LC):
        slow = np.floor((wav_LC.reshape(-1, 40).mean(axis=1) + 1) * 32).astype(int).clip(0, 63)
        rest = wav_LC[:, 0] - np.repeat((slow + 0.5) / 32 - 1, 40)
        return slow[:, None], np.floor((rest + 1) * 32).astype(int).clip(0, 63)[:, None]

    def decode_pyramid(codes, levels, clip=None):
        wav = np.repeat((codes[0] + 0.5) / 32 - 1, 40, axis=0)
        return wav + ((codes[1] + 0.5) / 32 - 1 if levels > 1 else 0)

    def means(wav_LC):
        return np.repeat(wav_LC.reshape(-1, 40).mean(axis=1), 40)[:, None]

    coder = Coder(encode_pyramid, decode_pyramid, RATE, 1, hierarchy, {1: means})
    result = evaluate_codec(coder, clips, Protocol(levels=()))
    assert [row["bits_per_second"] for row in result["reconstruction"]] == [600, 600 + 6 * RATE]
    assert result["reconstruction"][1]["sdr"]["mean"] > 20
    slow, both = result["reconstruction"]
    wanted = [score(means(clip), decode_pyramid(encode_pyramid(clip), 1), RATE)["sdr"] for clip in clips]
    assert slow["own_target"]["sdr"]["mean"] == pytest.approx(np.nanmean(wanted), rel=1e-5)
    assert slow["own_target"]["sdr"]["mean"] > slow["sdr"]["mean"] and "own_target" not in both


def test_code_statistics_of_known_distributions():
    codes = np.stack([np.arange(64) % 4, np.zeros(64, int), np.arange(64) % 2], axis=1)
    flat, single, half = code_statistics([codes[:40], codes[40:]], Hierarchy.uniform(3, Fraction(50), 4))
    assert (flat["usage"], flat["perplexity"], flat["entropy_bits"], flat["efficiency"]) == (1, 4, 2, 1)
    assert (single["usage"], single["perplexity"], single["entropy_bits"]) == (0.25, 1, 0)
    assert (half["usage"], half["perplexity"], half["efficiency"], half["tokens"]) == (0.5, 2, 0.5, 64)


def test_codes_may_lie_on_a_device():
    codes = jnp.arange(12).reshape(6, 2)
    assert [level.tolist() for level in levels_of(codes)] == [[0, 2, 4, 6, 8, 10], [1, 3, 5, 7, 9, 11]]


def test_what_is_kept_beside_codes_comes_of_the_clip_itself(coder, clips):
    """As the loudness of a codec that codes all sounds at one."""

    def loud(clip):
        return np.abs(clip).max()

    def of_one_loudness(codes, levels, clip):
        return decode(codes, levels) * loud(clip)

    quiet = [clip * gain for clip, gain in zip(clips, (0.1, 0.3, 0.5, 0.7, 0.9), strict=False)]
    scaled = Coder(lambda clip: encode(clip / loud(clip)), of_one_loudness, RATE, 1, HIERARCHY)
    found, plain = (evaluate_codec(one, quiet, Protocol(levels=())) for one in (scaled, coder))
    assert found["reconstruction"][-1]["sdr"]["mean"] > plain["reconstruction"][-1]["sdr"]["mean"] + 3


def test_wrong_channels_and_short_decodes_are_refused(coder, clips):
    with pytest.raises(UserError, match="clip 1"):
        evaluate_codec(coder, [clips[0], np.repeat(clips[0], 2, axis=1)])
    short = Coder(encode, lambda codes, levels, clip: decode(codes, levels)[:-100], RATE, 1, HIERARCHY)
    with pytest.raises(UserError, match="whole clips"):
        evaluate_codec(short, clips)


def test_interval_leaves_nan_out_and_covers_the_mean():
    values = np.random.default_rng(0).normal(3, 1, size=400)
    cell = interval([*values, math.nan])
    assert cell["count"] == 400 and cell["mean"] == pytest.approx(values.mean())
    # percentile bootstrap of a mean: about mean -+ 1.96 s / sqrt(n)
    assert cell["high"] - cell["low"] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    assert interval([2.0, 2.0])["low"] == 2.0 and interval([math.nan])["count"] == 0


def test_clips_that_differ_more_than_codecs_do_are_compared_one_by_one():
    clips = np.random.default_rng(0).normal(0, 10, size=8)
    first, second = interval(clips), interval([*(clips[:7] + np.linspace(0.5, 1.5, 7)), math.nan])
    assert second["low"] < first["mean"] < second["high"]
    gain = difference(second, first)
    assert 0.5 < gain["low"] < gain["mean"] < gain["high"] < 1.5 and gain["count"] == 7
    with pytest.raises(ValueError):
        difference(first, interval(clips[:5]))


def test_codecs_are_told_apart_in_a_table(coder, clips, tmp_path):
    """benchmarks/codec_table.py: a whole codec, one that drops half of its levels, one measured on other clips."""
    coarse = Coder(encode, lambda codes, levels, clip: decode(codes, min(levels, 2)), RATE, 1, HIERARCHY)
    for name, codec, sounds in (("fine", coder, clips), ("coarse", coarse, clips), ("other", coder, clips[:2])):
        (tmp_path / name / "evaluation").mkdir(parents=True)
        result = to_json(evaluate_codec(codec, sounds, Protocol(levels=())))
        (tmp_path / name / "evaluation" / "results.json").write_text(json.dumps(result))
    script = Path(__file__).parents[2] / "benchmarks" / "codec_table.py"

    def table(*names):
        command = [sys.executable, script, *(tmp_path / name for name in names)]
        return subprocess.run(command, capture_output=True, text=True)

    lines = table("fine", "coarse").stdout.splitlines()
    assert lines[2].startswith(f"| fine | {4 * RATE} | {8 * RATE} | ")
    assert lines[-1].startswith("| coarse | -") and lines[-1].count(") no |") == 4
    assert table("coarse", "fine").stdout.splitlines()[-1].count(") yes |") == 4
    assert "own" not in "".join(lines)
    (tmp_path / "aimed" / "evaluation").mkdir(parents=True)
    result = evaluate_codec(dataclasses.replace(coder, targets={2: lambda clip: clip}), clips, Protocol(levels=()))
    (tmp_path / "aimed" / "evaluation" / "results.json").write_text(json.dumps(to_json(result)))
    *_, heading, _, row = table("aimed").stdout.splitlines()
    assert heading.startswith("| run | codebooks | ") and row.startswith("| aimed | 2 | ")
    score = result["reconstruction"][0]["own_target"]["si_sdr"]
    assert f" | {score['mean']:.2f} ({score['low']:.2f} … {score['high']:.2f}) | " in row
    refused = table("fine", "other")
    assert refused.returncode == 1 and "other was not measured on the clips of fine" in refused.stderr


def test_protocol_hash_tells_settings_apart():
    assert protocol_hash({"a": 1, "b": 2}) == protocol_hash({"b": 2, "a": 1}) != protocol_hash({"a": 1, "b": 3})


def test_results_go_through_json_without_nan():
    result = {"mean": math.nan, "rows": [{"a": -math.inf, "level": "all"}, (1, 2.5)], "done": True}
    text = json.dumps(to_json(result), allow_nan=False)
    assert json.loads(text) == {"mean": None, "rows": [{"a": None, "level": "all"}, [1, 2.5]], "done": True}
    back = from_json(json.loads(text))
    assert math.isnan(back["mean"]) and math.isnan(back["rows"][0]["a"]) and back["rows"][1] == [1, 2.5]
