"""What a run leaves to look at: metrics.jsonl, TensorBoard events and samples."""

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hiermusic.errors import UserError


class Log:
    """Writes `workdir/metrics.jsonl` (one object a logged step) and TensorBoard events; only on the first process."""

    def __init__(self, workdir: str | Path, step: int = 0):
        """Opens the log of a run that starts or resumes after `step`; records of later steps are dropped."""
        from tensorboardX import SummaryWriter

        self.workdir = Path(workdir)
        self.path = self.workdir / "metrics.jsonl"
        self.active = jax.process_index() == 0
        self.last: dict[str, Any] = {}
        if not self.active:
            return
        records = [record for record in read_metrics(workdir) if record["step"] <= step]
        self.last = records[-1] if records else {}
        with disk_errors(self.workdir):
            if self.path.exists():
                self._rewrite(records)
            self._board = SummaryWriter(str(self.workdir), purge_step=step + 1)

    def write(self, step: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Logs scalars and vectors of one step; non-finite numbers become null. Returns the record."""
        record = {"step": step, **{name: _plain(value) for name, value in metrics.items()}}
        self.last = record
        if self.active:
            with disk_errors(self.path):
                self._append(record)
        return record

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
        temporary = self.path.with_suffix(".jsonl.tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records))
        os.replace(temporary, self.path)

    def _append(self, record: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        for name, value in record.items():
            for tag, number in _scalars(name, value):
                self._board.add_scalar(tag, number, record["step"])

    def _audio(self, name: str, wav_LC: np.ndarray, sample_rate: int, step: int) -> None:
        from hiermusic.audio.files import write

        path = self.workdir / "samples" / f"{name}-{step}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, wav_LC, sample_rate)
        self._board.add_audio(name, np.clip(wav_LC, -1, 1), step, sample_rate=sample_rate)
        self._board.add_image(f"{name}/mel", _mel_image(wav_LC, sample_rate), step, dataformats="HWC")


def read_metrics(workdir: str | Path) -> list[dict[str, Any]]:
    """The records of `workdir/metrics.jsonl`; a line cut short by a kill is left out."""
    path = Path(workdir) / "metrics.jsonl"
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


@contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turns a full disk (or quota) into a UserError naming `path`; anything else is ours and keeps its traceback."""
    try:
        yield
    except Exception as error:
        if _is_disk_full(error):
            raise UserError(f"the disk is full: {path} cannot be written; free some space and start again") from error
        raise


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        # TensorStore only says so in words
        if "No space left on device" in str(error) or "Disk quota exceeded" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


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


def _scalars(name: str, value: Any):
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _scalars(f"{name}/{index}", item)
    elif isinstance(value, int | float) and name != "step":
        yield name, value


def _mel_image(wav_LC: np.ndarray, sample_rate: int) -> np.ndarray:
    """uint8 [mels, frames, 3], low notes at the bottom, 80 dB from black to bright."""
    from matplotlib import colormaps

    from hiermusic.audio.spectral import mel

    mono_L = np.asarray(wav_LC, np.float32).mean(axis=-1)
    mel_TF = np.asarray(mel(mono_L, sample_rate=sample_rate, n_fft=1024, hop=256, n_mels=96))
    decibels_TF = 20 * np.log10(np.maximum(mel_TF, 1e-5))
    bright_TF = np.clip((decibels_TF - decibels_TF.max()) / 80 + 1, 0, 1)
    return (colormaps["magma"](bright_TF.T[::-1])[..., :3] * 255).astype(np.uint8)
