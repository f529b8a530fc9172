"""HTSAT (arXiv 2202.00874): a Swin transformer over log-mel spectra, the ear of CLAP.

Letters: B batch, T frames, M mel bands, Y and X rows and columns of patches, S patches of a window, D width.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from hiermusic.nn.param import ones, weight, zeros
from hiermusic.pretrained import names
from hiermusic.pretrained.layers import EXACT, Block, Linear, SelfAttention, check_blocks, layer_norm
from hiermusic.pretrained.names import Rename

_HIDDEN = -100.0  # of a logit between patches that only the cyclic shift makes neighbours


@dataclass(frozen=True)
class SwinConfig:
    """Sizes; the defaults are those of HTSAT tiny.

    Args:
      bands: M.
      side: rows and columns of the picture that a spectrum is folded into, a multiple of `bands`.
      patch: rows and columns of a patch.
      width: of the first stage; it doubles from stage to stage.
      depths, heads: blocks and heads of each stage.
      window: rows and columns of patches that attend to each other.
      mlp_ratio: hidden width of the feed-forward sub-layer / width.
      eps: of the blocks' norms.
    Raises:
      ValueError: sizes that do not fit each other.
    """

    bands: int = 64
    side: int = 256
    patch: int = 4
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    window: int = 8
    mlp_ratio: float = 4.0
    eps: float = 1e-5

    def __post_init__(self):
        if len(self.depths) != len(self.heads):
            raise ValueError(f"it has {len(self.depths)} depths and {len(self.heads)} numbers of heads")
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            check_blocks(depth, self.width * 2**stage, heads)
            if self.side % (self.patch * 2**stage) or not self.grid(stage) or self.grid(stage) % self.window:
                raise ValueError(f"stage {stage} of a picture of {self.side} is not whole windows of {self.window}")
        if self.side % self.bands:
            raise ValueError(f"a picture of {self.side} rows does not hold whole spectra of {self.bands} bands")

    @property
    def folds(self) -> int:
        """Stretches of time that lie below each other in the picture."""
        return self.side // self.bands

    @property
    def out(self) -> int:
        """D of the last stage."""
        return self.width * 2 ** (len(self.depths) - 1)

    def grid(self, stage: int) -> int:
        """Rows, and columns, of patches in a stage."""
        return self.side // self.patch // 2**stage


class SwinBlock(nnx.Module):
    """A block whose attention stays within windows, every other one's shifted by half a window."""

    def __init__(self, config: SwinConfig, stage: int, index: int, *, rngs: nnx.Rngs):
        c = config
        width = c.width * 2**stage
        self.window = c.window
        self.shift = c.window // 2 if index % 2 and c.grid(stage) > c.window else 0
        self.block = Block(width, c.heads[stage], int(c.mlp_ratio * width), norm_first=True, eps=c.eps, rngs=rngs)
        self.distance = weight(rngs, ((2 * c.window - 1) ** 2, c.heads[stage]), (None, None))

    def __call__(self, x_BYXD: Float[Array, "B Y X D"]) -> Float[Array, "B Y X D"]:
        return self.block(x_BYXD, self._attend)

    def _attend(self, attention: SelfAttention, x_BYXD: Array) -> Array:
        B, Y, X, D = x_BYXD.shape
        size, shift = self.window, self.shift
        bias_NSS = self.distance[...][_distances(size)].transpose(2, 0, 1)
        x_BYXD = jnp.roll(x_BYXD, (-shift, -shift), (1, 2))
        parted = x_BYXD.reshape(B, Y // size, size, X // size, size, D).swapaxes(2, 3)
        if shift:
            bias = jnp.tile(bias_NSS + _apart(Y, X, size, shift)[:, None], (B, 1, 1, 1))
        else:
            bias = bias_NSS
        mixed = attention(parted.reshape(-1, size * size, D), bias).reshape(parted.shape)
        return jnp.roll(mixed.swapaxes(2, 3).reshape(x_BYXD.shape), (shift, shift), (1, 2))


class Merge(nnx.Module):
    """Four neighbours become one of twice the width."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.norm = layer_norm(4 * width, rngs=rngs)
        self.reduce = Linear(4 * width, 2 * width, bias=False, rngs=rngs)

    def __call__(self, x_BYXD: Float[Array, "B Y X D"]) -> Float[Array, "B y x 2D"]:
        four = [x_BYXD[:, row::2, column::2] for column in range(2) for row in range(2)]
        return self.reduce(self.norm(jnp.concatenate(four, axis=-1)))


class Swin(nnx.Module):
    """A log-mel spectrum to one vector."""

    def __init__(self, config: SwinConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        self.band_mean, self.band_shift = zeros(rngs, (c.bands,), (None,)), zeros(rngs, (c.bands,), (None,))
        self.band_variance, self.band_scale = ones(rngs, (c.bands,), (None,)), ones(rngs, (c.bands,), (None,))
        self.patches = weight(rngs, (c.patch, c.patch, 1, c.width), (None,) * 4)
        self.patch_bias = zeros(rngs, (c.width,), (None,))
        self.patch_norm = layer_norm(c.width, rngs=rngs)
        self.stages = nnx.List(
            [
                nnx.List([SwinBlock(c, stage, index, rngs=rngs) for index in range(depth)])
                for stage, depth in enumerate(c.depths)
            ]
        )
        self.merges = nnx.List([Merge(c.width * 2**stage, rngs=rngs) for stage in range(len(c.depths) - 1)])
        self.norm = layer_norm(c.out, rngs=rngs)

    def __call__(self, mel_BTM: Float[Array, "B T M"]) -> Float[Array, "B D"]:
        """`mel_BTM`: in dB; T of at most folds * side frames is stretched to that."""
        scale_M = self.band_scale[...] * jax.lax.rsqrt(self.band_variance[...] + 1e-5)
        x_BYXD = self._parted((mel_BTM - self.band_mean[...]) * scale_M + self.band_shift[...])
        kernel = self.patches[...].reshape(-1, self.config.width)
        x_BYXD = self.patch_norm(jnp.matmul(x_BYXD, kernel, precision=EXACT) + self.patch_bias[...])
        for stage, blocks in enumerate(self.stages):
            for block in blocks:
                x_BYXD = block(x_BYXD)
            if stage < len(self.merges):
                x_BYXD = self.merges[stage](x_BYXD)
        return jnp.mean(self.norm(x_BYXD), axis=(1, 2))

    def _parted(self, mel_BTM: Array) -> Float[Array, "B Y X P"]:
        """Stretched over time, folded into a picture whose rows are bands, and cut into patches."""
        c = self.config
        stretch = jnp.asarray(stretching(mel_BTM.shape[1], c.folds * c.side))
        mel_BTM = jnp.einsum("nt,btm->bnm", stretch, mel_BTM, precision=EXACT)
        picture = mel_BTM.reshape(-1, c.folds, c.side, c.bands).swapaxes(2, 3)
        cells = picture.reshape(-1, c.side // c.patch, c.patch, c.side // c.patch, c.patch).swapaxes(2, 3)
        return cells.reshape(*cells.shape[:3], -1)


@functools.cache
def stretching(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """What resamples `old` frames to `new` as PyTorch's bicubic interpolation with aligned corners does (a = -0.75).

    Keys' cubic convolution over four neighbours, the ends held; a matrix, as JAX's `resize` has another a and no
    aligned corners.
    """
    if old == new:
        return np.eye(old, dtype=np.float32)
    a = -0.75
    place = np.arange(new) * (old - 1) / (new - 1)
    matrix = np.zeros((new, old))
    for offset in range(-1, 3):
        source = np.floor(place).astype(int) + offset
        x = abs(place - source)
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = a * (((x - 5) * x + 8) * x - 4)
        np.add.at(matrix, (np.arange(new), np.clip(source, 0, old - 1)), np.where(x <= 1, near, far))
    return matrix.astype(np.float32)


@functools.cache
def _distances(size: int) -> np.ndarray:
    """Of each two patches of a window, the row of the table of distances; [S, S]."""
    row, column = (at.ravel() for at in np.indices((size, size)))
    rows, columns = row[:, None] - row + size - 1, column[:, None] - column + size - 1
    return rows * (2 * size - 1) + columns


@functools.cache
def _apart(rows: int, columns: int, size: int, shift: int) -> np.ndarray:
    """What hides from each other the patches of a window that were no neighbours before the shift; [windows, S, S]."""

    def region(count: int) -> np.ndarray:
        at = np.arange(count)
        return (at >= count - size).astype(int) + (at >= count - shift)

    regions = 3 * region(rows)[:, None] + region(columns)
    parted = regions.reshape(rows // size, size, columns // size, size).swapaxes(1, 2).reshape(-1, size * size)
    return np.where(parted[:, :, None] == parted[:, None], 0.0, _HIDDEN).astype(np.float32)


# MARK: names elsewhere


def transformers_names(config: SwinConfig, ours: str, theirs: str) -> list[Rename]:
    """The weights of a tower at `ours` by the names of transformers' ClapAudioEncoder at `theirs`."""
    parts = {"scale": "weight", "shift": "bias", "mean": "running_mean", "variance": "running_var"}
    found = [Rename(f"{ours}.band_{part}", f"{theirs}.batch_norm.{name}") for part, name in parts.items()]
    found.append(Rename(f"{ours}.patches", f"{theirs}.patch_embed.proj.weight", (2, 3, 1, 0)))
    found.append(Rename(f"{ours}.patch_bias", f"{theirs}.patch_embed.proj.bias"))
    found += names.norm(f"{ours}.patch_norm", f"{theirs}.patch_embed.norm")
    found += names.norm(f"{ours}.norm", f"{theirs}.norm")
    for stage, depth in enumerate(config.depths):
        for index in range(depth):
            found += _block(f"{ours}.stages.{stage}.{index}", f"{theirs}.layers.{stage}.blocks.{index}")
        if stage + 1 < len(config.depths):
            here, there = f"{ours}.merges.{stage}", f"{theirs}.layers.{stage}.downsample"
            found += names.norm(f"{here}.norm", f"{there}.norm")
            found += names.linear(f"{here}.reduce", f"{there}.reduction", bias=False)
    return found


def _block(ours: str, theirs: str) -> list[Rename]:
    found = [Rename(f"{ours}.distance", f"{theirs}.attention.self.relative_position_bias_table")]
    for name in ("query", "key", "value"):
        found += names.linear(f"{ours}.block.attention.{name}", f"{theirs}.attention.self.{name}")
    found += names.linear(f"{ours}.block.attention.out", f"{theirs}.attention.output.dense")
    found += names.norm(f"{ours}.block.attention_norm", f"{theirs}.layernorm_before")
    found += names.norm(f"{ours}.block.ffn_norm", f"{theirs}.layernorm_after")
    found += names.linear(f"{ours}.block.ffn.up", f"{theirs}.intermediate.dense")
    return found + names.linear(f"{ours}.block.ffn.down", f"{theirs}.output.dense")
