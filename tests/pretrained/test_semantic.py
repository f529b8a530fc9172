"""Tokens of meaning: the features that need no weights, how clusters are learnt, and how frames are counted."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from hiermusic import cli
from hiermusic.data.token_records import TokenSource
from hiermusic.data.tracks import Track
from hiermusic.errors import UserError
from hiermusic.pretrained import encoder, encoders, semantic
from hiermusic.pretrained.hubert import HubertConfig
from hiermusic.pretrained.plain import ChromaConfig, LogMelConfig
from hiermusic.pretrained.semantic import Semantic, SemanticConfig
from hiermusic.pretrained.source import Source
from hiermusic.systems import workdir


def noise(*shape, seed=0):
    return (0.3 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def test_log_mel_lies_on_huberts_grid():
    import librosa

    wav_BL = noise(2, 3 * 320 + 400 + 319)
    found_BTD = np.asarray(LogMelConfig().make(rngs=nnx.Rngs(0))(wav_BL))
    assert found_BTD.shape == (2, 4, 64)
    window = 0.5 - 0.5 * np.cos(2 * np.pi / 400 * np.arange(400))
    filters_DF = librosa.filters.mel(sr=16_000, n_fft=512, n_mels=64)
    for b in range(2):
        for t in range(4):
            size_F = abs(np.fft.rfft(wav_BL[b, 320 * t : 320 * t + 400] * window, 512))
            np.testing.assert_allclose(found_BTD[b, t], np.log(filters_DF @ size_F + 1e-3), atol=1e-3)


@pytest.mark.parametrize("config", [LogMelConfig(), HubertConfig()])
def test_ten_seconds_are_499_frames(config):
    counts = {400: 1, 719: 1, 720: 2, 48_000: 149, 160_000: 499, 160_080: 500}
    assert {length: encoder.frame_count(config, length) for length in counts} == counts
    assert SemanticConfig(config).facts.frame_rate == 50


def test_windows_change_nothing_where_a_frame_hears_itself_alone():
    model, whole = (Semantic(SemanticConfig(codes=7, window=w), rngs=nnx.Rngs(0)) for w in (0.3, 0.0))
    wav_LC = noise(320 * 61 + 400 + 77, 2)
    for one in (model, whole):
        one.clusters.codebooks[...] = one.features(noise(1, 320 * 6 + 400, seed=1))
    codes_TK = workdir.encoded(model, wav_LC)
    assert codes_TK.shape == (62, 1) and len(np.unique(codes_TK)) > 1
    np.testing.assert_array_equal(codes_TK, workdir.encoded(whole, wav_LC))
    points_TD = np.asarray(whole.features(wav_LC.mean(1)[None]))[0]
    book_VD = np.asarray(whole.clusters.codebooks[0])
    wanted_T = np.square(points_TD[:, None] - book_VD).sum(-1).argmin(1)
    np.testing.assert_array_equal(codes_TK[:, 0], wanted_T)


TINY = HubertConfig(
    width=16, layers=1, heads=2, ffn_width=8, conv_widths=(4,) * 7, position_kernel=4, position_groups=2, layer=1
)
LENGTHS = (1000, 7000, 640, 5000, 12_345, 5000, 999, 5000, 1280, 7000, 6999, 5000, 40_000, 640)


@pytest.mark.parametrize("features", [LogMelConfig(), ChromaConfig(), TINY], ids=["log_mel", "chroma", "hubert"])
def test_sounds_share_devices_and_have_the_tokens_of_each_alone(features, batches):
    """Fourteen sounds of nine lengths on eight devices, two of them of several windows: in their order, a batch of each
    length, or of few where silence may fill them up."""
    model = nnx.jit(lambda: Semantic(SemanticConfig(features, 9, window=0.4), rngs=nnx.Rngs(0)))()
    dice, sounds = np.random.default_rng(1), [noise(length, 2, seed=length) for length in LENGTHS]
    frames_ND = np.asarray(model.points(sounds[-2].mean(1)[None]))
    model.clusters.codebooks[...] = dice.choice(frames_ND, 9, replace=False)[None]
    found = list(workdir.encoded_each(model, iter(sounds)))
    assert [len(codes_TK) for codes_TK in found] == [encoder.frame_count(features, length) for length in LENGTHS]
    assert len(np.unique(np.concatenate(found))) > 4
    shared = batches.copy()
    for wav_LC, codes_TK in zip(sounds, found, strict=True):
        np.testing.assert_array_equal(codes_TK, workdir.encoded(model, wav_LC))
    assert len(shared) == len({shape[1] for shape in shared}) <= (6 if features.local else 9)
    assert all(shape[0] * shape[1] <= 8 * encoder._AT_ONCE * 16_000 for shape in shared)


def test_a_sound_that_silence_fills_up_has_the_features_of_its_own_length():
    """All lengths from one frame to two windows, where programs are few and the frames those of the sound itself."""
    for config in (LogMelConfig(width=5), ChromaConfig()):
        model = config.make(rngs=nnx.Rngs(0))
        for length in (1279, 9_001, 15_999):
            wav_L = noise(length, seed=length)
            alone_TD = encoder._applied(*nnx.split(model), wav_L[None])[0]
            np.testing.assert_allclose(encoder.embed(model, wav_L, 1.0), alone_TD, atol=2e-4)
        assert len({encoder._frames(model, np.zeros(n), 1.0).size for n in range(640, 16_641, 20)}) <= 50


def test_a_track_that_cannot_be_read_is_told_and_what_came_before_it_stays(tmp_path, monkeypatch):
    from hiermusic.data import audio_records, tokenise

    tracks = [Track(f"t{i}", lambda i=i: (noise(4000 + 300 * i, 1, seed=i), 16_000, {})) for i in range(8)]
    audio_records.write_audio(tracks, tmp_path / "audio", 16_000, 1, valid_fraction=0.0, progress=False)
    model = Semantic(SemanticConfig(codes=7), rngs=nnx.Rngs(0))
    made = partial(tokenise.tokenise, partial(workdir.encoded_each, model), tmp_path / "audio", tmp_path / "tokens")
    made = partial(made, model.hierarchy, 1, "model", shards=4, progress=False)
    whole = audio_records.AudioSource.track

    def track(self, index):
        if index == 5:
            raise UserError("track t5: its record is damaged")
        return whole(self, index)

    monkeypatch.setattr(audio_records.AudioSource, "track", track)
    with pytest.raises(UserError, match=r"^track t5: its record is damaged$"):
        made()
    names = sorted(path.name for path in (tmp_path / "tokens").glob("coarse*"))
    assert names == [f"coarse-{shard:05d}-of-00004.arrayrecord" for shard in (0, 1)]
    monkeypatch.undo()
    made()
    source = TokenSource(tmp_path / "tokens")
    for index, track in enumerate(source.tracks):
        wav_LC = audio_records.AudioSource(tmp_path / "audio").track(index)
        np.testing.assert_array_equal(source[index]["codes"], workdir.encoded(model, wav_LC))
        assert track["id"] == f"t{index}"


class Points(nnx.Module):
    """Features that are what is given."""

    def __call__(self, points_BTD):
        return points_BTD


def learner(codes, dead_share=0.0):
    model = Semantic(SemanticConfig(LogMelConfig(width=2), codes, dead_share=dead_share), rngs=nnx.Rngs(0))
    model.features = Points()
    return model


def test_clusters_are_the_means_of_all_points_that_were_theirs():
    """Batch after batch, as one mean over all of them would be."""
    dice = np.random.default_rng(0)
    centres = np.array([[0, 0], [10, 0], [0, 10], [10, 10]], np.float32)
    batches = [centres[dice.integers(4, size=(2, 50))] + dice.normal(size=(2, 50, 2)) for _ in range(4)]
    batches = [batch.astype(np.float32) for batch in batches]
    model = learner(4)
    learn = nnx.jit(lambda model, points, key: model.learn(points, key))
    first = learn(model, batches[0], jax.random.key(0))
    rounded = {tuple(code) for code in np.rint(np.asarray(model.clusters.codebooks[0]) / 10)}
    assert rounded == {(0, 0), (0, 1), (1, 0), (1, 1)}
    begun = np.asarray(model.clusters.codebooks[0]).copy()
    counts = np.asarray(model.clusters.ema_counts[0]).copy()
    assert counts.sum() == 200  # the batch made them, and was then learnt from
    sums = begun * counts[:, None]
    for batch in batches[1:]:
        found = learn(model, batch, jax.random.key(1))
        points = batch.reshape(-1, 2)
        nearest = np.square(points[:, None] - begun).sum(-1).argmin(1)
        distance = np.square(points - (sums / counts[:, None])[nearest]).sum(1).mean()
        assert float(found["loss"]) == pytest.approx(distance, rel=1e-4)
        for code in range(4):
            sums[code] += points[nearest == code].sum(0)
            counts[code] += (nearest == code).sum()
    np.testing.assert_allclose(model.clusters.codebooks[0], sums / counts[:, None], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(model.clusters.ema_counts[0], counts)
    assert float(first["perplexity"]) == pytest.approx(4, rel=0.05) and float(first["usage"]) == 1
    held = model.measure(batches[0])
    assert 1.5 < float(held["loss"]) < 2.5  # two numbers of variance 1


def test_a_cluster_without_points_begins_anew_where_points_are():
    model = learner(4, dead_share=0.05)
    points = np.random.default_rng(3).normal(size=(1, 400, 2)).astype(np.float32)
    learn = nnx.jit(lambda model, points, key: model.learn(points, key))
    learn(model, points, jax.random.key(0))
    model.clusters.codebooks[...] = model.clusters.codebooks[...].at[0, 2].set(1e3)
    model.clusters.ema_counts[...] = model.clusters.ema_counts[...].at[0, 2].set(0.0)
    learn(model, points, jax.random.key(1))
    assert np.abs(model.clusters.codebooks[0, 2]).max() < 5
    learn(model, points, jax.random.key(2))
    assert float(model.clusters.ema_counts[0, 2]) > 10


def test_what_gives_no_frames_is_told(tmp_path):
    with pytest.raises(UserError, match=r"no encoder at out/none: give log_mel, chroma, or a folder that"):
        semantic.features_of("out/none", 9)
    (tmp_path / "config.json").write_text('{"stage": "lm"}')
    with pytest.raises(UserError, match=r"is a lm: give an imported encoder"):
        semantic.features_of(str(tmp_path), 9)
    for config in (LogMelConfig(width=8), ChromaConfig(strokes=2.0), HubertConfig(layers=2, layer=1)):
        assert semantic.of_fields(semantic.to_fields(config)) == config


def test_somebody_elses_clusters_name_the_frames():
    centres_VD = noise(5, 64)
    config, weights = semantic.of_centroids("km.npy", centres_VD, "log_mel", None)
    assert config.codes == 5 and config.features == LogMelConfig()
    model = Semantic(config, rngs=nnx.Rngs(0))
    state = nnx.to_pure_dict(nnx.state(model))
    assert {f"clusters.{name}" for name in state["clusters"]} == set(weights)
    assert all(weights[f"clusters.{name}"].shape == array.shape for name, array in state["clusters"].items())
    np.testing.assert_array_equal(weights["clusters.codebooks"][0], centres_VD)
    with pytest.raises(UserError, match=r"km.npy has clusters of 63 numbers, the features of log_mel have 64"):
        semantic.of_centroids("km.npy", noise(5, 63), "log_mel", None)


def test_clusters_of_log_mel_have_no_layer(tmp_path):
    source = Source(tmp_path / "km.npy", {}, {"cluster_centers_": noise(5, 64)})
    with pytest.raises(UserError, match=r"--layer=3: log_mel has no layers: leave it out"):
        encoders.read_kmeans(source, "log_mel", 3)


def test_the_card_of_clusters_tells_of_the_encoders_licence_too(tmp_path, monkeypatch):
    np.save(tmp_path / "km.npy", noise(5, 64))
    monkeypatch.setattr(workdir, "_licences", lambda place: ["cc-by-nc-4.0"])
    words = ["import", "kmeans", str(tmp_path / "km.npy"), str(tmp_path / "out"), "--encoder=log_mel", "--licence=mit"]
    cli.main(words)
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: other\n") and "of the licence cc-by-nc-4.0, mit." in card
