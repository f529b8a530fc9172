"""SAT's three schedules, its three ways to share phi, and ten residual codebooks of the same trunk: one budget for all.

    hiermusic sweep --sweep=configs/sweeps/sat.py --workdir=out/sat --config.data.path=RECORDS

Tokens a second: 455 (quadratic), 601 (linear), 303 (logarithmic), 750 (residual). `benchmarks/codec_table.py` makes one
table of the runs once they are evaluated.
"""

CONFIG = "configs/aar/codec.py:tiny"


def get_hyper(hyper):
    schedules = hyper.sweep("model.schedule", ["quadratic", "linear", "logarithmic"])
    phis = hyper.sweep("model.phi", ["shared", "unshared"])
    residual = hyper.product([hyper.fixed("model.quantiser", "residual"), hyper.fixed("model.levels", 10)])
    return hyper.chainit([schedules, phis, residual])
