"""Any codec's tokens in any order of prediction: the comparison that none of the papers has, at toy size.

    python benchmarks/any_pattern.py --out=out/any_pattern                      # all cells; goes on where it stopped
    python benchmarks/any_pattern.py --out=out/any_pattern --only=khala.delay   # one cell, and the codec it needs
    python benchmarks/any_pattern.py --out=out/any_pattern --table              # what there is

Three codecs learn the same songs: Khala's, SAT, and residual codes by SAT's trunk, which is EnCodec's. Each cell trains
`configs/tokens/lm.py:tiny` on a codec's tokens in one pattern, every cell with the same transformer, rows of as many
positions and as many steps. Where it does not predict held-out tracks better than counting codes does, it is trained
anew with twice the steps, `--rounds` rounds at most, and the table says so if it still does not. Columns:

* bits a second: teacher-forced, of all levels, on held-out tracks, and beside it a unigram's that has counted the codes
  of the training tracks. Figures compare within a codec; over codecs only beside what the codec's own sound is worth;
* steps, train: updates of the last round, and seconds of all rounds, compiling included;
* generate: seconds for `SONGS` songs of one second, greedy, the second time, so without compiling;
* cached: share of the generated tokens that a pass over whole rows, without a cache, finds likeliest too.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from hiermusic import cli, presets
from hiermusic.errors import UserError, write_atomically
from hiermusic.evaluate.by_track import in_memory
from hiermusic.evaluate.tokens import compare
from hiermusic.systems import token_facts, workdir
from hiermusic.systems.lm import models, songs
from hiermusic.systems.requests import Request
from hiermusic.tokens import packets, pattern, sequence
from hiermusic.tokens.prompt import Prompt

LM = "configs/tokens/lm.py:tiny"
CORPUS = "builtin:480?seconds=4-7&styles=pop,dance,ballad,ambient&tempi=71.78,107.67,129.2"
SONGS = 3
TRACKS = 12  # held-out songs that a cell is measured on
PATTERNS = (*pattern.STEPWISE, *pattern.BY_LEVEL)
CODECS = {  # name -> its configuration, and how many levels the token models know
    "khala": (("configs/khala/codec.py:tiny",), 4),
    "sat": (("configs/aar/codec.py:tiny",), 0),
    "encodec": (("configs/aar/codec.py:tiny", "--config.model.quantiser=residual", "--config.model.levels=6"), 0),
}
COLUMNS = ("codec", "pattern", "bits/s", "unigram", "steps", "train, s", "generate, s", "cached", "")


def tokens_of(name: str, out: Path) -> Path:
    """The token records of a codec, which is trained and makes them where they are not there."""
    (config, *settings), _ = CODECS[name]
    codec, tokens = out / name / "codec", out / name / "tokens"
    run("train", f"--config={config}", *settings, f"--workdir={codec}", f"--config.data.path={CORPUS}")
    run("tokenize", f"--codec={codec}", f"--data={CORPUS}", f"--out={tokens}")
    return tokens


def run(*words: str) -> None:
    """A verb of the command line, in this process; done again it finds what it made."""
    cli.main([str(word) for word in words])


def settings_of(name: str, order: str, tokens: Path | None, steps: int, length: int) -> dict:
    """What a cell sets of the token model's preset."""
    set_at = {"model.pattern": order, "model.levels": CODECS[name][1], "model.length": length, "model.text_limit": 64}
    set_at |= {"data.crop": "random", "train.steps": steps, "train.warmup_steps": min(20, steps // 10)}
    set_at |= {f"train.{every}_every": max(steps // 4, 1) for every in ("valid", "checkpoint")}
    return set_at | ({"data.path": str(tokens)} if tokens else {})


def impossible(name: str, order: str, length: int) -> str:
    """Why a codec's tokens cannot be predicted in an order, told before it is trained; empty where they can."""
    (preset, *given), _ = CODECS[name]
    codec = presets.load(preset, dict(word.removeprefix("--config.").split("=") for word in given))
    make = workdir.system(codec).rooms.make_model(codec)
    config = presets.load(LM, settings_of(name, order, None, 1, length))
    config.tokens = ConfigDict(asdict(nnx.eval_shape(lambda: make(nnx.Rngs(0))).facts))
    try:
        models.make_model(config)
        models.visibility(config)
    except UserError as error:
        return str(error)
    return ""


def trained(at: Path, settings: dict) -> float:
    """Trains a cell's model; seconds."""
    start = time.perf_counter()
    run("train", f"--config={LM}", *presets.overrides(settings), f"--workdir={at}", "--noprogress")
    return time.perf_counter() - start


def measured(config: ConfigDict, model) -> dict:
    """Bits a second of a model and of counting, on held-out tracks."""
    measure = workdir.system(config).rooms.cross_entropy
    found = measure(config, model, config.data.path, TRACKS, in_memory, lambda: None)
    *_, total = compare(*found, models.hierarchy(config))
    return {"bits": total["model"], "unigram": total["unigram"]}


def generated(config: ConfigDict, model) -> dict:
    """Seconds to draw songs greedily, the second time, and whether whole rows without a cache agree with them."""
    words = models.tokenizer(config.model)
    requests = [Request(str(seed), Prompt(tags="pop, piano", seconds=1.0), seed) for seed in range(SONGS)]
    greedy = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "guidance": 1.0}
    ready = songs.ready(config, model)
    for _ in range(2):
        start = time.perf_counter()
        samples = songs.draw(requests, config, ready, greedy)
        seconds = time.perf_counter() - start
    agreeing = [
        agreement(config, model, songs.prompt_of(config, words, request), packets.levels_of(sample.codes))
        for request, sample in zip(requests, samples, strict=True)
    ]
    same, of = np.sum(agreeing, axis=0)
    return {"seconds": seconds, "cached": same / max(of, 1), "tokens": int(of)}


def agreement(config: ConfigDict, model, ids: list[int], codes: list[np.ndarray]) -> tuple[int, int]:
    """Of how many tokens that were drawn greedily a whole row says the same, and how many there are."""
    order, tokens = models.pattern_of(config), models.hierarchy(config)
    count = len(codes[0]) // order.slots[0]
    if order.isolated:
        layouts = [pattern.layer_pass([len(codes_T) for codes_T in codes], level) for level in range(len(tokens))]
        prompts = [[*ids[:-1], models.marker(config.model, level)] for level in range(len(tokens))]
    else:
        layouts, prompts = [order.layout(count if order.stepwise else models.window(config))], [ids]
    graphdef, weights = nnx.split(model)
    hidden = jax.jit(
        lambda weights, batch: nnx.merge(graphdef, weights).hidden(batch, visibility=models.visibility(config))
    )
    same = of = 0
    for layout, prompt in zip(layouts, prompts, strict=True):
        filled = [
            np.pad(codes_T, (0, length - len(codes_T)), constant_values=-1)
            for codes_T, length in zip(codes, layout.lengths, strict=True)
        ]
        batch = sequence.stack([sequence.pack(prompt, layout, filled, config.model.length)])
        x_1SD = hidden(weights, batch)
        for level, size in enumerate(tokens.sizes):
            due_S = batch["targets"][0, :, level] >= 0
            if due_S.any():
                best_S = np.asarray(model.level_logits(x_1SD, level))[0, due_S, :size].argmax(-1)
                same, of = same + int((best_S == batch["targets"][0, due_S, level]).sum()), of + int(due_S.sum())
    return same, of


def cell(name: str, order: str, given: argparse.Namespace) -> dict:
    """One cell of the table."""
    if why := impossible(name, order, given.length):
        return {"codec": name, "pattern": order, "why": why}
    tokens, seconds = tokens_of(name, given.out), 0.0
    for turn in range(given.rounds):
        steps = given.steps * 2**turn
        at = given.out / name / f"{order}.{steps}"
        seconds += trained(at, settings_of(name, order, tokens, steps, given.length))
        config, model = workdir.load(at)
        token_facts.check_records(config, str(tokens))
        found = measured(config, model)
        if found["bits"] < found["unigram"]:
            break
    else:
        found["why"] = f"not below counting after {steps} steps, the most it was given"
    return {"codec": name, "pattern": order, "steps": steps, "train": seconds, **found, **generated(config, model)}


def row(found: dict) -> tuple[str, ...]:
    """A cell as the table shows it."""
    if "bits" not in found:
        return (found["codec"], found["pattern"], *["-"] * 6, found["why"])
    numbers = (f"{found['bits']:.0f}", f"{found['unigram']:.0f}", str(found["steps"]), f"{found['train']:.0f}")
    shares = (f"{found['seconds']:.2f}", f"{found['cached']:.2%} of {found['tokens']}")
    return (found["codec"], found["pattern"], *numbers, *shares, found.get("why", ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--only", help="CODEC.PATTERN: one cell")
    parser.add_argument("--steps", type=int, default=150, help="updates of the first round")
    parser.add_argument("--rounds", type=int, default=2, help="each of twice the steps: soon learnt by heart")
    parser.add_argument("--length", type=int, default=640, help="positions of a row")
    parser.add_argument("--table", action="store_true", help="only shows what there is")
    given = parser.parse_args()
    cells = [(name, order) for name in CODECS for order in PATTERNS]
    if given.only:
        cells = [one for one in cells if ".".join(one) == given.only]
        if not cells:
            sys.exit(f"any_pattern: --only={given.only}: there is CODEC.PATTERN of {list(CODECS)} and {list(PATTERNS)}")
    lines = [COLUMNS]
    for name, order in cells:
        kept = given.out / "cells" / f"{name}.{order}.json"
        if not kept.is_file():
            if given.table:
                continue
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, json.dumps(cell(name, order, given), indent=1) + "\n")
        lines.append(row(json.loads(kept.read_text())))
    print("\n".join("| " + " | ".join(line) + " |" for line in (lines[0], ["---"] * len(COLUMNS), *lines[1:])))


if __name__ == "__main__":
    main()
