"""Khala's stages: what trains its models."""

from ml_collections import ConfigDict

from hiermusic.systems import stages
from hiermusic.systems.khala import rows
from hiermusic.systems.khala.models import codec_config, make_discriminator, make_model
from hiermusic.systems.lm import stages as lm
from hiermusic.train.codec import CodecStage
from hiermusic.train.lm import LMStage


def stage(config: ConfigDict) -> CodecStage | LMStage:
    """The training stage of a configuration, its data still to be opened."""
    if config.stage == "codec":
        return stages.codec_stage(config, codec_config(config.model), make_discriminator(config))
    make_model(config)  # which refuses what is not Khala's
    return lm.stage(config) if config.stage == "backbone" else lm.stage(config, rows.batches, rows.shapes)
