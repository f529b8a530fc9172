"""Measures of music tell a song from noise shaped like it and from its own frames in another order."""

import math

import numpy as np
import pytest

from hiermusic.audio import anchors, files, music
from hiermusic.data import corpus

RATE = 22050


@pytest.fixture(scope="module")
def song():
    return next(s for s in corpus.corpus(9, seed=3, seconds_range=(6, 7)) if s.genre in ("pop", "rock", "dance"))


@pytest.fixture(scope="module")
def wav_LC(song):
    return files.resample(song.mix, song.sample_rate, RATE)


@pytest.fixture(scope="module")
def noise_LC(wav_LC):
    return anchors.noise_like(wav_LC, RATE, seed=1)


@pytest.fixture(scope="module")
def shuffled_LC(wav_LC):
    return anchors.shuffled_frames(wav_LC, RATE, seed=1)


def sine(*hertz: float, seconds: float = 3.0, rate: int = RATE) -> np.ndarray:
    time_L = np.arange(round(seconds * rate)) / rate
    return 0.1 * sum(np.sin(2 * np.pi * f * time_L) for f in hertz)[:, None]


def test_tonality_of_what_is_known():
    noise_LC = np.random.default_rng(0).normal(0, 0.1, (3 * RATE, 1))
    assert music.tonality(sine(220, 331, 1500), RATE) > 0.99
    assert music.tonality(noise_LC, RATE) < 0.1
    half = music.tonality(sine(440) + noise_LC * 10 ** (-3 / 20), RATE)  # most of the noise lies above 2 kHz
    assert 0.5 < half < music.tonality(sine(440), RATE)
    outside_LC = sine(5000, seconds=3) * 10
    assert music.tonality(outside_LC + noise_LC * 0.1, RATE) < 0.5  # only what lies in the band counts


def test_quiet_frames_do_not_count():
    tone_LC, hiss_LC = sine(440), 1e-4 * np.random.default_rng(0).normal(size=(3 * RATE, 1))
    assert music.tonality(np.concatenate([tone_LC, hiss_LC]), RATE) > 0.97


def test_tonality_is_the_same_at_every_rate(song, wav_LC):
    assert music.tonality(song.mix, song.sample_rate) == pytest.approx(music.tonality(wav_LC, RATE), abs=0.02)


def test_a_song_is_told_from_its_anchors(wav_LC, noise_LC, shuffled_LC):
    sounds = (wav_LC, shuffled_LC, noise_LC)
    tonality = [music.tonality(x, RATE) for x in sounds]
    assert tonality[0] > 0.8 > tonality[1] + 0.1 and tonality[1] > tonality[2] + 0.2 and tonality[2] < 0.25
    entropy = [music.chroma_entropy(x, RATE) for x in sounds]
    assert entropy[0] + 0.2 < entropy[1] < entropy[2] < math.log2(12)
    assert music.onset_regularity(wav_LC, RATE) > music.onset_regularity(shuffled_LC, RATE) + 0.2


def test_chroma_entropy_of_a_chord():
    one, three = ([440 * 2 ** (k / 12) for k in steps] for steps in ((0,), (0, 4, 7)))
    entropies = [music.chroma_entropy(sine(*hertz), RATE) for hertz in (one, three)]  # librosa's filters overlap
    assert entropies[0] < 1.3 < entropies[0] + 0.7 < entropies[1] < 2.6


def clicks(minute: float, seconds: float = 8.0, jitter: float = 0.0) -> np.ndarray:
    wav_L, draw = np.zeros(round(seconds * RATE)), np.random.default_rng(0)
    for at in np.arange(0.3, seconds - 0.3, 60 / minute):
        start = round((at + jitter * draw.uniform(-1, 1)) * RATE)
        wav_L[start : start + 400] += draw.normal(0, 0.3, 400)
    return wav_L[:, None]


@pytest.mark.parametrize("minute", [90.0, 113.7, 132.0])
def test_rhythm_of_a_metronome(minute):
    wav_LC = clicks(minute)
    assert music.tempo(wav_LC, RATE) == pytest.approx(minute, rel=0.01)
    assert music.onset_regularity(wav_LC, RATE) > 0.9 > 0.6 > music.onset_regularity(clicks(minute, jitter=0.2), RATE)


def test_agreement_of_two_tracks(wav_LC, song):
    def beats(one_LC, other_LC):
        return music.beat_agreement(*(music.beats(x_LC, RATE) for x_LC in (one_LC, other_LC)))

    def chroma(one_LC, other_LC):
        return music.chroma_agreement(*(music.chroma(x_LC, RATE, audible=False) for x_LC in (one_LC, other_LC)))

    assert beats(wav_LC, 0.3 * wav_LC) == 1 and beats(clicks(120), clicks(97)) < 0.6
    assert math.isnan(beats(wav_LC, 0 * wav_LC))
    assert chroma(wav_LC, 0.3 * wav_LC) == pytest.approx(1)
    assert chroma(sine(440), sine(440 * 2 ** (6 / 12))) < 0
    assert abs(chroma(wav_LC, wav_LC[::-1])) < 0.7


def test_distance_to_the_nearest(wav_LC):
    other_LC = next(corpus.corpus(1, seed=8, seconds_range=(4, 4))).mix
    spans = [music.spans(x, rate) for x, rate in ((wav_LC, RATE), (other_LC, 44100), (0.2 * wav_LC[RATE:], RATE))]
    assert music.distance(spans[0], spans[0]) == pytest.approx(0, abs=0.01)
    assert music.distance(spans[2], spans[0]) < 1 < 3 < music.distance(spans[0], spans[1])


def test_what_comes_back_is_alike():
    """Of `ABAB`, eight seconds each: a square of 32 parts whose blocks are alike or not."""
    rng = np.random.default_rng(0)
    time_L = np.arange(8 * RATE) / RATE
    a, b = (sum(np.sin(2 * np.pi * hertz * time_L) for hertz in chord) for chord in ((220, 277), (1400, 2900)))
    wav_LC = (np.concatenate([a, b, a, b]) + 1e-3 * rng.normal(size=32 * RATE))[:, None]
    alike_NN, step = music.self_similarity(wav_LC, RATE)
    assert step == 1 and alike_NN.shape in ((30, 30), (31, 31)) and np.allclose(alike_NN, alike_NN.T, atol=1e-5)
    assert alike_NN[2, 18] > 0.9 and alike_NN[10, 26] > 0.9 and alike_NN[2, 10] < -0.5
    coarse_NN, step = music.self_similarity(wav_LC, RATE, most=8)
    assert len(coarse_NN) <= 8 and 3 < step < 6
    assert music.self_similarity(np.zeros((RATE, 1)), RATE)[0].shape == (1, 1)


@pytest.mark.parametrize("measure", [music.tonality, music.chroma_entropy, music.onset_regularity, music.tempo])
def test_silence_and_scraps_have_no_figure(measure):
    assert math.isnan(measure(np.zeros((3 * RATE, 2)), RATE))
    assert math.isnan(measure(sine(440, seconds=0.05), RATE))


def test_anchors_keep_what_they_promise(wav_LC, noise_LC, shuffled_LC):
    assert noise_LC.shape == wav_LC.shape and noise_LC.dtype == np.float32
    rms = [np.sqrt(np.mean(np.square(x))) for x in (wav_LC, noise_LC)]
    assert rms[1] == pytest.approx(rms[0], rel=0.15)
    thirds = [[np.square(part).mean() for part in np.array_split(x, 12)] for x in (wav_LC, noise_LC)]
    assert np.corrcoef(*np.log(thirds))[0, 1] > 0.8
    assert sorted(shuffled_LC[:, 0]) == sorted(wav_LC[: len(shuffled_LC), 0])
    assert (shuffled_LC != anchors.shuffled_frames(wav_LC, RATE, seed=2)).any()
    assert (noise_LC != anchors.noise_like(wav_LC, RATE, seed=2)).any()
    assert anchors.noise_like(wav_LC[:100], RATE).shape == (100, 2)
    assert anchors.shuffled_frames(wav_LC[:100], RATE).shape == (0, 2)
