"""MIDI files as music: the six tracks, their sound, and what a stranger's file comes to."""

import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hiermusic.data import midi_source
from hiermusic.data.audio_records import AudioSource, write_audio
from hiermusic.data.sources import open_source
from hiermusic.errors import UserError


def _event(ticks: int, *data: int) -> bytes:
    return bytes([ticks >> 7 | 0x80, ticks & 0x7F, *data])


def score(path: Path, tracks: dict[int | None, list[int]], microseconds: int = 500_000) -> Path:
    """A MIDI file of one beat after another of each program, None for drums."""
    chunks = [_event(0, 0xFF, 0x51, 3, *microseconds.to_bytes(3, "big"))]
    for channel, (program, pitches) in enumerate(tracks.items()):
        channel = 9 if program is None else channel
        notes = [_event(0, 0x90 | channel, pitch, 100) + _event(480, 0x80 | channel, pitch, 0) for pitch in pitches]
        chunks.append(b"".join([_event(0, 0xC0 | channel, program or 0), *notes]))
    ended = [chunk + _event(0, 0xFF, 0x2F, 0) for chunk in chunks]
    path.parent.mkdir(parents=True, exist_ok=True)
    head = b"MThd" + struct.pack(">IHHH", 6, 1, len(ended), 480)
    path.write_bytes(head + b"".join(b"MTrk" + struct.pack(">I", len(chunk)) + chunk for chunk in ended))
    return path


def soundfont(path: Path) -> Path:
    """A SoundFont of one looped tone, which every program and every drum plays."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    def named(text: str) -> bytes:
        return text.encode().ljust(20, b"\0")

    tone = np.rint(12_000 * np.sin(2 * np.pi * np.arange(4410) / 100)).astype("<i2").tobytes() + b"\0" * 92
    programs = [(program, 0) for program in sorted({*midi_source.PROGRAMS.values()})] + [(0, 128)]
    presets = b"".join(named("tone") + struct.pack("<HHHIII", *one, i, 0, 0, 0) for i, one in enumerate(programs))
    presets += named("EOP") + struct.pack("<HHHIII", 0, 0, len(programs), 0, 0, 0)
    bags = b"".join(struct.pack("<HH", i, 0) for i in range(len(programs) + 1))
    plays = b"".join(struct.pack("<HH", 41, 0) for _ in programs) + bytes(4)  # generator 41: the instrument
    loops = struct.pack("<HHHH", 54, 1, 53, 0) + bytes(4)  # generators 54, a loop, and 53, the sample
    sample = named("tone") + struct.pack("<IIIIIBbHH", 0, 4410, 0, 4400, 44100, 69, 0, 0, 1)
    data = {
        "phdr": presets, "pbag": bags, "pmod": bytes(10), "pgen": plays,
        "inst": named("tone") + struct.pack("<H", 0) + named("EOI") + struct.pack("<H", 1),
        "ibag": struct.pack("<HHHH", 0, 0, 2, 0), "imod": bytes(10), "igen": loops,
        "shdr": sample + named("EOS") + bytes(26),
    }  # fmt: skip
    info = chunk(b"ifil", struct.pack("<HH", 2, 1)) + chunk(b"isng", b"EMU8000\0") + chunk(b"INAM", b"tone\0\0")
    lists = chunk(b"LIST", b"INFO" + info) + chunk(b"LIST", b"sdta" + chunk(b"smpl", tone))
    lists += chunk(b"LIST", b"pdta" + b"".join(chunk(name.encode(), held) for name, held in data.items()))
    path.write_bytes(chunk(b"RIFF", b"sfbk" + lists))
    return path


@pytest.fixture
def midi(tmp_path):
    """The name of a source of two MIDI files, where what renders them is there."""
    pytest.importorskip("pretty_midi")
    pytest.importorskip("fluidsynth", reason="needs FluidSynth", exc_type=ImportError)
    score(tmp_path / "music/train/a.mid", {5: [60, 64, 67], 33: [36, 36, 43], None: [38, 42]}, 600_000)
    score(tmp_path / "music/b.MIDI", {81: [72], 26: [57], 95: [45]})
    (tmp_path / "music/b.txt").write_text("la la")
    (tmp_path / "music/c.txt").write_text("no music")
    return f"midi:{tmp_path / 'music'}?soundfont={soundfont(tmp_path / 'tone.sf2')}"


def test_files_are_songs_with_their_facts(midi):
    source = open_source(midi)
    assert [(track.id, track.split) for track in source.tracks] == [("b.MIDI", None), ("train/a.mid", "train")]
    wav_L1, rate, meta = source.tracks[1].load()
    assert wav_L1.dtype == np.float32 and wav_L1.shape == (round((3 * 0.6 + 1) * rate), 1)
    assert abs(wav_L1).max() == pytest.approx(0.89, abs=1e-4)
    assert meta["tags"] == "piano, bass, drums, 100 bpm, instrumental" and meta["instrumental"]
    assert meta["truth"] == {"tempo": 100.0, "notes": {"piano": 3, "bass": 3, "drums": 2}}
    other = source.tracks[0].load()[2]
    assert other["lyrics"] == "la la" and other["tags"].startswith("square synthesizer, guitar, strings, 120 bpm")
    again = open_source(midi).tracks[1].load()[0]
    np.testing.assert_array_equal(again, wav_L1)


def test_a_note_sounds_at_its_time_and_pitch(tmp_path, midi):
    score(tmp_path / "music/d.mid", {0: [69]})
    wav_L1, rate, meta = {track.id: track for track in open_source(midi).tracks}["d.mid"].load()
    assert meta["truth"]["notes"] == {"piano": 1}
    power_F = abs(np.fft.rfft(wav_L1[round(0.1 * rate) : round(0.4 * rate), 0]))
    assert power_F.argmax() / 0.3 == pytest.approx(441, abs=4)
    quiet, loud = abs(wav_L1[-rate // 4 :]).max(), abs(wav_L1[: rate // 2]).max()
    assert quiet < 0.1 * loud


def test_stems_are_tracks_and_add_up(midi):
    sounds, _, _ = open_source(midi, stems=("mix", "drums", "bass", "other")).tracks[1].load()
    assert list(sounds) == ["mix", "drums", "bass", "other"] and all(abs(wav).max() > 0.05 for wav in sounds.values())
    np.testing.assert_allclose(sounds["drums"] + sounds["bass"] + sounds["other"], sounds["mix"], atol=1e-6)
    without, _, _ = open_source(midi, stems=("mix", "drums")).tracks[0].load()
    assert not without["drums"].any() and len(without["drums"]) == len(without["mix"])
    with pytest.raises(UserError, match="has no stem vocals: its songs have mix, instrumental, drums, bass, other"):
        open_source(midi, stems=("vocals",))


def test_no_track_sounds_on_in_the_next(tmp_path, monkeypatch):
    said = []
    calls = {name: lambda *_, name=name: said.append(name) or 0 for name in ("sfload", "system_reset", "delete")}
    engine = SimpleNamespace(Synth=lambda samplerate: SimpleNamespace(**calls))
    monkeypatch.setattr(midi_source, "_engine", lambda path: (None, engine))

    def track(name: str) -> SimpleNamespace:
        return SimpleNamespace(fluidsynth=lambda synthesizer, sfid: said.append(name) or np.ones(9))

    midi_source._render({name: track(name) for name in ("drums", "bass")}, tmp_path / "tone.sf2", ("mix",))
    assert said == ["sfload", "system_reset", "drums", "system_reset", "bass", "delete"]


def test_another_soundfont_is_another_source(tmp_path, midi):
    before = open_source(midi).fingerprint
    assert open_source(midi).fingerprint == before
    with open(tmp_path / "tone.sf2", "ab") as file:
        file.write(bytes(2))
    assert open_source(midi).fingerprint != before


def test_records_of_scores(tmp_path, midi):
    (tmp_path / "music/bad.mid").write_bytes(b"MThd no score")
    source = open_source(midi)
    summary = write_audio(source.tracks, tmp_path / "records", 22050, 1, fingerprint=source.fingerprint, progress=False)
    ((name, why),) = summary.skipped
    assert name == "bad.mid" and why.startswith("it cannot be read as MIDI (")
    assert len(AudioSource(tmp_path / "records")) == 2


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda path: score(path, {}), "holds no notes of an instrument"),
        (lambda path: score(path, {120: [60]}), "holds no notes of an instrument"),
        (lambda path: score(path, {0: [60]}, 0), "it cannot be read as MIDI"),
        (lambda path: path.write_bytes(bytes(midi_source._LARGEST + 1)), "bytes, too many for one score"),
        (lambda path: score(path, {0: [60] * 120}, 16_000_000), "lasts 1920 s: at most 1800 s"),
    ],
)
def test_what_is_no_song_is_said(tmp_path, midi, made, said):
    made(tmp_path / "music/e.mid")
    load = {track.id: track for track in open_source(midi).tracks}["e.mid"].load
    with pytest.raises(UserError, match=said):
        load()


def test_damaged_files_never_raise_anything_else(tmp_path, midi, monkeypatch):
    monkeypatch.setattr(midi_source, "_render", lambda tracks, soundfont, wanted: {"mix": np.zeros((9, 1), np.float32)})
    whole = (tmp_path / "music/train/a.mid").read_bytes()
    load = open_source(midi).tracks[1].load
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(150):
        data = bytearray(whole)
        for place in rng.integers(len(data), size=rng.integers(1, 5)):
            data[place] = rng.integers(256)
        (tmp_path / "music/train/a.mid").write_bytes(data[: rng.integers(1, len(data) + 1)])
        try:
            load()
        except UserError as problem:
            assert len(str(problem)) < 400
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("midi:", "midi:: it is no folder: give midi:FOLDER"),
        ("midi:{0}/gone", "gone is no folder"),
        ("midi:{0}", "holds no MIDI files"),
        ("midi:{0}?soundfont={0}/gone.sf2", "gone.sf2 cannot be read as a SoundFont"),
        ("midi:{0}?soundfont={0}/a.txt", "a.txt is no SoundFont: give soundfont=FILE.sf2"),
        ("midi:{0}?rate=8000", "unknown option 'rate' after [?]; known are soundfont"),
    ],
)
def test_sources_that_are_none(tmp_path, midi, name, said):
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "a.txt").write_text("words")
    with pytest.raises(UserError, match=said):
        open_source(name.format(folder))


@pytest.mark.parametrize("missing", ["pretty_midi", "fluidsynth"])
def test_what_is_not_installed_is_said(tmp_path, monkeypatch, missing):
    pytest.importorskip("pretty_midi") if missing == "fluidsynth" else None
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=rf"midi:.* is rendered by .*{missing}.*pip install 'hiermusic\[midi\]'"):
        open_source(f"midi:{tmp_path}")
