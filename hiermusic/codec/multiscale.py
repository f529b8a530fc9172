"""Multi-scale residual vector quantiser, as in SAT (arXiv 2408.09027): every level sees a window at another resolution.

Level k pools what is left of a window to n_k vectors, replaces each by the nearest code, stretches the codes to the
window again, smooths them by a convolution phi, and leaves the rest to level k + 1. Everything is float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.nn import initializers
from jaxtyping import Array, Float, Int, PRNGKeyArray

from hiermusic.codec.codebook import EXACT, CodebookConfig, Codebooks, Quantised, health, move, nearest
from hiermusic.errors import UserError
from hiermusic.nn import param
from hiermusic.parallel.mesh import constrain
from hiermusic.tokens.facts import TokenFacts
from hiermusic.tokens.scales import check_scales, schedule

_CHOICES = {
    "phi": ("partial", "shared", "unshared"),
    "straight_through": ("once", "per_level"),
    "objective": ("residual", "running"),
}


@dataclass(frozen=True)
class MultiscaleConfig(CodebookConfig):
    """What a multi-scale quantiser is made of; the defaults are SAT's (code: github.com/qiuk2/AAR).

    Args:
      scales: n_k, tokens of each level in a window, coarse first; the last is the window's frames. What the codebooks
        learn by stands in `CodebookConfig`.
      latent: E, width of the codes. A linear map leads there and another back where the trunk's frames are wider or
        narrower.
      phi: "partial": `phi_count` convolutions, each for a run of levels; "shared": one; "unshared": one a level.
      phi_count: see `phi`.
      kernel: taps of a phi, odd.
      gamma: how much of a phi there is: q = (1 - gamma) u + gamma phi(u). The paper does not say; the code has 0.5.
      straight_through: gradient that the sum of the codes hands to the encoder. "once": that of the identity.
        "per_level": K times that, as in the released code, which adds up one estimator a level.
      objective: the quantiser's loss, a mean over levels. "residual": mse(sg(q_k), r_k) + mse(q_k, sg(r_k)), as in the
        released code. "running", on the sum f_k of the first levels: mse(f_k, sg(f)) + 0.25 mse(sg(f_k), f), as in VAR.
        The paper only says that there is one.
    Raises:
      UserError: for scales that do not increase, another word, an even kernel, or more phis than levels.
    """

    scales: tuple[int, ...] = schedule("quadratic", 75, 16)
    latent: int = 64
    phi: Literal["partial", "shared", "unshared"] = "partial"
    phi_count: int = 6
    kernel: int = 9
    gamma: float = 0.5
    straight_through: Literal["once", "per_level"] = "once"
    objective: Literal["residual", "running"] = "residual"

    def __post_init__(self):
        check_scales(self.scales)
        for field, words in _CHOICES.items():
            if getattr(self, field) not in words:
                raise UserError(f"quantiser {field} is '{getattr(self, field)}': choose from {', '.join(words)}")
        if self.kernel % 2 == 0:
            raise UserError(f"quantiser kernel is {self.kernel}: choose an odd number of taps")
        if self.phi == "partial" and not 1 <= self.phi_count <= self.levels:
            raise UserError(f"quantiser phi_count is {self.phi_count}: choose 1 to {self.levels}, one a level at most")

    @property
    def levels(self) -> int:
        """K, scales."""
        return len(self.scales)

    @property
    def frames(self) -> int:
        """Latent frames in a packet of codes: the window."""
        return self.scales[-1]

    @property
    def slots(self) -> tuple[int, ...]:
        """Tokens of each level in a packet."""
        return self.scales

    @property
    def phis(self) -> tuple[int, ...]:
        """The convolution of each level: the one whose tick is nearest to k / (K - 1), as in VAR; the lower of two."""
        if self.phi == "unshared":
            return tuple(range(self.levels))
        count = self.phi_count if self.phi == "partial" else 1
        edge = 1 / 3 / count if count == 4 else 1 / 2 / count  # VAR treats four apart
        ticks_P, places_K = np.linspace(edge, 1 - edge, count), np.linspace(0, 1, self.levels)
        return tuple(np.abs(ticks_P - places_K[:, None]).round(9).argmin(1).tolist())

    def facts(self, sample_rate: int, hop: int, width: int) -> TokenFacts:
        """The facts of the tokens that a codec with this quantiser makes, of latent frames of this width."""
        own = (self.scales, self.phi, self.phi_count, self.kernel, self.gamma)
        return TokenFacts(sample_rate, hop, "multiscale", self.levels, self.codes, self.latent, *own)

    def make(self, width: int, *, rngs: nnx.Rngs) -> "MultiscaleQuantiser":
        """The quantiser of latent frames of this width."""
        return MultiscaleQuantiser(width, self, rngs=rngs)


class MultiscaleQuantiser(Codebooks):
    """K codebooks of V codes, one a scale; a packet of codes is one window, scale after scale.

    Between the two linear maps windows are [..., T, E]: T frames of the window, E channels of the codes. A next-scale
    model builds a window up from zeros by `add` and reads the next scale's view of it by `view`.

    Args:
      width: D, channels of the latent frames.
    """

    decoding = ()  # weights that encoding does not read

    def __init__(self, width: int, config: MultiscaleConfig, *, rngs: nnx.Rngs):
        super().__init__(config, config.levels, config.latent, rngs=rngs)
        E = config.latent
        count = max(config.phis) + 1
        uniform = partial(initializers.variance_scaling, 1 / 3, "fan_in", "uniform")  # PyTorch's of both layers
        self.mapped = width != E
        if self.mapped:
            self.in_proj = param.weight(rngs, (width, E), (None, "latent"), uniform())
            self.in_proj_bias = param.zeros(rngs, (E,), ("latent",))
            self.out_proj = param.weight(rngs, (E, width), (None, "latent"), uniform())
            self.out_proj_bias = param.zeros(rngs, (width,), ("latent",))
        shape, axes = (count, config.kernel, E, E), (None, None, None, "latent")
        self.phi = param.weight(rngs, shape, axes, uniform(in_axis=(1, 2), out_axis=3, batch_axis=0))
        self.phi_bias = param.zeros(rngs, (count, E), (None, "latent"))

    def encode(self, x_BTD: Float[Array, "B T D"], levels: int | None = None) -> Int[Array, "B P S"]:
        """Codes of the first `levels` levels (all when left out); T has to be whole windows."""
        return self._pass(x_BTD, levels).codes_BPS

    def decode(self, codes_BPS: Int[Array, "B P S"], levels: int | None = None) -> Float[Array, "B T D"]:
        """Frames of the first `levels` levels; there may be fewer than codebooks, and -1 adds nothing."""
        config = self.config
        parts = _split(codes_BPS, config.scales)[:levels]
        total = jnp.zeros((*codes_BPS.shape[:-1], config.frames, config.latent))
        for level, codes_BPn in enumerate(parts):
            total = self.add(total, codes_BPn, level)
        return self._out_proj(total)

    def bypass(self, x_BTD: Float[Array, "B T D"]) -> tuple[Float[Array, "B T D"]]:
        """Frames as they would come back from codes without an error: through both linear maps."""
        return (self._out_proj(self._in_proj(x_BTD)),)

    def __call__(
        self, x_BTD: Float[Array, "B T D"], *, key: PRNGKeyArray | None = None, train: bool = False
    ) -> Quantised:
        """Quantises, and in training moves the codebooks.

        Args:
          x_BTD: latent frames, T of them whole windows.
          key: needed in training: k-means seeds and replacement of dead codes. The same on every device; the statistics
            are sums over the whole batch, so a sharded batch moves the codebooks as an unsharded one does.
          train: initialise on the first call, update the codebooks.
        Raises:
          ValueError: where T is no multiple of the window.
        """
        return self._pass(x_BTD, None, key, train)

    def add(
        self, total_NTE: Float[Array, "*N T E"], codes_Nn: Int[Array, "*N n"], level: int
    ) -> Float[Array, "*N T E"]:
        """The sum of the scales so far with one more; -1 anywhere in a window's codes leaves that window as it is."""
        up_Tn = scale_matrices(self.config.scales).up_KTT[level, :, : codes_Nn.shape[-1]]
        phi = self.config.phis[level]
        step = self._stretch(self.codebooks[level][codes_Nn], up_Tn, self.phi[phi], self.phi_bias[phi])
        return total_NTE + jnp.where(jnp.all(codes_Nn >= 0, -1)[..., None, None], step, 0.0)

    def view(self, total_NTE: Float[Array, "*N T E"], level: int) -> Float[Array, "*N n E"]:
        """A window pooled to the length of a scale."""
        n = self.config.scales[level]
        return _along_time(scale_matrices(self.config.scales).down_KTT[level, :n], total_NTE)

    def inputs(self, codes_NS: Int[Array, "*N S"]) -> Float[Array, "*N S E"]:
        """What each position of a next-scale sequence reads when all scales before its own are known: that scale's view
        of their sum; zeros at the first."""
        config = self.config
        parts = _split(codes_NS, config.scales)
        total = jnp.zeros((*codes_NS.shape[:-1], config.frames, config.latent))
        views = [jnp.zeros((*codes_NS.shape[:-1], config.scales[0], config.latent))]
        for level, codes_Nn in enumerate(parts[:-1]):
            total = self.add(total, codes_Nn, level)
            views.append(self.view(total, level + 1))
        return jnp.concatenate(views, axis=-2)

    def _pass(
        self, x_BTD: Array, levels: int | None, key: PRNGKeyArray | None = None, train: bool = False
    ) -> Quantised:
        """One scan over the scales, all padded to the window: sixteen shapes would take long to compile."""
        config = self.config
        if x_BTD.shape[1] % config.frames:
            raise ValueError(f"{x_BTD.shape[1]} frames are no whole windows of {config.frames}: pad them")
        f_NTE = self._in_proj(x_BTD.astype(jnp.float32)).reshape(-1, config.frames, config.latent)
        f_NTE = constrain(f_NTE, "batch", None, None)
        matrices = scale_matrices(config.scales)
        keys = jax.random.split(key, config.levels) if train else jnp.arange(config.levels)  # the latter unused

        def level(carry, inputs):
            residual, total = carry
            now, level_key, down_TT, up_TT, held_T, kernel, bias = inputs
            pooled = _along_time(down_TT, lax.stop_gradient(residual))
            points_MD = pooled.reshape(-1, config.latent)
            held_M = jnp.tile(held_T, len(f_NTE))
            if train:
                now = self.started(now, level_key, points_MD, held_M)
            codes_NT = nearest(pooled, now.book)
            perplexity, usage = health(config, now.counts)
            # The copies of a window, one a tap, are made again for the gradient, rather than kept at every level.
            stretch = jax.checkpoint(self._stretch, prevent_cse=False)
            step = stretch(now.book[codes_NT], up_TT, kernel, bias)
            if train:
                now = move(config, now, level_key, points_MD, jnp.where(held_M, codes_NT.reshape(-1), -1), held_M)
            fixed = lax.stop_gradient(step)
            total = total + step
            error = jnp.mean(jnp.square(fixed - residual))
            if config.objective == "residual":
                loss = error + jnp.mean(jnp.square(step - lax.stop_gradient(residual)))
            else:
                loss = 0.25 * error + jnp.mean(jnp.square(total - lax.stop_gradient(f_NTE)))
            return (residual - fixed, total), (now, codes_NT, loss, error, perplexity, usage)

        phis = np.asarray(config.phis)
        each = (self.averages, keys, *matrices, self.phi[...][phis], self.phi_bias[...][phis])
        (_, total), (moved, codes_KNT, losses_K, error_K, perplexity_K, usage_K) = lax.scan(
            level, (f_NTE, jnp.zeros_like(f_NTE)), jax.tree.map(lambda x: x[:levels], each)
        )
        if train:
            self.keep(moved)
        gain = config.levels if config.straight_through == "per_level" else 1
        sum_NTE = lax.stop_gradient(total) + gain * (f_NTE - lax.stop_gradient(f_NTE))
        codes_SN = codes_KNT.transpose(0, 2, 1)[np.nonzero(matrices.held_KT[:levels])]
        batch = (x_BTD.shape[0], -1)
        return Quantised(
            self._out_proj(sum_NTE.reshape(*batch, config.frames, config.latent)),
            codes_SN.T.reshape(*batch, codes_SN.shape[0]),
            jnp.mean(losses_K),
            {"commitment_K": error_K, "perplexity_K": perplexity_K, "usage_K": usage_K},
        )

    def _stretch(self, chosen_NnE: Array, up_Tn: Array, kernel_WEE: Array, bias_E: Array) -> Float[Array, "*N T E"]:
        """The codes of one scale at the resolution of the window, smoothed."""
        u_NTE = _along_time(up_Tn, chosen_NnE)
        taps, frames = len(kernel_WEE), u_NTE.shape[-2]
        # As one matmul, because the gradient of a convolution's kernel is far slower on CPU.
        padded = jnp.pad(u_NTE, [(0, 0)] * (u_NTE.ndim - 2) + [(taps // 2, taps // 2), (0, 0)])
        around = jnp.stack([lax.slice_in_dim(padded, w, w + frames, axis=-2) for w in range(taps)], axis=-2)
        smooth = jnp.einsum("...twe,weo->...to", around, kernel_WEE, precision=EXACT) + bias_E
        return (1 - self.config.gamma) * u_NTE + self.config.gamma * smooth

    def _in_proj(self, x_XD: Array) -> Float[Array, "*X E"]:
        if not self.mapped:
            return x_XD
        return jnp.matmul(x_XD, self.in_proj[...], precision=EXACT) + self.in_proj_bias[...]

    def _out_proj(self, total_BPTE: Array) -> Float[Array, "B T D"]:
        x_BTE = total_BPTE.reshape(total_BPTE.shape[0], -1, total_BPTE.shape[-1])
        if not self.mapped:
            return x_BTE
        return jnp.matmul(x_BTE, self.out_proj[...], precision=EXACT) + self.out_proj_bias[...]


class ScaleMatrices(NamedTuple):
    """Between a window and each of its scales, float32; rows or columns beyond n_k are zero.

    Attributes:
      down_KTT: area pooling, to the first n_k rows.
      up_KTT: linear interpolation, from the first n_k columns.
      held_KT: bool, the first n_k.
    """

    down_KTT: np.ndarray
    up_KTT: np.ndarray
    held_KT: np.ndarray


@cache
def scale_matrices(scales: tuple[int, ...]) -> ScaleMatrices:
    """Pooling as PyTorch's `adaptive_avg_pool1d`, interpolation as its "linear" without aligned corners."""
    window = scales[-1]
    shape = (len(scales), window, window)
    down, up = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    frames = np.arange(window)
    for k, n in enumerate(scales):
        for i in range(n):
            start, stop = i * window // n, -(-(i + 1) * window // n)
            down[k, i, start:stop] = 1 / (stop - start)
        place = np.clip((frames + 0.5) * n / window - 0.5, 0, n - 1)
        left = np.floor(place).astype(int)
        right = np.minimum(left + 1, n - 1)
        np.add.at(up[k], (frames, left), 1 - (place - left))
        np.add.at(up[k], (frames, right), place - left)
    return ScaleMatrices(down, up, frames < np.asarray(scales)[:, None])


def _along_time(matrix_sT: Array, x_NTE: Float[Array, "*N T E"]) -> Float[Array, "*N s E"]:
    return jnp.einsum("st,...te->...se", matrix_sT, x_NTE, precision=EXACT)


def _split(codes_NS: Int[Array, "*N S"], scales: Sequence[int]) -> list[Int[Array, "*N n"]]:
    """The codes of each scale in packets that hold all of them, or the first few; ValueError where a scale is cut."""
    ends = np.cumsum(scales).tolist()
    if codes_NS.shape[-1] not in ends:
        raise ValueError(f"packets of {codes_NS.shape[-1]} codes hold no whole number of the scales {tuple(scales)}")
    return jnp.split(codes_NS, ends[: ends.index(codes_NS.shape[-1])], axis=-1)
