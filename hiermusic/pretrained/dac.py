"""DAC (arXiv 2306.06546): 16, 24 and 44.1 kHz, from transformers' folders and from Descript's releases."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hiermusic.errors import UserError
from hiermusic.pretrained import pairs
from hiermusic.pretrained.family import Family, Imported
from hiermusic.pretrained.source import Source, folded

_DILATIONS = (1, 3, 9)
_MOST_LEVELS = 1000  # as many as a stranger's configuration names would fill the memory
# what stands where in a residual unit of Descript's, in transformers' names
_UNIT = {"0.alpha": "snake1.alpha", "1": "conv1", "2.alpha": "snake2.alpha", "3": "conv2"}


def read(source: Source) -> Imported:
    """The codec; UserError where the weights are of another family."""
    with source.understood():
        source = source if "model_type" in source.config else _as_transformers(source)
        model = _model(source)
    table = list(_table(model))
    source = replace(source, tensors=pairs.unfolded(source.tensors, table))
    weights = pairs.read(source, table)
    weights["quantiser.ema_counts"] = np.zeros((model["levels"], model["codes"]), np.float32)
    weights["quantiser.initialised"] = np.ones((), bool)
    return Imported(model, weights)


def write(codec: Imported) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The codec as transformers' DacModel; UserError where that has no such form."""
    model = codec.config
    strides = list(model["strides"])
    inner = model["encoder_width"] * 2 ** len(strides)
    if model["latent"] != inner:
        raise UserError(f"transformers' DAC has frames of {inner} channels where this codec has {model['latent']}")
    odd = model["short"] or not any(stride % 2 for stride in strides)
    fits = (tuple(model["dilations"]), model["channels"], model["fold"]) == (_DILATIONS, 1, 1)
    if not (odd and fits and model["tanh"]) or model["codes"] & (model["codes"] - 1):
        raise UserError(
            "transformers' DAC has one channel, dilations of 1, 3 and 9, a tanh, codes of whole bits and no fold, and "
            "loses a sample at odd strides: this codec is another"
        )
    config = {
        "model_type": "dac",
        "architectures": ["DacModel"],
        "sampling_rate": model["sample_rate"],
        "encoder_hidden_size": model["encoder_width"],
        "decoder_hidden_size": model["decoder_width"],
        "downsampling_ratios": strides,
        "upsampling_ratios": strides[::-1],
        "hidden_size": inner,
        "hop_length": math.prod(strides),
        "n_codebooks": model["levels"],
        "codebook_size": model["codes"],
        "codebook_dim": model["code_width"],
        "quantizer_dropout": model["quantiser_dropout"],
        "commitment_loss_weight": 0.25,
        "codebook_loss_weight": 1.0,
    }
    return config, folded(pairs.write(codec.weights, _table(model)))


def _owns(config: Mapping[str, Any]) -> bool:
    model = config.get("model", {})
    return (model.get("trunk"), model.get("quantiser")) == ("dac", "factorised")


FAMILY = Family("DAC", read, write, "configs/tokens/codec.py:dac_44khz", owns=_owns)


def _model(source: Source) -> dict[str, Any]:
    if (kind := source.config.get("model_type")) != "dac":
        raise UserError(f"{source.where} is a model of the type '{kind}': dac is wanted here")
    model = {
        "sample_rate": source.size("sampling_rate", 16_000),
        "encoder_width": source.size("encoder_hidden_size", 64),
        "decoder_width": source.size("decoder_hidden_size", 1536),
        "levels": source.size("n_codebooks", 9, most=_MOST_LEVELS),
        "codes": source.size("codebook_size", 1024),
        "code_width": source.size("codebook_dim", 8),
    }
    strides = source.whole("downsampling_ratios", (2, 4, 8, 8))
    if (back := source.whole("upsampling_ratios", strides[::-1])) != strides[::-1]:
        raise UserError(
            f"{source.where}: upsampling_ratios is {back}: only {strides[::-1]}, the way back, is known here"
        )
    inner = model["encoder_width"] * 2 ** len(strides)
    return model | {
        "channels": 1,
        "trunk": "dac",
        "quantiser": "factorised",
        "strides": strides,
        "dilations": _DILATIONS,
        "latent": source.size("hidden_size", inner),
        "tanh": True,
        "short": True,
    }


def _table(model: Mapping[str, Any]) -> Iterator[pairs.Pair]:
    strides, inner, outer = model["strides"], model["encoder_width"], model["decoder_width"]
    deep = inner * 2 ** len(strides)

    def conv(ours: str, theirs: str, inputs: int, outputs: int, taps: int, transposed: bool = False):
        yield from pairs.conv(ours, theirs, inputs, outputs, taps, transposed=transposed, normed=True)

    def snake(ours: str, theirs: str, channels: int):
        yield pairs.vector(f"{ours}.alpha", f"{theirs}.alpha", channels, (1, 1))

    def units(block: str, channels: int):
        for i in range(len(_DILATIONS)):
            ours, theirs = f"{block.replace('.block.', '.blocks.')}.units.{i}", f"{block}.res_unit{i + 1}"
            yield from snake(f"{ours}.snake_in", f"{theirs}.snake1", channels)
            yield from conv(f"{ours}.conv_in", f"{theirs}.conv1", channels, channels, 7)
            yield from snake(f"{ours}.snake_out", f"{theirs}.snake2", channels)
            yield from conv(f"{ours}.conv_out", f"{theirs}.conv2", channels, channels, 1)

    yield from conv("encoder.conv_in", "encoder.conv1", model["channels"], inner, 7)
    for i, stride in enumerate(strides):
        channels, ours, theirs = inner * 2**i, f"encoder.blocks.{i}", f"encoder.block.{i}"
        yield from units(theirs, channels)
        yield from snake(f"{ours}.snake", f"{theirs}.snake1", channels)
        yield from conv(f"{ours}.down", f"{theirs}.conv1", channels, 2 * channels, 2 * stride)
    yield from snake("encoder.snake", "encoder.snake1", deep)
    yield from conv("encoder.conv_out", "encoder.conv2", deep, model["latent"], 3)

    yield from conv("decoder.conv_in", "decoder.conv1", model["latent"], outer, 7)
    for i, stride in enumerate(strides[::-1]):
        channels, ours, theirs = outer // 2**i, f"decoder.blocks.{i}", f"decoder.block.{i}"
        yield from snake(f"{ours}.snake", f"{theirs}.snake1", channels)
        yield from conv(f"{ours}.up", f"{theirs}.conv_t1", channels, channels // 2, 2 * stride, transposed=True)
        yield from units(theirs, channels // 2)
    narrow = outer // 2 ** len(strides)
    yield from snake("decoder.snake", "decoder.snake1", narrow)
    yield from conv("decoder.conv_out", "decoder.conv2", narrow, model["channels"], 7)

    def each(name: str) -> tuple[str, ...]:
        return tuple(f"quantizer.quantizers.{k}.{name}" for k in range(model["levels"]))

    latent, width = model["latent"], model["code_width"]
    yield pairs.matrix("quantiser.codebooks", each("codebook.weight"), (model["codes"], width), turned=False)
    for way, inputs, outputs in (("in", latent, width), ("out", width, latent)):
        shape = (outputs, inputs, 1)
        yield pairs.Pair(f"quantiser.{way}_proj", each(f"{way}_proj.weight_v"), shape, (2, 1, 0), (inputs, outputs))
        yield pairs.vector(f"quantiser.{way}_gain", each(f"{way}_proj.weight_g"), outputs, (0, 2))
        yield pairs.vector(f"quantiser.{way}_bias", each(f"{way}_proj.bias"), outputs)


# MARK: the originals


def _as_transformers(source: Source) -> Source:
    """What Descript has released, under the names that transformers gives it."""
    told = source.config.get("metadata")
    told = told.get("kwargs") if isinstance(told, dict) else None
    if not isinstance(told, dict) or "encoder_rates" not in told:
        raise UserError(f"{source.where} does not tell its sizes as DAC's releases do: is it of another family?")
    names = {
        "encoder_dim": "encoder_hidden_size",
        "decoder_dim": "decoder_hidden_size",
        "encoder_rates": "downsampling_ratios",
        "decoder_rates": "upsampling_ratios",
        "latent_dim": "hidden_size",
        "n_codebooks": "n_codebooks",
        "codebook_size": "codebook_size",
        "codebook_dim": "codebook_dim",
        "sample_rate": "sampling_rate",
    }
    config = {names[name]: value for name, value in told.items() if name in names and value is not None}
    last = len(config["downsampling_ratios"]) + 1 if isinstance(config["downsampling_ratios"], list) else 0
    tensors = {_renamed(name, last): tensor for name, tensor in source.tensors.items()}
    return Source(source.where, {"model_type": "dac", "sampling_rate": 44_100, **config}, tensors, source.licence)


def _renamed(name: str, last: int) -> str:
    """A name of Descript's as transformers has it; `last` is the place behind the last block."""
    if not (found := re.fullmatch(r"(encoder\.block|decoder\.model)\.(\d+)\.(.+)", name)):
        return name
    half, place, rest = found[1].partition(".")[0], int(found[2]), found[3]
    if place == 0:
        return f"{half}.conv1.{rest}"
    if place >= last:
        return f"{half}.{'snake1' if place == last else 'conv2'}.{rest}"
    block = f"{half}.block.{place - 1}"
    if unit := re.fullmatch(r"block\.(\d)\.block\.(.+)", rest):
        number = int(unit[1]) + (1 if half == "encoder" else -1)
        inside = next((_UNIT[key] + unit[2][len(key) :] for key in _UNIT if unit[2].startswith(key)), unit[2])
        return f"{block}.res_unit{number}.{inside}"
    strided = {"encoder": {"3": "snake1", "4": "conv1"}, "decoder": {"0": "snake1", "1": "conv_t1"}}[half]
    place, _, rest = rest.removeprefix("block.").partition(".")
    return f"{block}.{strided.get(place, place)}.{rest}"
