"""Music of AAR and its baseline, made and measured through the command line, on a miniature of a few steps."""

import json

import numpy as np
import pytest
import soundfile
from flax import nnx

from hiermusic.audio import files
from hiermusic.codec.chunked import decode_long, encode_long
from hiermusic.data.token_records import TokenSource
from hiermusic.evaluate.run import held_out
from hiermusic.evaluate.scores import clips_hash
from hiermusic.systems import songs, workdir

from ..fakes import awake, write_clip

MODELS = ["aar", pytest.param("baseline", marks=pytest.mark.slow)]  # fixtures


@pytest.mark.parametrize("which", MODELS)
def test_music_is_as_long_as_asked_and_the_same_again(request, run, tmp_path, which):
    model = request.getfixturevalue(which).lm
    clip = write_clip(tmp_path / "clip.wav")
    sounds = []
    for name in ("a", "b"):
        run(
            "generate",
            "--system=aar",
            f"--lm={model}",
            f"--like={clip}",
            "--seconds=1.3",
            f"--out={tmp_path / name}",
        )
        sounds.append(files.read(tmp_path / name / "song.wav")[0])
    assert len(sounds[0]) == round(1.3 * 4000)
    np.testing.assert_array_equal(*sounds)
    facts = json.loads((tmp_path / "a" / "song.json").read_text())
    temperature = {"aar": 0.6, "baseline": 1.0}[which]
    assert facts["like"]["path"] == str(clip) and facts["sampling"]["lm"]["temperature"] == temperature


def test_a_batch_is_its_members(aar, run, tmp_path):
    """Requests of one file: the same music as alone, whatever stands beside it, and another for another clip."""
    low, high = write_clip(tmp_path / "low.wav"), write_clip(tmp_path / "high.wav", 1.0, 22_050)
    prompts = [
        {"name": "one", "seconds": 1.0, "seed": 5, "like": str(low)},
        {"name": "two", "seconds": 0.5, "seed": 6, "like": str(high)},
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    run("generate", f"--lm={aar.lm}", f"--prompts={tmp_path / 'prompts.jsonl'}", f"--out={tmp_path / 'both'}")
    run("generate", f"--lm={aar.lm}", f"--like={low}", "--seconds=1", "--seed=5", f"--out={tmp_path / 'alone'}")
    both, alone = (files.read(path)[0] for path in (tmp_path / "both" / "one.wav", tmp_path / "alone" / "song.wav"))
    np.testing.assert_array_equal(both, alone)


@pytest.fixture
def decoded(monkeypatch):
    """The codes of every song that is written from now on, drawn by models that hear what they read."""
    load, decode, codes = workdir.load, songs.decode_long, []

    def wakened(*where, **how):
        config, model = load(*where, **how)
        if config.stage != "codec":
            awake(model)
        if config.stage != "codec":  # a codec of four steps has latents near zero
            table = model.lm.input_proj if config.stage == "lm" else model.lm.code_embed
            table[...] = 100 * table[...]
            for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
                if path[-1] in ("value", "out"):  # of attention, by which a window hears the one before
                    leaf[...] = 10 * leaf[...]
        return config, model

    def heard(codec, codes_PS, **how):
        codes.append(codes_PS)
        return decode(codec, codes_PS, **how)

    monkeypatch.setattr(workdir, "load", wakened)
    monkeypatch.setattr(songs, "decode_long", heard)
    return codes


@pytest.mark.parametrize("which", MODELS)
def test_music_goes_on_from_the_end_of_a_recording(request, run, tmp_path, decoded, monkeypatch, which):
    """It is no whole number of windows or frames, and what follows hears the last window."""
    monkeypatch.setattr(songs, "limit", lambda wav_LC, rate: wav_LC.clip(-1, 1))
    at, like, rate = request.getfixturevalue(which), write_clip(tmp_path / "like.wav"), 4000
    wav_L, made = np.random.default_rng(0).uniform(-0.5, 0.5, 4410), []
    for name, last in (("a", wav_L[-3000:]), ("b", np.zeros(3000))):
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, np.concatenate([wav_L[:-3000], last]), rate)
        run("continue", f"--lm={at.lm}", f"--like={like}", "--seconds=1.75", f"--out={tmp_path / name}", path)
        made.append(files.read(tmp_path / name / "song.wav")[0])
    assert [len(sound) for sound in made] == [7000, 7000]
    codec = workdir.load_codec(at.codec)
    skip = -4410 % codec.packet
    known_PS = encode_long(codec, np.pad(files.read(tmp_path / "a.wav")[0], ((skip, 0), (0, 0))))
    np.testing.assert_array_equal(decoded[0][: len(known_PS)], known_PS)
    # up to where the decoder sees what follows
    np.testing.assert_allclose(made[0][:3000], decode_long(codec, known_PS)[skip:][:3000].clip(-1, 1), atol=1e-3)
    assert (decoded[0][len(known_PS) :] != decoded[1][len(known_PS) :]).any()


def test_what_goes_on_sounds_like_itself(aar, run, tmp_path):
    clip = write_clip(tmp_path / "clip.wav", 1.1)
    run("continue", f"--lm={aar.lm}", "--seconds=1.3", f"--out={tmp_path / 'out'}", clip)
    facts = json.loads((tmp_path / "out" / "song.json").read_text())
    assert facts["like"] == facts["continues"] and facts["like"]["path"] == str(clip) and facts["seconds"] == 1.3


@pytest.mark.parametrize("which", MODELS)
def test_what_is_measured_is_held_out(request, run, tmp_path, which):
    """All of it, and nothing else: the codec's clips sample by sample, the model's tracks and their number."""
    at = request.getfixturevalue(which)
    results = {}
    for name in ("codec", "lm"):
        run("evaluate", f"--workdir={getattr(at, name)}", f"--out={tmp_path / name}")
        results[name] = json.loads((tmp_path / name / "results.json").read_text())
        assert results[name]["system"] == "aar" and (tmp_path / name / "report.html").is_file()
    assert results["codec"]["clips_hash"] == clips_hash(held_out(at.corpus, 10.0, 32))
    valid, levels = TokenSource(at.tokens, split="valid"), results["lm"]["predictability"]
    assert results["lm"]["tracks"] == len(valid) == levels[-1]["difference"]["count"] > 0
    assert len(levels) == {"aar": 4, "baseline": 3}[which] + 1 and all(np.isfinite(level["model"]) for level in levels)
