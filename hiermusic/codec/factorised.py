"""Residual vector quantiser with factorised codebooks learned by gradients, as in DAC (arXiv 2306.06546), in float32."""

import dataclasses

from flax import nnx

from hiermusic.errors import UserError
from hiermusic.tokens.facts import TokenFacts


@dataclasses.dataclass(frozen=True)
class FactorisedConfig:
    """What a factorised quantiser is made of; the defaults are those of DAC's release.

    Args:
      levels: K, codebooks.
      codes: V, entries of each.
      width: E, dimensions that codes are looked up in: a linear map leads there, another back.
      commitment: weight of what draws the encoder to the codes, beside what draws the codes to the encoder.
      dropout: share of a training batch's items that are quantised with the first 1..K levels, uniformly drawn.
      decay: of the averaged counts that tell how codes are used.
      kmeans_iterations: on the first training batch; 0 leaves codes as they were drawn, as DAC does.
      dead_share: a code is dead below this share of the count that uniform use would give it, and then moves to where
        vectors are; 0 for none, as in DAC.
    Raises:
      UserError: a number out of its range.
    """

    levels: int = 9
    codes: int = 1024
    width: int = 8
    commitment: float = 0.25
    dropout: float = 0.0
    decay: float = 0.99
    kmeans_iterations: int = 0
    dead_share: float = 0.0

    def __post_init__(self):
        if self.levels < 1:
            raise UserError(f"model.levels={self.levels}: give whole numbers of 1 or more")
        if not 0 <= self.dropout <= 1:
            raise UserError(f"quantiser dropout is {self.dropout}: give a share from 0 to 1")

    @property
    def frames(self) -> int:
        """Latent frames in a packet of codes."""
        return 1

    @property
    def slots(self) -> tuple[int, ...]:
        """Tokens of each level in a packet."""
        return (1,) * self.levels

    def facts(self, sample_rate: int, hop: int, width: int) -> TokenFacts:
        """The facts of the tokens that a codec with this quantiser makes, of latent frames of this width."""
        return TokenFacts(sample_rate, hop, "residual", self.levels, self.codes, width)

    def make(self, width: int, *, rngs: nnx.Rngs) -> nnx.Module:
        """The quantiser of latent frames of this width."""
        raise NotImplementedError
