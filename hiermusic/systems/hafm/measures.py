"""What is told and measured of HAFM's models."""

from ml_collections import ConfigDict

from hiermusic.systems.hafm.models import make_model
from hiermusic.systems.lm import measures as lm
from hiermusic.systems.lm.measures import cross_entropy  # noqa: F401  the system's own as it is
from hiermusic.systems.lm.models import hierarchy, pattern_of


def inspect(config: ConfigDict) -> dict:
    """Parameters of each component, rates and sequence length, from abstract shapes alone.

    `decoding_steps` are the positions of a window, of `sequence_length` in all, at which tokens are predicted, and
    `window_seconds` is how long it lasts; `reached_params` are those of `total` without the rows of tables that stand
    for codes beyond a level's own.
    """
    make_model(config)  # which refuses what is not HAFM's
    told, tokens, order = lm.inspect(config), hierarchy(config), pattern_of(config)
    layout = order.layout(order.most(config.model.length))
    told["decoding_steps"] = int((layout.level_S >= 0).sum())
    told["window_seconds"] = float(layout.lengths[0] / tokens.rates[0])
    spare = [max(tokens.sizes) - size for size in tokens.sizes]
    rows = sum(spare) + sum(spare[order.given if config.model.open_heads else 0 :])
    told["reached_params"] = told["params"]["total"] - rows * config.model.width
    return told
