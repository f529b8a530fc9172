import numpy as np
import pytest
import soundfile

from hiermusic.audio import files
from hiermusic.errors import UserError


def tone(seconds=1.0, rate=44100, channels=2, hertz=440.0):
    time_L1 = np.arange(int(seconds * rate))[:, None] / rate
    gains_C = np.linspace(0.5, 0.25, channels)
    return (np.sin(2 * np.pi * hertz * time_L1) * gains_C).astype(np.float32)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3", ".aiff"])
def test_every_format_is_read(tmp_path, suffix):
    path, wav_LC = tmp_path / f"song{suffix}", tone()
    soundfile.write(path, wav_LC, 44100)
    read_LC, rate = files.read(path)
    assert rate == 44100 and read_LC.shape == wav_LC.shape and read_LC.dtype == np.float32
    spectrum_F = np.abs(np.fft.rfft(read_LC[:, 0]))
    assert np.argmax(spectrum_F) == 440
    info = files.probe(path)
    assert (info.sample_rate, info.channels) == (44100, 2) and info.seconds == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT", "DOUBLE", "ULAW"])
@pytest.mark.parametrize("channels", [1, 2, 7])
def test_every_sample_type_is_read(tmp_path, subtype, channels):
    path, wav_LC = tmp_path / "song.wav", tone(0.1, channels=channels)
    soundfile.write(path, wav_LC, 44100, subtype=subtype)
    read_LC, _ = files.read(path)
    np.testing.assert_allclose(read_LC, wav_LC, atol=0.02)


@pytest.mark.parametrize("rate", [8000, 11025, 96000])
def test_odd_rates_become_the_asked_rate(tmp_path, rate):
    path = tmp_path / "song.wav"
    soundfile.write(path, tone(1.0, rate), rate)
    wav_LC, got = files.read(path, sample_rate=44100, channels=1)
    assert got == 44100 and wav_LC.shape == (44100, 1)
    middle_L = wav_LC[4410:-4410, 0]
    expected_L = tone(1.0)[4410:-4410].mean(axis=1)
    assert np.abs(middle_L - expected_L).max() < 2e-3


def test_one_sample_is_a_file(tmp_path):
    path = tmp_path / "song.wav"
    soundfile.write(path, np.full((1, 1), 0.5, np.float32), 48000)
    assert files.read(path)[0].shape == (1, 1)
    assert files.read(path, sample_rate=44100, channels=2)[0].shape == (1, 2)


def test_channel_rule():
    wav_LC = np.asarray([[0.2, 0.4, 0.9]], np.float32)
    np.testing.assert_allclose(files.to_channels(wav_LC, 2), [[0.5, 0.5]])
    np.testing.assert_allclose(files.to_channels(wav_LC[:, :2], 1), [[0.3]])
    np.testing.assert_allclose(files.to_channels(wav_LC[:, :1], 2), [[0.2, 0.2]])
    assert files.to_channels(wav_LC, 3) is wav_LC


def test_resample_rounds_the_length_up():
    assert files.resample(np.zeros((1001, 2), np.float32), 44100, 48000).shape == (1090, 2)
    assert files.resample(np.zeros((1001, 2), np.float32), 48000, 44100).shape == (920, 2)


def test_write_clips_and_round_trips(tmp_path):
    path = tmp_path / "new" / "song.wav"
    files.write(path, np.asarray([[2.0, -2.0], [0.5, -1.0]]), 44100)
    wav_LC, _ = files.read(path)
    np.testing.assert_array_equal(wav_LC, np.float32([[32767 / 32768, -1], [0.5, -1]]))
    before = path.read_bytes()
    files.write(path, wav_LC, 44100)
    assert path.read_bytes() == before and soundfile.info(path).subtype == "PCM_16"
    assert [p.name for p in path.parent.iterdir()] == ["song.wav"]


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "song.wav"
    files.write(path, tone(0.1), 44100)
    before = path.read_bytes()
    with pytest.raises(UserError, match="NaN"):
        files.write(path, np.full((10, 2), np.nan), 44100)
    assert path.read_bytes() == before
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="cannot be written"):
        files.write(tmp_path / "folder", tone(0.1), 44100)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "song.wav"]


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000, 8 * 4410 + 36])
def test_a_header_written_before_the_length_was_known_is_no_cut(tmp_path, size):
    path = tmp_path / "song.wav"
    soundfile.write(path, tone(0.2), 44100)
    whole = bytearray(path.read_bytes())
    place = whole.index(b"data") + 4
    whole[place : place + 4] = size.to_bytes(4, "little")
    path.write_bytes(whole)
    assert files.read(path)[0].shape == (8820, 2)
    path.write_bytes(whole + b"LIST\x00\x10\x00\x00cut")  # text behind the sound, not the sound itself
    assert len(files.read(path)[0]) >= 8820


def bad_files(folder):
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("la la la\n" * 100)
    (folder / "header.wav").write_bytes(b"RIFF")
    soundfile.write(folder / "none.wav", np.zeros((0, 2)), 44100)
    for value in ("nan", "inf"):
        wav_LC = tone(0.1)
        wav_LC[7] = float(value)
        soundfile.write(folder / f"{value}.wav", wav_LC, 44100, subtype="FLOAT")
    for suffix in ("wav", "aiff", "flac", "mp3"):
        soundfile.write(folder / f"cut.{suffix}", np.random.default_rng(0).normal(0, 0.1, (88200, 2)), 44100)
        whole = (folder / f"cut.{suffix}").read_bytes()
        (folder / f"cut.{suffix}").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.mark.parametrize(
    "name, reason",
    [
        ("missing.wav", "no such file"),
        ("", "directory"),
        ("empty.wav", "empty"),
        ("text.wav", "not readable as audio"),
        ("header.wav", "not readable as audio"),
        ("none.wav", "no samples"),
        ("nan.wav", "NaN"),
        ("inf.wav", "infinite"),
        ("cut.wav", r"truncated, 1\.0 s decode of the 2\.0 s in its header"),
        ("cut.aiff", r"truncated, 1\.0 s decode of the 2\.0 s in its header"),
        ("cut.flac", "truncated"),
        ("cut.mp3", "truncated"),
    ],
)
def test_bad_files_say_why_in_one_line(tmp_path, name, reason):
    path = bad_files(tmp_path) / name
    with pytest.raises(UserError, match=reason) as caught:
        files.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
