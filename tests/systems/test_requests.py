"""Prompts from files: what is taken, and what is refused before anything is computed."""

import json

import pytest

from hiermusic.errors import UserError
from hiermusic.systems import requests
from hiermusic.tokens.prompt import Prompt


def read(tmp_path, *prompts, encoding="utf-8"):
    lines = [prompt if isinstance(prompt, str) else json.dumps(prompt, ensure_ascii=False) for prompt in prompts]
    (tmp_path / "p.jsonl").write_text("\n".join(lines), encoding=encoding)
    return requests.read(tmp_path / "p.jsonl", 0, ["backbone"])


def test_line_ends_of_unicode_and_a_mark_at_the_beginning_are_taken(tmp_path):
    lyrics = "la\u2028la\u2029la\x85la\x0cla"
    asked = read(tmp_path, {"lyrics": lyrics, "seconds": 1}, {"seconds": 2}, encoding="utf-8-sig")
    assert [request.prompt.lyrics for request in asked] == [lyrics, ""]
    (tmp_path / "p.jsonl").write_bytes(b'{"seconds": 1}\r\n{"seconds": 2}\r\n')
    assert len(requests.read(tmp_path / "p.jsonl", seed=0)) == 2


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ({"name": "n" * 201, "seconds": 1}, "line 1: the name nnnnnnnnnnnnnnnnnnnn... has 201 bytes: use 200 at most"),
        ({"name": "歌" * 70, "seconds": 1}, "has 210 bytes"),
        ({"name": "a.backbone", "seconds": 1}, "line 1: the name 'a.backbone' is kept for the backbone's own sound"),
        ({"seconds": 1e308}, "line 1: 1e+308 seconds are more than a song has"),
        ({"seconds": 10**400}, "line 1: 100000000 ... 000000 seconds are more than a song has"),
        ('{"seconds": 1' + "0" * 5000 + "}", "line 1: Exceeds the limit"),
        ("[" * 100_000, "line 1: maximum recursion depth exceeded"),
    ],
)
def test_what_would_fail_later_is_refused_at_once(tmp_path, prompt, words):
    with pytest.raises(UserError) as told:
        read(tmp_path, prompt)
    assert words in str(told.value) and str(told.value).startswith(f"{tmp_path / 'p.jsonl'}, ")


def test_a_name_of_200_bytes_is_taken(tmp_path):
    (request,) = read(tmp_path, {"name": "n" * 200, "seconds": 1})
    assert read(tmp_path, {"name": "a.vocal", "seconds": 1})[0].name == "a.vocal"  # no version of this name is made
    assert (tmp_path / f"{request.name}.backbone.wav.01234567.tmp").touch() is None


def test_words_of_another_alphabet_are_refused_not_garbled(tmp_path):
    with pytest.raises(UserError, match=r"p\.jsonl cannot be read as prompts \(UnicodeDecodeError.*: give UTF-8"):
        read(tmp_path, {"lyrics": "é", "seconds": 1}, encoding="cp1252")


def test_a_single_prompt_of_no_length_a_song_has():
    with pytest.raises(UserError, match="more than a song has"):
        requests.single(1e308, 0, tags="slow")


def test_prompts_without_a_seed_count_on_from_the_one_asked_for(tmp_path):
    prompts = [{"seconds": 1}, {"seconds": 1, "seed": 3}, "", {"seconds": 1, "name": "x"}, {"seconds": 1}]
    read(tmp_path, *prompts)
    for seed in (0, 100):
        found = requests.read(tmp_path / "p.jsonl", seed=seed)
        assert [request.seed for request in found] == [seed, 3, seed + 2, seed + 3]
    assert [request.name for request in found] == ["song-001", "song-002", "x", "song-005"]  # by line


def test_what_lines_leave_out_is_taken_from_elsewhere(tmp_path):
    (tmp_path / "p.jsonl").write_text('{"tags": "fast", "seconds": 1}\n{"like": "own.wav", "lyrics": ""}\n')
    unsaid = {"tags": "slow", "lyrics": "la", "like": "clip.wav", "seconds": 2.0}
    one, other = requests.read(tmp_path / "p.jsonl", 0, unsaid=unsaid)
    assert (one.prompt, one.like) == (Prompt(tags="fast", lyrics="la", seconds=1), "clip.wav")
    assert (other.prompt, other.like) == (Prompt(tags="slow", seconds=2.0), "own.wav")


def test_a_single_prompt_holds_all_that_was_said():
    (request,) = requests.single(2.5, 17, tags="slow", lyrics="la\nlu", instrumental=True, like="clip.wav")
    prompt = Prompt(tags="slow", lyrics="la\nlu", instrumental=True, seconds=2.5)
    assert request == requests.Request("song", prompt, 17, "clip.wav")
    (request,) = requests.single(1.0, 0)
    assert request == requests.Request("song", Prompt(seconds=1.0), 0, "")
    with pytest.raises(UserError, match="--seconds is needed with a single prompt"):
        requests.single(None, 0, tags="slow")


def test_a_line_holds_a_prompt_its_name_its_seed_and_its_clip(tmp_path):
    words = {"description": "d", "tags": "t", "genre": "g", "language": "l", "lyrics": "y", "instrumental": True}
    (request,) = read(tmp_path, words | {"seconds": 3, "name": "a b", "seed": 9, "like": "clip.wav"})
    assert request == requests.Request("a-b", Prompt(**words, seconds=3), 9, "clip.wav")
    assert request.to_json() == {"name": "a-b", "seed": 9, **words, "seconds": 3}


@pytest.mark.parametrize("seed", [-1, 2**32, True, 1.0])
def test_seeds_are_numbers_of_32_bits(seed):
    with pytest.raises(UserError, match=rf"is not an integer in 0\.\.{2**32 - 1}"):
        requests.Request("a", Prompt(seconds=1.0), seed)
    assert requests.Request("a", Prompt(seconds=1e6), 2**32 - 1).seed == 2**32 - 1
