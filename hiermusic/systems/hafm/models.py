"""HAFM's models: what a configuration of each stage describes, and how it is made."""

from collections.abc import Callable

from flax import nnx
from ml_collections import ConfigDict

from hiermusic.errors import UserError
from hiermusic.nn.token_lm import TokenLM
from hiermusic.systems.lm import models
from hiermusic.systems.lm.models import given_streams, pattern_of
from hiermusic.systems.token_facts import facts_of, prefix_of
from hiermusic.tokens.pattern import STEPWISE

_READS = {  # how many streams in front, and in words
    "semantic": ((1,), "the vocal's semantic tokens"),
    "coarse": ((1, 2), "the vocal's semantic tokens and, behind a first stage, the accompaniment's"),
    "fine": ((0,), "no other stream, but the coarse levels of its own (model.given)"),
}


def make_model(config: ConfigDict) -> Callable[[nnx.Rngs], TokenLM]:
    """The constructor of a stage's model; UserError for a configuration that is none of the stage."""
    (counts, words), streams = _READS[config.stage], given_streams(config)
    if len(streams) not in counts or (config.stage == "fine") != bool(config.model.given):
        raise UserError(
            f"a {config.stage} stage reads {words} in front: {len(streams)} streams stand in data.prefix, and "
            f"model.given={config.model.given}"
        )
    front, own = [config.data.get(field, "") for field in ("prefix", "stream")]
    if front and (stem := front[0].partition("/")[0]) and stem == own.partition("/")[0]:
        raise UserError(
            f"a {config.stage} stage reads {words} in front: data.prefix begins with {front[0]}, of the {stem} that it "
            "predicts; begin with the vocal's"
        )
    _check_tokens(config)
    if config.model.pattern not in STEPWISE or not pattern_of(config).stepwise:
        raise UserError(f"model.pattern={config.model.pattern} is none of this system's: choose {', '.join(STEPWISE)}")
    if config.model.tokenizer != "none":
        raise UserError(f"model.tokenizer={config.model.tokenizer}: a vocal comes without words: set it to none")
    return models.make_model(config)


def _check_tokens(config: ConfigDict) -> None:
    """UserError for tokens that cannot be handed from stage to stage, nor from window to window."""
    own = facts_of(config)
    meaning = [*prefix_of(config), *([own] if config.stage == "semantic" else [])]
    if any(one.levels != 1 for one in meaning) or len({one.frame_rate for one in meaning}) > 1:
        told = " and ".join(f"{one.levels} x {float(one.frame_rate):.4g}" for one in meaning)
        raise UserError(
            f"a {config.stage} stage takes semantic tokens of one level, as many a second of the vocal as of the "
            f"accompaniment, not {told} a second: make both streams by one tokenizer of meaning"
        )
    if own.scales:
        raise UserError(
            f"a {config.stage} stage predicts frames in which each level has one code, not those of a {own.quantiser} "
            "quantiser: take the codes of a residual one"
        )
