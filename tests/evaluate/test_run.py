"""What an evaluation measures: held-out tracks, divided as in training; nothing is trained and no model is made."""

import json
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from hiermusic.audio import files
from hiermusic.errors import UserError
from hiermusic.evaluate import report, run
from hiermusic.evaluate.songs import Made
from hiermusic.evaluate.tokens import compare
from hiermusic.tokens.hierarchy import Hierarchy

RATE = 1000


class Records:
    """Audio records whose track i has samples of i, and 10 seconds + i samples."""

    def __init__(self, path, stem="mix", train=(0, 2), valid=(3, 1)):
        self.path, self.stem, self.sample_rate, self.channels = path, stem, RATE, 1
        self.train, self.valid, self.info = list(train), list(valid), {"of": str(path)}

    def track(self, index: int) -> np.ndarray:
        return index + np.linspace(0, 0.5, 10 * RATE + index)[:, None]


def configuration(stage: str = "codec", **data) -> ConfigDict:
    facts = {"path": "own", "kind": "folder", "segment_seconds": 7.0, "valid_fraction": 0.4} | data
    return ConfigDict({"system": "khala", "stage": stage, "data": facts, "model": {"levels": 2}})


@pytest.fixture
def resolved(monkeypatch):
    """What was asked of `pipeline.resolve`."""
    calls = []

    def resolve(
        path, cache_dir, sample_rate, channels, *, kind="auto", segment_seconds=10.0, valid_fraction=0.1, stems=("mix",)
    ):
        calls.append((path, Path(cache_dir), sample_rate, channels, kind, segment_seconds, valid_fraction, *stems))
        return Path("records")

    monkeypatch.setattr(run.pipeline, "resolve", resolve)
    return calls


# MARK: which tracks


@pytest.mark.parametrize(("tracks", "held"), [(1, [3]), (2, [3, 1]), (32, [3, 1])])
def test_clips_are_the_middle_of_the_held_out_tracks(monkeypatch, tracks, held):
    monkeypatch.setattr(run, "AudioSource", Records)
    clips = run.held_out(Path("records"), 4.0, tracks)
    assert [int(clip[0, 0]) for clip in clips] == held
    for index, clip in zip(held, clips, strict=True):
        whole = Records("records").track(index)
        start = (len(whole) - 4 * RATE) // 2
        np.testing.assert_array_equal(clip, whole[start : start + 4 * RATE])
    (short,) = run.held_out(Path("records"), 60.0, 1)
    np.testing.assert_array_equal(short, Records("records").track(3))


def test_records_without_held_out_tracks_are_refused(monkeypatch):
    monkeypatch.setattr(run, "AudioSource", lambda path, stem: Records(path, valid=()))
    with pytest.raises(UserError, match="records has no held-out tracks: write it with --valid_fraction above 0"):
        run.held_out(Path("records"), 4.0, 1)


@pytest.mark.parametrize(("data", "path", "kind"), [(None, "own", "folder"), ("other", "other", "auto")])
def test_data_are_divided_as_the_codec_was_trained(resolved, data, path, kind):
    """With another share, tracks that were trained on would count as held out."""
    assert run._codec_data(configuration(), "w", data, RATE, 2) == Path("records")
    assert resolved == [(path, Path("w/data"), RATE, 2, kind, 7.0, 0.4, "mix")]


@pytest.fixture
def codec(monkeypatch, resolved):
    """A codec whose codes are its clip in whole numbers, twice; what it was measured on stands in `measured`."""
    it = SimpleNamespace(
        slots=(1, 1),
        sample_rate=RATE,
        channels=1,
        hierarchy=Hierarchy.uniform(2, Fraction(RATE), 99),
        resolutions={1: 2, 2: 1},
        measured=[],
    )

    def encode(codec, wav_LC):
        return np.repeat(np.floor(wav_LC).astype(int), 2, axis=1)

    def decode(codec, codes_PS, length=None, levels=None, scales_N=None):
        return codes_PS[:length, :1] + 0.01 * (levels or 2)

    def evaluate_codec(coder, clips, progress, each):
        it.measured.append((coder, clips, each))
        return {"reconstruction": [{"bits_per_second": 11.0}, {"bits_per_second": 22.0}]}

    def evaluate_baselines(clips, sample_rate, rates, progress, each):
        it.measured.append((clips, sample_rate, rates, each))
        return "the yardsticks"

    monkeypatch.setattr(run.workdirs, "load", lambda workdir, *stages: (configuration(), it))
    monkeypatch.setattr(run, "AudioSource", Records)
    monkeypatch.setattr(run, "encode_long", encode)
    monkeypatch.setattr(run, "decode_long", decode)
    monkeypatch.setattr(run, "evaluate_codec", evaluate_codec)
    monkeypatch.setattr(run, "evaluate_baselines", evaluate_baselines)
    monkeypatch.setattr(run, "latest_step", lambda workdir: 4)
    return it


def test_a_codec_is_measured_on_held_out_clips_and_its_yardsticks_at_its_rates(codec, resolved, tmp_path):
    results, _ = run._codec("w", tmp_path, "other", 4.0, 2)
    assert results["baselines"] == "the yardsticks" and resolved[0][0] == "other"
    (coder, clips, each), (same, rate, rates, other) = codec.measured
    assert [int(clip[0, 0]) for clip in clips] == [3, 1] and {len(clip) for clip in clips} == {4 * RATE}
    assert same is clips and rate == RATE and rates == [11.0, 22.0] and each is other
    assert (coder.sample_rate, coder.channels, coder.hierarchy) == (RATE, 1, codec.hierarchy)
    streams = coder.encode(clips[0])
    np.testing.assert_array_equal(streams, np.full((4 * RATE, 2), 3))
    np.testing.assert_allclose(coder.decode(streams, 1, clips[0]), np.full((4 * RATE, 1), 3.01))
    nyquist_LC = np.tile([[1.0], [-1.0]], (2 * RATE, 1))  # what the first level, of half the band, is not held to
    assert list(coder.targets) == [1] and np.abs(coder.targets[1](nyquist_LC)[100:-100]).max() < 0.01


@pytest.mark.parametrize(("data", "stem", "stems"), [(None, "vocals", ("vocals", "mix")), ("other", "mix", ("mix",))])
def test_a_codec_is_measured_on_the_first_stem_that_it_was_trained_on(
    codec, resolved, monkeypatch, tmp_path, data, stem, stems
):
    config, opened = configuration(stems=("vocals", "mix")), []
    monkeypatch.setattr(run.workdirs, "load", lambda workdir, *stages: (config, codec))
    monkeypatch.setattr(run, "AudioSource", lambda path, stem: opened.append(stem) or Records(path, stem))
    run._codec("w", tmp_path, data, 4.0, 2)
    assert set(opened) == {stem} and resolved[0][7:] == stems


def test_what_a_killed_run_measured_of_one_stem_is_not_taken_for_another(codec, resolved, monkeypatch, tmp_path):
    monkeypatch.setattr(run.workdirs, "load", lambda workdir, *stages: (configuration(stems=("vocals",)), codec))
    monkeypatch.setattr(run, "AudioSource", Records)
    for data in (None, "the same records"):
        run._codec("w", tmp_path, data, 4.0, 2)
    assert len(list((tmp_path / "parts").iterdir())) == 2


def test_the_sounds_of_a_report_are_the_truth_and_more_and_more_levels(codec, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "HEARD_LEVELS", (1,))
    wav_LC = np.full((50, 1), 0.25)
    players = run.reconstructions(codec, wav_LC, tmp_path / "sounds", "clip")
    assert [player.label for player in players] == ["truth", "1 level", "2 levels"]
    assert [player.path.name for player in players] == ["clip-truth.wav", "clip-1-level.wav", "clip-2-levels.wav"]
    for player, value in zip(players, (0.25, 0.01, 0.02), strict=True):
        sound_LC, _ = files.read(player.path)
        np.testing.assert_allclose(sound_LC, np.full((50, 1), value), atol=1e-4)


@pytest.mark.parametrize(
    ("depth", "heard"),
    [(64, [1, 2, 8, 16, 32, 64]), (16, [1, 2, 8, 16]), (10, [1, 2, 8, 10]), (3, [1, 2, 3]), (2, [1, 2]), (1, [1])],
)
def test_a_codec_is_played_whole_whatever_its_depth(depth, heard, tmp_path, monkeypatch):
    asked = []

    def decode(codec, codes_PS, *, length, levels, scales_N):
        asked.append(levels)
        return np.zeros((length, 1), np.float32)

    monkeypatch.setattr(run, "encode_long", lambda codec, wav_LC: None)
    monkeypatch.setattr(run, "decode_long", decode)
    codec = SimpleNamespace(sample_rate=8000, hierarchy=range(depth))
    players = run.reconstructions(codec, np.zeros((80, 1), np.float32), tmp_path, "clip")
    assert asked == heard
    assert [player.label for player in players] == ["truth", *(f"{n} level{'s' * (n > 1)}" for n in heard)]
    assert (tmp_path / f"clip-{heard[-1]}-level{'s' * (heard[-1] > 1)}.wav").is_file()


def test_a_token_model_is_measured_on_held_out_tracks(monkeypatch, tmp_path):
    asked, hierarchy, longer = [], *(Hierarchy.uniform(levels, Fraction(10), 4) for levels in (2, 5))
    measured = (np.full((3, 2), 8 * np.log(2)), np.full((3, 2, 4), 2), np.ones((2, 4), int))

    class Source:
        def __init__(self, path, levels, split):
            asked.append((path, levels, split))
            self.info = {"of": path}

        def __len__(self):
            return 3

    def cross_entropy(config, model, path, tracks, each, step):
        step()
        asked.append((model, path, tracks, each("tokens", 1, lambda index: {"a": np.array(index)})))
        return measured

    monkeypatch.setattr(run, "TokenSource", Source)
    monkeypatch.setattr(run, "read_stream", lambda path: SimpleNamespace(hierarchy=longer))
    monkeypatch.setattr(run, "latest_step", lambda workdir: 4)
    monkeypatch.setattr(run.workdirs, "load", lambda workdir: (configuration("backbone"), "the model"))
    rooms = SimpleNamespace(cross_entropy=cross_entropy)
    monkeypatch.setattr(run.workdirs, "system", lambda config: SimpleNamespace(rooms=rooms))
    for data, path, tracks, kept in ((None, "own", 2, 2), ("other", "other", 32, 3)):
        asked.clear()
        results, _ = run._tokens("w", tmp_path, data, 4.0, tracks)
        assert asked == [(path, slice(0, 1), "valid"), ("the model", path, tracks, [{"a": 0}])]
        assert results == {"tracks": kept, "predictability": compare(*measured, hierarchy)}
    monkeypatch.setattr(Source, "__len__", lambda self: 0)
    with pytest.raises(UserError, match="own has no held-out tracks"):
        run._tokens("w", tmp_path, None, 4.0, 1)
    monkeypatch.setattr(run.workdirs, "load", lambda workdir: (configuration("backbone", path=""), "the model"))
    with pytest.raises(UserError, match="w does not know the tokens of any music: give token records with --data"):
        run._tokens("w", tmp_path, None, 4.0, 1)


def test_losses_are_shown_where_they_were_logged(tmp_path):
    """Nobody knows those of a model that was imported."""
    assert run._training(configuration(), str(tmp_path)) == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    assert [section.title for section in run._training(configuration(), str(tmp_path))] == ["Training"]


# MARK: songs


def made(tmp_path, codec: str | None = "codec") -> list[Made]:
    path = tmp_path / "a.wav"
    files.write(path, np.full((80, 2), 0.1), 800)
    facts = {"workdirs": {"codec": codec} if codec else {}}
    return [Made("a", facts, {"songs": path}, {"songs": facts})]


def test_songs_are_compared_with_the_corpus_of_their_codec(monkeypatch, resolved, tmp_path):
    """And with the first stem that it heard of it, which may be all that there is."""
    read, config = [], configuration(stems=("vocals", "other"))
    monkeypatch.setattr(run.workdirs, "read", lambda codec, *stages: read.append((codec, *stages)) or config)
    monkeypatch.setattr(run, "AudioSource", lambda path, stem: (path, stem))
    assert run._corpus(made(tmp_path), None, tmp_path / "out") == (Path("records"), "vocals")
    assert read == [("codec", "codec")]
    assert resolved == [("own", Path("codec/data"), 800, 2, "folder", 7.0, 0.4, "vocals", "other")]
    with pytest.raises(UserError, match=r"a\.json does not say which codec made it: give the corpus with --data"):
        run._corpus(made(tmp_path, None), None, tmp_path / "out")


def test_songs_are_compared_with_the_corpus_that_is_named(resolved, monkeypatch, tmp_path):
    monkeypatch.setattr(run, "AudioSource", Path)
    assert run._corpus(made(tmp_path), "folder", tmp_path / "out") == Path("records")
    assert resolved == [("folder", tmp_path / "out" / "data", 800, 2, "auto", 10.0, 0.1, "mix")]
    (tmp_path / "tracks.jsonl").touch()
    assert run._corpus(made(tmp_path), str(tmp_path), tmp_path / "out") == tmp_path and len(resolved) == 1


@pytest.mark.parametrize("missing", ["train", "valid"])
def test_a_corpus_must_have_both_splits(monkeypatch, tmp_path, missing):
    monkeypatch.setattr(run.songs, "read", lambda folder: made(tmp_path))
    monkeypatch.setattr(run, "_corpus", lambda songs, data, out: Records("corpus", **{missing: ()}))
    with pytest.raises(UserError, match="corpus has no held-out tracks: write it with --valid_fraction above 0"):
        run.evaluate_songs("songs", str(tmp_path / "out"), data=None, tracks=3)


# MARK: what comes of it


@pytest.mark.parametrize("stage", ["codec", "backbone"])
def test_results_name_what_was_measured(monkeypatch, tmp_path, stage):
    asked = []

    def measure(kind):
        def of(workdir, out, data, seconds, tracks):
            (out / "parts").mkdir(parents=True)
            asked.append((kind, workdir, out, data, seconds, tracks))
            return {"value": np.nan}, lambda: [report.Section("A chapter")]

        return of

    monkeypatch.setattr(run.workdirs, "read", lambda workdir: configuration(stage))
    monkeypatch.setattr(run, "_codec", measure("codec"))
    monkeypatch.setattr(run, "_tokens", measure("tokens"))
    found = run.evaluate("w", str(tmp_path / "o"), data="d", seconds=3.0, tracks=5)
    assert asked == [("codec" if stage == "codec" else "tokens", "w", tmp_path / "o", "d", 3.0, 5)]
    assert found == {"workdir": "w", "system": "khala", "stage": stage, "value": None}
    assert json.loads((tmp_path / "o" / "results.json").read_text()) == found
    html = (tmp_path / "o" / "report.html").read_text()
    assert f"khala {stage}, held-out tracks" in html and "Measured from w." in html and "A chapter" in html
    assert not (tmp_path / "o" / "parts").exists()


def test_songs_are_judged_with_as_many_held_out_ones_as_asked_for(monkeypatch, tmp_path):
    asked = []

    def judge(songs, corpus, tracks, progress, each):
        asked.append((songs[0].name, corpus.path, tracks, each("a", 1, lambda index: {"x": np.array(1)})))
        return {"best": "songs"}

    monkeypatch.setattr(run.songs, "read", lambda folder: asked.append(folder) or made(tmp_path))
    monkeypatch.setattr(run, "_corpus", lambda songs, data, out: asked.append((data, out)) or Records("corpus"))
    monkeypatch.setattr(run.songs, "evaluate_songs", judge)
    monkeypatch.setattr(run.continuation, "evaluate", lambda *how: judge(*how) and {"rows": 1})
    monkeypatch.setattr(run, "_heard", lambda *arguments: [])
    found = run.evaluate_songs("songs", str(tmp_path / "o"), data="d", tracks=3)
    assert asked == ["songs", ("d", tmp_path / "o"), *[("a", "corpus", 3, [{"x": 1}])] * 2]
    assert found == {"folder": "songs", "corpus": "corpus", "best": "songs", "continuation": {"rows": 1}}


def test_one_process_writes_and_all_come_back_with_the_results(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "workers", lambda: (1, 2))
    waited = []
    monkeypatch.setattr(run, "wait_for_all", waited.append)
    assert run._finish(tmp_path / "o", {"a": float("inf")}, "t", "s", lambda: []) == {"a": None}
    assert not (tmp_path / "o").exists() and len(waited) == 2


def interval(mean: float, low: float = 0.0, high: float = 0.0, count: int = 1) -> dict:
    return {"mean": mean, "low": low, "high": high, "count": count}


def test_a_codecs_lines_hold_every_row_and_its_own_scores():
    def row(at: float, **facts) -> dict:
        return facts | {"si_sdr": interval(at), "mel": interval(at + 1), "stft": interval(at + 2)}

    results = {
        "reconstruction": [row(1, levels=1, bits_per_second=100), row(2, levels=2, bits_per_second=200)],
        "baselines": {"transform": [row(3, bits_per_second=98)], "low_pass": [row(4, cutoff=1000)]},
        "anchors": {"random_codes": row(-5)},
        "music": {"1 level": {"tonality": interval(0.5)}},
    }
    head, *rows = run.lines(results)
    assert head.split() == ["bit/s", "SI-SDR", "mel", "STFT"]
    assert [line.rsplit(maxsplit=4) for line in rows[:5]] == [
        ["1 levels", "100", "1.00", "2.000", "3.000"],
        ["2 levels", "200", "2.00", "3.000", "4.000"],
        ["transform codec", "98", "3.00", "4.000", "5.000"],
        ["low-pass 1 kHz", "nan", "4.00", "5.000", "6.000"],
        ["random codes", "nan", "-5.00", "-4.000", "-3.000"],
    ]
    assert [line.split() for line in rows[5:]] == [["tonality"], ["1", "level", "0.50"]]


def test_a_token_models_lines_say_on_which_levels_counting_is_ahead():
    def row(level, model: float) -> dict:
        cells = {"level": level, "model": model, "unigram": 3.0, "uniform": 4.0}
        return cells | {"difference": interval(model - 3, model - 3.5, model - 2.5)}

    head, *rows = run.lines({"predictability": [row(0, 2.0), row(1, 3.25), row("all", 5.25)]})
    assert head.split()[:4] == ["level", "model", "unigram", "uniform"]
    assert rows[0].split() == ["0", "2.000", "3.000", "4.000", "-1.000", "(-1.500", "…", "-0.500)"]
    assert rows[1].split()[4:] == ["+0.250", "(-0.250", "…", "+0.750)"] and rows[2].startswith("all")
    assert rows[3] == "levels on which counting is ahead: 1"
    assert run.lines({"predictability": [row(0, 2.0), row("all", 2.0)]})[-1].endswith("ahead: none")


def test_lines_of_songs_say_what_an_attribute_is_worth():
    def attribute(trusted: bool, known: int) -> dict:
        one = {"share": interval(0.75, count=8), "permuted": 0.5, "p": 0.0123}
        return {"songs": one, "corpus": {"share": interval(0.9, count=known)}, "trusted": trusted}

    rows = {"drums": attribute(True, 12), "mode": attribute(False, 12), "length": attribute(True, 0)}
    found = run.lines({"verdict": "Well.", "rows": {"songs": {"tonality": interval(0.5)}}, "obedience": rows})
    assert found[0] == "Well."
    start = "75% of 8 songs obey, 50% under each other's prompts, p = 0.012"
    assert found[3:] == [
        f"drums: {start} (90% of held-out songs told rightly)",
        f"mode: {start} (90% of held-out songs told rightly, no better than chance: this says nothing)",
        f"length: {start} (measured)",
    ]


def test_what_was_measured_of_another_checkpoint_or_other_data_is_not_taken_up(monkeypatch, tmp_path):
    steps, counted = {"w": 4}, []
    monkeypatch.setattr(run, "latest_step", steps.get)

    def measured(data: str = "a", **settings) -> bool:
        """Whether anything had to be measured."""
        counted.clear()
        each = run._each("w", tmp_path, SimpleNamespace(info={"of": data}), **settings)
        assert each("x", 1, lambda index: counted.append(1) or {"a": np.ones(1)})[0]["a"] == 1
        return bool(counted)

    assert [measured(), measured()] == [True, False]
    assert [measured("b"), measured(seconds=3.0), measured()] == [True, True, False]
    steps["w"] = 5
    assert [measured(), measured()] == [True, False]


def test_songs_are_heard_beside_what_they_are_compared_with(monkeypatch, tmp_path):
    wav_LC = np.full((80, 1), 0.1, np.float32)
    corpus = SimpleNamespace(track=lambda index: wav_LC * (index == 7), valid=[7, 8], sample_rate=8000, path="corpus")
    made = [SimpleNamespace(name="a", paths={"whole": tmp_path / "a.wav", "draft": tmp_path / "a.draft.wav"})]
    monkeypatch.setattr(run.sections, "music", lambda results: report.Section("Music"))
    monkeypatch.setattr(run, "anchored", lambda wav, rate: {"": wav, "white noise": -wav})
    monkeypatch.setattr(run.songs, "structure", lambda *_: None)
    results = {"best": "draft", "obedience": {}, "continuation": {}}
    _, songs, others = run._heard(results, made, corpus, tmp_path)
    assert [player.label for player in songs.items] == ["a, draft", "a, whole"]
    assert [player.label for player in others.items] == ["a held-out song", "white noise"]
    for player, sign in zip(others.items, (1, -1), strict=True):
        np.testing.assert_allclose(files.read(player.path)[0], sign * wav_LC, atol=1e-4)
