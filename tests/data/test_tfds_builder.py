"""Records -> TFDS -> TFDS and our own source, exactly and without TensorFlow."""

import json
import shutil
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
import tensorflow_datasets as tfds

from hiermusic.data.audio_records import AudioSource, write_audio
from hiermusic.data.pipeline import resolve
from hiermusic.data.sources import open_source
from hiermusic.data.tfds_builder import export_tfds
from hiermusic.data.token_records import TokenSource
from hiermusic.data.tokenise import tokenise
from hiermusic.data.tracks import Track
from hiermusic.errors import UserError
from hiermusic.tokens.hierarchy import Hierarchy, Level

RATE = 8000


def sound(index: int) -> np.ndarray:
    return (np.random.default_rng(index).integers(-32768, 32768, (900 + index, 2)) / 32768).astype(np.float32)


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    out = tmp_path_factory.mktemp("audio")
    given = [
        Track(f"t{i}", lambda i=i: (sound(i), RATE, {"lyrics": f"Zeile {i} ü\n歌", "instrumental": i == 3}))
        for i in range(5)
    ]
    write_audio(given, out, RATE, 2, segment_seconds=0.05, progress=False)
    return out


@pytest.fixture(scope="module")
def exported(audio, tmp_path_factory):
    return export_tfds(audio, tmp_path_factory.mktemp("tfds"))


def test_audio_round_trip_through_tfds(audio, exported):
    source = AudioSource(audio)
    parts = tfds.builder_from_directory(exported).as_data_source()
    for split in ("train", "valid"):
        assert len(parts[split]) == len(source.indices(split))
        for row, index in zip(parts[split], source.indices(split), strict=True):
            assert row["id"].decode() == source.tracks[index]["id"] and row["audio"].dtype == np.int16
            np.testing.assert_array_equal(row["audio"] / 32768, source.track(index))


def test_audio_round_trip_through_our_own_source(audio, exported, tmp_path):
    out = AudioSource(resolve(f"tfds:{exported}", tmp_path, RATE, 2, progress=False))
    source = AudioSource(audio)
    assert (len(out.train), len(out.valid)) == (len(source.train), len(source.valid)) == (4, 1)
    pairs = zip([*out.train, *out.valid], [*source.train, *source.valid], strict=True)
    for ours, before in pairs:
        np.testing.assert_array_equal(out.track(ours), source.track(before))
        assert out.tracks[ours]["meta"] == source.tracks[before]["meta"]
        assert out.tracks[ours]["split"] == source.tracks[before]["split"]


def test_a_split_of_ones_own(exported):
    tracks = open_source(f"tfds:{exported}?split=train[:50%]&audio=audio&sample_rate=4000").tracks
    assert len(tracks) == 2 and tracks[0].split is None and tracks[0].load()[1] == 4000
    above = open_source(f"tfds:{exported.parent}")
    assert len(above.tracks) == 5 and above.fingerprint == open_source(str(exported), kind="tfds").fingerprint


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?split=holiday", "cannot be read"),
        ("?audio=sound", "no feature 'sound'"),
        ("?rate=3", "unknown option 'rate'"),
    ],
)
def test_wrong_questions_are_told(exported, query, words):
    with pytest.raises(UserError, match=words) as told:
        open_source(f"tfds:{exported}{query}")
    assert "\n" not in str(told.value)


def test_no_records_no_export(tmp_path):
    with pytest.raises(UserError, match="no finished records"):
        export_tfds(tmp_path, tmp_path / "tfds")
    (tmp_path / "info.json").write_text('{"kind": "songs"}')
    with pytest.raises(UserError, match=r"info\.json cannot be read \(KeyError: 'songs'\): remove the folder"):
        export_tfds(tmp_path, tmp_path / "tfds")


class Spoken(tfds.core.GeneratorBasedBuilder):
    """What TFDS itself stores for an Audio feature: a tensor of int64 without encoding."""

    VERSION = tfds.core.Version("2.10.0")
    url_infos = None

    def _info(self):
        features = tfds.features.FeaturesDict(
            {"speech": tfds.features.Tensor(shape=(None,), dtype=np.int64), "clip": tfds.features.Text()}
        )
        return tfds.core.DatasetInfo(builder=self, description="", features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(4), "test": self._generate_examples(2)}

    def _generate_examples(self, count):
        for index in range(count):
            yield index, {"speech": (sound(index)[:, 0] * 32768).astype(np.int64), "clip": b"RIFF"}


def test_audio_features_are_read_without_tensorflow(tmp_path):
    builder = Spoken(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    place = tmp_path / "spoken/2.10.0/features.json"
    written = json.loads(place.read_text())
    written["featuresDict"]["features"]["speech"] = {
        "pythonClassName": "tensorflow_datasets.core.features.audio_feature.Audio",
        "audio": {"shape": {"dimensions": ["-1"]}, "dtype": "int64", "sampleRate": "16000", "encoding": "NONE"},
    }
    place.write_text(json.dumps(written))
    source = open_source(f"tfds:{tmp_path / 'spoken'}")
    assert [track.split for track in source.tracks] == ["train"] * 4 + ["test"] * 2
    wavs = {track.load()[0].tobytes() for track in source.tracks[:4]}
    assert wavs == {sound(index)[:, :1].tobytes() for index in range(4)}
    assert source.tracks[0].load()[1] == 16000


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_data_set_names_no_code(exported, tmp_path, monkeypatch, depth):
    place = shutil.copytree(exported, tmp_path / "set")
    (tmp_path / "strange.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    written = json.loads((place / "features.json").read_text())
    feature = {"pythonClassName": "strange.Audio", "tensor": {"shape": {}, "dtype": "int16", "encoding": "none"}}
    for _ in range(depth):
        feature = {
            "pythonClassName": "tensorflow_datasets.core.features.sequence_feature.Sequence",
            "sequence": {"feature": feature, "length": "-1"},
        }
    written["featuresDict"]["features"]["other"] = feature
    (place / "features.json").write_text(json.dumps(written))
    info = json.loads((place / "dataset_info.json").read_text())
    (place / "dataset_info.json").write_text(json.dumps(info | {"moduleName": "strange"}))
    with pytest.raises(UserError, match=r"strange.Audio.*data may name no code"):
        open_source(f"tfds:{place}")
    del written["featuresDict"]["features"]["other"]
    (place / "features.json").write_text(json.dumps(written))
    assert open_source(f"tfds:{place}").tracks
    assert "strange" not in sys.modules


@pytest.mark.parametrize("rates", [(80, 80, 80), (20, 40, 40)])
def test_tokens_round_trip(audio, tmp_path, rates):
    hierarchy = Hierarchy(tuple(Level(f"l{k}", Fraction(rate), 1024) for k, rate in enumerate(rates)))

    def encode(wav_LC):
        def codes(hop, width):
            return (np.abs(wav_LC[: len(wav_LC) // hop * hop, 0].reshape(-1, hop)[:, :width]) * 1023).astype(int)

        return codes(100, 3) if len(set(rates)) == 1 else (codes(400, 1), codes(200, 2))

    tokenise(encode, audio, tmp_path / "tokens", hierarchy, 1, "fake", progress=False)
    builder = tfds.builder_from_directory(export_tfds(tmp_path / "tokens", tmp_path / "tfds"))
    assert Hierarchy.from_json(builder.info.metadata["hierarchy"]) == hierarchy
    names = ["codes"] if len(set(rates)) == 1 else ["codes_0", "codes_1"]
    for split, rows in builder.as_data_source().items():
        source = TokenSource(tmp_path / "tokens", split=split)
        assert len(rows) == len(source) > 0
        for row, index in zip(rows, range(len(source)), strict=True):
            want = source[index]["codes"]
            for name, part in zip(names, want if isinstance(want, tuple) else (want,), strict=True):
                np.testing.assert_array_equal(row[name], part)
                assert row[name].dtype == np.uint16


def test_tensorflow_stays_away(exported):
    code = (
        "import sys; from hiermusic.data import tfds_builder, tokenise, pipeline; "
        f"[t.load() for t in pipeline.open_source('tfds:{exported}').tracks]; "
        "sys.exit(any(m.split('.')[0] in ('tensorflow', 'torch') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
