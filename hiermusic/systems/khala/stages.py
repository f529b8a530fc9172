"""Khala's stages: what trains its models, and whether data, codec and model fit each other."""

from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from hiermusic.codec.objective import ObjectiveConfig
from hiermusic.data.records import read_info
from hiermusic.errors import UserError
from hiermusic.nn.token_lm import TokenLM
from hiermusic.systems import parts
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
        objective = ObjectiveConfig(**config.loss, stft_sizes=tuple(config.discriminator.fft_sizes))
        return parts.codec_stage(config, codec_config(config.model), make_discriminator(config), objective)

    def open_tokens(workdir: Path) -> None:
        check_tokens(config, config.data.path)
        tell_cut(config)
        if config.model.codec_tables and not checkpoint.steps(workdir):  # a run that goes on has its tables
            _check_codec(config.data.path)

    batches = backbone_batches if config.stage == "backbone" else superres_batches
    return LMStage(
        config,
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
        parts.start_from_codec(workdirs.load_codec(*parts.stored_codec(config.data.path)), model)
    parts.start_from(config.init_from, model)


def _work(config: ConfigDict, visibility: Visibility) -> Work:
    """What one update of a token model amounts to; a super-resolution batch predicts one level of every frame."""
    model, tokens = config.model, hierarchy(config)
    positions = config.train.batch_size * model.length
    frames = positions / (model.levels if config.stage == "backbone" else 1)
    heads = model.levels if config.stage == "backbone" else 1
    flops = token_lm_config(config).flops(model.length, visibility, heads) * config.train.batch_size
    return Work(flops=3 * flops, tokens=positions, seconds=frames / float(tokens.rates[0]))


def _check_codec(tokens: str) -> None:
    """UserError where the codec that made these token records is gone."""
    codec, _ = parts.stored_codec(tokens)
    if not Path(codec).is_dir():
        raise UserError(
            f"{tokens} was made by the codec {codec}, which is not there: put it back, or begin without its tables by "
            "--config.model.codec_tables=False"
        )


def check_tokens(config: ConfigDict, path: str) -> None:
    """UserError when the token records at `path` are not what a configuration's model predicts."""
    found, wanted = parts.stored_hierarchy(path, config.model.levels), hierarchy(config)
    if (found.sizes, found.rates) != (wanted.sizes, wanted.rates):
        stored = len(read_info(path, "tokens")["hierarchy"])
        raise UserError(
            f"{path} holds {stored} levels of {found.sizes[0]} codes at {found.rates[0]} Hz, the model wants "
            f"{len(wanted)} of {wanted.sizes[0]} at {wanted.rates[0]} Hz: set --config.model.codes={found.sizes[0]} "
            f"and --config.model.frame_rate={found.rates[0]}, or take tokens of another codec"
        )
