"""The pyramid of PyramidCodec (EMNLP Findings 2024): levels of codes, each finer one at a multiple of the rate.

Encoding goes from coarse to fine: a level quantises its features together with what the level above said, stretched to
its rate. Decoding adds the levels up again, each stretched to the next one's rate (nested, as in the paper's algorithm
2): S_0 = Q_0, S_i = U(S_{i-1}) + Q_i, and what the first levels alone say is S_i stretched on to the trunk's frames.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from hiermusic.codec.codebook import Quantised
from hiermusic.codec.dac import DecoderBlock, EncoderBlock
from hiermusic.codec.factorised import FactorisedConfig
from hiermusic.codec.residual import QuantiserConfig
from hiermusic.errors import UserError
from hiermusic.nn.conv import Conv, ConvTranspose, Snake
from hiermusic.tokens.facts import TokenFacts


@dataclasses.dataclass(frozen=True)
class PyramidConfig:
    """What a pyramid is made of; the defaults are the paper's p111 on a trunk whose frames are the finest level's.

    Args:
      books: codebooks of each level, coarse first.
      strides: of each level, coarse first: tokens of the next one that a token covers; of the finest, frames of the
        trunk (2 in the released code, whose trunk runs at twice the finest level's rate).
      book: what each of the codebooks is; its `levels` are not read.
      dilations: of residual units in the blocks between the levels, which are DAC's then, as in the released code; each
        level has a Snake and a convolution of its own towards the codebooks and back too. (): single convolutions, as
        the paper has it, transposed ones without an activation towards the finer levels.
      residual: a level quantises its features less what the coarser levels have said, instead of their sum.
      mel_finest: the finest level quantises frames of its own, which it is given and no other level hears of: how loud
        the bands are, see `mel_branch`. What the trunk says goes to the coarser levels alone.
      dtype, init: of the convolutions, see `nn.conv.Conv`.
    Raises:
      UserError: no level, another number of strides than of levels, a coarser level with as many tokens as a finer, or
        no level but one of bands.
    """

    books: tuple[int, ...] = (1, 1, 1)
    strides: tuple[int, ...] = (2, 2, 1)
    book: FactorisedConfig | QuantiserConfig = dataclasses.field(default_factory=FactorisedConfig)
    dilations: tuple[int, ...] = ()
    residual: bool = False
    mel_finest: bool = False
    dtype: str = "float32"
    init: str = "dac"

    def __post_init__(self):
        if not self.books or min(self.books) < 1:
            raise UserError(f"model.books={self.books}: give each level's number of codebooks, 1 or more")
        if len(self.strides) != len(self.books):
            raise UserError(
                f"model.level_strides has {len(self.strides)} numbers for the {len(self.books)} levels of model.books: "
                "give one for each"
            )
        if min(self.strides) < 1 or min(self.strides[:-1], default=2) < 2:
            raise UserError(
                f"model.level_strides={self.strides}: a level has at least 2 tokens for one of the level above it, and "
                "the trunk at least 1 frame for a token of the finest"
            )
        if self.mel_finest and len(self.books) < 2:
            raise UserError(
                f"model.mel_finest=True leaves no level for the waveform in model.books={self.books}: give two levels "
                "or more, or set it to False"
            )

    @property
    def frames(self) -> int:
        """Frames of the trunk in a packet of codes."""
        return math.prod(self.strides)

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens in a packet of a codebook of each level."""
        return tuple(math.prod(self.strides[:i]) for i in range(len(self.books)))

    @property
    def slots(self) -> tuple[int, ...]:
        """Tokens in a packet of each codebook, coarse first."""
        return tuple(n for n, books in zip(self.counts, self.books, strict=True) for _ in range(books))

    @property
    def factors(self) -> tuple[int, ...]:
        """By how much of the band each level's target is narrower than the whole, coarse first."""
        return tuple(self.counts[-1] // n for n in self.counts)

    @property
    def encoder_reach(self) -> int:
        """Frames of the trunk on either side, beyond the trunk's own reach, that a code may depend on."""
        reach = 0
        for i, step in enumerate(self._steps):
            finer = step // self.strides[i]
            reach += finer * (3 * sum(self.dilations) + 2 * self.strides[i]) if self.strides[i] > 1 else 0  # down
            reach += step if self.dilations else 0
            if i + 1 < len(self.books):
                reach += step + finer * 3 * sum(self.dilations)  # and up again
        return reach

    @property
    def decoder_reach(self) -> int:
        """Frames of the trunk on either side, beyond the trunk's own reach, that a sample may depend on."""
        reach = 3 * self.frames if self.dilations else 0
        for i, step in enumerate(self._steps):
            reach += step + step // self.strides[i] * 3 * sum(self.dilations) if self.strides[i] > 1 else 0
        return reach

    @property
    def _steps(self) -> tuple[int, ...]:
        """Frames of the trunk that a token of each level covers."""
        return tuple(self.frames // n for n in self.counts)

    def reaches_finest(self, levels: int | None) -> bool:
        """Whether the first `levels` codebooks (None: all) are more than those of the coarser levels."""
        return levels is None or levels > sum(self.books[:-1])

    def facts(self, sample_rate: int, hop: int, width: int) -> TokenFacts:
        """The facts of the tokens that a codec with this quantiser makes, of the trunk's frames of this width."""
        finest = hop * self.strides[-1]
        return TokenFacts(sample_rate, finest, "pyramid", sum(self.books), self.book.codes, width, self.slots)

    def make(self, width: int, *, rngs: nnx.Rngs) -> "PyramidQuantiser":
        """The quantiser of the trunk's frames, of this width."""
        return PyramidQuantiser(width, self, rngs=rngs)


class PyramidQuantiser(nnx.Module):
    """From the trunk's frames down to the coarsest level, up again through the codebooks, and up once more to frames.

    A packet of codes is one token of the coarsest level's codebooks and all below it, codebook after codebook. The
    released code has one more upsampler in its encoder, behind the finest level, which nothing reads; it is not made.

    Args:
      width: D, channels of the frames and of every level.
    """

    decoding = ("ups", "pres")  # weights that encoding does not read

    def __init__(self, width: int, config: PyramidConfig, *, rngs: nnx.Rngs):
        self.config, levels = config, len(config.books)
        how = {"dtype": config.dtype, "init": config.init, "rngs": rngs}

        def down(stride: int) -> nnx.Module:
            return EncoderBlock(width, width, stride, config.dilations, **how)

        def up(stride: int) -> nnx.Module:
            block = DecoderBlock(width, width, stride, config.dilations, **how) if config.dilations else None
            return block or ConvTranspose(width, width, stride, **how)

        bridged = [stride for stride in config.strides if stride > 1]  # all, or all but the finest
        self.downs = nnx.List([down(stride) for stride in bridged])
        self.raises = nnx.List([up(stride) for stride in config.strides[: -2 if config.mel_finest else -1]])
        self.ups = nnx.List([up(stride) for stride in bridged])
        if config.dilations:
            self.posts = nnx.List([_Bend(width, 3, **how) for _ in range(levels)])
            self.pres = nnx.List([_Bend(width, 7, **how) for _ in range(levels)])
        books = [dataclasses.replace(config.book, levels=count) for count in config.books]
        self.books = nnx.List([book.make(width, rngs=rngs) for book in books])

    @property
    def codebooks(self) -> Float[Array, "K V E"]:
        """The codes of all codebooks, coarse first."""
        return jnp.concatenate([book.codebooks[...] for book in self.books])

    @property
    def ema_counts(self) -> Float[Array, "K V"]:
        """How often each of them was chosen of late."""
        return jnp.concatenate([book.ema_counts[...] for book in self.books])

    def encode(
        self, x_BTD: Float[Array, "B T D"], levels: int | None = None, finest_BTD: Float[Array, "B T D"] | None = None
    ) -> Int[Array, "B P S"]:
        """Codes of the first `levels` codebooks (all when left out); T has to be whole packets."""
        depths = self._depths(levels)
        features, said, codes = self._features(x_BTD, finest_BTD, len(depths)), None, []
        for i, (book, depth) in enumerate(zip(self.books, depths, strict=False)):
            codes.append(book.encode(self._heard(features[i], said), depth))
            goes_on = i + 1 < len(depths) and i < len(self.raises)
            said = self.raises[i](book.decode(codes[-1])) if goes_on else None
        return self._packed(codes)

    def decode(self, codes_BPS: Int[Array, "B P S"], levels: int | None = None) -> Float[Array, "B T D"]:
        """Frames of the first `levels` codebooks; there may be fewer than the pyramid's, and -1 adds nothing."""
        total_BTD = None
        codes = self._unpacked(codes_BPS, levels)
        for i, codes_BTK in enumerate(codes):
            own_BTD = self._own(i, self.books[i].decode(codes_BTK))
            own_BTD = jnp.where(codes_BTK[..., :1] >= 0, own_BTD, 0.0)  # what leads back has a bias
            total_BTD = own_BTD if total_BTD is None else self.ups[i - 1](total_BTD) + own_BTD
        for up in list(self.ups)[len(codes) - 1 :]:
            total_BTD = up(total_BTD)
        return total_BTD

    def bypass(
        self, x_BTD: Float[Array, "B T D"], finest_BTD: Float[Array, "B T D"] | None = None
    ) -> tuple[Float[Array, "B T D"], ...]:
        """Frames as they would come back from codes without an error, of the first level, the first two, ..., all."""
        said, spoken = None, []
        for i, features in enumerate(self._features(x_BTD, finest_BTD, len(self.books))):
            spoken.append(self.books[i].bypass(self._heard(features, said))[0])
            said = self.raises[i](spoken[-1]) if i < len(self.raises) else None
        return self._summed(spoken)

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        finest_BTD: Float[Array, "B T D"] | None = None,
        *,
        key: PRNGKeyArray | None = None,
        train: bool = False,
    ) -> Quantised:
        """Quantises, and in training counts the codes that are chosen.

        Args:
          x_BTD: the trunk's frames, T of them whole packets.
          finest_BTD: of a pyramid with `mel_finest`, what its finest level is given, a frame for each of its tokens.
          key: needed in training, see `FactorisedQuantiser`.
          train: as for `FactorisedQuantiser`.
        """
        keys = jax.random.split(key, len(self.books)) if train else (None,) * len(self.books)
        said, made = None, []
        for i, features in enumerate(self._features(x_BTD, finest_BTD, len(self.books))):
            made.append(self.books[i](self._heard(features, said), key=keys[i], train=train))
            said = self.raises[i](made[-1].z_q_BTD) if i < len(self.raises) else None
        *coarser, whole = self._summed([one.z_q_BTD for one in made])
        return Quantised(
            whole,
            self._packed([one.codes_BPS for one in made]),
            jnp.stack([one.commitment for one in made]),
            {name: jnp.concatenate([one.stats[name] for one in made]) for name in made[0].stats},
            tuple(coarser),
        )

    def _features(self, x_BTD: Array, finest_BTD: Array | None, levels: int) -> list[Float[Array, "B T D"]]:
        """What the first `levels` levels see of the trunk's frames, or the finest of its own."""
        found = []
        for i in range(len(self.books))[::-1]:
            x_BTD = self.downs[i](x_BTD) if i < len(self.downs) else x_BTD
            seen_BTD = finest_BTD if self.config.mel_finest and i + 1 == len(self.books) else x_BTD
            if i < levels:
                found.append(self.posts[i](seen_BTD) if self.config.dilations else seen_BTD)
        return [feature.astype(jnp.float32) for feature in found[::-1]]

    def _heard(self, features_BTD: Array, said_BTD: Array | None) -> Float[Array, "B T D"]:
        """What a level quantises: its features, and what the level above said."""
        if said_BTD is None:
            return features_BTD
        return features_BTD - said_BTD if self.config.residual else features_BTD + said_BTD

    def _own(self, i: int, q_BTD: Array) -> Float[Array, "B T D"]:
        """What a level adds to the sum."""
        return self.pres[i](q_BTD).astype(jnp.float32) if self.config.dilations else q_BTD

    def _summed(self, spoken: Sequence[Float[Array, "B T D"]]) -> tuple[Float[Array, "B T D"], ...]:
        """Frames of the first level, the first two, ..., all; each upsampler runs once, over all of them."""
        sums_BJTD = self._own(0, spoken[0])[:, None]
        for i, q_BTD in enumerate(spoken[1:]):
            sums_BJTD = _over_all(self.ups[i], sums_BJTD)
            finer_BTD = sums_BJTD[:, -1] + self._own(i + 1, q_BTD)
            sums_BJTD = jnp.concatenate([sums_BJTD, finer_BTD[:, None]], axis=1)
        if len(self.ups) == len(self.books):
            sums_BJTD = _over_all(self.ups[-1], sums_BJTD)
        return tuple(jnp.moveaxis(sums_BJTD, 1, 0))

    def _depths(self, levels: int | None) -> list[int]:
        """Codebooks of each level that the first `levels` of all come to, without levels of none."""
        levels = sum(self.config.books) if levels is None else levels
        starts = np.cumsum((0, *self.config.books)).tolist()
        return [min(levels - start, n) for start, n in zip(starts, self.config.books, strict=False) if levels > start]

    def _packed(self, codes: Sequence[Int[Array, "B T K"]]) -> Int[Array, "B P S"]:
        """Packets of the codes of each level."""
        packed = []
        for codes_BTK, count in zip(codes, self.config.counts, strict=False):
            batch, frames, books = codes_BTK.shape
            packed.append(codes_BTK.reshape(batch, frames // count, count, books).swapaxes(2, 3))
        return jnp.concatenate([part.reshape(*part.shape[:2], -1) for part in packed], axis=-1)

    def _unpacked(self, codes_BPS: Int[Array, "B P S"], levels: int | None) -> list[Int[Array, "B T K"]]:
        """The codes of each level in packets, of the first `levels` codebooks; ValueError where a codebook is cut."""
        ends = np.cumsum(self.config.slots).tolist()
        batch, packets, width = codes_BPS.shape
        if width not in ends:
            raise ValueError(f"packets of {width} codes hold no whole number of levels of {self.config.slots} tokens")
        there = ends.index(width) + 1
        found, start = [], 0
        for depth, count in zip(self._depths(min(levels or there, there)), self.config.counts, strict=False):
            part = codes_BPS[..., start : start + depth * count].reshape(batch, packets, depth, count)
            found.append(part.swapaxes(2, 3).reshape(batch, packets * count, depth))
            start += depth * count
        return found


class _Bend(nnx.Module):
    """Snake and a convolution: what lies between a level's frames and its codebooks."""

    def __init__(self, width: int, kernel: int, *, dtype: str, init: str, rngs: nnx.Rngs):
        self.snake = Snake(width, rngs=rngs)
        self.conv = Conv(width, width, (kernel,), dtype=dtype, init=init, rngs=rngs)

    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.conv(self.snake(x_BTD))


def _over_all(up: nnx.Module, sums_BJTD: Float[Array, "B J T D"]) -> Float[Array, "B J T*s D"]:
    """An upsampler over several sums of each item at once."""
    y = up(sums_BJTD.reshape(-1, *sums_BJTD.shape[2:])).astype(jnp.float32)
    return y.reshape(*sums_BJTD.shape[:2], *y.shape[1:])
