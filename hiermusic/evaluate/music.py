"""Measures of music on sounds of any origin, as rows that stand beside those of real music and of the anchors."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from hiermusic.audio import anchors, measure, music
from hiermusic.evaluate.scores import interval

MEASURES = {  # name: (heading, decimals)
    "tonality": ("tonality", 2),
    "chroma_entropy": ("chroma entropy, bits", 2),
    "onset_regularity": ("onset regularity", 2),
    "chroma_agreement": ("chroma agreement", 2),
    "beat_agreement": ("beat agreement", 2),
    "loudness": ("loudness, LUFS", 1),
    "peak": ("peak", 2),
    "clipped": ("clipped, %", 2),
    "length": ("length made / asked", 2),
    "nearest": ("to the nearest training song, dB", 2),
    "apart": ("to the nearest of the others, dB", 2),
}
ANCHORS = {"noise shaped like it": anchors.noise_like, "its frames shuffled": anchors.shuffled_frames}

Wave = Float[np.ndarray, "L C"]


def describe(wav_LC: Wave, sample_rate: int) -> dict[str, float]:
    """The measures that a sound has by itself: pitch, harmony, rhythm, loudness, peak, clipped share in per cent."""
    wav_L1 = music.mono(wav_LC, sample_rate)[:, None]
    loudness = measure.loudness(wav_LC, sample_rate)
    return {
        "tonality": music.tonality(wav_L1, music.RATE),
        "chroma_entropy": music.chroma_entropy(wav_L1, music.RATE),
        "onset_regularity": music.onset_regularity(wav_L1, music.RATE),
        "loudness": loudness if np.isfinite(loudness) else np.nan,
        "peak": measure.peak(wav_LC),
        "clipped": 100 * measure.clipped_share(wav_LC),
    }


class Lead(NamedTuple):
    """What another sound may follow: the chroma of every frame, and when the beats are."""

    chroma_Tn: Float[np.ndarray, "T n"]
    beats_N: Float[np.ndarray, "N"]


def lead(wav_LC: Wave, sample_rate: int) -> Lead:
    """Harmony and beats of a sound."""
    wav_L1 = music.mono(wav_LC, sample_rate)[:, None]
    return Lead(music.chroma(wav_L1, music.RATE, audible=False), music.beats(wav_L1, music.RATE))


def agreement(ref: Lead, est: Lead) -> dict[str, float]:
    """The measures that a sound has beside another that it should follow."""
    return {
        "chroma_agreement": music.chroma_agreement(ref.chroma_Tn, est.chroma_Tn),
        "beat_agreement": music.beat_agreement(ref.beats_N, est.beats_N),
    }


def anchored(wav_LC: Wave, sample_rate: int, seed: int = 0) -> dict[str, Wave]:
    """A sound, and what each of `ANCHORS` makes of it, by name."""
    return {"": wav_LC} | {name: make(wav_LC, sample_rate, seed) for name, make in ANCHORS.items()}


def table(rows: Mapping[str, list[Mapping[str, float]]], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Measures of several sounds a row -> their `scores.interval`s, of each row those that it has."""
    return {
        name: {key: interval([one[key] for one in sounds], seed) for key in MEASURES if key in sounds[0]}
        for name, sounds in rows.items()
        if sounds
    }
