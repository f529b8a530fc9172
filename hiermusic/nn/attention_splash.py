"""Splash attention, JAX's Pallas kernel for TPUs.

Every rule in use is one number a query: how far it sees. The kernel computes the mask from it, block by block.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Bool, Float

from hiermusic.tokens.visibility import Visibility

_LANES = 128  # the kernel works in multiples of this many positions
_BLOCKS = (1024, 512, 256, _LANES)  # positions in a block: the larger, the less is read twice
_COMPUTE = 512  # keys of a block in one matrix product: bounds the kernel's registers and vector memory


def fits(q_BNsH: Array, visibility: Visibility) -> bool:
    """Whether the kernel takes these arrays: enough queries to fill a block, groups in order."""
    in_order = visibility.kind != "groups" or not (np.diff(visibility.groups) < 0).any()
    return q_BNsH.shape[2] >= _LANES and in_order


def attend(
    q_BNsH: Float[Array, "B N s H"],
    k_BMSH: Float[Array, "B M S H"],
    v_BMSH: Float[Array, "B M S H"],
    valid_BS: Bool[Array, "B S"] | None,
    *,
    visibility: Visibility,
    part: tuple[int | Array, int] = (0, 1),
) -> Float[Array, "B N s H"]:
    """As `hiermusic.nn.attention.attend`, for whole rows.

    Args:
      part: the queries are this part (may be traced), of so many equal ones, of a row whose last part may be padded.
    """
    N, s, S = q_BNsH.shape[1], q_BNsH.shape[2], k_BMSH.shape[2]
    index, parts = part
    q_block, k_block = _block(s), _block(S)
    q_BNsH, k_BMSH, v_BMSH = (_pad(x, 2, size) for x, size in ((q_BNsH, q_block), (k_BMSH, k_block), (v_BMSH, k_block)))
    computed = visibility.kind != "full" or (valid_BS is None and k_BMSH.shape[2] > S)
    if computed:
        reach_ps = _reach(visibility, S, s * parts).reshape(parts, s)
        mask = _Mask(np.pad(reach_ps, ((0, 0), (0, -s % q_block)), mode="edge").reshape(-1), k_BMSH.shape[2])
    else:  # the same for all parts; segment ids hide padded keys
        mask = masks.FullMask((q_BNsH.shape[2], k_BMSH.shape[2]))
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([mask] * N),
        head_shards=1,
        q_seq_shards=parts if computed else 1,
        block_sizes=splash.BlockSizes(
            block_q=q_block,
            block_kv=k_block,
            block_kv_compute=min(k_block, _COMPUTE),
            block_q_dkv=q_block,
            block_kv_dkv=k_block,
            block_kv_dkv_compute=min(k_block, _COMPUTE),
            block_q_dq=q_block,
            block_kv_dq=k_block,
        ),
    )
    if computed and parts > 1:
        kernel = jax.tree.map(lambda x: _part(x, index, parts), kernel)
    if valid_BS is None:
        return jax.vmap(kernel)(q_BNsH, k_BMSH, v_BMSH)[:, :, :s]
    ones_s = jnp.ones(q_BNsH.shape[2], jnp.int32)
    valid_BS = _pad(valid_BS.astype(jnp.int32), 1, k_block)

    def row(q_NsH, k_MSH, v_MSH, valid_S):
        return kernel(q_NsH, k_MSH, v_MSH, splash.SegmentIds(ones_s, valid_S))

    return jax.vmap(row)(q_BNsH, k_BMSH, v_BMSH, valid_BS)[:, :, :s]


def _block(length: int) -> int:
    """The largest block that pads the length by an eighth at most."""
    return next(block for block in _BLOCKS if block == _LANES or -length % block <= length // 8)


def _pad(x: Array, axis: int, multiple: int) -> Array:
    rest = -x.shape[axis] % multiple
    return jnp.pad(x, [(0, rest if i == axis else 0) for i in range(x.ndim)]) if rest else x


def _part(x: Array, index: Array, parts: int) -> Array:
    """One part's share of an array of the kernel: those by block are [1, queries, keys], those by query [queries]."""
    axis = 0 if x.ndim == 1 else 1
    size = x.shape[axis] // parts
    return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis)


def _reach(visibility: Visibility, S: int, s: int) -> np.ndarray:
    """The last key that each of `s` queries sees of `S`; padded queries see what the last one does."""
    q_s = np.minimum(np.arange(s, dtype=np.int32), S - 1)
    if visibility.kind == "causal":
        return q_s
    if visibility.kind == "full":
        return np.full(s, S - 1, np.int32)
    groups_S = np.asarray(visibility.groups[:S])
    return (np.searchsorted(groups_S, groups_S, side="right") - 1)[q_s].astype(np.int32)


def _sees(q_reach, k):
    return k <= q_reach


class _Mask(masks.Mask):
    """A mask by reach, computed inside the kernel: `q_sequence` goes there, in place of the positions."""

    mask_function = staticmethod(_sees)

    def __init__(self, reach_s: np.ndarray, S: int):
        self.q_sequence = reach_s
        self._S = S

    @property
    def shape(self) -> tuple[int, int]:
        return (len(self.q_sequence), self._S)

    def __getitem__(self, block: tuple[slice, slice]) -> np.ndarray:
        q, k = block
        reach_q = self.q_sequence[q]
        # The kernel only asks a block whether any or all of it is seen: one value tells where all of it is alike.
        if reach_q.min() >= k.stop - 1 or reach_q.max() < k.start:
            return np.full((1, 1), reach_q.min() >= k.stop - 1)
        return _sees(reach_q[:, None], np.arange(k.start, k.stop)[None])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Mask) and self._S == other._S and np.array_equal(self.q_sequence, other.q_sequence)

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self._S, self.q_sequence.tobytes()))

    def __hash__(self) -> int:
        return self._hash
