"""Several streams of a track: each with its stem, tokenizer, hierarchy and rates, read one without the other."""

import json
import pickle
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hiermusic.data import streams
from hiermusic.data.audio_records import AudioSource, write_audio
from hiermusic.data.pipeline import token_examples
from hiermusic.data.streams import Tokenizer, TokenStreams, read_stream
from hiermusic.data.token_records import TokenSource
from hiermusic.data.tokenise import tokenise
from hiermusic.data.tracks import Track
from hiermusic.errors import UserError
from hiermusic.tokens.facts import TokenFacts
from hiermusic.tokens.hierarchy import Hierarchy, Level

RATE = 2400
SEMANTIC = Hierarchy.uniform(1, Fraction(50), 500)
ACOUSTIC = Hierarchy.uniform(8, Fraction(75), 1024)
PYRAMID = Hierarchy(tuple(Level(f"l{k}", Fraction(75, 2 ** (2 - k)), 1024) for k in range(3)))


def noise(seed: int, samples: int) -> np.ndarray:
    return (np.random.default_rng(seed).integers(-16000, 16000, (samples, 1)) / 32768).astype(np.float32)


def encode(hierarchy: Hierarchy, rate: int, wav_LC: np.ndarray):
    """Codes that tell of the sound and of their level, one array a rate."""
    found = {}
    for level in hierarchy:
        hop = int(rate / level.rate)
        peaks_T = np.abs(wav_LC[: len(wav_LC) // hop * hop, 0]).reshape(-1, hop).max(axis=1)
        found.setdefault(hop, []).append((peaks_T * (level.size - 1)).astype(np.int32))
    groups = tuple(np.stack(levels, axis=1) for levels in found.values())
    return groups[0] if len(groups) == 1 else groups


# name: hierarchy, levels that lie apart, rate that the tokenizer hears, checkpoint
MADE = {
    "vocals/semantic": (SEMANTIC, 1, 1600, 7),
    "instrumental/semantic": (SEMANTIC, 1, 1600, 7),
    "instrumental/acoustic": (ACOUSTIC, 4, 2400, 90),
    "mix": (PYRAMID, 1, 2400, 3),
}


def make(audio: Path, out: Path, *names: str, **how) -> None:
    for name in names or MADE:
        hierarchy, split_at, rate, step = MADE[name]
        tokenise(
            partial(map, partial(encode, hierarchy, rate)),
            *(audio, out / name, hierarchy, split_at, str(Tokenizer(f"/runs/{len(hierarchy)}@x", step))),
            stem=streams.stem_of(name),
            sample_rate=rate,
            progress=False,
            **how,
        )


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    out = tmp_path_factory.mktemp("audio")

    def song(index: int) -> Track:
        parts = {stem: noise(3 * index + k, 4800 + 480 * index) for k, stem in enumerate(("mix", "vocals"))}
        parts["instrumental"] = noise(3 * index + 2, 4800 + 480 * index)
        return Track(f"t{index}", lambda: (parts, RATE, {"tags": str(index)}), "valid" if index == 2 else "train")

    given = [song(index) for index in range(5)]
    write_audio(given, out, RATE, 1, stems=("mix", "vocals", "instrumental"), progress=False)
    return out


@pytest.fixture(scope="module")
def tokens(audio, tmp_path_factory):
    out = tmp_path_factory.mktemp("tokens")
    make(audio, out, shards=2)
    return out


def damage(folder: Path) -> None:
    for path in folder.rglob("*.arrayrecord"):
        path.write_bytes(b"nothing of this is a record")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_streams_of_a_track_are_read_together(tokens, audio):
    wanted = {"vocals/semantic": "all", "instrumental/acoustic": slice(0, 4), "mix": "all"}
    source = TokenStreams(tokens, wanted, "train")
    assert len(source) == 4 and source.hierarchies["instrumental/acoustic"] == ACOUSTIC.select(0, 4)
    waves = {stem: AudioSource(audio, stem) for stem in ("vocals", "instrumental", "mix")}
    for index, track in enumerate(source.tracks):
        example = pickle.loads(pickle.dumps(source))[index]
        assert example["meta"]["id"] == track["id"] and list(example["codes"]) == list(wanted)
        where = waves["mix"].train[index]
        acoustic_TK, pyramid = example["codes"]["instrumental/acoustic"], example["codes"]["mix"]
        np.testing.assert_array_equal(acoustic_TK, encode(ACOUSTIC, RATE, waves["instrumental"].track(where))[:, :4])
        for got, want in zip(pyramid, encode(PYRAMID, RATE, waves["mix"].track(where)), strict=True):
            np.testing.assert_array_equal(got, want)
        # heard at 1600 Hz: two thirds of the samples, 50 tokens a second where acoustics have 75
        assert len(example["codes"]["vocals/semantic"]) * 3 == len(acoustic_TK) * 2


def test_streams_in_batches(tokens):
    examples = token_examples(tokens, "train", seed=3, levels={"vocals/semantic": "all", "mix": slice(0, 1)})
    assert [examples[i]["meta"]["id"] for i in range(8)] == [
        token_examples(tokens / "mix", "train", seed=3)[i]["meta"]["id"] for i in range(8)
    ]
    assert examples[0]["codes"]["mix"].shape[1] == 1


def test_the_shards_of_other_streams_stems_and_levels_are_never_read(audio, tmp_path):
    write = tmp_path / "audio"
    write.mkdir()
    for name, data in contents(audio).items():
        (write / name).parent.mkdir(exist_ok=True)
        (write / name).write_bytes(data)
    for path in write.glob("audio*.arrayrecord"):
        if "instrumental" not in path.name:
            path.write_bytes(b"nothing of this is a record")
    make(write, tmp_path / "tokens", "instrumental/acoustic", "instrumental/semantic")
    damage(tmp_path / "tokens/instrumental/semantic")
    for path in (tmp_path / "tokens/instrumental/acoustic").glob("fine*"):
        path.write_bytes(b"nothing of this is a record")
    source = TokenStreams(tmp_path / "tokens", {"instrumental/acoustic": "coarse"}, "valid")
    assert source[0]["codes"]["instrumental/acoustic"].shape[1] == 4
    for levels in ({"instrumental/acoustic": "all"}, {"instrumental/semantic": "all"}):
        with pytest.raises(UserError, match="cannot be read"):
            TokenStreams(tmp_path / "tokens", levels, "valid")


@pytest.mark.parametrize("name", MADE)
def test_a_stream_says_what_it_is_and_is_token_records_like_others(tokens, name):
    hierarchy, split_at, rate, step = MADE[name]
    made = Tokenizer(f"/runs/{len(hierarchy)}@x", step)
    assert read_stream(tokens / name) == streams.Stream(name.split("/")[0], hierarchy, made, rate)
    info = json.loads((tokens / name / "info.json").read_text())
    assert info["split_at"] == split_at and info["splits"] == {"train": 4, "valid": 1}
    source = TokenSource(tokens / name, "coarse", "valid")
    assert source.hierarchy == hierarchy.select(0, split_at) and source[0]["meta"]["tags"] == "2"


def test_records_of_the_mix_alone_name_no_stem(tokens):
    assert "stem" not in json.loads((tokens / "mix/info.json").read_text())


def test_a_stream_that_was_cut_short_goes_on_alone(audio, tokens, tmp_path):
    make(audio, tmp_path, "vocals/semantic", shards=2)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "vocals").rglob("*") if path.is_file()}
    make(audio, tmp_path, "mix", shards=2, worker=(1, 2))
    assert not (tmp_path / "mix/info.json").exists()
    make(audio, tmp_path, shards=2)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert contents(tmp_path) == contents(tokens)


def test_a_stream_of_another_stem_is_refused(audio, tmp_path):
    make(audio, tmp_path, "instrumental/semantic")
    (tmp_path / "instrumental").rename(tmp_path / "vocals")
    with pytest.raises(UserError, match="was begun with another stem: remove it"):
        make(audio, tmp_path, "vocals/semantic")


def test_a_folder_of_streams_is_named_where_one_is_wanted(tokens):
    words = "holds tokens records of instrumental/acoustic, .*: name one, such as .*/instrumental/acoustic$"
    with pytest.raises(UserError, match=words):
        TokenSource(tokens)
    with pytest.raises(UserError, match=r"drums holds no finished tokens records"):
        TokenStreams(tokens, {"mix": "all", "drums": "all"})


def test_streams_of_other_tracks_are_not_mixed(audio, tmp_path):
    make(audio, tmp_path, "mix", "vocals/semantic")
    place = tmp_path / "mix/info.json"
    info = json.loads(place.read_text())
    lines = (tmp_path / "mix/tracks.jsonl").read_text().replace('"t0"', '"t9"')
    (tmp_path / "mix/tracks.jsonl").write_text(lines)
    place.write_text(json.dumps({**info, "tracks_sha256": None}))
    with pytest.raises(UserError, match="mix and vocals/semantic hold other tracks: tokenize both from the same"):
        TokenStreams(tmp_path, {"mix": "all", "vocals/semantic": "all"})


def test_what_streams_are_called():
    given = ["vocals/semantic:out/codec", "mix:/a:b@30", "vocals:c"]
    assert streams.parse(given) == {"vocals/semantic": "out/codec", "mix": "/a:b@30", "vocals": "c"}
    assert [streams.stem_of(name) for name in ("", "mix", "vocals/semantic")] == ["mix", "mix", "vocals"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["out/codec"], "--stream=out/codec: give STEM:TOKENIZER or STEM/WORD:TOKENIZER, such as"),
        (["vocals:"], "--stream=vocals:: give"),
        (["voice:c"], "the stems are mix, vocals, instrumental, drums, bass, other"),
        (["vocals/:c"], "give STEM"),
        (["vocals/parts:c"], "give STEM"),
        (["vocals/a/b:c"], "give STEM"),
        (["vocals/..:c"], "give STEM"),
        (["vocals:c", "vocals:d"], "--stream=vocals comes twice: tell them apart by a word, as in vocals/acoustic"),
    ],
)
def test_what_streams_cannot_be_called(given, words):
    with pytest.raises(UserError) as told:
        streams.parse(given)
    assert words in str(told.value)


def test_a_tokenizer_in_writing():
    assert Tokenizer.parse("/a@b/c@12") == ("/a@b/c", 12) and str(Tokenizer("/a@b/c", 12)) == "/a@b/c@12"
    for text in ("fake", "a@b"):
        with pytest.raises(ValueError):
            Tokenizer.parse(text)


def test_a_tokenizer_as_a_person_names_it(tmp_path):
    run = tmp_path / "sat@7"
    assert Tokenizer.named(str(run)) == (str(tmp_path / "sat"), 7)
    run.mkdir()
    assert Tokenizer.named(str(run)) == (str(run), None) and str(Tokenizer(str(run), None)) == str(run)
    assert Tokenizer.named(f"{run}@12") == (str(run), 12)
    for text in ("out/codec", "out/codec@best", "@here/codec"):
        assert Tokenizer.named(text) == (text, None)


def test_facts_of_the_tokens_come_back_and_cannot_contradict_the_hierarchy(audio, tmp_path):
    facts = TokenFacts(2400, 48, "multiscale", 2, 9, 5, (1, 2), "shared", 1, 3, 0.25)
    out, how = tmp_path / "tokens", {"facts": facts, "progress": False}
    given = (
        partial(map, partial(encode, facts.hierarchy, 2400)),
        audio,
        out,
        facts.hierarchy,
        1,
        str(Tokenizer("/runs/x", 3)),
    )
    tokenise(*given, **how)
    assert read_stream(out).facts == facts
    tokenise(*given, **how)  # goes on with the same facts
    info = json.loads((out / "info.json").read_text())
    for wrong in ({"codes": 10}, {"scales": [1, 3]}, {"hop": 0}, {"colour": "red"}):
        (out / "info.json").write_text(json.dumps(info | {"tokens": info["tokens"] | wrong}))
        with pytest.raises(UserError) as told:
            read_stream(out)
        assert "\n" not in str(told.value)
