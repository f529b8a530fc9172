"""HAFM's demo: everything of it once, small, as a list of verbs."""

from collections.abc import Sequence
from pathlib import Path

from hiermusic.systems.demos import Demo, Step

# three tempi, of which a beat is a whole number of frames of the codec: what minutes of training can learn
CORPUS = "builtin:480?seconds=4-7&styles=pop,dance,ballad,ambient&tempi=75,107.14,125"
TRACKS = 8  # held-out songs that the models are measured on
VOCALS = 24  # of held-out songs that are accompanied
STAGES = {"semantic": "what the accompaniment means", "coarse": "its coarse codes", "fine": "its fine codes"}


def demo(folder: Path, configs: Path) -> Demo:
    """Everything of HAFM at toy size.

    Args:
      folder: for everything the demo makes.
      configs: the folder of the configuration files.
    """
    return Demo(
        title="HAFM",
        intro="Three token models in a chain, at toy size, trained in minutes on songs that the package composed and "
        "rendered itself: from what a vocal means to what its accompaniment means, from both to coarse codes, from "
        "these to fine ones. Meaning is told by clusters of pitch classes, which know harmony and no words, and sound "
        "by a codec of the package's own that hears accompaniments alone.",
        files={},
        steps=_steps(folder, configs),
        songs={},
        accompanied={"accompanied": "Held-out vocals"},
        runs={"codec": "The codec", **{name: f"The model of {words}" for name, words in STAGES.items()}},
    )


def _steps(folder: Path, configs: Path) -> Sequence[Step]:
    at = {name: str(folder / name) for name in ("corpus", "codec", "meaning", "tokens", *STAGES)}
    corpus = f"--config.data.path={at['corpus']}"
    codec = ["train", f"--config={configs / 'khala' / 'codec.py:tiny'}", f"--workdir={at['codec']}", corpus]
    codec += ["--config.data.stems=('instrumental',)", "--config.model.sample_rate=16000", "--config.model.levels=8"]
    codec += ["--config.model.strides=(4,5)", "--config.train.crop_frames=24"]
    meaning = ["train", f"--config={configs / 'tokens' / 'semantic.py:chroma'}", f"--workdir={at['meaning']}", corpus]
    meaning += ["--config.data.stems=('vocals','instrumental')"]
    streams = {"vocals/semantic": "meaning", "instrumental/semantic": "meaning", "instrumental/codes": "codec"}
    records = ["--sample_rate=16000", "--channels=1", "--stems=mix,vocals,instrumental", "--sounding=vocals"]
    steps = [
        Step("corpus", "compose and render songs", ["data", f"--source={CORPUS}", f"--out={at['corpus']}", *records]),
        Step("codec", "train the codec", codec),
        Step("meaning", "find clusters of pitch classes", meaning),
        Step(
            "tokens",
            "turn stems into tokens",
            ["tokenize", *(f"--stream={name}:{at[maker]}" for name, maker in streams.items()),
             "--vocal_noise=0.01", f"--data={at['corpus']}", f"--out={at['tokens']}"],
        ),
        Step("evaluate codec", "measure the codec", ["evaluate", f"--workdir={at['codec']}", f"--tracks={TRACKS}"]),
    ]  # fmt: skip
    for name, words in STAGES.items():
        config = [f"--config={configs / 'hafm' / f'{name}.py:tiny'}", f"--workdir={at[name]}"]
        steps += [
            Step(name, f"train the model of {words}", ["train", *config, f"--config.data.path={at['tokens']}"]),
            Step(f"evaluate {name}", "measure it", ["evaluate", f"--workdir={at[name]}", f"--tracks={TRACKS}"]),
        ]
    held_out = [f"--data={at['corpus']}", f"--tracks={VOCALS}"]
    play = ["accompany", f"--workdir={folder}", *held_out, f"--out={folder / 'accompanied'}"]
    return [*steps, Step("accompanied", "accompany held-out vocals", play)]
