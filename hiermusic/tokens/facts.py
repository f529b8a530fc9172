"""What a token model has to know of the tokens it models, as the codec that makes them says it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from typing import Any

from hiermusic.errors import UserError
from hiermusic.tokens.hierarchy import Hierarchy
from hiermusic.tokens.scales import check_nested, check_scales

QUANTISERS = ("residual", "multiscale", "pyramid")

_MOST = 1 << 24  # of any number
_MOST_FRAMES = 1 << 12  # of a segment
_MOST_LEVELS = 1 << 12  # as many as a stranger's file names would fill the memory


@dataclass(frozen=True)
class TokenFacts:
    """Facts of a codec's tokens: token records hold them, and a token model's configuration as its field `tokens`.

    Args:
      sample_rate: Hz of what the codec hears.
      hop: samples a latent frame; of a pyramid, samples a token of its finest level; of a residual quantiser no whole
        number where a codec of segments codes some of them twice.
      quantiser: "residual", whose packet of codes is a frame, "multiscale", whose packet is a window of frames, or
        "pyramid", whose packet is one token of the coarsest level and all below it.
      levels: K; of a pyramid, codebooks, of which one of its levels may have several.
      codes: of each level.
      latent: channels of what the codes of a frame add up to.
      scales: tokens of each level in a packet, coarse first, the last one a frame; () for a residual quantiser. The
        fields below are of a multiscale quantiser, and what they are by default for the others.
      phi, phi_count, phi_kernel, gamma: see `codec.multiscale.MultiscaleConfig`.
    Raises:
      UserError: a number that is none, an unknown quantiser, or scales that are not as many as the levels.
    """

    sample_rate: int
    hop: int | float
    quantiser: str
    levels: int
    codes: int
    latent: int
    scales: tuple[int, ...] = ()
    phi: str = ""
    phi_count: int = 0
    phi_kernel: int = 0
    gamma: float = 0.0

    def __post_init__(self):
        for name in ("sample_rate", "hop", "levels", "codes", "latent"):
            most = _MOST_LEVELS if name == "levels" else _MOST
            value, broken = getattr(self, name), (name, self.quantiser) == ("hop", "residual")
            if (type(value) is not int and not (broken and type(value) is float)) or not 1 <= value <= most:
                raise UserError(f"tokens.{name}={value}: give a {'' if broken else 'whole '}number from 1 to {most:,}")
        for name in ("phi_count", "phi_kernel", "gamma"):
            if not isinstance(value := getattr(self, name), int | float) or not 0 <= value <= _MOST:
                raise UserError(f"tokens.{name}={value}: give a number from 0 to {_MOST:,}")
        if self.quantiser not in QUANTISERS:
            raise UserError(f"tokens.quantiser is '{self.quantiser}': choose {', '.join(QUANTISERS)}")
        if self.quantiser != "residual":
            (check_scales if self.quantiser == "multiscale" else check_nested)(self.scales)
            if not all(type(count) is int for count in self.scales):
                raise UserError(f"tokens.scales={self.scales}: give whole numbers")
            if self.frames > _MOST:
                raise UserError(f"tokens.scales ends at {self.frames}: no window has more than {_MOST:,} frames")
        if len(self.scales) != (0 if self.quantiser == "residual" else self.levels):
            raise UserError(
                f"tokens.scales has {len(self.scales)} scales: a residual quantiser has none, another one for each "
                f"of its {self.levels} levels (tokens.levels)"
            )

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "TokenFacts":
        """The facts of a mapping, JSON or a configuration's; UserError where one is missing or unknown."""
        names = {field.name for field in fields(cls)}
        if wrong := sorted(names ^ set(told)):
            raise UserError(f"tokens has {'no field' if wrong[0] in names else 'an unknown field'} {wrong[0]}")
        return cls(**{**told, "scales": tuple(told["scales"])})

    def to_json(self) -> dict[str, Any]:
        """A JSON value from which `of` makes equal facts."""
        return {**asdict(self), "scales": list(self.scales)}

    @property
    def slots(self) -> tuple[int, ...]:
        """Tokens of each level in a packet of codes."""
        return self.scales or (1,) * self.levels

    @property
    def frames(self) -> int:
        """Latent frames in a packet of codes."""
        return self.slots[-1]

    @property
    def frame_rate(self) -> Fraction:
        """Latent frames a second."""
        return self.sample_rate / Fraction(self.hop).limit_denominator(_MOST_FRAMES)

    @property
    def hierarchy(self) -> Hierarchy:
        """Levels, rates and numbers of codes."""
        return Hierarchy.of_packets(self.slots, self.frame_rate / self.frames, self.codes)

    def __str__(self) -> str:
        told = f"{self.levels} levels of {self.codes} codes at {self.frame_rate} Hz by a {self.quantiser} quantiser"
        if self.scales:
            told += f" of {self.frames} frames, {float(self.hierarchy.tokens_per_second):g} tokens a second"
        if self.phi:
            told += f", {self.phi} phi, gamma {self.gamma:g}"
        return f"{told}, {self.latent} channels"


def difference(found: TokenFacts, wanted: TokenFacts) -> str:
    """In what two sets of facts differ, one field after the other; empty where they are the same."""
    names = [field.name for field in fields(TokenFacts) if getattr(found, field.name) != getattr(wanted, field.name)]
    return ", ".join(f"{name} is {getattr(found, name)} and not {getattr(wanted, name)}" for name in names)
