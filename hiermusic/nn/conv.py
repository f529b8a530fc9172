"""Normed convolutions, channels last, and the Snake activation in the forms that run fast on every platform."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.nn import initializers
from jaxtyping import Array, Float, Int

from hiermusic.nn import param
from hiermusic.nn.norms import standardise

Ends = Int[Array, "B"] | None

_INITS = {
    "dac": initializers.normal(0.02),  # DAC truncates at +-2, a hundred deviations away
    "fan_in": initializers.lecun_normal(),  # keeps the signal's size through narrow layers too
}

# sin^2(pi r) = r^2 * P(r^2) on |r| <= 1/2; minimax fit, error 6.5e-11; XLA's sine is far slower on CPU.
_SIN_SQUARED = (9.869604380, -32.469694907, 42.728336189, -30.121134422, 13.202694110, -3.901025763, 0.727580204)


@jax.custom_vjp
def snake(x: Float[Array, "... C"], alpha_C: Float[Array, "C"]) -> Float[Array, "... C"]:
    """x + sin^2(alpha x) / alpha, in float32.

    The gradient is written out: it keeps `x` alone for the backward pass and costs less than the derived one.

    Args:
      x: activations, |alpha x| < 1e4.
      alpha_C: frequencies, radians per unit of x.
    """
    return x + _sin_squared(alpha_C * x)[0] / (alpha_C + 1e-9)


def _sin_squared(z: Array) -> tuple[Array, Array]:
    """sin(z)^2 and its derivative sin(2z), after range reduction to half a turn."""
    turns = z / jnp.pi
    r = turns - jnp.round(turns)
    u = jnp.square(r)
    value, slope = jnp.full_like(u, _SIN_SQUARED[-1]), jnp.zeros_like(u)
    for coefficient in _SIN_SQUARED[-2::-1]:
        slope = slope * u + value
        value = value * u + coefficient
    return value * u, 2 / jnp.pi * r * (slope * u + value)


def _snake_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, alpha_C = saved
    value, slope = _sin_squared(alpha_C * x)
    inverse = 1 / (alpha_C + 1e-9)
    per_sample = g * inverse * (x * slope - inverse * value)
    # A matmul with ones, because XLA on CPU is slow to sum over all but the last axis of a fused product.
    ones = jnp.ones(x.size // x.shape[-1])
    per_channel = jnp.matmul(ones, per_sample.reshape(-1, x.shape[-1]), precision=lax.Precision.HIGHEST)
    return g * (1 + alpha_C * inverse * slope), per_channel


snake.defvjp(lambda x, alpha_C: (snake(x, alpha_C), (x, alpha_C)), _snake_backward)


class Snake(nnx.Module):
    """x + sin^2(a x) / a with a learned frequency per channel, computed in float32 (DAC, arXiv 2306.06546)."""

    def __init__(self, channels: int, *, axis: str = "channels", rngs: nnx.Rngs):
        self.alpha = param.ones(rngs, (channels,), (axis,))

    def __call__(self, x: Float[Array, "... C"]) -> Float[Array, "... C"]:
        return snake(x.astype(jnp.float32), self.alpha[...]).astype(x.dtype)


def weight_norm(v: Array, g: Array, axis: int) -> Array:
    """g * v / |v|, the norm over every dimension but `axis`, in float32."""
    others = tuple(i for i in range(v.ndim) if i != axis)
    shape = [1] * v.ndim
    shape[axis] = -1
    # One vector until the end: with a shape in between, XLA takes the weights for others where they are differentiated,
    # and so runs a codec's discriminator forward once for the codec and once more for itself.
    return v * (g * lax.rsqrt(jnp.sum(jnp.square(v), others))).reshape(shape)


class Conv(nnx.Module):
    """Normed convolution with bias over one or two spatial dimensions, channels last.

    Args:
      inputs, outputs: channels.
      kernel: taps per spatial dimension; its length is the number of spatial dimensions.
      stride, dilation: per spatial dimension, 1 when left out.
      padding: positions added to each dimension, before and after it or the same number on both sides; by default what
        keeps the length at stride 1 and odd kernels.
      padding_mode: what they hold: "zeros", or in one dimension, as EnCodec has it, "reflect", the signal mirrored
        about its end, or "constant", zeros, either of them as far behind it as the last stride needs, too.
      spread: how far the input's positions are moved apart before, zeros between them: a transposed convolution, whose
        taps lie in the order in which they meet the output; per spatial dimension, 1 when left out.
      norm: "weight", of each output's weights (arXiv 1602.07868), "group", of what comes out: one group of all
        positions and channels, with a scale and a shift for each channel (arXiv 1803.08494), or "none".
      dtype: compute type; parameters and the weight norm stay float32.
      init: of the weights: "dac", a normal of deviation 0.02, or "fan_in", 1 / sqrt(fan-in).
      axes: logical axes of the input and of the output channels (see `parallel.mesh.Rules`).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: Sequence[int],
        *,
        stride: Sequence[int] | None = None,
        dilation: Sequence[int] | None = None,
        spread: Sequence[int] | None = None,
        padding: Sequence[int | tuple[int, int]] | None = None,
        padding_mode: str = "zeros",
        norm: str = "weight",
        dtype: str = "float32",
        init: str = "dac",
        axes: tuple[str | None, str | None] = (None, "channels"),
        rngs: nnx.Rngs,
    ):
        rank = len(kernel)
        self.stride = tuple(stride or (1,) * rank)
        self.dilation, self.spread = tuple(dilation or (1,) * rank), tuple(spread or (1,) * rank)
        if self.stride[-1] > 1 and self.dilation[-1] > 1:
            raise ValueError(f"stride {self.stride} over taps dilated by {self.dilation}: the last axis takes only one")
        padding = padding or [d * (k - 1) // 2 for k, d in zip(kernel, self.dilation, strict=True)]
        self.padding = tuple((p, p) if isinstance(p, int) else p for p in padding)
        self.padding_mode = padding_mode
        self.dtype = dtype
        self.weight_v = param.weight(rngs, (*kernel, inputs, outputs), (None,) * rank + axes, _INITS[init])
        self.weight_g = param.ones(rngs, (outputs,), axes[1:]) if norm == "weight" else None
        if norm == "weight":
            param.put(self.weight_g, jnp.sqrt(jnp.sum(jnp.square(self.weight_v[...]), tuple(range(rank + 1)))))
        self.norm = GroupNorm(outputs, axes[1], rngs=rngs) if norm == "group" else None
        self.bias = param.zeros(rngs, (outputs,), axes[1:])

    def __call__(self, x: Float[Array, "B *S I"], ends_B: Ends = None) -> Float[Array, "B *T O"]:
        """What comes of a signal.

        Args:
          x: the signal.
          ends_B: under "reflect" and "constant", where each item ends, if not where the array does: it is then coded as
            if nothing lay behind. There must be room for what padding adds.
        """
        w = self.weight_v[...]
        if self.weight_g is not None:
            w = weight_norm(w, self.weight_g[...], w.ndim - 1)
        x, w = x.astype(self.dtype), w.astype(self.dtype)
        stride, padding = self.stride, self.padding
        if self.padding_mode != "zeros":
            (before, after), missing = padding[0], -x.shape[1] % stride[0]
            if self.padding_mode == "reflect":
                x = x if ends_B is None else _mirrored(x, ends_B, before, after, stride[0])
                x = _reflect(x, before, after + missing)
            else:
                x = jnp.pad(_silent(x, ends_B), ((0, 0), (before, after + missing), (0, 0)))
            ends_B = None if ends_B is None else -(-ends_B // stride[0])
            padding = ((0, 0),)
        if stride[-1] > 1:
            x, w = _fold_stride(x, w, stride[-1], padding[-1])
            stride, padding = (*stride[:-1], 1), (*padding[:-1], (0, 0))
        spatial = "HW"[: len(stride)]
        layout = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
        apart = {"lhs_dilation": self.spread, "rhs_dilation": self.dilation}
        y = lax.conv_general_dilated(x, w, stride, padding, **apart, dimension_numbers=layout)
        y += self.bias[...].astype(self.dtype)
        return y if self.norm is None else self.norm(y, ends_B)


def _silent(x_BTI: Array, ends_B: Ends) -> Array:
    """Zeros behind the end of each item."""
    if ends_B is None:
        return x_BTI
    return jnp.where((jnp.arange(x_BTI.shape[1]) < ends_B[:, None])[..., None], x_BTI, 0)


def _mirrored(x_BTI: Array, ends_B: Array, before: int, after: int, stride: int) -> Array:
    """What `_reflect` would put behind the end of each item, where that is not the end of the array."""
    if not (reach := max(before, after + stride - 1)):
        return x_BTI

    def each(x_TI: Array, end: Array) -> Array:
        whole = jnp.maximum(end, 1 + jnp.maximum(before, after + -end % stride))  # with the zeros of a short signal
        places = end + jnp.arange(reach)
        mirror = 2 * whole - 2 - places
        mirrored = jnp.where(((places >= whole) & (mirror < end))[:, None], x_TI[mirror], 0)
        return lax.dynamic_update_slice(x_TI, mirrored, (end, 0))

    return jax.vmap(each)(x_BTI, ends_B)


def _reflect(x_BTI: Array, before: int, after: int) -> Array:
    """Mirrors both ends; zeros lengthen a signal too short for that and are cut off again, as EnCodec has it."""
    missing = max(before, after) + 1 - x_BTI.shape[1]
    if missing > 0:
        return _reflect(jnp.pad(x_BTI, ((0, 0), (0, missing), (0, 0))), before, after)[:, :-missing]
    return jnp.pad(x_BTI, ((0, 0), (before, after), (0, 0)), mode="reflect")


def _fold_stride(x: Array, w: Array, stride: int, padding: tuple[int, int]) -> tuple[Array, Array]:
    """The same convolution without its stride: `stride` neighbours of the last spatial dimension become channels.

    The gradient of a strided convolution is a dilated one, which XLA runs far slower on CPU.
    """
    size, inputs = x.shape[-2:]
    kernel, outputs = w.shape[-3], w.shape[-1]
    taps = -(-kernel // stride)
    blocks = (size + sum(padding) - kernel) // stride + taps
    edges = [(0, 0, 0)] * x.ndim
    edges[-2] = (padding[0], blocks * stride - size - padding[0], 0)
    x = lax.pad(x, jnp.zeros((), x.dtype), edges).reshape(*x.shape[:-2], blocks, stride * inputs)
    w = jnp.pad(w, [(0, 0)] * (w.ndim - 3) + [(0, taps * stride - kernel), (0, 0), (0, 0)])
    return x, w.reshape(*w.shape[:-3], taps, stride * inputs, outputs)


class ConvTranspose(nnx.Module):
    """Normed transposed convolution of kernel 2s and stride s: T frames become exactly T s.

    Its form is that of `transposed_conv`, because the gradient of `lax.conv_transpose` is far slower on CPU. The weight
    norm runs per input channel, as in PyTorch. ceil(s/2) samples are trimmed in front.

    Args:
      inputs, outputs: channels.
      stride: s, odd strides too.
      causal: nothing is trimmed in front, so that no sample hears a later frame than its own.
      short: of an odd stride the last sample is trimmed too, as DAC has it: T frames become T s - 1.
      norm, dtype, init: as for `Conv`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        *,
        causal: bool = False,
        short: bool = False,
        norm: str = "weight",
        dtype: str = "float32",
        init: str = "dac",
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        self.front, self.lost = 0 if causal else -(-stride // 2), stride % 2 if short else 0
        self.dtype = dtype
        # A sample is reached by 2 of the 2s taps only, which is what "fan_in" has to count.
        start = initializers.variance_scaling(stride, "fan_in", "normal") if init == "fan_in" else _INITS[init]
        self.weight_v = param.weight(rngs, (2 * stride, inputs, outputs), (None, None, "channels"), start)
        if norm == "weight":
            self.weight_g = param.ones(rngs, (inputs,), (None,))
            param.put(self.weight_g, jnp.sqrt(jnp.sum(jnp.square(self.weight_v[...]), (0, 2))))
        self.norm = GroupNorm(outputs, "channels", rngs=rngs) if norm == "group" else None
        self.bias = param.zeros(rngs, (outputs,), ("channels",))

    def __call__(self, x_BTI: Float[Array, "B T I"], ends_B: Ends = None) -> Float[Array, "B L O"]:
        """What comes of frames, of which those from `ends_B` on, where it is given, count as not there."""
        w = self.weight_v[...]
        if self.norm is None:
            w = weight_norm(w, self.weight_g[...], 1)
        x_BTI = _silent(x_BTI, ends_B)
        y = transposed_conv(x_BTI.astype(self.dtype), w.astype(self.dtype))
        bias = self.bias[...].astype(self.dtype)
        if self.norm is not None:  # before anything is trimmed
            y, bias = self.norm(y + bias, None if ends_B is None else (ends_B + 1) * self.stride), 0
        y = lax.slice_in_dim(y, self.front, self.front + x_BTI.shape[1] * self.stride - self.lost, axis=1)
        return y + bias


class GroupNorm(nnx.Module):
    """Group norm of a single group: over all positions and channels of an item, in float32 (arXiv 1803.08494)."""

    def __init__(self, channels: int, axis: str | None, *, rngs: nnx.Rngs):
        self.scale = param.ones(rngs, (channels,), (axis,))
        self.bias = param.zeros(rngs, (channels,), (axis,))

    def __call__(self, x: Float[Array, "B *S C"], ends_B: Ends = None) -> Float[Array, "B *S C"]:
        """The same normed; where `ends_B` is given, of one dimension, by what lies in front of each item's end."""
        if ends_B is None:
            y = standardise(x, tuple(range(1, x.ndim)), 1e-5)
        else:
            y = _standardised(x, ends_B)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


def _standardised(x_BTC: Array, ends_B: Array) -> Array:
    """`norms.standardise` over positions and channels, by the moments of those in front of each item's end."""
    wide = x_BTC.astype(jnp.float32)
    count_B11 = (ends_B * x_BTC.shape[2])[:, None, None]

    def mean(y_BTC: Array) -> Array:
        return jnp.sum(_silent(y_BTC, ends_B), (1, 2), keepdims=True) / count_B11

    wide -= mean(wide)
    return wide * lax.rsqrt(mean(jnp.square(wide)) + 1e-5)


@jax.custom_vjp
def transposed_conv(x_BTI: Float[Array, "B T I"], w_KIO: Float[Array, "K I O"]) -> Float[Array, "B L O"]:
    """Transposed convolution y[n s + k] += x[n] w[k] for K = 2s: all (T + 1) s samples, nothing trimmed.

    A convolution of two taps, this frame's and the one's before it, to the s samples of a frame as channels: nothing is
    left to be added up in memory. The gradient is written out as products, for that of the convolution takes ten times
    as long on CPU.
    """
    channels = ("NHC", "HIO", "NHC")
    y = lax.conv_general_dilated(x_BTI, _halves(w_KIO)[::-1], (1,), [(1, 1)], dimension_numbers=channels)
    return y.reshape(len(x_BTI), -1, w_KIO.shape[2])


def _halves(w_KIO: Array) -> Float[Array, "2 I C"]:
    """The taps of a frame's own samples and those of the ones that follow it, each with samples and outputs as one."""
    taps, inputs, outputs = w_KIO.shape
    return w_KIO.reshape(2, taps // 2, inputs, outputs).transpose(0, 2, 1, 3).reshape(2, inputs, -1)


def _transposed_backward(saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x_BTI, w_KIO = saved
    taps, inputs, outputs = w_KIO.shape
    g_BtC = g.reshape(len(x_BTI), -1, taps // 2 * outputs)
    both = g_BtC[:, :-1], g_BtC[:, 1:]
    dx_BTI = sum(g_BTC @ w_IC.T for g_BTC, w_IC in zip(both, _halves(w_KIO), strict=True))
    dw_2IC = jnp.stack([jnp.einsum("BTI,BTC->IC", x_BTI, g_BTC) for g_BTC in both])
    return dx_BTI, dw_2IC.reshape(2, inputs, -1, outputs).transpose(0, 2, 1, 3).reshape(w_KIO.shape)


transposed_conv.defvjp(lambda x, w: (transposed_conv(x, w), (x, w)), _transposed_backward)
