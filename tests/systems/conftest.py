"""One trained miniature of each system for all tests of this room: a few steps of every stage by the command line."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hiermusic import cli
from hiermusic.data import pipeline

CONFIGS = Path(__file__).parents[2] / "configs" / "khala"
CODEC = (
    "--config.model.strides=(8, 4)",
    "--config.model.dilations=(1,)",
    "--config.model.encoder_width=2",
    "--config.model.decoder_width=16",
    "--config.model.latent=8",
    "--config.model.levels=6",
    "--config.model.codes=16",
    "--config.discriminator.fft_sizes=(206,)",
    "--config.discriminator.filters=2",
    "--config.model.quantiser_dropout=low_biased",
    "--config.loss.mel=0.0",
    "--config.loss.adversarial=0.1",
    "--config.loss.feature=0.1",
    "--config.train.crop_frames=8",
    "--config.train.batch_size=2",
    "--config.train.steps=4",
    "--config.train.quantise_start=0",
    "--config.train.adversarial_start=0",  # one program for all steps
    "--config.train.warmup_steps=2",
    "--config.train.valid_every=4",
    "--config.train.valid_batches=1",
)
RECORDS = ("--sample_rate=22050", "--channels=1")
AAR = CONFIGS.parent / "aar"
WINDOW = "--config.model.window=50"
SAT = (
    "--config.model.sample_rate=4000",
    "--config.model.fold=2",
    "--config.model.strides=(2, 5)",
    WINDOW,
    "--config.model.width=2",
    "--config.model.latent=8",
    "--config.model.code_latent=6",
    "--config.model.levels=4",
    "--config.model.phi_count=2",
    "--config.model.codes=16",
    "--config.loss.adversarial=0.1",
    "--config.discriminator.fft_sizes=(64,)",
    "--config.discriminator.filters=2",
    "--config.loss.mel_windows=(64,)",
    "--config.train.crop_frames=50",
    "--config.train.batch_size=2",
    "--config.train.steps=4",
    "--config.train.quantise_start=0",
    "--config.train.adversarial_start=0",  # one program for all steps
    "--config.train.discriminator_updates=(1, 1)",
    "--config.train.warmup_steps=2",
    "--config.train.valid_every=4",
    "--config.train.valid_batches=1",
)
# without a discriminator, which the multi-scale codec has and which takes time to compile
RESIDUAL = ("--config.model.quantiser=residual", "--config.model.levels=3", "--config.loss.adversarial=0.0")
PRIOR = (
    "--config.model.depth=1",
    "--config.model.cond=12",
    "--config.model.listener=8",
    "--config.model.references=2",
    "--config.train.batch_size=2",
    "--config.train.steps=4",
    "--config.train.warmup_steps=2",
    "--config.train.valid_every=4",
    "--config.train.valid_batches=1",
)
TOKEN_LM = (
    "--config.model.layers=2",
    "--config.model.width=16",
    "--config.model.heads=2",
    "--config.model.kv_heads=1",
    "--config.model.head_dim=8",
    "--config.model.ffn_width=32",
    "--config.train.batch_size=2",
    "--config.train.steps=4",
    "--config.train.warmup_steps=2",
    "--config.train.valid_every=4",
    "--config.train.valid_batches=1",
)


WORK = """import gc, json, sys
from hiermusic import cli
gc.set_threshold(100_000, 10, 10)  # as in these tests' own process
for words in json.loads(sys.argv[1]):
    cli.main(words)
"""


@pytest.fixture(scope="session")
def run():
    """Runs one verb in this process."""
    return lambda *arguments: cli.main([str(argument) for argument in arguments])


@pytest.fixture
def asked(monkeypatch):
    """What was asked of the pipeline, whose tracks are long and tell which batch and row they are of."""
    from .fakes import Batches  # not above: tests/scale reads this file by its path
    from .lm.tracks import track

    calls = []

    def example_batches(path, split, seed, levels, batch_size, rows):
        calls.append((path, split, seed, levels, batch_size, tuple(rows)))
        return Batches(lambda index: [track(200, levels.stop, first=100 * index + row) for row in rows], 3)

    monkeypatch.setattr(pipeline, "example_batches", example_batches)
    return calls


@pytest.fixture(scope="session")
def miniature():
    """Stage -> the configuration of its miniature, as arguments."""
    sizes = {"codec": CODEC, "backbone": TOKEN_LM, "superres": TOKEN_LM}
    return lambda stage: (f"--config={CONFIGS}/{stage}.py:tiny", *sizes[stage])


def one_device() -> dict[str, str]:
    """The environment of a process with one device, as a newcomer has it."""
    return os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=1")}


def work(*commands) -> None:
    """Verbs one after another in a process of their own, on one device."""
    words = [[str(argument) for argument in command] for command in commands]
    subprocess.run([sys.executable, "-c", WORK, json.dumps(words)], env=one_device(), check=True)


@pytest.fixture(scope="session")
def khala(tmp_path_factory) -> SimpleNamespace:
    """Workdirs and records of a miniature trained for four steps a stage; no test may change them."""
    names = ("corpus", "codec", "tokens", "backbone", "superres")
    return shared(tmp_path_factory, "khala", names, make)


@pytest.fixture(scope="session")
def narrow(tmp_path_factory) -> Path:
    """Audio records at 4,000 Hz, for all miniatures but Khala's; no test may change them."""

    def make(at):
        records = ("--valid_fraction=0.4", "--sample_rate=4000", "--channels=1")
        cli.main(["data", "--source=builtin:5?seconds=3-4", f"--out={at.corpus}", *records])

    return shared(tmp_path_factory, "narrow", ("corpus",), make).corpus


@pytest.fixture(scope="session")
def aar(tmp_path_factory, narrow) -> SimpleNamespace:
    """Workdirs and records of a miniature of SAT and AAR; no test may change them."""
    return shared_aar(tmp_path_factory, narrow, "aar", "lm", (), ("--config.model.context=10",))


@pytest.fixture(scope="session")
def baseline(tmp_path_factory, narrow) -> SimpleNamespace:
    """The same of AAR's baseline: residual codes and a model of one token after another."""
    return shared_aar(tmp_path_factory, narrow, "baseline", "ar_baseline", RESIDUAL, (WINDOW,))


def shared(tmp_path_factory, name: str, places: tuple[str, ...], make) -> SimpleNamespace:
    """A miniature, or what one is made of, that all workers share: whoever comes first makes it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    root = root / name
    at = SimpleNamespace(root=root, prompts=root / "prompts.jsonl", **{place: root / place for place in places})
    try:
        root.mkdir()
    except FileExistsError:
        while not (root / "done").exists():
            assert not (root / "failed").exists(), "the miniature could not be trained; see the other worker"
            time.sleep(1)
        return at
    try:
        make(at)
    except BaseException:
        (root / "failed").touch()
        raise
    (root / "done").touch()
    return at


def make(at: SimpleNamespace) -> None:
    """Trains every stage of the miniature."""
    tokens = (f"--config.data.path={at.tokens}", "--noprogress", *TOKEN_LM)
    corpus = (f"--config.data.path={at.corpus}", "--noprogress", *CODEC)
    fine = f"--config.init_from={at.backbone}"
    work(
        ("data", "--source=builtin:5?seconds=3-4", f"--out={at.corpus}", "--valid_fraction=0.4", *RECORDS),
        ("train", f"--config={CONFIGS}/codec.py:tiny", f"--workdir={at.codec}", *corpus),
        ("tokenize", f"--codec={at.codec}", f"--data={at.corpus}", f"--out={at.tokens}"),
        ("train", f"--config={CONFIGS}/backbone.py:tiny", f"--workdir={at.backbone}", *tokens),
        ("train", f"--config={CONFIGS}/superres.py:tiny", f"--workdir={at.superres}", *tokens, fine),
    )
    prompts = [
        {"name": "one", "tags": "slow, piano", "lyrics": "la la\nlu", "seconds": 1.5, "seed": 3},
        {"name": "two", "tags": "fast", "instrumental": True, "seconds": 1.0, "seed": 4},
    ]
    at.prompts.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))


def shared_aar(
    tmp_path_factory, corpus: Path, name: str, stage: str, quantiser: tuple[str, ...], model: tuple[str, ...]
) -> SimpleNamespace:
    """A codec of configs/aar and the model of its tokens, both trained for a few steps."""

    def make(at):
        audio, tokens = (f"--config.data.path={place}" for place in (corpus, at.tokens))
        codec = (f"--config={AAR}/codec.py:tiny", audio, "--noprogress", *SAT, *quantiser)
        work(
            ("train", f"--workdir={at.codec}", *codec),
            ("tokenize", f"--codec={at.codec}", f"--data={corpus}", f"--out={at.tokens}"),
            ("train", f"--config={AAR}/{stage}.py:tiny", f"--workdir={at.lm}", tokens, "--noprogress", *PRIOR, *model),
        )

    at = shared(tmp_path_factory, name, ("codec", "tokens", "lm"), make)
    at.corpus = corpus
    return at
