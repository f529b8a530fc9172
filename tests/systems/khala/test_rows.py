"""Super-resolution's own training rows: Task 0, and the mixture of tasks."""

import numpy as np
import pytest

from hiermusic.systems.khala import rows
from hiermusic.systems.lm import models
from hiermusic.systems.lm import rows as lm_rows
from hiermusic.tokens.visibility import Visibility

from ..lm.tracks import LEVELS, META, prompt, settings, text_of, track


def row_of(config, example: dict, seed: int = 0):
    return rows.alignment(lm_rows.make_rows(config), example, np.random.default_rng(seed))


def test_an_alignment_row_reads_the_code_before_the_one_it_predicts():
    config = settings()
    row, ids = row_of(config, track(5)), prompt(config)
    assert text_of(row) == [*ids[:-1], models.vocabulary(config.model).task_marker(0)]
    places = np.arange(5) + len(ids) - 1
    np.testing.assert_array_equal(row["targets"][places], 10 * np.arange(5))
    np.testing.assert_array_equal(row["reads"][places[1:], 0], row["targets"][places[:-1]])
    assert row["reads"][places[0], 0] == -1 and row["level"] == 0
    assert row["reads"].shape == (64, LEVELS) and (row["reads"][:, 1:] == -1).all()
    np.testing.assert_array_equal(row["valid"], np.arange(64) <= places[-1])
    assert (row["text_targets"] == -1).all()
    longest = row_of(config, track(200))
    assert (longest["targets"] >= 0).sum() == 64 - len(ids) + 1


def test_a_dropped_prompt_keeps_nothing_but_the_length():
    config = settings()
    for share, words in ((0.0, prompt(config)), (1.0, prompt(config, seconds=META["seconds"]))):
        config.model.prompt_dropout = share
        for seed in range(5):
            assert text_of(row_of(config, track(5), seed=seed))[:-1] == words[:-1]


def test_each_row_of_a_batch_has_a_level_of_its_own_and_held_out_ones_take_turns(asked):
    config = settings(codes=4000)
    config.train.update({"task0_share": 0.0, "batch_size": 3})
    for index in range(3):
        visibility, batch = rows.batches(config, "train", range(3))[index]
        assert visibility == Visibility.full() and sorted(batch["level"]) == [1, 2, 3]
        for row, level in enumerate(batch["level"]):
            targets = batch["targets"][row]
            assert ((targets[targets >= 0] - row) % 10 == level).all() and (targets >= 0).any()
    valid = rows.batches(config, "valid", range(3))
    probes = [level for level in lm_rows.PROBED_LEVELS if level < LEVELS]
    assert len(valid) == 3 * len(probes) and probes == [0, 1, 2]
    found = [valid[index] for index in range(len(valid))]
    assert [batch["level"].tolist() for _, batch in found] == [[level] * 3 for level in probes] * 3
    assert [task == Visibility.causal() for task, _ in found] == [True, False, False] * 3
    config.train.task0_share = 1.0
    assert rows.batches(config, "train", range(3))[0][0] == Visibility.causal()


@pytest.mark.parametrize(("share", "tasks"), [(0.5, 2), (0.0, 1), (1.0, 1)])
def test_batches_have_the_shapes_that_are_told_beforehand(asked, share, tasks):
    config = settings(codes=4000)
    config.train.update({"batch_size": 3, "task0_share": share})
    told = dict(rows.shapes(config))
    data = rows.batches(config, "train", range(3))
    drawn = {task: batch for task, batch in (data[index] for index in range(3 if tasks == 1 else 20))}
    assert set(drawn) == set(told) and len(told) == tasks
    for task, batch in drawn.items():
        assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
            name: (x.shape, x.dtype) for name, x in told[task].items()
        }
