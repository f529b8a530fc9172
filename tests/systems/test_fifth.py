"""A fifth system is a folder, its configurations and a line in the catalogue: `toy/`, from training to a model card."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hiermusic import cli
from hiermusic.data.audio_records import write_audio
from hiermusic.data.tokenise import tokenise
from hiermusic.data.tracks import Track
from hiermusic.systems import catalogue
from hiermusic.tokens.hierarchy import Hierarchy

from .toy import SYSTEM

CONFIG = f"{Path(__file__).parent}/toy/chain.py:tiny"
RATE, CODES = 1000, 4


def steps(seed: int) -> np.ndarray:
    """A second in which each of four levels is mostly followed by the next."""
    moves_L = np.random.default_rng(seed).random(RATE) < 0.9
    return ((np.cumsum(moves_L) % CODES)[:, None] / CODES - 0.5).astype(np.float32)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    names = [f"t{number}" for number in range(10)]
    tracks = [Track(name, lambda seed=seed: (steps(seed), RATE, {})) for seed, name in enumerate(names)]
    write_audio(tracks, folder / "audio", RATE, 1, segment_seconds=1.0, valid_fraction=0.3)
    hierarchy = Hierarchy.uniform(1, RATE, CODES)

    def encode(wav_LC: np.ndarray) -> np.ndarray:
        return np.clip(np.round((wav_LC + 0.5) * CODES), 0, CODES - 1).astype(np.int64)

    tokenise(partial(map, encode), folder / "audio", folder / "tokens", hierarchy, 1, "none@0", progress=False)
    return folder / "tokens"


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """The line in the catalogue."""
    systems = catalogue.systems()
    monkeypatch.setattr(catalogue, "systems", lambda: systems | {SYSTEM.name: SYSTEM})


def test_it_goes_through_every_verb(tokens, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train = ["train", f"--config={CONFIG}", "--workdir=run", f"--config.data.path={tokens}", "--noprogress"]
    cli.main([*train, "--config.train.steps=20"])
    Path("elsewhere").mkdir()
    cli.main([*train, "--config.data.seeds=elsewhere"])  # what the system says may change does
    assert json.loads(Path("run/config.json").read_text())["data"]["seeds"] == str(tmp_path / "elsewhere")
    capsys.readouterr()
    cli.main(["inspect", "--workdir=run", "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (told["system"], told["params"]["follows"], told["checkpoint"]["step"]) == ("toy", CODES**2, 40)

    cli.main(["evaluate", "--workdir=run", "--json"])
    row = json.loads(capsys.readouterr().out)["predictability"][0]
    assert row["model"] < 0.6 < 1.9 < row["unigram"] <= row["uniform"] + 0.1
    assert Path("run/evaluation/report.html").is_file()

    cli.main(["generate", "--chain=run", "--seconds=0.5", "--seed=3", "--temperature=0.5", "--echo", "--out=songs"])
    song = json.loads(Path("songs/song.json").read_text())
    assert song["sampling"] == {"chain": {"temperature": 0.5}} and song["seed"] == 3
    wav_L, back_L = (soundfile.read(f"songs/song{version}.wav")[0] for version in ("", ".echo"))
    moves_L = np.diff(np.round((wav_L + 0.5) * CODES)) % CODES
    assert len(wav_L) == 500 and np.mean(moves_L == 1) > 0.9  # as it learnt
    np.testing.assert_array_equal(back_L, wav_L[::-1])

    cli.main(["export", "--workdir=run", "--out=card"])
    assert SYSTEM.uses["chain"] in Path("card/README.md").read_text()


def test_help_and_refusals_know_it(tokens, tmp_path, capsys):
    cli.main(["generate", "-h", "--system=toy"])
    out = capsys.readouterr().out
    assert "--chain " in out and "--superres " not in out and SYSTEM.examples["generate"] in out
    (tmp_path / "p.jsonl").write_text('{"name": "a.echo", "seconds": 1}\n')
    config = {"system": "toy", "stage": "choir", "model": {}, "train": {"batch_size": 1}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for words, told in (
        ([f"--prompts={tmp_path}/p.jsonl"], "the name 'a.echo' is kept for the echo's own sound"),
        (["--seconds=1"], f"{tmp_path}/config.json is of the stage 'choir'; toy has chain"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["generate", f"--chain={tmp_path}", f"--out={tmp_path}/songs", *words])
        assert told in capsys.readouterr().err
