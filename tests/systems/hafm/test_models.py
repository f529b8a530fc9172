"""HAFM's stages: the paper's sizes, their rows, what reaches them of the vocal, and what they refuse."""

import jax
import numpy as np
import pytest
from flax import nnx

from hiermusic import presets
from hiermusic.configs.hafm import semantic
from hiermusic.errors import UserError
from hiermusic.systems import token_facts, workdir
from hiermusic.systems.hafm.measures import inspect
from hiermusic.systems.hafm.models import make_model
from hiermusic.systems.lm import models, rows
from hiermusic.tokens import sequence
from hiermusic.tokens.visibility import Visibility

from .streams import SOUND, STREAMS, small, track, write

# spec 2: positions, steps and millions of parameters at ten seconds
PAPER = {"semantic": (998, 499, 86.1), "coarse": (3990, 2992, 92.0), "fine": (5984, 2992, 94.4)}
NULL = {"semantic": 12, "coarse": 16, "fine": 16}


def test_the_papers_sizes():
    told = {stage: inspect(presets.read(f"configs/hafm/{stage}.py:paper")) for stage in PAPER}
    for stage, (positions, steps, millions) in PAPER.items():
        found = told[stage]
        assert (found["sequence_length"], found["decoding_steps"]) == (positions, steps)
        assert found["reached_params"] / 1e6 == pytest.approx(millions, abs=0.05)
    assert sum(found["reached_params"] for found in told.values()) / 1e6 == pytest.approx(272.5, abs=0.05)
    assert told["semantic"]["window_seconds"] == told["coarse"]["window_seconds"] == 9.98
    unread = told["coarse"]["params"]["total"] - told["coarse"]["reached_params"]
    assert unread == 2 * (1024 - 500) * 768  # rows of the two semantic tables that stand for no code


def test_levels_that_are_predicted_at_once_are_one_step():
    told = [inspect(small("coarse", pattern=name)) for name in ("flatten", "parallel")]
    assert [found["decoding_steps"] for found in told] == [30, 18]


@pytest.mark.parametrize("positions", ["t5", "t5_aligned"])
def test_ten_seconds_fill_the_papers_rows(positions):
    """499 semantic tokens and 748 frames, of which a row of the second stage leaves no position open."""
    config = presets.load("configs/hafm/coarse.py:paper", {"model.positions": positions})
    rng = np.random.default_rng(0)
    v, i = (rng.integers(500, size=(499, 1)) for _ in range(2))
    codes = {"v": v, "i": i, "own": rng.integers(1024, size=(748, 4))}
    row = rows.make_rows(config).row({"codes": codes, "meta": {"seconds": 10.0}}, rng)
    assert row["valid"].all() and (row["targets"] >= 0).sum() == 2992
    np.testing.assert_array_equal(row["reads"][:499, 0], v[:, 0])
    np.testing.assert_array_equal(row["reads"][499:998, 1], i[:, 0])
    assert row["text"][998] == sequence.START and (np.delete(row["text"], 998) == -1).all()
    np.testing.assert_array_equal(row["targets"][998:].max(1), codes["own"].ravel())
    np.testing.assert_array_equal(row["reads"][999:].max(1), codes["own"].ravel()[:-1])
    if positions == "t5":
        assert "positions" not in row
        return
    segment, tick = np.divmod(row["positions"], 1 << 20)
    np.testing.assert_array_equal(segment, np.repeat([0, 1, 2], (499, 499, 2992)))
    np.testing.assert_array_equal(tick, [*3 * np.arange(499), *3 * np.arange(499), *np.repeat(2 * np.arange(748), 4)])


@pytest.mark.parametrize("stage", PAPER)
def test_a_prefix_that_is_left_out_keeps_its_length(stage):
    """In a tenth of the rows that are trained on, and in none that is measured: its null at every token."""
    config, seen = small(stage), []
    config.train.batch_size, config.data.crop = 2, "start"
    order = models.pattern_of(config)
    example = heard(stage, 0)
    make = rows.make_rows(config)
    whole = make.row(example, np.random.default_rng(0))
    given_SK = whole["reads"][:, : order.given]
    assert given_SK.max() < NULL[stage] and make.dropout == 0.0
    bare = make.bare(whole)
    np.testing.assert_array_equal(bare["reads"][:, : order.given], np.where(given_SK >= 0, NULL[stage], -1))
    np.testing.assert_array_equal(bare["reads"][:, order.given :], whole["reads"][:, order.given :])
    for split in ("train", "valid"):
        drawn = _batches(config, split, example)
        seen.append(np.mean([(drawn[i][1]["reads"][0] == NULL[stage]).any() for i in range(100)]))
    assert 0.03 < seen[0] < 0.2 and seen[1] == 0.0


def heard(stage: str, seed: int) -> dict:
    """A track as token records give it to a stage."""
    vocal, semantic, codes = STREAMS
    names = {"semantic": (vocal, semantic), "coarse": (vocal, semantic, codes), "fine": (codes,)}[stage]
    streams = {name: codes_TK[:, : 2 if stage == "coarse" else 4] for name, codes_TK in track(seed).items()}
    return {"codes": {name: streams[name] for name in names}, "meta": {"seconds": 1.6}}


def _batches(config, split, example):
    from ..fakes import Batches

    context = pytest.MonkeyPatch()
    with context.context() as patched:
        patched.setattr(rows.pipeline, "example_batches", lambda *given: Batches(lambda i: [example, example], 100))
        return rows.batches(config, split, range(2))


@pytest.mark.parametrize(
    ("stage", "positions"), [("semantic", "t5_aligned"), ("coarse", "t5"), ("coarse", "t5_aligned"), ("fine", "t5")]
)
def test_the_prefix_reaches_the_model(stage, positions):
    """Another one changes the logits, and so does none; its table and the null have gradients."""
    config = small(stage, positions)
    make, order = rows.make_rows(config), models.pattern_of(config)
    row, other = (make.row(heard(stage, seed), np.random.default_rng(0)) for seed in (0, 1))
    in_place = row | {"reads": np.concatenate([other["reads"][:, : order.given], row["reads"][:, order.given :]], 1)}
    batch = sequence.stack([row, in_place, make.bare(row)])
    model, begin = make_model(config)(nnx.Rngs(0)), int(np.flatnonzero(row["text"] >= 0)[0])

    def loss(model):
        hidden = model.hidden(batch, visibility=Visibility.causal())
        return model.loss(batch, visibility=Visibility.causal())[0], model.level_logits(hidden[:, begin:], order.given)

    gradients, logits = nnx.jit(nnx.grad(loss, has_aux=True))(model)
    assert all(np.abs(logits[0] - logits[k]).max() > 1e-4 for k in (1, 2))
    sizes = jax.tree.map(lambda x: float(np.abs(x).max()), nnx.to_pure_dict(gradients))
    assert np.abs(gradients["code_embed"][...][: order.given]).max() > 0 and sizes["null_embed"] > 0
    assert sizes["segment_embed"] > 0 and sizes["trunk"]["distance"] > 0


# MARK: bad input


def test_streams_that_are_missing_or_of_another_tokenizer_are_one_line(tmp_path):
    write(tmp_path)
    config = small("coarse")
    config.data.path = str(tmp_path)
    token_facts.learn(config)
    token_facts.check_records(config, config.data.path)
    assert config.data.prefix_codecs == ("semantic@1", "semantic@1") and config.data.codec.endswith("/codes@1")
    assert token_facts.makers_of_prefix(config) == ["semantic", "semantic"]
    config.data.prefix = ("vocals/other", "instrumental/semantic")
    with pytest.raises(UserError, match=r"vocals/other"):
        token_facts.check_records(config, config.data.path)
    config.data.prefix = ("vocals/semantic",)
    with pytest.raises(UserError, match=r"^data\.prefix has 1 streams, the model reads 2: name as many$"):
        token_facts.check_records(config, config.data.path)
    config.prefix["0"].codes = 99
    config.data.prefix = ("vocals/semantic", "instrumental/semantic")
    with pytest.raises(UserError, match=r"vocals/semantic holds other tokens than the model knows \(codes is 12 and"):
        token_facts.check_records(config, config.data.path)


@pytest.mark.parametrize(
    ("stage", "change", "words"),
    [
        (
            "coarse",
            {"model.given": 1},
            "a coarse stage reads the vocal's semantic tokens and, behind a first stage, the acc",
        ),
        (
            "coarse",
            {"data.prefix": ("instrumental/semantic",), "prefix": {"0": semantic.meaning("tiny").to_dict()}},
            r"a coarse stage reads .* in front: data\.prefix begins with instrumental/semantic, of the instrumental t",
        ),
        ("fine", {"model.given": 0}, r"a fine stage reads no other stream, but the coarse levels of its own \(model"),
        ("semantic", {"model.pattern": "next_scale"}, "model.pattern=next_scale is none of this system's: choose flat"),
        ("semantic", {"model.tokenizer": "bytes"}, "model.tokenizer=bytes: a vocal comes without words"),
        ("coarse", {"model.ticks": 40}, "model.ticks=40: give a multiple of all levels' tokens a second, 25"),
    ],
)
def test_what_is_none_of_a_stages_is_refused(stage, change, words):
    config = presets.load(f"configs/hafm/{stage}.py:tiny", change)
    with pytest.raises(UserError, match=words) as told:
        make_model(config)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("stage", "change", "words"),
    [
        (
            "coarse",
            lambda config: config.prefix["0"].update(levels=2),
            "of one level, .*, not 2 x 50 and 1 x 50 a sec",
        ),
        ("coarse", lambda config: config.prefix["1"].update(hop=640), "the accompaniment, not 1 x 50 and 1 x 25 a sec"),
        ("semantic", lambda config: config.tokens.update(levels=2), "of one level, .*, not 1 x 50 and 2 x 50 a second"),
        (
            "coarse",
            lambda config: config.tokens.update(quantiser="multiscale", levels=3, scales=(1, 2, 4)),
            "a coarse stage predicts frames in which each level has one code, not those of a multiscale quantiser",
        ),
    ],
)
def test_tokens_that_cannot_be_handed_on_are_refused(stage, change, words):
    config = small(stage)
    change(config)
    with pytest.raises(UserError, match=words) as told:
        make_model(config)
    assert "\n" not in str(told.value)


def test_a_model_without_a_prefix_has_none_to_leave_out():
    config = presets.load("configs/tokens/lm.py:tiny", {"model.prefix_dropout": 0.1})
    with pytest.raises(UserError, match=r"model\.prefix_dropout=0\.1: a delay model reads no prefix to leave out"):
        models.make_model(config)
    isolated = {"model.positions": "t5_aligned", "model.pattern": "layer_wise"}
    words = r"model\.positions=t5_aligned goes with stepwise patterns, not with layer_wise"
    with pytest.raises(UserError, match=words):
        models.make_model(presets.load("configs/tokens/lm.py:tiny", isolated))


def test_a_stage_of_this_name_makes_no_tokens_of_sound(monkeypatch, tmp_path):
    config = small("semantic")
    monkeypatch.setattr(workdir.checkpoint, "read_config", lambda place: config)
    with pytest.raises(
        UserError, match=r"was trained as the semantic of HAFM: give the workdir of a codec or semantic"
    ):
        workdir.read(tmp_path, *workdir.TOKENIZERS)
    assert workdir.read(tmp_path, "semantic").system == "hafm" and not workdir.makes_tokens(config)
    assert SOUND.levels == 4
