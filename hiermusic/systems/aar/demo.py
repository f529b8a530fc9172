"""AAR's demo: corpus, SAT, the model over its tokens, and music like a held-out clip."""

from collections.abc import Sequence
from pathlib import Path

from hiermusic.systems.demos import Demo, Step

CORPUS = "builtin:160?seconds=5-8&styles=pop,dance,ballad,ambient"
SECONDS = 6
TRACKS = 8  # held-out songs that the models are measured on


def demo(folder: Path, configs: Path) -> Demo:
    """Everything of AAR at toy size.

    Args:
      folder: for everything the demo makes.
      configs: the folder of the configuration files.
    """
    return Demo(
        title="hiermusic demo: AAR",
        intro="A multi-scale tokenizer and next-scale prediction at toy size, trained in minutes on songs that the "
        "package composed and rendered itself. What you hear shows that every part works, not what the design can do "
        "at scale.",
        files={},
        steps=_steps(folder, configs / "aar"),
        songs={"songs": "AAR, next scale"},
        runs={"sat": "SAT", "aar": "AAR"},
    )


def _steps(folder: Path, configs: Path) -> Sequence[Step]:
    at = {name: str(folder / name) for name in ("corpus", "sat", "sat-tokens", "aar", "songs")}
    clip = f"--like={folder / 'sat' / 'evaluation' / 'sounds' / 'clip-truth.wav'}"

    def train(name: str, words: str, stage: str, data: str) -> Step:
        config = f"--config={configs / stage}.py:tiny"
        return Step(name, words, ("train", config, f"--workdir={at[name]}", f"--config.data.path={at[data]}"))

    def measure(name: str, words: str) -> Step:
        return Step(f"evaluate {name}", words, ("evaluate", f"--workdir={at[name]}", f"--tracks={TRACKS}"))

    return [
        Step(
            "corpus",
            "compose and render songs",
            ("data", f"--source={CORPUS}", f"--out={at['corpus']}", "--sample_rate=24000", "--channels=1"),
        ),
        train("sat", "train SAT", "codec", "corpus"),
        measure("sat", "measure SAT"),
        Step(
            "sat tokens",
            "turn the songs into tokens",
            ("tokenize", f"--codec={at['sat']}", f"--data={at['corpus']}", f"--out={at['sat-tokens']}"),
        ),
        train("aar", "train AAR", "lm", "sat-tokens"),
        Step(
            "songs",
            "make music with AAR",
            ("generate", "--system=aar", f"--lm={at['aar']}", clip, f"--seconds={SECONDS}", f"--out={at['songs']}"),
        ),
        Step("evaluate songs", "measure the music", ("evaluate", f"--songs={at['songs']}", f"--data={at['corpus']}")),
        measure("aar", "measure AAR"),
    ]
