"""Audio records: tracks as 16-bit segments in ArrayRecord shards, one series of shards a stem.

The mix lies in `audio-*` shards, another stem in `audio.STEM-*` ones: records of mixes alone have the former only. The
stems of a track have the same samples in the same segments.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int16

from hiermusic.audio import files
from hiermusic.data import splits
from hiermusic.data.ahead import ahead
from hiermusic.data.records import (
    ENTRY,
    Summary,
    begun_shards,
    discard,
    finish,
    open_shards,
    read_entries,
    read_info,
    read_summary,
    write_shards,
)
from hiermusic.data.shards import REMEDY, default_shards
from hiermusic.data.stems import ALONE, MIX, NAMES, combine
from hiermusic.data.tracks import Track
from hiermusic.errors import UserError, reading

if TYPE_CHECKING:
    from array_record.python.array_record_module import ArrayRecordWriter

# One record a chunk, else a random read decodes its neighbours too. PCM gains nothing from zstd, 10-bit codes a third.
OPTIONS = "group_size:1,uncompressed"
QUIET_DB = -50.0  # RMS of a stem in which nothing is heard; what a separator leaves behind is about as loud
_BLOCK = 1 << 20  # frames that are rounded at a time
_AUDIO_ENTRY = {**ENTRY, "samples": int, "sha256": str}


def to_pcm(wav_LC: Float32[np.ndarray, "L C"]) -> Int16[np.ndarray, "L C"]:
    """Waveform in [-1, 1] as 16-bit samples, rounded to the nearest: 16-bit input comes back bit for bit."""
    pcm_LC = np.empty(wav_LC.shape, "<i2")
    for start in range(0, len(wav_LC), _BLOCK):  # hours of sound are not to be in memory several times
        block_LC = wav_LC[start : start + _BLOCK] * np.float32(32768.0)
        pcm_LC[start : start + _BLOCK] = np.clip(np.rint(block_LC, out=block_LC), -32768, 32767, out=block_LC)
    return pcm_LC


def from_pcm(pcm_LC: Int16[np.ndarray, "L C"]) -> Float32[np.ndarray, "L C"]:
    """16-bit samples as a waveform in [-1, 1)."""
    return pcm_LC.astype(np.float32) / 32768.0


def write_audio(
    tracks: Iterable[Track],
    out: str | os.PathLike,
    sample_rate: int,
    channels: int,
    *,
    segment_seconds: float = 10.0,
    valid_fraction: float = 0.1,
    stems: Sequence[str] = ALONE,
    sounding: Sequence[str] = (),
    shards: int | None = None,
    fingerprint: str | None = None,
    worker: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> Summary | None:
    """Writes tracks as audio records: 16-bit segments at one rate and channel count, whole shards at a time.

    A run that was interrupted continues at its first missing shard; a complete directory is left as it is.

    Args:
      tracks: what to write; a track that cannot be read is skipped, counted and named.
      out: the directory.
      sample_rate: Hz of the records; channels: 1 or 2.
      segment_seconds: length of a record; a track's last one is shorter.
      valid_fraction: share that becomes `valid` where the tracks name none (see `splits.divide`).
      stems: those to be kept, in the order of `stems.NAMES`; a track without one of them is skipped.
      sounding: those of them that must be heard: a track in which one is silent (`QUIET_DB`) is skipped.
      shards: files of a stem; None for one every 32 tracks.
      fingerprint: names what is written (None: the tracks' ids); a directory begun with another one is refused.
      worker: (which, of how many) processes that share the shards; the one that ends last writes info.json.
    Returns:
      The summary, or None while shards of other workers are missing.
    Raises:
      UserError: no track can be read, of which nothing stays, or the directory was begun with other settings.
    """
    out, tracks = Path(out), list(tracks)
    ids = json.dumps([[track.id, track.split] for track in tracks])
    plan = {
        "kind": "audio",
        "sample_rate": sample_rate,
        "channels": channels,
        "segment_seconds": segment_seconds,
        "valid_fraction": valid_fraction,
        "shards": shards or begun_shards(out) or default_shards(len(tracks)),
        "inputs": len(tracks),
        "fingerprint": fingerprint or hashlib.sha256(ids.encode()).hexdigest(),
    }
    if tuple(stems) != ALONE:
        plan["stems"] = list(stems)
    if sounding:
        plan["sounding"] = list(sounding)
    segment = round(segment_seconds * sample_rate)

    def load(index: int) -> tuple[dict, list[np.ndarray]]:
        track = tracks[index]
        try:
            wavs, meta = _prepared(track, sample_rate, channels, stems)
            _check_sounding(dict(zip(stems, wavs, strict=True)), sounding)
        except UserError as problem:
            return {"id": track.id, "skipped": str(problem)}, []
        parts = [to_pcm(wav_LC) for wav_LC in wavs]
        samples = len(parts[0])
        entry = {"id": track.id, "split": track.split, "samples": samples, "sha256": _digest(parts, stems)}
        return {**entry, "seconds": round(samples / sample_rate, 6), "meta": meta}, parts

    def write(loaded: tuple[dict, list[np.ndarray]], writers: "Sequence[ArrayRecordWriter]") -> dict:
        entry, parts = loaded
        for writer, pcm_LC in zip(writers, parts, strict=False):
            for start in range(0, len(pcm_LC), segment):
                writer.write(pcm_LC[start : start + segment].tobytes())
        return entry

    label = progress and "reading audio"
    prefixes = tuple(map(_prefix, stems))
    entries = write_shards(out, plan, prefixes, OPTIONS, partial(ahead, load), write, worker, label)
    if entries is not None:
        skipped = [(entry["id"], entry["skipped"]) for entry in entries if "skipped" in entry]
        kept = [entry for entry in entries if "skipped" not in entry]
        if not all(_AUDIO_ENTRY.keys() <= entry.keys() for entry in kept):
            raise UserError(f"{out} was begun by an older version of hiermusic: remove it and start again")
        if not kept:
            discard(out, prefixes, plan["shards"])  # so that the next run looks at the repaired files again
            reason = f"; the first: {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
            raise UserError(f"no readable audio among {len(tracks)} inputs{reason}")
        division = splits.divide(kept, valid_fraction)
        finish(out, {**plan, "division": division}, kept, skipped)
    return read_summary(out)


def _prefix(stem: str) -> str:
    """What the names of a stem's shards begin with."""
    return "audio" if stem == MIX else f"audio.{stem}"


def _digest(parts: Sequence[np.ndarray], wanted: Sequence[str]) -> str:
    """What two copies of a recording share: the samples of the mix, or of all stems where it is not kept."""
    digest = hashlib.sha256()
    for pcm_LC in parts[:1] if wanted[0] == MIX else parts:
        digest.update(pcm_LC)
    return digest.hexdigest()


def _prepared(track: Track, sample_rate: int, channels: int, wanted: Sequence[str]) -> tuple[list[np.ndarray], dict]:
    """The wanted stems of a track as checked waveforms at the records' rate and channels, and its metadata."""
    sound, rate, meta = track.load()
    given = sound if isinstance(sound, Mapping) else {MIX: sound}
    ready = {}
    for name, wav_LC in given.items():
        its = "" if given is not sound else f"its {name} "
        if len(wav_LC) == 0:
            raise UserError(f"{its}holds no samples")
        if wrong := files.fault(wav_LC):
            raise UserError(f"{its}{wrong}")
        ready[name] = files.resample(files.to_channels(wav_LC, channels), rate, sample_rate)
    wavs = combine(track.id, ready, wanted, sample_rate)
    if len(wavs[0]) == 0:
        raise UserError(f"is too short to hold a sample at {sample_rate} Hz")
    return wavs, meta


def rms_db(wav_LC: np.ndarray) -> float:
    """The RMS of a sound in dB of full scale, -inf of nothing; below `QUIET_DB` nothing is heard in a stem."""
    power = float(np.mean(np.square(wav_LC, dtype=np.float64)))
    return 10 * math.log10(power) if power else -math.inf


def _check_sounding(sounds: Mapping[str, np.ndarray], sounding: Sequence[str]) -> None:
    """UserError where one of the sounds that must be heard is silent."""
    for name in sounding:
        if (level := rms_db(sounds[name])) < QUIET_DB:
            told = f"at {level:.0f} dB" if math.isfinite(level) else "without a sound"
            raise UserError(f"its {name}: {told}, where {QUIET_DB:g} dB is silence")


def differences(path: str | os.PathLike, other: str | os.PathLike) -> tuple[int, int]:
    """How many tracks of `path` another audio record directory does not have with the same sound, and the reverse."""
    one, two = (
        {(entry["id"], entry["sha256"]) for entry in read_entries(Path(p) / "tracks.jsonl", {}, _AUDIO_ENTRY)}
        for p in (path, other)
    )
    return len(one - two), len(two - one)


def check_stems(path: str | os.PathLike, info: Mapping, wanted: Sequence[str]) -> tuple[str, ...]:
    """The stems that finished audio records keep; UserError where one of the wanted ones is not among them."""
    with reading(Path(path) / "info.json", do=REMEDY):
        kept = tuple(map(str, info.get("stems", ALONE)))
    if missing := [name for name in wanted if name not in kept]:
        every = ",".join(name for name in NAMES if name in (*kept, *missing))
        raise UserError(
            f"{path} keeps of its tracks the {' and '.join(kept)}, not the {' and '.join(missing)}: write the records "
            f"again with --stems={every}"
        )
    return kept


class AudioSource:
    """Random access to one stem in the audio records of a directory; picklable.

    Only the shards of that stem are opened. Sources of other stems of the same directory have the same tracks, splits
    and segments, sample for sample.

    Attributes: `info`, `stem`, `stems` (those that are kept), `sample_rate`, `channels`, `segment_samples`, `tracks`
    (one dict a track: id, split, samples, sha256, seconds, meta; not those that were left out), `train` and `valid`
    (indices into `tracks`).
    """

    def __init__(self, path: str | os.PathLike, stem: str = MIX):
        """Opens the shards of a stem; UserError where there are none."""
        self.path = Path(path)
        self.info, self.stem = read_info(path, "audio"), stem
        self.stems = check_stems(path, self.info, (stem,))
        self.sample_rate: int = self.info["sample_rate"]
        self.channels: int = self.info["channels"]
        with reading(self.path / "info.json", do=REMEDY):
            self.segment_samples = round(self.info["segment_seconds"] * self.sample_rate)
            if self.segment_samples < 1:
                raise ValueError("a segment holds no sample")
        written = read_entries(self.path / "tracks.jsonl", self.info, _AUDIO_ENTRY)
        counts = [-(-track["samples"] // self.segment_samples) for track in written]
        self._records = open_shards(self.path, _prefix(stem), self.info["shards"], sum(counts))
        ends = np.cumsum(counts).tolist()
        kept = [index for index, track in enumerate(written) if track["split"]]
        self.tracks = [written[index] for index in kept]
        self._places = [range(ends[index] - counts[index], ends[index]) for index in kept]

    def __len__(self) -> int:
        return len(self.tracks)

    @property
    def train(self) -> list[int]:
        return self.indices("train")

    @property
    def valid(self) -> list[int]:
        return self.indices("valid")

    def indices(self, split: str) -> list[int]:
        """The tracks of a split."""
        return [index for index, track in enumerate(self.tracks) if track["split"] == split]

    def segments(self, split: str) -> np.ndarray:
        """The segments of a split as pairs (record, first record of its track)."""
        pairs = [(record, self._places[i].start) for i in self.indices(split) for record in self._places[i]]
        return np.asarray(pairs, np.int64).reshape(-1, 2)

    def segment(self, index: int) -> Int16[np.ndarray, "L C"]:
        """One record, as the samples it stores."""
        with reading(self.path, do=REMEDY):
            return np.frombuffer(self._records[int(index)], "<i2").reshape(-1, self.channels)

    def track(self, index: int) -> Float32[np.ndarray, "L C"]:
        """A whole track as a waveform."""
        return from_pcm(np.concatenate([self.segment(record) for record in self._places[index]]))
