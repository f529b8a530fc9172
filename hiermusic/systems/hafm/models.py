"""HAFM's models: what a configuration of each stage describes, and how it is made."""

from collections.abc import Callable

from flax import nnx
from ml_collections import ConfigDict

from hiermusic.errors import UserError
from hiermusic.nn.token_lm import TokenLM
from hiermusic.systems.lm import models
from hiermusic.systems.lm.models import given_streams, pattern_of
from hiermusic.tokens.pattern import STEPWISE

_READS = {  # streams in front, and in words
    "semantic": (1, "the vocal's semantic tokens"),
    "coarse": (2, "the vocal's semantic tokens and the accompaniment's"),
    "fine": (0, "no other stream, but the coarse levels of its own (model.given)"),
}


def make_model(config: ConfigDict) -> Callable[[nnx.Rngs], TokenLM]:
    """The constructor of a stage's model; UserError for a configuration that is none of the stage."""
    (count, words), streams = _READS[config.stage], given_streams(config)
    if len(streams) != count or (config.stage == "fine") != bool(config.model.given):
        raise UserError(
            f"a {config.stage} stage reads {words} in front: {len(streams)} streams stand in data.prefix, and "
            f"model.given={config.model.given}"
        )
    if config.model.pattern not in STEPWISE or not pattern_of(config).stepwise:
        raise UserError(f"model.pattern={config.model.pattern} is none of this system's: choose {', '.join(STEPWISE)}")
    if config.model.tokenizer != "none":
        raise UserError(f"model.tokenizer={config.model.tokenizer}: a vocal comes without words: set it to none")
    return models.make_model(config)
