"""HAFM's second stage (arXiv 2604.09054): coarse codes of the accompaniment, behind what vocal and accompaniment mean.

    hiermusic train --config=configs/hafm/coarse.py:tiny --workdir=out/coarse --config.data.path=out/tokens

| preset | where                  | expect                                                          |
|--------|------------------------|-----------------------------------------------------------------|
| tiny   | two CPU cores, minutes | three quarters of the bits of counting codes; 4 s, 2 levels     |
| small  | one GPU, days          | untried; 10 s, 4 levels, a model of 43 M parameters             |
| paper  | GPUs, 200 k steps      | untried; 10 s, 3,990 positions, 4 levels, 93 M parameters       |

`semantic.py` says how the tokens are made and what the fields mean; `model.levels` is how many levels are coarse.
"""

from ml_collections import ConfigDict

from hiermusic.configs.hafm import semantic


def get_config(preset: str = "tiny") -> ConfigDict:
    """The configuration of a preset: tiny, small or paper."""
    config = semantic.base("coarse", preset)
    config.data.stream = semantic.CODES
    config.data.prefix = (semantic.VOCAL, semantic.SEMANTIC)
    config.model.levels = 2 if preset == "tiny" else 4
    config.model.length = 400 if preset == "tiny" else 3990
    config.tokens = semantic.sound(preset)
    config.prefix = ConfigDict({number: semantic.meaning(preset) for number in "01"})
    return config
