"""What a codec's tokens are: levels, coarse first, each with its own rate and number of codes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

from hiermusic.errors import UserError


@dataclass(frozen=True)
class Level:
    """One level of tokens.

    Args:
      name: what a person calls it ("q0", "vocal").
      rate: tokens per second, exact (44100/2048 is no decimal number).
      size: number of codes, so that a token is in [0, size).
    """

    name: str
    rate: Fraction
    size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", Fraction(self.rate))
        if self.rate <= 0 or self.size < 1:
            raise UserError(f"level {self.name!r} has rate {self.rate} and {self.size} codes: both must be positive")


@dataclass(frozen=True)
class Hierarchy:
    """An ordered set of levels, coarse first."""

    levels: tuple[Level, ...]

    @classmethod
    def uniform(cls, levels: int, rate: Fraction, size: int) -> "Hierarchy":
        """A residual quantiser's hierarchy: that many levels q0, q1, ... of one rate and one size."""
        return cls.of_packets((1,) * levels, rate, size)

    @classmethod
    def of_packets(cls, slots: Sequence[int], rate: Fraction, size: int) -> "Hierarchy":
        """Levels q0, q1, ... of one size, of which each of `rate` packets a second holds slots[k] tokens."""
        return cls(tuple(Level(f"q{k}", rate * count, size) for k, count in enumerate(slots)))

    def __len__(self) -> int:
        return len(self.levels)

    def __iter__(self) -> Iterator[Level]:
        return iter(self.levels)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(level.size for level in self.levels)

    @property
    def rates(self) -> tuple[Fraction, ...]:
        return tuple(level.rate for level in self.levels)

    @property
    def tokens_per_second(self) -> Fraction:
        return sum(self.rates, Fraction(0))

    def lengths(self, seconds: float) -> tuple[int, ...]:
        """Tokens of each level that cover `seconds` (rounded up, exact to a microsecond)."""
        exact = Fraction(seconds).limit_denominator(1_000_000)
        return tuple(ceil(rate * exact) for rate in self.rates)

    def select(self, start: int, stop: int) -> "Hierarchy":
        """The levels [start, stop) as a hierarchy of their own."""
        return Hierarchy(self.levels[start:stop])

    def to_json(self) -> list[dict]:
        """A JSON value from which `from_json` makes an equal hierarchy (rates as "44100/2048")."""
        return [{"name": level.name, "rate": str(level.rate), "size": level.size} for level in self.levels]

    @classmethod
    def from_json(cls, value: list[dict]) -> "Hierarchy":
        return cls(tuple(Level(entry["name"], Fraction(entry["rate"]), entry["size"]) for entry in value))
