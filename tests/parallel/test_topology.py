"""Slices by name, and one line for what is none."""

from types import SimpleNamespace

import pytest

from hiermusic.errors import UserError
from hiermusic.parallel import topology as t


@pytest.mark.parametrize(
    ("name", "slice_"),
    [
        ("v6e:16x16", ("v6e", (16, 16))),
        ("v6e-256", ("v6e", (16, 16))),
        ("v5litepod-16", ("v5e", (4, 4))),
        ("v5p:4x4x8", ("v5p", (4, 4, 8))),
        ("v5p-256", ("v5p", (4, 4, 8))),  # cores
        ("V5:4X4X8", ("v5p", (4, 4, 8))),
        ("v5p:12x12x12", ("v5p", (12, 12, 12))),
        ("tpu7x:2x2x2", ("tpu7x", (2, 2, 2))),
    ],
)
def test_names(name, slice_):
    assert t.parse(name) == slice_


@pytest.mark.parametrize("name", ["", "v6e", "h100:8", "v9:4x4", "v6e:16x16x", "v6e=4x4", "v5e:4x4:1"])
def test_unknown_chips_are_answered_with_the_known_ones(name):
    with pytest.raises(UserError, match=r"is unknown|slices are"):
        t.parse(name)


@pytest.mark.parametrize(
    "name", ["v6e:3x3", "v6e:32x32", "v5p:4x4", "v5p:3x4x4", "v5p:64x64x64", "v6e-7", "v6e:0x0", "v5p:0x4x4", "v6e:x"]
)
def test_shapes_that_there_are_not_are_answered_with_those_there_are(name):
    with pytest.raises(UserError, match=r"slices are .*2x2"):
        t.parse(name)


def test_devices_of_slices():
    pytest.importorskip("libtpu")
    devices = t.topology("v5e:4x4", slices=2)
    assert len(devices) == 32 and {device.slice_index for device in devices} == {0, 1}
    assert {device.platform for device in devices} == {"tpu"}
    assert len(t.topology("v4:2x2x1")) == 4  # chips, not cores
    assert len(t.topology("tpu7x:2x2x1")) == 8  # cores
    with pytest.raises(UserError, match="at least one slice"):
        t.topology("v5e:4x4", slices=0)


@pytest.mark.parametrize(("name", "bounds"), [("v6e:1x1", (1, 1, 1)), ("v6e:2x2", None)])
def test_one_chip_is_a_host_of_one_chip_and_larger_slices_are_left_as_they_are(monkeypatch, name, bounds):
    asked = []
    made = SimpleNamespace(devices=["a chip"])
    monkeypatch.setattr(t, "_ENVIRONMENT", {})
    monkeypatch.setattr(t.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", lambda **how: asked.append(how) or made)
    assert t.topology(name) == ["a chip"]
    assert asked[0]["topology_name"] == name and asked[0].get("chips_per_host_bounds") == bounds


def test_missing_compiler_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(t.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'hiermusic\[tpu\]'"):
        t.topology("v5e:4x4")
