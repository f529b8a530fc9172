"""Chips are found by what JAX calls their devices."""

from types import SimpleNamespace

import jax
import pytest

from hiermusic.parallel.chips import CHIPS, chip_of


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU7x", "tpu7x"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA B200", "b200"),
    ],
)
def test_device_kinds(kind, name):
    assert chip_of(SimpleNamespace(device_kind=kind)) is CHIPS[name]


def test_unknown_devices_are_no_chip():
    assert chip_of(jax.devices("cpu")[0]) is None
    assert chip_of(SimpleNamespace(device_kind="NVIDIA H100 PCIe")) is None  # slower than the module of the table


def test_cores_share_a_chip():
    assert CHIPS["tpu7x"].device_flops == CHIPS["tpu7x"].peak_flops / 2
    assert CHIPS["v5e"].device_flops == CHIPS["v5e"].peak_flops
