"""Real stages killed at a random step and started again end with the bits of a run that was left alone."""

import pytest

from .kills import ends_in_the_same_bits

STEPS = 30


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["codec", "superres"])
def test_a_killed_run_ends_in_the_same_bits(khala, miniature, tmp_path, stage):
    data = khala.corpus if stage == "codec" else khala.tokens
    every = ("--config.train.log_every=1", "--config.train.checkpoint_every=2", "--config.train.valid_every=5")
    steps = (f"--config.train.steps={STEPS}", "--config.train.decay_steps=40")

    def train(workdir):
        where = (f"--workdir={workdir}", f"--config.data.path={data}", "--noprogress")
        return ["train", *miniature(stage), *every, *steps, *where]

    ends_in_the_same_bits(train, tmp_path, STEPS, STEPS // 3)
