"""Khala's stages: what trains its models, and whether data, codec and model fit each other."""

from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from hiermusic.nn.token_lm import TokenLM
from hiermusic.systems import stages, start, tokens
from hiermusic.systems import workdir as workdirs
from hiermusic.systems.khala.models import codec_config, hierarchy, make_discriminator, make_model, token_lm_config
from hiermusic.systems.khala.rows import backbone_batches, shapes, superres_batches, tell_cut
from hiermusic.tokens.visibility import Visibility
from hiermusic.train import checkpoint
from hiermusic.train.codec import CodecStage
from hiermusic.train.lm import LMStage
from hiermusic.train.stage import Work


def stage(config: ConfigDict) -> CodecStage | LMStage:
    """The training stage of a configuration, its data still to be opened."""
    if config.stage == "codec":
        return stages.codec_stage(config, codec_config(config.model), make_discriminator(config))

    def open_tokens(workdir: Path) -> None:
        tokens.check_records(config, config.data.path)
        tell_cut(config)
        if config.model.codec_tables and not checkpoint.steps(workdir):  # a run that goes on has its tables
            tokens.codec_of(config)

    batches = backbone_batches if config.stage == "backbone" else superres_batches
    return LMStage(
        stages.run_config(config),
        make_model(config),
        train=lambda rows: batches(config, "train", rows),
        valid=lambda rows: batches(config, "valid", rows),
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
        start.from_codec(workdirs.load_codec(*tokens.codec_of(config)), model)
    start.from_run(config.init_from, model)


def _work(config: ConfigDict, visibility: Visibility) -> Work:
    """What one update of a token model amounts to; a super-resolution batch predicts one level of every frame."""
    model = config.model
    levels = hierarchy(config)
    positions = config.train.batch_size * model.length
    heads = len(levels) if config.stage == "backbone" else 1
    frames = positions / heads
    flops = token_lm_config(config).flops(model.length, visibility, heads) * config.train.batch_size
    return Work(flops=3 * flops, tokens=positions, seconds=frames / float(levels.rates[0]))
