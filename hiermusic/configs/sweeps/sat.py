"""SAT's three schedules, its three ways to share phi, and residual codebooks of the same trunk: one budget for all.

    hiermusic sweep --sweep=configs/sweeps/sat.py --workdir=out/sat --config.data.path=RECORDS

Tokens a second: 455 (quadratic), 601 (linear), 303 (logarithmic), 750 and 450 (10 and 6 residual codebooks). The first
is trained a second time from another seed, which shows how far chance alone drives two runs apart. Once all are
evaluated, `benchmarks/codec_table.py` sets them side by side.
"""

CONFIG = "configs/aar/codec.py:tiny"


def get_hyper(hyper):
    schedules = hyper.sweep("model.schedule", ["quadratic", "linear", "logarithmic"])
    phis = hyper.sweep("model.phi", ["shared", "unshared"])
    residual = hyper.product([hyper.fixed("model.quantiser", "residual"), hyper.sweep("model.levels", [10, 6])])
    again = hyper.fixed("train.seed", 2)
    return hyper.chainit([schedules, residual, again, phis])
