"""The demos' commands, in order: each reads what an earlier one wrote, with flags and fields that exist."""

import json
from pathlib import Path

import pytest
from ml_collections import config_flags

from hiermusic import cli
from hiermusic.data.sources import open_source
from hiermusic.demo import runner
from hiermusic.evaluate import accompaniment
from hiermusic.evaluate.songs import read
from hiermusic.systems import requests
from hiermusic.systems.aar import demo as aar
from hiermusic.systems.demos import Demo, Step
from hiermusic.systems.hafm import SYSTEM
from hiermusic.systems.hafm import demo as hafm
from hiermusic.systems.khala import demo as khala
from hiermusic.systems.pyramid import demo as pyramid
from hiermusic.systems.tokens import demo as tokens

CONFIGS = Path(__file__).parents[2] / "configs"
FOLDER = Path("/out")
KHALA = ("corpus", "codec", "tokens", "backbone", "superres", "songs", "evaluate songs", "evaluate codec",
         "evaluate backbone", "evaluate superres")  # fmt: skip
AAR = ("corpus", "sat", "evaluate sat", "sat tokens", "aar", "songs", "evaluate songs", "evaluate aar")


@pytest.fixture(params=["khala", "aar", "pyramid", "tokens", "hafm"])
def demo(request) -> Demo:
    rooms = {"khala": khala, "aar": aar, "pyramid": pyramid, "tokens": tokens, "hafm": hafm}
    return rooms[request.param].demo(FOLDER, CONFIGS)


def flags(step: Step) -> dict[str, str]:
    words = (word.removeprefix("--").partition("=") for word in step.arguments[1:])
    return {name: value for name, _, value in words}


def named(demo: Demo) -> dict[str, tuple[str, dict[str, str]]]:
    return {step.name: (step.arguments[0], flags(step)) for step in demo.steps}


def at(name: str) -> str:
    return str(FOLDER / name)


def test_every_command_is_one_of_the_command_line(demo, monkeypatch):
    for step in demo.steps:
        verb, *words = step.arguments
        monkeypatch.setattr("sys.argv", [f"hiermusic {verb}", *words])
        values = cli.Values()
        cli.VERBS[verb].define(values)
        assert cli._parse(verb, values) == [word for word in words if not word.startswith("--")]
        if verb == "train":
            path, _, preset = config_flags.get_config_filename(values["config"]).partition(":")
            assert preset in ("tiny", "chroma") and Path(path).is_file() and values.config.preset == preset


def test_what_a_step_reads_an_earlier_one_has_written(demo):
    reads = {"data": ("source",), "train": ("config.data.path", "config.init_from"), "tokenize": ("codec", "data"),
             "generate": ("superres", "lm", "prompts", "like"), "evaluate": ("workdir", "songs", "data"),
             "continue": ("lm",), "accompany": ("data",)}  # fmt: skip
    writes = {"data": "out", "train": "workdir", "tokenize": "out", "generate": "out", "evaluate": "workdir",
              "continue": "out", "accompany": "out"}  # fmt: skip
    there = {at(name) for name in demo.files}
    for step in demo.steps:
        verb, given = step.arguments[0], flags(step)
        for name in reads[verb]:
            if name in given and name != "source":
                place = given[name]
                assert any(place == known or place.startswith(f"{known}/evaluation/") for known in there), (step, name)
        there |= {given[writes[verb]]} if writes[verb] in given else set()
    assert {at(name) for name in (*demo.runs, *demo.songs, *demo.accompanied)} <= there
    evaluated = [given[writes["evaluate"]] if "workdir" in (given := flags(step)) else given["songs"]
                 for step in demo.steps if step.arguments[0] == "evaluate"]  # fmt: skip
    assert sorted(evaluated) == sorted(at(name) for name in (*demo.runs, *demo.songs))
    assert len({step.name for step in demo.steps}) == len(demo.steps)


def test_khalas_steps():
    steps = named(khala.demo(FOLDER, CONFIGS))
    assert tuple(steps) == KHALA
    tokens = {"config.data.path": at("tokens")}
    assert steps["corpus"] == ("data", {"source": khala.CORPUS, "out": at("corpus"), "sample_rate": "22050",
                                        "channels": "1"})  # fmt: skip
    assert steps["codec"] == ("train", {"config": f"{CONFIGS}/khala/codec.py:tiny", "workdir": at("codec"),
                                        "config.data.path": at("corpus")})  # fmt: skip
    assert steps["tokens"] == ("tokenize", {"codec": at("codec"), "data": at("corpus"), "out": at("tokens")})
    backbone = {"config": f"{CONFIGS}/khala/backbone.py:tiny", "workdir": at("backbone")}
    assert steps["backbone"] == ("train", backbone | tokens)
    superres = {"config": f"{CONFIGS}/khala/superres.py:tiny", "workdir": at("superres")}
    assert steps["superres"] == ("train", superres | tokens | {"config.init_from": at("backbone")})
    assert steps["songs"] == ("generate", {"superres": at("superres"), "prompts": at("prompts.jsonl"),
                                           "out": at("songs"), "backbone_too": ""})  # fmt: skip
    assert steps["evaluate songs"] == ("evaluate", {"songs": at("songs"), "data": at("corpus")})
    for name in ("codec", "backbone", "superres"):
        assert steps[f"evaluate {name}"] == ("evaluate", {"workdir": at(name), "tracks": str(khala.TRACKS)})


def test_the_steps_of_orders_differ_in_their_order_alone():
    steps = named(tokens.demo(FOLDER, CONFIGS))
    trained = {name: steps[name][1] for name in tokens.ORDERS}
    assert {name: given.pop("config.model.pattern") for name, given in trained.items()} == {n: n for n in tokens.ORDERS}
    assert {given.pop("workdir") for given in trained.values()} == {at(name) for name in tokens.ORDERS}
    assert len({tuple(given.items()) for given in trained.values()}) == 1


def test_aars_steps():
    steps = named(aar.demo(FOLDER, CONFIGS))
    assert tuple(steps) == AAR
    assert steps["corpus"] == ("data", {"source": aar.CORPUS, "out": at("corpus"), "sample_rate": "24000",
                                        "channels": "1"})  # fmt: skip
    config = {"config": f"{CONFIGS}/aar/codec.py:tiny", "workdir": at("sat"), "config.data.path": at("corpus")}
    assert steps["sat"] == ("train", config)
    assert steps["sat tokens"] == ("tokenize", {"codec": at("sat"), "data": at("corpus"), "out": at("sat-tokens")})
    config = {"config": f"{CONFIGS}/aar/lm.py:tiny", "workdir": at("aar"), "config.data.path": at("sat-tokens")}
    assert steps["aar"] == ("train", config)
    clip = at("sat/evaluation/sounds/clip-truth.wav")
    asked = {"system": "aar", "lm": at("aar"), "like": clip, "seconds": str(aar.SECONDS), "out": at("songs")}
    assert steps["songs"] == ("generate", asked)
    assert steps["evaluate songs"] == ("evaluate", {"songs": at("songs"), "data": at("corpus")})
    for name in ("sat", "aar"):
        assert steps[f"evaluate {name}"] == ("evaluate", {"workdir": at(name), "tracks": str(aar.TRACKS)})


def test_models_fit_the_tokens_they_are_trained_on(monkeypatch):
    """The codes that a codec's configuration makes are those that the model after it predicts."""
    from hiermusic.systems.aar import models as aar_models
    from hiermusic.systems.khala import models as khala_models
    from hiermusic.systems.pyramid import models as pyramid_models

    def config(demo: Demo, name: str):
        step = next(step for step in demo.steps if step.name == name)
        monkeypatch.setattr("sys.argv", ["hiermusic train", *step.arguments[1:]])
        values = cli.Values()
        cli.VERBS["train"].define(values)
        cli._parse("train", values)
        return values.config

    demo = khala.demo(FOLDER, CONFIGS)
    codec = khala_models.hierarchy(config(demo, "codec"))
    for name in ("backbone", "superres"):
        wanted = khala_models.hierarchy(config(demo, name))
        found = codec.select(0, len(wanted))
        assert (found.sizes, found.rates) == (wanted.sizes, wanted.rates)
    demo = aar.demo(FOLDER, CONFIGS)
    one, other = (aar_models.tokens_of(config(demo, name)).hierarchy for name in ("sat", "aar"))
    assert (one.sizes, one.rates) == (other.sizes, other.rates)
    demo = pyramid.demo(FOLDER, CONFIGS)
    one, other = (pyramid_models.hierarchy(config(demo, name)) for name in ("codec", "lm"))
    assert (one.sizes, one.rates) == (other.sizes, other.rates)


def test_pyramids_songs_are_heard_after_each_level_go_on_and_last_three_minutes():
    steps = named(pyramid.demo(FOLDER, CONFIGS))
    made = {"lm": at("lm"), "prompts": at("prompts.jsonl"), "out": at("songs"), "levels_too": ""}
    assert steps["songs"] == ("generate", made)
    verb, given = steps["continued"]
    assert verb == "continue" and at("codec/evaluation/sounds/clip-truth.wav") in given and given["seconds"] == "12"
    assert steps["long"][1]["seconds"] == "180" and list(steps).index("evaluate codec") < list(steps).index("continued")


def test_what_accompanies_lies_where_it_is_looked_for():
    """Stages in one folder under their names, of vocals noised as the paper's are and heard in every song."""
    steps = named(hafm.demo(FOLDER, CONFIGS))
    verb, given = steps["accompanied"]
    assert (verb, given["workdir"], given["data"]) == ("accompany", str(FOLDER), at("corpus"))
    assert all(steps[stage][1]["workdir"] == at(stage) for stage in SYSTEM.chain)
    assert steps["tokens"][1]["vocal_noise"] == "0.01" and steps["corpus"][1]["sounding"] == "vocals"
    assert list(steps)[-1] == "accompanied" and int(given["tracks"]) >= accompaniment.FEWEST


def test_the_prompts_are_prompts_and_the_corpora_are_sources(tmp_path):
    (tmp_path / "prompts.jsonl").write_text(khala.demo(FOLDER, CONFIGS).files["prompts.jsonl"])
    asked = requests.read(tmp_path / "prompts.jsonl", seed=0)
    assert [request.name for request in asked] == ["slow-ballad", "fast-dance", "instrumental"]
    assert [request.seed for request in asked] == [1, 2, 3]
    assert [(request.prompt.seconds, request.prompt.instrumental) for request in asked] == [
        (7, False), (5, False), (6, True)
    ]  # fmt: skip
    assert aar.demo(FOLDER, CONFIGS).files == {}
    for source, count in ((khala.CORPUS, 480), (aar.CORPUS, 160)):
        assert len(list(open_source(source).tracks)) == count


@pytest.mark.parametrize("best", ["backbone only", "songs"])
def test_the_better_version_of_a_song_stands_first(tmp_path, best):
    song = {
        "prompt": {"tags": "slow", "lyrics": "", "seconds": 5},
        "sampling": {"backbone": {"top_k": 3}},
        **{"seconds": 4.5, "ended": True, "versions": {"backbone": {}}, "like": {"path": "clip.wav"}},
    }
    (tmp_path / "a.json").write_text(json.dumps(song))
    for suffix in (".wav", ".backbone.wav"):
        (tmp_path / f"a{suffix}").touch()
    (made,) = read(tmp_path)
    section = runner._song(made, "A song", best)
    players = [item for item in section.items if hasattr(item, "path")]
    (facts,) = [item.values for item in section.items if hasattr(item, "values")]
    suffixes = {"songs": ".wav", "backbone only": ".backbone.wav"}
    *versions, clip = players
    assert (clip.label, clip.path) == ("what it should sound like", Path("clip.wav"))
    assert [player.label for player in versions] == sorted(suffixes, key=lambda label: label != best)
    assert all(player.path == tmp_path / f"a{suffixes[player.label]}" for player in versions)
    assert facts == {"tags": "slow", "seconds": 5, "sampling, backbone": {"top_k": 3}, "length asked, s": 5,
                     "length made, s": 4.5, "ended itself": True}  # fmt: skip
