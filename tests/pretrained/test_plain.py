"""Chroma as features: which notes, how loud, when something begins; and on which grid."""

import numpy as np
import pytest
from flax import nnx

from hiermusic.errors import UserError
from hiermusic.pretrained import encoder
from hiermusic.pretrained.plain import FEATURES, ChromaConfig

RATE = ChromaConfig.sample_rate


def tones(*notes, seconds=1.0, size=0.1):
    """Tones of these MIDI numbers with two overtones each."""
    t = np.arange(round(seconds * RATE)) / RATE
    hz = [440 * 2 ** ((note - 69) / 12) * partial for note in notes for partial in (1, 2)]
    return (size * sum(np.sin(2 * np.pi * one * t) for one in hz)).astype(np.float32)


def features(*wavs, **config):
    return np.asarray(ChromaConfig(**config).make(rngs=nnx.Rngs(0))(np.stack(wavs)))


@pytest.mark.parametrize(
    ("notes", "heard"), [((60,), {0}), ((69,), {9}), ((60, 64, 67), {0, 4, 7}), ((50, 65, 57), {2, 5, 9})]
)
def test_the_pitch_classes_that_sound_stand_out(notes, heard):
    inner_Tn = features(tones(*notes))[0, 4:-4, :12]
    assert all(set(np.argsort(one_n)[-len(heard) :]) == heard for one_n in inner_Tn)
    np.testing.assert_allclose(np.linalg.norm(inner_Tn, axis=1), 1, atol=0.05)


def test_an_octave_and_loudness_change_no_pitch_class():
    one, octave, soft = features(tones(57), tones(69), tones(57, size=0.02))[:, 4:-4]
    np.testing.assert_allclose(one[:, :12], octave[:, :12], atol=0.15)
    np.testing.assert_allclose(one[:, :12], soft[:, :12], atol=0.1)
    assert (one[:, 12] - soft[:, 12]).min() > 0.3 * 14 / 40 - 0.01  # 14 dB


def test_silence_has_no_pitch_and_noise_hardly_any():
    quiet, noise = features(np.zeros(RATE, np.float32), 1e-4 * np.random.default_rng(0).normal(size=RATE).astype("f4"))
    np.testing.assert_array_equal(quiet, 0)
    assert np.linalg.norm(noise[:, :12], axis=1).max() < 0.3


def test_a_stroke_is_told_where_it_falls():
    wav_L = 0.01 * np.random.default_rng(0).normal(size=RATE).astype(np.float32)
    wav_L[12 * 640 + 100 : 12 * 640 + 1500] *= 30
    stroke_T = features(wav_L)[0, :, 13]
    assert stroke_T.argmax() == 12 and stroke_T[12] > 5 * np.median(stroke_T)
    np.testing.assert_allclose(features(wav_L, strokes=3.0)[0, :, 13], 3 * stroke_T, rtol=1e-5)


def test_frames_are_those_that_lie_whole_in_the_sound():
    config = ChromaConfig()
    for samples, frames in ((640, 1), (1279, 1), (1280, 2), (160_000, 250)):
        assert encoder.frame_count(config, samples) == frames
        assert features(np.zeros(samples, np.float32)).shape == (1, frames, config.width)


def test_what_is_behind_the_last_frame_changes_nothing():
    wav_L = tones(60, 64)
    np.testing.assert_array_equal(features(wav_L), features(np.concatenate([wav_L, np.ones(600, np.float32)])))


@pytest.mark.parametrize("kind", FEATURES)
@pytest.mark.parametrize("samples", [0, 1, 399])
def test_less_than_a_frame_is_filled_with_silence_and_is_no_sound_to_embed(kind, samples):
    config, short_L = FEATURES[kind](), tones(60)[:samples]
    features = config.make(rngs=nnx.Rngs(0))
    filled_L = np.pad(short_L, (0, config.span - samples))
    np.testing.assert_array_equal(features(short_L[None]), features(filled_L[None]))
    with pytest.raises(UserError, match=rf"a sound of {samples} samples is shorter than one frame, which has "):
        encoder.embed(features, short_L)
