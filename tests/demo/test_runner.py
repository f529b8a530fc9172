"""A demo runs each step once, goes on where it was, and writes the page last; no step is really run."""

import json
from types import SimpleNamespace

import pytest

from hiermusic.audio import files
from hiermusic.demo import runner
from hiermusic.demo.runner import Ledger
from hiermusic.errors import UserError
from hiermusic.evaluate import report
from hiermusic.systems.demos import Demo, Step


@pytest.fixture
def machine(monkeypatch):
    """Commands that end at once: what ran, which fail, and what each takes."""
    it = SimpleNamespace(ran=[], failing=set(), status=0, memory=2048, clock=0.0)

    def run(arguments):
        it.ran.append(list(arguments))
        it.clock += 60
        return (1 if arguments[0] in it.failing else 0), it.memory

    monkeypatch.setattr(runner.children, "run", run)
    monkeypatch.setattr(runner.time, "monotonic", lambda: it.clock)
    monkeypatch.setattr(runner.sys, "platform", "linux")
    monkeypatch.setattr(runner, "_chapters", lambda demo, folder: [report.Section("A chapter")])
    return it


def demo(*steps: str, files: dict | None = None) -> Demo:
    named = [Step(name, f"do {name}", (name, f"--out={name}")) for name in steps]
    return Demo("A demo", "In words.", files or {}, named, {"songs": "Songs"}, {"run": "A run"})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "out" / "run").mkdir(parents=True)
    (tmp_path / "out" / "run" / "config.json").write_text('{"seed": 17}')
    return tmp_path / "out"


def test_steps_run_in_their_order_and_the_page_tells_them(machine, folder, capsys):
    page = runner.run(demo("a", "b", files={"prompts.jsonl": "{}\n"}), folder)
    assert machine.ran == [["a", "--out=a"], ["b", "--out=b"]]
    assert capsys.readouterr().err == "[1/2] do a\n[2/2] do b\n[2/2] write the report\n"
    assert (folder / "prompts.jsonl").read_text() == "{}\n" and page == folder / "report.html"
    html = page.read_text()
    assert html.index("A demo") < html.index("In words.") < html.index("A chapter") < html.index("Time and memory")
    assert html.index("hiermusic a --out=a\nhiermusic b --out=b") < html.index("seed&quot;: 17")
    assert "do a" in html and "2.0 minutes in all" in html


def test_what_is_done_is_not_done_again_unless_its_command_changed(machine, folder):
    runner.run(demo("a", "b"), folder)
    runner.run(demo("a", "b", "c"), folder)
    assert [ran[0] for ran in machine.ran] == ["a", "b", "c"]
    changed = demo("a", "b", "c")
    changed.steps[1] = Step("b", "do b", ("b", "--out=elsewhere"))
    runner.run(changed, folder)
    assert machine.ran[3:] == [["b", "--out=elsewhere"]]


def test_a_step_that_fails_ends_the_demo_and_is_the_next_to_run(machine, folder):
    machine.failing = {"b"}
    with pytest.raises(UserError, match="the step 'do b' failed; run the same command again to go on from there"):
        runner.run(demo("a", "b", "c"), folder)
    assert [ran[0] for ran in machine.ran] == ["a", "b"] and not (folder / "report.html").exists()
    machine.failing, machine.memory = set(), 1024
    runner.run(demo("a", "b", "c"), folder)
    assert [ran[0] for ran in machine.ran] == ["a", "b", "b", "c"]
    rows = json.loads((folder / "steps.json").read_text())
    assert rows["b"] == {"command": "hiermusic b --out=b", "seconds": 120.0, "peak_memory_mb": 2, "done": True}
    assert rows["c"]["seconds"] == 60 and rows["c"]["peak_memory_mb"] == 1


def test_memory_is_told_in_bytes_or_kilobytes_by_the_system(machine, folder, monkeypatch):
    machine.memory = 3 * 2**20
    for platform, megabytes in (("linux", 3072), ("darwin", 3)):
        monkeypatch.setattr(runner.sys, "platform", platform)
        ledger = Ledger(folder / f"{platform}.json")
        ledger.run(Step("a", "do a", ("a",)))
        assert ledger.entries["a"]["peak_memory_mb"] == megabytes


def test_the_page_has_a_chapter_of_all_that_was_measured(monkeypatch, tmp_path):
    """Of each folder what its own evaluation found: songs first, then codecs, losses and token models."""
    songs = {"best": "songs", "corpus": "c", "continuation": {"of": "a clip"}}
    found = {"songs": songs, "codec": {"reconstruction": [], "baselines": {}}, "lm": {"predictability": 7}}
    for name, result in found.items():
        (tmp_path / name / "evaluation").mkdir(parents=True)
        (tmp_path / name / "evaluation" / "results.json").write_text(json.dumps(result | {"of": name}))
    told = []
    for kind in ("music", "continuation", "reconstruction", "rebuilt_music", "code_use"):
        keep = lambda result, *rest, kind=kind: told.append((kind, result["of"], rest[-1]))  # noqa: E731
        monkeypatch.setattr(runner.sections, kind, keep)
    monkeypatch.setattr(runner.sections, "training", lambda runs: told.append(("training", *runs)))
    monkeypatch.setattr(runner.sections, "predictability", lambda rows, title: told.append((rows, title)))
    monkeypatch.setattr(runner.songs, "read", lambda folder: [SimpleNamespace(name="a"), SimpleNamespace(name="b")])
    monkeypatch.setattr(runner.songs, "structure", lambda made, records, best: {"of": records, "best": best})
    monkeypatch.setattr(runner.sections, "structure", lambda alike, title: told.append((alike, title)))
    monkeypatch.setattr(runner, "_song", lambda made, title, best: told.append((made.name, title, best)))
    shown = Demo("t", "i", {}, [], {"songs": "Songs"}, {"lm": "The model", "codec": "The codec"})
    assert len(runner._chapters(shown, tmp_path)) == len(told) + 1  # and the sounds of the codec
    assert told == [
        ("music", "songs", "Songs: how far from music"),
        ("a", "Songs: a", "songs"),
        ("b", "Songs: b", "songs"),
        ("continuation", "a clip", "Songs: as it began?"),
        ({"of": "c", "best": "songs"}, "Songs: does it come back to what it was?"),
        ("reconstruction", "codec", "The codec: reconstruction"),
        ("rebuilt_music", "codec", "The codec: music in what is rebuilt"),
        ("code_use", "codec", "The codec: use of the codes"),
        ("training", "lm", "codec"),
        (7, "The model: predicting the tokens"),
    ]


def test_the_truth_is_heard_first_and_then_more_and_more_levels(tmp_path):
    sounds = tmp_path / "evaluation" / "sounds"
    for name in ("clip-8-levels", "clip-truth", "clip-16-levels", "clip-2-levels"):
        files.write(sounds / f"{name}.wav", [[0.0]], 8000)
    players = runner._reconstructions(tmp_path)
    assert [player.label for player in players] == ["truth", "2 levels", "8 levels", "16 levels"]
    assert [player.path for player in players] == [
        sounds / f"clip-{name}.wav" for name in ("truth", "2-levels", "8-levels", "16-levels")
    ]
