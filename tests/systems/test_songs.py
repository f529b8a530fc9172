"""Songs are made once, and again when what decided them changes; what was wrong with a sound is told."""

import json
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from ml_collections import ConfigDict

from hiermusic.errors import UserError
from hiermusic.systems import requests, songs
from hiermusic.systems.lm import rows as lm_rows
from hiermusic.tokens.vocabulary import TextTokenizer, Vocabulary


@pytest.fixture
def produce(tmp_path, monkeypatch):
    """(audio) -> how many songs were made for it."""
    monkeypatch.setattr(songs, "decode_long", lambda codec, codes_PS, length: np.zeros((10, 1), np.float32))
    asked, codes_PS = requests.single(1.0, 0, tags="slow"), np.zeros((1, 2))

    def run(audio: str | None) -> int:
        made = []

        def make(wanted):
            made.extend(wanted)
            return [songs.Song(codes_PS, True, SimpleNamespace(sample_rate=8000)) for _ in wanted]

        songs.produce(asked, tmp_path / "out", make, {}, {}, audio)
        return len(made)

    return run


def test_a_continuation_is_made_again_when_its_audio_changes(produce, tmp_path):
    audio = tmp_path / "in.wav"
    soundfile.write(audio, np.zeros((8000, 1)), 8000)
    assert [produce(None), produce(None)] == [1, 0]
    assert [produce(str(audio)), produce(str(audio))] == [1, 0]
    soundfile.write(audio, np.full((8000, 1), 0.5), 8000)
    assert [produce(str(audio)), produce(str(audio))] == [1, 0]
    audio.write_text("la")
    with pytest.raises(UserError, match="not readable as audio"):
        produce(str(audio))


@pytest.fixture
def make_one(tmp_path, monkeypatch):
    """(sound at 8 kHz, seconds asked) -> the folder with the song, and the bare sound of its first levels."""

    def run(wav_LC: np.ndarray, seconds: float, coarse_LC: np.ndarray | None = None):
        def decode(codec, codes_PS, length=None):
            return coarse_LC if codes_PS is None else wav_LC

        monkeypatch.setattr(songs, "decode_long", decode)
        song = songs.Song(np.zeros((1, 2)), True, SimpleNamespace(sample_rate=8000), {"backbone": None})
        versions = () if coarse_LC is None else ("backbone",)
        songs.produce(requests.single(seconds, 0, tags="slow"), tmp_path, lambda wanted: [song], {}, {}, None, versions)
        return tmp_path

    return run


def sine(peak: float, seconds: float) -> np.ndarray:
    return (peak * np.sin(np.arange(round(8000 * seconds)) * 0.7))[:, None].astype(np.float32)


def test_what_exceeds_full_scale_is_limited_and_told(make_one, capsys):
    out = make_one(sine(2.0, 1.0), 1.0, coarse_LC=sine(0.5, 1.0))
    made = json.loads((out / "song.json").read_text())
    assert made["peak"] == pytest.approx(2.0, abs=1e-3) and made["clipped"] == pytest.approx(2 / 3, abs=0.01)
    coarse = made["versions"]["backbone"]
    assert made["loudness"] == pytest.approx(coarse["loudness"] + 20 * np.log10(4), abs=0.1)
    assert coarse["peak"] == pytest.approx(0.5, abs=1e-3) and coarse["clipped"] == 0
    wav_L = soundfile.read(out / "song.wav")[0]
    assert np.abs(wav_L).max() < 1 and np.abs(wav_L - sine(1.0, 1.0)[:, 0])[100:-100].max() < 0.01  # no flat tops
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("song.wav: 66") and "2.00 times" in line


@pytest.mark.parametrize(("seconds", "told"), [(0.79, True), (0.81, False)])
def test_a_song_far_shorter_than_asked_is_told(make_one, capsys, seconds, told):
    out = make_one(sine(0.5, seconds), 1.0)
    assert capsys.readouterr().err == "song: ended itself after 0.8 s of the 1 s asked for\n" * told
    assert json.loads((out / "song.json").read_text())["seconds"] == seconds


def test_silence_has_no_loudness(make_one):
    assert json.loads((make_one(np.zeros((100, 1), np.float32), 0.01) / "song.json").read_text())["loudness"] is None


@pytest.mark.parametrize("name", ["song.wav", "song.npz", "song.json"])
def test_an_empty_file_is_no_song(produce, tmp_path, name):
    assert [produce(None), produce(None)] == [1, 0]
    (tmp_path / "out" / name).write_bytes(b"")
    assert [produce(None), produce(None)] == [1, 0]


def test_a_prompt_that_is_cut_is_told(capsys):
    asked = requests.single(1.0, 0, tags="pop", lyrics="la " * 100)
    words = TextTokenizer(Vocabulary.byte_level())
    songs.tell_cut(asked, words, {"limit": 128})
    told = "song: its prompt is 183 ids longer than the 128 read: the end of its words is left out\n"
    assert capsys.readouterr().err == told
    songs.tell_cut(asked, words, {"limit": 1000})
    assert capsys.readouterr().err == ""


def test_prompts_that_are_cut_in_training_are_counted(capsys, monkeypatch):
    tracks = [{"seconds": 1.0, "meta": {"lyrics": "la " * count, "id": "x"}} for count in (1, 100, 1, 50)]
    monkeypatch.setattr(lm_rows, "TokenSource", lambda *_: SimpleNamespace(tracks=tracks))
    model = {"tokenizer": "bytes", "tokenizer_file": "", "duration_unit": 1.0, "keep_description": False}
    lm_rows.tell_cut(ConfigDict({"data": {"path": "tokens"}, "model": model | {"text_limit": 128}}))
    told = "tokens: 2 of 4 prompts are longer than model.text_limit=128 ids, by 180 at most: "
    assert capsys.readouterr().err == told + "the ends of their words are left out\n"
    lm_rows.tell_cut(ConfigDict({"data": {"path": "tokens"}, "model": model | {"text_limit": 1000}}))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("process", [(0, 1), (0, 2), (1, 2)])
def test_songs_are_on_disk_before_the_next_are_begun(tmp_path, monkeypatch, process):
    """Every process is asked as often as the others, and what one round made is not lost with the next."""
    monkeypatch.setattr(songs, "decode_long", lambda codec, codes_PS, length: np.zeros((10, 1), np.float32))
    monkeypatch.setattr(songs, "workers", lambda: process)
    monkeypatch.setattr(songs, "TOGETHER", 2)
    lines = [json.dumps({"name": f"s{number}", "seconds": 1}) for number in range(5)]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    rounds = []

    def make(wanted):
        assert [path.stem for path in sorted((tmp_path / "out").glob("*.wav"))] == [*chain.from_iterable(rounds)]
        rounds.append([request.name for request in wanted])
        if len(rounds) == 2 + (process[1] == 1):
            raise RuntimeError("the power goes")
        return [songs.Song(np.zeros((1, 2)), True, SimpleNamespace(sample_rate=8000)) for _ in wanted]

    with pytest.raises(RuntimeError):
        songs.produce(requests.read(tmp_path / "p.jsonl", 0), tmp_path / "out", make, {}, {})
    wanted = {(0, 1): [["s0", "s1"], ["s2", "s3"], ["s4"]], (0, 2): [["s0", "s2"], ["s4"]], (1, 2): [["s1", "s3"], []]}
    assert rounds == wanted[process]


@pytest.fixture
def made_by(tmp_path, monkeypatch, capsys):
    """(what `produce` is told, processes) -> the names in every batch of the first process, and what was said."""
    monkeypatch.setattr(songs, "decode_long", lambda codec, codes_PS, length: np.zeros((10, 1), np.float32))
    monkeypatch.setattr(songs, "read_json", lambda path: path.stem)
    monkeypatch.setattr(songs.memory, "room", lambda: 1000)
    lines = [json.dumps({"name": f"s{number}", "seconds": 1}) for number in range(5)]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    asked = requests.read(tmp_path / "p.jsonl", 0)

    def run(processes: int = 1, **told):
        monkeypatch.setattr(songs, "workers", lambda: (0, processes))
        rounds = []

        def make(wanted):
            rounds.append("".join(request.name for request in wanted))
            return [songs.Song(np.zeros((1, 2)), True, SimpleNamespace(sample_rate=8000)) for _ in wanted]

        songs.produce(asked, tmp_path / "out", make, {}, {}, **told)
        said = [line for line in capsys.readouterr().err.splitlines() if "at a time" in line]
        return rounds, said

    return run


FITS = "which fit beside the model into 9.31e-07 GiB; --rows says otherwise"


@pytest.mark.parametrize(
    ("needs", "told", "rounds", "said"),
    [
        ([(100, 180)], {}, ["s0s1s2s3s4"], []),
        ([(100, 181)], {}, ["s0s1s2s3", "s4"], [f"5 songs are made 4 at a time, {FITS}"]),
        ([(100, 10), (400, 300)], {}, ["s0s1", "s2s3", "s4"], [f"5 songs are made 2 at a time, {FITS}"]),
        ([(2000, 300)], {}, ["s0", "s1", "s2", "s3", "s4"], [f"5 songs are made 1 at a time, {FITS}"]),
        ([(100, 450)], {"rows": 3}, ["s0s1s2", "s3s4"], []),
        ([(100, 450)], {"processes": 2}, ["s0s2", "s4"], [f"3 songs are made 2 at a time, {FITS}"]),
        ([(7300, 350)], {"mesh": SimpleNamespace(size=8)}, ["s0s1", "s2s3", "s4"],
         ["5 songs are made 2 at a time, which fit beside the model into 7.45e-06 GiB; --rows says otherwise"]),
    ],
)  # fmt: skip
def test_as_many_songs_are_made_at_once_as_there_is_room_for(made_by, needs, told, rounds, said):
    assert made_by(needs=lambda: [songs.Need(*need) for need in needs], **told) == (rounds, said)


def test_no_more_songs_than_together_are_made_at_once_however_much_room_there_is(made_by, monkeypatch):
    monkeypatch.setattr(songs, "TOGETHER", 3)
    told = made_by(needs=lambda: [songs.Need(1, 1)])
    assert told == (["s0s1s2", "s3s4"], ["5 songs are made 3 at a time; --rows says otherwise"])


@pytest.fixture
def decided(tmp_path, monkeypatch):
    """(what decides a song, where it differs from the usual) -> how many were made, and what was told of it."""
    monkeypatch.setattr(songs, "decode_long", lambda codec, codes_PS, length=None: np.zeros((8000, 1), np.float32))
    newest = {"lm-run": 4, "codec-run": 6}
    monkeypatch.setattr(songs.checkpoint, "latest_step", newest.get)
    asked = {"tags": "slow", "seconds": 1.0, "seed": 0}
    soundfile.write(tmp_path / "like.wav", np.zeros((8, 1)), 8000)

    def run(versions: tuple[str, ...] = (), newer: dict | None = None, sampling: dict | None = None, **changes):
        newest.update(newer or {})
        runs, steps = changes.pop("runs", {"lm": "lm-run", "codec": "codec-run"}), changes.pop("steps", {})
        made = []

        def make(wanted):
            made.extend(wanted)
            song = songs.Song(np.zeros((1, 2)), True, SimpleNamespace(sample_rate=8000), {"backbone": np.ones((1, 2))})
            return [song for _ in wanted]

        settings = {"lm": sampling or {"top_k": 3}}
        requested = requests.single(**asked | changes)
        (told,) = songs.produce(requested, tmp_path / "out", make, runs, settings, None, versions, steps)
        return len(made), told

    return run


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"newer": {"lm-run": 8}}, {"steps": {"lm": 8, "codec": 6}}),
        ({"newer": {"codec-run": 7}}, {"steps": {"lm": 4, "codec": 7}}),
        ({"steps": {"codec": 5}}, {"steps": {"lm": 4, "codec": 5}}),
        ({"runs": {"lm": "lm-run"}}, {"workdirs": {"lm": "lm-run"}}),
        ({"sampling": {"top_k": 4}}, {"sampling": {"lm": {"top_k": 4}}}),
        ({"seed": 1}, {"seed": 1}),
        ({"tags": "fast"}, {}),
        ({"seconds": 0.9}, {}),
        ({"like": "like.wav"}, {}),
        ({"versions": ("backbone",)}, {}),
    ],
)
def test_a_song_is_made_again_when_what_decided_it_changes(decided, tmp_path, monkeypatch, change, told):
    monkeypatch.chdir(tmp_path)
    assert [decided()[0], decided()[0]] == [1, 0]
    made, found = decided(**change)
    assert made == 1 and decided(**change)[0] == 0
    assert {name: found[name] for name in told} == told


def test_a_checkpoint_that_is_named_does_not_grow_old(decided):
    """The newest one counts for what is not named."""
    assert [decided(steps={"codec": 5})[0], decided(steps={"codec": 5}, newer={"codec-run": 7})[0]] == [1, 0]
    assert decided(steps={"codec": 5}, newer={"lm-run": 5})[0] == 1


def test_a_song_is_cut_to_what_was_asked_of_it(tmp_path, monkeypatch):
    """Silence that filled the first window up is left out, and so is what the codec adds behind the end."""
    asked = []

    def decode(codec, codes_PS, length=None):
        asked.append((codes_PS, length))
        return np.linspace(0, 0.5, length or 100, dtype=np.float32)[:, None]

    monkeypatch.setattr(songs, "decode_long", decode)
    codes_PS = np.arange(6).reshape(3, 2)
    song = songs.Song(codes_PS, False, SimpleNamespace(sample_rate=8000), {"backbone": "coarse"}, length=60, skip=20)
    asked_for = requests.single(0.005, 0, tags="a")
    (told,) = songs.produce(asked_for, tmp_path, lambda _: [song], {}, {}, None, ("backbone",))
    assert asked == [(codes_PS, 60), ("coarse", None)]
    with np.load(tmp_path / "song.npz") as stored:  # as `hiermusic encode` writes them, what is skipped among them
        assert (int(stored["length"]), int(stored["sample_rate"])) == (60, 8000) and stored["codes"].dtype == np.uint16
        np.testing.assert_array_equal(stored["codes"], codes_PS.T)
    wav_L, _ = soundfile.read(tmp_path / "song.wav")
    np.testing.assert_allclose(wav_L, np.linspace(0, 0.5, 60)[20:], atol=1e-4)
    assert told["seconds"] == 0.005 and told["ended"] is False
    assert len(soundfile.read(tmp_path / "song.backbone.wav")[0]) == 100


@pytest.mark.parametrize(("mesh", "asked", "written"), [(None, ["s1", "s3"], "s1 s3"), ("a mesh", None, "s1 s3")])
def test_processes_make_songs_of_their_own_or_all_of_them_on_one_mesh(tmp_path, monkeypatch, mesh, asked, written):
    monkeypatch.setattr(songs, "decode_long", lambda codec, codes_PS, length: np.zeros((10, 1), np.float32))
    monkeypatch.setattr(songs, "workers", lambda: (1, 2))
    monkeypatch.setattr(songs, "read_json", lambda path: path.stem)
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"name": f"s{n}", "seconds": 1}) for n in range(4)))
    rounds = []

    def make(wanted):
        rounds.append([request.name for request in wanted])
        return [songs.Song(np.zeros((1, 2)), True, SimpleNamespace(sample_rate=8000)) for _ in wanted]

    songs.produce(requests.read(tmp_path / "p.jsonl", 0), tmp_path / "out", make, {}, {}, rows=2, mesh=mesh)
    assert rounds == ([asked] if asked else [["s0", "s1"], ["s2", "s3"]])
    assert " ".join(sorted(path.stem for path in (tmp_path / "out").glob("*.wav"))) == written
