"""Songs from PyramidCodec's language model, and the programs that generation compiles to."""

from ml_collections import ConfigDict

from hiermusic.systems import programs
from hiermusic.systems.lm import songs as lm
from hiermusic.systems.pyramid.models import codec_config


def generate(*arguments, **flags) -> list[dict]:
    raise NotImplementedError


def program(config: ConfigDict, rows: int) -> programs.Generation:
    """The decoding of a piece, or the language model's steps, in shapes.

    Args:
      config: of any stage; songs fill its context.
      rows: songs made at once.
    """
    return programs.decoding(codec_config(config.model), rows) if config.stage == "codec" else lm.program(config, rows)
