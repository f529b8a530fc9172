"""Data that change under a run."""

import json
import shutil

import numpy as np
import pytest
import soundfile

from hiermusic.data.pipeline import resolve
from hiermusic.train import origin

RATE = 1000


def ramps(folder, *beginnings):
    """A folder of short tracks that differ in where they begin."""
    folder.mkdir(exist_ok=True)
    for index, begin in enumerate(beginnings):
        soundfile.write(folder / f"{index}.wav", ((begin + np.arange(300)) / 32768)[:, None], RATE)


def start(workdir, path):
    """What a start of a run says of its data: of music, as a codec trains on it, or of records."""
    resolve(path, workdir / "data", RATE, 1, progress=False)
    told = []
    workdir.mkdir(exist_ok=True)
    origin.note(workdir, str(path), told.append)
    return told


def test_music_that_changes_is_told_once_whatever_it_was_before(tmp_path):
    music, run = tmp_path / "music", tmp_path / "run"
    ramps(music, 0, 1000, 2000, 3000)
    assert start(run, music) == start(run, music) == []
    ramps(music, 0, 1000, 7000, 8000)
    told = f"{music} holds other data than this run was last trained on (2 of its tracks are new or other, 2 are gone)"
    assert start(run, music) == [f"{told}: it goes on with what is there now"] and start(run, music) == []
    ramps(music, 0, 1000, 2000, 3000)  # of which there are records
    assert start(run, music) == [f"{told}: it goes on with what is there now"] and start(run, music) == []


def test_records_that_are_exchanged_are_told_and_the_same_elsewhere_are_not(tmp_path):
    for name, begin in (("one", 0), ("two", 9000)):
        ramps(tmp_path / "music", begin, begin + 1000)
        shutil.move(resolve(tmp_path / "music", tmp_path, RATE, 1, progress=False), tmp_path / name)
    records, run = tmp_path / "records", tmp_path / "run"
    shutil.copytree(tmp_path / "one", records)
    assert start(run, records) == start(run, tmp_path / "one") == start(run, records) == []
    shutil.rmtree(records)
    shutil.copytree(tmp_path / "two", records)
    told = f"{records} holds other data than this run was last trained on: it goes on with what is there now"
    assert start(run, records) == [told] and start(run, records) == []


def test_a_run_killed_before_it_was_told_is_told_again(tmp_path):
    ramps(tmp_path / "music", 0)
    start(tmp_path, tmp_path / "music")
    ramps(tmp_path / "music", 5)
    resolve(tmp_path / "music", tmp_path / "data", RATE, 1, progress=False)
    with pytest.raises(ValueError):
        origin.note(tmp_path, str(tmp_path / "music"), int)  # which takes no words
    assert len(start(tmp_path, tmp_path / "music")) == 1


@pytest.mark.parametrize("text", ["", "[]", '{"sha256": 1}', "[" * 99_999])
def test_a_memory_that_is_none_stops_nothing(tmp_path, text):
    ramps(tmp_path / "music", 0)
    (tmp_path / "data.json").write_text(text)
    assert len(start(tmp_path, tmp_path / "music")) == (text == '{"sha256": 1}')
    assert json.loads((tmp_path / "data.json").read_text())["path"] == str(tmp_path / "music")


def test_no_data_are_no_news(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tracks.jsonl").touch()
    origin.note(tmp_path / "run", str(tmp_path), pytest.fail)  # unfinished records
    (tmp_path / "info.json").touch()
    origin.note(tmp_path / "run", "", pytest.fail)  # where records lie in the folder that the run was started in
    origin.note(tmp_path / "run", str(tmp_path / "gone"), pytest.fail)
    assert not (tmp_path / "run").exists()
