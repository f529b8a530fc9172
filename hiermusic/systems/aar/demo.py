"""AAR's demo: corpus, SAT and the model over its tokens, the baseline and its codec, and music like a held-out clip."""

from collections.abc import Sequence
from pathlib import Path

from hiermusic.systems.demos import Demo, Step

CORPUS = "builtin:160?seconds=5-8&styles=pop,dance,ballad,ambient"
SECONDS = 6
TRACKS = 8  # held-out songs that the models are measured on
RUNS = {"sat": "codec", "aar": "lm", "rvq": "codec", "ar": "ar_baseline"}


def demo(folder: Path, configs: Path) -> Demo:
    """Everything of AAR at toy size.

    Args:
      folder: for everything the demo makes.
      configs: the folder of the configuration files.
    """
    return Demo(
        title="hiermusic demo: AAR",
        intro="A multi-scale tokenizer and next-scale prediction at toy size beside residual codes and next-token "
        "prediction, trained in minutes on songs that the package composed and rendered itself. What you hear shows "
        "that every part works, not what the design can do at scale.",
        files={},
        steps=_steps(folder, configs / "aar"),
        songs={"songs": "AAR, next scale", "ar-songs": "The baseline, next token"},
        runs={"sat": "SAT", "aar": "AAR", "rvq": "The baseline's codec", "ar": "The baseline"},
    )


def _steps(folder: Path, configs: Path) -> Sequence[Step]:
    at = {name: str(folder / name) for name in ("corpus", *RUNS, "sat-tokens", "rvq-tokens", "songs", "ar-songs")}
    config = {name: f"--config={configs / stage}.py:tiny" for name, stage in RUNS.items()}
    clip = f"--like={folder / 'sat' / 'evaluation' / 'sounds' / 'clip-truth.wav'}"
    residual = ("--config.model.quantiser=residual", "--config.model.levels=6")

    def train(name: str, words: str, data: str, *more: str) -> Step:
        return Step(name, words, ("train", config[name], f"--workdir={at[name]}", f"--config.data.path={data}", *more))

    def tokens(codec: str) -> Step:
        out = at[f"{codec}-tokens"]
        arguments = ("tokenize", f"--codec={at[codec]}", f"--data={at['corpus']}", f"--out={out}")
        return Step(f"{codec} tokens", f"turn the songs into tokens of {codec}", arguments)

    def measure(name: str) -> Step:
        return Step(f"evaluate {name}", f"measure {name}", ("evaluate", f"--workdir={at[name]}", f"--tracks={TRACKS}"))

    def music(lm: str, out: str) -> Step:
        rest = (clip, f"--seconds={SECONDS}", f"--out={at[out]}")
        return Step(out, f"make music with {lm}", ("generate", "--system=aar", f"--lm={at[lm]}", *rest))

    def judge(songs: str) -> Step:
        arguments = ("evaluate", f"--songs={at[songs]}", f"--data={at['corpus']}")
        return Step(f"evaluate {songs}", f"measure {songs}", arguments)

    return [
        Step(
            "corpus",
            "compose and render songs",
            ("data", f"--source={CORPUS}", f"--out={at['corpus']}", "--sample_rate=24000", "--channels=1"),
        ),
        train("sat", "train SAT", at["corpus"]),
        measure("sat"),
        tokens("sat"),
        train("aar", "train AAR", at["sat-tokens"]),
        music("aar", "songs"),
        judge("songs"),
        measure("aar"),
        train("rvq", "train the baseline's codec", at["corpus"], *residual),
        measure("rvq"),
        tokens("rvq"),
        train("ar", "train the baseline", at["rvq-tokens"]),
        music("ar", "ar-songs"),
        judge("ar-songs"),
        measure("ar"),
    ]
