"""Decodes with a small token model as one of the processes of a run, over the devices of all: `python decoder.py ...`.

Prints one JSON object: the codes, and the most bytes of cache and weights that a device of this process holds beside
all of them.
"""

import argparse
import json
from collections import Counter

import jax
from flax import nnx

from hiermusic.generate import autoregressive
from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.token_lm import TokenLM, TokenLMConfig
from hiermusic.parallel import hosts
from hiermusic.parallel.mesh import make_mesh, shardings
from hiermusic.tokens import pattern

TRUNK = TransformerConfig(2, 32, 4, 2, 8, 48, dtype="float32", init_std=0.3)
CONFIG = TokenLMConfig(TRUNK, levels=2, codes=12, text_size=40)


def in_step(jitted, name: str):
    """A jitted function that all processes have compiled before one runs it: Gloo does not wait long for another."""

    def run(graphdef, *dynamic, **static):
        compiled = jitted.lower(graphdef, *dynamic, **static).compile()
        hosts.wait_for_all(name)
        return compiled(*dynamic)

    return run


def make() -> nnx.State:
    return nnx.state(TokenLM(CONFIG, rngs=nnx.Rngs(0)).unstack())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    given = parser.parse_args()
    with hosts.joined(given.coordinator, given.processes, given.process):
        mesh = make_mesh({"fsdp": 4, "tensor": -1} if len(jax.devices()) > 1 else {})
        abstract = nnx.eval_shape(lambda: TokenLM(CONFIG, rngs=nnx.Rngs(0)).unstack())
        graphdef, shapes = nnx.split(abstract)
        weights = jax.jit(make, out_shardings=shardings(shapes, mesh))()
        for name in ("_prefill", "_decode"):
            setattr(autoregressive, name, in_step(getattr(autoregressive, name), name))
        held, total = Counter(), 0

        def look(done: int, of: int) -> None:
            nonlocal total
            for array in jax.live_arrays():
                if jax.numpy.issubdtype(array.dtype, jax.numpy.floating):
                    total += array.nbytes
                    held.update({shard.device.id: shard.data.nbytes for shard in array.addressable_shards})

        with jax.set_mesh(mesh):
            layouts = [pattern.flatten((n, n)) for n in (6, 9, 5, 7)]
            made = autoregressive.generate(
                nnx.merge(graphdef, weights), [[5, 6], [7]] * 2, layouts, seeds=range(4), sizes=(12, 12), progress=look
            )
        print(json.dumps({"codes": [one.codes.tolist() for one in made], "held": max(held.values()), "total": total}))


if __name__ == "__main__":
    main()
