"""Bad input, as people give it, through the command line: one line that says what to do, and nothing left behind.

docs/bad_input.md lists the same cases with the answers in full.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hiermusic import cli

CONFIGS = Path(__file__).parents[2] / "configs" / "khala"
RATE = 44_100


def noise(samples: int = RATE, channels: int = 2) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.3, 0.3, (samples, channels)).astype(np.float32)


def fails(capsys, *arguments) -> str:
    """The one line a failing verb leaves on standard error, progress bars aside."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert ending.value.code == 1 and out == "" and "Traceback" not in err
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("hiermusic")]
    assert len(lines) == 1, err
    assert err.rstrip().endswith(lines[0])
    return lines[0]


def answer(capsys, *arguments) -> dict:
    capsys.readouterr()
    cli.main([*map(str, arguments), "--json"])
    return json.loads(capsys.readouterr().out)


# MARK: sounds


def half(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def sound(path: Path, kind: str) -> Path:
    """A file of one kind of badness."""
    wav_LC = noise()
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("la la la\n" * 100)
    elif kind == "nan":
        wav_LC[100] = np.nan
        soundfile.write(path, wav_LC, RATE, subtype="FLOAT")
    elif kind == "folder":
        path.mkdir()
    elif kind == "cut":
        soundfile.write(path, wav_LC, RATE)
        half(path)
    return path


BAD_SOUNDS = [
    ("missing", "a.wav", "no such file"),
    ("folder", "a.wav", "is a directory"),
    ("empty", "a.wav", "is empty (0 bytes)"),
    ("text", "a.wav", "not readable as audio"),
    ("nan", "a.wav", "holds NaN or infinite samples"),
    ("cut", "a.wav", "truncated, 0.5 s decode of the 1.0 s in its header"),
    ("cut", "a.mp3", "truncated"),
    ("cut", "a.flac", "truncated"),
]
GOOD_SOUNDS = {
    "eight bits": lambda path: soundfile.write(path, noise(), RATE, subtype="PCM_U8"),
    "seven channels": lambda path: soundfile.write(path, noise(channels=7), RATE),
    "one sample": lambda path: soundfile.write(path, noise(1), RATE),
    "another rate": lambda path: soundfile.write(path, noise(8000, 1), 8000),
}


@pytest.mark.parametrize(("kind", "name", "words"), BAD_SOUNDS)
def test_a_bad_sound_is_named(capsys, khala, tmp_path, kind, name, words):
    place = sound(tmp_path / name, kind)
    for verb in (
        ("encode", f"--codec={khala.codec}", place, tmp_path / "codes.npz"),
        ("continue", f"--backbone={khala.backbone}", "--seconds=2", f"--out={tmp_path / 'songs'}", place),
    ):
        line = fails(capsys, *verb)
        assert str(place) in line and words in line
    assert sorted(path.name for path in tmp_path.iterdir()) == ([] if kind == "missing" else [name])


@pytest.mark.parametrize("kind", GOOD_SOUNDS)
def test_an_odd_sound_is_taken(capsys, khala, tmp_path, kind):
    GOOD_SOUNDS[kind](tmp_path / "in.wav")
    encoded = answer(capsys, "encode", f"--codec={khala.codec}", tmp_path / "in.wav", tmp_path / "codes.npz")
    decoded = answer(capsys, "decode", f"--codec={khala.codec}", tmp_path / "codes.npz", tmp_path / "out.wav")
    assert decoded["seconds"] == encoded["seconds"] > 0


def test_a_corpus_names_what_it_skipped(capsys, tmp_path):
    music = tmp_path / "music"
    music.mkdir()
    for number, (kind, name, _) in enumerate(BAD_SOUNDS):
        if kind not in ("missing", "folder"):
            sound(music / f"bad{number}{Path(name).suffix}", kind)
    for number, make in enumerate(GOOD_SOUNDS.values()):
        make(music / f"good{number}.wav")
    told = answer(capsys, "data", f"--source={music}", f"--out={tmp_path / 'records'}")
    assert told["tracks"] == len(GOOD_SOUNDS)
    skipped = dict(told["skipped"])
    assert sorted(skipped) == sorted(path.name for path in music.glob("bad*"))
    for number, (_, name, words) in enumerate(BAD_SOUNDS):
        assert words in skipped.get(f"bad{number}{Path(name).suffix}", words)


def test_a_corpus_without_music(capsys, tmp_path):
    out = tmp_path / "records"
    assert "does not exist" in fails(capsys, "data", f"--source={tmp_path / 'gone'}", f"--out={out}")
    (tmp_path / "music").mkdir()
    assert "holds no audio files" in fails(capsys, "data", f"--source={tmp_path / 'music'}", f"--out={out}")
    assert not out.exists()
    sound(tmp_path / "music" / "a.wav", "text")
    assert "no readable audio among 1 inputs; the first: a.wav" in fails(
        capsys, "data", f"--source={tmp_path / 'music'}", f"--out={out}"
    )
    assert not (out / "info.json").exists()


def test_a_split_of_an_unknown_name(capsys, tmp_path):
    sound(tmp_path / "a.wav", "good")
    (tmp_path / "list.csv").write_text("path,split\na.wav,holiday\n")
    line = fails(capsys, "data", f"--source={tmp_path / 'list.csv'}", f"--out={tmp_path / 'records'}")
    assert f"{tmp_path / 'list.csv'} line 2: split 'holiday' is none of train, training, valid, " in line
    assert not (tmp_path / "records").exists()


# MARK: prompts


def test_words_of_every_kind_are_sung(capsys, khala, tmp_path):
    """Emoji, and words beyond the context's share of text, which are cut."""
    prompts = [{"name": "emoji", "tags": "🎹, 爵士", "lyrics": "la 🎶\n\u0000\ud83c", "seconds": 0.5}]
    prompts += [{"name": "long", "tags": "slow", "lyrics": "la " * 20_000, "seconds": 0.5}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    told = answer(
        capsys, "generate", f"--superres={khala.superres}", f"--prompts={tmp_path}/p.jsonl", f"--out={tmp_path / 's'}"
    )
    assert [song["name"] for song in told["songs"]] == ["emoji", "long"]
    assert all(0 < song["seconds"] < 0.6 for song in told["songs"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no prompt"),
        ("{", "line 1: "),
        ("[]", "line 1: a prompt is a JSON object, not list"),
        ('{"tags": "a"}', 'line 1: a prompt needs "seconds"'),
        ('{"tags": "a", "seconds": NaN}', 'line 1: a prompt needs "seconds"'),
        ('{"tags": "a", "seconds": 1}\n{"tagz": "a", "seconds": 1}', "line 2: a prompt has no field 'tagz'"),
        ('{"tags": 3, "seconds": 1}', "line 1: the prompt's 'tags' cannot be 3"),
        ('{"seconds": 1, "seed": "x"}', "line 1: the seed 'x' is not an integer"),
        ('{"seconds": 1, "name": "a"}\n{"seconds": 1, "name": "a"}', "the name 'a' is used twice"),
        ('{"seconds": 1, "name": "/"}', "line 1: the name '/' cannot be a file name"),
        ('{"seconds": 100000, "name": "a"}', "a: 100000 s do not fit this backbone, whose context of"),
    ],
)
def test_broken_prompts(capsys, khala, tmp_path, text, words):
    (tmp_path / "p.jsonl").write_text(text)
    line = fails(
        capsys, "generate", f"--backbone={khala.backbone}", f"--prompts={tmp_path}/p.jsonl", f"--out={tmp_path / 's'}"
    )
    assert words in line and not (tmp_path / "s").exists()


def test_audio_as_long_as_the_song(capsys, khala, tmp_path):
    soundfile.write(tmp_path / "in.wav", noise(), RATE)
    out = f"--out={tmp_path / 's'}"
    line = fails(capsys, "continue", f"--backbone={khala.backbone}", "--seconds=1", out, tmp_path / "in.wav")
    assert "ask for more --seconds" in line and not (tmp_path / "s").exists()


# MARK: workdirs


def copy(khala, name: str, to: Path) -> Path:
    return Path(shutil.copytree(khala.__dict__[name], to / name))


def files_of(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def train(config: str, workdir: Path, *more) -> tuple:
    return "train", f"--config={CONFIGS}/{config}", f"--workdir={workdir}", "--noprogress", *more


def test_unknown_preset_and_field(capsys, tmp_path):
    line = fails(capsys, *train("codec.py:huge", tmp_path / "w"))
    assert "unknown preset 'huge'" in line and "choose tiny, music, small, paper, 3b or 7b" in line
    line = fails(capsys, *train("codec.py:tiny", tmp_path / "w", "--config.model.codez=3"))
    assert "the configuration has no field codez" in line and "\\" not in line
    assert not (tmp_path / "w").exists()


def test_a_workdir_of_another_config_stays_as_it_is(capsys, khala):
    before = files_of(khala.codec)
    for config, data in (("codec.py:tiny", "builtin:3?seconds=2"), ("backbone.py:tiny", khala.tokens)):
        line = fails(capsys, *train(config, khala.codec, f"--config.data.path={data}"))
        assert "was trained with" in line and "take another workdir or the same config" in line
        assert files_of(khala.codec) == before


def test_workdirs_of_other_stages(capsys, khala, tmp_path):
    out = f"--out={tmp_path / 'o'}"
    assert "was trained as a backbone: give the workdir of a codec" in fails(
        capsys, "tokenize", f"--codec={khala.backbone}", f"--data={khala.corpus}", out
    )
    assert "was trained as a codec: give the workdir of a backbone" in fails(
        capsys, "generate", f"--backbone={khala.codec}", "--seconds=1", out
    )
    assert "holds audio records where tokens records are needed" in fails(
        capsys, *train("backbone.py:tiny", tmp_path / "o", f"--config.data.path={khala.corpus}")
    )
    assert not (tmp_path / "o").exists()


def test_a_damaged_checkpoint(capsys, khala, tmp_path):
    workdir = copy(khala, "codec", tmp_path)
    soundfile.write(tmp_path / "in.wav", noise(), RATE)
    encode = ("encode", f"--codec={workdir}", tmp_path / "in.wav", tmp_path / "codes.npz")
    (step,) = (workdir / "checkpoints").iterdir()
    for path in step.rglob("*"):
        if path.is_file() and path.stat().st_size > 1000:
            half(path)
    line = fails(capsys, *encode)
    assert f"checkpoint {step} " in line and "delete it to fall back to an older one" in line
    shutil.rmtree(step)
    assert "holds no checkpoint: train it first" in fails(capsys, *encode)
    (workdir / "config.json").write_text("{")
    assert "config.json cannot be read" in fails(capsys, *encode)


# MARK: codes


def test_codes_of_another_codec(capsys, khala, tmp_path):
    place = tmp_path / "codes.npz"
    decode = ("decode", f"--codec={khala.codec}", place, tmp_path / "out.wav")
    good = {"codes": np.zeros((6, 4), np.uint16), "length": 4 * 1024, "sample_rate": 22_050}
    for change in (
        {"codes": np.zeros((64, 4), np.uint16)},
        {"length": 10**9},
    ):
        np.savez(place, **(good | change))
        assert "use the codec that made it" in fails(capsys, *decode)
    half(place)
    assert "cannot be read as a codes file" in fails(capsys, *decode)
    place.write_text("codes")
    assert "cannot be read as a codes file" in fails(capsys, *decode)
    place.unlink()
    assert "no codes at" in fails(capsys, *decode)
    assert list(tmp_path.iterdir()) == []


# MARK: places


@pytest.fixture
def full(tmp_path):
    """A file system with a few kilobytes left."""
    place = tmp_path / "full"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", place]
    made = subprocess.run(mount, capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"mounting a small disk is not permitted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.slow
def test_a_full_disk(capsys, khala, full, tmp_path):
    soundfile.write(tmp_path / "in.wav", noise(), RATE)
    cli.main(["encode", f"--codec={khala.codec}", str(tmp_path / "in.wav"), str(tmp_path / "codes.npz")])
    prompts = f"--prompts={khala.prompts}"
    for number, verb in enumerate(
        [
            ("data", "--source=builtin:2?seconds=2"),
            ("decode", f"--codec={khala.codec}", tmp_path / "codes.npz", full / "1" / "out.wav"),
            ("generate", f"--backbone={khala.backbone}", prompts),
            ("evaluate", f"--workdir={khala.codec}", "--seconds=1", "--tracks=1"),
        ]
    ):
        place = full / str(number)
        out = [] if verb[0] == "decode" else [f"--out={place}"]
        line = fails(capsys, *verb, *out)
        assert "the disk is full: " in line and str(place) in line
        left = [path.name for path in place.rglob("*") if path.is_file()]
        assert not [name for name in left if name not in ("plan.json", "made.json", "tmp")], left
        shutil.rmtree(place)


@pytest.mark.slow
def test_a_full_disk_in_training_and_tokenising(khala, full):
    """In processes of their own: the savers' threads must not keep a process that failed from ending."""
    tokenize = ("tokenize", f"--codec={khala.codec}", f"--data={khala.corpus}", f"--out={full / 't'}")
    sizes = {"layers": 1, "width": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "ffn_width": 32}
    model = [f"--config.model.{name}={size}" for name, size in sizes.items()]
    steps = ("--config.train.steps=1", f"--config.data.path={khala.tokens}")
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    for size, verb in (("16k", tokenize), ("128k", train("backbone.py:tiny", full / "w", *steps, *model))):
        subprocess.run(["mount", "-o", f"remount,size={size}", full], check=True)
        command = [sys.executable, "-m", "hiermusic", *map(str, verb)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
        lines = [line for line in done.stderr.splitlines() if line.startswith("hiermusic")]
        assert done.returncode == 1 and len(lines) == 1 and "the disk is full: " in lines[0], done.stderr
        assert "Traceback" not in done.stderr
        shutil.rmtree(full / ("t" if verb is tokenize else "w"))


def test_a_place_that_is_a_file(capsys, khala, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "o"
    soundfile.write(tmp_path / "in.wav", noise(), RATE)
    for verb in (
        ("data", "--source=builtin:1?seconds=2", f"--out={out}"),
        ("encode", f"--codec={khala.codec}", tmp_path / "in.wav", out),
        train("codec.py:tiny", out, "--config.data.path=builtin:1?seconds=2"),
    ):
        assert str(tmp_path / "file") in fails(capsys, *verb)
    assert (tmp_path / "file").read_text() == ""


def test_a_folder_that_may_not_be_written(capsys, tmp_path, monkeypatch):
    """As the system refuses it to everyone but root, as whom tests may run."""

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    line = fails(capsys, "data", "--source=builtin:1?seconds=2", f"--out={tmp_path / 'locked' / 'o'}")
    assert "Permission denied" in line and str(tmp_path / "locked") in line
