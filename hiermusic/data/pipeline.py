"""Grain pipelines: element i of each is a pure function of (seed, i), so that resuming takes one integer."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, Int, Int16

from hiermusic.console import say
from hiermusic.data.audio_records import AudioSource, check_stems, from_pcm, write_audio
from hiermusic.data.records import read_info, read_summary
from hiermusic.data.sources import open_source
from hiermusic.data.stems import ALONE
from hiermusic.data.streams import TokenStreams
from hiermusic.data.token_records import TokenSource
from hiermusic.errors import UserError
from hiermusic.parallel.hosts import wait_for_all, workers

if TYPE_CHECKING:
    import grain


class NoTracks(UserError):
    """A split in which there is no track."""


def resolve(
    path: str | os.PathLike,
    cache_dir: str | os.PathLike,
    sample_rate: int,
    channels: int,
    *,
    kind: str = "auto",
    segment_seconds: float = 10.0,
    valid_fraction: float = 0.1,
    stems: Sequence[str] = ALONE,
    progress: bool = True,
) -> Path:
    """The audio record directory of whatever `path` names, written under `cache_dir` the first time.

    The processes of a run share the writing; `cache_dir` must then lie where all of them see it.

    Args:
      path: audio records, or what `sources.open_source` takes (folder, manifest, "tfds:NAME", "midi:FOLDER",
        "builtin:N").
      cache_dir: where records are kept; the same music with the same settings is found there again.
      sample_rate: Hz; channels: 1 or 2, of the records.
      kind: "records" or a kind of source; "auto" tells by the path.
      segment_seconds, valid_fraction, stems: as in `audio_records.write_audio`.
    Raises:
      UserError: the path does not exist, holds nothing readable, or holds records of another rate or channel count.
    """
    path = os.fspath(path)
    if kind == "records" or (kind == "auto" and is_records(path)):
        info = read_info(path, "audio")
        check_stems(path, info, stems)
        if (info["sample_rate"], info["channels"]) != (sample_rate, channels):
            raise UserError(
                f"{path} holds {info['channels']} channels at {info['sample_rate']} Hz where {channels} at "
                f"{sample_rate} Hz are needed: give the audio itself, or records written with these settings"
            )
        return Path(path)
    memory = Path(cache_dir) / "files.json"
    first = open_source(path, kind, stems, memory) if workers()[0] == 0 else None
    wait_for_all(f"files of {path}")  # so that one process reads them all, and the others what it remembers
    source = first or open_source(path, kind, stems, memory)
    settings = [source.fingerprint, sample_rate, channels, segment_seconds, valid_fraction]
    settings += [] if tuple(stems) == ALONE else [list(stems)]
    fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    out = Path(cache_dir) / f"{source.name}-{fingerprint[:12]}"
    known = (out / "info.json").is_file()
    write_audio(
        source.tracks,
        out,
        sample_rate,
        channels,
        segment_seconds=segment_seconds,
        valid_fraction=valid_fraction,
        stems=stems,
        fingerprint=fingerprint,
        worker=workers(),
        progress=progress,
    )
    wait_for_all(f"records {out.name}")
    if workers()[0] == 0:
        if not known:
            say(str(read_summary(out)))
        with suppress(OSError):  # a folder of somebody else's
            os.utime(out)  # for `in_use`
    return out


def is_records(path: str | os.PathLike) -> bool:
    """Whether a folder holds records rather than music."""
    return (Path(path) / "tracks.jsonl").is_file()


def in_use(path: str | os.PathLike, cache_dir: str | os.PathLike) -> Path | None:
    """The records at `path`, or those that `resolve` last gave of music; None where there are neither."""
    if is_records(path):
        return Path(path)
    made = [place.parent for place in Path(cache_dir).glob("*-" + "[0-9a-f]" * 12 + "/info.json")]
    return max(made, key=lambda folder: folder.stat().st_mtime_ns) if made else None


def waveform_batches(
    path: str | os.PathLike,
    split: str,
    crop_samples: int,
    batch_size: int,
    seed: int = 0,
    rows: Sequence[int] | None = None,
    stems: Sequence[str] = ALONE,
) -> "grain.MapDataset":
    """Batches of crops from audio records, float32 [B, crop_samples, C].

    "train" is endless: segments shuffled anew each epoch, a random crop of each. Other splits are finite: a fixed
    order and centre crops, the last incomplete batch left out unless it is the only one, which is filled up by
    repeating.

    Args:
      path: audio record directory.
      split: "train", "valid" or "test".
      crop_samples: samples of a crop, at most a segment; a shorter track is padded with zeros at its end.
      batch_size: crops in a batch, over all processes.
      seed: of the order and of the crops in training.
      rows: which of every batch's crops to read, all when left out.
      stems: what is heard of the tracks; a crop is of one of these, each as often as the others.
    Raises:
      UserError: crop longer than a segment, or a stem that the records do not hold.
      NoTracks: no track in the split.
    """
    import grain

    sources = [AudioSource(path, stem) for stem in stems]
    source = sources[0]
    if not 0 < crop_samples <= source.segment_samples:
        raise UserError(
            f"a crop of {crop_samples} samples does not fit the segments of {path} ({source.segment_samples} samples)"
        )
    segments = _Segments(sources, split, crop_samples)
    _check_size(source, split, len(segments), batch_size, "segments")
    dataset = grain.MapDataset.source(segments)
    if split == "train":
        dataset = dataset.seed(seed).shuffle().repeat().random_map(partial(_random_crop, samples=crop_samples))
    else:
        count = max(1, len(segments) // batch_size)
        dataset = dataset.map(partial(_centre_crop, samples=crop_samples)).repeat()[: count * batch_size]
    return batches(dataset, batch_size, rows)


_ENDLESS = 1 << 53  # examples


def batches(
    dataset: "grain.MapDataset",
    batch_size: int,
    rows: Sequence[int] | None = None,
    batch_fn: Callable[[list], object] | None = None,
) -> "grain.MapDataset":
    """Element i holds examples i * batch_size + row for each of `rows`: the same, whoever reads the other rows.

    Args:
      dataset: examples; the last ones are left out when they do not fill a batch.
      batch_size: of the whole batch.
      rows: which of its examples to read, all when left out.
      batch_fn: list of examples -> batch; stacks arrays when left out.
    """
    import grain

    picked = _Rows(dataset, batch_size, tuple(range(batch_size) if rows is None else rows))
    return grain.MapDataset.source(picked).batch(len(picked.rows), batch_fn=batch_fn)


class _Rows:
    """Of every `batch_size` examples, those that stand at `rows`."""

    def __init__(self, dataset: "grain.MapDataset", batch_size: int, rows: tuple[int, ...]):
        self.dataset, self.batch_size, self.rows = dataset, batch_size, rows

    def __len__(self) -> int:
        # Grain divides lengths as floats, by which batches of one of an endless data set would be more than an index
        return min(len(self.dataset), _ENDLESS) // self.batch_size * len(self.rows)

    def __getitem__(self, index: int):
        batch, row = divmod(index, len(self.rows))
        return self.dataset[batch * self.batch_size + self.rows[row]]


def token_examples(
    path: str | os.PathLike, split: str, seed: int = 0, levels: str | slice | Mapping[str, str | slice] = "all"
) -> "grain.MapDataset":
    """Whole tracks as `{"codes": uint16 [T, K], "meta": {...}}` (see `token_records.TokenSource`), shuffled.

    Several streams of each track are read together: codes are then a dict (see `streams.TokenStreams`).

    "train" is endless and shuffled anew each epoch; other splits are finite, in one order that `seed` decides.

    Args:
      path: token record directory, or a folder of streams.
      split: "train", "valid" or "test".
      seed: of the order, and of any `random_map` that follows.
      levels: "coarse", "all" or a slice of levels, or a dict of these by stream; files that hold none of them are not
        opened.
    Raises:
      NoTracks: no track in the split.
    """
    import grain

    kind = TokenStreams if isinstance(levels, Mapping) else TokenSource
    source = kind(path, levels, split)
    _check_size(source, split, len(source), 1, "tracks")
    dataset = grain.MapDataset.source(source).seed(seed).shuffle()
    return dataset.repeat() if split == "train" else dataset


def example_batches(
    path: str | os.PathLike, split: str, seed: int, levels: str | slice, batch_size: int, rows: Sequence[int]
) -> "grain.MapDataset":
    """These rows of batches of tracks, as lists of what `token_examples` gives; element i is that of step i.

    Held-out batches are filled up by repeating, so that they divide over the mesh as training's do.

    Args:
      path, split, seed, levels: as for `token_examples`.
      batch_size: of the whole batch.
      rows: which of its tracks to read.
    Raises:
      NoTracks: no track in the split.
    """
    examples = token_examples(path, split, seed, levels)
    if split != "train":
        examples = examples.repeat()[: max(1, len(examples) // batch_size) * batch_size]
    return batches(examples, batch_size, rows, batch_fn=list)


def row_generators(seed: int, index: int, rows: Sequence[int]) -> list[np.random.Generator]:
    """One for each of these rows of batch `index`."""
    # from 1: numpy takes (a, b, 0) for (a, b), which is left for what a whole batch draws
    return [np.random.default_rng((seed, index, 1 + row)) for row in rows]


def _check_size(
    source: AudioSource | TokenSource | TokenStreams, split: str, count: int, batch_size: int, unit: str
) -> None:
    if count == 0:
        counts = ", ".join(f"{n} {name}" for name, n in source.info["splits"].items())
        raise NoTracks(f"{source.path} has no {split} tracks ({counts}): add music, or give the split in a manifest")
    if count < batch_size:
        say(f"hint: {source.path} has {count} {split} {unit}, fewer than the batch of {batch_size}")


class _Segments:
    """The segments of a split in all sources; one too short for a crop is lengthened by the end of the one before."""

    def __init__(self, sources: Sequence[AudioSource], split: str, crop_samples: int):
        self._sources, self._crop = sources, crop_samples
        segments = np.concatenate([_numbered(source.segments(split), n) for n, source in enumerate(sources)])
        # A fixed order that mixes the tracks, so that the first few batches of a split speak for all of it.
        self._segments = segments[np.random.default_rng(0).permutation(len(segments))]

    def __len__(self) -> int:
        return len(self._segments)

    def __getitem__(self, index: int) -> Int16[np.ndarray, "L C"]:
        number, record, first = self._segments[index]
        source = self._sources[number]
        pcm_LC = source.segment(record)
        if len(pcm_LC) < self._crop and record > first:
            return np.concatenate([source.segment(record - 1), pcm_LC])[-self._crop :]
        return pcm_LC


def _numbered(segments_N2: Int[np.ndarray, "N 2"], number: int) -> Int[np.ndarray, "N 3"]:
    return np.concatenate([np.full((len(segments_N2), 1), number), segments_N2], axis=1)


def _random_crop(
    pcm_LC: Int16[np.ndarray, "L C"], rng: np.random.Generator, samples: int
) -> Float32[np.ndarray, "n C"]:
    return _crop(pcm_LC, samples, int(rng.integers(max(len(pcm_LC) - samples, 0) + 1)))


def _centre_crop(pcm_LC: Int16[np.ndarray, "L C"], samples: int) -> Float32[np.ndarray, "n C"]:
    return _crop(pcm_LC, samples, max(len(pcm_LC) - samples, 0) // 2)


def _crop(pcm_LC: Int16[np.ndarray, "L C"], samples: int, start: int) -> Float32[np.ndarray, "n C"]:
    crop_LC = from_pcm(pcm_LC[start : start + samples])
    return np.pad(crop_LC, ((0, samples - len(crop_LC)), (0, 0)))
