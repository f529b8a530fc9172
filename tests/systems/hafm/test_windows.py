"""A vocal longer than untrained stages of the smallest size take at once: played window by window; all by the verbs."""

import dataclasses
import json

import numpy as np
import pytest

from hiermusic.errors import UserError
from hiermusic.generate import windows
from hiermusic.systems import accompany
from hiermusic.systems.hafm import SYSTEM
from hiermusic.systems.hafm.songs import Accompanist

from .streams import small, stages, track


@pytest.fixture(scope="module")
def accompanist(reference):
    return Accompanist(stages(reference))


def test_a_long_vocal_is_gone_on_with_from_the_last_window(accompanist):
    """Its first window is what it is alone, each next one what comes of the codes of the last one's end."""
    vocal_T = track(0, 52)["vocals/semantic"][:, 0]
    how = {"temperature": 0.5, "guidance": {"semantic": 2.0}}
    (whole,) = windows.play(accompanist, [vocal_T], seeds=[5], overlap=6, **how)
    assert windows.unit(accompanist) == 2 and whole.seams == (15,)
    assert whole.semantic_T.shape == (52,) and whole.codes_TK.shape == (26, 4)
    (first,) = accompanist.accompany([vocal_T[:30]], seeds=[5], **how)
    np.testing.assert_array_equal(whole.codes_TK[:15], first.codes_TK)
    own = int(np.random.SeedSequence((5, 1)).generate_state(1)[0])
    given = {"given": [first.codes_TK[11:]], "given_semantic": [first.semantic_T[22:]]}
    (second,) = accompanist.accompany([vocal_T[22:]], seeds=[own], **given, **how)
    np.testing.assert_array_equal(whole.codes_TK[11:], second.codes_TK)
    np.testing.assert_array_equal(whole.semantic_T[22:], second.semantic_T)


def test_stages_are_found_under_their_names(tmp_path):
    for stage in SYSTEM.chain[:2]:
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "config.json").write_text("{}")
    system, places = accompany.stages_in(str(tmp_path))
    assert system is SYSTEM and places == {stage: str(tmp_path / stage) for stage in ("semantic", "coarse")}
    (tmp_path / "semantic" / "config.json").unlink()
    assert accompany.stages_in(str(tmp_path))[1] == {"coarse": str(tmp_path / "coarse")}
    (tmp_path / "coarse" / "config.json").unlink()
    with pytest.raises(UserError, match=r"holds no stages that accompany a vocal: .*HAFM: semantic, coarse, fine"):
        accompany.stages_in(str(tmp_path))


def test_the_room_opens_stages_by_their_names(monkeypatch):
    monkeypatch.setattr(Accompanist, "open", lambda **given: given)
    assert SYSTEM.rooms.accompanist({"semantic": "a", "coarse": "b"}) == {"semantic": "a", "coarse": "b"}


@pytest.mark.parametrize(("noise", "wanted"), [((), 0.0), ((0.02,), 0.02)])
def test_the_noise_of_training_is_known(reference, noise, wanted):
    trio = stages(reference)
    config = small("coarse")
    config.data.prefix_noise = noise
    assert Accompanist(trio | {"coarse": dataclasses.replace(trio["coarse"], config=config)}).noise == wanted


@pytest.mark.slow
def test_pairs_become_tokens_stages_and_an_accompaniment(tmp_path, run, capsys):
    """By the verbs alone: songs with stems, a tokenizer of meaning, a codec, three stages, and a page."""
    from ..conftest import CODEC, CONFIGS, work
    from .streams import LENGTHS, SMALL

    at = {name: str(tmp_path / name) for name in ("corpus", "meaning", "codec", "tokens", *SYSTEM.chain, "out")}
    few = ["--config.train.steps=2", "--config.train.valid_every=2", "--config.train.batch_size=2", "--noprogress"]
    few += ["--config.train.checkpoint_every=2", "--config.train.valid_batches=1"]
    stems = ["--stems=vocals,instrumental", "--sounding=vocals", "--sample_rate=16000", "--channels=1"]
    streams = {"vocals/semantic": "meaning", "instrumental/semantic": "meaning", "instrumental/codes": "codec"}
    codec = [word for word in CODEC if "strides" not in word]  # a tuple that is given twice is one tuple
    heard = f"--config.data.path={tmp_path / 'mixes'}"
    mixes = ["data", "--source=builtin:4?seconds=2-2", f"--out={tmp_path / 'mixes'}", "--sample_rate=16000"]
    work(
        [*mixes, "--channels=1", "--valid_fraction=0.5"],
        ["data", "--source=builtin:12?seconds=2-2", f"--out={at['corpus']}", *stems, "--valid_fraction=0.4"],
        ["train", f"--config={CONFIGS.parent}/tokens/semantic.py:tiny", f"--workdir={at['meaning']}", heard, *few,
         "--config.train.crop_seconds=1.0", "--config.model.codes=12"],
        ["train", f"--config={CONFIGS}/codec.py:tiny", f"--workdir={at['codec']}", heard, *codec, *few,
         "--config.model.sample_rate=16000", "--config.model.strides=(4,5)", "--config.model.levels=4"],
        ["tokenize", *(f"--stream={name}:{at[maker]}" for name, maker in streams.items()), "--vocal_noise=0.01",
         f"--data={at['corpus']}", f"--out={at['tokens']}"],
        *(["train", f"--config={CONFIGS.parent}/hafm/{stage}.py:tiny", f"--workdir={at[stage]}", *few,
           f"--config.data.path={at['tokens']}", f"--config.model.length={LENGTHS[stage]}",
           *(f"--config.model.{name}={value}" for name, value in SMALL.items())] for stage in SYSTEM.chain),
    )  # fmt: skip
    run("accompany", f"--workdir={tmp_path}", f"--data={at['corpus']}", f"--out={at['out']}", "--tracks=2", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["pairs"] == len(told["songs"]) <= 2
    assert {"true_beat_agreement", "true_chroma_agreement"} <= set(
        told["rows"]["true accompaniments, with their vocals"]
    )
    for song in told["songs"]:
        assert song["noise"] == 0.01 and song["seconds"] == 2.0 and song["seams"]
        assert {"accompaniment", "mix", "vocal", "true"} == set(song["sounds"])
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
