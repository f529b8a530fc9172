"""AAR's training rows, on tracks in which every code tells its row and its slot."""

from types import SimpleNamespace

import numpy as np
import pytest

from hiermusic.errors import UserError
from hiermusic.evaluate.by_track import in_memory
from hiermusic.systems.aar import measures, models, stages
from hiermusic.systems.aar import rows as aar_rows
from hiermusic.tokens import packets, pattern, sequence
from hiermusic.tokens.scales import schedule

from ..fakes import Batches, configuration

LEVELS, FRAMES = 3, 4
STAGES = ["lm", "ar_baseline"]


def settings(stage: str, **model):
    small = {"window": FRAMES, "depth": 1, "cond": 2, "references": 2, "context": 2}
    scales = {"scales": schedule("quadratic", FRAMES, LEVELS), "phi_count": 2} if stage == "lm" else {}
    config = configuration(f"aar/{stage}:tiny", {"levels": LEVELS, "codes": 500, **scales})
    config.model.update({name: value for name, value in (small | model).items() if name in config.model})
    return config


def make(stage: str, **model) -> aar_rows.Windows:
    return aar_rows.windows(settings(stage, **model), data=False)


def codes_of(windows: aar_rows.Windows, count: int, first: int = 0) -> np.ndarray:
    """Row r, slot s: 10 r + s + first."""
    return 10 * np.arange(count)[:, None] + np.arange(sum(windows.prior.quantiser.slots)) + first


def track(windows: aar_rows.Windows, count: int, first: int = 0, name: str = "t") -> dict:
    """A track of so many packets of codes."""
    seconds = count * (windows.seconds if windows.prior.next_scale else windows.seconds / FRAMES)
    codes = packets.to_streams(codes_of(windows, count, first), windows.prior.quantiser.slots)
    return {"codes": codes, "meta": {"id": name, "seconds": seconds}}


def begins(row) -> int:
    """The first code of a window."""
    return int(row["codes"][0]) if "codes" in row else int(row["targets"][row["targets"] >= 0][0])


# MARK: a row


def test_a_window_of_scales_is_a_row_of_codes_and_the_one_before():
    windows = make("lm")
    codes_PS = codes_of(windows, 3)
    for start, before_S in ((0, np.full(len(codes_PS[0]), -1)), (1, codes_PS[0]), (2, codes_PS[1])):
        row = windows.row(codes_PS, start)
        np.testing.assert_array_equal(row["codes"], codes_PS[start])
        np.testing.assert_array_equal(row["before"], before_S)
        assert set(row) == {"codes", "before"} and {x.dtype for x in row.values()} == {np.dtype(np.int32)}
    assert windows.starts(codes_PS) == 3 and windows.size == 1


@pytest.mark.parametrize("name", ["flatten", "delay"])
def test_a_window_of_the_baseline_reads_what_it_has_predicted(name):
    windows = make("ar_baseline", pattern=name)
    codes_PS = codes_of(windows, FRAMES + 2)
    row = windows.row(codes_PS, 1)
    positions = FRAMES * LEVELS if name == "flatten" else FRAMES + LEVELS - 1
    expected = np.full((positions, LEVELS), -1)
    for t in range(FRAMES):
        for k in range(LEVELS):
            expected[t * LEVELS + k if name == "flatten" else t + k, k] = codes_PS[1 + t, k]
    np.testing.assert_array_equal(row["targets"], expected)
    np.testing.assert_array_equal(row["reads"], np.concatenate([np.full((1, LEVELS), -1), expected[:-1]]))
    np.testing.assert_array_equal(row["text"], [0] + [-1] * (positions - 1))
    assert set(row) == {"text", "reads", "targets"}
    assert windows.starts(codes_PS) == 3 and windows.size == FRAMES


def test_patterns_of_the_baseline_are_those_that_go_step_by_step():
    for name, words in (("later", "choose flatten, delay, "), ("layer_wise", "choose another")):
        with pytest.raises(UserError, match=rf"model\.pattern is '{name}'.*: {words}"):
            models.prior_config(settings("ar_baseline", pattern=name))
    for name, make in pattern.STEPWISE.items():
        assert models.length(settings("ar_baseline", pattern=name)) == make((FRAMES,) * LEVELS).positions


# MARK: which windows


@pytest.mark.parametrize("stage", STAGES)
def test_a_window_is_drawn_from_anywhere_in_a_track(stage):
    windows = make(stage)
    starts = {begins(windows.draw(track(windows, FRAMES + 2), np.random.default_rng(seed))) for seed in range(80)}
    assert starts == {10 * start for start in range(FRAMES + 2 if stage == "lm" else 3)}


@pytest.mark.parametrize("stage", STAGES)
def test_windows_to_measure_lie_at_even_distances(stage):
    windows = make(stage)
    size, last = windows.size, 12 - windows.size
    found, counts_KV = windows.spread(track(windows, 12), 3)
    places = [0, last // 2, last]
    assert [begins(row) for row in found] == [10 * place for place in places]
    heard_PS = np.concatenate([codes_of(windows, 12)[place : place + size] for place in places])
    streams = packets.levels_of(packets.to_streams(heard_PS, windows.prior.quantiser.slots))
    np.testing.assert_array_equal(counts_KV, [np.bincount(codes_T, minlength=500) for codes_T in streams])
    every, _ = windows.spread(track(windows, 12), 100)
    assert len(every) == 12 // size
    np.testing.assert_array_equal(aar_rows.evenly(9, 4), [0, 3, 6, 9])
    np.testing.assert_array_equal(aar_rows.evenly(9, 1), [0])


@pytest.mark.parametrize("stage", STAGES)
def test_a_clip_is_heard_at_even_distances(stage):
    windows = make(stage, references=3)
    codes_PS, last = codes_of(windows, 12), 12 - windows.size
    places = [0, last // 2, last]
    expected = np.concatenate([codes_PS[place : place + windows.size] for place in places])
    found = windows.clip(codes_PS)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int32


def _codes(row, name: str) -> set[int]:
    return set(row[name][row[name] >= 0].tolist())


@pytest.mark.parametrize("stage, target", [("lm", "codes"), ("ar_baseline", "targets")])
def test_references_share_nothing_with_the_window_they_go_with(stage, target):
    windows, rng = make(stage), np.random.default_rng(0)
    three, one = track(windows, 3 * windows.size), track(windows, windows.size)
    for row in [windows.draw(three, rng) for _ in range(50)] + windows.spread(three, 8)[0]:
        assert _codes(row, target) and not _codes(row, target) & _codes(row, "reference")
        assert len(row["reference"]) == 2 * windows.size
    alone = windows.draw(one, rng)
    assert _codes(alone, target) == _codes(alone, "reference")
    # a track in which nothing fits beside some windows: the farthest there is
    assert windows.others(np.zeros((windows.size * 2, 1)), (windows.size - 1) // 2).tolist() == [windows.size]


def test_silence_that_fills_the_last_window_up_is_left_out():
    windows = make("lm")
    three = track(windows, 3)
    for seconds, kept in ((2.4, 2), (2.99985, 2), (2.999999, 3), (3.0, 3), (0.4, 1)):
        three["meta"]["seconds"] = seconds * windows.seconds
        np.testing.assert_array_equal(windows.packets_of(three), codes_of(windows, 3)[:kept])
    windows = make("ar_baseline")
    np.testing.assert_array_equal(windows.packets_of(track(windows, 5)), codes_of(windows, 5))
    short = windows.packets_of(track(windows, 3))
    np.testing.assert_array_equal(short, codes_of(windows, FRAMES).clip(max=codes_of(windows, 3)[-1]))


# MARK: conditions


@pytest.fixture
def vectors(tmp_path):
    """Two vectors of track t, one of track u."""
    np.savez(tmp_path / "v.npz", t=np.array([[3.0, 4.0], [0.0, -2.0]]), u=np.array([5.0, 0.0]))
    return aar_rows.Vectors(str(tmp_path / "v.npz"), 2)


@pytest.mark.parametrize("stage", STAGES)
def test_vectors_are_the_tracks_own_and_of_unit_length(vectors, stage):
    windows = make(stage, listener=0, references=0)
    windows = aar_rows.Windows(windows.prior, windows.frames, windows.seconds, windows.pattern, 0, vectors)
    one = track(windows, FRAMES + 2)
    drawn = [windows.draw(one, np.random.default_rng(seed))["cond"] for seed in range(20)]
    assert {tuple(np.round(cond.astype(float), 3).tolist()) for cond in drawn} == {(0.6, 0.8), (0.0, -1.0)}
    for row in windows.spread(one, 4)[0]:
        np.testing.assert_allclose(row["cond"], [0.6, 0.8], rtol=1e-6)
    other = windows.spread(track(windows, FRAMES, name="u"), 4)[0][0]
    np.testing.assert_allclose(other["cond"], [1, 0])
    assert "reference" not in other
    with pytest.raises(UserError, match=r"v\.npz has no vector of track w: write one for every track"):
        windows.draw(track(windows, FRAMES, name="w"), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((0, 2)), "track t: no vector"),
        (np.zeros(3), r"track t: a vector of shape \(3,\), the model takes 2 numbers"),
        (np.array([np.nan, 1.0]), "track t: a vector with numbers that are not finite"),
        (np.zeros(2), "track t: a vector of zeros, which points nowhere"),
    ],
)
def test_vectors_that_are_none_are_refused(tmp_path, array, words):
    np.savez(tmp_path / "v.npz", t=array)
    with pytest.raises(UserError, match=words):
        aar_rows.Vectors(str(tmp_path / "v.npz"), 2)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_track_of_either_split_without_a_vector_is_told(monkeypatch, vectors, split):
    splits = {"train": ["t"], "valid": ["u"]}
    splits[split].append("w")
    tracks = {name: SimpleNamespace(tracks=[{"id": one} for one in ids]) for name, ids in splits.items()}
    monkeypatch.setattr(stages, "TokenSource", lambda path, split: tracks[split])
    with pytest.raises(UserError, match="no vector of track w"):
        stages.check_vectors(vectors, "tokens")
    splits[split].pop()
    tracks[split].tracks.pop()
    stages.check_vectors(vectors, "tokens")


# MARK: batches


@pytest.mark.parametrize("split", ["train", "valid"])
@pytest.mark.parametrize("stage", STAGES)
def test_batches_ask_for_their_own_split_seed_levels_and_rows(monkeypatch, stage, split):
    config, windows, asked = settings(stage), make(stage), []
    config.data.path, config.train.seed, config.train.batch_size = "tokens", 7, 5

    def example_batches(*arguments):
        asked.append(arguments)
        return Batches(lambda index: [track(windows, 30)] * 2, 3)

    monkeypatch.setattr(aar_rows.pipeline, "example_batches", example_batches)

    def drawn(seed: int) -> list:
        config.train.seed = seed
        data = aar_rows.batches(config, windows, split, [1, 4])
        return [data[index] for index in range(3)]

    one, again, other = drawn(7), drawn(7), drawn(8)
    assert asked[0] == ("tokens", split, 7, "all", 5, [1, 4]) and asked[2][2] == 8
    name = "codes" if stage == "lm" else "targets"
    for (task, batch), (_, same), (_, changed) in zip(one, again, other, strict=True):
        assert task == windows.prior.visibility
        assert all((batch[key] == same[key]).all() for key in batch)
        assert (batch[name][0] != batch[name][1]).any(), "each row draws for itself"
        assert (batch["reference"] != changed["reference"]).any()
    assert any((one[0][1][name] != batch[name]).any() for _, batch in one[1:]), "and each batch"
    told = aar_rows.shapes(windows, 2)
    assert {key: (x.shape, x.dtype) for key, x in one[0][1].items()} == {
        key: (x.shape, x.dtype) for key, x in told.items()
    }


def test_the_shapes_of_a_model_that_takes_vectors():
    windows = make("lm", listener=0)
    told = aar_rows.shapes(windows, 5)
    assert told["cond"].shape == (5, 2) and told["cond"].dtype == np.float32 and "reference" not in told


# MARK: measuring


@pytest.mark.parametrize("stage", STAGES)
def test_a_model_is_measured_on_the_held_out_tracks_and_counts_on_the_others(monkeypatch, stage):
    """By one that spends as many nats on a code as the code is."""
    config, windows = settings(stage), make(stage)
    slots = windows.prior.quantiser.slots
    splits = {"train": [(8, 0), (5, 100)], "valid": [(6, 200), (9, 300), (7, 200)]}
    splits = {name: [track(windows, *one) for one in group] for name, group in splits.items()}
    asked, steps = [], []

    def source(path, levels, split):
        asked.append((path, levels, split))
        return splits[split]

    class Knowing:
        def loss(self, batch, *, visibility):
            assert visibility == windows.prior.visibility
            if stage == "lm":
                levels = np.split(batch["codes"][0], np.cumsum(slots)[:-1])
            else:
                levels = [codes_S[codes_S >= 0] for codes_S in batch["targets"][0].T]
            return 0.0, {"ce_K": np.array([level.mean() for level in levels]),
                         "count_K": np.array([len(level) for level in levels])}  # fmt: skip

    for room in (measures, aar_rows):
        monkeypatch.setattr(room, "TokenSource", source)
    monkeypatch.setattr(measures, "check_records", lambda config, path: None)
    monkeypatch.setattr(measures.jax, "jit", lambda function: function)
    monkeypatch.setattr(measures.nnx, "split", lambda model: (model, None))
    monkeypatch.setattr(measures.nnx, "merge", lambda model, weights: model)
    sums_NK, counts_NKV, trained_KV = measures.cross_entropy(
        config, Knowing(), "tokens", 2, in_memory, lambda: steps.append(1)
    )
    assert sorted(asked) == [("tokens", "all", split) for split in ("train", "valid")]
    assert len(steps) == 2
    for sums_K, counts_KV, example in zip(sums_NK, counts_NKV, splits["valid"], strict=False):
        np.testing.assert_array_equal(counts_KV, windows.spread(example, measures.WINDOWS_MEASURED)[1])
        np.testing.assert_allclose(sums_K, counts_KV @ np.arange(500))
        assert (counts_KV[:, :200] == 0).all() and (trained_KV[:, 200:] == 0).all()
    heard = [windows.packets_of(example) for example in splits["train"]]
    streams = packets.levels_of(packets.to_streams(np.concatenate(heard), slots))
    np.testing.assert_array_equal(trained_KV, [np.bincount(codes_T, minlength=500) for codes_T in streams])
    np.testing.assert_array_equal(
        aar_rows.trained_counts(windows, "tokens", 1), windows.counts(windows.packets_of(splits["train"][0]))
    )
    assert sequence.stack(windows.spread(splits["valid"][0], 2)[0])["reference"].shape[0] == 2 - (stage != "lm")
