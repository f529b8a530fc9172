"""Tracks in which every code tells its frame and its level, and the configurations of models that learn them."""

import numpy as np

from hiermusic.systems.lm import models
from hiermusic.tokens.prompt import Prompt, compose

from ..fakes import configuration

LEVELS = 4
META = {"id": "t", "seconds": 9.0, "tags": "slow", "lyrics": "la\nlu", "description": "a long word", "key": "C"}


def settings(stage: str = "superres", codes: int = 999, **model):
    config = configuration(f"khala/{stage}:tiny", {"levels": LEVELS, "codes": codes})
    config.model.update({"length": 64, "text_limit": 40} | model)
    return config


def track(frames: int, levels: int = LEVELS, first: int = 0) -> dict:
    """Frame t of level k is 10 t + k + first."""
    codes_TK = 10 * np.arange(frames)[:, None] + np.arange(levels) + first
    return {"codes": codes_TK.astype(np.uint16), "meta": META}


def prompt(config, **words) -> list[int]:
    """The ids of the track's prompt, by the template's own tests."""
    how = {"keep_description": config.model.keep_description, "limit": config.model.text_limit}
    words = words or {name: META[name] for name in ("seconds", "tags", "lyrics", "description")}
    return compose(Prompt(**words), models.tokenizer(config.model), **how)


def text_of(row) -> list[int]:
    """The text ids, which stand in front."""
    count = int((row["text"] >= 0).sum())
    assert (row["text"][count:] == -1).all()
    return row["text"][:count].tolist()
