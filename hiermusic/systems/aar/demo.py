"""AAR's demo: corpus, SAT and the model over its tokens, the baseline and its codec, and music like a held-out clip."""

import json
from collections.abc import Sequence
from pathlib import Path

from hiermusic.demo.runner import Demo, Step, reconstructions, results
from hiermusic.evaluate import report, sections

CORPUS = "builtin:160?seconds=5-8&styles=pop,dance,ballad,ambient"
SECONDS = 6
TRACKS = 12  # held-out songs that the models are measured on
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
        runs=tuple(RUNS),
        chapters=lambda: _chapters(folder),
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


def _chapters(folder: Path) -> list[report.Section]:
    found = results(folder, *RUNS, "songs", "ar-songs")
    curves = {name: folder / name / "metrics.jsonl" for name in RUNS}
    truth = folder / "sat" / "evaluation" / "sounds" / "clip-truth.wav"
    players = [
        report.Player("the clip", truth),
        report.Player("AAR, next scale", folder / "songs" / "song.wav"),
        report.Player("baseline, next token", folder / "ar-songs" / "song.wav"),
    ]
    song = json.loads((folder / "songs" / "song.json").read_text())
    facts = {"length, s": song["seconds"], "sampling": song["sampling"]["lm"], "sounds like": "a held-out song"}
    return [
        sections.song("Music that should sound like a clip", facts, players, found["songs"]["verdict"]),
        sections.music(found["songs"], "How far from music: AAR"),
        sections.music(found["ar-songs"], "How far from music: the baseline"),
        report.Section("SAT on a held-out song", items=reconstructions(folder / "sat")),
        sections.reconstruction(found["sat"], found["sat"]["baselines"], "SAT"),
        sections.rebuilt_music(found["sat"], "Music in what SAT rebuilds"),
        sections.reconstruction(found["rvq"], None, "Residual codes of the same trunk"),
        sections.code_use(found["sat"], "Use of SAT's codes"),
        sections.training(curves),
        sections.predictability(found["aar"]["predictability"], "Predicting scales"),
        sections.predictability(found["ar"]["predictability"], "Predicting residual codes"),
    ]
