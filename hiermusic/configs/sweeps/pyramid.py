"""The paper's pyramids against DACs of about as many tokens, of the same trunk: one budget for all.

    hiermusic sweep --sweep=configs/sweeps/pyramid.py --workdir=out/pyramids --config.data.path=RECORDS

p111 has 75 tokens a second, DAC's two codebooks 86; p555 377, nine codebooks 388. Each pyramid is trained twice: its
levels quantise sums, as the paper's, or what the coarser ones have left over (`model.residual`). Once all are
evaluated, `benchmarks/codec_table.py` sets them side by side, the first it is given against the others.
"""

CONFIG = "configs/pyramid/codec.py:tiny"


def get_hyper(hyper):
    runs = []
    for books, of_dac in ((1, 1, 1), (2,)), ((5, 5, 5), (9,)):
        runs += hyper.product([hyper.fixed("model.books", books), hyper.sweep("model.residual", [False, True])])
        dac = {"model.books": of_dac, "model.quantiser": "residual", "loss.level_weights": (1.0,)}
        runs += hyper.product([hyper.fixed(field, value) for field, value in dac.items()])
    return runs
