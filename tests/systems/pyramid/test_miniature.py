"""PyramidCodec's language model in miniature through the verbs, on the codes of the miniature of its codec."""

import json
import runpy
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from ..conftest import CONFIGS, TOKEN_LM, shared, work
from ..kills import ends_in_the_same_bits
from .test_codec import pyramid as coded  # noqa: F401  the fixture

LM = (
    f"--config={CONFIGS.parent}/pyramid/lm.py:tiny",
    *TOKEN_LM,
    "--config.model.levels=0",  # level 1 has two codebooks
    "--config.model.length=320",
    "--config.model.text_limit=40",
    "--config.model.codec_tables=False",
    "--config.model.head=shared",
    "--config.model.shared_embed=True",
    "--config.model.norm=layer",
    "--config.model.positions=learned",
)
RATE, PACKET, CODES = 4000, 80, 9


@pytest.fixture(scope="session")
def at(request, tmp_path_factory) -> SimpleNamespace:
    """Workdirs of the codec and of a language model of its tokens; no test may change them."""
    made = request.getfixturevalue("coded")
    trained = shared(tmp_path_factory, "pyramid_lm", ("lm",), lambda at: work(train(made, at.lm)))
    return SimpleNamespace(**vars(made) | {"lm": trained.lm})


def train(at: SimpleNamespace, where, *more: str) -> tuple[str, ...]:
    return ("train", *LM, *more, f"--workdir={where}", f"--config.data.path={at.tokens}", "--noprogress")


def sound(path) -> np.ndarray:
    return soundfile.read(path)[0]


@pytest.mark.slow
def test_songs_of_some_levels_and_of_any_length_are_made(at, run, tmp_path):
    """Half a second fits the context, a second and a half is made in windows; the first two levels are those of all."""
    prompts = [{"name": "a", "tags": "slow", "seconds": 0.5}, {"name": "b", "tags": "fast", "seconds": 1.5}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    asked = (f"--lm={at.lm}", f"--prompts={tmp_path / 'prompts.jsonl'}", "--seed=3")
    for out, more in (("all", ["--levels_too"]), ("again", []), ("two", ["--levels=3"])):
        run("generate", *asked, *more, f"--out={tmp_path / out}")
    for name, seconds in (("a", 0.5), ("b", 1.5)):
        whole = sound(tmp_path / "all" / f"{name}.wav")
        assert len(whole) == pytest.approx(seconds * RATE, abs=PACKET / 2) and np.isfinite(whole).all()
        np.testing.assert_array_equal(sound(tmp_path / "again" / f"{name}.wav"), whole)
        told = json.loads((tmp_path / "all" / f"{name}.json").read_text())
        assert list(told["versions"]) == ["levels_1", "levels_2"] and told["sampling"]["lm"]["levels"] == 0
    two, part = sound(tmp_path / "two" / "a.wav"), sound(tmp_path / "all" / "a.levels_2.wav")
    np.testing.assert_array_equal(two, part)


def test_what_is_heard_goes_on(at, run, tmp_path):
    time_L = np.arange(round(0.4 * RATE)) / RATE
    soundfile.write(tmp_path / "in.wav", 0.3 * np.sin(2 * np.pi * 220 * time_L), RATE)
    run("continue", f"--lm={at.lm}", "--tags=slow", "--seconds=1.2", f"--out={tmp_path}", tmp_path / "in.wav")
    whole = sound(tmp_path / "song.wav")
    assert len(whole) == pytest.approx(1.2 * RATE, abs=PACKET / 2)
    run("encode", f"--codec={at.codec}", tmp_path / "in.wav", tmp_path / "codes.npz")
    run("decode", f"--codec={at.codec}", tmp_path / "codes.npz", tmp_path / "kept.wav")
    kept = sound(tmp_path / "kept.wav")[: round(0.2 * RATE)]  # away from the seam, whose samples the new codes reach
    np.testing.assert_allclose(whole[: len(kept)], kept, atol=1e-3)


@pytest.mark.slow
def test_it_is_told_measured_and_exported(at, run, monkeypatch, capsys, tmp_path):
    """Also by benchmarks/token_kinds.py, here beside itself."""
    run("inspect", f"--workdir={at.lm}", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["sequence_length"] == 320 and told["tokens_per_second"] == RATE / PACKET * CODES
    work(("evaluate", f"--workdir={at.lm}", "--tracks=2", f"--out={tmp_path / 'found'}"),
         ("export", f"--workdir={at.lm}", f"--out={tmp_path / 'card'}"))  # fmt: skip
    rows = json.loads((tmp_path / "found" / "results.json").read_text())["predictability"]
    assert [row["level"] for row in rows] == [0, 1, 2, 3, "all"] and all(np.isfinite(row["model"]) for row in rows)
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["token_kinds", str(at.lm), f"{at.lm}/", "--tracks=2"])
    runpy.run_path(str(CONFIGS.parents[1] / "benchmarks" / "token_kinds.py"), run_name="__main__")
    one, other = ([cell.strip() for cell in line.split("|")] for line in capsys.readouterr().out.splitlines()[2:])
    rate, nominal, spent, counted = (float(cell.split()[0]) for cell in one[2:6])
    assert (rate, nominal) == (RATE / PACKET * CODES, np.round(RATE / PACKET * CODES * np.log2(16)))
    assert (spent, counted) == pytest.approx((rows[-1]["model"], rows[-1]["unigram"]), rel=0.05)
    assert one[2:7] == other[2:7] and (one[7], other[7]) == ("", "+0 (+0 … +0)")
    asked = ("--tags=slow", "--seconds=0.5", f"--codec={at.codec}")
    for name, model in (("run", at.lm), ("card", tmp_path / "card")):
        run("generate", f"--lm={model}", *asked, f"--out={tmp_path / name}")
    np.testing.assert_array_equal(*(sound(tmp_path / name / "song.wav") for name in ("run", "card")))


@pytest.mark.slow
def test_three_stages_make_a_song(at, run, tmp_path):
    stages = ((1, 0), (3, 1), (4, 3))
    for levels, given in stages:
        work(train(at, tmp_path / str(levels), f"--config.model.levels={levels}", f"--config.model.given={given}"))
    finer = f"--finer_lms={tmp_path / '3'},{tmp_path / '4'}"
    run("generate", f"--lm={tmp_path / '1'}", finer, "--tags=slow", "--seconds=0.5", f"--out={tmp_path / 'songs'}")
    assert len(sound(tmp_path / "songs" / "song.wav")) == pytest.approx(0.5 * RATE, abs=PACKET / 2)


@pytest.mark.slow
def test_a_killed_run_ends_in_the_same_bits(at, tmp_path):
    steps = 16
    every = ("--config.train.log_every=1", "--config.train.checkpoint_every=2", f"--config.train.steps={steps}")
    ends_in_the_same_bits(lambda place: train(at, place, *every), tmp_path, steps, steps // 2)
