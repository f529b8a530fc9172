"""What generation runs, as programs to compile for a mesh that is not there."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from hiermusic.codec import chunked
from hiermusic.codec.codec import Codec, CodecConfig
from hiermusic.generate.batching import cache_specs
from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.transformer import Cache
from hiermusic.parallel.aot import Job
from hiermusic.parallel.counting import forward_flops, product_bytes
from hiermusic.parallel.mesh import Rules, batch_sharding, make_mesh, shardings
from hiermusic.parallel.roofline import Load, activation_transfers, weight_transfers
from hiermusic.systems import workdir


class Generation(NamedTuple):
    """The program that generating with a stage's model spends its time in; see `generation`.

    Attributes:
      name: what it does.
      function: a jitted function; its first argument is static, the second holds the weights.
      arguments: of it, in shapes.
      static: keyword arguments.
      positions: that go through the model in one row.
      tokens, seconds: that it makes, of all rows.
      trunk: of a token model.
    """

    name: str
    function: Callable
    arguments: tuple
    static: dict[str, Any]
    positions: int
    tokens: float
    seconds: float
    trunk: TransformerConfig | None = None


def decoding(codec: CodecConfig, rows: int) -> Generation:
    """The decoding of one piece of a song, or of as many segments as run at once, on every device of the batch."""
    frames, hop = chunked.longest(codec.sample_rate, codec.packet, codec.decoder_margin), codec.packet
    if codec.segments:
        rows *= chunked.SEGMENTS
        frames, hop = codec.segments.frames, codec.segments.samples_per_frame
    graphdef, weights = nnx.split(nnx.eval_shape(lambda: Codec(codec, rngs=nnx.Rngs(0))))
    codes = jax.ShapeDtypeStruct((rows, frames + codec.spare, sum(codec.quantiser.slots)), jnp.int32)
    seconds = rows * frames * hop / codec.sample_rate
    tokens = rows * frames * sum(codec.quantiser.slots)
    positions = frames * codec.quantiser.frames
    arguments = (graphdef, weights, codes)
    if codec.ragged:
        arguments += (jax.ShapeDtypeStruct((rows,), jnp.int32),)
    return Generation("generate: decode a piece", chunked.decode, arguments, {}, positions, tokens, seconds)


def generation(config: ConfigDict, mesh: Mesh) -> list[Job]:
    """The program that generating with a stage's model spends its time in, for songs that fill its context.

    A causal token model: a chunk of decoding steps with a cache. A layer-wise one: a pass over all frames. A codec: the
    decoding of one piece on every device of the batch. Weights are split as in training, rows over the batch's axes,
    cached heads over `tensor`.

    Args:
      config: of any stage; `train.batch_size` songs are made at once.
      mesh: of devices that need not be there.
    """
    rows = config.train.batch_size
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.stage == "codec":
        rows = shares
    system = workdir.system(config)
    made = system.rooms.program(config, rows)
    placed = jax.tree.map(lambda x: _abstract(x, mesh, rows), made.arguments, is_leaf=lambda x: isinstance(x, Cache))
    placed = (placed[0], _weights(made.arguments[1], mesh), *placed[2:])

    def load() -> Load:
        share = system.rooms.program(config, rows // shares)
        arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), share.arguments)

        def run(*dynamic):
            return share.function(arguments[0], *dynamic, **share.static)

        with jax.set_mesh(make_mesh({}, mesh.devices.flat[:1])):
            flops = forward_flops(run, *arguments[1:]) * shares
            moved = product_bytes(run, *arguments[1:]) / (mesh.shape["tensor"] * mesh.shape["context"])
        transfers = _transfers(made, config.model.dtype, placed[1], mesh, rows / shares * made.positions)
        return Load(flops, 0.0, moved, transfers, made.tokens, made.seconds)

    return [Job(made.name, lambda: made.function.lower(*placed, **made.static), load)]


def _weights(weights: nnx.State, mesh: Mesh) -> nnx.State:
    placement = shardings(weights, mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), weights, placement)


def _abstract(x: Any, mesh: Mesh, rows: int) -> Any:
    """An argument with its placement: rows over the batch's axes, a cache as decoding keeps it."""
    if isinstance(x, Cache):
        return jax.tree.map(lambda leaf, spec: _shape(leaf, NamedSharding(mesh, spec)), x, cache_specs(x, mesh.shape))
    spec = [None] * np.ndim(x) if not hasattr(x, "ndim") else [None] * x.ndim
    if spec and x.shape[0] % rows == 0 and rows % math.prod(mesh.shape[axis] for axis in Rules.batch) == 0:
        spec[0] = batch_sharding(mesh).spec[0]
    return _shape(x, NamedSharding(mesh, jax.P(*spec)))


def _shape(x: Any, placed: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed)


def _transfers(made: Generation, dtype: str, weights: nnx.State, mesh: Mesh, positions: float) -> tuple:
    """Weights gathered once a program; a token model's activations as in the forward pass of training."""
    leaves = jax.tree.leaves(weights)
    itemsize = jnp.dtype(dtype).itemsize
    specs = [(leaf.shape, leaf.sharding.spec) for leaf in leaves]
    transfers = [t for t in weight_transfers(specs, mesh, itemsize, gathers=1) if t.kind == "all-gather"]
    if made.trunk:
        sizes = {name: getattr(made.trunk, name) for name in ("layers", "width", "heads", "kv_heads", "head_dim")}
        positions /= mesh.shape["context"]
        found = activation_transfers(mesh, tokens=positions, **sizes, itemsize=itemsize, passes=1)
        transfers += [t for t in found if t.kind != "reduce-scatter"]
    return tuple(transfers)
