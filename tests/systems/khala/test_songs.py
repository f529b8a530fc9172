"""What Khala's generation asks of the decoding engines: settings, seeds, prompts, what is known; no model is made."""

import weakref
from dataclasses import asdict
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from hiermusic.errors import UserError
from hiermusic.systems import catalogue
from hiermusic.systems.khala import songs as khala
from hiermusic.systems.lm import models
from hiermusic.systems.lm import songs as lm
from hiermusic.tokens.facts import TokenFacts
from hiermusic.tokens.prompt import Prompt, compose

from ..fakes import configuration, request

RATE = 10  # frames a second


ONE, TWO = request("one", 5, tags="slow", lyrics="la", description="long"), request("two", 6, 1.0, tags="fast")


class Loaded:
    """A model's weights as a checkpoint has them."""

    def __init__(self, run: str):
        compact = SimpleNamespace(unstack=lambda: f"{run}, compact and unstacked", name=f"{run}, compact")
        self.compact = lambda: compact


@pytest.fixture
def engines(monkeypatch):
    """Khala's three runs and the engines as recorders: `calls` holds the arguments of each."""
    tokens = TokenFacts(8000, 8000 // RATE, "residual", 4, 32, 16)
    small = {"tokens": asdict(tokens), "length": 200, "text_limit": 40}
    backbone = configuration("khala/backbone:tiny", levels=2, keep_description=True, **small)
    superres = configuration("khala/superres:tiny", keep_description=False, **small)
    superres.init_from = "backbone"
    backbone.sampling.update({"temperature": 0.9, "top_k": 7, "top_p": 0.8, "guidance": 1.5})
    superres.sampling.update({"temperature": 0.7, "levels": 3})
    configs = {"backbone": backbone, "superres": superres}
    it = SimpleNamespace(configs=configs, calls={}, loaded=[], weights=[], held=[], produced=None)
    coder = SimpleNamespace(facts=tokens, sample_rate=8000, channels=1)
    known_TK = np.arange(4 * 8).reshape(8, 4) % 32

    def load(run, *stages, step=None, mesh=None):
        it.loaded.append((run, stages, mesh) if step is None else (run, stages, mesh, step))
        model = Loaded(run)
        it.weights.append(weakref.ref(model))
        return configs[run], model

    def load_codec(run, step):
        it.loaded.append((run, step))
        return coder

    def decode(model, prompts, layouts, **how):
        it.held += [weights() for weights in it.weights]
        it.calls["backbone"] = {"model": model, "prompts": prompts, "lengths": [one.lengths for one in layouts], **how}
        frames = [one.lengths[0] for one in layouts]
        return [SimpleNamespace(codes=np.full((count, 2), at), ended=at == 0) for at, count in enumerate(frames)]

    def refine(model, prompts, codes, **how):
        it.held += [weights() for weights in it.weights]
        it.calls["superres"] = {"model": model, "prompts": prompts, "codes": codes, **how}
        return [np.full((len(codes_TK), 4), 9) for codes_TK in codes]

    def produce(requests, out, make, runs, sampling, audio, versions, steps, rows, mesh, needs):
        it.produced = {"runs": runs, "sampling": sampling, "audio": audio, "versions": versions, "steps": steps}
        it.produced |= {"rows": rows, "mesh": mesh, "needs": needs}
        it.songs = make(requests)
        return ["told"]

    monkeypatch.setattr(khala.workdirs, "read", lambda run, *stages: configs[run])
    monkeypatch.setattr(khala.workdirs, "load", load)
    monkeypatch.setattr(khala.workdirs, "load_codec", load_codec)
    monkeypatch.setattr(khala, "codec_of", lambda config: ("codec of tokens", 6))
    monkeypatch.setattr(lm.autoregressive, "generate", decode)
    monkeypatch.setattr(lm.layerwise, "refine", refine)
    monkeypatch.setattr(khala.songs, "produce", produce)
    monkeypatch.setattr(khala, "encode_long", lambda codec, wav_LC: known_TK[: len(wav_LC)])
    monkeypatch.setattr(khala.files, "read", lambda path, rate, channels: (np.zeros((8, 1)), rate))
    it.known_TK = known_TK
    return it


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.0}, {"top_k": 0}, {"top_p": 0.5}, {"guidance": 3.0}, {"min_share": 0.5}]
)
def test_settings_of_sampling_reach_the_model_that_begins_and_no_other(engines, options):
    khala.generate([ONE], "out", superres="superres", options=options)
    usual = {"temperature": 0.9, "top_k": 7, "top_p": 0.8, "guidance": 1.5}
    told = usual | options
    assert {name: engines.calls["backbone"].get(name) for name in usual} == {name: told[name] for name in usual}
    assert "min_share" not in engines.calls["backbone"]
    assert engines.calls["backbone"]["min_frames"] == [10 if "min_share" in options else 1]
    own = engines.configs["superres"].sampling.to_dict()
    assert {name: engines.calls["superres"][name] for name in own} == own and own["levels"] == 3
    assert engines.produced["sampling"] == {"backbone": told, "superres": own}


def test_every_request_has_its_own_prompt_seed_and_length(engines):
    khala.generate([ONE, TWO], "out", superres="superres")
    backbone, superres = engines.calls["backbone"], engines.calls["superres"]
    words = models.tokenizer(engines.configs["backbone"].model)
    asked = (ONE.prompt, TWO.prompt)
    assert backbone["prompts"] == [compose(prompt, words, keep_description=True, limit=40) for prompt in asked]
    assert superres["prompts"] == [compose(prompt, words, keep_description=False, limit=40) for prompt in asked]
    assert backbone["prompts"][0] != superres["prompts"][0]
    assert backbone["unprompted"] == [compose(Prompt(seconds=prompt.seconds), words) for prompt in asked]
    assert backbone["seeds"] == superres["seeds"] == [5, 6]
    assert backbone["lengths"] == [(20, 20), (10, 10)] and backbone["min_frames"] == [1, 1]
    assert backbone["sizes"] == [32] * 2 and superres["sizes"] == [32] * 4
    assert backbone["eos"] == words.vocabulary.eos
    assert superres["markers"] == [words.vocabulary.task_marker(level) for level in range(4)]
    assert [codes_TK.shape for codes_TK in superres["codes"]] == [(20, 2), (10, 2)]
    assert backbone["given"] is None and superres["known"] is None
    assert backbone["model"] == "backbone, compact and unstacked" and superres["model"].name == "superres, compact"
    assert [(song.codes_PS.shape, song.versions["backbone"].shape, song.ended) for song in engines.songs] == [
        ((20, 4), (20, 2), True),
        ((10, 4), (10, 2), False),
    ]


def test_weights_as_they_were_stored_are_let_go_before_decoding(engines):
    khala.generate([ONE], "out", superres="superres")
    assert engines.held == [None, None, None]


def test_levels_left_out_are_all_of_them(engines):
    engines.configs["superres"].sampling.levels = 0
    khala.generate([ONE], "out", superres="superres")
    assert engines.calls["superres"]["levels"] == 4


def test_a_recording_is_what_both_models_go_on_from(engines):
    khala.generate([ONE, TWO], "out", superres="superres", audio="in.wav", options={"min_share": 0.6})
    given = engines.calls["backbone"]["given"]
    assert len(given) == 2
    for levels in given:
        np.testing.assert_array_equal(levels, engines.known_TK[:, :2].T)
    np.testing.assert_array_equal(engines.calls["superres"]["known"], engines.known_TK.T)
    assert engines.calls["backbone"]["min_frames"] == [12, 9]  # a share of what is asked, and more than what is known
    assert engines.produced["audio"] == "in.wav"
    with pytest.raises(UserError, match=r"the audio lasts 0\.8 s: ask for more --seconds than that"):
        short, plain = request("short", 1, 0.8), {"guidance": 1.0}
        khala.generate([ONE, short], "out", backbone="backbone", audio="in.wav", options=plain)


def test_the_runs_that_made_each_other_are_found(engines):
    assert khala.generate([ONE], "out", superres="superres", backbone_too=True) == ["told"]
    runs = {"codec": "codec of tokens", "backbone": "backbone", "superres": "superres"}
    assert engines.produced["runs"] == runs and engines.produced["steps"] == {"codec": 6, "backbone": None}
    assert engines.produced["versions"] == ("backbone",) == catalogue.named("khala").versions
    assert engines.loaded == [
        ("codec of tokens", 6),
        ("backbone", ("backbone",), None),
        ("superres", ("superres",), None),
    ]


def test_other_runs_are_taken_where_they_are_named(engines):
    engines.configs["other"] = engines.configs["backbone"].copy_and_resolve_references()
    khala.generate([ONE], "out", superres="superres", backbone="other", codec="codec")
    assert engines.produced["runs"] == {"codec": "codec", "backbone": "other", "superres": "superres"}
    assert engines.produced["steps"] == {"codec": None} and engines.loaded[0] == ("codec", None)
    engines.configs["tuned"] = engines.configs["superres"].copy_and_resolve_references()
    engines.configs["tuned"].init_from = "superres@90"  # which was started from the backbone
    khala.generate([ONE], "out", superres="tuned", codec="codec")
    assert engines.produced["runs"] == {"codec": "codec", "backbone": "backbone", "superres": "tuned"}
    assert engines.loaded[-2] == ("backbone", ("backbone",), None)
    engines.configs["superres"].init_from = ""
    with pytest.raises(UserError, match="superres was not started from a backbone: give one with --backbone"):
        khala.generate([ONE], "out", superres="superres")


def test_the_step_that_a_run_was_started_from_is_the_one_that_plays(engines, monkeypatch):
    monkeypatch.setattr(khala.checkpoint, "steps", lambda run: {"backbone": [60, 120]}[run])
    engines.configs["superres"].init_from = "backbone@60"
    khala.generate([ONE], "out", superres="superres")
    assert engines.loaded[1:] == [("backbone", ("backbone",), None, 60), ("superres", ("superres",), None)]
    assert engines.produced["runs"]["backbone"] == "backbone"
    assert engines.produced["steps"] == {"codec": 6, "backbone": 60}
    engines.configs["superres"].init_from = "backbone@30"
    with pytest.raises(UserError, match="superres was started from backbone@30, which is gone: give a backbone with"):
        khala.generate([ONE], "out", superres="superres")


def test_models_on_a_mesh_lie_on_the_devices_of_all_processes(engines, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [])
    khala.generate([ONE], "out", backbone="backbone", mesh={"fsdp": 8}, rows=3)
    mesh = engines.produced["mesh"]
    assert mesh.size == 8 and engines.loaded[1] == ("backbone", ("backbone",), mesh) and engines.produced["rows"] == 3


@pytest.mark.parametrize("role", ["backbone", "superres"])
def test_a_prompt_without_words_is_not_guided_by_them_and_nothing_is_drawn(engines, role):
    """Whatever the others hold: refused before the first batch, or the length alone would be guided by itself."""
    engines.configs["backbone"].sampling.guidance = 1.0
    bare = request("bare", 1)
    khala.generate([ONE, bare], "out", superres="superres")
    engines.produced = None
    engines.configs[role].sampling.guidance = 1.5
    with pytest.raises(UserError, match=rf"^bare: guidance 1\.5 of the {role} has nothing to drop: [^\n]+$"):
        khala.generate([ONE, bare], "out", superres="superres", rows=1)
    assert engines.produced is None


def test_what_a_song_takes_of_memory_is_told_of_both_models(engines):
    khala.generate([ONE], "out", superres="superres", options={"guidance": 1.0})
    backbone, superres = engines.produced["needs"]()
    assert backbone == lm.need([ONE], engines.configs["backbone"], 1.0)
    assert superres == lm.need([ONE], engines.configs["superres"], 1.0) != backbone
    khala.generate([ONE], "out", backbone="backbone")
    (guided,) = engines.produced["needs"]()
    assert guided.song == 2 * backbone.song


def test_a_backbone_alone_makes_its_own_levels(engines):
    khala.generate([ONE], "out", backbone="backbone")
    assert "superres" not in engines.calls and set(engines.produced["sampling"]) == {"backbone"}
    assert engines.songs[0].codes_PS.shape == (20, 2)


def test_models_of_another_codec_and_songs_too_long_are_refused(engines):
    engines.configs["superres"].tokens.codes = 33
    words = r"codec of tokens makes other tokens than superres knows \(codes is 32 and not 33\)"
    with pytest.raises(UserError, match=words):
        khala.generate([ONE], "out", superres="superres")
    prompt = compose(ONE.prompt, models.tokenizer(engines.configs["backbone"].model), limit=40)
    most = (200 - len(prompt)) // 2 / RATE
    khala.generate([request("x", 0, most, tags="slow", lyrics="la", description="long")], "out", backbone="backbone")
    with pytest.raises(UserError, match=rf"x: .* context of 200 positions holds {most:.1f} s behind this prompt"):
        long = request("x", 0, most + 0.1, tags="slow", lyrics="la", description="long")
        khala.generate([long], "out", backbone="backbone")
    with pytest.raises(UserError, match=r"one: Khala takes words, not a clip: leave --like=a\.wav out"):
        khala.generate([request("one", 1, like="a.wav")], "out", backbone="backbone")
