"""What a learned bias of distances costs: a layer's attention, forward and back, with none, T5's or the aligned one.

    python benchmarks/relative_bias.py --positions=5984

The bias is worked out a block of queries at a time; no table of all pairs is made. Memory is what the compiled program
holds at once beside its arguments, as XLA tells it.
"""

import argparse
import math
import time

import jax
import jax.numpy as jnp
from flax import nnx

from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.transformer import Transformer
from hiermusic.tokens.pattern import SEGMENT
from hiermusic.tokens.visibility import Visibility


def measure(kind: str, positions: int, width: int, heads: int, repeats: int) -> tuple[float, float]:
    """Seconds of a layer's forward and backward pass over one row, and the megabytes it holds."""
    sizes = {"heads": heads, "kv_heads": heads, "head_dim": width // heads, "ffn_width": 8}
    config = TransformerConfig(1, width, **sizes, positions=kind, segments=2, dtype="float32")
    model = jax.jit(lambda: Transformer(config, rngs=nnx.Rngs(0)))()
    graphdef, weights = nnx.split(model)
    half = positions // 2
    at_1S = jnp.concatenate([jnp.arange(half), SEGMENT + jnp.arange(positions - half)])[None]

    def loss(weights, x_1SD):
        at = {"positions_BS": at_1S} if kind == "t5_aligned" else {}
        return nnx.merge(graphdef, weights)(x_1SD, visibility=Visibility.causal(), **at).sum()

    x_1SD = jax.random.normal(jax.random.key(0), (1, positions, width))
    program = jax.jit(jax.grad(loss)).lower(weights, x_1SD).compile()
    held, took = program.memory_analysis(), []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(program(weights, x_1SD))
        took.append(time.perf_counter() - start)
    return min(took, default=math.nan), held.temp_size_in_bytes / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--positions", type=int, default=5984)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3, help="0: memory alone, by compiling")
    options = parser.parse_args()
    print(f"| bias | seconds | MB held | of a table of all pairs, MB |\n|{'---|' * 4}")
    table = options.heads * options.positions**2 * 4 / 1e6
    for kind in ("none", "t5", "t5_aligned"):
        seconds, held = measure(kind, options.positions, options.width, options.heads, options.repeats)
        print(f"| {kind} | {seconds:.2f} | {held:.0f} | {'' if kind == 'none' else f'{table:.0f}'} |", flush=True)


if __name__ == "__main__":
    main()
