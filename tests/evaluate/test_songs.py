"""Generated songs beside held-out ones: what stands in the table, which version is the better, what is told."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from hiermusic import cli
from hiermusic.audio import anchors, files
from hiermusic.errors import UserError
from hiermusic.evaluate import report, run, sections, songs
from hiermusic.evaluate.scores import gap, to_json

RATE = 22050


def tune(seed: int, seconds: float = 3.0) -> np.ndarray:
    """Notes of a scale on a beat of its own, over a little noise."""
    draw = np.random.default_rng(seed)
    length, beat = round(RATE * seconds), round(RATE * draw.uniform(0.35, 0.6))
    wav_L = draw.normal(0, 1e-4, length)
    for start in range(0, length, beat):
        time_L = np.arange(min(beat, length - start)) / RATE
        hertz = 220 * 2 ** (draw.choice([0, 2, 4, 7, 9, 12]) / 12)
        tone_L = sum(np.sin(2 * np.pi * hertz * k * time_L) / k for k in (1, 2))
        wav_L[start : start + beat] += 0.2 * np.exp(-3 * time_L) * tone_L
    return wav_L[:, None].astype(np.float32)


class Corpus(SimpleNamespace):
    """What `evaluate_songs` needs of audio records."""

    def track(self, index: int) -> np.ndarray:
        return self.sounds[index]


@pytest.fixture(scope="module")
def corpus():
    sounds = [tune(seed) for seed in range(5)]
    tracks = [{"meta": {"tags": "drums"}}] * 5
    return Corpus(path="corpus", sample_rate=RATE, sounds=sounds, tracks=tracks, train=[0, 1, 2], valid=[3, 4])


def write(folder, name: str, wav_LC: np.ndarray, coarse_LC: np.ndarray | None, **prompt) -> None:
    files.write(folder / f"{name}.wav", wav_LC, RATE)
    told = {"peak": 1.5, "clipped": 0.25, "loudness": -9.0}
    facts = {"name": name, "prompt": {"seconds": 6.0, **prompt}, "seconds": len(wav_LC) / RATE, **told}
    if coarse_LC is not None:
        files.write(folder / f"{name}.backbone.wav", coarse_LC, RATE)
        facts["versions"] = {"backbone": {"peak": 0.5, "clipped": 0.0, "loudness": -20.0}}
    (folder / f"{name}.json").write_text(json.dumps(facts))


@pytest.fixture(scope="module")
def result(corpus, tmp_path_factory):
    """Two songs whose first levels are music and whose rest is noise; one of them copies a training song."""
    folder = tmp_path_factory.mktemp("songs")
    for name, coarse_LC in (("a", tune(20)), ("copy", corpus.sounds[1])):
        write(folder, name, anchors.noise_like(tune(21), RATE), coarse_LC, tags=name)
    (folder / "stranger.json").write_text("[1]")
    made = songs.read(folder)
    return made, songs.evaluate_songs(made, corpus, 8)


def test_the_better_version_stands_first(result):
    _, found = result
    rows = found["rows"]
    assert list(rows) == ["songs", "backbone only", songs.CORPUS, *songs.ANCHORS]
    assert found["names"] == ["a", "copy"] and found["best"] == "backbone only"
    order = ("backbone only", "its frames shuffled", "songs")
    assert np.all(np.diff([rows[name]["tonality"]["mean"] for name in order]) < 0)
    assert found["verdict"].startswith("Backbone only: tonality")
    assert found["verdict"].endswith("% of the way from noise to music.")
    assert found["against_shuffled"]["backbone only"]["tonality"]["low"] > 0
    assert found["obedience"] == {}  # two songs say nothing


def test_the_sound_before_the_limiter_and_the_length_asked_are_told(result):
    rows = result[1]["rows"]
    full, coarse = rows["songs"], rows["backbone only"]
    assert full["clipped"]["values"] == [25, 25] and full["loudness"]["mean"] == -9 and full["peak"]["mean"] == 1.5
    assert coarse["clipped"]["mean"] == 0 and coarse["loudness"]["mean"] == -20
    assert full["length"]["mean"] == pytest.approx(0.5) and "length" not in rows[songs.CORPUS]


def test_a_copy_is_told_by_its_distance(result):
    rows = result[1]["rows"]
    near = rows["backbone only"]["nearest"]["values"]
    assert near[1] < 0.5 < 2 < min(near[0], *rows[songs.CORPUS]["nearest"]["values"])
    assert rows["backbone only"]["apart"]["mean"] > 2 > rows["songs"]["apart"]["mean"]  # one noise


def test_what_is_shown(result, tmp_path):
    _, found = result
    lines = run.lines(to_json(found))
    assert lines[0] == found["verdict"] and [line.split("  ")[0] for line in lines[2:]] == list(found["rows"])
    section = sections.music(to_json(found))
    html = report.write(report.Page("Songs", sections=[section]), tmp_path / "page.html").read_text()
    assert found["verdict"] in html and "backbone only" in html and "nan" not in html


def test_a_long_song_is_shown_beside_a_real_track(corpus, monkeypatch, tmp_path):
    for name, seconds in (("a", 2.0), ("b", 31.0)):
        write(tmp_path, name, tune(3, seconds), None)
    made = songs.read(tmp_path)
    tracks = [{"meta": {}, "samples": len(sound)} for sound in corpus.sounds]
    real = Corpus(**vars(corpus) | {"tracks": tracks})
    assert songs.structure(made[:1], "records", "songs") == {}
    monkeypatch.setattr(songs, "AudioSource", {"records": real}.get)
    alike = songs.structure(made, "records", "songs")
    assert list(alike) == ["b", "a held-out track"] and [len(one[0]) for one in alike.values()] in ([29, 1], [29, 2])
    html = report.write(report.Page("Songs", sections=[sections.structure(alike)]), tmp_path / "p.html").read_text()
    assert "a held-out track" in html and "<image" in html


@pytest.fixture
def plain(monkeypatch):
    """Sounds that are one number throughout, which is all that is heard of them; an anchor is silence."""

    def number(wav_LC: np.ndarray, rate: int = RATE) -> float:
        return round(float(wav_LC.mean()), 3)

    monkeypatch.setattr(songs, "anchored", lambda x, rate, seed: {"": x} | {name: 0 * x for name in songs.ANCHORS})
    monkeypatch.setattr(songs, "describe", lambda wav_LC, rate: {"tonality": number(wav_LC), "loudness": len(wav_LC)})
    monkeypatch.setattr(songs, "hear", lambda wav_LC, rate: {})
    monkeypatch.setattr(songs, "_gaps", lambda version, other: {})
    monkeypatch.setattr(songs.music, "spans", lambda wav_LC, rate: np.array([[number(wav_LC)]]))
    monkeypatch.setattr(songs.music, "distance", lambda one, other: abs(float(one[0, 0] - other[0, 0])))


def test_held_out_songs_are_measured_and_training_songs_compared_with(plain, monkeypatch, tmp_path):
    """Cut to the longest song, from their middle; of each split as many as there may be."""
    values = (0.1, 0.4, 0.7, 0.25, 0.75, 0.6)
    sounds = [np.full((100, 1), value) for value in values]
    sounds[3][:25] = sounds[3][75:] = 9  # what lies outside of the cut
    tracks = [{"meta": {}}] * 6
    corpus = Corpus(path="c", sample_rate=1, sounds=sounds, tracks=tracks, train=[0, 1, 2], valid=[3, 4, 5])
    monkeypatch.setattr(songs, "TRAINING_TRACKS", 2)
    for name, value, count in (("a", 0.5, 50), ("b", 0.3, 30)):
        write(tmp_path, name, np.full((count, 1), value), None, tags=name)
        facts = json.loads((tmp_path / f"{name}.json").read_text())
        (tmp_path / f"{name}.json").write_text(json.dumps(facts | {"seconds": count}))
    found = songs.evaluate_songs(songs.read(tmp_path), corpus, 2)
    rows = found["rows"]
    assert (found["songs"], found["held_out"], found["training_tracks"]) == (2, 2, 2)
    assert rows["songs"]["tonality"]["values"] == pytest.approx([0.5, 0.3], abs=1e-3)
    assert rows[songs.CORPUS]["tonality"]["values"] == pytest.approx([0.25, 0.75])
    assert rows[songs.CORPUS]["loudness"]["values"] == [50, 50]
    assert rows["songs"]["nearest"]["values"] == pytest.approx([0.1, 0.1], abs=2e-3)  # to 0.4, not to 0.7 or 0.25
    assert rows[songs.CORPUS]["nearest"]["values"] == pytest.approx([0.15, 0.35])
    assert rows["songs"]["apart"]["values"] == pytest.approx([0.2, 0.2], abs=2e-3)
    assert rows[songs.CORPUS]["apart"]["values"] == pytest.approx([0.5, 0.5])
    assert found["verdict"].startswith("Songs: tonality 0.40, where held-out songs of the corpus have 0.50")
    assert found["verdict"].endswith("that is 80% of the way from noise to music.")


def test_prompts_are_judged_from_eight_songs_on(corpus, tmp_path):
    for index in range(8):
        write(tmp_path, f"s{index}", corpus.sounds[index % 5][: RATE * (1 + index % 2)], None, seconds=1 + index % 2)
    made = songs.read(tmp_path)
    found = songs.evaluate_songs(made, corpus, 1)
    assert next(iter(found["rows"])) == "songs" and found["held_out"] == 1
    length = found["obedience"]["length"]
    assert length["songs"]["share"]["mean"] == 1 and length["songs"]["permuted"] == 0.5 and length["trusted"]
    assert list(found["obedience"]) == ["length"]  # nothing else was asked for
    assert any(line.startswith("length: 100% of 8 songs obey") for line in run.lines(to_json(found)))
    assert sections.obedience(found["obedience"]).items[0].rows[0][1] == 8


def test_a_folder_without_songs(tmp_path):
    with pytest.raises(UserError, match="holds no songs"):
        songs.read(tmp_path)


def test_what_a_song_does_not_tell_is_left_out():
    facts = {"prompt": {"seconds": 2.0}, "clipped": None, "peak": None, "loudness": -9.0}
    made = songs.Made("a", facts, {}, {"songs": facts})
    assert songs._told(made, "songs", 1.0) == {"loudness": -9.0, "length": 0.5}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"seconds": "6"}, "it holds other things"),
        ({"seconds": None}, "it holds other things"),
        ({"seconds": 0}, "a length in it is not above nought"),
        ({"seconds": float("inf")}, "a length or a measure in it is no number"),
        ({"prompt": ["slow"]}, "a prompt is a JSON object, not list"),
        ({"prompt": {"tags": 3}}, "the prompt's 'tags' cannot be 3"),
        ({"clipped": "0"}, "a length or a measure in it is no number"),
        ({"versions": {"backbone": []}}, "it holds other things"),
        ({"versions": {"../b": {}}}, "a version in it has no name"),
        ({"versions": 3}, "it holds other things"),
        ({"workdirs": {"codec": 3}}, "its codec is no folder"),
    ],
)
def test_a_song_that_cannot_be_measured_is_told(tmp_path, change, why):
    write(tmp_path, "a", tune(0)[:100], None)
    path = tmp_path / "a.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | change))
    with pytest.raises(UserError) as told:
        songs.read(tmp_path)
    assert why in str(told.value)
    path.write_text("[" * 100_000)
    with pytest.raises(UserError, match="holds no songs"):
        songs.read(tmp_path)


def test_the_verb_leaves_results_and_a_page(tmp_path, capsys):
    made, out = tmp_path / "made", tmp_path / "made" / "evaluation"
    made.mkdir()
    write(made, "one", tune(1, 2.0), None, tags="slow")
    how = ("--source=builtin:3?seconds=2-2", f"--sample_rate={RATE}", "--channels=1")
    for name, share in (("corpus", 0.4), ("all", 0.0)):
        cli.main(["data", *how, f"--out={tmp_path / name}", f"--valid_fraction={share}"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        cli.main(["evaluate", f"--songs={made}", f"--data={tmp_path / 'all'}"])
    assert "all has no held-out tracks" in capsys.readouterr().err.splitlines()[-1] and not out.exists()

    cli.main(["evaluate", f"--songs={made}", f"--data={tmp_path / 'corpus'}", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((out / "results.json").read_text())
    assert (found["songs"], found["held_out"], found["training_tracks"]) == (1, 1, 2)
    html = (out / "report.html").read_text()
    assert found["verdict"] in html and html.count("<audio") == 1 + 3 and not (out / "parts").exists()


def test_gap_of_two_groups():
    draw = np.random.default_rng(0)
    found = gap(draw.normal(1, 1, 200), [*draw.normal(0, 1, 100), np.nan])
    assert found["low"] < 1 < found["high"] and found["high"] - found["low"] == pytest.approx(2 * 1.96 * 0.122, rel=0.2)
    assert np.isnan(gap([], [1.0])["mean"])
