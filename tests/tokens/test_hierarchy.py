import json
from fractions import Fraction

import pytest

from hiermusic.errors import UserError
from hiermusic.tokens.hierarchy import Hierarchy, Level

KHALA = Hierarchy.uniform(64, Fraction(44100, 2048), 1024)
PYRAMID = Hierarchy(tuple(Level(f"c{k}", Fraction(22050, hop), 1024) for k, hop in enumerate((2048, 1024, 512))))


def test_rates_are_exact():
    assert len(KHALA) == 64 and KHALA.sizes == (1024,) * 64
    assert KHALA.select(0, 2).tokens_per_second == Fraction(44100, 1024)
    assert KHALA.lengths(60)[0] == 1292 and KHALA.lengths(2048 / 44100)[0] == 1
    assert PYRAMID.lengths(2048 / 22050) == (1, 2, 4)


def test_selection_keeps_names():
    assert [level.name for level in KHALA.select(2, 4)] == ["q2", "q3"]


@pytest.mark.parametrize("hierarchy", [KHALA, PYRAMID])
def test_json_round_trip(hierarchy):
    assert Hierarchy.from_json(json.loads(json.dumps(hierarchy.to_json()))) == hierarchy


def test_impossible_levels_are_refused():
    with pytest.raises(UserError):
        Level("q0", Fraction(0), 1024)
    with pytest.raises(UserError):
        Level("q0", Fraction(50), 0)
