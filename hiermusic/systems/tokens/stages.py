"""What trains the codecs and the token models that are of no system of their own."""

from ml_collections import ConfigDict

from hiermusic.systems import stages
from hiermusic.systems.lm import stages as lm
from hiermusic.systems.tokens.models import codec_config, make_discriminator
from hiermusic.train.codec import CodecStage
from hiermusic.train.lm import LMStage


def stage(config: ConfigDict) -> CodecStage | LMStage:
    """The training stage of a configuration, its data still to be opened."""
    if config.stage == "codec":
        return stages.codec_stage(config, codec_config(config.model), make_discriminator(config))
    return lm.stage(config)
