"""What the trunks have in common: the choices they offer, and blocks that may be computed twice."""

from flax import nnx
from jaxtyping import Array

from hiermusic.errors import UserError


def check_choices(config) -> None:
    """Refuses a trunk whose `dtype`, `init` or `remat` is none of the words there are for it, or whose `fold` is none.

    Raises:
      UserError: naming the field and what it may be.
    """
    for field, words in (
        ("dtype", ("float32", "bfloat16")),
        ("init", ("dac", "fan_in")),
        ("remat", ("none", "full")),
    ):
        if getattr(config, field) not in words:
            raise UserError(f"codec {field} is '{getattr(config, field)}': choose from {', '.join(words)}")
    if config.fold < 1:
        raise UserError(f"a trunk's fold is {config.fold}: give the samples that become channels, at least 1")


def through(blocks: nnx.List, x: Array, remat: bool) -> Array:
    """Runs blocks one after the other, each recomputed in the backward pass where `remat` says so."""
    for block in blocks:
        x = nnx.remat(lambda block, x: block(x))(block, x) if remat else block(x)
    return x
