"""All three stages through the verbs: trained, killed, told, measured, and playing to a vocal."""

import json

import numpy as np
import pytest

from hiermusic.systems.hafm.songs import STAGES, Accompanist

from ..conftest import CONFIGS, work
from ..kills import ends_in_the_same_bits
from .streams import LENGTHS, SMALL, track, write

STEPS = 12


def train(stage: str, workdir, tokens) -> list[str]:
    model = {**SMALL, "length": LENGTHS[stage]}
    every = {
        "log_every": 1,
        "checkpoint_every": 2,
        "valid_every": 4,
        "steps": STEPS,
        "batch_size": 2,
        "decay_steps": 40,
    }
    fields = [f"--config.model.{name}={value}" for name, value in model.items()]
    fields += [f"--config.train.{name}={value}" for name, value in every.items()]
    at = [f"--config={CONFIGS.parent}/hafm/{stage}.py:tiny", f"--workdir={workdir}", f"--config.data.path={tokens}"]
    return ["train", *at, *fields, "--noprogress"]


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return write(tmp_path_factory.mktemp("streams"))


@pytest.mark.slow
def test_stages_are_trained_told_measured_and_play(tokens, tmp_path, run, capsys):
    places = {stage: tmp_path / stage for stage in STAGES}
    work(*(words for stage, place in places.items() for words in (
        train(stage, place, tokens), ("evaluate", f"--workdir={place}", "--tracks=2"))))  # fmt: skip
    for stage, place in places.items():
        capsys.readouterr()
        run("inspect", f"--workdir={place}", "--json")
        told = json.loads(capsys.readouterr().out)
        assert (told["system"], told["stage"], told["sequence_length"]) == ("hafm", stage, LENGTHS[stage])
        found = json.loads((place / "evaluation" / "results.json").read_text())["predictability"]
        assert all(np.isfinite(row["model"]) for row in found[2 if stage == "fine" else 0 :])  # coarse levels are given
    accompanist = Accompanist.open(**{name: str(place) for name, place in places.items()})
    assert accompanist.window == 30 and accompanist.levels == 4
    (one,) = accompanist.accompany([track(0)["vocals/semantic"][:30, 0]], seeds=[0])
    assert one.semantic_T.shape == (30,) and one.codes_TK.shape == (15, 4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_ends_in_the_same_bits(tokens, tmp_path, stage):
    ends_in_the_same_bits(lambda workdir: train(stage, workdir, tokens), tmp_path, STEPS, STEPS // 3)
