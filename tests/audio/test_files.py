import errno
import gc
import io
import itertools
import os
import resource
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hiermusic.audio import containers, files
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


def test_a_flac_stream_that_does_not_say_its_length(tmp_path):
    path = tmp_path / "piped.flac"
    soundfile.write(path, tone(), 44100)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0  # STREAMINFO's number of samples, as programs leave it that cannot go back and write it
    data[22:26] = bytes(4)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"piped.flac: its header does not say how long it is"):
        files.read(path)


def test_what_was_resampled_is_not_copied():
    wav_LC = np.zeros((300_000, 2), np.float32)
    tracemalloc.start()
    out_nC = files.resample(wav_LC, 48_000, 44_100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert out_nC.shape == (275_625, 2) and peak < 0.5 * out_nC.nbytes  # what soxr itself takes is not counted


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


def test_a_write_that_breaks_off_leaves_nothing_to_complain_of(tmp_path, monkeypatch):
    """Python tells of garbage that cannot be ended, here of what is written while somebody looks at it."""
    complaints = []
    monkeypatch.setattr(sys, "unraisablehook", complaints.append)

    def write():
        with pytest.raises(UserError) as caught:  # a name in a frame that the error leads to: garbage with all it holds
            files.write(tmp_path / "song.wav", tone(0.1), 44100)
        assert str(caught.value).startswith(f"{tmp_path}/song.wav: cannot be written (File too large)")

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    gc.collect()
    assert not complaints and not list(tmp_path.iterdir())


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


def pages(path):
    """An Ogg file's pages."""
    whole, found = path.read_bytes(), []
    while whole:
        size = 27 + whole[26] + sum(whole[27 : 27 + whole[26]])
        found.append(whole[:size])
        whole = whole[size:]
    return found


def frames(path):
    """An mp3 file's frames without the one that says how many there are."""
    whole, found = path.read_bytes(), []
    at = containers._next_frame(io.BytesIO(whole), 0, len(whole))
    while at < len(whole):
        size = containers._length(whole[at : at + 4])
        found.append(whole[at : at + size])
        at += size
    return found[1:]


def noise(path, seconds=4.0, channels=2):
    rng = np.random.default_rng(0)
    soundfile.write(path, rng.normal(0, 0.1, (round(seconds * 44100), channels)), 44100)
    return path


def cut_ogg(path, cut):
    noise(path)
    found = pages(path)
    assert len(found) > 6
    path.write_bytes(cut(found))


@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (lambda found: b"".join(found)[: sum(map(len, found)) // 2], "truncated, its last page is cut short"),
        (lambda found: b"".join(found[: len(found) // 2]), "truncated, its last page is missing"),
        (lambda found: b"".join(found[:4] + found[5:]), "truncated, page 4 of it is missing"),
        (lambda found: b"".join(found)[:-1], "truncated, its last page is cut short"),
    ],
)
def test_an_ogg_that_is_not_whole(tmp_path, cut, words):
    cut_ogg(tmp_path / "a.ogg", cut)
    with pytest.raises(UserError, match=words):
        files.read(tmp_path / "a.ogg")


def test_a_whole_ogg_with_something_behind_it(tmp_path):
    cut_ogg(tmp_path / "a.ogg", lambda found: b"".join(found) + b"TAG" + bytes(125))
    assert len(files.read(tmp_path / "a.ogg")[0]) == 4 * 44100


KBITS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)  # of layer III, as the standard lists them


@pytest.mark.parametrize(
    ("version", "samples", "rates", "kbits"),
    [
        (3, 1152, (44100, 48000, 32000), (*KBITS[3:12], 160, 192, 224, 256, 320)),
        (2, 576, (22050, 24000, 16000), KBITS),
        (0, 576, (11025, 12000, 8000), KBITS),
    ],
)
def test_a_frame_is_as_long_as_its_samples_take_at_its_bitrate(version, samples, rates, kbits):
    def length(version, kbit, rate, padded=0):
        return containers._length(bytes([0xFF, 0xE3 | version << 3, kbit << 4 | rate << 2 | padded << 1, 0]))

    for (r, rate), (k, kbit), padded in itertools.product(enumerate(rates), enumerate(kbits, start=1), (0, 1)):
        assert length(version, k, r, padded) == samples * kbit * 125 // rate + padded
    assert [length(*parts) for parts in ((1, 5, 0), (version, 0, 0), (version, 15, 0), (version, 5, 3))] == [None] * 4


def test_an_mp3_without_a_header_of_its_length(tmp_path):
    """Constant bitrate is read to its end; a cut is told by the last frame; and what is not decoded is told too."""
    varying = frames(noise(tmp_path / "a.mp3"))
    whole = 155 * varying[20]
    (tmp_path / "whole.mp3").write_bytes(whole + b"TAG" + bytes(125))
    assert abs(len(files.read(tmp_path / "whole.mp3")[0]) - 4 * 44100) < 4000
    (tmp_path / "cut.mp3").write_bytes(whole[:-40])
    with pytest.raises(UserError, match="truncated, its last frame is cut short after"):
        files.read(tmp_path / "cut.mp3")
    (tmp_path / "guessed.mp3").write_bytes(b"".join(varying))  # its length is guessed from one frame
    with pytest.raises(UserError, match=r"only \d\.\d s of its 4\.. s decode, as its header does not say"):
        files.read(tmp_path / "guessed.mp3")


def test_the_last_frame_needs_no_other_behind_it(tmp_path):
    found = frames(noise(tmp_path / "a.mp3"))
    (tmp_path / "b.mp3").write_bytes(found[0] + found[1] + bytes(50) + found[2])
    told = containers.mp3_frames(tmp_path / "b.mp3")
    assert (told.count, told.cut) == (3, False)


def test_an_mp3_cut_between_two_frames(tmp_path):
    path = noise(tmp_path / "a.mp3")
    found = frames(path)
    path.write_bytes(path.read_bytes()[: -sum(map(len, found[-20:]))])
    with pytest.raises(UserError, match=r"truncated, 3\.. s decode of the 4\.. s in its header"):
        files.read(path)


def test_float_samples_at_integer_scale_are_told(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(0.1) * 32768, 44100, subtype="FLOAT")
    with pytest.raises(UserError, match=r"has float samples that reach 1\d,\d{3} where full scale is 1"):
        files.read(tmp_path / "a.wav")
    soundfile.write(tmp_path / "b.wav", tone(0.1) * 4, 44100, subtype="FLOAT")  # a hot mix
    assert np.abs(files.read(tmp_path / "b.wav")[0]).max() == pytest.approx(2.0, abs=0.01)


def test_channels_that_cancel_are_told():
    wav_LC = tone(channels=1)
    assert files.oddity(np.concatenate([wav_LC, wav_LC], axis=1)) is None
    assert files.oddity(np.concatenate([wav_LC, 0 * wav_LC], axis=1)) is None
    assert files.oddity(0 * wav_LC) is None and files.oddity(wav_LC) is None
    assert "keeps nothing" in files.oddity(np.concatenate([wav_LC, -wav_LC], axis=1))
    assert "keeps -26 dB" in files.oddity(np.concatenate([wav_LC, -0.9 * wav_LC], axis=1))


@pytest.mark.parametrize("rate", [1, 999, 2_000_000])
def test_a_rate_that_no_recording_has(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(0.1), rate)
    with pytest.raises(UserError, match=f"its header says {rate} Hz, not 1000 to 1000000"):
        files.read(tmp_path / "a.wav")


def test_a_file_that_holds_too_much_is_told_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MOST_SAMPLES", 88_199)
    soundfile.write(tmp_path / "a.wav", tone(1.0), 44100)
    monkeypatch.setattr(files, "_decoded", lambda *_: pytest.fail("was read"))
    with pytest.raises(UserError, match=r"2 channels of 0 minutes are more than one file may hold .* split it"):
        files.read(tmp_path / "a.wav")


def test_reading_takes_the_memory_of_the_samples_once(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros((3 << 20, 2), np.int16), 44100)
    tracemalloc.start()
    wav_LC, _ = files.read(tmp_path / "a.wav")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert wav_LC.shape == (3 << 20, 2) and peak < 1.2 * wav_LC.nbytes


def test_a_fault_of_the_machine_is_not_the_files(tmp_path, monkeypatch):
    files.write(tmp_path / "a.wav", tone(0.1), 44100)

    def open_(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("builtins.open", open_)
    with pytest.raises(OSError, match="Too many open files"):
        files.read(tmp_path / "a.wav")


def test_a_name_that_is_no_text(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9.wav"))
    files.write(path, tone(0.1), 44100)
    assert len(files.read(path)[0]) == 4410
    with pytest.raises(UserError, match="no file has such a name"):
        files.read(f"{tmp_path}/a\0.wav")
    with pytest.raises(UserError, match=r"cannot be opened \(File name too long\); check its name"):
        files.read(tmp_path / ("a" * 300))
