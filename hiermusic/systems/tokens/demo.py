"""The demo of token models: one codec's tokens, learnt in three orders of prediction."""

from pathlib import Path

from hiermusic.systems.demos import Demo, Step

CORPUS = "builtin:120?seconds=4-7"
ORDERS = {"flatten": "frame by frame", "delay": "each level a frame later", "level_major": "level by level"}
SECONDS = 5
TRACKS = 8  # held-out songs that the models are measured on


def demo(folder: Path, configs: Path) -> Demo:
    """One codec and three models of its first levels at toy size.

    Args:
      folder: for everything the demo makes.
      configs: the folder of the configuration files.
    """
    at = {name: str(folder / name) for name in ("corpus", "codec", "tokens", *ORDERS)}
    tokens = f"--config.data.path={at['tokens']}"
    codec = f"--config={configs / 'khala' / 'codec.py:tiny'}"
    corpus = ["data", f"--source={CORPUS}", f"--out={at['corpus']}", "--sample_rate=22050", "--channels=1"]
    steps = [
        Step("corpus", "compose and render songs", corpus),
        Step(
            "codec",
            "train the codec",
            ["train", codec, f"--workdir={at['codec']}", f"--config.data.path={at['corpus']}"],
        ),
        Step(
            "tokens",
            "turn the songs into tokens",
            ["tokenize", f"--codec={at['codec']}", f"--data={at['corpus']}", f"--out={at['tokens']}"],
        ),
        Step("evaluate codec", "measure the codec", ["evaluate", f"--workdir={at['codec']}", f"--tracks={TRACKS}"]),
    ]
    for name, words in ORDERS.items():
        config = [f"--config={configs / 'tokens' / 'lm.py:tiny'}", f"--config.model.pattern={name}"]
        song = ["generate", f"--lm={at[name]}", "--tags=pop, piano", f"--seconds={SECONDS}"]
        made = f"--songs={folder / 'songs' / name}"
        steps += [
            Step(name, f"train a model that goes {words}", ["train", *config, f"--workdir={at[name]}", tokens]),
            Step(f"evaluate {name}", f"measure {name}", ["evaluate", f"--workdir={at[name]}", f"--tracks={TRACKS}"]),
            Step(f"{name} song", f"a song {words}", [*song, f"--out={folder / 'songs' / name}"]),
            Step(f"evaluate {name} song", "measure the song", ["evaluate", made, f"--data={at['corpus']}"]),
        ]
    return Demo(
        title="Orders of prediction",
        intro="One codec's tokens, learnt in three orders of prediction by the same transformer at toy size. What you "
        "hear shows that every order works; nats a token can be compared, as all models predict the same codes.",
        files={},
        steps=steps,
        songs={f"songs/{name}": f"A song {words}" for name, words in ORDERS.items()},
        runs={"codec": "The codec", **{name: f"Trained {words}" for name, words in ORDERS.items()}},
    )
