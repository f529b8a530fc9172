"""HAFM's third stage (arXiv 2604.09054): fine codes of the accompaniment, behind its coarse ones alone.

    hiermusic train --config=configs/hafm/fine.py:tiny --workdir=out/fine --config.data.path=out/tokens

| preset | where                  | expect                                                          |
|--------|------------------------|-----------------------------------------------------------------|
| tiny   | two CPU cores, minutes | fewer bits than counting codes; 4 s, 2 levels behind 2          |
| small  | one GPU, days          | untried; 10 s, 4 levels behind 4, a model of 44 M parameters    |
| paper  | GPUs, 200 k steps      | untried; 10 s, 5,984 positions, 4 levels behind 4, 94 M         |

`semantic.py` says how the tokens are made and what the fields mean; of `model.levels` levels the first `model.given`
are the coarse ones. It sees no vocal, so that it is not guided unless it is told to be.
"""

from ml_collections import ConfigDict

from hiermusic.configs.hafm import semantic


def get_config(preset: str = "tiny") -> ConfigDict:
    """The configuration of a preset: tiny, small or paper."""
    config = semantic.base("fine", preset)
    config.data.stream = semantic.CODES
    config.data.prefix = ()
    config.model.levels = 4 if preset == "tiny" else 8
    config.model.given = config.model.levels // 2
    config.model.length = 400 if preset == "tiny" else 5984
    config.sampling.guidance = 1.0
    config.tokens, config.prefix = semantic.sound(preset), ConfigDict()
    return config
