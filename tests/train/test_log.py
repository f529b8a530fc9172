import json
import os
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from hiermusic.errors import UserError
from hiermusic.train.log import Log, read_log, read_metrics


def test_records_are_plain_json(tmp_path):
    log = Log(tmp_path)
    log.write(1, {"loss": np.float32(0.1), "ce_K": np.array([1.5, np.nan]), "skipped": 3, "done": np.bool_(True)})
    log.write(2, {"loss": np.inf})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"step": 1, "loss": 0.1, "ce_K": [1.5, None], "skipped": 3, "done": True}
    assert lines[1] == {"step": 2, "loss": None}
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_resuming_drops_later_and_torn_lines(tmp_path):
    log = Log(tmp_path)
    for step in (1, 2, 3):
        log.write(step, {"loss": float(step)})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    log = Log(tmp_path, step=2)
    assert log.last == {"step": 2, "loss": 2.0}
    log.write(3, {"loss": 30.0})
    log.close()
    assert [record["loss"] for record in read_metrics(tmp_path)] == [1.0, 2.0, 30.0]


def test_events_are_kept_and_are_no_measurement(tmp_path):
    log = Log(tmp_path)
    log.event(0, "other data")
    log.write(1, {"loss": 1.0, "time": 100.0, "elapsed": 40.0})
    log.event(1, "another length")
    log.write(2, {"loss": 2.0})
    log.close()
    log = Log(tmp_path, step=1)
    assert log.last["loss"] == 1.0 and log.started == 60.0
    log.close()
    told = [(record["step"], record.get("loss"), record.get("event")) for record in read_log(tmp_path)]
    assert told == [(0, None, "other data"), (1, 1.0, None), (1, None, "another length")]


@pytest.mark.parametrize(
    "last", [b"\xff\xfe\x00", b"12", b"null", b"[]", b"{}", b'{"step": "x"}', b"[" * 99_999, b"\0" * 512]
)
def test_no_last_line_keeps_a_run_from_going_on(tmp_path, last):
    log = Log(tmp_path)
    log.write(1, {"loss": 1.0})
    log.close()
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(last + b"\n")
    Log(tmp_path, step=1).close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]
    assert (tmp_path / "metrics.jsonl").read_bytes().count(b"\n") == 1


def test_sounds_are_kept_and_shown(tmp_path):
    log = Log(tmp_path)
    wav_LC = np.sin(np.arange(4000) / 10)[:, None].astype(np.float32)
    log.audio("tone", wav_LC, 8000, 5)
    log.close()
    assert (tmp_path / "samples" / "tone-5.wav").stat().st_size > 8000
    events = b"".join(path.read_bytes() for path in tmp_path.glob("events.out.tfevents.*"))
    assert b"tone/mel" in events and b"PNG" in events and b"RIFF" in events


def test_events_are_tensorboards(tmp_path):
    log = Log(tmp_path, step=4)
    log.write(5, {"loss": 0.5, "ce_K": [1.0, np.nan], "name": "x"})
    log.close()
    (path,) = tmp_path.glob("events.out.tfevents.*")
    data, events = path.read_bytes(), []
    while data:  # the length and a checksum of it, the event and a checksum of that
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    version, start, scalars = events
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (5, SessionLog.START)
    values = [(value.tag, value.simple_value) for value in scalars.summary.value]
    assert (scalars.step, values) == (5, [("loss", 0.5), ("ce_K/0", 1.0)])
    assert 0 < version.wall_time <= start.wall_time <= scalars.wall_time


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_told(tmp_path):
    log = Log(tmp_path)
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"disk is full: .*metrics.jsonl"):
        log.write(1, {"loss": 1.0})
