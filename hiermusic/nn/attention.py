"""Attention behind one function: a kernel for the platform where one fits, XLA in blocks of queries elsewhere.

Arrays are head-major ([B, N, S, H]), the order of the matrix products, which XLA on CPU would otherwise transpose to,
and in which a cache is read.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from hiermusic.nn import attention_blocks as blocks
from hiermusic.nn import attention_cudnn as cudnn
from hiermusic.nn.attention_blocks import Bias
from hiermusic.parallel.mesh import AXES, Rules
from hiermusic.tokens.visibility import Visibility


def attend(
    q_BNsH: Float[Array, "B N s H"],
    k_BMSH: Float[Array, "B M S H"],
    v_BMSH: Float[Array, "B M S H"],
    *,
    visibility: Visibility,
    start: int | Array = 0,
    valid_BS: Bool[Array, "B S"] | None = None,
    right_padded: bool = False,
    bias: Bias | None = None,
) -> Float[Array, "B N s H"]:
    """Softmax attention, the softmax in float32; query head n reads key head n // (N / M).

    A whole row (`start` 0 and no bias) runs on a kernel, under `jax.set_mesh` on each device's share of batch, heads
    and, by the axis `context`, positions. What extends a cache, or has a bias, is left to XLA and its partitioner.

    Args:
      q_BNsH: queries, already scaled; they stand at positions start .. start + s - 1 of the keys' S.
      k_BMSH, v_BMSH: keys and values.
      visibility: who sees whom, by position in the row.
      start: a Python integer lets blocks skip keys that they cannot see; it may be traced.
      valid_BS: False hides a key from every query; a query that sees no key gets a finite, meaningless result.
      right_padded: promises that the valid keys of each row come first and that the results of the padded rest are not
        used: what cuDNN's kernel needs to know.
      bias: gives the float32 bias of a block, from the slices of its queries and of its keys.
    """
    s = q_BNsH.shape[2]
    if bias is not None or not isinstance(start, int) or start != 0:
        return blocks.attend(
            q_BNsH, k_BMSH, v_BMSH, valid_BS, visibility=visibility, start=start, written=start + s, bias=bias
        )
    k_BMsH, v_BMsH = k_BMSH[:, :, :s], v_BMSH[:, :, :s]
    valid_Bs = None if valid_BS is None else valid_BS[:, :s]
    row = functools.partial(_row, visibility=visibility, right_padded=right_padded)
    mesh = jax.sharding.get_abstract_mesh()
    ours = set(AXES) <= set(mesh.axis_names) and all(kind == AxisType.Auto for kind in mesh.axis_types)
    if not ours or mesh.size == 1:
        return row(q_BNsH, k_BMsH, v_BMsH, valid_Bs)
    return _split(row, mesh.shape, q_BNsH, k_BMsH, v_BMsH, valid_Bs)


def attend_cached(
    q_BNsH: Float[Array, "B N s H"],
    keys_XSH: Float[Array, "X S H"],
    values_XSH: Float[Array, "X S H"],
    *,
    visibility: Visibility,
    start: int | Array,
    valid_BS: Bool[Array, "B S"] | None = None,
    bias: Bias | None = None,
) -> Float[Array, "B N s H"]:
    """As `attend`, over what is cached (X = B M): positions start .. start + s - 1 are written, those behind are not.

    One new position is a product of its own, in which keys and values are read as they lie.
    """
    if q_BNsH.shape[2] > 1:
        keys_BMSH, values_BMSH = (x.reshape(len(q_BNsH), -1, *x.shape[1:]) for x in (keys_XSH, values_XSH))
        return attend(q_BNsH, keys_BMSH, values_BMSH, visibility=visibility, start=start, valid_BS=valid_BS, bias=bias)
    return blocks.attend_one(
        q_BNsH[:, :, 0], keys_XSH, values_XSH, valid_BS, visibility=visibility, start=start, bias=bias
    )[:, :, None]


def _split(row, sizes, q_BNsH, k_BMsH, v_BMsH, valid_Bs):
    """`row` on every device of the mesh; a dimension that its axes do not divide stays whole, positions are padded.

    Devices along `context` exchange positions for heads while there are enough of these (DeepSpeed-Ulysses,
    arXiv:2309.14509): each kernel then sees whole rows, and causal work is even. With fewer heads each device keeps
    its queries and gathers the keys and values.
    """
    (B, N, s, _), M, parts = q_BNsH.shape, k_BMsH.shape[1], sizes["context"]
    heads = _if_divides(("tensor",), sizes, N, M)
    spec = P(_if_divides(Rules.batch, sizes, B), heads, "context", None)
    rest = -s % parts

    def exchanged(q, k, v, valid):
        q, k, v = (jax.lax.all_to_all(x, "context", 1, 2, tiled=True)[:, :, :s] for x in (q, k, v))
        return jax.lax.all_to_all(_pad(row(q, k, v, valid), rest), "context", 2, 1, tiled=True)

    def gathered(q, k, v, valid):
        k, v = (jax.lax.all_gather(x, "context", axis=2, tiled=True)[:, :, :s] for x in (k, v))
        return row(q, k, v, valid, part=(jax.lax.axis_index("context"), parts))

    enough = _if_divides((*(heads or ()), "context"), sizes, N, M)
    local = row if parts == 1 else exchanged if enough else gathered
    mapped = jax.shard_map(local, in_specs=(spec, spec, spec, P(spec[0], None)), out_specs=spec, check_vma=False)
    return mapped(*(_pad(x, rest) for x in (q_BNsH, k_BMsH, v_BMsH)), valid_Bs)[:, :, :s]


def _pad(x_BNsH, positions: int):
    return jnp.pad(x_BNsH, ((0, 0), (0, 0), (0, positions), (0, 0))) if positions else x_BNsH


def _if_divides(axes: tuple[str, ...], sizes, *dims: int) -> tuple[str, ...] | None:
    """The axes of the mesh, if the devices along them divide all these dimensions."""
    devices = math.prod(sizes[axis] for axis in axes)
    return None if any(dim % devices for dim in dims) else axes


def _row(q_BNsH, k_BMSH, v_BMSH, valid_BS, *, visibility, right_padded, part=(0, 1)):
    """A whole row, or the queries of one part of it (which, of how many), on one device."""
    platform = _platform()
    if platform == "gpu" and cudnn.fits(q_BNsH, k_BMSH, visibility) and (valid_BS is None or right_padded):
        return cudnn.attend(q_BNsH, k_BMSH, v_BMSH, valid_BS, visibility=visibility)
    if right_padded and visibility.kind == "causal":
        valid_BS = None  # padding lies behind all that is used: hidden without a mask
    if platform == "tpu":
        from hiermusic.nn import attention_splash as splash

        if splash.fits(q_BNsH, visibility):
            return splash.attend(q_BNsH, k_BMSH, v_BMSH, valid_BS, visibility=visibility, part=part)
    start = part[0] * q_BNsH.shape[2]
    return blocks.attend(
        q_BNsH, k_BMSH, v_BMSH, valid_BS, visibility=visibility, start=start, written=k_BMSH.shape[2], bias=None
    )


def _platform() -> str:
    """The platform that the program is for: that of the mesh in force, which may be another machine's.

    Not `jax.lax.platform_dependent`: it traces every kernel, and cuDNN's cannot be traced where there is none.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
