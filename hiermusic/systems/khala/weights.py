"""Which weight of Khala's models is which of its release, by the names of the six files."""

from collections.abc import Iterator, Mapping
from typing import Any

from hiermusic.pretrained import pairs
from hiermusic.pretrained.pairs import Pair

DILATIONS = (1, 3, 9)

# MARK: codec


def codec(model: Mapping[str, Any]) -> Iterator[Pair]:
    """Trunk and quantiser of the codec that these fields of `model` describe."""
    strides, inner, outer, units = model["strides"], model["encoder_width"], model["decoder_width"], model["dilations"]

    def conv(ours: str, theirs: str, inputs: int, outputs: int, taps: int, transposed: bool = False):
        yield from pairs.conv(ours, theirs, inputs, outputs, taps, transposed=transposed, normed=True)

    def snake(ours: str, theirs: str, channels: int):
        yield pairs.vector(f"{ours}.alpha", f"{theirs}.alpha", channels, (1, 1))

    def unit(ours: str, theirs: str, channels: int):
        yield from snake(f"{ours}.snake_in", f"{theirs}.block.0", channels)
        yield from conv(f"{ours}.conv_in", f"{theirs}.block.1", channels, channels, 7)
        yield from snake(f"{ours}.snake_out", f"{theirs}.block.2", channels)
        yield from conv(f"{ours}.conv_out", f"{theirs}.block.3", channels, channels, 1)

    last = len(strides) + 1
    yield from conv("encoder.conv_in", "encoder.block.0", model["channels"], inner, 7)
    for b, stride in enumerate(strides):
        channels, ours, theirs = inner * 2**b, f"encoder.blocks.{b}", f"encoder.block.{b + 1}.block"
        for u in range(len(units)):
            yield from unit(f"{ours}.units.{u}", f"{theirs}.{u}", channels)
        yield from snake(f"{ours}.snake", f"{theirs}.{len(units)}", channels)
        yield from conv(f"{ours}.down", f"{theirs}.{len(units) + 1}", channels, 2 * channels, 2 * stride)
    deep = inner * 2 ** len(strides)
    yield from snake("encoder.snake", f"encoder.block.{last}", deep)
    yield from conv("encoder.conv_out", f"encoder.block.{last + 1}", deep, model["latent"], 3)

    yield from conv("decoder.conv_in", "decoder.model.0", model["latent"], outer, 7)
    for b, stride in enumerate(strides[::-1]):
        channels, ours, theirs = outer // 2**b, f"decoder.blocks.{b}", f"decoder.model.{b + 1}.block"
        yield from snake(f"{ours}.snake", f"{theirs}.0", channels)
        yield from conv(f"{ours}.up", f"{theirs}.1", channels, channels // 2, 2 * stride, transposed=True)
        for u in range(len(units)):
            yield from unit(f"{ours}.units.{u}", f"{theirs}.{u + 2}", channels // 2)
    narrow = outer // 2 ** len(strides)
    yield from snake("decoder.snake", f"decoder.model.{last}", narrow)
    yield from conv("decoder.conv_out", f"decoder.model.{last + 1}", narrow, model["channels"], 7)

    shape = (model["codes"], model["latent"])
    yield pairs.matrix("quantiser.codebooks", books(model, "embed"), shape, turned=False)
    yield pairs.matrix("quantiser.ema_sums", books(model, "embed_avg"), shape, turned=False)
    yield pairs.vector("quantiser.ema_counts", books(model, "cluster_size"), model["codes"])


def books(model: Mapping[str, Any], part: str) -> tuple[str, ...]:
    """The names of a part of every level's codebook."""
    return tuple(f"quantizer.vq_layer_{k}._codebook.{part}" for k in range(model["levels"]))


def alias(level: int) -> str:
    """The name under which a level's codes stand once more."""
    return f"quantizer.embed_{level}"


# MARK: transformers

TABLES = {"embed": "embed.weight", "head": "lm_head.weight"}  # of text ids, then of each level's codes, then padding


def transformer(model: Mapping[str, Any], bias: int) -> Iterator[Pair]:
    """The trunk of the token model that these fields of `model` describe.

    Args:
      model: fields of a configuration.
      bias: how many times their program adds the biases in front of the gate: ours are so many of theirs.
    """
    D, F, N, M, H = (model[name] for name in ("width", "ffn_width", "heads", "kv_heads", "head_dim"))

    def each(name: str) -> tuple[str, ...]:
        return tuple(f"layers.{i}.{name}" for i in range(model["layers"]))

    ours = "trunk.layers"
    yield pairs.vector("trunk.final_norm.scale", "norm.weight", D)
    yield pairs.vector(f"{ours}.attention_norm.scale", each("input_norm.weight"), D)
    for name, theirs, heads in (("query", "q_proj", N), ("key", "k_proj", M), ("value", "v_proj", M)):
        shape, sizes = (heads * H, D), (heads, H)
        yield Pair(f"{ours}.attention.{name}", each(f"attn.{theirs}.weight"), shape, (1, 0), (D, *sizes))
        yield Pair(f"{ours}.attention.{name}_bias", each(f"attn.{theirs}.bias"), shape[:1], (0,), sizes)
    yield Pair(f"{ours}.attention.out", each("attn.o_proj.weight"), (D, N * H), (1, 0), (N, H, D))
    yield pairs.vector(f"{ours}.attention.out_bias", each("attn.o_proj.bias"), D)
    yield pairs.vector(f"{ours}.ffn_norm.scale", each("post_attn_norm.weight"), D)
    for name, theirs in (("gate", "gate_proj"), ("up", "up_proj")):
        yield pairs.matrix(f"{ours}.ffn.{name}", each(f"mlp.{theirs}.weight"), (F, D))
        yield Pair(f"{ours}.ffn.{name}_bias", each(f"mlp.{theirs}.bias"), (F,), (0,), (F,), times=float(bias))
    yield pairs.matrix(f"{ours}.ffn.down", each("mlp.down_proj.weight"), (D, F))
    yield pairs.vector(f"{ours}.ffn.down_bias", each("mlp.down_proj.bias"), D)
