"""What a run leaves to look at: metrics.jsonl, TensorBoard events and samples."""

import io
import json
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hiermusic.errors import disk_errors, replacing


class Log:
    """Writes `workdir/metrics.jsonl` and TensorBoard events; only on the first process.

    A line of metrics.jsonl is one object: what was measured at a `step`, or the `event` that came about after it.
    """

    def __init__(self, workdir: str | Path, step: int = 0):
        """Opens the log of a run that starts or resumes after `step`; records of later steps are dropped."""
        self.workdir = Path(workdir)
        self.path = self.workdir / "metrics.jsonl"
        self.active = jax.process_index() == 0
        self.last: dict[str, Any] = {}
        self.started: float | None = None  # when the workdir was first trained in, as far as its records tell
        if not self.active:
            return
        records, measured = read_log(workdir), read_metrics(workdir)
        if first := next((record for record in measured if {"time", "elapsed"} <= record.keys()), None):
            self.started = first["time"] - first["elapsed"]
        self.last = next((record for record in reversed(measured) if record["step"] <= step), {})
        records = [record for record in records if record["step"] <= step]
        with disk_errors(self.workdir):
            if self.path.exists():
                self._rewrite(records)
            self._board = _Board(self.workdir, step + 1)

    def write(self, step: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Logs scalars and vectors of one step; non-finite numbers become null. Returns the record."""
        record = {"step": step, **{name: _plain(value) for name, value in metrics.items()}}
        self.last = record
        if self.active:
            with disk_errors(self.path):
                self._append(record)
                scalars = [pair for name, value in record.items() for pair in _scalars(name, value)]
                self._board.write(step, [{"tag": tag, "simple_value": number} for tag, number in scalars])
        return record

    def event(self, step: int, words: str) -> None:
        """Logs what came about after a step and bears on those that follow."""
        if self.active:
            with disk_errors(self.path):
                self._append({"step": step, "event": words})

    def audio(self, name: str, wav_LC: np.ndarray, sample_rate: int, step: int) -> None:
        """Logs a sound and its mel spectrogram, and leaves `samples/<name>-<step>.wav` in the workdir."""
        if self.active:
            with disk_errors(self.workdir):
                self._audio(name, wav_LC, sample_rate, step)

    def close(self) -> None:
        """Flushes the events."""
        if self.active:
            with disk_errors(self.workdir):
                self._board.close()

    def _rewrite(self, records: list[dict[str, Any]]) -> None:
        with replacing(self.path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in records))

    def _append(self, record: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def _audio(self, name: str, wav_LC: np.ndarray, sample_rate: int, step: int) -> None:
        from PIL import Image

        from hiermusic.audio.files import write
        from hiermusic.audio.pictures import mel_shades, palette

        path = self.workdir / "samples" / f"{name}-{step}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, wav_LC, sample_rate)
        length, channels = wav_LC.shape
        sound = {
            "sample_rate": sample_rate,
            "num_channels": channels,
            "length_frames": length,
            "encoded_audio_string": path.read_bytes(),
            "content_type": "audio/wav",
        }
        colours_MTC = palette()[mel_shades(wav_LC, sample_rate)]
        png = io.BytesIO()
        Image.fromarray(colours_MTC).save(png, "PNG")
        height, width, colours = colours_MTC.shape
        picture = {"height": height, "width": width, "colorspace": colours, "encoded_image_string": png.getvalue()}
        self._board.write(step, [{"tag": name, "audio": sound}, {"tag": f"{name}/mel", "image": picture}])


class _Board:
    """TensorBoard events, written at once: tensorboardX's own writer would wait for ever behind a full disk."""

    def __init__(self, folder: Path, first: int):
        """Opens a file of events whose steps begin at `first`; TensorBoard drops what older files say of them."""
        from tensorboardX import RecordWriter
        from tensorboardX.proto.event_pb2 import Event

        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}"
        self._event, self._records = Event, RecordWriter(str(folder / name))
        self._append(file_version="brain.Event:2")
        self._append(step=first, session_log={"status": "START"})

    def write(self, step: int, values: Sequence[dict[str, Any]]) -> None:
        """Writes the values of one step, each by the fields of TensorBoard's `Summary.Value`."""
        self._append(step=step, summary={"value": values})
        self._records.flush()

    def close(self) -> None:
        self._records.close()

    def _append(self, **fields: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """What was measured, by `workdir/metrics.jsonl`."""
    return [record for record in read_log(workdir) if "event" not in record]


def read_log(workdir: str | Path) -> list[dict[str, Any]]:
    """The records of `workdir/metrics.jsonl`, events among them (`Log`); lines that are none, as a kill leaves them,
    are left out."""
    path = Path(workdir) / "metrics.jsonl"
    records = []
    for line in path.read_bytes().split(b"\n") if path.exists() else []:
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and type(record.get("step")) is int:
                records.append(record)
    return records


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | str):
        return value
    array = np.asarray(value)
    if array.ndim:
        return [_plain(item) for item in array]
    if array.dtype.kind in "bui":
        return array.item()
    number = float(array)
    return float(f"{number:.7g}") if math.isfinite(number) else None


def _scalars(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _scalars(f"{name}/{index}", item)
    elif isinstance(value, int | float) and name != "step":
        yield name, value
