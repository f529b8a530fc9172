"""One codec's tokens in every order of prediction, through the verbs."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from hiermusic.systems import workdir
from hiermusic.systems.lm import models

from ..conftest import CONFIGS, TOKEN_LM, work

LM = (f"--config={CONFIGS.parent}/tokens/lm.py:tiny", *TOKEN_LM, "--config.model.levels=3")
STEPWISE = ["flatten", "delay", "parallel", "level_major"]
BY_LEVEL = ["layer_wise", "next_scale"]


@pytest.mark.parametrize("name", ["delay", *(pytest.param(name, marks=pytest.mark.slow) for name in
                                  ("flatten", "parallel", "level_major", *BY_LEVEL))])  # fmt: skip
def test_a_model_is_trained_told_measured_and_makes_a_song(khala, run, capsys, tmp_path, name):
    at, order = tmp_path / "lm", (f"--config.model.pattern={name}", "--config.model.length=320")
    work(("train", *LM, *order, f"--workdir={at}", f"--config.data.path={khala.tokens}", "--noprogress"))
    logged = [json.loads(line) for line in (at / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in logged if "loss" in line)
    capsys.readouterr()
    run("inspect", f"--workdir={at}", "--json")
    told = json.loads(capsys.readouterr().out)
    assert (told["pattern"], told["levels"], told["system"], told["stage"]) == (name, 3, "tokens", "lm")
    asked = ("--tags=slow", "--seconds=1", "--seed=3", "--json")
    songs = []
    for out in ("one", "two"):
        run("generate", f"--lm={at}", f"--out={tmp_path / out}", *asked)
        songs.append(soundfile.read(tmp_path / out / "song.wav")[0])
    np.testing.assert_array_equal(*songs)
    assert len(songs[0]) and np.isfinite(songs[0]).all()
    if name in ("level_major", *BY_LEVEL):  # which cannot end early
        assert len(songs[0]) == pytest.approx(22_050, abs=512)  # half a frame


@pytest.mark.slow
def test_a_model_behind_another_stream_is_trained_and_measured_and_makes_no_song(khala, capsys, run, tmp_path):
    """The other stream is all levels of the same tracks, as a folder of its own."""
    at, other = tmp_path / "lm", tmp_path / "other"
    shutil.copytree(khala.tokens, other)
    prefix = (f"--config.data.prefix=('{other}',)", "--config.model.codec_tables=False", "--config.model.length=400")
    evaluate = ("evaluate", f"--workdir={at}", "--tracks=2")
    work(("train", *LM, *prefix, f"--workdir={at}", f"--config.data.path={khala.tokens}", "--noprogress"), evaluate)
    measured = json.loads((at / "evaluation" / "results.json").read_text())
    rows = measured["predictability"]
    assert [row["level"] for row in rows] == [0, 1, 2, "all"] and all(np.isfinite(row["model"]) for row in rows)
    with pytest.raises(SystemExit):
        run("generate", f"--lm={at}", f"--out={tmp_path / 'songs'}", "--seconds=1")
    assert "and no flag gives these" in capsys.readouterr().err


def test_what_is_compiled_to_generate_follows_the_pattern():
    """In shapes alone: the program of each pattern's engine, lowered."""
    from hiermusic import presets

    for name in (*STEPWISE, *BY_LEVEL):
        settings = {"model.pattern": name, "model.layers": 1, "model.width": 16, "model.length": 300}
        config = presets.load("configs/tokens/lm.py:tiny", settings)
        made = workdir.system(config).rooms.program(config, 2)
        assert made.name.split(": ")[1] in ("64 steps", "one pass", "a window") and made.seconds > 0
        drawn = models.hierarchy(config).rates[models.pattern_of(config).given :]
        assert made.tokens / made.seconds == pytest.approx(float(sum(drawn)))
        made.function.lower(*made.arguments, **made.static)
