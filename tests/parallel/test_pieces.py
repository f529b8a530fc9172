"""Pieces on eight devices: which run together, what is gathered, and what becomes of a whole that cannot be had."""

import threading
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hiermusic.errors import UserError
from hiermusic.parallel import pieces
from hiermusic.parallel.pieces import Whole, run_all, run_each, rung


def whole(size, count, name=0):
    """A whole whose pieces say whose they are, and which."""
    return Whole(size, count, lambda i: (np.full(size, 1000 * name + i),), lambda parts: [part[0] for part in parts])


ECHO = partial(lambda state, rows_BS: rows_BS)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_every_whole_gets_what_was_made_of_its_own_pieces(devices, batches, monkeypatch):
    monkeypatch.setattr(pieces.jax, "local_devices", lambda: jax.devices()[:devices])
    sizes = [(30, 1), (7, 5), (30, 3), (200, 2), (7, 1), (30, 1), (1, 9), (100, 1), (30, 17), (7, 2)]
    wholes = [whole(*size, name=name) for name, size in enumerate(sizes)]
    found = list(run_each(ECHO, {}, iter(wholes), 100))
    assert found == [[1000 * name + i for i in range(count)] for name, (_, count) in enumerate(sizes)]
    for rows, size in batches:
        assert rows // min(rows, devices) * size <= max(100, size)  # of a device: no more than it may take, or a piece
        assert rows & (rows - 1) == 0  # few numbers, each of which has its own program


def test_a_device_takes_no_more_pieces_than_there_are(batches):
    """Eight devices, up to four pieces each: those that are left over are spread, and not filled up to a full batch."""
    for count, rows in ((1, [1]), (3, [4]), (8, [8]), (9, [16]), (32, [32]), (33, [32, 8]), (45, [32, 16])):
        batches.clear()
        run_all(ECHO, {}, [whole(25, count)], 100)
        assert [shape[0] for shape in batches] == rows


def test_the_next_are_gathered_while_some_are_worked_on(monkeypatch):
    """One device: four rounds of two pieces each, and as many again, and no more of them until those are given."""
    monkeypatch.setattr(pieces.jax, "local_devices", lambda: jax.devices()[:1])
    taken, waiting = [], threading.Event()

    def wholes():
        for name in range(40):
            taken.append(name)
            if name == 15:
                waiting.set()
            yield whole(50, 1, name)

    def run(state, rows_BS):
        assert waiting.wait(60), "what comes next is not gathered"
        return rows_BS

    found = run_each(partial(run), {}, wholes(), 100)
    assert next(found) == [0]
    found.close()
    assert taken == [*range(16)]


def test_what_comes_before_a_whole_that_cannot_be_had_is_given():
    def wholes():
        for name in range(5):
            yield whole(10, 1, name)
        raise UserError("track 5 is damaged")

    found = []
    with pytest.raises(UserError, match="track 5 is damaged"):
        for one in run_each(ECHO, {}, wholes(), 100):
            found += one
    assert found == [0, 1000, 2000, 3000, 4000]


def test_every_device_does_what_is_its_own_and_no_more():
    """A Fourier transform, which the partitioner would have every device make of all pieces."""
    program = pieces._on(partial(lambda state, x_BL: jnp.abs(jnp.fft.rfft(x_BL)) * state), jax.devices())
    x_BL = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)
    hlo = program.lower(np.float32(2), x_BL).compile().as_text()
    assert "fft" in hlo and "[2,64]" in hlo and "[16,64]" not in hlo and "all-gather" not in hlo
    np.testing.assert_allclose(program(np.float32(2), x_BL), 2 * np.abs(np.fft.rfft(x_BL)), rtol=1e-4, atol=1e-4)


def test_a_ladder_has_steps_of_a_sixteenth_and_less():
    for n in range(1, 3000):
        assert n <= rung(n, 16) <= n * 17 / 16
    assert len({rung(n, 16) for n in range(1024, 2048)}) == 17
