"""The Frechet distance against its definition, and what it is taken between."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.linalg import sqrtm

from hiermusic.audio import files
from hiermusic.evaluate import frechet, sections
from hiermusic.pretrained.vggish import VggishConfig


def by_definition(x_ND, y_MD):
    means, covariances = zip(*((z.mean(0), np.cov(z, rowvar=False)) for z in (x_ND, y_MD)), strict=True)
    root = sqrtm(covariances[0] @ covariances[1]).real
    return np.square(means[0] - means[1]).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)


@pytest.mark.parametrize(("n", "m"), [(50, 40), (200, 9), (300, 300)])
def test_it_is_its_definition(n, m):
    dice = np.random.default_rng(n)
    x_ND = dice.normal(size=(n, 8)) @ dice.normal(size=(8, 8))
    y_MD = dice.normal(size=(m, 8)) @ dice.normal(size=(8, 8)) + dice.normal(size=8)
    assert frechet.distance(x_ND, y_MD) == pytest.approx(by_definition(x_ND, y_MD), rel=1e-6)
    assert frechet.distance(x_ND, y_MD) == pytest.approx(frechet.distance(y_MD, x_ND), rel=1e-9)


def test_fewer_vectors_than_numbers():
    dice = np.random.default_rng(0)
    x_ND = dice.normal(size=(3, 40))
    assert frechet.distance(x_ND, x_ND) == pytest.approx(0.0, abs=1e-9)
    moved = frechet.distance(x_ND, x_ND[::-1] + 2.0)
    assert moved == pytest.approx(40 * 4.0)
    assert frechet.distance(x_ND[:1], x_ND[1:2]) == pytest.approx(np.square(x_ND[0] - x_ND[1]).sum())


def test_songs_are_compared_with_the_tracks_they_were_learnt_from(monkeypatch, tmp_path):
    """By an encoder that hears how loud each half of a sound is."""
    dice, rate = np.random.default_rng(1), 22_050
    tracks = [level * dice.normal(size=(rate, 1)).astype(np.float32) for level in (0.1, 0.11, 0.12, 0.1, 0.4)]
    corpus = SimpleNamespace(sample_rate=rate, train=[0, 1, 2], valid=[3], track=tracks.__getitem__)
    songs = []
    for number, wav_LC in enumerate((tracks[4], 0.9 * tracks[4])):
        path = tmp_path / f"{number}.wav"
        files.write(path, wav_LC, rate)
        songs.append(SimpleNamespace(paths={"songs": path}))
    heard = []

    def embed(model, wav_L):
        heard.append(len(wav_L))
        return np.array([[np.std(half), 0.5] for half in np.array_split(wav_L, 2)], np.float32)

    monkeypatch.setattr(frechet.encoders, "load", lambda folder: SimpleNamespace(config=VggishConfig()))
    monkeypatch.setattr(frechet.encoders, "embed", embed)
    found = frechet.evaluate_songs(songs, corpus, 5, "out/vggish")
    assert max(heard) == 16_000 and min(heard) > 15_000  # at the encoder's rate; an anchor is a little shorter
    assert found["embedding"] == "out/vggish" and found["family"] == "vggish"
    assert "torchvggish" in found["protocol"] and "soxr" in found["protocol"]
    assert found["reference"] == {"training_tracks": 3, "windows": 6}
    rows = found["rows"]
    assert list(rows) == ["songs", "held-out songs", "noise shaped like it", "its frames shuffled"]
    assert rows["songs"]["windows"] == 4 and rows["held-out songs"]["windows"] == 2
    assert rows["held-out songs"]["distance"] < 0.01 * rows["songs"]["distance"]
    section = sections.frechet(found)
    assert section.items[0].rows[0][0] == "songs"
