"""PyramidCodec's language model as the paper has it: what is told of it, its rows, decoding beside whole rows."""

from dataclasses import asdict

import jax
import numpy as np
import pytest
from flax import nnx

from hiermusic import presets
from hiermusic.errors import UserError
from hiermusic.systems.lm import models
from hiermusic.systems.lm import rows as lm_rows
from hiermusic.systems.lm import songs as drawing
from hiermusic.systems.pyramid.measures import inspect
from hiermusic.tokens import sequence
from hiermusic.tokens.facts import TokenFacts
from hiermusic.tokens.visibility import Visibility

from ..fakes import awake, configuration, request

TOKENS = TokenFacts(8000, 200, "pyramid", 3, 32, 16, (1, 2, 4))
SMALL = {"layers": 2, "width": 16, "heads": 2, "kv_heads": 2, "head_dim": 8, "ffn_width": 32, "dtype": "float32"}


def small(**model):
    config = configuration("pyramid/lm:paper", asdict(TOKENS), **SMALL, length=86, remat="none")
    config.model.update(model)
    return config


def track(packets: int) -> dict:
    rng = np.random.default_rng(0)
    codes = tuple(rng.integers(32, size=(packets * slot, 1)) for slot in (1, 2, 4))
    return {"codes": codes, "meta": {"seconds": packets / 10}}


def test_the_papers_sizes():
    """Spec 3.8: 43.3 M beside positions, of which ours has an untied head besides; 14,004 of them."""
    told = inspect(presets.read("configs/pyramid/lm.py:paper"))
    assert told["sequence_length"] == 14_004 and told["tokens_per_second"] == pytest.approx(75.37, abs=0.005)
    params = told["params"]
    positions, head = 14_004 * 768, 1024 * 768
    assert (params["total"] - positions - head) / 1e6 == pytest.approx(43.3, abs=0.05)
    assert params["total"] - positions == inspect(rotary := _rotary())["params"]["total"]
    assert models.pattern_of(rotary).most(14_004) == 2000


def _rotary():
    return presets.load("configs/pyramid/lm.py:paper", {"model.positions": "rotary"})


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_stage_predicts_its_level_and_reads_those_before(stage):
    config = small(levels=stage, given=stage - 1, length=30)
    example = track(4)
    example["codes"] = example["codes"][:stage]
    row = lm_rows.make_rows(config).row(example, np.random.default_rng(0))
    codes = [levels[:, 0] for levels in example["codes"]]
    for k, codes_T in enumerate(codes):
        targets = row["targets"][:, k]
        assert targets[targets >= 0].tolist() == (codes_T.tolist() if k == stage - 1 else [])
        reads = row["reads"][:, k]
        assert reads[reads >= 0].tolist() == (codes_T if k < stage - 1 else codes_T[:-1]).tolist()
    assert row["text"][row["text"] >= 0].tolist() == list(range(stage))


OWN = {"shared_embed": False, "head": "window"}


@pytest.mark.parametrize(
    "change", [{}, {"positions": "rotary", **OWN}, {"positions": "rotary_aligned", **OWN}], ids=str
)
def test_decoding_with_a_cache_says_what_the_whole_row_says(change):
    """Also in two windows: each token is the likeliest of the row that it stands in."""
    config = small(**change)
    model = awake(models.make_model(config)(nnx.Rngs(0)))
    seconds, sampling = 1.8, {"temperature": 0.0}
    (sample,) = drawing.draw_long([request("a", 0, seconds)], config, drawing.ready(config, model), sampling)
    levels = [np.asarray(codes_T) for codes_T in sample.codes]
    assert [len(codes_T) for codes_T in levels] == [18, 36, 72]
    logits_of = jax.jit(lambda batch: [_logits(model, batch, k) for k in range(3)])
    for start, known in ((0, 0), (6, 6)):  # twelve packets, then six more behind the last six
        window = [codes_T[start * slot : (start + 12) * slot] for codes_T, slot in zip(levels, (1, 2, 4), strict=True)]
        order, markers = models.pattern_of(config), models.markers(config)
        layout = order.layout(12)
        places = models.places(config, order, layout)
        row = sequence.pack([sequence.START], layout, window, 86, markers=markers, places=places)
        logits_KSV = logits_of(sequence.stack([row]))
        for k, slot in enumerate((1, 2, 4)):
            due_S = np.flatnonzero(row["targets"][:, k] >= 0)
            best = np.asarray(logits_KSV[k])[0, due_S].argmax(-1)
            np.testing.assert_array_equal(best[known * slot :], window[k][known * slot :])
    assert len(set(levels[2].tolist())) > 3


def _logits(model, batch, level):
    return model.level_logits(model.hidden(batch, visibility=Visibility.causal()), level)


def test_one_table_serves_all_levels():
    """What a position reads of a code is the same whatever its level, where ids are shared; otherwise it is not."""
    for shared in (True, False):
        model = models.make_model(small(shared_embed=shared))(nnx.Rngs(0))
        assert model.code_embed.shape == (1 if shared else 3, 32, 16)
        reads = np.full((1, 3, 3), -1)
        reads[0, [0, 1, 2], [0, 1, 2]] = 5
        x_SD = np.asarray(model.embed(np.full((1, 3), -1), reads))[0]
        assert np.array_equal(x_SD[0], x_SD[1]) == np.array_equal(x_SD[0], x_SD[2]) == shared


def test_levels_that_stand_in_time():
    """A row says when each token begins, in tokens of the finest level; only where whole levels come one by one."""
    config = small(positions="rotary_aligned")
    row = lm_rows.make_rows(config).row(track(2), np.random.default_rng(0))
    # START, two tokens of four ticks; where the last is read; a marker, ...
    expected = [0, 4, 4, *[0, 2, 4, 6], 6, *range(8)]
    assert row["positions"][row["valid"]].tolist() == expected
    row = lm_rows.make_rows(small(positions="rotary_aligned", given=2)).row(track(2), np.random.default_rng(0))
    # what is given stands where it is read, in the time of what is made
    assert row["positions"][row["valid"]].tolist() == [0, 0, 4, *[0, 0, 2, 4, 6], *range(8)]
    assert "positions" not in lm_rows.make_rows(small()).row(track(2), np.random.default_rng(0))
    with pytest.raises(UserError, match="rotary_aligned goes with level_major, not with flatten: take rotary"):
        models.steps(small(positions="rotary_aligned", pattern="flatten", separators=False))
    with pytest.raises(UserError, match="rotary positions turn pairs: head_dim 7 must be even"):
        models.make_model(small(positions="rotary_aligned", head_dim=7))


def test_separators_belong_to_one_order():
    with pytest.raises(UserError, match=r"model\.separators stand between levels: set it to False for the flatten"):
        inspect(presets.load("configs/pyramid/lm.py:tiny", {"model.pattern": "flatten"}))
    with pytest.raises(UserError, match="choose tiny, small or paper"):
        presets.read("configs/pyramid/lm.py:huge")
