"""The pyramid of PyramidCodec (EMNLP Findings 2024): levels of codes, each finer one at a multiple of the rate."""

import dataclasses
import math

from flax import nnx

from hiermusic.codec.factorised import FactorisedConfig
from hiermusic.errors import UserError
from hiermusic.tokens.facts import TokenFacts


@dataclasses.dataclass(frozen=True)
class PyramidConfig:
    """What a pyramid is made of; the defaults are the paper's p111 on a trunk whose frames are the finest level's.

    Args:
      books: codebooks of each level, coarse first.
      strides: of each level, coarse first: tokens of the next one that a token covers; of the finest, frames of the
        trunk (2 in the released code, whose trunk runs at twice the finest level's rate).
      book: what each of the codebooks is; `levels` is not read.
      heavy: what lies between the levels is DAC's blocks, as in the released code, instead of single convolutions, as
        the paper says; each level then has convolutions of its own towards the codebooks and back.
      residual: a level quantises its features less what the coarser levels have said, instead of their sum.
    Raises:
      UserError: no level, another number of strides than of levels, or a coarser level with as many tokens as a finer.
    """

    books: tuple[int, ...] = (1, 1, 1)
    strides: tuple[int, ...] = (2, 2, 1)
    book: FactorisedConfig = dataclasses.field(default_factory=FactorisedConfig)
    heavy: bool = False
    residual: bool = False

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

    @property
    def frames(self) -> int:
        """Frames of the trunk in a packet of codes."""
        return math.prod(self.strides)

    @property
    def counts(self) -> tuple[int, ...]:
        """Tokens of a codebook of each level in a packet."""
        return tuple(math.prod(self.strides[:i]) for i in range(len(self.books)))

    @property
    def slots(self) -> tuple[int, ...]:
        """Tokens of each codebook in a packet, coarse first."""
        return tuple(n for n, books in zip(self.counts, self.books, strict=True) for _ in range(books))

    def facts(self, sample_rate: int, hop: int, width: int) -> TokenFacts:
        """The facts of the tokens that a codec with this quantiser makes, of the trunk's frames of this width."""
        finest = hop * self.strides[-1]
        return TokenFacts(sample_rate, finest, "pyramid", sum(self.books), self.book.codes, width, self.slots)

    def make(self, width: int, *, rngs: nnx.Rngs) -> nnx.Module:
        """The quantiser of latent frames of this width."""
        raise NotImplementedError
