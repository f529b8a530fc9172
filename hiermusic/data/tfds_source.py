"""Music in TensorFlow Datasets that were prepared before, read without TensorFlow."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hiermusic.audio import files
from hiermusic.console import warn
from hiermusic.data import splits
from hiermusic.data.fingerprint import of_files
from hiermusic.data.sidecars import TEXT_FIELDS, Meta, fields
from hiermusic.data.stems import ALONE, MIX, Sound, one_rate
from hiermusic.data.tfds_features import refuse_code
from hiermusic.data.tracks import Source, Track, no_more, option
from hiermusic.errors import UserError, brief, patiently, reason


def tfds(
    name: str, options: dict[str, str], path: str, stems: Sequence[str] = ALONE, memory: Path | None = None
) -> Source:
    """A prepared TFDS data set of audio, read through `as_data_source`, which needs no TensorFlow."""
    split = option(options, "split", None, str, path)
    key = option(options, "audio", None, str, path)
    rate = option(options, "sample_rate", None, int, path)
    no_more(options, "split, audio and sample_rate", path)
    place = _tfds_directory(name, path)
    try:
        builder, rates = _tfds_open(place)
        kinds = {key: type(feature).__name__ for key, feature in builder.info.features.items()}
        parts = {split: builder.as_data_source(split=split)} if split else builder.as_data_source()
    except Exception as problem:  # TFDS raises what it likes for a split that is not there or files that are not whole
        raise UserError(f"{path} cannot be read: {' '.join(str(problem).split())[:200]}") from None
    key = key or _audio_key(kinds, rates, path)
    keys = {stem: stem_feature(key, stem) for stem in stems}
    if missing := [feature for feature in keys.values() if feature not in kinds]:
        raise UserError(f"{path} has no feature {missing[0]!r}, only {', '.join(kinds)}")
    rate = rate or rates.get(key) or (builder.info.metadata or {}).get("sample_rate")
    if not rate or not files.RATES[0] <= int(rate) <= files.RATES[1]:
        raise UserError(f"{path} says no sample rate that recordings have: add sample_rate=HZ after ?")
    tracks = [
        Track(
            f"{part}/{index:07d}",
            partial(_TfdsLoader(place, rows, keys, int(rate)), index),
            None if split else splits.named(part),  # a part that was asked for alone is the whole: it is divided
        )
        for part, rows in parts.items()
        for index in range(len(rows))
    ]
    sizes = {part: len(rows) for part, rows in parts.items()}
    told = [of_files(sorted(place.iterdir()), memory), sizes, key, rate]
    told += [] if tuple(stems) == ALONE else [list(stems)]
    return Source(builder.info.name, tracks, hashlib.sha256(json.dumps(told).encode()).hexdigest())


def stem_feature(key: str, stem: str) -> str:
    """The feature of a stem, in a data set whose mix is the feature `key`."""
    return key if stem == MIX else f"{key}_{stem}"


def _tfds_directory(name: str, path: str) -> Path:
    """The folder of a prepared data set's newest version; `name` is that folder, one above it, or a TFDS name."""
    from tensorflow_datasets.core import constants

    root = Path(name) if os.path.isdir(name) else Path(os.path.expanduser(constants.DATA_DIR)) / name
    if os.path.isfile(root / "dataset_info.json"):
        return root
    found = [info.parent for depth in ("*", "*/*") for info in root.glob(f"{depth}/dataset_info.json")]
    configs = {place.parent for place in found}
    if len(configs) != 1:
        what = (
            f"has the configs {', '.join(sorted(c.name for c in configs))}: name one" if configs else "is not prepared"
        )
        raise UserError(f"{path}: {root} {what} (make it with `tfds build --file_format=array_record`)")
    return max(found, key=lambda place: [int(number) for number in re.findall(r"\d+", place.name)])


def _tfds_open(place: Path) -> tuple[Any, dict[str, int]]:
    """A read-only builder, and the sample rates its Audio features state.

    TFDS cannot construct an Audio feature without TensorFlow, though what it stores is a plain tensor: it is opened
    as one.
    """
    from google.protobuf import json_format
    from tensorflow_datasets.core import dataset_info, read_only_builder
    from tensorflow_datasets.core.proto import feature_pb2

    info = dataset_info.read_proto_from_builder_dir(place)
    features = json_format.Parse((place / "features.json").read_text(), feature_pb2.Feature())
    refuse_code(features)
    info.ClearField("module_name")  # of the code that made it, which is not wanted
    rates = {}
    for key, feature in features.features_dict.features.items():
        if feature.HasField("audio"):
            audio = feature_pb2.AudioFeature()
            audio.CopyFrom(feature.audio)
            rates[key] = audio.sample_rate
            if audio.lazy_decode:  # the bytes of an audio file
                feature.python_class_name = "tensorflow_datasets.core.features.text_feature.Text"
                feature.text.SetInParent()
            else:
                feature.python_class_name = "tensorflow_datasets.core.features.tensor_feature.Tensor"
                feature.tensor.CopyFrom(
                    feature_pb2.TensorFeature(
                        shape=audio.shape, dtype=audio.dtype, encoding=audio.encoding.lower() or "none"
                    )
                )
    info.features.CopyFrom(features)
    return read_only_builder.ReadOnlyBuilder(place, info_proto=info), rates


def _audio_key(kinds: Mapping[str, str], rates: Mapping[str, int], path: str) -> str:
    tensors = list(rates) or [key for key, kind in kinds.items() if kind == "Tensor"]
    if "audio" in tensors:
        return "audio"
    if len(tensors) != 1:
        raise UserError(f"{path}: which of {', '.join(kinds)} is the audio? Add audio=KEY after ?")
    return tensors[0]


@dataclass(frozen=True)
class _TfdsLoader:
    place: Path
    rows: Any
    keys: Mapping[str, str]
    rate: int

    def __call__(self, index: int) -> tuple[Sound, int, Meta]:
        row = patiently(partial(self._row, index))
        found = {name: row[name] for name in (*TEXT_FIELDS, "instrumental") if name in row}
        meta = fields({k: v.decode(errors="replace") if isinstance(v, bytes) else v for k, v in found.items()})
        sounds = {stem: self._samples(row[key], key) for stem, key in self.keys.items()}
        for wav_LC, _ in sounds.values():
            if odd := files.oddity(wav_LC):
                warn(f"{self.place}, example {index}: {odd}")
        return *one_rate(sounds), meta

    def _row(self, index: int) -> Mapping[str, Any]:
        try:
            return self.rows[index]
        except Exception as error:  # its checksums differ, or its files can no longer be read
            with open(self.place / "features.json", "rb"):  # an OSError where the fault is the machine's
                raise UserError(f"cannot be read ({reason(error)})") from None

    def _samples(self, value: Any, key: str) -> tuple[np.ndarray, int]:
        if isinstance(value, bytes):
            return _decode(value)
        sound = np.asarray(value)
        if sound.ndim not in (1, 2) or sound.dtype.kind not in "iuf":
            raise UserError(f"its {key!r} is {sound.dtype} {sound.shape}, not samples")
        wav_LC = sound.astype(np.float32).reshape(len(sound), sound.shape[1] if sound.ndim == 2 else 1)
        if sound.dtype.kind != "f":  # TFDS keeps 16-bit samples in integers of any width
            wide = sound.size and max(-int(sound.min()), int(sound.max())) > 32768
            wav_LC /= 2.0**31 if wide else 2.0**15
        return wav_LC, self.rate


def _decode(file: bytes) -> tuple[np.ndarray, int]:
    """What an audio file holds, looked at as those of folders are."""
    with tempfile.NamedTemporaryFile() as held:
        held.write(file)
        held.flush()
        try:
            return files.read(held.name)
        except UserError as problem:
            raise UserError(f"its audio: {str(problem).removeprefix(brief(f'{held.name}: ') + ' ')}") from None
