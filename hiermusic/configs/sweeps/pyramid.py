"""The paper's pyramids against DACs of about as many tokens, of the same trunk: one budget for all.

    hiermusic sweep --sweep=configs/sweeps/pyramid.py --workdir=out/pyramids --config.data.path=RECORDS

p111 has 75 tokens a second, DAC's two codebooks 86; p555 377, nine codebooks 388. Once all are evaluated,
`benchmarks/codec_table.py` sets them side by side, the first it is given against the others.
"""

CONFIG = "configs/pyramid/codec.py:tiny"


def get_hyper(hyper):
    pyramids = hyper.sweep("model.books", [(1, 1, 1), (5, 5, 5)])
    dac = [hyper.fixed("model.quantiser", "residual"), hyper.fixed("loss.level_weights", (1.0,))]
    return hyper.chainit([pyramids, hyper.product([*dac, hyper.sweep("model.books", [(2,), (9,)])])])
