"""What `hiermusic inspect` tells of every system's stages."""

from collections import Counter
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from hiermusic.nn.param import parameter_counts
from hiermusic.tokens.hierarchy import Hierarchy


def counts(module: nnx.Module) -> Counter[str]:
    """Trained parameters of each component of a module, which may be abstract."""
    found: Counter[str] = Counter()
    for name, count in parameter_counts(module).items():
        found[name.partition(".")[0]] += count
    return found


def facts(
    config: ConfigDict, params: dict[str, int], tokens: Hierarchy, frame_rate: float, length: int
) -> dict[str, Any]:
    """What `hiermusic inspect` tells of every stage."""
    return {
        "params": params,
        "sequence_length": length,
        "frame_rate_hz": frame_rate,
        "tokens_per_second": float(tokens.tokens_per_second),
        "levels": len(tokens),
        "codes": tokens.sizes[0],
        "batch_size": config.train.batch_size,
        "steps": config.train.steps,
    }
