"""EnCodec (arXiv 2210.13438) at 24 and 48 kHz, and MusicGen's at 32, from transformers' folders and the originals."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hiermusic.errors import UserError
from hiermusic.pretrained import pairs
from hiermusic.pretrained.family import Family, Imported
from hiermusic.pretrained.source import Source

_MOST_LAYERS = 100  # of an LSTM
_AT_LEAST = 2  # levels of the lowest bandwidth that EnCodec offers
_SEGMENTS = {"normalize": True, "chunk_length_s": 1.0, "overlap": 0.01}  # of the original at 48 kHz, which tells none

# the originals' names -> transformers'
_NAMES = (
    (r"^(encoder|decoder)\.model\.", r"\1.layers."),
    (r"\.(?:conv|convtr)\.(?:conv|convtr)\.(weight|bias)", r".conv.\1"),
    (r"\.(?:conv|convtr)\.norm\.", ".norm."),
    (r"^quantizer\.vq\.layers\.(\d+)\._codebook\.", r"quantizer.layers.\1.codebook."),
)


def read(source: Source) -> Imported:
    """The codec; UserError where the weights are of another family, or of a form that is not known here."""
    with source.understood():
        source = source if "model_type" in source.config else _as_transformers(source)
        model = _model(source)
    table = list(_table(model))
    source = replace(source, tensors=pairs.unfolded(source.tensors, table))
    weights = pairs.read(source, table)
    width = model["width"] * 2 ** len(model["strides"])
    for half in ("encoder", "decoder"):
        place = f"{half}.layers.{_lstm_place(half, model)}.lstm"
        for i in range(model["lstm_layers"]):
            halves = [source.tensor(f"{place}.bias_{way}_l{i}", (4 * width,)) for way in ("ih", "hh")]
            weights[f"{half}.lstm.layers.{i}.bias"] = halves[0] + halves[1]
    weights["quantiser.initialised"] = np.ones((), bool)
    return Imported(model, weights)


def write(codec: Imported) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The codec as transformers' EncodecModel; UserError where that has no such form."""
    model = codec.config
    growth = model["dilations"][1] if len(model["dilations"]) > 1 else 2
    if tuple(model["dilations"]) != tuple(growth**i for i in range(len(model["dilations"]))):
        raise UserError(f"transformers' EnCodec has no dilations {tuple(model['dilations'])}")
    rate = -(-model["sample_rate"] // math.prod(model["strides"]))
    bits = int(model["codes"]).bit_length() - 1
    if model["codes"] != 1 << bits or not model["ragged"] or not model["lstm_layers"]:
        raise UserError("transformers' EnCodec has codes of whole bits, ragged ends and an LSTM: this codec has not")
    seconds = model.get("segment_seconds") or None  # folders of earlier versions know neither these nor a padding
    levels = [2**i for i in range(20) if _AT_LEAST <= 2**i < model["levels"] and model["levels"] > 4]
    config = {
        "model_type": "encodec",
        "architectures": ["EncodecModel"],
        "sampling_rate": model["sample_rate"],
        "audio_channels": model["channels"],
        "normalize": bool(seconds),
        "chunk_length_s": seconds,
        "overlap": model["overlap"] if seconds else None,
        "hidden_size": model["latent"],
        "num_filters": model["width"],
        "num_residual_layers": len(model["dilations"]),
        "upsampling_ratios": list(model["strides"][::-1]),
        "norm_type": "weight_norm" if model["norm"] == "weight" else "time_group_norm",
        "kernel_size": model["kernel"],
        "last_kernel_size": model["last_kernel"],
        "residual_kernel_size": model["residual_kernel"],
        "dilation_growth_rate": growth,
        "use_causal_conv": model["causal"],
        "pad_mode": model.get("padding", "reflect"),
        "compress": model["compress"],
        "num_lstm_layers": model["lstm_layers"],
        "trim_right_ratio": 1.0,
        "codebook_size": model["codes"],
        "codebook_dim": model["latent"],
        "use_conv_shortcut": model["shortcut"],
        "target_bandwidths": [round(n * rate * bits / 1000, 6) for n in (*levels, model["levels"])],
    }
    tensors = pairs.write(codec.weights, _table(model))
    for half in ("encoder", "decoder"):
        place = f"{half}.layers.{_lstm_place(half, model)}.lstm"
        for i in range(model["lstm_layers"]):
            bias = codec.weights[f"{half}.lstm.layers.{i}.bias"]
            tensors |= {f"{place}.bias_ih_l{i}": bias, f"{place}.bias_hh_l{i}": np.zeros_like(bias)}
    for k in range(model["levels"]):
        tensors[f"quantizer.layers.{k}.codebook.inited"] = np.ones(1, np.float32)
    parts = {".weight_g": "original0", ".weight_v": "original1"}
    named = {}
    for name, tensor in tensors.items():
        for part, new in parts.items():
            name = f"{name.removesuffix(part)}.parametrizations.weight.{new}" if name.endswith(part) else name
        named[name] = tensor
    return config, named


def _owns(config: Mapping[str, Any]) -> bool:
    model = config.get("model", {})
    return (model.get("trunk"), model.get("quantiser")) == ("seanet", "residual")


FAMILY = Family("EnCodec", read, write, "configs/tokens/codec.py:encodec_24khz", owns=_owns)


# MARK: what it is


def _model(source: Source) -> dict[str, Any]:
    if (kind := source.config.get("model_type")) != "encodec":
        raise UserError(f"{source.where} is a model of the type '{kind}': encodec is wanted here")
    if (value := source.field("trim_right_ratio", default=1.0)) != 1.0:
        raise UserError(f"{source.where}: trim_right_ratio is {value}; only 1.0 is known here")
    if (padding := source.field("pad_mode", str, "reflect")) not in ("reflect", "constant"):
        raise UserError(f"{source.where}: pad_mode is {padding}; known are reflect, constant")
    norms = {"weight_norm": "weight", "time_group_norm": "group"}
    if (norm := source.field("norm_type", str, "weight_norm")) not in norms:
        raise UserError(f"{source.where}: norm_type is {norm}; known are {', '.join(norms)}")
    number = {
        "sample_rate": source.size("sampling_rate", 24_000),
        "channels": source.size("audio_channels", 1),
        "width": source.size("num_filters", 32),
        "kernel": source.size("kernel_size", 7),
        "last_kernel": source.size("last_kernel_size", 7),
        "residual_kernel": source.size("residual_kernel_size", 3),
        "compress": source.size("compress", 2),
        "lstm_layers": source.size("num_lstm_layers", 2, most=_MOST_LAYERS),
        "codes": source.size("codebook_size", 1024),
        "latent": source.size("hidden_size", 128),
    }
    strides = source.whole("upsampling_ratios", [8, 5, 4, 2])[::-1]
    layers, growth = source.size("num_residual_layers", 1, most=8), source.size("dilation_growth_rate", 2)
    if (source.config.get("codebook_dim") or number["latent"]) != number["latent"]:
        raise UserError(f"{source.where}: codebook_dim and hidden_size differ; only equal ones are known here")
    found = [re.fullmatch(r"quantizer\.layers\.(\d+)\.codebook\.embed", name) for name in source.tensors]
    return number | {
        "trunk": "seanet",
        "quantiser": "residual",
        "strides": strides,
        "dilations": tuple(growth**i for i in range(layers)),
        "causal": source.field("use_causal_conv", bool, True),
        "norm": norms[norm],
        "shortcut": source.field("use_conv_shortcut", bool, True),
        "ragged": True,
        "padding": padding,
        **_segments(source),
        "levels": max(1, sum(map(bool, found))),
    }


def _segments(source: Source) -> dict[str, float]:
    """How long the segments are that are coded one by one, and what they share; a length of 0 for sounds as a whole."""
    seconds, overlap = source.config.get("chunk_length_s"), source.config.get("overlap")
    if (seconds is not None) != (normalised := source.field("normalize", bool, False)):
        told = f"normalize is {normalised} and chunk_length_s is {seconds}"
        raise UserError(f"{source.where}: {told}; only models that have both or neither are known here")
    if seconds is None:
        return {"segment_seconds": 0.0, "overlap": 0.0}
    for name, value, least, most in (("chunk_length_s", seconds, 0.01, 60), ("overlap", overlap, 0, 0.99)):
        if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
            told = f"a number from {least} to {most} belongs there"
            raise UserError(f"{source.where}: {name} is {value} in its configuration: {told}")
    return {"segment_seconds": float(seconds), "overlap": float(overlap)}


def _table(model: Mapping[str, Any]) -> Iterator[pairs.Pair]:
    yield from _trunk("encoder", model)
    yield from _trunk("decoder", model)
    levels, shape = range(model["levels"]), (model["codes"], model["latent"])
    for ours, theirs in (("codebooks", "embed"), ("ema_sums", "embed_avg")):
        names = tuple(f"quantizer.layers.{k}.codebook.{theirs}" for k in levels)
        yield pairs.matrix(f"quantiser.{ours}", names, shape, turned=False)
    names = tuple(f"quantizer.layers.{k}.codebook.cluster_size" for k in levels)
    yield pairs.vector("quantiser.ema_counts", names, model["codes"])


def _lstm_place(half: str, model: Mapping[str, Any]) -> int:
    """The place of the LSTM among the layers of a half."""
    return 1 if half == "decoder" else 1 + len(model["strides"]) * (len(model["dilations"]) + 2)


def _trunk(half: str, model: Mapping[str, Any]) -> Iterator[pairs.Pair]:
    """A half's weights, the layers counted as they follow each other in both forms, activations among them."""
    narrow, strides, units = model["width"], model["strides"], len(model["dilations"])
    wide, place = narrow * 2 ** len(strides), 0

    def conv(ours: str, theirs: str, inputs: int, outputs: int, taps: int, transposed: bool = False):
        ours, theirs = f"{half}.{ours}", f"{half}.layers.{theirs}"
        weight = model["norm"] == "weight"
        yield from pairs.conv(ours, f"{theirs}.conv", inputs, outputs, taps, transposed=transposed, normed=weight)
        if not weight:
            yield pairs.vector(f"{ours}.norm.scale", f"{theirs}.norm.weight", outputs)
            yield pairs.vector(f"{ours}.norm.bias", f"{theirs}.norm.bias", outputs)

    def residual(block: int, channels: int):
        nonlocal place
        for unit in range(units):
            ours, theirs, hidden = f"blocks.{block}.units.{unit}", f"{place}", channels // model["compress"]
            yield from conv(f"{ours}.conv_in", f"{theirs}.block.1", channels, hidden, model["residual_kernel"])
            yield from conv(f"{ours}.conv_out", f"{theirs}.block.3", hidden, channels, 1)
            if model["shortcut"]:
                yield from conv(f"{ours}.shortcut", f"{theirs}.shortcut", channels, channels, 1)
            place += 1

    def lstm():
        nonlocal place
        for i in range(model["lstm_layers"]):
            for way in ("ih", "hh"):
                names = f"{half}.lstm.layers.{i}.weight_{way}", f"{half}.layers.{place}.lstm.weight_{way}_l{i}"
                yield pairs.matrix(*names, (4 * wide, wide))
        place += 1

    first, last = (model["channels"], model["latent"]) if half == "encoder" else (model["latent"], model["channels"])
    yield from conv("conv_in", "0", first, narrow if half == "encoder" else wide, model["kernel"])
    place += 1
    if half == "decoder":
        yield from lstm()
    for block, stride in enumerate(strides if half == "encoder" else strides[::-1]):
        if half == "encoder":
            channels = narrow * 2**block
            yield from residual(block, channels)
            yield from conv(f"blocks.{block}.down", f"{place + 1}", channels, 2 * channels, 2 * stride)
            place += 2  # the convolution, and the activation in front of it
        else:
            channels = wide // 2**block
            yield from conv(f"blocks.{block}.up", f"{place + 1}", channels, channels // 2, 2 * stride, transposed=True)
            place += 2
            yield from residual(block, channels // 2)
    if half == "encoder":
        yield from lstm()
    yield from conv("conv_out", f"{place + 1}", wide if half == "encoder" else narrow, last, model["last_kernel"])


# MARK: the originals


def _as_transformers(source: Source) -> Source:
    """What the encodec package or audiocraft has saved, under the names that transformers gives it.

    The encodec package saves no configuration beside the weights; sizes are read off these.
    """
    tensors = {}
    for name, tensor in source.tensors.items():
        for old, new in _NAMES:
            name = re.sub(old, new, name)
        tensors[name] = tensor
    config = {"model_type": "encodec", **_sizes(source, tensors)}
    return Source(source.where, config, tensors, source.licence)


def _sizes(source: Source, tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    def shape(name: str) -> tuple[int, ...]:
        stem = f"encoder.layers.{name}"
        found = tensors.get(f"{stem}.weight_v", tensors.get(f"{stem}.weight"))
        if found is None or found.ndim != 3:
            raise UserError(f"{source.where} has no weight {stem}.weight: is it of another family?")
        return found.shape

    width, channels, kernel = shape("0.conv")
    places, units = (_places(tensors, rf"encoder\.layers\.(\d+)\.{part}") for part in ("conv.bias", r"block\.1\."))
    downs, last = places[1:-1], places[-1]
    if not downs or not units:
        raise UserError(f"{source.where} has no blocks of residual units: is it of another family?")
    hidden = shape(f"{units[0]}.block.1.conv")
    codebook = tensors.get("quantizer.layers.0.codebook.embed", np.zeros((1, 1)))
    told = str(source.config.get("xp.cfg", ""))  # audiocraft's, as YAML
    rate = re.search(r"^sample_rate: (\d+)$", told, re.MULTILINE)
    causal = re.search(r"^ +causal: (true|false)$", told, re.MULTILINE)
    padding = re.search(r"^ +pad_mode: (\w+)$", told, re.MULTILINE)
    loud = re.search(r"^ +renormalize: true$", told, re.MULTILINE)
    # of the two models of the encodec package, which tell nothing, the one that codes segments has another norm
    group = "encoder.layers.0.norm.weight" in tensors
    segments = group and not told
    own = {"sampling_rate": 48_000, "use_causal_conv": False, **_SEGMENTS} if segments else {}
    return {
        "sampling_rate": int(rate[1]) if rate else 24_000,
        "audio_channels": channels,
        "num_filters": width,
        "kernel_size": kernel,
        "last_kernel_size": shape(f"{last}.conv")[2],
        "hidden_size": shape(f"{last}.conv")[0],
        "residual_kernel_size": hidden[2],
        "compress": width // hidden[0],
        "num_residual_layers": len(units) // len(downs),
        "upsampling_ratios": [shape(f"{place}.conv")[2] // 2 for place in downs[::-1]],
        "num_lstm_layers": sum(".lstm.bias_ih_l" in name and name.startswith("encoder.") for name in tensors),
        "pad_mode": padding[1] if padding else "reflect",
        "use_causal_conv": causal is None or causal[1] == "true",
        "use_conv_shortcut": any(".shortcut." in name for name in tensors),
        "codebook_size": codebook.shape[0],
        "norm_type": "time_group_norm" if group else "weight_norm",
        "normalize": bool(loud),
        **own,
    }


def _places(tensors: Mapping[str, np.ndarray], pattern: str) -> list[int]:
    return sorted({int(found[1]) for name in tensors if (found := re.match(pattern, name))})
