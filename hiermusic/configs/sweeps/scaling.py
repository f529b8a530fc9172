"""Loss against compute: a ladder of backbones of rising width and depth, each trained for longer than the one before.

    hiermusic sweep --sweep=configs/sweeps/scaling.py --workdir=out/scaling --config.data.path=TOKENS

Compute rises about fourfold a rung. On two CPU cores the six runs take some minutes together; for a real ladder, take
`small` with --config=configs/khala/backbone.py:small, widths and steps to match, and a corpus that no rung sees twice.
"""

CONFIG = "configs/khala/backbone.py:tiny"
SCALING = True

WIDTHS = (32, 32, 64, 64, 96, 128)
LAYERS = (1, 2, 2, 3, 3, 4)
STEPS = (30, 60, 90, 120, 180, 240)


def get_hyper(hyper):
    rungs = [
        hyper.sweep("model.width", WIDTHS),
        hyper.sweep("model.layers", LAYERS),
        hyper.sweep("train.steps", STEPS),
        hyper.sweep("model.heads", [width // 32 for width in WIDTHS]),
        hyper.sweep("model.ffn_width", [3 * width for width in WIDTHS]),
        hyper.fixed("model.kv_heads", 1, length=len(WIDTHS)),
    ]
    return hyper.zipit(rungs)
