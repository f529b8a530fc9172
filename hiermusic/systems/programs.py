"""What generation runs, as programs to compile for a mesh that is not there."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from hiermusic.codec.codec import Codec
from hiermusic.errors import UserError
from hiermusic.generate import autoregressive, layerwise
from hiermusic.parallel.aot import Job
from hiermusic.parallel.counting import forward_flops, product_bytes
from hiermusic.parallel.mesh import Rules, batch_sharding, make_mesh, shardings
from hiermusic.parallel.roofline import Load, activation_transfers, weight_transfers
from hiermusic.systems import workdir
from hiermusic.tokens import pattern

CODEC_FRAMES = 1920  # of a piece, as `codec.chunked.decode_long` cuts them

Program = tuple[Callable, tuple, dict[str, Any]]


def generation(config: ConfigDict, mesh: Mesh) -> list[Job]:
    """The program that generating with a stage's model spends its time in, for songs that fill its context.

    A causal token model: a chunk of decoding steps with a cache. A layer-wise one: a pass over all frames. A codec: the
    decoding of one piece on every device of the batch. Weights are split as in training, rows over the batch's axes,
    cached heads over `tensor`.

    Args:
      config: of any stage; `train.batch_size` songs are made at once.
      mesh: of devices that need not be there.
    """
    rows, shares = config.train.batch_size, mesh.shape["data"] * mesh.shape["fsdp"]
    if config.stage == "codec":
        rows = shares
    name, program, steps, tokens, seconds = _program(config, rows)
    function, arguments, static = program
    placed = jax.tree.map(lambda x: _abstract(x, mesh, rows), arguments)
    placed = (placed[0], _weights(arguments[1], mesh), *placed[2:])

    def load() -> Load:
        _, (function, arguments, static), *_ = _program(config, rows // shares)
        arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments)

        def run(*dynamic):
            return function(arguments[0], *dynamic, **static)

        with jax.set_mesh(make_mesh({}, mesh.devices.flat[:1])):
            flops = forward_flops(run, *arguments[1:]) * shares
            moved = product_bytes(run, *arguments[1:]) / (mesh.shape["tensor"] * mesh.shape["context"])
        return Load(flops, 0.0, moved, _transfers(config, placed[1], mesh, rows / shares * steps), tokens, seconds)

    return [Job(name, lambda: function.lower(*placed, **static), load)]


def _program(config: ConfigDict, rows: int) -> tuple[str, Program, float, float, float]:
    """Name, program, positions of a row, tokens and seconds of audio that it makes; called outside any mesh."""
    facts, model = workdir.inspect(config, None), config.model
    rate = facts["frame_rate_hz"]
    make = workdir.system(config).make_model(config)
    if config.stage == "codec":
        codec: Codec = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
        codes = jax.ShapeDtypeStruct((rows, CODEC_FRAMES, facts["levels"]), jnp.int32)
        made = (rows * CODEC_FRAMES * facts["levels"], rows * CODEC_FRAMES / rate)
        return "generate: decode a piece", (_decode, (*nnx.split(codec), codes), {}), CODEC_FRAMES, *made
    prompts, seeds, sampling = [[0] * model.text_limit] * rows, range(rows), dict(config.sampling)
    sizes, frames = [model.codes] * model.levels, model.length - model.text_limit
    if frames < 1:
        raise UserError(f"model.text_limit={model.text_limit} leaves no room for music in model.length={model.length}")
    options = {"seeds": seeds, "sizes": sizes, "unprompted": prompts, **sampling}
    if "given" in model:
        token_lm = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
        codes = [np.zeros((frames, model.given), np.int32)] * rows
        run, arguments = layerwise.level_pass(token_lm, prompts, codes, markers=[0] * model.levels, **options)
        name, steps = "generate: one pass", model.length
        made = (rows * frames, rows * frames / rate / (model.levels - model.given))
    else:
        token_lm = nnx.eval_shape(lambda: make(nnx.Rngs(0)).unstack())
        layouts = [pattern.flatten((frames // model.levels,) * model.levels)] * rows
        run, arguments = autoregressive.chunk(
            token_lm, prompts, layouts, eos=token_lm.config.end, cache_dtype=model.dtype, **options
        )
        name, steps = f"generate: {autoregressive.CHUNK} steps", autoregressive.CHUNK
        made = (rows * steps, rows * steps / model.levels / rate)
    return name, (run.func, arguments, run.keywords), steps, *made


@jax.jit(static_argnums=0)
def _decode(graphdef, weights, codes_BTK):
    return nnx.merge(graphdef, weights).decode(codes_BTK)


def _weights(weights: nnx.State, mesh: Mesh) -> nnx.State:
    placement = shardings(weights, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), weights, placement)


def _abstract(x: Any, mesh: Mesh, rows: int) -> jax.ShapeDtypeStruct:
    """An argument with its placement: rows over the batch's axes, the heads of a cache over `tensor`."""
    spec = [None] * np.ndim(x) if not hasattr(x, "ndim") else [None] * x.ndim
    if spec and x.shape[0] % rows == 0 and rows % math.prod(mesh.shape[axis] for axis in Rules.batch) == 0:
        spec[0] = batch_sharding(mesh).spec[0]
    if len(spec) == 4 and x.shape[1] % mesh.shape["tensor"] == 0:
        spec[1] = "tensor"
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, jax.P(*spec)))


def _transfers(config: ConfigDict, weights: nnx.State, mesh: Mesh, positions: float) -> tuple:
    """Weights gathered once a program; a token model's activations as in the forward pass of training."""
    leaves = jax.tree.leaves(weights)
    itemsize = jnp.dtype(config.model.dtype).itemsize
    specs = [(leaf.shape, leaf.sharding.spec) for leaf in leaves]
    transfers = [t for t in weight_transfers(specs, mesh, itemsize, gathers=1) if t.kind == "all-gather"]
    if "heads" in config.model:
        sizes = {name: config.model[name] for name in ("layers", "width", "heads", "kv_heads", "head_dim")}
        positions /= mesh.shape["context"]
        found = activation_transfers(mesh, tokens=positions, **sizes, itemsize=itemsize, passes=1)
        transfers += [t for t in found if t.kind != "reduce-scatter"]
    return tuple(transfers)
