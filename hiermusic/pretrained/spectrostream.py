"""SpectroStream, 48 kHz stereo, as Magenta's release has it: safetensors of encoder, decoder and quantiser.

The names are those of a Flax program, joined by `/`; what stands in front of them is not the same in all files.
"""

import math
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hiermusic.errors import UserError
from hiermusic.pretrained import pairs
from hiermusic.pretrained.family import Family, Imported
from hiermusic.pretrained.later import Later, safetensors
from hiermusic.pretrained.pairs import Pair
from hiermusic.pretrained.source import Source, licence_of

LICENCE = "cc-by-4.0"

_PARTS = ("encoder", "decoder", "quantizer")
_PLACES = ("", "resources/spectrostream")  # of the files
_BLOCKS = 7
_ENCODER, _DECODER = (1, 2, 2, 4, 4, 4, 8, 8), (16, 32, 8, 8, 8, 4, 4, 2)  # channels over those of the first
_SAMPLE_RATE, _CHANNELS = 48_000, 2  # which nothing tells
_FIRST = re.compile(  # with what names begin behind that of their file
    r"base_conv_first|(en|de)coder_\d|bottleneck|output_convs|input_layer|input_layers_residual_unit|output_layer|embedding"
)
_KERNEL, _BIAS = "conv/kernel", "conv/bias"


def open_files(path: str) -> Source:
    """The three files of a folder, or of `resources/spectrostream` in it, under the names of one program.

    Raises:
      UserError: a folder that lacks one of them.
    """
    where = Path(path)
    folder = next((where / place for place in _PLACES if (where / place / f"{_PARTS[0]}.safetensors").is_file()), where)
    missing = [f"{part}.safetensors" for part in _PARTS if not (folder / f"{part}.safetensors").is_file()]
    if missing:
        raise UserError(
            f"{folder} has no {missing[0]}: give the folder that has it beside the other two of {', '.join(_PARTS)}, "
            "resources/spectrostream of google/magenta-realtime-2"
        )
    tensors: dict[str, Later] = {}
    for part in _PARTS:
        for name, tensor in safetensors(folder / f"{part}.safetensors").items():
            steps = name.removesuffix("/value").split("/")
            first = next((i for i, step in enumerate(steps) if _FIRST.fullmatch(step)), 0)
            tensors["/".join([part, *steps[first:]])] = tensor
    return Source(folder, {}, tensors, licence_of(where, LICENCE))


def read(source: Source) -> Imported:
    """The codec; UserError where the weights are of another model."""
    with source.understood():
        model = _sizes(source)
        table = list(_table(model))
        weights = pairs.read(source, table)
    pairs.check_known(source, pairs.named(table))
    books = weights["quantiser.codebooks"]
    # averages are not released: these stand for one frame a code
    weights |= {"quantiser.ema_sums": books.copy(), "quantiser.ema_counts": np.ones(books.shape[:2], np.float32)}
    weights["quantiser.initialised"] = np.ones((), bool)
    return Imported(model, weights)


FAMILY = Family("SpectroStream", read, config="configs/tokens/codec.py:spectrostream", open=open_files)


def _sizes(source: Source) -> dict[str, Any]:
    """Fields of `model`, as the shapes of the weights tell them."""

    def shape(name: str) -> tuple[int, ...]:
        if name not in source.tensors:
            raise UserError(f"{source.where} has no weight {name}: is it another model?")
        return source.tensors[name].shape

    width = shape(f"encoder/base_conv_first/{_KERNEL}")[-1]
    strides = []
    for i in range(_BLOCKS):
        pattern = rf"encoder/encoder_{i}/conv2d_(\d)x(\d)_a/{_KERNEL}"
        taps = next((found.groups() for name in source.tensors if (found := re.fullmatch(pattern, name))), None)
        if taps is None:
            raise UserError(f"{source.where} has no strided convolution in encoder/encoder_{i}: is it another model?")
        strides.append(tuple(1 if int(n) == 3 else int(n) // 2 for n in taps))
    flat, latent = shape(f"encoder/output_convs/conv1x1_last/{_KERNEL}")[2:]
    levels, codes, _ = shape("quantizer/embedding")
    time, freq = (tuple(stride) for stride in zip(*strides, strict=True))
    return {
        "sample_rate": _SAMPLE_RATE,
        "channels": _CHANNELS,
        "spectrum": flat // (width * _ENCODER[-1]) * math.prod(freq),
        "strides": freq,
        "time_strides": time,
        "width": width,
        "latent": latent,
        "levels": levels,
        "codes": codes,
    }


def _table(model: Mapping[str, Any]) -> Iterator[Pair]:
    def conv(ours: str, theirs: str, taps: tuple[int, int], inputs: int, outputs: int):
        shape = (*taps, inputs, outputs)
        yield Pair(f"{ours}.weight_v", f"{theirs}/{_KERNEL}", shape, (0, 1, 2, 3), shape)
        yield pairs.vector(f"{ours}.bias", f"{theirs}/{_BIAS}", outputs)

    def point(ours: str, theirs: str, inputs: int, outputs: int):
        yield from conv(ours, theirs, (1, 1), inputs, outputs)

    def resampling(stride: tuple[int, int]) -> tuple[int, int]:
        return max(3, 2 * stride[0]), max(3, 2 * stride[1])

    width, latent, C = model["width"], model["latent"], model["channels"]
    down, up = [width * n for n in _ENCODER], [width * n for n in _DECODER]
    strides = list(zip(model["time_strides"], model["strides"], strict=True))
    bands = model["spectrum"] // math.prod(model["strides"])

    yield from conv("encoder.conv_in", "encoder/base_conv_first", (7, 7), 2, width)
    for i, stride in enumerate(strides):
        ours, theirs, inputs = f"encoder.blocks.{i}", f"encoder/encoder_{i}", down[i] * (C if i == _BLOCKS - 1 else 1)
        taps = resampling(stride)
        yield from conv(f"{ours}.conv_in", f"{theirs}/conv2d_3x3", (3, 3), inputs, inputs)
        yield from conv(f"{ours}.conv_out", f"{theirs}/conv2d_{taps[0]}x{taps[1]}_a", taps, inputs, down[i + 1])
        if inputs != down[i + 1]:
            yield from point(f"{ours}.shortcut", f"{theirs}/shortcut_layer/conv1x1", inputs, down[i + 1])
    for ours, theirs in (("in", "conv2d_3x3"), ("out", "conv2d_3x3_a")):
        yield from conv(f"encoder.inner.conv_{ours}", f"encoder/bottleneck/{theirs}", (3, 3), down[-1], down[-1])
    flat = bands * down[-1]
    place = "encoder/output_convs"
    yield from point("encoder.out", f"{place}/conv1x1_last", flat, latent)
    yield from point("encoder.out_hidden", f"{place}/shortcut_layer/conv1x1_b1", flat, flat)
    yield from point("encoder.out_past", f"{place}/shortcut_layer/conv1x1_b2", flat, latent)

    flat, place = bands * up[0], "decoder/input_layer"
    yield from point("decoder.conv_in", f"{place}/conv1x1_first", latent, flat)
    yield from point("decoder.in_hidden", f"{place}/shortcut_layer/conv1x1_b1", latent, flat)
    yield from point("decoder.in_past", f"{place}/shortcut_layer/conv1x1_b2", flat, flat)
    for ours, theirs in (("in", "conv2d_3x3_a"), ("out", "conv2d_3x3")):  # in the other order here
        place = f"decoder/input_layers_residual_unit/{theirs}"
        yield from conv(f"decoder.inner.conv_{ours}", place, (3, 3), up[0], up[0])
    apart = up[1] // 2
    ends = [(up[0], apart * C), (apart, up[2]), *pairwise(up[2:])]
    for i, ((inputs, outputs), stride) in enumerate(zip(ends, strides[::-1], strict=True)):
        ours, theirs, taps = f"decoder.blocks.{i}", f"decoder/decoder_{i}", resampling(stride)
        yield from conv(f"{ours}.conv_in", f"{theirs}/conv2dtranspose_{taps[0]}x{taps[1]}", taps, inputs, outputs)
        yield from conv(f"{ours}.conv_out", f"{theirs}/conv2d_3x3", (3, 3), outputs, outputs)
        if inputs != outputs:
            yield from point(f"{ours}.shortcut", f"{theirs}/shortcut_layer/conv1x1", inputs, outputs)
    yield from conv("decoder.conv_out", "decoder/output_layer/base_conv_last", (7, 7), up[-1], 2)
    shape = (model["levels"], model["codes"], latent)
    yield Pair("quantiser.codebooks", "quantizer/embedding", shape, (0, 1, 2), shape)
