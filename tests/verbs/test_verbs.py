"""What verbs decide themselves: who begins, who writes and who speaks, and how they end."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from hiermusic import cli
from hiermusic.errors import UserError
from hiermusic.verbs import checkpoints
from hiermusic.verbs.flags import mesh_sizes

from .calls import called, record
from .table import CASES, WEIGHTS


@pytest.fixture
def process(monkeypatch):
    """(which, of how many) -> this is that process of a run."""

    def be(which: int, count: int) -> None:
        for module in ("parallel.hosts", "evaluate.by_track", "data.pipeline"):
            monkeypatch.setattr(f"hiermusic.{module}.workers", lambda: (which, count))

    return be


def run(monkeypatch, capsys, name: str, *words: str, **below) -> dict:
    case = CASES[name]
    calls = record(monkeypatch, case.below | {f"hiermusic.{place}": result for place, result in below.items()})
    return called(capsys, calls, name.split()[0], *case.words, *words)


@pytest.mark.parametrize(
    ("given", "first"),
    [(("superres", "backbone", "lm"), "superres"), (("backbone", "lm"), "backbone"), (("lm",), "lm")],
)
def test_the_model_that_begins_is_the_one_nearest_to_the_song(monkeypatch, capsys, given, first):
    calls = record(monkeypatch, CASES["generate"].below)
    models = (f"--{name}={name}" for name in given)
    found = called(capsys, calls, "generate", "--seconds=1", "--out=o", *models)
    assert found["workdir.generate.model"] == first
    assert {name: found[f"workdir.generate.{name}"] for name in given} == {name: name for name in given}


ARGUMENTS = {
    "generate": {"workdir.generate.audio": None},
    "continue": {"workdir.generate.audio": "in.wav"},
    "encode": {"workdir.encode_file.source": "in.wav", "workdir.encode_file.target": "codes.npz"},
    "embed": {"embed.embed_file.source": "in.wav", "embed.embed_file.target": "out.npy"},
    "embed tracks": {"embed.embed_tracks.target": "out.npz", "embed.embed_tracks.folder": "m"},
    "decode": {"workdir.decode_file.source": "codes.npz", "workdir.decode_file.target": "out.wav"},
}


@pytest.mark.parametrize("verb", ARGUMENTS)
def test_arguments_arrive_in_their_places(monkeypatch, capsys, verb):
    found = run(monkeypatch, capsys, verb)
    assert {place: found[place] for place in ARGUMENTS[verb]} == ARGUMENTS[verb]


@pytest.mark.parametrize("verb", ["data", "tokenize"])
def test_one_process_exports_and_speaks_and_all_share_the_writing(monkeypatch, capsys, process, verb):
    process(0, 2)
    first = run(monkeypatch, capsys, verb, "--tfds=t")
    process(1, 2)
    second = run(monkeypatch, capsys, verb, "--tfds=t")
    assert first["out"] and second["out"] == ""
    assert [place for place in first if place not in second] == [
        "tfds_builder.export_tfds.records",
        "tfds_builder.export_tfds.data_dir",
    ]
    if verb == "data":
        assert [made["audio_records.write_audio.worker"] for made in (first, second)] == [(0, 2), (1, 2)]


@pytest.mark.parametrize("which", [0, 1])
def test_training_that_a_signal_ended_is_no_success(monkeypatch, capsys, process, which):
    process(which, 2)
    calls = record(monkeypatch, CASES["train"].below | {"hiermusic.train.loop.run": {"step": 3}})
    with pytest.raises(SystemExit) as ending:
        cli.main(["train", *CASES["train"].words])
    out, err = capsys.readouterr()
    assert ending.value.code == 130 and out == ""
    words = "hiermusic train: stopped and saved after step 3; run the same command to go on\n"
    assert err == ("w: from step 2 to step 900\n" + words if which == 0 else "")
    assert calls["loop.run.progress"] == (which == 0)


def test_training_that_has_made_all_its_steps_ends_well(monkeypatch, capsys):
    """The last of the metrics is that of the last step."""
    steps = CASES["train"].below | {"hiermusic.train.loop.run": {"step": 900, "loss": 0.5}}
    found = called(capsys, record(monkeypatch, steps), "train", *CASES["train"].words)
    assert found["out"] == "w: trained to step 900, loss 0.5" and "exit" not in found


def test_a_program_that_does_not_fit_has_a_status_of_its_own(monkeypatch, capsys):
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
    below = {"hiermusic.parallel.aot.examine": {"fits": False}}
    calls = record(monkeypatch, CASES["compile"].below | below)
    assert called(capsys, calls, "compile", *CASES["compile"].words)["exit"] == 3
    none = {"hiermusic.train.compile.fit": {"largest": {"none": 0, "full": 0}}}
    calls = record(monkeypatch, CASES["compile"].below | none)
    assert called(capsys, calls, "compile", *CASES["compile"].words, "--fit")["exit"] == 3


def test_a_card_tells_the_training_up_to_its_step(monkeypatch, capsys):
    found = run(monkeypatch, capsys, "export")
    assert found["card.write.records"] == [{"step": 4, "loss": 1.0}]
    assert found["export.write.texts"] == {"README.md": "the card", "metrics.jsonl": '{"step": 4, "loss": 1.0}\n'}
    assert found["card.write.facts"] | {"hiermusic": ""} == {
        **{"hiermusic": "", "step": WEIGHTS.step, "weights": WEIGHTS.part, "dtype": "float32"}
    }
    assert found["card.write.use"].startswith("hiermusic encode --codec=FOLDER")  # as the system says of its stage
    assert found["card.write.results"] == ["a measure"] and found["export.write.read"] is len


def test_the_mesh_of_a_new_workdir():
    """Axes that are left out have size 1, `data` takes what is there; where slices are joined stays."""
    own = {"data": -1, "fsdp": 4, "context": 1, "tensor": 2, "across": "fsdp"}
    assert checkpoints._mesh(mesh_sizes(None), own) == own
    found = checkpoints._mesh(mesh_sizes(" fsdp=2"), own)
    assert found == {"data": -1, "fsdp": 2, "context": 1, "tensor": 1, "across": "fsdp"}
    with pytest.raises(UserError, match=r"mesh\.tensor is -1"):
        checkpoints._mesh(mesh_sizes("tensor=-1"), own)


def test_skipped_inputs_and_splits_are_told(monkeypatch, capsys):
    summary = SimpleNamespace(
        path=Path("o"), tracks=3, seconds=9.5, splits={"train": 2, "valid": 1}, division={"by": "hash"},
        skipped=(("a.wav", "is empty"),),
    )  # fmt: skip
    found = run(monkeypatch, capsys, "data", "--json", **{"data.records.read_summary": summary})
    expected = {"out": "o", "tracks": 3, "seconds": 9.5, "train": 2, "valid": 1, "division": {"by": "hash"}}
    assert json.loads(found["out"]) == expected | {"skipped": [["a.wav", "is empty"]]}
