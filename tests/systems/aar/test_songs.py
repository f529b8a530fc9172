"""What AAR's generation asks of the decoding engines: settings, seeds, prompts, what is known; no model is made."""

import weakref
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import get_abstract_mesh

from hiermusic.errors import UserError
from hiermusic.systems.aar import songs as aar_songs
from hiermusic.tokens.visibility import Visibility

from ..fakes import configuration, request


class Stored:
    """A token model's weights as a checkpoint has them."""

    def compact(self) -> SimpleNamespace:
        return SimpleNamespace(unstack=lambda: "the model")


@pytest.fixture(params=["lm", "ar_baseline"])
def prior(request, monkeypatch):
    """AAR or its baseline: a window of 8 frames, and the engines as recorders."""
    scale = request.param == "lm"
    kind = (
        {"quantiser": "multiscale", "scales": (1, 2, 8), "phi_count": 2}
        if scale
        else {"quantiser": "residual", "scales": ()}
    )
    config = configuration(f"aar/{request.param}:tiny", {"levels": 3, "codes": 32, **kind})
    if not scale:
        config.model.window = 8
    config.sampling.update({"temperature": 0.9, "top_k": 7, "top_p": 0.8, "guidance": 1.5})
    config.data.path = "tokens"
    packet = 40 if scale else 5  # samples of a packet of codes
    coder = SimpleNamespace(sample_rate=100, packet=packet, channels=1)
    model = SimpleNamespace(
        quantiser="the quantiser",
        unconditional=np.full(3, 0.5),
        context=lambda codes_BPS: np.repeat(codes_BPS[..., None], 2, 2)[:, :1] * 1.0,
        config=SimpleNamespace(next_scale=scale, context=2, lm=SimpleNamespace(levels=3, codes=32)),
    )
    it = SimpleNamespace(config=config, calls=[], loaded=[], produced=None, scale=scale, coder=coder, known=(None, 0))
    it.weights, it.held = [], []

    def by_scale(lm, quantiser, cond_BU, **how):
        it.held += [weights() for weights in it.weights]
        it.calls.append({"lm": lm, "quantiser": quantiser, "cond": cond_BU, **how})
        how["progress"](how["windows"], how["windows"])
        return np.full((len(how["seeds"]), how["windows"], 3), 9)

    def by_token(lm, prompts, layouts, **how):
        it.held += [weights() for weights in it.weights]
        it.calls.append({"lm": lm, "prompts": prompts, "layouts": layouts, **how})
        window_TK = np.full((8, 3), 10 + len(it.calls))
        if how["given"] is not None:
            window_TK[: how["given"][0][0].size] = np.stack(how["given"][0], 1)
        return [SimpleNamespace(codes=window_TK)] * len(prompts)

    def load(run, *stages, mesh=None):
        it.loaded.append((run, stages, mesh))
        stored = Stored()
        it.weights.append(weakref.ref(stored))
        return config, SimpleNamespace(lm=stored, **vars(model))

    def load_codec(run, step):
        it.loaded.append((run, step))
        return coder

    def produce(requests, out, make, runs, sampling, audio, steps, rows, mesh, needs):
        it.produced = {"runs": runs, "sampling": sampling, "audio": audio, "steps": steps, "requests": requests}
        it.produced |= {"rows": rows, "mesh": mesh, "needs": needs}
        it.songs = make(requests)
        return ["told"]

    monkeypatch.setattr(aar_songs.workdirs, "read", lambda run, *stages: config)
    monkeypatch.setattr(aar_songs.workdirs, "load", load)
    monkeypatch.setattr(aar_songs.workdirs, "load_codec", load_codec)
    monkeypatch.setattr(aar_songs, "codec_of", lambda config: ("codec of tokens", 6))
    monkeypatch.setattr(aar_songs, "check_codec", lambda config, run, codec: it.loaded.append(("checked", *codec)))
    monkeypatch.setattr(aar_songs, "check_codebooks", lambda coder, codec, model, lm: it.loaded.append((codec, lm)))
    monkeypatch.setattr(aar_songs, "_condition", lambda request, config, clap: request.like)
    monkeypatch.setattr(aar_songs, "_told", lambda coder, config, like: np.full(3, float(like[0])))
    monkeypatch.setattr(aar_songs, "_asked", lambda what, model, codes: getattr(model, what.__name__)(codes))
    monkeypatch.setattr(aar_songs, "_known", lambda coder, path: it.known)
    monkeypatch.setattr(aar_songs.nextscale, "generate", by_scale)
    monkeypatch.setattr(aar_songs.autoregressive, "generate", by_token)
    monkeypatch.setattr(aar_songs.songs, "produce", produce)
    return it


A, B = request("a", 5, 1.0, like="1.wav"), request("b", 6, 0.5, like="2.wav")


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"top_k": 0}, {"top_p": 0.5}, {"guidance": 3.0}])
def test_aars_settings_reach_its_engine(prior, options):
    assert aar_songs.generate([A], "out", lm="lm", options=options) == ["told"]
    told = {"temperature": 0.9, "top_k": 7, "top_p": 0.8, "guidance": 1.5} | options
    assert all({name: call[name] for name in told} == told for call in prior.calls)
    assert prior.produced["sampling"] == {"lm": told} and prior.produced["steps"] == {"codec": 6}
    assert prior.produced["runs"] == {"codec": "codec of tokens", "lm": "lm"}
    assert prior.loaded == [
        ("checked", "codec of tokens", 6),
        ("codec of tokens", 6),
        ("lm", ("lm", "ar_baseline"), None),
        ("codec of tokens", "lm"),
    ]


def test_every_piece_has_its_own_clip_seed_and_length(prior):
    aar_songs.generate([A, B], "out", lm="lm", codec="codec")
    call = prior.calls[0]
    np.testing.assert_array_equal(call["cond"], [[1] * 3, [2] * 3])
    assert prior.produced["steps"] == {"codec": None} and prior.loaded[1] == ("codec", None)
    if prior.scale:
        assert call["seeds"] == [5, 6] and call["windows"] == 3 and call["context"] == 2
        assert (call["lm"], call["quantiser"], call["before_BcE"]) == ("the model", "the quantiser", None)
        np.testing.assert_array_equal(call["uncond_U"], [0.5] * 3)
        assert [len(song.codes_PS) for song in prior.songs] == [3, 2]
    else:
        np.testing.assert_array_equal(call["uncond"], [0.5] * 3)
        assert call["prompts"] == [[0], [0]] and call["sizes"] == [32] * 3 and call["lm"] == "the model"
        assert [layout.visibility for layout in call["layouts"]] == [Visibility.causal()] * 2
        assert [len(song.codes_PS) for song in prior.songs] == [20, 10]
    assert [(song.length, song.skip, song.ended) for song in prior.songs] == [(100, 0, False), (50, 0, False)]


def test_weights_as_they_were_stored_are_let_go_before_decoding(prior):
    aar_songs.generate([A], "out", lm="lm")
    assert prior.held and not any(prior.held)


def test_clips_are_listened_to_one_by_one(prior, monkeypatch):
    """So that what a song sounds like does not depend on the others."""
    told = {"1.wav": np.full((2, 3), 4.0), "2.wav": np.full(3, 2.0)}
    monkeypatch.setattr(aar_songs, "_told", lambda coder, config, like: told[like])
    monkeypatch.setattr(aar_songs, "_asked", lambda what, model, codes: what.__name__ == "listen" and codes.sum(1) / 8)
    aar_songs.generate([A, B], "out", lm="lm")
    np.testing.assert_array_equal(prior.calls[0]["cond"], [[1.0] * 3, [2.0] * 3])


def test_a_song_takes_a_cache_of_one_window_and_another_for_guidance(prior):
    prior.config.model.context = 2
    aar_songs.generate([A], "out", lm="lm", options={"guidance": 1.0})
    (plain,) = prior.produced["needs"]()
    trunk = aar_songs.prior_config(prior.config).lm.transformer
    positions = 2 + 11 if prior.scale else 24
    assert plain.song == trunk.cache_bytes(positions) and plain.weights > 4 * trunk.layers * trunk.width**2
    aar_songs.generate([A], "out", lm="lm", options={"guidance": 2.0})
    assert prior.produced["needs"]()[0].song == 2 * plain.song


def test_models_on_a_mesh_lie_on_the_devices_of_all_processes(prior, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [])
    seen = []
    monkeypatch.setattr(aar_songs, "_told", lambda *_: seen.append(get_abstract_mesh()) or np.zeros((1, 3)))
    monkeypatch.setattr(aar_songs, "_asked", lambda *_: seen.append(get_abstract_mesh()) or np.zeros((1, 3)))
    aar_songs.generate([A], "out", lm="lm", mesh={"fsdp": 8}, rows=3)
    mesh = prior.produced["mesh"]
    assert mesh.size == 8 and prior.loaded[2] == ("lm", ("lm", "ar_baseline"), mesh) and prior.produced["rows"] == 3
    assert [one.empty for one in seen] == [True, False]  # the codec has a device of its own


@pytest.mark.parametrize("prior", ["ar_baseline"], indirect=True)
def test_windows_of_the_baseline_begin_with_half_of_the_one_before_and_draw_anew(prior):
    aar_songs.generate([A, B], "out", lm="lm")
    assert [call["given"] is None for call in prior.calls] == [True, False, False, False]  # 8 + 4 + 4 + 4 frames
    for call in prior.calls[1:]:
        assert [[codes.size for codes in levels] for levels in call["given"]] == [[4] * 3] * 2
    np.testing.assert_array_equal(prior.songs[0].codes_PS[:, 0], [11] * 8 + [12] * 4 + [13] * 4 + [14] * 4)
    seeds = [tuple(call["seeds"]) for call in prior.calls]
    drawn = {seed for pair in seeds for seed in pair}
    assert len(drawn) == 8 and all(0 <= seed < 2**32 for seed in drawn)
    prior.calls.clear()
    aar_songs.generate([B], "out", lm="lm")  # its length ends after two windows
    assert [call["seeds"] for call in prior.calls] == [[pair[1]] for pair in seeds[:2]]


def test_a_recording_is_what_aar_goes_on_from(prior):
    rows = 1 if prior.scale else 8
    known_PS = np.arange(rows * 3).reshape(rows, 3)
    prior.known = (known_PS, 7)
    aar_songs.generate([A, A], "out", lm="lm", audio="in.wav")
    call = prior.calls[0]
    if prior.scale:
        assert call["windows"] == 2  # 107 samples are three windows, of which one is known
        assert call["before_BcE"].shape[0] == 2
        np.testing.assert_array_equal(call["before_BcE"][1, 0], np.repeat(known_PS[-1][0], 2))
    else:
        np.testing.assert_array_equal(call["given"][1], known_PS[4:].T)
    for song in prior.songs:
        np.testing.assert_array_equal(song.codes_PS[:rows], known_PS)
        assert (song.length, song.skip, len(song.codes_PS)) == (107, 7, 3 if prior.scale else 22)
    assert prior.produced["audio"] == "in.wav"
    with pytest.raises(UserError, match=r"the audio lasts 0\.3 s: ask for more --seconds than that"):
        aar_songs.generate([request("a", 1, 0.3, like="1")], "out", lm="lm", audio="in.wav")


def test_a_recording_is_encoded_behind_the_silence_that_fills_its_first_window_up(monkeypatch):
    wav_LC, heard = np.arange(1.0, 41.0).reshape(20, 2), []
    monkeypatch.setattr(aar_songs.files, "read", lambda *_: (wav_LC, 100))
    monkeypatch.setattr(aar_songs, "encode_long", lambda coder, wav: heard.append(wav) or np.zeros((3, 5)))
    codes_PS, skip = aar_songs._known(SimpleNamespace(packet=8, sample_rate=100, channels=2), "in.wav")
    assert (codes_PS.shape, codes_PS.dtype, skip) == ((3, 5), np.int32, 4)
    np.testing.assert_array_equal(heard, [np.concatenate([np.zeros((4, 2)), wav_LC])])


def test_what_goes_on_sounds_like_itself_where_nothing_else_is_named(prior):
    prior.known = (np.zeros((1, 3), int), 0)
    prior.config.model.listener = 4
    aar_songs.generate([A, request("c", 1)], "out", lm="lm", audio="9.wav")
    assert [one.like for one in prior.produced["requests"]] == ["1.wav", "9.wav"]
    prior.config.model.listener = 0
    aar_songs.generate([A], "out", lm="lm", audio="9.wav")
    assert [one.like for one in prior.produced["requests"]] == ["1.wav"]


def test_a_long_clip_is_heard_in_its_middle(monkeypatch):
    config = configuration("aar/lm:tiny")
    wav_LC = np.arange(100 * 100, dtype=np.float32)[:, None]
    monkeypatch.setattr(aar_songs.files, "read", lambda path: (wav_LC, 100))
    heard_LC, rate = aar_songs._condition(request("a", 0, like="clip.wav"), config)
    assert rate == 100 and len(heard_LC) == 3000 and heard_LC[0, 0] == 3500
    with pytest.raises(UserError, match="a: AAR takes no words, but what to sound like"):
        aar_songs._condition(request("a", 0, like="clip.wav", tags="slow"), config)


def test_a_recording_ends_where_its_last_row_does(monkeypatch):
    coder, encoded = SimpleNamespace(sample_rate=100, packet=40, channels=1), []
    monkeypatch.setattr(aar_songs.files, "read", lambda path, rate, channels: (np.ones((90, 1)), rate))
    monkeypatch.setattr(aar_songs, "encode_long", lambda codec, wav_LC: encoded.append(wav_LC) or np.zeros((3, 2)))
    codes_PS, skip = aar_songs._known(coder, "in.wav")
    assert skip == 30 and codes_PS.dtype == np.int32
    np.testing.assert_array_equal(encoded[0][:, 0], [0] * 30 + [1] * 90)


def test_a_clip_is_heard_as_the_windows_that_its_music_fills(monkeypatch):
    """At the codec's rate and channels; a vector is what it is."""
    config, encoded, filled = configuration("aar/lm:tiny"), [], []
    make = SimpleNamespace(
        filled=lambda codes_PS, seconds: filled.append(seconds) or codes_PS[:3], clip=lambda codes_PS: codes_PS[::-1]
    )
    codes_PS = np.arange(8).reshape(4, 2)
    monkeypatch.setattr(aar_songs, "windows", lambda config, data: make)
    monkeypatch.setattr(aar_songs, "encode_long", lambda coder, wav_LC: encoded.append(wav_LC) or codes_PS)
    coder = SimpleNamespace(sample_rate=1000, channels=1)
    wav_LC = np.stack([np.full(3000, 0.5), np.zeros(3000)], axis=1).astype(np.float32)
    told = aar_songs._told(coder, config, (wav_LC, 2000))
    np.testing.assert_array_equal(told, codes_PS[2::-1])
    assert filled == [1.5] and encoded[0].shape == (1500, 1)
    np.testing.assert_allclose(encoded[0][100:-100], 0.25, atol=1e-3)
    vector_U = np.ones(3)
    assert aar_songs._told(coder, config, vector_U) is vector_U


def test_words_and_clips_become_the_vectors_of_a_clap(monkeypatch):
    """For a model that takes these; what means nothing to a model is told."""
    config = configuration("aar/lm:tiny", cond=3)
    config.model.listener = 0
    made = {"slow piano": np.array([0.0, 3.0, 4.0]), "clip.wav": np.array([2.0, 0.0, 0.0])}
    monkeypatch.setattr(aar_songs, "_of_words", lambda folder, text: made[text])
    monkeypatch.setattr(aar_songs, "_of_clip", lambda folder, path: made[path])
    worded = request("a", 0, description="slow piano")
    np.testing.assert_allclose(aar_songs._condition(worded, config, "out/clap"), [0.0, 0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(aar_songs._condition(request("a", 0, like="clip.wav"), config, "out/clap"), [1, 0, 0])
    for words, one, clap in (
        ("a: words need a CLAP that knows them", worded, None),
        ("a: give words or --like=clip.wav, not both", request("a", 0, like="clip.wav", description="x"), "out/clap"),
        ("clip.wav: this model was trained on CLAP vectors", request("a", 0, like="clip.wav"), None),
        ("a: AAR takes no words, but .* leave all but --like, or --text out", request("a", 0, tags="slow"), "out/clap"),
        ("a: give --text, or --like=VECTOR.npy", request("a", 0), "out/clap"),
    ):
        with pytest.raises(UserError, match=words):
            aar_songs._condition(one, config, clap)
    config.model.listener = 4
    with pytest.raises(UserError, match="a: AAR takes no words"):
        aar_songs._condition(worded, config, None)
    with pytest.raises(UserError, match="--clap=out/clap: this model listens to a clip itself"):
        aar_songs._condition(request("a", 0, like="clip.wav"), config, "out/clap")


def test_what_a_clap_hears_and_reads(monkeypatch, tmp_path):
    """At its own rate, and of a long clip the mean; its own tokenizer."""
    from hiermusic.pretrained.clap import Clap

    class Ear(Clap):
        def __init__(self):
            self.config = SimpleNamespace(sample_rate=480, text="its text")

        def read(self, ids_BS):
            return np.asarray(ids_BS) * 2.0

    loaded = []
    ears = {"clap": Ear(), "hubert": "another"}
    monkeypatch.setattr(aar_songs.encoders, "load", lambda folder: loaded.append(folder) or ears[folder])
    aar_songs._clap.cache_clear()
    monkeypatch.setattr(aar_songs.files, "read", lambda path, rate, channels: (np.full((rate, channels), 0.5), rate))
    heard = lambda model, wav_L: np.array([[1.0, wav_L[0]], [3.0, len(wav_L)]])  # noqa: E731
    monkeypatch.setattr(aar_songs.encoders, "embed", heard)
    np.testing.assert_array_equal(aar_songs._of_clip("clap", "long.wav"), [2.0, 240.25])
    monkeypatch.setattr(aar_songs.claps, "ids_of", lambda texts, folder, config: [[len(texts[0]), folder == "clap"]])
    np.testing.assert_array_equal(aar_songs._of_words("clap", "slow"), [8.0, 2.0])
    assert loaded == ["clap"]  # once for all that is asked for
    with pytest.raises(UserError, match="--clap=hubert is another encoder"):
        aar_songs._of_words("hubert", "slow")
