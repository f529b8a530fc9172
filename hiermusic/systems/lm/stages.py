"""The training stage of a token model."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from hiermusic.nn.token_lm import TokenLM
from hiermusic.systems import stages, start, token_facts
from hiermusic.systems import workdir as workdirs
from hiermusic.systems.lm import rows
from hiermusic.systems.lm.models import hierarchy, make_model, pattern_of, token_lm_config
from hiermusic.tokens.visibility import Visibility
from hiermusic.train import checkpoint
from hiermusic.train.lm import LMStage
from hiermusic.train.stage import Work


def stage(config: ConfigDict, batches: Callable = rows.batches, shapes: Callable = rows.shapes) -> LMStage:
    """The training stage of a configuration, its data still to be opened.

    Args:
      config: of a token model.
      batches, shapes: as `rows.batches` and `rows.shapes`, for models that train on more than their pattern's rows.
    """

    def open_tokens(workdir: Path) -> None:
        token_facts.check_records(config, config.data.path)
        rows.tell_cut(config)
        if config.model.codec_tables and not checkpoint.steps(workdir):  # a run that goes on has its tables
            token_facts.codec_of(config)

    return LMStage(
        stages.run_config(config),
        make_model(config),
        train=lambda which: batches(config, "train", which),
        valid=lambda which: batches(config, "valid", which),
        examples=shapes(config),
        work=partial(_work, config),
        length=config.model.length,
        trunk=token_lm_config(config).transformer,
        prepare=lambda module: _start(config, module.model),
        open=open_tokens,
    )


def _start(config: ConfigDict, model: TokenLM) -> None:
    """What a fresh token model begins with, in place: the codec's codes, then the weights of another run."""
    if config.model.codec_tables:
        start.from_codec(workdirs.load_codec(*token_facts.codec_of(config)), model)
    start.from_run(config.init_from, model)


def _work(config: ConfigDict, visibility: Visibility) -> Work:
    """What one update of a token model amounts to; a batch of single passes predicts one level of every packet."""
    order, batch, length = pattern_of(config), config.train.batch_size, config.model.length
    tokens, packets = hierarchy(config), order.most(length)
    open_slots = order.slots[order.given :]
    rate = tokens.rates[0] / order.slots[0]
    made = sum(open_slots) / len(open_slots) if order.isolated else sum(open_slots)
    model = token_lm_config(config)
    flops = model.flops(length, visibility, 1 if order.isolated else model.levels - model.given)
    return Work(flops=3 * flops * batch, tokens=round(batch * packets * made), seconds=float(batch * packets / rate))
