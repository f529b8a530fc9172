"""Record directories as TFDS data sets (array_record), written and read without TensorFlow."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from hiermusic.data.audio_records import AudioSource, to_pcm
from hiermusic.data.codes import as_groups, rate_groups
from hiermusic.data.records import read_json
from hiermusic.data.shards import REMEDY
from hiermusic.data.sidecars import TEXT_FIELDS
from hiermusic.data.stems import MIX
from hiermusic.data.tfds_source import stem_feature
from hiermusic.data.token_records import TokenSource
from hiermusic.errors import UserError, reading

# `features.Audio` cannot be constructed without TensorFlow; a tensor of raw bytes holds the same, and faster.
_TEXTS = {name: tfds.features.Text() for name in ("id", *TEXT_FIELDS)}
_COMMON = {**_TEXTS, "instrumental": tfds.features.Scalar(np.bool_)}


def export_tfds(records: str | os.PathLike, data_dir: str | os.PathLike) -> Path:
    """Writes a finished record directory, audio or tokens, as a TFDS data set with its splits.

    Args:
      records: audio or token record directory.
      data_dir: TFDS's data directory; the data set is made below it.
    Returns:
      The folder of the data set: what `tfds.builder_from_directory` and "tfds:FOLDER" take.
    Raises:
      UserError: no finished records there.
    """
    info = Path(records) / "info.json"
    if not info.is_file():
        raise UserError(f"{records} holds no finished records (no info.json): write them first")
    kinds = {"audio": HiermusicAudio, "tokens": HiermusicTokens}
    with reading(info, do=REMEDY):
        kind = kinds[read_json(info)["kind"]]
    builder = kind(records, data_dir=os.fspath(data_dir))
    builder.download_and_prepare()
    return Path(builder.data_dir)


class HiermusicAudio(tfds.core.GeneratorBasedBuilder):
    """Whole tracks as 16-bit samples `audio` [L, C] and, of further stems, `audio_STEM`; metadata["sample_rate"] in Hz.

    UserError where the records do not keep the mix.
    """

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # nothing is downloaded; looking for checksums takes importlib_resources, which TFDS leaves out

    def __init__(self, records: str | os.PathLike, **kwargs):
        self._source = AudioSource(records)
        others = (stem for stem in self._source.stems if stem != MIX)
        self._stems = {"audio": self._source} | {stem_feature("audio", s): AudioSource(records, s) for s in others}
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        audio = tfds.features.Tensor(shape=(None, self._source.channels), dtype=np.int16, encoding="bytes")
        return tfds.core.DatasetInfo(
            builder=self,
            description="Music as 16-bit samples, with its words.",
            features=tfds.features.FeaturesDict({**_COMMON, **dict.fromkeys(self._stems, audio)}),
            metadata=tfds.core.MetadataDict(sample_rate=self._source.sample_rate),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
        return {split: self._generate_examples(self._source.indices(split)) for split in self._source.info["splits"]}

    def _generate_examples(self, indices: Sequence[int]) -> Iterator[tuple[int, dict]]:
        for index in indices:
            track = self._source.tracks[index]
            sounds = {name: to_pcm(source.track(index)) for name, source in self._stems.items()}
            yield index, {**_common(track["id"], track["meta"]), **sounds}


class HiermusicTokens(tfds.core.GeneratorBasedBuilder):
    """Whole tracks as uint16 codes `codes` [T, K] (`codes_0`, `codes_1`, ... where levels differ in rate).

    metadata["hierarchy"] is what `Hierarchy.from_json` takes; metadata["codec"] names the codec.
    """

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # nothing is downloaded; looking for checksums takes importlib_resources, which TFDS leaves out

    def __init__(self, records: str | os.PathLike, **kwargs):
        self._source = TokenSource(records)
        super().__init__(file_format="array_record", **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        widths = rate_groups(self._source.hierarchy)
        codes = {
            name: tfds.features.Tensor(shape=(None, width), dtype=np.uint16, encoding="bytes")
            for name, width in zip(_names(len(widths)), widths, strict=True)
        }
        info = self._source.info
        return tfds.core.DatasetInfo(
            builder=self,
            description="Music as the tokens of a codec, with its words.",
            features=tfds.features.FeaturesDict({**_COMMON, "seconds": tfds.features.Scalar(np.float32), **codes}),
            metadata=tfds.core.MetadataDict(hierarchy=info["hierarchy"], codec=info["codec"]),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator]:
        return {split: self._generate_examples(split) for split in self._source.info["splits"]}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict]]:
        for index, track in enumerate(self._source.tracks):
            if track["split"] == split:
                groups = as_groups(self._source[index]["codes"], self._source.hierarchy)
                codes = dict(zip(_names(len(groups)), groups, strict=True))
                yield index, {**_common(track["id"], track["meta"]), "seconds": track["seconds"], **codes}


def _names(groups: int) -> list[str]:
    return ["codes"] if groups == 1 else [f"codes_{group}" for group in range(groups)]


def _common(track_id: str, meta: dict) -> dict:
    texts = {name: meta.get(name, "") for name in TEXT_FIELDS}
    return {"id": track_id, **texts, "instrumental": meta.get("instrumental", False)}
