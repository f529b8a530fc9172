import time

import pytest

from hiermusic.train.watchdog import Watchdog


def wait_for(path, words, seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not (path.exists() and path.read_text().count(words) > 0):
        time.sleep(0.02)
    assert words in path.read_text()


def test_a_hang_is_told_once_and_the_run_goes_on(toy, tmp_path, capfd):
    """A batch that is not there for a while: the stacks say who waits, and the run ends as ever."""
    config = toy.config(steps=6, hang_seconds=0.3)
    stage = toy.ToyStage(config)
    batch = stage._batch
    path = tmp_path / "stacks-0.txt"

    def slow_to_come(rows, index):
        if index == 4:
            wait_for(path, "no progress")
        return batch(rows, index)

    stage._batch = slow_to_come
    assert toy.run(stage, tmp_path, progress=False)["step"] == 6
    told = path.read_text()
    assert "in step 5" in told or "in step 4" in told
    assert "slow_to_come" in told and "_dispatch" in told
    errors = capfd.readouterr().err
    assert "no progress" in errors and "slow_to_come" in errors


def test_one_hang_is_told_once(tmp_path, capfd):
    watchdog = Watchdog(tmp_path, 0.05)
    watchdog.progress("step 1")
    path = tmp_path / "stacks-0.txt"
    wait_for(path, "in step 1")
    time.sleep(0.5)
    watchdog.close()
    assert path.read_text().count("no progress for 0.05 s") == 1
    assert "in step 1" in capfd.readouterr().err


@pytest.mark.parametrize("seconds", [0.0, 30.0])
def test_a_run_that_goes_on_tells_nothing(tmp_path, seconds):
    watchdog = Watchdog(tmp_path, seconds)
    watchdog.progress("step 1")
    time.sleep(0.05)
    watchdog.close()
    assert not list(tmp_path.iterdir())


def test_what_may_be_slow_is_given_longer(tmp_path):
    watchdog = Watchdog(tmp_path, 1.0)
    watchdog.progress("step 1", slow=True)
    time.sleep(1.6)
    watchdog.close()
    assert not list(tmp_path.iterdir())
