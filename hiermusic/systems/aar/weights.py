"""Which weight of SAT and AAR is which of what their authors have published (github.com/qiuk2/AAR)."""

from collections.abc import Iterator, Mapping
from typing import Any

from hiermusic.pretrained import pairs
from hiermusic.pretrained.pairs import Pair

HEAD = 64  # width of a head

# MARK: the codec


def codec(model: Mapping[str, Any]) -> Iterator[Pair]:
    """Trunk and quantiser of the codec that these fields of `model` describe; an LSTM's biases are `lstm_biases`."""
    yield from _half("encoder", model)
    yield from _half("decoder", model)
    dim, code = model["latent"], model["code_latent"]
    if dim != code:
        for ours, theirs, shape in (("in", "in", (code, dim)), ("out", "out", (dim, code))):
            yield pairs.matrix(f"quantiser.{ours}_proj", f"quantizer.vq.project_{theirs}.weight", shape)
            yield pairs.vector(f"quantiser.{ours}_proj_bias", f"quantizer.vq.project_{theirs}.bias", shape[0])
    phis = tuple(f"quantizer.vq.quant_resi.qresi_ls.{p}" for p in range(model["phi_count"]))
    taps = model["phi_kernel"]
    names = tuple(f"{phi}.weight" for phi in phis)
    yield Pair("quantiser.phi", names, (code, code, taps), (2, 1, 0), (taps, code, code))
    yield pairs.vector("quantiser.phi_bias", tuple(f"{phi}.bias" for phi in phis), code)
    yield pairs.matrix("quantiser.codebooks", books(model, "embed"), (model["codes"], code), turned=False)
    yield pairs.matrix("quantiser.ema_sums", books(model, "embed_avg"), (model["codes"], code), turned=False)
    yield pairs.vector("quantiser.ema_counts", books(model, "cluster_size"), model["codes"])


def books(model: Mapping[str, Any], part: str) -> tuple[str, ...]:
    """The names of a part of every level's codebook."""
    return tuple(f"quantizer.vq.layers.{k}._codebook.{part}" for k in range(model["levels"]))


def lstm_biases(model: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Our bias of each layer of an LSTM, and the two that only act as their sum."""
    found = {}
    for half, place in (("encoder", 1 + 3 * len(model["strides"])), ("decoder", 1)):
        for i in range(model["lstm_layers"]):
            stem = f"{half}.model.{place}.lstm.bias"
            found[f"{half}.lstm.layers.{i}.bias"] = (f"{stem}_ih_l{i}", f"{stem}_hh_l{i}")
    return found


def _half(half: str, model: Mapping[str, Any]) -> Iterator[Pair]:
    strides, narrow = model["strides"], model["width"]
    wide, last = narrow * 2 ** len(strides), 3 + 3 * len(strides)

    def conv(ours: str, theirs: str, inputs: int, outputs: int, taps: int, transposed: bool = False):
        kind = "convtr" if transposed else "conv"
        place = f"{half}.model.{theirs}.{kind}.{kind}"
        yield from pairs.conv(f"{half}.{ours}", place, inputs, outputs, taps, transposed=transposed, normed=True)

    def unit(block: int, place: int, channels: int):
        ours = f"blocks.{block}.units.0"
        yield from conv(f"{ours}.conv_in", f"{place}.block.1", channels, channels // 2, 3)
        yield from conv(f"{ours}.conv_out", f"{place}.block.3", channels // 2, channels, 1)
        yield from conv(f"{ours}.shortcut", f"{place}.shortcut", channels, channels, 1)

    inner, outer = model["latent"], model["channels"]
    ends = ((outer, narrow), (wide, inner)) if half == "encoder" else ((inner, wide), (narrow, outer))
    yield from conv("conv_in", "0", *ends[0], 7)
    for b, stride in enumerate(strides if half == "encoder" else strides[::-1]):
        if half == "encoder":
            channels = narrow * 2**b
            yield from unit(b, 1 + 3 * b, channels)
            yield from conv(f"blocks.{b}.down", f"{3 + 3 * b}", channels, 2 * channels, 2 * stride)
        else:
            channels = wide // 2**b
            yield from conv(f"blocks.{b}.up", f"{3 + 3 * b}", channels, channels // 2, 2 * stride, transposed=True)
            yield from unit(b, 4 + 3 * b, channels // 2)
    place = f"{half}.model.{last - 2 if half == 'encoder' else 1}.lstm"
    for i in range(model["lstm_layers"]):
        for way in ("ih", "hh"):
            yield pairs.matrix(f"{half}.lstm.layers.{i}.weight_{way}", f"{place}.weight_{way}_l{i}", (4 * wide, wide))
    yield from conv("conv_out", f"{last}", *ends[1], 7)


# MARK: the model of a window

FUSED = "attn.mat_qkv.weight"  # queries, keys and values, one after the other
SPARE = ("lvl_1L", "attn_bias_for_masking")  # what follows from sizes
SPARE_OF_BLOCK = "attn.zero_k_bias"


def prior(depth: int, cond: int, latent: int, codes: int, positions: int, levels: int) -> Iterator[Pair]:
    """The token model, but for what is fused or has a row more with us."""
    D = HEAD * depth
    shape = {"up": (4 * D, D), "down": (D, 4 * D)}

    def each(name: str) -> tuple[str, ...]:
        return tuple(f"blocks.{i}.{name}" for i in range(depth))

    def adapt(ours: str, theirs, parts: int, stacked: bool):
        weight, bias = (each(f"{theirs}.{name}") if stacked else f"{theirs}.{name}" for name in ("weight", "bias"))
        yield Pair(f"{ours}.kernel", weight, (parts * D, D), (1, 0), (D, parts, D))
        yield Pair(f"{ours}.bias", bias, (parts * D,), (0,), (parts, D))

    yield Pair("lm.text_embed", "pos_start", (1, 1, D), (0, 1, 2), (1, D))
    yield Pair("lm.trunk.absolute", "pos_1LC", (1, positions, D), (0, 1, 2), (positions, D))
    yield pairs.matrix("lm.input_proj", "word_embed.weight", (D, latent))
    yield pairs.vector("lm.input_bias", "word_embed.bias", D)
    yield pairs.matrix("lm.cond_in", "class_emb.fc1.weight", (D, cond))
    yield pairs.matrix("lm.cond_out", "class_emb.fc2.weight", (D, D))
    ours = "lm.trunk.layers"
    yield pairs.Pair(f"{ours}.attention.query_bias", each("attn.q_bias"), (D,), (0,), (depth, HEAD))
    yield pairs.Pair(f"{ours}.attention.value_bias", each("attn.v_bias"), (D,), (0,), (depth, HEAD))
    yield Pair(f"{ours}.attention.log_scale", each("attn.scale_mul_1H11"), (1, depth, 1, 1), (0, 1, 2, 3), (depth,))
    yield Pair(f"{ours}.attention.out", each("attn.proj.weight"), (D, D), (1, 0), (depth, HEAD, D))
    yield pairs.vector(f"{ours}.attention.out_bias", each("attn.proj.bias"), D)
    for name, theirs in (("up", "ffn.fc1"), ("down", "ffn.fc2")):
        yield pairs.matrix(f"{ours}.ffn.{name}", each(f"{theirs}.weight"), shape[name])
        yield pairs.vector(f"{ours}.ffn.{name}_bias", each(f"{theirs}.bias"), shape[name][0])
    yield from adapt(f"{ours}.adapt", "ada_lin.1", 6, True)
    yield from adapt("lm.trunk.final_adapt", "head_nm.ada_lin.1", 2, False)
    yield pairs.matrix("lm.code_head", "head.weight", (codes, D), turned=False)
    yield pairs.vector("lm.code_bias", "head.bias", codes)
    yield Pair("unconditional", "uncond_embedding", (1, cond), (0, 1), (cond,))
