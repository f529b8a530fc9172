"""Training rows of every pattern, position by position."""

from dataclasses import asdict
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from hiermusic.data.token_records import write_tokens
from hiermusic.errors import UserError
from hiermusic.evaluate.by_track import in_memory
from hiermusic.systems import token_facts
from hiermusic.systems.khala import rows as superres
from hiermusic.systems.lm import measures, models
from hiermusic.systems.lm import rows as lm_rows
from hiermusic.tokens import pattern
from hiermusic.tokens.facts import TokenFacts
from hiermusic.tokens.visibility import Visibility

from ..fakes import Tracks, configuration
from .tracks import LEVELS, META, prompt, settings, text_of, track


def row_of(config, example: dict, *level: int, seed: int = 0):
    return lm_rows.make_rows(config).row(example, np.random.default_rng(seed), *level)


def test_an_unknown_tokenizer_is_told():
    with pytest.raises(UserError, match=r"model\.tokenizer is 'words': choose bytes, llama31 or none"):
        models.vocabulary(settings(tokenizer="words").model)


@pytest.mark.parametrize("keep", [True, False])
def test_a_backbone_row_is_the_prompt_and_every_code_in_turn(keep):
    config = settings("backbone", keep_description=keep)
    row, ids = row_of(config, track(6, 2)), prompt(config)
    assert text_of(row) == ids and (len(ids) > len(prompt(settings("backbone", keep_description=False)))) == keep
    last = len(ids) - 1  # the end of the prompt predicts the first code
    targets = [10 * t + k for t in range(6) for k in (0, 1)]
    for s, code in enumerate(targets):
        expected = np.full(2, -1)
        expected[s % 2] = code
        np.testing.assert_array_equal(row["targets"][last + s], expected)
        before = np.full(2, -1) if s == 0 else row["targets"][last + s - 1]
        np.testing.assert_array_equal(row["reads"][last + s], before)
    end = last + len(targets)
    np.testing.assert_array_equal(row["reads"][end], row["targets"][end - 1])
    ends = np.full(64, -1)
    ends[end] = models.vocabulary(config.model).eos
    np.testing.assert_array_equal(row["text_targets"], ends)
    np.testing.assert_array_equal(row["valid"], np.arange(64) <= end)
    for name in ("reads", "targets"):
        assert (row[name][:last] == -1).all() and (row[name][end + 1 :] == -1).all()


def test_a_crop_begins_where_it_is_told_and_ends_a_song_only_at_its_end():
    ends, starts = set(), set()
    for crop, seeds in (("start", range(3)), ("random", range(60))):
        config = settings("backbone")
        config.data.crop = crop
        room = (64 - len(prompt(config))) // 2
        for seed in seeds:
            row = row_of(config, track(room + 3, 2), seed=seed)
            coarse = row["targets"][:, 0][row["targets"][:, 0] >= 0] // 10
            assert len(coarse) == room and (np.diff(coarse) == 1).all()
            ended = (row["text_targets"] >= 0).any()
            assert ended == (coarse[-1] == room + 2)
            if crop == "start":
                assert coarse[0] == 0 and not ended
            starts.add(int(coarse[0]))
            ends.add(bool(ended))
    assert starts == {0, 1, 2, 3} and ends == {True, False}
    with pytest.raises(UserError, match=r"data\.crop is 'middle': choose start or random"):
        config.data.crop = "middle"
        lm_rows.make_rows(config)


@pytest.mark.parametrize("level", [1, 3])
def test_a_refinement_row_reads_all_levels_below_the_one_it_predicts(level):
    config = settings()
    row, ids = row_of(config, track(5), level), prompt(config)
    marker = models.vocabulary(config.model).task_marker(level)
    assert text_of(row) == [*ids[:-1], marker]
    frames = slice(len(ids), len(ids) + 5)
    codes_TK = track(5)["codes"].astype(int)
    reads = np.full((5, LEVELS), -1)
    reads[:, :level] = codes_TK[:, :level]
    np.testing.assert_array_equal(row["reads"][frames], reads)
    np.testing.assert_array_equal(row["targets"][frames], codes_TK[:, level])
    assert row["targets"].shape == (64,) and row["level"] == level and row["reads"].dtype == np.int16
    np.testing.assert_array_equal(row["valid"], np.arange(64) < frames.stop)
    assert (row["text_targets"] == -1).all()
    assert (np.delete(row["reads"], np.r_[frames], 0) == -1).all()
    longest = row_of(config, track(200), level)
    assert (longest["targets"] >= 0).sum() == 64 - len(ids) and longest["valid"].all()


def test_a_dropped_prompt_keeps_nothing_but_the_length():
    config = settings("backbone")
    for share, words in ((0.0, prompt(config)), (1.0, prompt(config, seconds=9.0))):
        config.model.prompt_dropout = share
        for seed in range(5):
            assert text_of(row_of(config, track(5, 2), seed=seed)) == words


def test_a_prompt_that_leaves_no_room_is_refused():
    config = settings("backbone", length=18)
    with pytest.raises(UserError, match=r"model\.length=18 leaves no room behind the prompt: lower text_limit"):
        row_of(config, track(5, 2))


# MARK: batches


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize("stage", ["backbone", "superres"])
def test_batches_ask_for_their_own_split_seed_levels_and_rows(asked, stage, split):
    config = settings(stage, codes=2000)
    config.data.path, config.train.seed, config.train.batch_size = "tokens", 7, 5
    lm_rows.batches(config, split, [1, 4])
    assert asked == [("tokens", split, 7, slice(0, 2 if stage == "backbone" else LEVELS), 5, (1, 4))]


@pytest.mark.parametrize("stage", ["backbone", "superres"])
def test_seed_step_and_row_each_change_what_is_drawn(asked, stage):
    """Crops: where a row begins, told by its codes less what tells its track."""
    config = settings(stage, codes=4000, prompt_dropout=0.0)
    config.data.crop, config.train.batch_size = "random", 3

    def begins(seed: int) -> np.ndarray:
        config.train.seed = seed
        data = lm_rows.batches(config, "train", range(3))
        rows = [[data[index][1]["targets"][row] for row in range(3)] for index in range(3)]
        first = [[int(row[row >= 0][0]) - 100 * index - at for at, row in enumerate(batch)]
                 for index, batch in enumerate(rows)]  # fmt: skip
        return np.array(first) // 10

    one, other = begins(0), begins(1)
    assert len(np.unique(one)) >= 6 and (one != other).sum() >= 6
    np.testing.assert_array_equal(one, begins(0))


def test_each_row_of_a_batch_has_a_level_of_its_own_and_held_out_ones_take_turns(asked):
    config = settings(codes=4000)
    config.train.batch_size = 2
    for index in range(3):
        visibility, batch = lm_rows.batches(config, "train", range(2))[index]
        assert visibility == Visibility.full() and sorted(batch["level"]) == [2, 3]
        for row, level in enumerate(batch["level"]):
            targets = batch["targets"][row]
            assert ((targets[targets >= 0] - row) % 10 == level).all() and (targets >= 0).any()
    valid = lm_rows.batches(config, "valid", range(2))
    assert [valid[index][1]["level"].tolist() for index in range(len(valid))] == [[2, 2]] * 3
    config.model.given = 0
    valid = lm_rows.batches(config, "valid", range(2))
    assert [valid[index][1]["level"].tolist() for index in range(len(valid))] == [[0, 0], [1, 1], [2, 2]] * 3


NAMES = [*pattern.STEPWISE, *pattern.BY_LEVEL]


@pytest.mark.parametrize("name", NAMES)
def test_batches_have_the_shapes_and_the_visibility_that_are_told_beforehand(asked, name):
    config = settings("backbone", codes=4000, pattern=name, levels=3, length=80)
    config.train.batch_size = 3
    ((seen, told),) = lm_rows.shapes(config)
    task, batch = lm_rows.batches(config, "train", range(3))[0]
    assert task == seen == models.visibility(config)
    drawn, shown = ({key: (x.shape, x.dtype) for key, x in arrays.items()} for arrays in (batch, told))
    assert drawn == shown
    kinds = dict.fromkeys(pattern.STEPWISE, "causal") | {"layer_wise": "full", "next_scale": "groups"}
    assert seen.kind == kinds[name]


@pytest.mark.parametrize("words", ["bytes", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_every_code_of_a_track_is_predicted_once_and_given_ones_are_read(name, words):
    """Of levels of one length, and, where the pattern takes them, of windows whose levels have 1, 2 and 4 tokens."""
    slots = [(1, 1, 1)] if name in ("delay", "parallel") else [(1, 1, 1), (1, 2, 4)]
    for each in slots:
        for given in (0, 1):
            facts = {"levels": 3, "codes": 999}
            if len(set(each)) > 1:
                facts |= {"quantiser": "multiscale", "scales": each, "phi": "shared", "phi_count": 1, "phi_kernel": 3}
            config = configuration("tokens/lm:tiny", facts, levels=3, pattern=name, given=given, length=90)
            config.model.update({"tokenizer": words, "text_limit": 40})
            levels = [10 * np.arange(3 * count) + k for k, count in enumerate(each)]
            example = {"codes": tuple(codes_T[:, None] for codes_T in levels), "meta": META}
            make = lm_rows.make_rows(config)
            passes = range(given, 3) if make.pattern.isolated else [None]
            rows = [make.row(example, np.random.default_rng(0), level) for level in passes]
            for k, codes_T in enumerate(levels):
                if "level" in rows[0]:
                    predicted = np.concatenate([[-1], *(row["targets"] for row in rows if row["level"] == k)])
                else:
                    predicted = rows[0]["targets"][:, k]
                found = np.sort(predicted[predicted >= 0])
                np.testing.assert_array_equal(found, codes_T if k >= given else [])
            if given:
                assert set(np.concatenate([row["reads"][:, 0] for row in rows]).tolist()) == {-1, *levels[0].tolist()}
            begin = 0 if words == "none" and not make.pattern.isolated else rows[0]["text"].max()
            assert begin in rows[0]["text"]


@pytest.mark.parametrize("name", NAMES)
def test_songs_end_themselves_where_the_pattern_goes_by_time(name):
    ends = {"flatten": True, "delay": True, "parallel": True}.get(name, False)
    config = settings("backbone", pattern=name, levels=2)
    row = row_of(config, track(6, 2), *([1] if name == "layer_wise" else []))
    assert (row["text_targets"] >= 0).any() == ends == (models.token_lm_config(config).end is not None)
    config.model.tokenizer = "none"
    assert models.token_lm_config(config).end is None and models.token_lm_config(config).text_size <= 2


def test_a_window_is_as_long_as_it_is_and_short_tracks_fill_its_beginning():
    config = settings("backbone", pattern="next_scale", levels=2, length=60)
    short, long = row_of(config, track(4, 2)), row_of(config, track(40, 2))
    assert models.window(config) == 10 and short["valid"].all() and (long["targets"].max(1) >= 0).sum() == 20
    np.testing.assert_array_equal(np.flatnonzero(short["targets"][:, 0] >= 0), 40 + np.arange(4))
    np.testing.assert_array_equal(np.flatnonzero(short["targets"][:, 1] >= 0), 50 + np.arange(4))
    ids = prompt(config)
    assert short["text"][:40].tolist() == models.fill(config, ids) and set(short["text"][40:44].tolist()) == {ids[-1]}
    assert (short["text"][44:] == -1).all()
    config.model.length = 41
    with pytest.raises(UserError, match=r"model\.length=41 leaves no room behind the prompt: lower text_limit"):
        lm_rows.make_rows(config)


def test_other_streams_are_read_in_front_one_after_the_other():
    """HAFM's second stage: a vocal and an instrumental stream at 50 Hz, then levels at 75 Hz, for 2 of 25 packets."""
    facts = {"sample_rate": 24_000, "hop": 320, "levels": 4, "codes": 999, "latent": 8}
    config = configuration("tokens/lm:tiny", facts)
    config.model.update({"levels": 2, "pattern": "flatten", "tokenizer": "none", "length": 40, "codec_tables": False})
    slow = TokenFacts(16_000, 320, "residual", 1, 999, 8)
    config.data.prefix = ("vocals/semantic", "instrumental/semantic")
    config.prefix = ConfigDict({"0": asdict(slow), "1": asdict(slow)})
    order = models.pattern_of(config)
    assert (order.slots, order.given, order.streams) == ((2, 2, 3, 3), 2, (1, 1))
    assert models.token_lm_config(config).levels == 4 and len(models.own(config)) == 2
    codes = {"v": 100 + np.arange(5)[:, None], "i": 200 + np.arange(5)[:, None],
             "own": 10 * np.arange(6)[:, None] + np.arange(2)}  # fmt: skip
    row = row_of(config, {"codes": codes, "meta": META})
    reads = [int(code) for row_K in row["reads"] for code in row_K if code >= 0]
    assert reads[:8] == [100, 101, 102, 103, 200, 201, 202, 203]
    assert row["text"][8] == 0 and (np.delete(row["text"], 8) == -1).all()
    assert row["targets"].max(1)[8:20].tolist() == [10 * t + k for t in range(6) for k in (0, 1)]
    assert (row["targets"][:, :2] == -1).all() and (row["targets"][:8] == -1).all()
    in_front = [f"/a/{name}" for name in config.data.prefix]
    config.data.stream = "own"
    assert lm_rows.wanted(config, "/a") == {**dict.fromkeys(in_front, "all"), "/a/own": slice(0, 2)}
    config.model.codec_tables = True
    with pytest.raises(UserError, match=r"model\.codec_tables are those of one codec"):
        models.make_model(config)
    config.model.codec_tables = False
    config.prefix["0"].hop = 317
    with pytest.raises(UserError, match=r"data\.prefix: streams of .* packets a second do not go together"):
        models.make_model(config)


def test_a_pair_that_cannot_be_is_refused_in_a_line():
    facts = {"levels": 3, "quantiser": "multiscale", "scales": (1, 2, 4), "phi": "shared", "phi_count": 1}
    for name in ("delay", "parallel"):
        config = configuration("tokens/lm:tiny", facts, levels=3, pattern=name)
        with pytest.raises(UserError, match=rf"{name} pattern needs levels of one length, not \(1, 2, 4\): flat"):
            models.make_model(config)


def test_prompts_that_are_cut_are_counted_among_the_tracks_to_learn_from(monkeypatch, capsys):
    config = settings("backbone", text_limit=12)
    asked = []

    def source(*arguments):
        asked.append(arguments)
        return SimpleNamespace(tracks=[{"seconds": 3.0, "meta": META | {"tags": "slow" * n}} for n in (1, 9)])

    monkeypatch.setattr(lm_rows, "TokenSource", source)
    config.data.path = "tokens"
    lm_rows.tell_cut(config)
    assert asked == [("tokens", slice(0, 1), "train")]
    assert capsys.readouterr().err.startswith("tokens: 2 of 2 prompts are longer than model.text_limit=12 ids, by ")


# MARK: measuring


class Knowing:
    """A model that spends as many nats on a code as the code is."""

    def __init__(self):
        self.seen = []

    def loss(self, batch, *, visibility):
        targets_BSK, level = np.asarray(batch["targets"]), None if "level" not in batch else int(batch["level"][0])
        if level is not None:
            targets_BSK = np.where(np.arange(LEVELS) == level, targets_BSK[..., None], -1)
        self.seen.append((targets_BSK, visibility, level))
        assert "text_targets" not in batch
        count_K = (targets_BSK >= 0).sum((0, 1))
        total_K = np.where(targets_BSK >= 0, targets_BSK, 0).sum((0, 1))
        return 0.0, {"ce_K": total_K / np.maximum(count_K, 1), "count_K": count_K}


@pytest.mark.parametrize("stage", ["backbone", "superres", "superres and its task 0"])
def test_a_model_is_measured_on_the_held_out_tracks_and_counts_on_the_others(monkeypatch, stage):
    aligned, stage = stage.endswith("0"), stage.split()[0]
    config, model = settings(stage, codes=100), Knowing()
    levels, first = (2, 0) if stage == "backbone" else (LEVELS, 0 if aligned else 2)
    splits = {"train": [track(4, levels), track(3, levels)], "valid": [track(4, levels, 50), track(3, levels, 60)] * 2}
    monkeypatch.setattr(measures, "TokenSource", Tracks(splits))
    monkeypatch.setattr(measures, "check_records", lambda config, path: None)
    monkeypatch.setattr(measures.jax, "jit", lambda function, **how: function)
    monkeypatch.setattr(measures.nnx, "split", lambda model: (model, None))
    monkeypatch.setattr(measures.nnx, "merge", lambda model, weights: model)
    steps = []
    of = (superres.measured,) if aligned else ()
    found = measures.cross_entropy(config, model, "tokens", 3, in_memory, lambda: steps.append(1), *of)
    sums_NK, counts_NKV, trained_KV = found
    for sums_K, counts_KV, example in zip(sums_NK, counts_NKV, splits["valid"][:3], strict=True):
        codes_TK = example["codes"].astype(int)
        np.testing.assert_allclose(sums_K[first:], codes_TK.sum(0)[first:])
        for level in range(first, levels):
            np.testing.assert_array_equal(np.flatnonzero(counts_KV[level]), codes_TK[:, level])
    both_TK = np.concatenate([example["codes"] for example in splits["train"]]).astype(int)
    expected_KV = np.stack([np.bincount(codes_T, minlength=100) for codes_T in both_TK.T])
    np.testing.assert_array_equal(trained_KV, expected_KV)
    passes = 1 if stage == "backbone" else levels - first
    assert len(steps) == len(model.seen) == 3 * passes
    tasks = [(task == Visibility.causal(), level) for _, task, level in model.seen[:passes]]
    assert tasks == ([(True, None)] if stage == "backbone" else [(level == 0, level) for level in range(first, levels)])


def test_a_model_is_trained_and_measured_behind_the_records_of_another_stream(monkeypatch, tmp_path):
    """Two levels at 10 Hz behind one at 5 Hz of the same tracks, each read from token records of its own."""
    own = TokenFacts(8000, 800, "residual", 3, 999, 8)
    other = TokenFacts(8000, 1600, "residual", 1, 999, 8)
    for name, facts, frames, first in (("own", own, 8, 0), ("other", other, 4, 500)):

        def encode(index: int, facts=facts, frames=frames, first=first):
            entry = {"id": str(index), "split": "train" if index else "valid", "seconds": 0.8, "meta": {}}
            return track(frames, facts.levels, first + 100 * index)["codes"], entry

        told = {"tokens": facts.to_json(), "codec": "codec@1", "sample_rate": 8000}
        write_tokens(3, partial(map, encode), tmp_path / name, facts.hierarchy, 1, settings=told, progress=False)
    config = configuration("tokens/lm:tiny", levels=2, pattern="flatten", tokenizer="none", length=40)
    config.model.codec_tables, config.train.batch_size = False, 2
    config.data.path, config.data.prefix = str(tmp_path / "own"), (str(tmp_path / "other"),)
    token_facts.learn(config)
    assert models.pattern_of(config).slots == (1, 2, 2)
    _, batch = lm_rows.batches(config, "train", range(2))[0]
    for reads_SK, targets_SK in zip(batch["reads"], batch["targets"], strict=True):
        first = int(targets_SK.max(1)[targets_SK.max(1) >= 0][0])
        assert first in (100, 200) and reads_SK[:4, 0].tolist() == [500 + first + 10 * t for t in range(4)]
    model = Knowing()
    monkeypatch.setattr(measures.jax, "jit", lambda function, **how: function)
    monkeypatch.setattr(measures.nnx, "split", lambda model: (model, None))
    monkeypatch.setattr(measures.nnx, "merge", lambda model, weights: model)
    found = measures.cross_entropy(config, model, config.data.path, 9, in_memory, lambda: None)
    codes_TK = track(8, 2)["codes"].astype(int)
    np.testing.assert_allclose(found[0], codes_TK.sum(0)[None])
    assert found[1].sum((0, 2)).tolist() == [8, 8] and found[2].sum(1).tolist() == [16, 16]


def test_tracks_that_are_cropped_anywhere_are_measured_in_more_than_one_place(monkeypatch):
    config, model = settings("backbone", codes=3000), Knowing()
    config.data.crop = "random"
    monkeypatch.setattr(measures, "TokenSource", Tracks({"train": [track(4, 2)], "valid": [track(200, 2)]}))
    monkeypatch.setattr(measures, "check_records", lambda config, path: None)
    monkeypatch.setattr(measures.jax, "jit", lambda function, **how: function)
    monkeypatch.setattr(measures.nnx, "split", lambda model: (model, None))
    monkeypatch.setattr(measures.nnx, "merge", lambda model, weights: model)
    places = []
    for seed in (0, 0, 1):
        model.seen.clear()
        config.train.seed = seed
        measures.cross_entropy(config, model, "tokens", 1, in_memory, lambda: None)
        places.append([int(targets[targets >= 0].min()) for targets, _, _ in model.seen])
    assert len(set(places[0])) == measures.CROPS_MEASURED == 4
    assert places[0] == places[1] != places[2]
