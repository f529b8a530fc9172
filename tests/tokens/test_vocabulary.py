import json

import pytest

from hiermusic.errors import UserError
from hiermusic.tokens.prompt import Prompt, compose
from hiermusic.tokens.vocabulary import TextTokenizer, Vocabulary


def test_llama_ids_are_those_of_the_release():
    ids = Vocabulary.llama31()
    assert (ids.text_size, ids.bos, ids.eos, ids.pad) == (128256, 128000, 128001, 128004)
    assert (ids.bol, ids.eol, ids.eom, ids.eot, ids.boa) == (128006, 128007, 128008, 128009, 128010)
    assert ids.durations == (128002, 128003, 128005, 128011, 128012, 128013, 128014, 128015, 128016, 128017, 128018)
    assert [ids.task_marker(k) for k in (0, 2, 63)] == [128255, 128253, 128192]


@pytest.mark.parametrize("ids", [Vocabulary.llama31(), Vocabulary.byte_level()])
def test_no_id_has_two_roles(ids):
    roles = [
        ids.bos,
        ids.eos,
        ids.pad,
        ids.bol,
        ids.eol,
        ids.eom,
        ids.eot,
        ids.boa,
        *ids.durations,
        *(ids.task_marker(k) for k in range(ids.task_markers)),
    ]
    assert len(set(roles)) == len(roles) and max(roles) == ids.text_size - 1
    with pytest.raises(UserError):
        ids.task_marker(ids.task_markers)


def test_durations_are_rounded_and_clamped():
    ids = Vocabulary.llama31()
    for seconds, bucket in ((1, 0), (29.9, 0), (30, 1), (89, 1), (90, 2), (150, 3), (600, 10), (6000, 10)):
        assert ids.duration_id(seconds) == ids.durations[bucket]
    assert Vocabulary.byte_level(duration_unit=2.0).duration_id(8.0) == Vocabulary.byte_level().durations[4]


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    """A byte-level BPE file with Llama-like special tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.train_from_iterator(
        ["la la love"] * 9,
        tokenizers.trainers.BpeTrainer(
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            vocab_size=264,
            show_progress=False,
            special_tokens=["<|begin_of_text|>", "<|eot_id|>"],
        ),
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


def test_text_that_spells_a_special_token_stays_text(tokenizer_file):
    tokenizer = TextTokenizer(Vocabulary.llama31(), tokenizer_file)
    specials = {json.loads(tokenizer_file.read_text())["added_tokens"][i]["id"] for i in (0, 1)}
    ids = tokenizer.encode("love<|eot_id|> 🎵 \ud83d")
    assert not specials & set(ids)
    assert tokenizer.decode(ids) == "love<|eot_id|> 🎵 ?"
    prompt = compose(Prompt(tags="<|begin_of_text|>", lyrics="la\n<|eot_id|>", seconds=9), tokenizer)
    assert not specials & set(prompt)


def test_bytes_round_trip():
    tokenizer = TextTokenizer(Vocabulary.byte_level())
    text = "愛 🎵 e\u0301 <|eot_id|>"
    assert max(tokenizer.encode(text)) < 256 and tokenizer.decode(tokenizer.encode(text)) == text


def test_bad_tokenizer_files_are_refused(tmp_path, tokenizer_file):
    (tmp_path / "text.json").write_text("{}")
    for path in (tmp_path / "missing.json", tmp_path / "text.json"):
        with pytest.raises(UserError, match=path.name):
            TextTokenizer(Vocabulary.llama31(), path)
    small = Vocabulary(text_size=100, bos=0, eos=1, pad=2, bol=3, eol=4, eom=5, eot=6, boa=7, durations=(8,))
    with pytest.raises(UserError, match="ids"):
        TextTokenizer(small, tokenizer_file)
