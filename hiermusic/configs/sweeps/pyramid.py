"""The paper's pyramids against DACs of about as many tokens, of the same trunk: one budget for all.

    hiermusic sweep --sweep=configs/sweeps/pyramid.py --workdir=out/pyramids --config.data.path=RECORDS

p111 has 75 tokens a second, DAC's two codebooks 86; p555 377, nine codebooks 388. The pyramids' levels quantise sums,
as the paper's, and all hear the samples alone; `tiny` would have the coarser ones quantise what is left over, and the
finest the loudness of bands. Once all are evaluated, `benchmarks/codec_table.py` sets them side by side, the first it
is given against the others.
"""

CONFIG = "configs/pyramid/codec.py:tiny"


PLAIN = {"model.mel_finest": False, "model.mel_bands": 0, "loss.mel": 0.2, "loss.mel_steps": 0, "loss.mel_start": 0.2}


def get_hyper(hyper):
    plain = [hyper.fixed(field, value) for field, value in PLAIN.items()]
    pyramids = [hyper.sweep("model.books", [(1, 1, 1), (5, 5, 5)]), hyper.fixed("model.residual", False)]
    dac = {"model.quantiser": "residual", "loss.level_weights": (1.0,)}
    same = [hyper.fixed(field, value) for field, value in dac.items()]
    baselines = [hyper.sweep("model.books", [(2,), (9,)]), *same]
    return hyper.chainit([hyper.product([*pyramids, *plain]), hyper.product([*baselines, *plain])])
