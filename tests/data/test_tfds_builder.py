"""Records -> TFDS -> TFDS and our own source, exactly and without TensorFlow."""

import errno
import io
import json
import shutil
import subprocess
import sys
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import soundfile
import tensorflow_datasets as tfds

from hiermusic.audio import files
from hiermusic.data import tfds_source
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
    for rate in files.RATES:  # the lowest and the highest that recordings have
        assert len(open_source(f"tfds:{exported}?sample_rate={rate}").tracks) == 5
    above = open_source(f"tfds:{exported.parent}")
    assert len(above.tracks) == 5 and above.fingerprint == open_source(str(exported), kind="tfds").fingerprint


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?split=holiday", "cannot be read"),
        ("?audio=sound", "no feature 'sound'"),
        ("?rate=3", "unknown option 'rate'"),
        ("?sample_rate=999", "says no sample rate that recordings have"),
        ("?sample_rate=1000001", "says no sample rate that recordings have"),
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


def wav(sound_LC: np.ndarray, kind: str = "WAV") -> bytes:
    held = io.BytesIO()
    soundfile.write(held, sound_LC, RATE, format=kind, subtype="FLOAT" if kind == "WAV" else "VORBIS")
    return held.getvalue()


class Files(tfds.core.GeneratorBasedBuilder):
    """Whole audio files, as TFDS stores them for an Audio feature with `lazy_decode`: good ones, then bad ones."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"audio": tfds.features.Text()}))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        ogg = wav(np.tile(sound(0), (40, 1)), "OGG")
        for index, file in enumerate((wav(sound(0)), b"la la", ogg[: len(ogg) // 2], wav(sound(0) * 30_000))):
            yield index, {"audio": file}


def test_audio_files_in_tfds_are_looked_at_as_those_of_folders(tmp_path):
    Files(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    place = tmp_path / "files/1.0.0/features.json"
    written = json.loads(place.read_text())
    written["featuresDict"]["features"]["audio"] = {
        "pythonClassName": "tensorflow_datasets.core.features.audio_feature.Audio",
        "audio": {"shape": {"dimensions": ["-1"]}, "dtype": "int64", "sampleRate": "9000", "lazyDecode": True},
    }
    place.write_text(json.dumps(written))
    said = []
    for track in open_source(f"tfds:{tmp_path / 'files'}").tracks:
        try:
            wav_LC, rate = track.load()[:2]
            np.testing.assert_array_equal(wav_LC, sound(0))
            said.append(str(rate))
        except UserError as problem:
            said.append(str(problem))
    assert [words[:40] for words in sorted(said)] == [
        "8000",
        "its audio: has float samples that reach ",
        "its audio: not readable as audio (Format",
        "its audio: truncated, its last page is c",
    ]


def test_what_is_wrong_with_an_example_skips_it_alone(exported, tmp_path):
    place = shutil.copytree(exported, tmp_path / "set")
    shard = max(place.glob("*train*array_record*"), key=lambda path: path.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[200] ^= 1
    shard.write_bytes(data)
    skipped = []
    for track in open_source(f"tfds:{place}?split=train").tracks:
        try:
            track.load()
        except UserError as problem:
            skipped.append(str(problem))
    assert skipped and all(words.startswith("cannot be read (") for words in skipped)


def test_a_fault_of_the_machine_skips_nothing(exported, monkeypatch):
    class Away:
        def __getitem__(self, index):
            monkeypatch.setattr("builtins.open", full)
            raise RuntimeError("Failed to open file")

    def full(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("hiermusic.errors._PAUSES", ())
    with pytest.raises(OSError, match="Too many open files"):
        tfds_source._TfdsLoader(exported, Away(), {"mix": "audio"}, RATE)(0)


def test_channels_that_cancel_are_told(exported, capsys):
    rows = [{"audio": np.array([[1000, -1000]] * 50, np.int16)}]
    tfds_source._TfdsLoader(exported, rows, {"mix": "audio"}, RATE)(0)
    assert f"{exported}, example 0: its channels cancel each other" in capsys.readouterr().err


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

    tokenise(partial(map, encode), audio, tmp_path / "tokens", hierarchy, 1, "fake", progress=False)
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
