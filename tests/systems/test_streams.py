"""`hiermusic tokenize` with several streams: which codec hears which stem at which rate, and what is refused before."""

import json
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from hiermusic.cli import main
from hiermusic.codec import chunked
from hiermusic.data.audio_records import AudioSource, write_audio
from hiermusic.data.streams import Tokenizer, read_stream
from hiermusic.data.token_records import TokenSource
from hiermusic.data.tracks import Track
from hiermusic.systems import workdir
from hiermusic.tokens.facts import TokenFacts
from hiermusic.tokens.hierarchy import Hierarchy

STEMS = ("mix", "vocals", "instrumental")


class Codec(SimpleNamespace):
    """One level of peaks, 50 a second."""

    @property
    def hierarchy(self) -> Hierarchy:
        return Hierarchy.uniform(self.levels, Fraction(50), 500)

    @property
    def facts(self) -> TokenFacts:
        return TokenFacts(self.sample_rate, self.sample_rate // 50, "residual", self.levels, 500, 1)

    @property
    def slots(self) -> tuple[int, ...]:
        return (1,) * self.levels


def peaks(codec, wav_LC: np.ndarray) -> np.ndarray:
    assert wav_LC.shape[1] == codec.channels
    hop = codec.sample_rate // 50
    peaks_T = np.abs(wav_LC[: len(wav_LC) // hop * hop, 0]).reshape(-1, hop).max(axis=1)
    return np.repeat((peaks_T * 499).astype(np.int32)[:, None], codec.levels, axis=1)


@pytest.fixture
def codecs(tmp_path, monkeypatch):
    """Three codecs that need no training, by their folders; those that were loaded are noted."""
    shapes = {"slow": (1600, 1, 0.2), "fast": (2400, 3, 0.2), "other": (2400, 1, 0.5)}
    made = {
        str(tmp_path / name): Codec(sample_rate=rate, channels=1, levels=levels, share=share, loaded=[])
        for name, (rate, levels, share) in shapes.items()
    }
    for folder in made:
        (tmp_path / folder / "checkpoints").mkdir(parents=True)
        for step in (5, 20):
            (tmp_path / folder / f"checkpoints/{step}").mkdir()

    def read(folder, *stages):
        share = made[str(folder)].share
        return SimpleNamespace(folder=str(folder), data=SimpleNamespace(segment_seconds=1.0, valid_fraction=share))

    def load(folder, *stages, step):
        assert "codec" in stages
        made[folder].loaded.append(step)
        return None, made[folder]

    monkeypatch.setattr(workdir, "read", read)
    monkeypatch.setattr(workdir, "load", load)
    monkeypatch.setattr(workdir, "_codec_config", lambda config: made[config.folder])
    monkeypatch.setattr(chunked, "encode_each", lambda codec, sounds: (peaks(codec, wav_LC) for wav_LC in sounds))
    return SimpleNamespace(**{name: str(tmp_path / name) for name in shapes}, made=made)


@pytest.fixture
def corpus(tmp_path):
    parts = {
        stem: (np.random.default_rng(k).integers(-9000, 9000, (4800, 2)) / 32768).astype(np.float32)
        for k, stem in enumerate(STEMS)
    }
    given = [Track(f"t{index}", lambda: (parts, 2400, {})) for index in range(2)]
    write_audio(given, tmp_path / "corpus", 2400, 2, stems=STEMS, progress=False)
    return tmp_path / "corpus"


def tokenize(*flags: str) -> int | str | None:
    try:
        main(["tokenize", *flags])
    except SystemExit as ended:
        return ended.code
    return 0


def test_each_stream_is_made_by_its_codec_of_its_stem(codecs, corpus, tmp_path, capsys):
    out = tmp_path / "tokens"
    flags = [f"--stream=vocals/semantic:{codecs.slow}", f"--stream=instrumental:{codecs.fast}@5"]
    assert not tokenize(*flags, f"--data={corpus}", f"--out={out}", "--split_at=2", "--json")
    answer = json.loads(capsys.readouterr().out)
    assert list(answer["streams"]) == ["vocals/semantic", "instrumental"]
    assert answer["streams"]["instrumental"]["tracks"] == 2
    semantic, fast = read_stream(out / "vocals/semantic"), read_stream(out / "instrumental")
    assert (semantic.stem, semantic.tokenizer, semantic.sample_rate) == ("vocals", Tokenizer(codecs.slow, 20), 1600)
    assert (semantic.facts, fast.facts) == (codecs.made[codecs.slow].facts, codecs.made[codecs.fast].facts)
    assert (fast.stem, fast.tokenizer, len(fast.hierarchy)) == ("instrumental", Tokenizer(codecs.fast, 5), 3)
    assert (read_info(out / "vocals/semantic"), read_info(out / "instrumental")) == (1, 2)
    mono_LC = AudioSource(corpus, "instrumental").track(0).mean(axis=1, keepdims=True)
    codec = codecs.made[codecs.fast]
    np.testing.assert_array_equal(TokenSource(out / "instrumental")[0]["codes"], peaks(codec, mono_LC))
    assert codec.loaded == [5] and len(TokenSource(out / "vocals/semantic")[0]["codes"]) == 100


def read_info(folder) -> int:
    return json.loads((folder / "info.json").read_text())["split_at"]


def test_one_stream_of_the_mix_lies_in_the_folder_itself(codecs, corpus, tmp_path):
    assert not tokenize(f"--codec={codecs.fast}", f"--data={corpus}", f"--out={tmp_path / 'one'}")
    assert not tokenize(f"--stream=mix:{codecs.fast}", f"--data={corpus}", f"--out={tmp_path / 'many'}")
    one, many = tmp_path / "one", tmp_path / "many/mix"
    names = {path.name for path in one.iterdir()}
    assert names == {path.name for path in many.iterdir()} >= {"info.json", "coarse-00000-of-00001.arrayrecord"}
    for path in one.rglob("*.*"):
        assert path.read_bytes() == (many / path.relative_to(one)).read_bytes()


def test_music_is_brought_to_the_highest_rate_with_the_stems_that_are_used(codecs, tmp_path):
    flags = [f"--stream=vocals:{codecs.slow}", f"--stream=instrumental:{codecs.fast}", f"--out={tmp_path / 'out'}"]
    assert not tokenize(*flags, "--data=builtin:2?seconds=1-1")
    (audio,) = (tmp_path / "out/audio").iterdir()
    source = AudioSource(audio, "vocals")
    assert source.stems == ("vocals", "instrumental") and source.sample_rate == 2400
    assert source.info["valid_fraction"] == 0.2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--stream=vocals:{slow}", "--codec={slow}"), "--codec goes with one stream of the mix: leave it out beside"),
        (("--stream=vocals:{slow}", "--tfds=t"), "--tfds goes with one stream of the mix"),
        (
            ("--stream=mix:{slow}", "--stream=drums:{slow}"),
            "corpus keeps of its tracks the mix and vocals and instrumental, not the drums",
        ),
        (("--stream=vocals:{slow}@6",), "slow holds no checkpoint of step 6: it has 5, 20"),
        (("--stream=vocals",), "--stream=vocals: give STEM:TOKENIZER"),
        (("--stream=vocals:gs://bucket/codec",), "only places of this machine are read and written"),
    ],
)
def test_what_is_refused_before_anything_is_written(codecs, corpus, tmp_path, flags, words, capsys):
    given = [flag.format(slow=codecs.slow) for flag in flags]
    status = tokenize(*given, f"--data={corpus}", f"--out={tmp_path / 'out'}")
    told = str(status) + capsys.readouterr().err
    assert status and words in told and len(told.strip().splitlines()) <= 2
    assert not (tmp_path / "out").exists()


def test_codecs_that_hold_out_other_shares_need_records(codecs, corpus, tmp_path, capsys):
    flags = [f"--stream=vocals:{codecs.slow}", f"--stream=mix:{codecs.other}"]
    status = tokenize(*flags, "--data=builtin:2?seconds=1-1", f"--out={tmp_path / 'out'}")
    told = str(status) + capsys.readouterr().err
    assert "the codecs of vocals and mix hold out 0.2 and 0.5 of the tracks: give audio records" in told
    assert not (tmp_path / "out").exists() and not tokenize(*flags, f"--data={corpus}", f"--out={tmp_path / 'out'}")


def test_a_trained_codec_makes_the_same_tokens_of_a_stream(khala, run, tmp_path):
    run("tokenize", f"--stream=mix:{khala.codec}", f"--data={khala.corpus}", f"--out={tmp_path}")
    for shard in khala.tokens.glob("*.arrayrecord"):
        assert (tmp_path / "mix" / shard.name).read_bytes() == shard.read_bytes()
    assert read_stream(tmp_path / "mix") == read_stream(khala.tokens)


def test_noise_lies_on_vocals_alone_and_is_each_track_s_own(codecs, corpus, tmp_path):
    """It is kept in the records, which are not gone on with under another."""
    streams = [f"--stream=vocals:{codecs.slow}", f"--stream=instrumental:{codecs.slow}"]
    for out, noise in (("plain", 0), ("noisy", 0.01), ("again", 0.01)):
        assert not tokenize(*streams, f"--data={corpus}", f"--out={tmp_path / out}", f"--vocal_noise={noise}")

    def codes(out: str, stem: str, index: int = 0) -> np.ndarray:
        return TokenSource(tmp_path / out / stem)[index]["codes"]

    np.testing.assert_array_equal(codes("plain", "instrumental"), codes("noisy", "instrumental"))
    moved_T = (codes("noisy", "vocals").astype(int) - codes("plain", "vocals"))[:, 0]
    assert 0 < np.abs(moved_T).mean() < 499 * 0.03
    np.testing.assert_array_equal(codes("noisy", "vocals"), codes("again", "vocals"))
    assert (codes("noisy", "vocals", 1) != codes("noisy", "vocals", 0)).any()  # of one sound, under two names
    assert [read_stream(tmp_path / out / "vocals").noise for out in ("plain", "noisy")] == [0.0, 0.01]


def test_noise_without_vocals_is_refused(codecs, corpus, tmp_path, capsys):
    flags = [f"--stream=mix:{codecs.slow}", f"--data={corpus}", f"--out={tmp_path / 'out'}", "--vocal_noise=0.01"]
    status = tokenize(*flags)
    assert "--vocal_noise=0.01 goes with a stream of vocals" in f"{status}{capsys.readouterr().err}"
    assert not (tmp_path / "out").exists()
