import json
from dataclasses import replace
from fractions import Fraction

import pytest

from hiermusic.errors import UserError
from hiermusic.tokens.facts import TokenFacts, difference

RESIDUAL = TokenFacts(44_100, 2048, "residual", levels=64, codes=1024, latent=128)
PYRAMID = TokenFacts(22_050, 512, "pyramid", 4, 256, 128, (1, 2, 2, 4))
SCALES = TokenFacts(24_000, 320, "multiscale", 3, 256, 48, (1, 4, 75), "partial", 2, 9, 0.5)


def test_what_follows_from_the_facts():
    assert RESIDUAL.slots == (1,) * 64 and RESIDUAL.frames == 1 and RESIDUAL.frame_rate == Fraction(44_100, 2048)
    assert set(RESIDUAL.hierarchy.rates) == {Fraction(44_100, 2048)} and RESIDUAL.hierarchy.sizes == (1024,) * 64
    assert SCALES.slots == (1, 4, 75) and SCALES.frames == 75 and SCALES.frame_rate == 75
    assert SCALES.hierarchy.rates == (1, 4, 75) and SCALES.hierarchy.tokens_per_second == 80
    assert PYRAMID.slots == (1, 2, 2, 4) and PYRAMID.frames == 4 and PYRAMID.frame_rate == Fraction(22_050, 512)
    assert PYRAMID.hierarchy.rates == tuple(Fraction(22_050, 2048) * n for n in (1, 2, 2, 4))


def test_facts_are_told_in_words():
    assert str(RESIDUAL) == "64 levels of 1024 codes at 11025/512 Hz by a residual quantiser, 128 channels"
    assert str(SCALES) == (
        "3 levels of 256 codes at 75 Hz by a multiscale quantiser of 75 frames, 80 tokens a second, partial phi, gamma "
        "0.5, 48 channels"
    )
    assert str(PYRAMID) == (
        "4 levels of 256 codes at 11025/256 Hz by a pyramid quantiser of 4 frames, 96.8994 tokens a second, "
        "128 channels"
    )


SEGMENTS = TokenFacts(48_000, 316.8, "residual", levels=16, codes=1024, latent=128)


def test_frames_that_segments_share_count_in_the_rate():
    """A segment of 150 frames begins every 47,520 samples."""
    assert SEGMENTS.frame_rate == Fraction(48_000 * 150, 47_520) == SEGMENTS.hierarchy.rates[0]


@pytest.mark.parametrize("facts", [RESIDUAL, SCALES, PYRAMID, SEGMENTS])
def test_facts_come_back_from_json(facts):
    assert TokenFacts.of(json.loads(json.dumps(facts.to_json()))) == facts


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"hop": 0.0}, "tokens.hop=0.0: give a whole number"),
        ({"hop": -1.5, "quantiser": "residual", "scales": ()}, "tokens.hop=-1.5: give a number from 1"),
        ({"hop": 1e-9, "quantiser": "residual", "scales": ()}, "tokens.hop=1e-09: give a number from 1"),
        ({"latent": 1.5}, "tokens.latent=1.5: give a whole number"),
        ({"levels": 0}, "tokens.levels=0: give a whole number from 1 to 4,096"),
        ({"codes": 1 << 25}, "tokens.codes=33554432: give a whole number"),
        ({"hop": 2.5}, "tokens.hop=2.5: give a whole number"),
        ({"sample_rate": True}, "tokens.sample_rate=True: give a whole number"),
        ({"quantiser": "binary"}, "tokens.quantiser is 'binary': choose residual, multiscale, pyramid"),
        ({"levels": 4}, "tokens.scales has 3 scales"),
        ({"scales": (1, 1, 75)}, "give whole numbers that increase"),
        ({"scales": (1, 4.0, 75)}, "tokens.scales=(1, 4.0, 75): give whole numbers"),
        ({"scales": (1, 4, 1 << 25)}, "tokens.scales ends at 33554432"),
        ({"gamma": "x"}, "tokens.gamma=x: give a number from 0"),
        ({"quantiser": "residual"}, "tokens.scales has 3 scales: a residual quantiser has none"),
        (
            {"quantiser": "pyramid"},
            "scales (1, 4, 75): give whole numbers from 1, each a multiple of the one before it",
        ),
        ({"quantiser": "pyramid", "scales": ()}, "scales ()"),
        ({"quantiser": "pyramid", "scales": (0, 1, 2)}, "scales (0, 1, 2)"),
        ({"quantiser": "pyramid", "scales": (2, 1, 2)}, "scales (2, 1, 2)"),
        ({"quantiser": "pyramid", "scales": (1, 1, 2), "levels": 4}, "tokens.scales has 3 scales"),
    ],
)
def test_facts_that_are_none(wrong, words):
    with pytest.raises(UserError) as told:
        replace(SCALES, **wrong)
    assert words in str(told.value)


def test_a_field_that_is_missing_or_unknown_is_named():
    told = SCALES.to_json()
    with pytest.raises(UserError, match="tokens has an unknown field frame_rate"):
        TokenFacts.of(told | {"frame_rate": 75})
    told.pop("gamma")
    with pytest.raises(UserError, match="tokens has no field gamma"):
        TokenFacts.of(told)


def test_a_difference_is_told_field_by_field():
    assert difference(SCALES, SCALES) == ""
    other = replace(SCALES, codes=16, gamma=0.0)
    assert difference(other, SCALES) == "codes is 16 and not 256, gamma is 0.0 and not 0.5"
