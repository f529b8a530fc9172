"""Sweeps: combined and named, and what their files may say."""

import numpy as np
import pytest

from hiermusic.errors import UserError
from hiermusic.sweep import hyper, runs

from .files import BACKBONE, ROOT, one_run, sweep_file


def test_product_chain_zip_and_fixed():
    a, b = hyper.sweep("a", np.array([1, 2])), hyper.sweep("b", ["x", "y"])
    assert hyper.product([a, b]) == [{"a": i, "b": j} for i in (1, 2) for j in ("x", "y")]
    assert hyper.chainit([a, b]) == [{"a": 1}, {"a": 2}, {"b": "x"}, {"b": "y"}]
    assert hyper.zipit([a, b, hyper.fixed("c", 0, length=2)]) == [
        {"a": 1, "b": "x", "c": 0},
        {"a": 2, "b": "y", "c": 0},
    ]
    assert hyper.product([a, hyper.fixed("c", 0)]) == [{"a": 1, "c": 0}, {"a": 2, "c": 0}]
    assert type(a[0]["a"]) is int


def test_combinations_that_make_no_sense_are_refused():
    a = hyper.sweep("a", [1, 2])
    with pytest.raises(UserError, match="both set a"):
        hyper.product([a, a])
    with pytest.raises(UserError, match=r"one length, got a: 2; b: 1"):
        hyper.zipit([a, hyper.sweep("b", [1])])


def test_names_are_readable_unique_and_do_not_depend_on_the_other_runs(tmp_path):
    few = runs.runs_of(sweep_file(tmp_path, "hyper.sweep('train.learning_rate', [1e-4, 0.002])"), BACKBONE, {}, "out")
    more = runs.runs_of(
        sweep_file(tmp_path, "hyper.sweep('train.learning_rate', [1e-4, 1, 0.002])"), BACKBONE, {}, "out"
    )
    assert [run.name for run in few] == ["learning_rate=0.0001", "learning_rate=0.002"]
    assert [more[0], more[2]] == few and few[0].workdir == "out/learning_rate=0.0001"
    strange = sweep_file(tmp_path, "hyper.sweep('data.path', ['/a b/c', '/a/b c', 'x' * 200, 'x' * 201])")
    names = [run.name for run in runs.runs_of(strange, BACKBONE, {}, "out")]
    assert len(set(names)) == 4 and all(len(name) <= runs.LONGEST_NAME and "/" not in name for name in names)
    shared = sweep_file(tmp_path, "hyper.product([hyper.sweep('a.seed', [1]), hyper.sweep('b.seed', [2])])")
    assert runs.runs_of(shared, BACKBONE, {}, "out")[0].name == "a.seed=1,b.seed=2"
    several = sweep_file(tmp_path, "hyper.sweep('model.books', [(1, 1, 1), [2, 0.5], (9,)])")
    assert [run.name for run in runs.runs_of(several, BACKBONE, {}, "out")] == ["books=1-1-1", "books=2-0.5", "books=9"]


@pytest.mark.parametrize(
    ("body", "common", "words"),
    [
        ("[]", {}, "must return a list of runs"),
        ("[{}]", {}, "must return a list of runs"),
        ("hyper.sweep('train.seed', [1, 1])", {}, "the run seed=1 is there 2 times"),
        ("hyper.sweep('train.seed', [1])", {"train.seed": 2}, "leave --config.train.seed out"),
        ("hyper.sweeep('train.seed', [1])", {}, "get_hyper failed: AttributeError"),
        ("hyper.product([hyper.sweep('a', [1])] * 2)", {}, "both set a"),
        ("1 +", {}, "cannot be read: SyntaxError"),
    ],
)
def test_a_bad_sweep_file_is_named(body, common, words, tmp_path):
    path = sweep_file(tmp_path, body)
    with pytest.raises(UserError, match=words) as error:
        runs.runs_of(path, BACKBONE, common, "out")
    assert path in str(error.value) and "\n" not in str(error.value)


def test_a_run_loads_what_its_command_says(tmp_path):
    settings = {"train.betas": [0.8, 0.9], "train.learning_rate": 1, "model.head": "window", "loss.balance": True}
    codec = one_run(settings | {"model.init": "dac"}, f"{ROOT}/configs/khala/codec.py:tiny")
    with pytest.raises(UserError, match=r"run r: .*head"):
        codec.load()  # a codec has no head
    codec = one_run({k: v for k, v in settings.items() if k != "model.head"}, f"{ROOT}/configs/khala/codec.py:tiny")
    config = codec.load()
    assert tuple(config.train.betas) == (0.8, 0.9) and config.train.learning_rate == 1.0 and config.loss.balance is True
    assert "--config.train.betas=(0.8, 0.9)" in codec.arguments() and codec.arguments()[0] == "train"


@pytest.mark.parametrize("settings", [{"train.stepz": 3}, {"train.steps": "many"}, {"model.width.x": 1}])
def test_a_field_that_is_not_there_is_one_line(settings):
    with pytest.raises(UserError, match="run r: ") as error:
        one_run(settings).load()
    assert "\n" not in str(error.value)


def test_a_name_is_whole_up_to_its_greatest_length():
    for length in (runs.LONGEST_NAME, runs.LONGEST_NAME + 1):
        name = runs._name({"train.note": "x" * (length - 5)}, {"train.note": "note"})
        assert len(name) == runs.LONGEST_NAME and (name == "note=" + "x" * (length - 5)) == (length == len(name))
