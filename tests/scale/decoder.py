"""Decodes with a small token model as one of the processes of a run, over the devices of all: `python decoder.py ...`.

Prints one JSON object: the codes, and the most bytes of cache and weights that a device of this process holds beside
all of them.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
from flax import nnx

from hiermusic.codec.multiscale import MultiscaleConfig
from hiermusic.generate import autoregressive, nextscale
from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.token_lm import TokenLM, TokenLMConfig
from hiermusic.parallel import hosts
from hiermusic.parallel.mesh import make_mesh, shardings
from hiermusic.tokens import pattern

TRUNK = TransformerConfig(2, 32, 4, 2, 8, 48, dtype="float32", init_std=0.3)
CONFIG = TokenLMConfig(TRUNK, levels=2, codes=12, text_size=40)
LATENT, SCALES = 4, (1, 4)
BY_SCALE = TokenLMConfig(
    replace(TRUNK, positions="learned", max_positions=9, norm="layer", ffn="gelu", adaptive=True),
    levels=2, codes=12, text_size=1, head="shared", reads=False, inputs=LATENT, level_embed=True, cond=6,
)  # fmt: skip


def in_step(jitted, name: str):
    """A jitted function that all processes have compiled before one runs it: Gloo does not wait long for another."""

    def run(graphdef, *dynamic, **static):
        compiled = jitted.lower(graphdef, *dynamic, **static).compile()
        hosts.wait_for_all(name)
        return compiled(*dynamic)

    return run


def spread(make: Callable[[], nnx.Module], mesh) -> nnx.Module:
    """What `make` makes, as it lies on a mesh."""
    graphdef, shapes = nnx.split(nnx.eval_shape(make))
    return nnx.merge(graphdef, jax.jit(lambda: nnx.state(make()), out_shardings=shardings(shapes, mesh))())


def by_scale() -> nnx.Module:
    """A model of latents, with gates that are open, and the quantiser whose codes it predicts."""
    lm = TokenLM(BY_SCALE, rngs=nnx.Rngs(0)).unstack()
    quantiser = MultiscaleConfig(scales=SCALES, codes=12, latent=LATENT, phi="shared", kernel=3)
    both = nnx.Dict(lm=lm, quantiser=quantiser.make(LATENT, rngs=nnx.Rngs(1)))
    rng = np.random.default_rng(0)
    nnx.update(both, jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), nnx.state(both)))
    return both


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    given = parser.parse_args()
    with hosts.joined(given.coordinator, given.processes, given.process):
        mesh = make_mesh({"fsdp": 4, "tensor": -1} if len(jax.devices()) > 1 else {})
        model = spread(lambda: TokenLM(CONFIG, rngs=nnx.Rngs(0)).unstack(), mesh)
        for module, name in ((autoregressive, "_prefill"), (autoregressive, "_decode"), (nextscale, "_window")):
            setattr(module, name, in_step(getattr(module, name), name))
        held, total = Counter(), 0

        def look(done: int, of: int) -> None:
            nonlocal total
            for array in jax.live_arrays():
                if jax.numpy.issubdtype(array.dtype, jax.numpy.floating):
                    total += array.nbytes
                    held.update({shard.device.id: shard.data.nbytes for shard in array.addressable_shards})

        with jax.set_mesh(mesh):
            layouts = [pattern.flatten((n, n)) for n in (6, 9, 5, 7)]
            prompts, how = [[5, 6], [7]] * 2, {"seeds": range(4), "sizes": (12, 12), "progress": look}
            made = autoregressive.generate(model, prompts, layouts, **how)
            wide, cond_BU = spread(by_scale, mesh), np.random.default_rng(1).normal(size=(4, 6))
            how = {"seeds": range(4), "windows": 2, "context": 2, "guidance": 2.0, "uncond_U": -cond_BU[0]}
            windows = nextscale.generate(wide.lm, wide.quantiser, cond_BU, **how)
        answer = {"codes": [one.codes.tolist() for one in made], "windows": windows.tolist()}
        print(json.dumps(answer | {"held": max(held.values()), "total": total}))


if __name__ == "__main__":
    main()
