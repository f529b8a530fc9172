"""What `hiermusic.load` gives: the same codes, sounds and songs as the verbs, and one line for what is wrong."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import hiermusic
from hiermusic import face
from hiermusic.errors import UserError

from .fakes import configuration


@pytest.fixture(scope="module")
def codec(khala):
    return hiermusic.load(khala.codec)


def sound(rate: int, seconds: float, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (0.3 * rng.standard_normal((round(rate * seconds), channels))).astype(np.float32)


def test_a_codec_makes_the_codes_and_the_sound_of_the_verbs(khala, codec, run, tmp_path):
    soundfile.write(tmp_path / "in.wav", sound(44_100, 0.7, 2), 44_100, subtype="FLOAT")
    run("encode", f"--codec={khala.codec}", tmp_path / "in.wav", tmp_path / "codes.npz")
    run("decode", f"--codec={khala.codec}", tmp_path / "codes.npz", tmp_path / "out.wav")
    codes_SP = codec.encode(sound(44_100, 0.7, 2), 44_100)
    with np.load(tmp_path / "codes.npz") as stored:
        np.testing.assert_array_equal(codes_SP, stored["codes"])
        length = int(stored["length"])
    assert codes_SP.shape[0] == len(codec.hierarchy) == 6 and codes_SP.dtype == np.uint16
    wav_LC = codec.decode(codes_SP, length=length)
    assert wav_LC.shape == (length, 1) and wav_LC.dtype == np.float32
    np.testing.assert_allclose(np.clip(wav_LC[:, 0], -1, 1), soundfile.read(tmp_path / "out.wav")[0], atol=1 / 32768)


def test_one_channel_needs_no_axis_of_its_own():
    wav_LC = sound(8000, 0.01)
    np.testing.assert_array_equal(face._as_sound(wav_LC), wav_LC)
    np.testing.assert_array_equal(face._as_sound(wav_LC[:, 0]), wav_LC)


def test_levels_are_coarse_first_and_may_be_left_out_on_either_side(codec):
    wav_L = sound(codec.sample_rate, 0.5)[:, 0]
    codes_SP = codec.encode(wav_L, codec.sample_rate)
    np.testing.assert_array_equal(codec.encode(wav_L, codec.sample_rate, levels=2), codes_SP[:2])
    two_LC = codec.decode(codes_SP, levels=2)
    np.testing.assert_array_equal(codec.decode(codes_SP[:2]), two_LC)
    assert len(two_LC) % codes_SP.shape[1] == 0 and not np.array_equal(codec.decode(codes_SP), two_LC)


def test_a_multi_scale_codec_has_a_slot_for_every_token_of_a_window(aar):
    codec = hiermusic.load(aar.codec)
    codes_SP = codec.encode(sound(codec.sample_rate, 2.5), codec.sample_rate)
    assert codes_SP.shape == (sum(codec.codec.slots), -(-5 * codec.sample_rate // (2 * codec.codec.packet)))
    assert codec.decode(codes_SP).shape == (codes_SP.shape[1] * codec.codec.packet, codec.channels)


def test_a_model_makes_the_songs_of_the_verb(khala, run, tmp_path):
    prompts = [{"name": "a", "tags": "slow", "seconds": 0.5}, {"tags": "fast", "seconds": 0.7, "seed": 9}]
    (tmp_path / "p.jsonl").write_text('{"name": "a", "tags": "slow", "seconds": 0.5}\n'
                                      '{"tags": "fast", "seconds": 0.7, "seed": 9}')  # fmt: skip
    run("generate", f"--superres={khala.superres}", f"--prompts={tmp_path / 'p.jsonl'}", "--seed=3", "--top_k=4",
        f"--out={tmp_path / 'verb'}")  # fmt: skip
    songs = hiermusic.load(khala.superres).generate(prompts, seed=3, top_k=4)
    assert [song.name for song in songs] == ["a", "song-002"]
    assert [song.facts["seed"] for song in songs] == [3, 9] and "wav" not in songs[0].facts
    for song in songs:
        wav_L, rate = soundfile.read(tmp_path / "verb" / f"{song.name}.wav", dtype="float32")
        assert rate == song.sample_rate
        np.testing.assert_array_equal(song.wav_LC[:, 0], wav_L)
        # its codes are kept as those of `encode` are, and make the sound again
        run("decode", f"--codec={khala.codec}", tmp_path / "verb" / f"{song.name}.npz", tmp_path / "again.wav")
        np.testing.assert_array_equal(soundfile.read(tmp_path / "again.wav", dtype="float32")[0], wav_L)
        with np.load(tmp_path / "verb" / f"{song.name}.npz") as stored:
            np.testing.assert_array_equal(stored["codes"], song.codes_SP)
    # a model of the same workdirs that begins elsewhere, one prompt, and a folder that keeps the song
    (song,) = hiermusic.load(khala.backbone).generate(prompts[0], out=tmp_path / "kept", codec=str(khala.codec))
    assert song.facts["wav"] == str(tmp_path / "kept" / "a.wav")
    np.testing.assert_array_equal(soundfile.read(song.facts["wav"], dtype="float32")[0], song.wav_LC[:, 0])
    assert "superres" not in song.facts["workdirs"]


def test_a_model_of_another_system_takes_a_clip_and_goes_on_from_one(aar, tmp_path):
    soundfile.write(tmp_path / "clip.wav", sound(4000, 1.0), 4000)
    model = hiermusic.load(aar.lm)
    (like,) = model.generate({"like": str(tmp_path / "clip.wav"), "seconds": 1.0})
    (longer,) = model.generate({"seconds": 1.5}, continues=tmp_path / "clip.wav")
    assert like.facts["like"]["path"] == longer.facts["continues"]["path"] == str(tmp_path / "clip.wav")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda codec: codec.encode(np.zeros(9, np.int16), 8000), "samples of shape (9,) and type int16 are no sound"),
        (lambda codec: codec.encode(np.zeros((2, 9)), 8000), "more channels than samples: give [L, C]"),
        (lambda codec: codec.encode(np.zeros((1, 9, 1)), 8000), "samples of shape (1, 9, 1)"),
        (lambda codec: codec.encode(np.full(9, np.nan), 8000), "the sound to encode holds NaN or infinite samples"),
        (lambda codec: codec.encode(np.zeros(9), 44.1), "sample_rate=44.1: give that of the samples, 1000 to"),
        (lambda codec: codec.encode(np.zeros(0), 8000), "there is nothing to encode or decode"),
        (lambda codec: codec.encode(np.zeros(9), 8000, levels=7), "7 levels were asked for: this codec has 6"),
        (lambda codec: codec.decode(np.zeros((6, 4), int), levels=0), "0 levels were asked for: this codec has 6"),
        (lambda codec: codec.decode(np.zeros((7, 4), int)), "the array holds codes (7, 4), not those of"),
        (lambda codec: codec.decode(np.full((6, 4), 16)), "the array holds codes (6, 4), not those of"),
        (lambda codec: codec.decode(np.zeros((6, 4))), "the array holds codes (6, 4), not those of"),
    ],
)
def test_what_is_no_sound_and_no_codes(codec, call, words):
    with pytest.raises(UserError) as told:
        call(codec)
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda at: hiermusic.load(at.corpus), "is not a training workdir: it has no config.json"),
        (lambda at: hiermusic.load(at.codec, step=3), "step 3"),
        (lambda at: hiermusic.load(at.backbone, step=4), "which makes songs with its newest weights: leave step out"),
        (lambda at: hiermusic.load(at.superres).generate([]), "there is no prompt: give at least one"),
        (lambda at: hiermusic.load(at.superres).generate({"tags": "slow"}), 'prompt 1: a prompt needs "seconds"'),
        (lambda at: hiermusic.load(at.superres).generate([{"seconds": 1}, "pop"]), "prompt 2: "),
        (
            lambda at: hiermusic.load(at.superres).generate({"seconds": 1}, like="a"),
            "means nothing to the system khala",
        ),
        (
            lambda at: hiermusic.load(at.superres).generate({"seconds": 1}, tags="slow"),
            "tags is of a single song: give it as a field of a prompt",
        ),
    ],
)
def test_what_is_no_model_and_no_prompt(khala, call, words):
    with pytest.raises(UserError) as told:
        call(khala)
    assert words in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temperature": -0.1}, "temperature=-0.1: give a number, at least 0"),
        ({"temperature": float("nan")}, "temperature=nan: give a number, at least 0"),
        ({"guidance": 1e13}, "guidance=10000000000000.0: give a number, at least 0"),
        ({"top_p": 1.5}, "top_p=1.5: give a number, at least 0.01 and at most 1"),
        ({"top_k": 2.0}, "top_k=2.0: give a whole number, at least 0"),
        ({"top_k": True}, "top_k=True: give a whole number, at least 0"),
        ({"rows": 0}, "rows=0: give a whole number, at least 1"),
        ({"codec": 3}, "codec=3: give text"),
        ({"backbone_too": 1}, "backbone_too=1: give True or False"),
        ({"mesh": "fsdp=4"}, "mesh='fsdp=4': give a mapping from axes to devices, such as {'fsdp': 4, 'tensor': 2}"),
    ],
)
def test_an_option_has_the_bounds_of_its_flag(monkeypatch, options, told):
    asked = []
    monkeypatch.setattr(face.workdir, "generate", lambda *requests, **how: asked.append(how) or [])
    model = face.TrainedModel(Path("w"), configuration("khala/backbone:tiny"))
    with pytest.raises(UserError) as error:
        model.generate({"seconds": 1}, **options)
    assert str(error.value) == told
    model.generate(
        {"seconds": 1}, codec=Path("c"), top_k=np.int64(3), top_p=1, rows=2, backbone_too=True, guidance=None
    )
    (how,) = asked
    assert "guidance" not in how
    assert {name: how[name] for name in ("codec", "top_k", "top_p", "rows", "backbone_too")} == {
        "codec": "c", "top_k": 3, "top_p": 1.0, "rows": 2, "backbone_too": True
    }  # fmt: skip
    assert type(how["top_k"]) is int and type(how["top_p"]) is float  # as a song's JSON holds them


def test_the_package_itself_loads_nothing():
    code = "import sys, hiermusic; hiermusic.load; print([name for name in ('jax', 'numpy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
