"""The accompaniment of a vocal: three token models in a chain, in codes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int


class Accompaniment(NamedTuple):
    """What one window became, and what the next window's beginning can be given.

    Attributes:
      semantic_T: int32 [T_s], one token for every token of the vocal.
      codes_TK: int32 [T_a, K], acoustic codes, T_a = `Accompanist.frames(T_v)`; 8 levels, or the coarse ones alone
        where there is no fine stage.
    """

    semantic_T: Int[np.ndarray, "T"]
    codes_TK: Int[np.ndarray, "T K"]


class Accompanist:
    """The trained stages of one HAFM, ready to play.

        accompanist = Accompanist.open("out/semantic", "out/coarse", "out/fine")
        (made,) = accompanist.accompany([vocal_T], seeds=[0], guidance={"semantic": 3.0})

    Attributes:
      vocal, semantic, codes: `TokenFacts` of the vocal's tokens, of the accompaniment's semantic tokens, and of its
        acoustic codes, of which `levels` are made.
      tokenizers: the `Tokenizer` (workdir and step) that made the tokens of each, by "vocal", "semantic" and "codes".
      window: the most vocal tokens that all stages take at once.
      levels: how many levels of acoustic codes are made.
      sampling: of each stage, by its name, its workdir's temperature, top_k, top_p and guidance.
    """

    @classmethod
    def open(cls, semantic: str, coarse: str, fine: str | None = None, *, mesh: Mesh | None = None) -> "Accompanist":
        """The stages of three workdirs; without the last, the coarse levels are all there is.

        Args:
          semantic, coarse, fine: workdirs or exports of the stages of these names.
          mesh: to spread the models over; None for the first device. All processes of a run must come here.
        Raises:
          UserError: a workdir of another stage, or stages of other tokens than each other's.
        """
        raise NotImplementedError

    def frames(self, vocal_tokens: int) -> int:
        """Frames of acoustic codes beside so many tokens of the vocal: int(T_v * 75 / 50) at HAFM's rates."""
        raise NotImplementedError

    def accompany(
        self,
        vocals: Sequence[Int[np.ndarray, "T"]],
        *,
        seeds: Sequence[int],
        temperature: Mapping[str, float] | float | None = None,
        top_k: Mapping[str, int] | int | None = None,
        guidance: Mapping[str, float] | float | None = None,
        given: Sequence[Int[np.ndarray, "T K"] | None] | None = None,
        given_semantic: Sequence[Int[np.ndarray, "T"] | None] | None = None,
    ) -> list[Accompaniment]:
        """Accompaniments of a batch of windows, of one song or of several; each is what it would be alone.

        Args:
          vocals: of each window the vocal's tokens, at most `window` of them.
          seeds: one integer a window; the same seed draws the same tokens in any batch.
          temperature, top_k, guidance: of every stage, or by the names of stages ("semantic", "coarse", "fine"), of
            which those left out keep their workdir's; guidance 1 is none, and moves away from the same window whose
            prefix is left out.
          given: of each window the acoustic codes of its beginning, as many levels as are made, which are kept as they
            are; None for none. There must be fewer frames than the window has.
          given_semantic: likewise its first semantic tokens.
        Raises:
          UserError: codes that no token of these stages is, a window too long, guidance of a stage that was trained
            without leaving its prefix out.
        """
        raise NotImplementedError
