"""Khala's demo: corpus, codec, tokens, two token models and three songs."""

import json
from collections.abc import Sequence
from pathlib import Path

from hiermusic.systems.demos import Demo, Step

# three tempi, of which a beat is a whole number of frames: what minutes of training can learn
CORPUS = "builtin:480?seconds=4-7&styles=pop,dance,ballad,ambient&tempi=71.78,107.67,129.2"
TRACKS = 6  # held-out songs that the models are measured on
PROMPTS = (
    {
        "name": "slow-ballad",
        "tags": "ballad, slow, 72 bpm, sad, piano, strings, drums, female voice",
        "lyrics": "[Verse]\nthe river and my open sea\na morning over you and me",
        "seconds": 7,
        "seed": 1,
    },
    {
        "name": "fast-dance",
        "tags": "dance, fast, 129 bpm, happy, synth, strings, drums, male voice",
        "lyrics": "[Verse]\nthe golden light is never far\nand I remember where you are",
        "seconds": 5,
        "seed": 2,
    },
    {
        "name": "instrumental",
        "tags": "pop, medium tempo, 108 bpm, happy, piano, strings, synth lead, drums, instrumental",
        "instrumental": True,
        "seconds": 6,
        "seed": 3,
    },
)


def demo(folder: Path, configs: Path) -> Demo:
    """Everything of Khala at toy size.

    Args:
      folder: for everything the demo makes.
      configs: the folder of the configuration files.
    """
    return Demo(
        title="hiermusic demo",
        intro="Khala's three models at toy size, trained in minutes on songs that the package composed and rendered "
        "itself. What you hear shows that every part works, not what the design can do at scale.",
        files={"prompts.jsonl": "".join(json.dumps(prompt) + "\n" for prompt in PROMPTS)},
        steps=_steps(folder, configs / "khala"),
        songs={"songs": "Songs"},
        runs={"codec": "The codec", "backbone": "The backbone", "superres": "Super-resolution"},
    )


def _steps(folder: Path, configs: Path) -> Sequence[Step]:
    at = {name: str(folder / name) for name in ("corpus", "codec", "tokens", "backbone", "superres", "songs")}
    config = {name: f"--config={configs / name}.py:tiny" for name in ("codec", "backbone", "superres")}
    tokens = f"--config.data.path={at['tokens']}"
    return [
        Step(
            "corpus",
            "compose and render songs",
            ["data", f"--source={CORPUS}", f"--out={at['corpus']}", "--sample_rate=22050", "--channels=1"],
        ),
        Step(
            "codec",
            "train the codec",
            ["train", config["codec"], f"--workdir={at['codec']}", f"--config.data.path={at['corpus']}"],
        ),
        Step(
            "tokens",
            "turn the songs into tokens",
            ["tokenize", f"--codec={at['codec']}", f"--data={at['corpus']}", f"--out={at['tokens']}"],
        ),
        Step("backbone", "train the backbone", ["train", config["backbone"], f"--workdir={at['backbone']}", tokens]),
        Step(
            "superres",
            "train super-resolution",
            [
                "train",
                config["superres"],
                f"--workdir={at['superres']}",
                tokens,
                f"--config.init_from={at['backbone']}",
            ],
        ),
        Step(
            "songs",
            "generate three songs",
            [
                "generate",
                f"--superres={at['superres']}",
                f"--prompts={folder / 'prompts.jsonl'}",
                f"--out={at['songs']}",
                "--backbone_too",
            ],
        ),
        Step("evaluate songs", "measure the songs", ["evaluate", f"--songs={at['songs']}", f"--data={at['corpus']}"]),
        *(
            Step(f"evaluate {name}", f"measure the {name}", ["evaluate", f"--workdir={at[name]}", f"--tracks={TRACKS}"])
            for name in ("codec", "backbone", "superres")
        ),
    ]
