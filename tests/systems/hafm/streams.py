"""Streams of tokens in which the accompaniment follows the vocal, and small stages that read them."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from hiermusic.data.token_records import write_tokens
from hiermusic.systems.hafm import songs
from hiermusic.systems.hafm.models import make_model
from hiermusic.systems.lm import songs as drawing
from hiermusic.tokens.facts import TokenFacts

from ..fakes import configuration

MEANING = TokenFacts(16_000, 320, "residual", 1, 12, 8)
SOUND = TokenFacts(16_000, 640, "residual", 4, 16, 8)  # 25 frames a second
STREAMS = {"vocals/semantic": MEANING, "instrumental/semantic": MEANING, "instrumental/codes": SOUND}
SMALL = {"layers": 1, "width": 16, "heads": 2, "kv_heads": 2, "head_dim": 8, "ffn_width": 32}
LENGTHS = {"semantic": 60, "coarse": 90, "fine": 60}  # 30 tokens of the vocal


def small(stage: str, positions: str = "t5_aligned", **model) -> ConfigDict:
    """The tiny preset of a stage made smaller still, on these streams."""
    config = configuration(f"hafm/{stage}:tiny", **SMALL, length=LENGTHS[stage], positions=positions)
    config.model.update(model)
    config.tokens.update((MEANING if stage == "semantic" else SOUND).to_json())
    for facts in config.prefix.values():
        facts.update(MEANING.to_json())
    return config


def track(seed: int, tokens: int = 80) -> dict[str, np.ndarray]:
    """Codes of each stream: the accompaniment says what the vocal says, one more, and its codes what it says."""
    vocal_T = np.random.default_rng(seed).integers(MEANING.codes, size=tokens)
    semantic_T = (vocal_T + 1) % MEANING.codes
    frames = np.arange(int(tokens * 25 / 50))
    codes_TK = (semantic_T[2 * frames, None] + np.arange(SOUND.levels)) % SOUND.codes
    return dict(zip(STREAMS, (vocal_T[:, None], semantic_T[:, None], codes_TK), strict=True))


def write(folder: Path, tracks: int = 8) -> Path:
    """Token records of each stream, the first two tracks held out."""
    for name, facts in STREAMS.items():

        def encode(index: int, name=name):
            entry = {"id": str(index), "split": "valid" if index < 2 else "train", "seconds": 1.6, "meta": {}}
            return track(index)[name], entry

        told = {"tokens": facts.to_json(), "codec": f"{name.partition('/')[2]}@1", "sample_rate": facts.sample_rate}
        write_tokens(
            tracks, partial(map, encode), folder / name, facts.hierarchy, facts.levels, settings=told, progress=False
        )
    return folder


def stages(reference, **model) -> Mapping[str, songs._Stage]:
    """All three, untrained, every weight drawn so that logits differ enough for a wrong one to change tokens."""
    made = {}
    for name in songs.STAGES:
        config = small(name, **model)
        drawn = reference.drawn(nnx.eval_shape(make_model(config), nnx.Rngs(0)), 0.5)
        made[name] = songs._Stage(f"out/{name}", config, drawing.ready(config, drawn))
    return made
