"""PyTorch's files without PyTorch: what is read of them, and what is refused before it runs."""

import argparse
import os
import pickle
import tracemalloc
import zipfile
from collections import Counter, OrderedDict, deque

import numpy as np
import pytest

from hiermusic.errors import UserError
from hiermusic.pretrained import pickles

from .torch_files import Storage, Tensor, save, stand_in, tensor


@pytest.fixture(autouse=True)
def torch_stands_in(monkeypatch):
    stand_in(monkeypatch)


class Call:
    """What a pickle calls when it is read."""

    def __init__(self, function, *arguments):
        self.called = (function, arguments)

    def __reduce__(self):
        return self.called


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_and_plain_values_come_back(tmp_path, zipped):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    shared = Storage(np.arange(24, dtype=np.float32))
    value = {
        "state_dict": OrderedDict(a=tensor(a), wide=tensor(b.astype(np.float64)), half=tensor(b.astype(np.float16))),
        "short": tensor(b, "bfloat16"),
        "whole": tensor(np.array([-3, 2**40])),
        "flags": tensor(np.array([True, False])),
        "one": tensor(np.float32(2.5)),
        "none": tensor(np.zeros((0, 3), np.float32)),
        "turned": Tensor(shared, 2, (4, 3), (1, 6)),
        "rest": Tensor(shared, 12, (12,), (1,)),
        "beside": {"rates": [2, 4], "pair": (1, "x"), 7: None, "share": 0.5, "yes": True},
    }
    found = pickles.read(save(value, tmp_path / "x.pt", zipped))
    np.testing.assert_array_equal(found["state_dict"]["a"], a)
    assert found["state_dict"]["wide"].dtype == np.float64 and found["state_dict"]["half"].dtype == np.float32
    np.testing.assert_array_equal(found["state_dict"]["half"], b.astype(np.float16))
    np.testing.assert_allclose(found["short"], b, rtol=2**-7)
    assert found["short"].dtype == np.float32 and not (found["short"].view(np.uint32) & 0xFFFF).any()
    assert found["whole"].tolist() == [-3, 2**40] and found["flags"].tolist() == [True, False]
    assert found["one"].shape == () and found["one"] == 2.5 and found["none"].shape == (0, 3)
    np.testing.assert_array_equal(found["turned"], np.arange(24).reshape(4, 6)[:3, 2:].T[:4])
    np.testing.assert_array_equal(found["rest"], np.arange(12, 24))
    assert found["beside"] == {"rates": [2, 4], "pair": [1, "x"], 7: None, "share": 0.5, "yes": True}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("asks", "name"),
    [
        (lambda mark: Call(os.system, f"touch {mark}"), "system"),
        (lambda mark: Call(eval, f"open({str(mark)!r}, 'w')"), "builtins.eval"),
        (lambda mark: Call(open, str(mark), "w"), "io.open"),
        (lambda mark: Call(getattr, "", "join"), "builtins.getattr"),
        (lambda mark: argparse.Namespace(lr=1), "argparse.Namespace"),
        (lambda mark: Call(Call, 1), "Call"),
    ],
)
def test_whatever_else_a_file_asks_for_is_named_and_not_run(tmp_path, asks, name, zipped):
    mark = tmp_path / "it ran"
    path = save({"a": tensor(np.ones(2, np.float32)), "x": asks(mark)}, tmp_path / "x.pt", zipped)
    with pytest.raises(UserError, match=rf"x\.pt asks for \S*{name}, which is no tensor .*: nothing of it was run"):
        pickles.read(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        Tensor(Storage(np.ones(6, np.float32)), 0, (7,), (1,)),
        Tensor(Storage(np.ones(6, np.float32)), 3, (4,), (1,)),
        Tensor(Storage(np.ones(6, np.float32)), 0, (2, 2), (1, 5)),
        Tensor(Storage(np.ones(6, np.float32)), 0, (10**6, 10**6), (0, 0)),
        Tensor(Storage(np.ones(6, np.float32)), -1, (2,), (1,)),
        Tensor(Storage(np.ones(6, np.float32)), 0, (2,), (-1,)),
        Tensor(Storage(np.ones(6, np.float32)), 0, (2.0,), (1,)),
        Tensor(Storage(np.ones(6, np.float32)), 0, (2,), (1, 1)),
        Tensor("no storage", 0, (2,), (1,)),
    ],
)
def test_a_tensor_that_its_storage_does_not_hold_is_refused(tmp_path, wrong):
    with pytest.raises(UserError, match="cannot be read as a file of PyTorch's"):
        pickles.read(save({"a": wrong}, tmp_path / "x.pt"))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_is_cut_short_is_refused_wherever_it_ends(tmp_path, zipped):
    path = save({"a": tensor(np.ones(64, np.float32)), "b": tensor(np.ones(64, np.float32))}, tmp_path / "x.pt", zipped)
    whole = path.read_bytes()
    for end in (0, 1, 2, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match="cannot be read as a file of PyTorch's"):
            pickles.read(path)


def test_other_archives_and_pickles_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    for names, words in ((["a/b.txt"], "other things"), (["a/data.pkl", "a/constants.pkl"], "TorchScript")):
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, pickle.dumps({}))
        with pytest.raises(UserError, match=words):
            pickles.read(path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="does not begin as one"):
        pickles.read(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({"a": [0] * 1000}))
    with pytest.raises(UserError, match="it is compressed, which PyTorch's own files are not"):
        pickles.read(path)
    inside: list = []
    inside.append(inside)
    with pytest.raises(UserError, match="within itself"):
        pickles.read(save({"a": inside}, path))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")
    with pytest.raises(UserError, match="cannot be read"):
        pickles.read(path)


@pytest.mark.parametrize("kind", ["__builtin__\nstr", "torch\ndevice", "_codecs\nencode"])
def test_text_is_made_of_plain_values_alone(tmp_path, kind):
    """Lists that each hold another twice, twenty deep, are a few hundred bytes and millions of letters."""
    twice = b"]q\x000" + b"".join(b"](h%ch%ceq%c0" % (i, i, i + 1) for i in range(20)) + b"h\x14"
    other = b"X\x06\x00\x00\x00latin1" if "encode" in kind else b""
    asked = b"\x80\x02" + b"c" + kind.encode() + b"\n(" + twice + other + b"tR."
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("a/data.pkl", asked)
    with pytest.raises(UserError, match="a list stands where a plain value belongs"):
        pickles.read(tmp_path / "x.pt")


@pytest.mark.parametrize("pickled", [b"\x80\x02}r\x00\x00\x20\x00.", b"\x80\x05\x96" + bytes([0, 0, 0, 2, 0, 0, 0, 0])])
def test_a_few_bytes_take_no_memory_for_what_they_only_speak_of(tmp_path, pickled):
    """A place of two millions in the memo; a bytearray of 32 MB that does not follow."""
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("a/data.pkl", pickled)
    tracemalloc.start()
    try:
        if pickled.endswith(b"."):
            assert pickles.read(tmp_path / "x.pt") == {}
        else:
            with pytest.raises(UserError, match="cannot be read as a file of PyTorch's"):
                pickles.read(tmp_path / "x.pt")
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


def test_what_lies_in_several_places_is_made_once(tmp_path):
    deep: list = [tensor(np.ones(2, np.float32))]
    for _ in range(12):
        deep = [deep, deep]
    found = pickles.read(save({"a": deep}, tmp_path / "x.pt"))["a"]
    for _ in range(12):
        assert found[0] is found[1]
        found = found[0]
    assert found[0].tolist() == [1, 1]


def test_what_a_trainer_keeps_beside_the_weights_is_passed_over(tmp_path):
    """Where its classes are named: nothing of them runs, and None stands in their place."""
    value = {
        "state_dict": OrderedDict(a=tensor(np.ones(3, np.float32))),
        "args": argparse.Namespace(rate=2),
        "epoch": 3,
    }
    value |= {"milestones": Counter([3, 3]), "score": np.float32(0.5), "last": deque([1, 2])}
    path = save(value, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"asks for argparse\.Namespace"):
        pickles.read(path)
    found = pickles.read(path, strangers=pickles.TRAINERS)
    assert (
        found["args"] is found["milestones"] is found["score"] is found["last"] is None
        and found["epoch"] == 3
        and found["state_dict"]["a"].tolist() == [1, 1, 1]
    )


def test_what_is_written_comes_back(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.normal(size=(300, 4)).astype(np.float32),
        "b.c": rng.normal(size=5),
        "half": rng.normal(size=(2, 1, 3)).astype(np.float32).astype(np.float16).astype(np.float32),
        "flag": np.ones((), bool),
        "none": np.zeros((0, 2), np.float32),
    }
    pickles.write(tmp_path / "x.pt", tensors)
    found = pickles.read(tmp_path / "x.pt")
    assert list(found) == list(tensors)
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        np.testing.assert_array_equal(found[name], value)
