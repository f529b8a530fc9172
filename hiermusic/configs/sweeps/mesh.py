"""Which mesh is fastest: eight devices split over data, fsdp, tensor and context in several ways, at two batch sizes.

    XLA_FLAGS=--xla_force_host_platform_device_count=8 hiermusic sweep --sweep=configs/sweeps/mesh.py \\
      --workdir=out/mesh --config.data.path=TOKENS

Look at s/step in the table; the losses of one batch size should agree. Another number of devices needs other rows.
"""

CONFIG = "configs/khala/backbone.py:tiny"


def get_hyper(hyper):
    one_axis = hyper.chainit(hyper.sweep(f"mesh.{axis}", [8]) for axis in ("data", "fsdp"))
    two_axes = hyper.zipit(
        [
            hyper.sweep("mesh.fsdp", [4, 4]),
            hyper.sweep("mesh.tensor", [2, 1]),
            hyper.sweep("mesh.context", [1, 2]),
        ]
    )
    return hyper.product(
        [
            hyper.chainit([one_axis, two_axes]),
            hyper.sweep("train.batch_size", [8, 16]),
            hyper.fixed("model.kv_heads", 2),  # tiny's only one would not divide over the tensor axis
            hyper.fixed("train.steps", 20),
        ]
    )
