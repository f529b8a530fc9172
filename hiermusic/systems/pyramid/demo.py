"""PyramidCodec's demo: corpus, codec, tokens, language model, songs after each level, a continuation, three minutes."""

import json
from collections.abc import Sequence
from pathlib import Path

from hiermusic.systems.demos import Demo, Step

# three tempi, of which a beat is a whole number of tokens of the middle level: what minutes of training can learn
CORPUS = "builtin:480?seconds=4-7&styles=pop,dance,ballad,ambient&tempi=71.78,107.67,129.2"
TRACKS = 12  # held-out songs that the models are measured on
LONG, CONTINUED = 180, 12  # seconds
PROMPTS = (
    {"name": "slow-ballad", "tags": "ballad, slow, 72 bpm, sad, piano, strings, drums", "seconds": 7, "seed": 1},
    {"name": "fast-dance", "tags": "dance, fast, 129 bpm, happy, synth, strings, drums", "seconds": 5, "seed": 2},
    {"name": "instrumental", "tags": "pop, medium tempo, 108 bpm, happy, piano, strings, synth lead, drums, "
     "instrumental", "instrumental": True, "seconds": 6, "seed": 3},
)  # fmt: skip
SONGS = {"songs": "Songs", "continued": "Gone on from a held-out song", "long": "Three minutes"}


def demo(folder: Path, configs: Path) -> Demo:
    """Everything of PyramidCodec at toy size.

    Args:
      folder: for everything the demo makes.
      configs: the folder of the configuration files.
    """
    return Demo(
        title="PyramidCodec",
        intro="A codec of three levels and a language model that makes the whole coarse level, then the next, at toy "
        "size, trained in minutes on songs that the package composed and rendered itself. Each song can be heard after "
        "its first level, after two and after all; the spectra show what each adds, as the paper's Figure 3.",
        files={"prompts.jsonl": "".join(json.dumps(prompt) + "\n" for prompt in PROMPTS)},
        steps=_steps(folder, configs / "pyramid"),
        songs=SONGS,
        runs={"codec": "The codec", "lm": "The language model"},
    )


def _steps(folder: Path, configs: Path) -> Sequence[Step]:
    at = {name: str(folder / name) for name in ("corpus", "codec", "tokens", "lm", *SONGS)}
    records = ["--sample_rate=22050", "--channels=1"]
    model, tags = f"--lm={at['lm']}", f"--tags={PROMPTS[1]['tags']}"
    heard = str(folder / "codec" / "evaluation" / "sounds" / "clip-truth.wav")
    corpus, tokens = (f"--config.data.path={at[name]}" for name in ("corpus", "tokens"))
    return [
        Step("corpus", "compose and render songs", ["data", f"--source={CORPUS}", f"--out={at['corpus']}", *records]),
        Step(
            "codec",
            "train the codec",
            ["train", f"--config={configs / 'codec.py:tiny'}", f"--workdir={at['codec']}", corpus],
        ),
        Step(
            "tokens",
            "turn the songs into tokens",
            ["tokenize", f"--codec={at['codec']}", f"--data={at['corpus']}", f"--out={at['tokens']}", "--split_at=3"],
        ),
        Step("evaluate codec", "measure the codec", ["evaluate", f"--workdir={at['codec']}", f"--tracks={TRACKS}"]),
        Step(
            "lm",
            "train the language model",
            ["train", f"--config={configs / 'lm.py:tiny'}", f"--workdir={at['lm']}", tokens],
        ),
        Step("evaluate lm", "measure it", ["evaluate", f"--workdir={at['lm']}", f"--tracks={TRACKS}"]),
        Step(
            "songs",
            "generate three songs, after each level",
            ["generate", model, f"--prompts={folder / 'prompts.jsonl'}", f"--out={at['songs']}", "--levels_too"],
        ),
        Step(
            "continued",
            "go on from a held-out song",
            ["continue", model, tags, f"--seconds={CONTINUED}", "--seed=4", f"--out={at['continued']}", heard],
        ),
        Step(
            "long",
            "generate three minutes",
            ["generate", model, tags, f"--seconds={LONG}", "--seed=5", f"--out={at['long']}"],
        ),
        *(
            Step(f"evaluate {name}", f"measure: {words}", ["evaluate", f"--songs={at[name]}", f"--data={at['corpus']}"])
            for name, words in SONGS.items()
        ),
    ]
