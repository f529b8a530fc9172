"""What each pattern's engine is asked for; no model is made."""

import re

import numpy as np
import pytest

from hiermusic.errors import UserError
from hiermusic.systems.lm import songs
from hiermusic.systems.tokens import songs as tokens

from ..fakes import configuration, request


def settings(name: str, **model):
    config = configuration("tokens/lm:tiny", {"sample_rate": 8000, "hop": 800, "levels": 2, "codes": 32})
    config.model.update({"pattern": name, "tokenizer": "none", "length": 61} | model)
    return config


@pytest.fixture
def asked(monkeypatch):
    """The arguments of every engine."""
    calls = []

    def engine(model, prompts, *_, **how):
        calls.append(how)
        return [np.zeros((1, 2), int)] * len(prompts)

    for module, name in ((songs.autoregressive, "generate"), (songs.layerwise, "refine"), (songs.nextscale, "draw")):
        monkeypatch.setattr(module, name, engine)
    return calls


SCALES = {"quantiser": "multiscale", "levels": 2, "scales": (4, 8), "phi": "shared", "phi_count": 1, "phi_kernel": 3}
MOST = {"flatten": 3.0, "level_major": 3.0, "delay": 6.0, "parallel": 6.1, "layer_wise": 6.0, "next_scale": 3.0}


@pytest.mark.parametrize(("name", "most"), MOST.items())
def test_a_song_is_as_long_as_the_context_at_most(asked, name, most):
    """Frames of 0.1 s: in 61 positions, one of them the start that all but stepwise patterns stand behind."""
    songs.draw([request("a", 0, most)], settings(name), None, {})
    with pytest.raises(UserError, match=rf"a: .* 61 positions holds {most} s behind this prompt"):
        songs.draw([request("a", 0, most + 0.1)], settings(name), None, {})
    assert len(asked) == 1


@pytest.mark.parametrize("name", MOST)
def test_only_what_makes_level_after_level_is_told_how_many(asked, name):
    songs.draw([request("a", 0, 1.0)], settings(name), None, {"levels": 0})
    assert asked[0].get("levels") == (2 if name == "layer_wise" else None)


def test_a_long_song_has_as_many_packets_as_it_lasts(monkeypatch):
    """A scale of 4 tokens in a window of 0.8 s: five windows in four seconds, in one go."""
    config = configuration("tokens/lm:tiny", {"sample_rate": 8000, "hop": 800, "codes": 32, **SCALES})
    config.model.update({"pattern": "level_major", "tokenizer": "none", "levels": 2, "length": 300})
    calls = []

    def drawn(parts, *_, **how):
        assert not calls
        calls.append(parts)
        return [songs.Sample((np.zeros(20, int), np.zeros(40, int)), False)]

    monkeypatch.setattr(songs, "_draw", drawn)
    (made,) = songs.draw_long([request("a", 0, 4.0)], config, None, {})
    assert [len(codes_T) for codes_T in made.codes] == [20, 40] and calls[0][0].prompt.seconds == pytest.approx(4.0)


def test_a_song_that_may_end_itself_has_the_share_of_its_length_in_whole_packets(asked):
    """A scale of 4 tokens in a window of 0.8 s: half of five windows is three of them."""
    config = configuration("tokens/lm:tiny", {"sample_rate": 8000, "hop": 800, "codes": 32, **SCALES})
    config.model.update({"pattern": "flatten", "levels": 1, "length": 300})
    songs.draw([request("a", 0, 4.0)], config, None, {"min_share": 0.5})
    assert asked[0]["min_frames"] == [12] and asked[0]["eos"] is not None


@pytest.mark.parametrize(("words", "asked"), [("bytes", {}), ("none", {}), ("bytes", {"tags": "slow"})])
def test_a_song_is_guided_by_the_words_of_its_prompt_or_refused_before_anything_is_made(monkeypatch, words, asked):
    config, made = settings("flatten", tokenizer=words), []
    monkeypatch.setattr(tokens.workdirs, "read", lambda run, *stages: config)
    monkeypatch.setattr(tokens.songs, "produce", lambda *arguments, **how: made.append(how))

    def generate(guidance: float) -> None:
        tokens.generate([request("a", 0, **asked)], "out", lm="lm", codec="codec", options={"guidance": guidance})

    generate(1.0)
    if asked:
        generate(2.0)
    else:
        with pytest.raises(UserError, match=r"^a: guidance 2 of the lm has nothing to drop: [^\n]+$"):
            generate(2.0)
    assert len(made) == (2 if asked else 1)


def test_a_prompt_that_is_cut_is_told_by_the_model_that_begins_alone(capsys):
    config, asked = settings("flatten", tokenizer="bytes", text_limit=32), [request("a", 0, lyrics="la " * 30)]
    songs.tell_cut(asked, config, given=[np.zeros((2, 1), int)])
    assert capsys.readouterr().err == ""
    songs.tell_cut(asked, config)
    assert re.fullmatch(r"a: its prompt is \d+ ids longer than the 32 read: [^\n]+\n", capsys.readouterr().err)


@pytest.mark.parametrize(("name", "positions"), [("flatten", 128), ("delay", 64), ("next_scale", 256)])
def test_a_song_needs_a_cache_of_its_length_twice_where_it_is_guided(name, positions):
    """40 frames behind a start: a position each with `delay`, two with `flatten`; a window has the context's length."""
    config = settings(name, length=200)
    trunk = songs.token_lm_config(config).transformer
    asked = [request("a", 0, 1.0), request("b", 0, 4.0)]
    plain, guided = (songs.need(asked, config, guidance) for guidance in (1.0, 2.0))
    assert plain.song == trunk.cache_bytes(positions) and guided.song == 2 * plain.song
    assert guided.weights == plain.weights > 4 * trunk.layers * trunk.width * trunk.ffn_width


def test_no_song_needs_more_than_the_context():
    config = settings("flatten", length=200)
    most = songs.token_lm_config(config).transformer.cache_bytes(256)
    assert songs.need([request("a", 0, 1e5)], config, 1.0).song == most


def test_weights_count_in_the_type_in_which_they_are_multiplied():
    whole, half = (
        songs.need([request("a", 0)], settings("flatten", dtype=dtype), 1.0) for dtype in ("float32", "bfloat16")
    )
    assert half.weights < 0.8 * whole.weights and half.song * 2 == whole.song


def test_a_pass_over_a_song_needs_more_the_longer_it_is():
    short, long = (songs.need([request("a", 0, seconds)], settings("layer_wise"), 1.0).song for seconds in (9.0, 99.0))
    assert long > 7 * short
