"""What a token model's configuration describes: its tokens, their order, its words, its transformer."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import gcd, lcm

import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from hiermusic.errors import UserError
from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.token_lm import TokenLM, TokenLMConfig
from hiermusic.systems.token_facts import facts_of, prefix_of
from hiermusic.tokens import sampling
from hiermusic.tokens.hierarchy import Hierarchy
from hiermusic.tokens.pattern import SEGMENT, Layout, Pattern
from hiermusic.tokens.sequence import START
from hiermusic.tokens.visibility import Visibility
from hiermusic.tokens.vocabulary import TextTokenizer, Vocabulary

_LARGEST = 1 << 24  # positions of a row times levels
_LONGEST = 2  # seconds of a packet of several streams

# MARK: tokens


def own(config: ConfigDict) -> Hierarchy:
    """The tokens of its records that a model knows: the first `model.levels` levels, 0 for all."""
    tokens, levels = facts_of(config), config.model.levels
    if not 0 <= levels <= tokens.levels:
        raise UserError(f"model.levels={levels}: the tokens have {tokens.levels} levels; 0 takes all")
    return tokens.hierarchy.select(0, levels or tokens.levels)


def hierarchy(config: ConfigDict) -> Hierarchy:
    """All tokens that a model knows: those of the streams that it reads in front, then its own."""
    return Hierarchy(tuple(level for part in (*_others(config), own(config)) for level in part))


def given_streams(config: ConfigDict) -> tuple[int, ...]:
    """Levels of each stream that is read in front."""
    return tuple(len(part) for part in _others(config))


def pattern_of(config: ConfigDict) -> Pattern:
    """The order in which a model predicts its tokens; UserError where it cannot take them."""
    model, streams = config.model, given_streams(config)
    if streams and model.codec_tables:
        raise UserError("model.codec_tables are those of one codec: set it to False for a model with data.prefix")
    slots, units = _slots(config)
    separate, units = model.get("separators", False), units if streams else ()
    return Pattern(model.pattern, slots, sum(streams) + model.given, streams, separate, units)


def nulls(config: ConfigDict) -> list[int | None] | None:
    """Of each level the code that stands for what is left out, None of those that the model predicts; None for none."""
    null, given = null_of(config), pattern_of(config).given
    return None if null is None else [null if level < given else None for level in range(len(hierarchy(config)))]


def _others(config: ConfigDict) -> list[Hierarchy]:
    return [facts.hierarchy for facts in prefix_of(config)]


def steps(config: ConfigDict) -> tuple[int, ...] | None:
    """Ticks from token to token of each level, of a model whose positions stand in time; None of others."""
    positions, order, rates = config.model.get("positions"), pattern_of(config), hierarchy(config).rates
    if positions == "rotary_aligned":
        if order.name != "level_major":
            raise UserError(f"model.positions={positions} goes with level_major, not with {order.name}: take rotary")
        ticks = Fraction(lcm(*(rate.numerator for rate in rates)), gcd(*(rate.denominator for rate in rates)))
        return tuple(int(ticks / rate) for rate in rates)
    if positions != "t5_aligned":
        return None
    if not order.stepwise:
        raise UserError(f"model.positions=t5_aligned goes with stepwise patterns, not with {order.name}")
    found = [Fraction(config.model.ticks) / rate for rate in rates]
    if not all(step.denominator == 1 for step in found):
        named = ", ".join(sorted({str(rate) for rate in rates}))
        raise UserError(f"model.ticks={config.model.ticks}: give a multiple of all levels' tokens a second, {named}")
    return tuple(map(int, found))


def places(config: ConfigDict, order: Pattern, layout: Layout) -> np.ndarray | None:
    """Where each position of a layout stands in time, of a model that is told; None of others."""
    ticks = steps(config)
    if ticks is None:
        return None
    places_S = order.places(layout, ticks)
    # turns tell times alone: by their segment, given tokens would stand a million ticks before those they sound with
    return places_S % SEGMENT if config.model.positions == "rotary_aligned" else places_S


def null_of(config: ConfigDict) -> int | None:
    """The code that a model reads in place of every token of a prefix that is left out; None where none ever is."""
    dropout = config.model.get("prefix_dropout", 0.0)
    if dropout and not (pattern_of(config).given and pattern_of(config).stepwise):
        raise UserError(f"model.prefix_dropout={dropout}: a {config.model.pattern} model reads no prefix to leave out")
    return max(hierarchy(config).sizes) if dropout else None


def _slots(config: ConfigDict) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tokens of each level in a packet, the least stretch that holds whole packets of every stream, and how many these
    are of each stream."""
    facts = [*prefix_of(config), facts_of(config)]
    rates = [one.frame_rate / one.frames for one in facts]
    common = Fraction(gcd(*(rate.numerator for rate in rates)), lcm(*(rate.denominator for rate in rates)))
    if len(facts) > 1 and common * _LONGEST < 1:
        raise UserError(f"data.prefix: streams of {', '.join(map(str, rates))} packets a second do not go together")
    units = [int(rate / common) for rate in rates]
    slots = [count * unit for one, unit in zip(facts, units, strict=True) for count in one.slots]
    return tuple(slots[: len(hierarchy(config))]), tuple(units)


# MARK: words


def vocabulary(model: ConfigDict) -> Vocabulary:
    """The text side of a model that reads words: Llama 3.1's ids (khala.md 2.1) or bytes."""
    if model.tokenizer == "llama31":
        return Vocabulary.llama31()
    if model.tokenizer == "bytes":
        return Vocabulary.byte_level(model.duration_unit)
    raise UserError(f"model.tokenizer is '{model.tokenizer}': choose bytes, llama31 or none")


def tokenizer(model: ConfigDict) -> TextTokenizer | None:
    """What turns prompts into ids, None without words; Llama 3.1's needs its tokenizer.json: `model.tokenizer_file`."""
    if model.tokenizer == "none":
        return None
    if model.tokenizer == "llama31" and not model.tokenizer_file:
        raise UserError("model.tokenizer is llama31: give its tokenizer.json with --config.model.tokenizer_file=PATH")
    return TextTokenizer(vocabulary(model), model.tokenizer_file or None)


def prompting(model: ConfigDict) -> dict[str, int | bool]:
    """How a model's prompts are composed, as `tokens.prompt.compose` is told it."""
    how = {"keep_description": model.keep_description, "limit": model.text_limit}
    return how | {"as_released": model.get("as_released", False)}


def marker(model: ConfigDict, level: int) -> int:
    """The id that says that this level is predicted: by a row of its own, or from there on."""
    return level if model.tokenizer == "none" else vocabulary(model).task_marker(level)


def markers(config: ConfigDict) -> list[int]:
    """The id of each level that stands where it begins, in the patterns that mark that."""
    return [marker(config.model, level) for level in range(len(hierarchy(config)))]


def end_of(config: ConfigDict) -> int | None:
    """The id that ends a song, of models that read words and go by time."""
    if config.model.tokenizer == "none" or not pattern_of(config).ends:
        return None
    return vocabulary(config.model).eos


# MARK: rows


def prompt_room(config: ConfigDict) -> int:
    """Positions in front of a window that is predicted scale by scale; other prompts take as many as they have ids."""
    return 1 if config.model.tokenizer == "none" else config.model.text_limit


def fill(config: ConfigDict, ids: Sequence[int]) -> list[int]:
    """A prompt as long as `prompt_room`, its last id at the end."""
    missing = prompt_room(config) - len(ids)
    pad = START if config.model.tokenizer == "none" else vocabulary(config.model).pad
    return [*ids[:-1], *[pad] * missing, ids[-1]]


def window(config: ConfigDict) -> int:
    """Packets of a window that is predicted scale by scale: as many as fit behind a prompt."""
    packets = pattern_of(config).most(config.model.length - prompt_room(config))
    if packets < 1:
        raise UserError(f"model.length={config.model.length} leaves no room behind the prompt: lower text_limit")
    if packets * sum(_slots(config)[0]) * len(hierarchy(config)) > _LARGEST:
        raise UserError(f"model.length={config.model.length} is too long for {len(hierarchy(config))} levels: lower it")
    return packets


def visibility(config: ConfigDict) -> Visibility:
    """Who sees whom in a row."""
    order = pattern_of(config)
    if order.stepwise:
        return Visibility.causal()
    return Visibility.full() if order.isolated else order.layout(window(config)).behind(prompt_room(config))


# MARK: models


def token_lm_config(config: ConfigDict) -> TokenLMConfig:
    """The token model of a configuration."""
    model, tokens, order = config.model, hierarchy(config), pattern_of(config)
    trunk = TransformerConfig(
        layers=model.layers,
        width=model.width,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        ffn_width=model.ffn_width,
        norm=model.get("norm", "rms"),
        ffn=model.get("ffn", "swiglu"),
        positions=model.get("positions", "rotary"),
        max_positions=model.length,
        rope_base=model.rope_base,
        base_width=model.base_width,
        bias=model.bias,
        qk_norm=model.qk_norm,
        dropout=model.dropout,
        dtype=model.dtype,
        remat=model.remat,
        segments=len(order.parts) if steps(config) and model.positions == "t5_aligned" else 0,
    )
    silent = len(tokens) if order.isolated or order.separate else 1
    return TokenLMConfig(
        levels=len(tokens),
        codes=max(tokens.sizes),
        text_size=silent if model.tokenizer == "none" else vocabulary(model).text_size,
        end=end_of(config),
        transformer=trunk,
        head=model.head,
        shared_embed=model.get("shared_embed", False),
        code_bias=model.codec_tables,
        z_loss=model.z_loss,
        given=order.given if model.get("open_heads") else 0,
        segments=order.segments if model.get("segments") else (),
        null=null_of(config) is not None,
    )


def make_model(config: ConfigDict) -> Callable[[nnx.Rngs], TokenLM]:
    """The constructor of a configuration's token model."""
    token_lm = token_lm_config(config)
    sampling.check(config.sampling, levels=token_lm.levels)
    return lambda rngs: TokenLM(token_lm, rngs=rngs)
