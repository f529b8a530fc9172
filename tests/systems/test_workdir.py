"""From workdirs to tokens, codes and songs: whose settings count, and what is refused; no model is made."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hiermusic.audio import files
from hiermusic.data import pipeline, records, tokenise
from hiermusic.errors import UserError
from hiermusic.systems import workdir
from hiermusic.systems.system import Flag
from hiermusic.tokens.facts import TokenFacts
from hiermusic.tokens.hierarchy import Hierarchy

from .fakes import configuration

LEVELS = 4


@pytest.fixture
def codec(monkeypatch):
    """A codec of 10 samples a frame that codes a frame as its place, and what was asked of it."""
    it = SimpleNamespace(asked=[], sample_rate=1000, channels=1, packet=10, slots=(1,) * LEVELS)
    it.packets, it.length = (lambda length: -(-length // 10)), (lambda packets: 10 * packets)
    it.hierarchy = Hierarchy.uniform(LEVELS, 10, 64)
    it.config, it.facts = configuration("khala/codec:tiny"), TokenFacts(1000, 100, "residual", LEVELS, 64, 8)

    def encode(codec, wav_LC, levels=None):
        it.asked.append((wav_LC, levels))
        return np.repeat(np.arange(-(-len(wav_LC) // 10))[:, None], levels or LEVELS, axis=1).astype(np.uint16)

    def decode(codec, codes_PS, length=None, levels=None, scales_N=None):
        it.asked.append((codes_PS, length, levels))
        return np.full((length, 1), 0.25)

    monkeypatch.setattr("hiermusic.codec.chunked.encode_long", encode)
    monkeypatch.setattr("hiermusic.codec.chunked.encode_each", lambda codec, sounds: (encode(codec, x) for x in sounds))
    monkeypatch.setattr("hiermusic.codec.chunked.decode_long", decode)
    monkeypatch.setattr(workdir, "read", lambda place, *stages: it.config)
    monkeypatch.setattr(workdir, "load", lambda place, *stages, step=None, mesh=None: (it.config, it))
    return it


def test_tokens_hold_out_what_the_codec_has_not_heard(codec, monkeypatch, tmp_path):
    codec.config.data.update({"segment_seconds": 7.0, "valid_fraction": 0.4})
    asked = []
    monkeypatch.setattr(pipeline, "resolve", lambda *where, **how: asked.append((where, how)) or "records")
    monkeypatch.setattr(tokenise, "tokenise", lambda *given, **how: asked.append((given, how)))
    monkeypatch.setattr(records, "read_summary", lambda out: f"summary of {out}")
    monkeypatch.setattr(workdir.checkpoint, "find", lambda place, step: Path(f"{place}/{step or 12}"))
    monkeypatch.setattr(workdir, "_codec_config", lambda config: codec)
    monkeypatch.setattr(workdir, "workers", lambda: (1, 3))
    out = tmp_path / "tokens"
    assert workdir.tokenise({"": "codec"}, "music", str(out), split_at=2) == {"": f"summary of {out}"}
    (where, how), ((encode, *given), shared) = asked
    shares = {"segment_seconds": 7.0, "valid_fraction": 0.4, "stems": ("mix",)}
    assert where == ("music", out / "audio", 1000, 1) and how == shares
    name = f"{Path('codec').absolute()}@12"
    assert given == ["records", out, codec.hierarchy, 2, name]
    how = {"facts": codec.facts, "stem": "mix", "sample_rate": 1000, "channels": 1, "worker": (1, 3), "noise": 0.0}
    assert shared.pop("scales")(np.zeros((25, 1))) is None and shared.pop("shortest") == 0
    assert shared == how
    wav_LC = np.zeros((25, 1))
    for codes_TK in encode([wav_LC, wav_LC]):
        np.testing.assert_array_equal(codes_TK, [[0] * LEVELS, [1] * LEVELS, [2] * LEVELS])


@pytest.mark.parametrize("levels", [None, 1, LEVELS])
def test_levels_of_a_file_are_those_asked_for(codec, tmp_path, levels):
    files.write(tmp_path / "in.wav", np.full((45, 1), 0.5), 2000)
    place = str(tmp_path / "o" / "codes.npz")
    told = workdir.encode_file("codec", str(tmp_path / "in.wav"), place, levels)
    wav_LC, asked = codec.asked.pop()
    assert asked == levels and wav_LC.shape == (23, 1)  # at the codec's rate
    assert told == {"out": place, "codes": [levels or LEVELS, 3], "seconds": 0.023}
    with np.load(place) as stored:
        assert [stored[name].tolist() for name in ("length", "sample_rate")] == [23, 1000]
        np.testing.assert_array_equal(stored["codes"], [[0, 1, 2]] * (levels or LEVELS))

    told = workdir.decode_file("codec", place, str(tmp_path / "out.wav"), levels)
    codes_PS, *how = codec.asked.pop()
    np.testing.assert_array_equal(codes_PS, np.repeat([[0], [1], [2]], levels or LEVELS, axis=1))
    assert how == [23, levels] and told == {"out": str(tmp_path / "out.wav"), "seconds": 0.023}
    sound_LC, rate = files.read(tmp_path / "out.wav")
    assert rate == 1000 and (sound_LC == 0.25).all()


def test_more_levels_than_a_codec_has_are_refused(codec, tmp_path):
    files.write(tmp_path / "in.wav", np.zeros((45, 1)), 1000)
    place = str(tmp_path / "codes.npz")
    with pytest.raises(UserError, match=f"{LEVELS + 1} levels were asked for: this codec has {LEVELS}"):
        workdir.encode_file("codec", str(tmp_path / "in.wav"), place, LEVELS + 1)
    assert not Path(place).exists()
    workdir.encode_file("codec", str(tmp_path / "in.wav"), place, None)
    with pytest.raises(UserError, match=f"{LEVELS + 1} levels were asked for: this codec has {LEVELS}"):
        workdir.decode_file("codec", place, str(tmp_path / "out.wav"), LEVELS + 1)


@pytest.mark.parametrize(
    "change",
    [
        {"codes": np.full((LEVELS, 3), 64)},
        {"codes": np.full((LEVELS, 3), -1)},
        {"codes": np.zeros((LEVELS, 3))},
        {"codes": np.zeros(3, int)},
        {"codes": np.zeros((LEVELS + 1, 3), int)},
        {"length": 31},
        {"length": 20},
        {"sample_rate": 1001},
    ],
)
def test_codes_that_are_not_this_codecs_are_refused(codec, tmp_path, change):
    place = tmp_path / "codes.npz"
    good = {"codes": np.full((LEVELS, 3), 63), "length": 21, "sample_rate": 1000}
    for length in (21, 30):
        np.savez(place, **good | {"length": length})
        workdir.decode_file("codec", str(place), str(tmp_path / "out.wav"), None)
    np.savez(place, **good | change)
    with pytest.raises(UserError, match="not those of codec: use the codec that made it"):
        workdir.decode_file("codec", str(place), str(tmp_path / "out.wav"), None)


# MARK: systems


@pytest.fixture
def asked(monkeypatch):
    """A system of three flags, and what it was asked for."""
    calls = []
    kinds = {"lm": "model", "like": "prompt", "top_k": "sampling", "both": "else"}
    ours = SimpleNamespace(
        name="toy",
        flags=[Flag(name, name, of) for name, of in kinds.items()],
        rooms=SimpleNamespace(generate=lambda requests, out, **how: calls.append((requests, out, how)) or ["songs"]),
    )
    monkeypatch.setattr(workdir, "read", lambda place, *stages: "the configuration")
    monkeypatch.setattr(workdir, "system", lambda config: ours)
    return calls


def test_what_is_said_reaches_the_system_and_what_is_not_does_not(asked):
    how = {"lm": "w", "like": "clip.wav", "top_k": 0, "both": True}
    assert workdir.generate(["a song"], "o", "w", None, **how) == ["songs"]
    assert workdir.generate(["a song"], "o", "w", "toy", lm="w", audio="in.wav", mesh={"fsdp": 2}, rows=3) == ["songs"]
    assert asked == [
        (
            ["a song"],
            Path("o"),
            {"lm": "w", "both": True, "options": {"top_k": 0}, "audio": None, "mesh": {}, "rows": None},
        ),
        (["a song"], Path("o"), {"lm": "w", "options": {}, "audio": "in.wav", "mesh": {"fsdp": 2}, "rows": 3}),
    ]


def test_adapters_name_the_step_of_what_they_adapt_and_keep_it(monkeypatch, tmp_path):
    """The base may train on; a run that goes on adapts what it began with."""
    monkeypatch.chdir(tmp_path)
    for step in ("base/checkpoints/30", "base/checkpoints/60", "mine"):
        (tmp_path / step).mkdir(parents=True)
    (tmp_path / "base" / "config.json").write_text("{}")
    config = configuration("aar/lm:tiny")
    config.init_from = "base"
    assert workdir.resolved(config).init_from == f"{tmp_path}/base"
    config.lora.rank = 4
    assert workdir.resolved(config, tmp_path / "mine").init_from == f"{tmp_path}/base@60"
    (tmp_path / "mine" / "config.json").write_text(json.dumps({"init_from": f"{tmp_path}/base@30"}))
    assert workdir.resolved(config, tmp_path / "mine").init_from == f"{tmp_path}/base@30"
    config.init_from = f"{tmp_path}/base@60"
    assert workdir.resolved(config, tmp_path / "mine").init_from == f"{tmp_path}/base@60"
    config.init_from = "base@45"
    with pytest.raises(UserError, match="base holds no checkpoint of step 45: it has 30, 60"):
        workdir.resolved(config, tmp_path / "mine")
    config.init_from = "nowhere"
    with pytest.raises(UserError, match="nowhere is not a training workdir"):
        workdir.resolved(config, tmp_path / "mine")


def test_what_means_nothing_to_a_system_is_refused(asked):
    with pytest.raises(UserError, match="--backbone means nothing to the system toy, which w is of"):
        workdir.generate([], "o", "w", None, lm="w", backbone="l")
    with pytest.raises(UserError, match="--system=aar: w is of the system toy"):
        workdir.generate([], "o", "w", "aar")
    assert asked == []


def test_data_are_opened_at_absolute_places_and_in_no_foreign_workdir(monkeypatch, tmp_path):
    """What a workdir names, later commands find from anywhere; what is not there stays as it was written."""
    monkeypatch.chdir(tmp_path)
    for name in ("tokens", "codec", "clap", "other"):
        (tmp_path / name).mkdir()
    config, order = configuration("aar/lm:tiny"), []
    given = {"path": "tokens", "codec": "codec", "clap": "clap"}
    config.data.update(given)
    config.init_from = "other"
    monkeypatch.setattr(workdir.checkpoint, "check", lambda *given: order.append(("check", *given)))
    found = workdir.resolved(config)
    assert config.data.to_dict() == given and config.init_from == "other"
    assert found.data.to_dict() == {name: str(tmp_path / value) for name, value in given.items()}
    assert found.init_from == str(tmp_path / "other") and found.tokens == config.tokens
    config.data.path = "builtin:3"
    assert workdir.resolved(config).data.path == "builtin:3"
    config.init_from = "other@30"
    assert workdir.resolved(config).init_from == f"{tmp_path}/other@30"
    run = SimpleNamespace(fields="the fields", places=("data.clap",))
    stage = SimpleNamespace(config=run, open=lambda place: order.append(("open", place)))
    workdir.open_data(stage, "w")
    assert order == [("check", "w", "the fields", ("data.clap",)), ("open", Path("w"))]

    def refuse(place, config, free):
        raise UserError("of another configuration")

    order.clear()
    monkeypatch.setattr(workdir.checkpoint, "check", refuse)
    with pytest.raises(UserError, match="of another configuration"):
        workdir.open_data(stage, "w")
    assert order == []


@pytest.mark.parametrize("mesh", [None, "a mesh"])
def test_weights_are_those_of_the_step_on_the_mesh_that_is_asked_for(monkeypatch, mesh):
    config, asked = configuration("khala/codec:tiny"), []

    def load_model(place, make, step, shardings):
        asked.append((place, make(), step, shardings and shardings("a tree")))
        return "the model"

    monkeypatch.setattr(workdir, "read", lambda place, *stages: asked.append((place, stages)) or config)
    rooms = SimpleNamespace(make_model=lambda config: lambda rngs: "m")
    monkeypatch.setattr(workdir, "system", lambda config: SimpleNamespace(rooms=rooms))
    monkeypatch.setattr(workdir.checkpoint, "load_model", load_model)
    monkeypatch.setattr(workdir, "shardings", lambda tree, mesh: (tree, mesh))
    assert workdir.load("w", "codec", step=3, mesh=mesh) == (config, "the model")
    assert asked == [("w", ("codec",)), ("w", "m", 3, mesh and ("a tree", mesh))]
    asked.clear()
    assert workdir.load_codec("w", 5) == "the model"
    assert asked == [("w", ("codec",)), ("w", "m", 5, None)]


def test_facts_are_those_of_the_configuration_or_of_the_checkpoint(monkeypatch):
    config = configuration("khala/codec:tiny")
    held = []
    monkeypatch.setattr(workdir, "read", lambda place: config)
    monkeypatch.setattr(workdir, "_facts", lambda config, whose: {"of": whose})
    monkeypatch.setattr(workdir.stored, "describe", lambda *asked: held.append(asked) or "what it holds")
    monkeypatch.setattr(workdir.checkpoint, "steps", lambda place: [])
    plain = {"system": "khala", "stage": "codec"}
    assert workdir.inspect(config, None) == plain | {"of": "the configuration"}
    found = plain | {"workdir": "w", "of": "w/config.json"}
    assert workdir.inspect(None, "w") == found and held == []
    assert workdir.inspect(None, "w", step=0) == found | {"checkpoint": "what it holds"}
    assert workdir.inspect(None, "w", weights=True) == found | {"checkpoint": "what it holds"}
    monkeypatch.setattr(workdir.checkpoint, "steps", lambda place: [4])
    assert workdir.inspect(None, "w") == found | {"checkpoint": "what it holds"}
    assert held == [("w", 0, False), ("w", None, True), ("w", None, False)]


@pytest.mark.parametrize("name", ["system", "stage"])
def test_a_configuration_whose_system_or_stage_is_no_name_is_told(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"system": "khala", "stage": "codec", name: ["codec"]}))
    with pytest.raises(UserError, match=r"config\.json: system and stage are no names: give a folder"):
        workdir.read(tmp_path)


def test_a_model_of_another_program_is_told_to_be_imported(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "encodec"}))
    for stages in ((), ("codec",)):
        with pytest.raises(UserError, match=r"names no system and no stage: .* `hiermusic import` makes"):
            workdir.read(tmp_path, *stages)
