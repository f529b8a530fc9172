"""How much memory a batch may fill: what an accelerator says it has, or a share of the host's."""

import os
from types import SimpleNamespace

import jax
import pytest

from hiermusic.parallel import memory


@pytest.mark.parametrize(
    ("told", "processes", "room"),
    [({"bytes_limit": 1000}, 1, 850), ({"bytes_limit": 1000}, 4, 850), ({}, 1, 1000), (None, 1, 1000), (None, 2, 500)],
)
def test_a_device_has_what_it_says_or_its_part_of_half_the_host(monkeypatch, told, processes, room):
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(memory_stats=lambda: told)] * 2)
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4, "SC_PHYS_PAGES": 1000}.get)
    assert memory.room() == room


def test_the_least_of_all_is_taken():
    assert memory.least(3) == 3
