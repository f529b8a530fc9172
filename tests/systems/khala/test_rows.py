"""Khala's training rows, position by position, on tracks in which every code tells its frame and its layer."""

from types import SimpleNamespace

import numpy as np
import pytest

from hiermusic.errors import UserError
from hiermusic.evaluate.by_track import in_memory
from hiermusic.systems.khala import measures, models
from hiermusic.systems.khala import rows as khala_rows
from hiermusic.tokens.prompt import Prompt, compose
from hiermusic.tokens.visibility import Visibility

from ..fakes import Batches, Tracks, configuration

LEVELS = 4
META = {"id": "t", "seconds": 9.0, "tags": "slow", "lyrics": "la\nlu", "description": "a long word", "key": "C"}


def settings(stage: str = "superres", codes: int = 999, **model):
    config = configuration(f"khala/{stage}:tiny", {"levels": LEVELS, "codes": codes})
    config.model.update({"length": 64, "text_limit": 40} | model)
    return config


def track(frames: int, levels: int = LEVELS, first: int = 0) -> dict:
    """Frame t of layer k is 10 t + k + first."""
    codes_TK = 10 * np.arange(frames)[:, None] + np.arange(levels) + first
    return {"codes": codes_TK.astype(np.uint16), "meta": META}


def prompt(config, **words) -> list[int]:
    """The ids of the track's prompt, by the template's own tests."""
    how = {"keep_description": config.model.keep_description, "limit": config.model.text_limit}
    words = words or {name: META[name] for name in ("seconds", "tags", "lyrics", "description")}
    return compose(Prompt(**words), models.tokenizer(config.model), **how)


def test_an_unknown_tokenizer_is_told():
    with pytest.raises(UserError, match=r"model\.tokenizer is 'words': choose bytes or llama31"):
        models.vocabulary(settings(tokenizer="words").model)


def row_of(config, kind: str, example: dict, *level: int, seed: int = 0):
    return getattr(khala_rows.make_rows(config), kind)(example, np.random.default_rng(seed), *level)


def text_of(row) -> list[int]:
    """The text ids, which stand in front."""
    count = int((row["text"] >= 0).sum())
    assert (row["text"][count:] == -1).all()
    return row["text"][:count].tolist()


@pytest.mark.parametrize("keep", [True, False])
def test_a_backbone_row_is_the_prompt_and_every_code_in_turn(keep):
    config = settings("backbone", keep_description=keep)
    row, ids = row_of(config, "backbone", track(6, 2)), prompt(config)
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
            row = row_of(config, "backbone", track(room + 3, 2), seed=seed)
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
        khala_rows.make_rows(config)


@pytest.mark.parametrize("level", [1, 3])
def test_a_refinement_row_reads_all_layers_below_the_one_it_predicts(level):
    config = settings()
    row, ids = row_of(config, "refinement", track(5), level), prompt(config)
    marker = models.vocabulary(config.model).task_marker(level)
    assert text_of(row) == [*ids[:-1], marker]
    frames = slice(len(ids), len(ids) + 5)
    codes_TK = track(5)["codes"].astype(int)
    reads, targets = np.full((5, LEVELS), -1), np.full((5, LEVELS), -1)
    reads[:, :level], targets[:, level] = codes_TK[:, :level], codes_TK[:, level]
    np.testing.assert_array_equal(row["reads"][frames], reads)
    np.testing.assert_array_equal(row["targets"][frames], targets)
    np.testing.assert_array_equal(row["valid"], np.arange(64) < frames.stop)
    assert (row["text_targets"] == -1).all()
    assert (np.delete(row["reads"], np.r_[frames], 0) == -1).all()
    longest = row_of(config, "refinement", track(200), level)
    assert (longest["targets"][:, level] >= 0).sum() == 64 - len(ids) and longest["valid"].all()


def test_an_alignment_row_reads_the_code_before_the_one_it_predicts():
    config = settings()
    row, ids = row_of(config, "alignment", track(5)), prompt(config)
    assert text_of(row) == [*ids[:-1], models.vocabulary(config.model).task_marker(0)]
    places = np.arange(5) + len(ids) - 1
    np.testing.assert_array_equal(row["targets"][places, 0], 10 * np.arange(5))
    np.testing.assert_array_equal(row["reads"][places[1:], 0], row["targets"][places[:-1], 0])
    assert row["reads"][places[0], 0] == -1
    assert (row["targets"][:, 1:] == -1).all() and (row["reads"][:, 1:] == -1).all()
    np.testing.assert_array_equal(row["valid"], np.arange(64) <= places[-1])
    assert (row["text_targets"] == -1).all()
    longest = row_of(config, "alignment", track(200))
    assert (longest["targets"][:, 0] >= 0).sum() == 64 - len(ids) + 1


@pytest.mark.parametrize("kind", ["backbone", "alignment"])
def test_a_dropped_prompt_keeps_nothing_but_the_length(kind):
    config = settings("backbone" if kind == "backbone" else "superres")
    for share, words in ((0.0, prompt(config)), (1.0, prompt(config, seconds=9.0))):
        config.model.prompt_dropout = share
        for seed in range(5):
            assert text_of(row_of(config, kind, track(5, len(models.hierarchy(config))), seed=seed))[:-1] == words[:-1]


def test_a_prompt_that_leaves_no_room_is_refused():
    config = settings("backbone", length=18)
    with pytest.raises(UserError, match=r"model\.length=18 leaves no room behind the prompt: lower text_limit"):
        row_of(config, "backbone", track(5, 2))


# MARK: batches


@pytest.fixture
def asked(monkeypatch):
    """What was asked of the pipeline, whose tracks are long and tell which batch and row they are of."""
    calls = []

    def example_batches(path, split, seed, levels, batch_size, rows):
        calls.append((path, split, seed, levels, batch_size, tuple(rows)))
        return Batches(lambda index: [track(200, levels.stop, first=100 * index + row) for row in rows], 3)

    monkeypatch.setattr(khala_rows.pipeline, "example_batches", example_batches)
    return calls


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize("stage", ["backbone", "superres"])
def test_batches_ask_for_their_own_split_seed_levels_and_rows(asked, stage, split):
    config = settings(stage, codes=2000)
    config.data.path, config.train.seed, config.train.batch_size = "tokens", 7, 5
    getattr(khala_rows, f"{stage}_batches")(config, split, [1, 4])
    assert asked == [("tokens", split, 7, slice(0, 2 if stage == "backbone" else LEVELS), 5, (1, 4))]


@pytest.mark.parametrize("stage", ["backbone", "superres"])
def test_seed_step_and_row_each_change_what_is_drawn(asked, stage):
    """Crops: where a row begins, told by its codes less what tells its track."""
    config = settings(stage, codes=4000, prompt_dropout=0.0)
    config.data.crop, config.train.batch_size = "random", 3
    config.train.update({"task0_share": 0.0} if stage == "superres" else {})

    def begins(seed: int) -> np.ndarray:
        config.train.seed = seed
        data = getattr(khala_rows, f"{stage}_batches")(config, "train", range(3))
        rows = [[data[index][1]["targets"][row] for row in range(3)] for index in range(3)]
        first = [[int(row[row >= 0][0]) - 100 * index - at for at, row in enumerate(batch)]
                 for index, batch in enumerate(rows)]  # fmt: skip
        return np.array(first) // 10

    one, other = begins(0), begins(1)
    assert len(np.unique(one)) >= 6 and (one != other).sum() >= 6
    np.testing.assert_array_equal(one, begins(0))


def test_each_row_of_a_batch_has_a_layer_of_its_own_and_held_out_ones_take_turns(asked):
    config = settings(codes=4000)
    config.train.update({"task0_share": 0.0, "batch_size": 3})
    for index in range(3):
        visibility, batch = khala_rows.superres_batches(config, "train", range(3))[index]
        assert visibility == Visibility.full() and sorted(batch["level"]) == [1, 2, 3]
        for row, level in enumerate(batch["level"]):
            assert (batch["targets"][row, :, level] >= 0).any()
    valid = khala_rows.superres_batches(config, "valid", range(3))
    probes = [level for level in khala_rows.PROBED_LAYERS if level < LEVELS]
    assert len(valid) == 3 * len(probes) and probes == [0, 1, 2]
    found = [valid[index] for index in range(len(valid))]
    assert [batch["level"].tolist() for _, batch in found] == [[level] * 3 for level in probes] * 3
    assert [task == Visibility.causal() for task, _ in found] == [True, False, False] * 3
    config.train.task0_share = 1.0
    assert khala_rows.superres_batches(config, "train", range(3))[0][0] == Visibility.causal()


@pytest.mark.parametrize(
    ("stage", "share", "tasks"),
    [("backbone", None, 1), ("superres", 0.5, 2), ("superres", 0.0, 1), ("superres", 1.0, 1)],
)
def test_batches_have_the_shapes_that_are_told_beforehand(asked, stage, share, tasks):
    config = settings(stage, codes=4000)
    config.train.batch_size = 3
    if share is not None:
        config.train.task0_share = share
    told = dict(khala_rows.shapes(config))
    data = getattr(khala_rows, f"{stage}_batches")(config, "train", range(3))
    drawn = {task: batch for task, batch in (data[index] for index in range(3 if tasks == 1 else 20))}
    assert set(drawn) == set(told) and len(told) == tasks
    for task, batch in drawn.items():
        assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
            name: (x.shape, x.dtype) for name, x in told[task].items()
        }


def test_prompts_that_are_cut_are_counted_among_the_tracks_to_learn_from(monkeypatch, capsys):
    config = settings("backbone", text_limit=12)
    asked = []

    def source(*arguments):
        asked.append(arguments)
        return SimpleNamespace(tracks=[{"seconds": 3.0, "meta": META | {"tags": "slow" * n}} for n in (1, 9)])

    monkeypatch.setattr(khala_rows, "TokenSource", source)
    config.data.path = "tokens"
    khala_rows.tell_cut(config)
    assert asked == [("tokens", slice(0, 1), "train")]
    assert capsys.readouterr().err.startswith("tokens: 2 of 2 prompts are longer than model.text_limit=12 ids, by ")


# MARK: measuring


class Knowing:
    """A model that spends as many nats on a code as the code is."""

    def __init__(self):
        self.seen = []

    def loss(self, batch, *, visibility):
        targets_BSK = np.asarray(batch["targets"])
        self.seen.append((targets_BSK, visibility, None if "level" not in batch else int(batch["level"][0])))
        assert "text_targets" not in batch
        count_K = (targets_BSK >= 0).sum((0, 1))
        total_K = np.where(targets_BSK >= 0, targets_BSK, 0).sum((0, 1))
        return 0.0, {"ce_K": total_K / np.maximum(count_K, 1), "count_K": count_K}


@pytest.mark.parametrize("stage", ["backbone", "superres"])
def test_a_model_is_measured_on_the_held_out_tracks_and_counts_on_the_others(monkeypatch, stage):
    config, model = settings(stage, codes=100), Knowing()
    levels = 2 if stage == "backbone" else LEVELS
    splits = {"train": [track(4, levels), track(3, levels)], "valid": [track(4, levels, 50), track(3, levels, 60)] * 2}
    monkeypatch.setattr(measures, "TokenSource", Tracks(splits))
    monkeypatch.setattr(measures, "check_records", lambda config, path: None)
    monkeypatch.setattr(measures.jax, "jit", lambda function, **how: function)
    monkeypatch.setattr(measures.nnx, "split", lambda model: (model, None))
    monkeypatch.setattr(measures.nnx, "merge", lambda model, weights: model)
    steps = []
    found = measures.cross_entropy(config, model, "tokens", 3, in_memory, lambda: steps.append(1))
    sums_NK, counts_NKV, trained_KV = found
    for sums_K, counts_KV, example in zip(sums_NK, counts_NKV, splits["valid"][:3], strict=True):
        codes_TK = example["codes"].astype(int)
        np.testing.assert_allclose(sums_K, codes_TK.sum(0))
        for level in range(levels):
            np.testing.assert_array_equal(np.flatnonzero(counts_KV[level]), codes_TK[:, level])
    both_TK = np.concatenate([example["codes"] for example in splits["train"]]).astype(int)
    expected_KV = np.stack([np.bincount(codes_T, minlength=100) for codes_T in both_TK.T])
    np.testing.assert_array_equal(trained_KV, expected_KV)
    passes = 1 if stage == "backbone" else levels
    assert len(steps) == len(model.seen) == 3 * passes
    tasks = [(task == Visibility.causal(), level) for _, task, level in model.seen[:passes]]
    assert tasks == ([(True, None)] if stage == "backbone" else [(level == 0, level) for level in range(levels)])


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
