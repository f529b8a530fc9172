"""Where HAFM's positions stand: T5's bias of distances in the row or one of distances in time, three seeds of each.

    hiermusic sweep --sweep=configs/sweeps/hafm.py --workdir=out/places --config.data.path=TOKENS

TOKENS are those of the three stages (docs/hafm.md), of the demo for example. The stage that reads both semantic streams
is trained; `--config=configs/hafm/semantic.py:tiny` takes the one before it.
"""

CONFIG = "configs/hafm/coarse.py:tiny"


def get_hyper(hyper):
    places = hyper.sweep("model.positions", ["t5", "t5_aligned"])
    return hyper.product([places, hyper.sweep("train.seed", [0, 1, 2])])
