"""Bad input to AAR, through the command line: one line that says what to do, before anything is made."""

from pathlib import Path

import numpy as np
import pytest

from hiermusic import cli
from hiermusic.audio import files
from hiermusic.data.token_records import TokenSource
from hiermusic.errors import UserError
from hiermusic.systems import workdir
from hiermusic.systems.aar import rows, stages

from ..fakes import write_clip

CONFIGS = Path(__file__).parents[3] / "configs" / "aar"


def fails(capsys, *arguments) -> str:
    """The one line a failing verb leaves on standard error, progress bars aside."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert ending.value.code == 1 and out == "" and "Traceback" not in err
    (line,) = [line for line in err.replace("\r", "\n").splitlines() if line.startswith("hiermusic")]
    return line


def test_a_clip_shorter_than_a_window(capsys, aar, tmp_path):
    clip = write_clip(tmp_path / "short.wav", 0.1)
    line = fails(capsys, "generate", f"--lm={aar.lm}", f"--like={clip}", "--seconds=1", f"--out={tmp_path / 'out'}")
    assert "lasts 0.10 s" in line and "window of 0.25 s" in line and not (tmp_path / "out").exists()
    like = write_clip(tmp_path / "clip.wav")
    common = ("continue", f"--lm={aar.lm}", f"--out={tmp_path / 'out'}")
    line = fails(capsys, *common, f"--like={like}", "--seconds=1", clip)
    assert "short.wav is shorter than a window of 0.25 s" in line and not (tmp_path / "out").exists()
    assert "the audio lasts 2.0 s: ask for more --seconds" in fails(capsys, *common, "--seconds=1.9", like)


def test_no_clip_and_a_vector_where_a_clip_belongs(capsys, aar, tmp_path):
    common = ("generate", f"--lm={aar.lm}", "--seconds=1", f"--out={tmp_path / 'out'}")
    assert "give --like=CLIP.wav" in fails(capsys, *common)
    np.save(tmp_path / "clap.npy", np.zeros(12))
    assert "listens to a clip itself" in fails(capsys, *common, f"--like={tmp_path / 'clap.npy'}")


def test_another_systems_workdir(capsys, aar, khala, tmp_path):
    clip = write_clip(tmp_path / "clip.wav")
    common = ("generate", f"--lm={aar.lm}", f"--like={clip}", "--seconds=1", f"--out={tmp_path / 'out'}")
    assert "is of the system aar" in fails(capsys, *common, "--system=khala")
    assert "--min_share means nothing to the system aar" in fails(capsys, *common, "--min_share=0.5")
    assert "is a codec of the system khala" in fails(capsys, *common, f"--codec={khala.codec}")


@pytest.mark.slow
def test_a_codec_of_another_quantiser(capsys, aar, baseline, tmp_path):
    clip = write_clip(tmp_path / "clip.wav")
    common = ("generate", f"--lm={aar.lm}", f"--like={clip}", "--seconds=1", f"--out={tmp_path / 'out'}")
    assert "(quantiser is residual and not multiscale, " in fails(capsys, *common, f"--codec={baseline.codec}")


def test_a_pattern_for_another_quantiser(capsys, tmp_path):
    for name, pattern, kind in (("lm", "delay", "multiscale"), ("ar_baseline", "next_scale", "residual")):
        train = ("train", f"--config={CONFIGS}/{name}.py:tiny", f"--workdir={tmp_path / 'out'}")
        line = fails(capsys, *train, f"--config.model.pattern={pattern}")
        assert f"model.pattern={pattern} does not go with the tokens of a {kind} quantiser" in line
    assert not (tmp_path / "out").exists()


def test_tokens_of_another_codec(capsys, khala, tmp_path):
    line = fails(
        capsys, "train", f"--config={CONFIGS}/lm.py:tiny", f"--workdir={tmp_path / 'out'}",
        f"--config.data.path={khala.tokens}",
    )  # fmt: skip
    assert "model.pattern=next_scale does not go with the tokens of a residual quantiser" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, words",
    [
        ("--config.model.levels=76", "do not fit a window of 75 frames"),
        ("--config.model.schedule=cubic", "schedule 'cubic' is unknown"),
        ("--config.model.scales=(1, 2, 3)", "model.scales end at 3"),
        ("--config.model.phi=some", "phi is 'some'"),
        ("--config.model.quantiser=lattice", "model.quantiser is 'lattice'"),
        ("--config.train.crop_frames=74", "no multiple of the quantiser's packets"),
    ],
)
def test_a_codec_that_cannot_be(capsys, tmp_path, change, words):
    line = fails(capsys, "train", f"--config={CONFIGS}/codec.py:tiny", f"--workdir={tmp_path / 'out'}", change)
    assert words in line and not (tmp_path / "out").exists()


def test_a_model_that_listens_to_nothing(capsys, tmp_path):
    common = ("train", f"--config={CONFIGS}/lm.py:tiny", f"--workdir={tmp_path / 'out'}")
    assert "model.references=0: a model that listens" in fails(capsys, *common, "--config.model.references=0")


def test_a_codec_of_another_training(aar):
    """One of the same sizes with other codebooks is refused."""
    codec = workdir.load_codec(aar.codec)
    codec.quantiser.codebooks[...] = codec.quantiser.codebooks[...] + 1
    _, model = workdir.load(aar.lm)
    with pytest.raises(UserError, match="other codebooks than LM was trained with"):
        stages.check_codebooks(codec, "SAT", model, "LM")


def _clap_run(at, folder: Path) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """How a model of the miniature's sizes is trained on vectors of 12 numbers, and such vectors of every track."""
    config = workdir.read(at.lm)
    settings = [f"--config.{part}.{name}={value}" for part in ("model", "train") for name, value in config[part].items()
                if not isinstance(value, str) and name not in ("listener", "betas")]  # fmt: skip
    common = ("train", f"--config={CONFIGS}/lm.py:tiny", f"--config.data.path={at.tokens}", "--noprogress", *settings)
    common += ("--config.model.listener=0", "--config.train.batch_size=8", f"--workdir={folder / 'lm'}")
    draw = np.random.default_rng(0)
    tracks = TokenSource(at.tokens).tracks
    return common, {track["id"]: draw.normal(size=(2, 12)).astype(np.float32) for track in tracks}


def test_vectors_that_do_not_do(capsys, aar, tmp_path):
    """All is told before anything is trained: no vectors, none for a track of either split, and one of zeros."""
    common, vectors = _clap_run(aar, tmp_path)
    assert "every track needs a vector" in fails(capsys, *common)
    for split in ("train", "valid"):
        track = TokenSource(aar.tokens, split=split).tracks[-1]["id"]
        np.savez(tmp_path / "some.npz", **{name: value for name, value in vectors.items() if name != track})
        assert f"has no vector of track {track}" in fails(capsys, *common, f"--config.data.clap={tmp_path}/some.npz")
        np.savez(tmp_path / "zero.npz", **vectors | {track: np.zeros(12)})
        assert f"track {track}: a vector of zeros" in fails(capsys, *common, f"--config.data.clap={tmp_path}/zero.npz")
    assert not (tmp_path / "lm").exists()


@pytest.mark.slow
def test_vectors_instead_of_a_listener(capsys, aar, run, tmp_path):
    """CLAP's vectors, of whatever length: trained on, asked for, and named where they are of the wrong size."""
    common, vectors = _clap_run(aar, tmp_path)
    np.savez(tmp_path / "clap.npz", **vectors)
    run(*common, f"--config.data.clap={tmp_path / 'clap.npz'}", "--config.train.steps=2")
    windows = rows.windows(workdir.read(tmp_path / "lm"))
    row = windows.draw(TokenSource(aar.tokens)[0], np.random.default_rng(0))
    assert "reference" not in row and np.linalg.norm(row["cond"]) == pytest.approx(1)
    one = next(iter(vectors.values()))[0]
    ask = ("generate", f"--lm={tmp_path / 'lm'}", "--seconds=0.25")
    for name, vector in (("short", one), ("long", 10 * one)):
        np.save(tmp_path / f"{name}.npy", vector)
        run(*ask, f"--out={tmp_path / name}", f"--like={tmp_path / name}.npy")
    np.testing.assert_array_equal(*(files.read(tmp_path / name / "song.wav")[0] for name in ("short", "long")))
    for vector, words in ((np.zeros(13), "the model takes 12 numbers"), (np.zeros(12), "a vector of zeros")):
        np.save(tmp_path / "bad.npy", vector)
        assert words in fails(capsys, *ask, f"--out={tmp_path / 'out'}", f"--like={tmp_path / 'bad.npy'}")
