"""From a vocal to sounds on disk: which vocals, at which rates, how long, and what is told of them."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from hiermusic.cli import main
from hiermusic.data.audio_records import write_audio
from hiermusic.data.streams import Tokenizer
from hiermusic.data.tracks import Track
from hiermusic.errors import UserError
from hiermusic.systems import accompany, catalogue
from hiermusic.tokens.facts import TokenFacts

MEANING = TokenFacts(16000, 320, "residual", 1, 500, 64)
SOUND = TokenFacts(24000, 320, "residual", 8, 1024, 64)


class Player:
    """Of every token the code of its number; of levels, the first two."""

    vocal, codes, window, levels, noise = MEANING, SOUND, 100, 2, 0.01
    tokenizers = {"vocal": Tokenizer("meaning", 3), "codes": Tokenizer("codec", None)}
    sampling = {"first": {"temperature": 0.9}}

    def frames(self, tokens: int) -> int:
        return int(tokens * 75 / 50)

    def accompany(self, vocals, *, seeds, given, given_semantic, **sampling):
        self.heard = vocals
        codes = [np.zeros((self.frames(len(vocal_T)), 2), np.int32) for vocal_T in vocals]
        return [
            SimpleNamespace(semantic_T=vocal_T, codes_TK=codes_TK)
            for vocal_T, codes_TK in zip(vocals, codes, strict=True)
        ]


@pytest.fixture
def player(tmp_path, monkeypatch):
    """A system of three stages whose first two lie in `stages`; a codec that rings at half of full scale."""
    made = Player()
    chain = ("first", "second", "third")
    rooms = SimpleNamespace(accompanist=lambda stages: made)
    other = SimpleNamespace(chain=(), title="Other")
    systems = {"other": other, "ours": SimpleNamespace(chain=chain, spare=("third",), title="Ours", rooms=rooms)}
    monkeypatch.setattr(catalogue, "systems", lambda: systems)
    for stage in chain[:2]:
        (tmp_path / "stages" / stage).mkdir(parents=True)
        (tmp_path / "stages" / stage / "config.json").write_text("{}")
    models = {
        "meaning": SimpleNamespace(sample_rate=16000, channels=1, facts=MEANING),
        "codec": SimpleNamespace(sample_rate=24000, channels=1, packet=320, slots=(1,) * 8, facts=SOUND),
    }
    monkeypatch.setattr(accompany, "load", lambda place, *stages, step: (None, models[place]))
    monkeypatch.setattr(accompany, "latest_step", lambda place: 7)

    def encoded(model, wav_LC):
        assert wav_LC.shape[1] == 1
        made.wav_LC = wav_LC
        return np.zeros(((len(wav_LC) - 400) // 320 + 1, 1), np.uint16)

    def decode(codec, codes_PS):
        assert codes_PS.shape[1] == 2
        return np.full((len(codes_PS) * 320, 1), 0.5, np.float32)

    monkeypatch.setattr(accompany, "encoded", encoded)
    monkeypatch.setattr(accompany, "decode_long", decode)
    return made


def vocal(seconds: float = 3.0, rate: int = 44100, channels: int = 2, name: str = "a") -> accompany.Vocal:
    wav_LC = np.random.default_rng(0).uniform(-0.7, 0.7, (round(seconds * rate), channels)).astype(np.float32)
    return accompany.Vocal(name, f"{name}.wav", wav_LC, rate)


def test_what_is_written_is_as_long_as_the_vocal(player, tmp_path):
    """The accompaniment at the codec's rate, both together at the higher one in the vocal's channels."""
    one = vocal()
    (facts,) = accompany.accompany([one], tmp_path / "out", str(tmp_path / "stages"), seed=4, guidance=2.0)
    stored = json.loads((tmp_path / "out" / "a.json").read_text())
    assert stored == json.loads(json.dumps(facts))
    wav_LC, rate = soundfile.read(tmp_path / "out" / "a.accompaniment.wav", always_2d=True)
    assert (rate, wav_LC.shape) == (24000, (72000, 1))
    made = int(((3 * 16000 - 400) // 320 + 1) * 1.5) * 320  # real frames alone: what is left of the vocal is silence
    assert (abs(wav_LC[:made] - 0.5) < 1e-4).all() and not wav_LC[made:].any() and made == 71360
    mix_LC, rate = soundfile.read(tmp_path / "out" / "a.mix.wav", always_2d=True)
    assert (rate, mix_LC.shape) == (44100, one.wav_LC.shape)
    assert 1.19 < facts["sounds"]["mix"]["peak"] < 1.3 and abs(mix_LC).max() <= 1.0
    assert facts["seed"] == 4 and facts["sampling"] == {"first": {"temperature": 0.9}, "given": {"guidance": 2.0}}
    assert facts["steps"] == {"first": 7, "second": 7} and facts["tokenizers"]["vocal"] == "meaning@3"
    assert facts["tokens"]["codes"].startswith("2 of 8 levels of 1024 codes at 75 a second")
    assert facts["seams"] == [2.0] and [len(vocal_T) for vocal_T in player.heard] == [99]


def test_the_mix_of_what_does_not_exceed_full_scale_is_its_sum():
    one_LC = np.full((200, 2), 0.25, np.float32)
    mix_LC, rate = accompany.mixed(one_LC, 100, np.full((150, 1), 0.5, np.float32), 100)
    assert rate == 100 and mix_LC.shape == (200, 2)
    assert (mix_LC[:150] == 0.75).all() and (mix_LC[150:] == 0.25).all()


def test_a_vocal_is_noised_for_its_tokenizer_alone(player, tmp_path):
    silent = accompany.Vocal("s", "s.wav", np.zeros((32000, 1), np.float32), 16000)
    heard = []
    for noise, seed in ((0.0, 0), (0.01, 0), (None, 0), (None, 1)):
        accompany.accompany([silent], tmp_path / "out", str(tmp_path / "stages"), noise=noise, seed=seed)
        heard.append(player.wav_LC)
    assert not heard[0].any() and np.std(heard[1]) == pytest.approx(0.01, rel=0.05)
    assert (heard[1] == heard[2]).all() and (heard[2] != heard[3]).any()
    assert not soundfile.read(tmp_path / "out" / "s.vocal.wav")[0].any()


@pytest.mark.parametrize(("maker", "hop"), [("vocal", 160), ("codes", 640)])
def test_a_tokenizer_that_is_another_now_is_told(player, tmp_path, maker, hop):
    """Whatever lies where the stages' tokens were made; nothing is played."""
    facts = TokenFacts.of(getattr(player, maker).to_json() | {"hop": hop})
    setattr(player, maker, facts)
    words = (
        rf"(meaning|codec) makes other tokens than the stages in .*stages know \(hop is 320 and not {hop}\): put back"
    )
    with pytest.raises(UserError, match=words):
        accompany.accompany([vocal()], tmp_path / "out", str(tmp_path / "stages"))
    assert not hasattr(player, "heard")


def test_windows_share_as_much_as_is_asked_for_at_least(player, tmp_path):
    (facts,) = accompany.accompany([vocal(1.5)], tmp_path / "out", str(tmp_path / "stages"), overlap=0.005)
    assert facts["overlap"] == 0.02


def test_held_out_vocals_that_are_heard(tmp_path, capsys):
    def track(name: str, level: float, split: str, seconds: int = 2) -> Track:
        rng = np.random.default_rng(seconds)
        parts = {
            stem: rng.normal(0, 0.1, (seconds * 8000, 1)).astype(np.float32) for stem in ("vocals", "instrumental")
        }
        parts["vocals"] *= np.float32(level)
        return Track(name, lambda: (parts, 8000, {"genre": name}), split)

    given = [track("seen", 1, "train"), track("b/sung.wav", 1, "valid", 3), track("mute", 0, "valid", 4)]
    given += [track("last", 1, "valid", 5), track("more", 1, "valid", 6)]
    write_audio(given, tmp_path / "data", 8000, 1, stems=("vocals", "instrumental"), progress=False)
    found = accompany.of_records(str(tmp_path / "data"), 2)
    assert [one.name for one in found] == ["001-b-sung-wav", "002-last"] and len(found[0].true_LC) == 24000
    assert found[0].meta == {"genre": "b/sung.wav"} and "1 held-out tracks have no vocal" in capsys.readouterr().err
    write_audio(given[:1], tmp_path / "none", 8000, 1, stems=("vocals", "instrumental"), progress=False)
    with pytest.raises(UserError, match="none has no held-out track with a vocal: write it with --valid_fraction"):
        accompany.of_records(str(tmp_path / "none"), 2)


def put(path, seconds: float, level: float = 0.1):
    soundfile.write(path, np.random.default_rng(0).normal(0, level, round(seconds * 8000)), 8000)
    return str(path)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("{short}",), "short.wav lasts 0.50 s: a vocal lasts 1 s or more"),
        (("{text}",), "text.wav: not readable as audio"),
        (("{results}",), "Results.wav: results.json is where measures go, beside each vocal's own: give it another"),
        (
            ("{ok}", "--workdir={tmp}"),
            "holds no stages that accompany a vocal: give the folder of their workdirs (Ours",
        ),
        (("{ok}", "--overlap=3"), "windows of 100 tokens that share 150 never end: let them share fewer"),
        (("{ok}", "--overlap=-1"), "--overlap=-1"),
        (("{ok}", "--noise=2"), "--noise=2"),
        (("{ok}", "--out={text}/songs"), "text.wav/songs: Not a directory"),
        (("{ok}", "--data={tmp}"), "expected 0 arguments"),
        ((), "expected 1 arguments (VOCAL.wav)"),
        (("--data={tmp}",), "holds no finished audio records"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(player, tmp_path, capsys, words, told):
    (tmp_path / "text.wav").write_text("no sound")
    names = {"short": put(tmp_path / "short.wav", 0.5), "ok": put(tmp_path / "ok.wav", 3), "tmp": tmp_path}
    names["results"] = put(tmp_path / "Results.wav", 3)
    given = [word.format(**names, text=tmp_path / "text.wav") for word in words]
    with pytest.raises(SystemExit) as ended:
        main(["accompany", f"--workdir={tmp_path / 'stages'}", f"--out={tmp_path / 'out'}", *given])
    err = capsys.readouterr().err
    assert ended.value.code and told in err and "Traceback" not in err and not (tmp_path / "out").exists()
    assert not hasattr(player, "heard")


def test_a_vocal_lasts_a_second_at_least(tmp_path):
    assert len(accompany.of_file(put(tmp_path / "just.wav", 1.0)).wav_LC) == 8000
    with pytest.raises(UserError, match=r"less.wav lasts 1.00 s: a vocal lasts 1 s or more$"):
        accompany.of_file(put(tmp_path / "less.wav", 1 - 1 / 8000))


def test_a_vocal_goes_to_a_page(player, tmp_path, capsys, monkeypatch):
    source = put(tmp_path / "song.wav", 2.5, 0.001)
    how = [f"--workdir={tmp_path / 'stages'}", f"--out={tmp_path}", "--json"]
    before = Path(source).read_bytes()
    main(["accompany", source, *how])
    told = capsys.readouterr()
    results = json.loads(told.out)
    assert results["songs"][0]["name"] == "song" and results["verdict"].startswith("1 song: over fewer than 8")
    assert "is silent: there is nothing to follow in it" in told.err
    page = (tmp_path / "report.html").read_text()
    assert (
        "<dt>seed</dt><dd>0</dd>" in page
        and page.count("<audio") == 3
        and "2 of 8 levels" in page
        and "Are seams heard?" in page
    )
    assert Path(source).read_bytes() == before  # where it lies beside what is written
    assert results["seams"]["jump"]["count"] == len(results["songs"][0]["seams"]) == 1
