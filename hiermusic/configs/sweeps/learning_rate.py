"""The peak learning rate of the tiny backbone, by factors of about two.

    hiermusic sweep --sweep=configs/sweeps/learning_rate.py --workdir=out/learning_rate --config.data.path=TOKENS

Six runs of two minutes each on two CPU cores. Shorten the runs with --config.train.steps=60.
"""

CONFIG = "configs/khala/backbone.py:tiny"


def get_hyper(hyper):
    return hyper.sweep("train.learning_rate", [1e-4, 3e-4, 1e-3, 2e-3, 4e-3, 8e-3])
