"""Words that can be sung: a small English lexicon with its phones, and lines that rhyme.

Each word is spelled `syl-la-bles:phones/phones`, so that the text decides the sound.
"""

from dataclasses import dataclass

import numpy as np

# Vowels glide where two follow each other (`ay` is written `aa iy`); hiermusic.data.voice knows every phone.
_WORDS = {
    "noun": "sun:s ah n, moon:m uw n, star:s t aa r, sea:s iy, rain:r eh iy n, fire:f aa iy er, heart:h aa r t, "
    "night:n aa iy t, day:d eh iy, road:r ow d, stone:s t ow n, dream:d r iy m, light:l aa iy t, home:h ow m, "
    "song:s ao ng, wind:w ih n d, tree:t r iy, sky:s k aa iy, riv-er:r ih/v er, moun-tain:m aa uw n/t ah n, "
    "morn-ing:m ao r/n ih ng, sha-dow:sh ae/d ow, o-cean:ow/sh ah n, sum-mer:s ah/m er, win-ter:w ih n/t er, "
    "ci-ty:s ih/t iy, gar-den:g aa r/d ah n, me-lo-dy:m eh/l ow/d iy",
    "adj": "blue:b l uw, gold:g ow l d, cold:k ow l d, warm:w ao r m, new:n uw, old:ow l d, deep:d iy p, "
    "high:h aa iy, free:f r iy, bright:b r aa iy t, slow:s l ow, si-lent:s aa iy/l ah n t, lone-ly:l ow n/l iy, "
    "gol-den:g ow l/d ah n, hap-py:h ae/p iy, o-pen:ow/p ah n",
    "verb": "go:g ow, stay:s t eh iy, fly:f l aa iy, run:r ah n, wait:w eh iy t, sing:s ih ng, call:k ao l, "
    "shine:sh aa iy n, fall:f ao l, rise:r aa iy z, dance:d ae n s, dream:d r iy m, turn:t er n, cry:k r aa iy, "
    "fol-low:f aa/l ow, re-mem-ber:r iy/m eh m/b er, be-gin:b iy/g ih n",
    "time": "now:n aa uw, soon:s uw n, to-night:t uw/n aa iy t, to-day:t uw/d eh iy, a-gain:ah/g eh n, "
    "al-ways:ao l/w eh iy z, for-ev-er:f ao r/eh/v er, a-lone:ah/l ow n, a-way:ah/w eh iy",
    "who": "I:aa iy, you:y uw, we:w iy, they:th eh iy",
    "with": "in:ih n, on:ao n, to:t uw, by:b aa iy, un-der:ah n/d er, o-ver:ow/v er",
    "my": "the:th ah, my:m aa iy, your:y ao r, our:aa uw er",
    "will": "will:w ih l, can:k ae n, must:m ah s t, nev-er:n eh/v er",
    "and": "and:ae n d, but:b ah t, so:s ow",
}
_TEMPLATES = (
    "verb time",
    "my adj noun",
    "who will verb time",
    "who will verb with my noun",
    "my noun and my noun",
    "my adj noun will verb",
    "verb with my adj noun",
    "and who verb with my noun",
    "who verb and who verb time",
    "with my adj noun who verb",
    "who will verb with my adj noun",
    "my noun will verb with my noun",
)


@dataclass(frozen=True)
class Word:
    """A word: its syllables as spelled, and the phones of each."""

    syllables: tuple[str, ...]
    phones: tuple[tuple[str, ...], ...]

    @property
    def text(self) -> str:
        return "".join(self.syllables)


def _parse(entry: str) -> Word:
    spelled, phones = entry.strip().split(":")
    return Word(tuple(spelled.split("-")), tuple(tuple(p.split()) for p in phones.split("/")))


LEXICON = {kind: tuple(map(_parse, words.split(","))) for kind, words in _WORDS.items()}


def write_line(rng: np.random.Generator, low: int, high: int, rhyme: tuple[Word, ...] = ()) -> tuple[Word, ...]:
    """Writes one line of verse.

    Args:
      rng: the source of chance.
      low, high: least and most syllables, 2 <= low <= high; a line of `high` is cut to fit.
      rhyme: a line whose ending is echoed where possible.

    Returns:
      Its words.
    """
    tries = [_draw(rng) for _ in range(40)]
    fitting = [line for line in tries if low <= syllable_count(line) <= high]
    shortest = min(tries, key=syllable_count)
    rhyming = [line for line in fitting if rhyme and line[-1] != rhyme[-1] and _ending(line) == _ending(rhyme)]
    return (rhyming or fitting or [shortest])[0]


def syllable_count(line: tuple[Word, ...]) -> int:
    """Number of syllables in a line."""
    return sum(len(word.syllables) for word in line)


def _draw(rng: np.random.Generator) -> tuple[Word, ...]:
    kinds = _TEMPLATES[rng.integers(len(_TEMPLATES))].split()
    return tuple(LEXICON[kind][rng.integers(len(LEXICON[kind]))] for kind in kinds)


def _ending(line: tuple[Word, ...]) -> tuple[str, ...]:
    return line[-1].phones[-1][-2:]
