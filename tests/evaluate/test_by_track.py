"""Measurements of tracks: shared by processes, kept on disk, taken up again."""

import numpy as np
import pytest

from hiermusic.evaluate import by_track


@pytest.fixture
def process(monkeypatch):
    """(which, of how many) -> this is that process; the others are not waited for."""
    monkeypatch.setattr(by_track, "wait_for_all", lambda name: None)
    return lambda *place: monkeypatch.setattr(by_track, "workers", lambda: place)


def test_every_process_measures_its_share_and_reads_all(process, tmp_path):
    done = []

    def measure(index: int):
        done.append(index)
        return {"a": np.array([index, 2 * index])}

    process(1, 3)
    with pytest.raises(FileNotFoundError):  # the others have not been there
        by_track.on_disk(tmp_path, {})("x", 7, measure)
    assert done == [1, 4]
    process(0, 3)
    with pytest.raises(FileNotFoundError):
        by_track.on_disk(tmp_path, {})("x", 7, measure)
    process(2, 3)
    found = by_track.on_disk(tmp_path, {})("x", 7, measure)
    assert done == [1, 4, 0, 3, 6, 2, 5]
    assert [one["a"].tolist() for one in found] == [[index, 2 * index] for index in range(7)]
    alone = by_track.in_memory("x", 7, measure)
    assert all((one["a"] == other["a"]).all() for one, other in zip(found, alone, strict=True))


def test_a_killed_measurement_goes_on_and_others_are_not_taken_up(process, tmp_path):
    process(0, 1)
    done = []

    def measure(index: int):
        done.append(index)
        if index == 2 and len(done) == 3:
            raise RuntimeError("killed")
        return {"a": np.array(index)}

    with pytest.raises(RuntimeError):
        by_track.on_disk(tmp_path, {"step": 1})("x", 4, measure)
    by_track.on_disk(tmp_path, {"step": 1})("x", 4, measure)
    assert done == [0, 1, 2, 2, 3]
    by_track.on_disk(tmp_path, {"step": 1})("y", 1, measure)
    by_track.on_disk(tmp_path, {"step": 2})("x", 1, measure)
    assert done[5:] == [0, 0]


def test_columns_and_rows_are_each_others_inverse():
    rows = [{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 4.0}]
    measured = by_track.columns(rows) | by_track.columns(rows[::-1], "music")
    assert [by_track.scores_of(measured, index) for index in (0, 1)] == rows
    assert by_track.scores_of(measured, 0, "music") == rows[1]
