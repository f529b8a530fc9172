"""HuBERT (arXiv 2106.07447): 16 kHz waveforms to features at 50 Hz, of any layer; base and large.

Letters: B batch, L samples, T frames, D width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from hiermusic.nn.conv import weight_norm
from hiermusic.nn.norms import standardise
from hiermusic.nn.param import ones, weight, zeros
from hiermusic.pretrained import names
from hiermusic.pretrained.layers import EXACT, Block, Linear, check_blocks, gelu, layer_norm
from hiermusic.pretrained.names import Rename

_EPS = 1e-5  # of norms that no configuration speaks of


@dataclass(frozen=True)
class HubertConfig:
    """Sizes and choices; the defaults are those of HuBERT base.

    Args:
      width, layers, heads, ffn_width: of the transformer.
      conv_widths, conv_kernels, conv_strides: of the convolutions in front of it, one number each.
      conv_norm: "group" norms each channel of the first convolution over time (base), "layer" all channels of every
        convolution (large).
      conv_bias: whether the convolutions have one.
      position_kernel, position_groups: of the convolution that tells positions apart.
      norm_first: of the blocks; see `layers.Block`.
      eps: of the transformer's norms.
      normalise: whether a clip is brought to mean 0 and variance 1 before all else, as the weights were trained: by
        fairseq large was, base was not, whatever a preprocessor_config.json says.
      layer: whose output the features are: 0 is what enters the first block, `layers` what leaves the last one.
    Raises:
      ValueError: sizes that do not fit each other.
    """

    width: int = 768
    layers: int = 12
    heads: int = 12
    ffn_width: int = 3072
    conv_widths: tuple[int, ...] = (512,) * 7
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_norm: str = "group"
    conv_bias: bool = False
    position_kernel: int = 128
    position_groups: int = 16
    norm_first: bool = False
    eps: float = 1e-5
    normalise: bool = False
    layer: int = 9

    sample_rate = 16000
    local = False

    def __post_init__(self):
        check_blocks(self.layers, self.width, self.heads)
        if self.width % self.position_groups:
            raise ValueError(f"its width {self.width} is no multiple of its {self.position_groups} groups")
        if not len(self.conv_widths) == len(self.conv_kernels) == len(self.conv_strides):
            raise ValueError("its convolutions have other numbers of widths, kernels and strides")
        if self.conv_norm not in ("group", "layer") or not 0 <= self.layer <= self.layers:
            raise ValueError(f"its convolutions' norm is '{self.conv_norm}', its layer {self.layer}")

    @property
    def hop(self) -> int:
        """Samples from frame to frame."""
        return prod(self.conv_strides)

    @property
    def span(self) -> int:
        """Samples that one frame of the convolutions hears."""
        span = 1
        for kernel, stride in zip(self.conv_kernels[::-1], self.conv_strides[::-1], strict=True):
            span = (span - 1) * stride + kernel
        return span

    def make(self, *, rngs: nnx.Rngs) -> "Hubert":
        return Hubert(self, rngs=rngs)


class Convolution(nnx.Module):
    """A convolution over time without padding, then its norm if it has one, then GELU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, norm: str, bias: bool, *, rngs: nnx.Rngs):
        self.stride, self.norm = stride, norm
        self.kernel = weight(rngs, (kernel, inputs, outputs), (None,) * 3)
        self.bias = zeros(rngs, (outputs,), (None,)) if bias else None
        self.scale = ones(rngs, (outputs,), (None,)) if norm else None
        self.shift = zeros(rngs, (outputs,), (None,)) if norm else None

    def __call__(self, x_BLI: Float[Array, "B L I"]) -> Float[Array, "B T O"]:
        layout = ("NHC", "HIO", "NHC")
        y = jax.lax.conv_general_dilated(
            x_BLI, self.kernel[...], (self.stride,), "VALID", dimension_numbers=layout, precision=EXACT
        )
        if self.bias is not None:
            y = y + self.bias[...]
        if self.norm:
            y = standardise(y, 1 if self.norm == "group" else -1, _EPS) * self.scale[...] + self.shift[...]
        return gelu(y)


class Positions(nnx.Module):
    """What a wide grouped convolution makes of frames and their neighbours, to be added to them."""

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        self.groups = config.position_groups
        size = config.position_kernel
        self.kernel = weight(rngs, (size, config.width // self.groups, config.width), (None,) * 3)
        self.gain = ones(rngs, (size, 1, 1), (None,) * 3)  # weight norm, over all but time
        self.bias = zeros(rngs, (config.width,), (None,))

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        size = self.kernel.shape[0]
        y = jax.lax.conv_general_dilated(
            x_BTD,
            weight_norm(self.kernel[...], self.gain[:, 0, 0], 0),
            (1,),
            [(size // 2, size - 1 - size // 2)],  # the frame too many of an even kernel is dropped at the end
            dimension_numbers=("NHC", "HIO", "NHC"),
            feature_group_count=self.groups,
            precision=EXACT,
        )
        return gelu(y + self.bias[...])


class Hubert(nnx.Module):
    """The encoder; what it was trained to predict is not part of it."""

    def __init__(self, config: HubertConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        norms = [c.conv_norm if c.conv_norm == "layer" or i == 0 else "" for i in range(len(c.conv_widths))]
        widths = zip((1, *c.conv_widths), c.conv_widths, c.conv_kernels, c.conv_strides, norms, strict=False)
        self.convs = nnx.List([Convolution(*sizes, c.conv_bias, rngs=rngs) for sizes in widths])
        self.project_norm = layer_norm(c.conv_widths[-1], c.eps, rngs=rngs)
        self.project = Linear(c.conv_widths[-1], c.width, rngs=rngs)
        self.positions = Positions(c, rngs=rngs)
        self.norm = layer_norm(c.width, c.eps, rngs=rngs)
        sizes = {"norm_first": c.norm_first, "eps": c.eps}
        self.blocks = nnx.List([Block(c.width, c.heads, c.ffn_width, **sizes, rngs=rngs) for _ in range(c.layers)])

    @property
    def width(self) -> int:
        """D of the features."""
        return self.config.width

    def __call__(self, wav_BL: Float[Array, "B L"], layer: int | None = None) -> Float[Array, "B T D"]:
        """Features of whole clips, each of which bears on all of its frames.

        Args:
          wav_BL: mono, 16 kHz, about [-1, 1], at least `config.span` samples; none of them padding.
          layer: as `config.layer`, whose it is when left out; the final norm of HuBERT large is in none of them.
        """
        layer = self.config.layer if layer is None else layer
        if self.config.normalise:
            wav_BL = standardise(wav_BL, -1, _EPS)
        x_BTD = wav_BL[..., None]
        for conv in self.convs:
            x_BTD = conv(x_BTD)
        x_BTD = self.project(self.project_norm(x_BTD))
        x_BTD = x_BTD + self.positions(x_BTD)
        if not self.config.norm_first:
            x_BTD = self.norm(x_BTD)
        for block in self.blocks[:layer]:
            x_BTD = block(x_BTD)
        return x_BTD


# MARK: names elsewhere


def transformers_names(config: HubertConfig) -> list[Rename]:
    """Our weights by the names of transformers' HubertModel."""
    found = []
    for i in range(len(config.conv_widths)):
        place = f"feature_extractor.conv_layers.{i}"
        found += _conv(config, i, f"{place}.conv", f"{place}.layer_norm")
    found += names.norm("project_norm", "feature_projection.layer_norm")
    found += names.linear("project", "feature_projection.projection")
    found += _rest("encoder.pos_conv_embed.conv", "encoder.layer_norm")
    for i in range(config.layers):
        place = f"encoder.layers.{i}"
        found += _block(i, f"{place}.attention", f"{place}.layer_norm", f"{place}.final_layer_norm")
        found += names.linear(f"blocks.{i}.ffn.up", f"{place}.feed_forward.intermediate_dense")
        found += names.linear(f"blocks.{i}.ffn.down", f"{place}.feed_forward.output_dense")
    return found


def fairseq_names(config: HubertConfig) -> list[Rename]:
    """Our weights by the names of fairseq's HubertModel."""
    found = []
    norm = "2.1" if config.conv_norm == "layer" else "2"  # a layer norm stands between two transpositions
    for i in range(len(config.conv_widths)):
        place = f"feature_extractor.conv_layers.{i}"
        found += _conv(config, i, f"{place}.0", f"{place}.{norm}")
    found += names.norm("project_norm", "layer_norm")
    found += names.linear("project", "post_extract_proj")
    found += _rest("encoder.pos_conv.0", "encoder.layer_norm")
    for i in range(config.layers):
        place = f"encoder.layers.{i}"
        found += _block(i, f"{place}.self_attn", f"{place}.self_attn_layer_norm", f"{place}.final_layer_norm")
        found += names.linear(f"blocks.{i}.ffn.up", f"{place}.fc1")
        found += names.linear(f"blocks.{i}.ffn.down", f"{place}.fc2")
    return found


def _conv(config: HubertConfig, i: int, conv: str, norm: str) -> list[Rename]:
    found = [Rename(f"convs.{i}.kernel", f"{conv}.weight", (2, 1, 0))]
    if config.conv_bias:
        found.append(Rename(f"convs.{i}.bias", f"{conv}.bias"))
    if config.conv_norm == "layer" or i == 0:
        found += [Rename(f"convs.{i}.scale", f"{norm}.weight"), Rename(f"convs.{i}.shift", f"{norm}.bias")]
    return found


def _rest(positions: str, norm: str) -> list[Rename]:
    parts = {"kernel": "weight_v", "gain": "weight_g"}
    found = [Rename(f"positions.{ours}", f"{positions}.{theirs}", (2, 1, 0)) for ours, theirs in parts.items()]
    return [*found, Rename("positions.bias", f"{positions}.bias"), *names.norm("norm", norm)]


def _block(i: int, attention: str, norm: str, last: str) -> list[Rename]:
    parts = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "out": "out_proj"}
    found = [one for ours, theirs in parts.items()
             for one in names.linear(f"blocks.{i}.attention.{ours}", f"{attention}.{theirs}")]  # fmt: skip
    return found + names.norm(f"blocks.{i}.attention_norm", norm) + names.norm(f"blocks.{i}.ffn_norm", last)


def of_transformers(told: Mapping[str, Any]) -> HubertConfig:
    """The configuration that a transformers config.json of a HuBERT speaks of; fields that it leaves out are base's."""
    c = told.get
    names.supported(told, hidden_act="gelu", feat_extract_activation="gelu", feat_proj_layer_norm=True)
    names.supported(told, conv_pos_batch_norm=False, adapter_attn_dim=None)
    large = c("feat_extract_norm", "group") == "layer"
    return HubertConfig(
        width=c("hidden_size", 768),
        layers=c("num_hidden_layers", 12),
        heads=c("num_attention_heads", 12),
        ffn_width=c("intermediate_size", 3072),
        conv_widths=tuple(c("conv_dim", (512,) * 7)),
        conv_kernels=tuple(c("conv_kernel", (10, 3, 3, 3, 3, 2, 2))),
        conv_strides=tuple(c("conv_stride", (5, 2, 2, 2, 2, 2, 2))),
        conv_norm=c("feat_extract_norm", "group"),
        conv_bias=c("conv_bias", False),
        position_kernel=c("num_conv_pos_embeddings", 128),
        position_groups=c("num_conv_pos_embedding_groups", 16),
        norm_first=c("do_stable_layer_norm", False),
        eps=c("layer_norm_eps", 1e-5),
        normalise=large,
        layer=min(9, c("num_hidden_layers", 12)),
    )


def to_transformers(config: HubertConfig) -> dict[str, Any]:
    """The config.json with which transformers' HubertModel takes the weights."""
    return {
        "model_type": "hubert",
        "architectures": ["HubertModel"],
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.ffn_width,
        "conv_dim": list(config.conv_widths),
        "conv_kernel": list(config.conv_kernels),
        "conv_stride": list(config.conv_strides),
        "feat_extract_norm": config.conv_norm,
        "conv_bias": config.conv_bias,
        "num_conv_pos_embeddings": config.position_kernel,
        "num_conv_pos_embedding_groups": config.position_groups,
        "do_stable_layer_norm": config.norm_first,
        "layer_norm_eps": config.eps,
        "mask_time_prob": 0.0,  # or it would want the vector that stands for a masked frame in training
    }


def of_fairseq(shapes: Mapping[str, tuple[int, ...]]) -> HubertConfig:
    """The configuration that the shapes of a fairseq checkpoint speak of: base, large or extra large."""
    width, _ = shapes["post_extract_proj.weight"]
    layers = names.count(shapes, "encoder.layers.{}.fc1.weight")
    convs = [shapes[f"feature_extractor.conv_layers.{i}.0.weight"]
             for i in range(names.count(shapes, "feature_extractor.conv_layers.{}.0.weight"))]  # fmt: skip
    large = "feature_extractor.conv_layers.1.2.1.weight" in shapes
    kernel = shapes["encoder.pos_conv.0.weight_v"]
    return HubertConfig(
        width=width,
        layers=layers,
        heads=max(width // (80 if width == 1280 else 64), 1),
        ffn_width=shapes["encoder.layers.0.fc1.weight"][0],
        conv_widths=tuple(shape[0] for shape in convs),
        conv_kernels=tuple(shape[2] for shape in convs),
        conv_norm="layer" if large else "group",
        conv_bias="feature_extractor.conv_layers.0.0.bias" in shapes,
        position_kernel=kernel[2],
        position_groups=width // kernel[1],
        norm_first=large,
        normalise=large,
        layer=min(9, layers),
    )
