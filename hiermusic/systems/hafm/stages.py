"""HAFM's stages: what trains its models."""

from ml_collections import ConfigDict

from hiermusic.systems.hafm.models import make_model
from hiermusic.systems.lm import stages as lm
from hiermusic.train.lm import LMStage


def stage(config: ConfigDict) -> LMStage:
    """The training stage of a configuration, its data still to be opened."""
    make_model(config)  # which refuses what is not HAFM's
    return lm.stage(config)
