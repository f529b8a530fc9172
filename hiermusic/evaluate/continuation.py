"""Whether a song that goes on from a sound goes on as it began: measures without weights, beside chance and music."""

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from hiermusic.audio import files, measure, music
from hiermusic.console import warn
from hiermusic.data.audio_records import AudioSource
from hiermusic.errors import UserError
from hiermusic.evaluate.by_track import Each, columns, scores_of
from hiermusic.evaluate.scores import interval
from hiermusic.evaluate.songs import Made

MEASURES = {  # name: (heading, decimals)
    "harmony": ("harmony, correlation", 2),
    "tempo": ("same tempo, %", 0),
    "loudness": ("change of loudness, LU", 1),
    "distance": ("distance to the beginning, dB", 2),
}
SONGS, OTHERS, CORPUS = "what goes on", "behind another beginning", "held-out songs, cut at the same share"
_SAME_TEMPO = math.log2(1.04)
_SHORTEST = 1.0  # seconds of a part that is compared


class Part(NamedTuple):
    """What is compared of a stretch of sound."""

    chroma_n: Float[np.ndarray, "n"]
    tempo: float
    loudness: float
    spans_ND: Float[np.ndarray, "N D"]


def part(wav_LC: Float[np.ndarray, "L C"], sample_rate: int) -> Part:
    """Mean chroma, tempo, loudness and `music.spans` of a stretch of sound."""
    chroma_Tn = music.chroma(wav_LC, sample_rate)
    chroma_n = chroma_Tn.mean(axis=0) if len(chroma_Tn) else np.zeros(12)
    level = measure.loudness(wav_LC, sample_rate)
    return Part(chroma_n, music.tempo(wav_LC, sample_rate), level, music.spans(wav_LC, sample_rate))


def agreement(before: Part, after: Part) -> dict[str, float]:
    """How a stretch goes on from another: `MEASURES`, NaN where one has nothing to be measured."""
    ref_n, est_n = before.chroma_n - before.chroma_n.mean(), after.chroma_n - after.chroma_n.mean()
    norm = float(np.linalg.norm(ref_n) * np.linalg.norm(est_n))
    octaves = math.log2(after.tempo / before.tempo) if before.tempo > 0 and after.tempo > 0 else math.nan
    change = abs(after.loudness - before.loudness)
    return {
        "harmony": float(ref_n @ est_n) / norm if norm > 1e-9 else math.nan,
        "tempo": math.nan if math.isnan(octaves) else 100.0 * (abs(octaves - round(octaves)) <= _SAME_TEMPO),
        "loudness": change if math.isfinite(change) else math.nan,
        "distance": music.distance(after.spans_ND, before.spans_ND),
    }


def evaluate(
    songs: Sequence[Made], corpus: AudioSource, tracks: int, progress: Callable[[str], None], each: Each
) -> dict[str, Any]:
    """How songs go on from what they were made to continue.

    Chance is each continuation behind the beginnings of the others; the goal are held-out tracks, whose end goes on
    from their beginning, cut where the songs were on average.

    Args:
      songs: from `songs.read`.
      corpus, tracks, progress, each: as for `songs.evaluate_songs`.
    Returns:
      row -> measure -> interval; nothing where no song continues a sound that is still there.
    """
    pairs = [pair for song in songs if (pair := _pair(song)) is not None]
    if not pairs:
        return {}
    begins, ends = ([part(*stretch) for stretch in stretches] for stretches in zip(*pairs, strict=True))
    share = float(np.mean([len(before[0]) / (len(before[0]) + len(after[0])) for before, after in pairs]))
    rows = {SONGS: [agreement(*pair) for pair in zip(begins, ends, strict=True)]}
    rows[OTHERS] = [
        agreement(before, after)
        for i, before in enumerate(begins)
        for j, after in enumerate(ends)
        if not np.array_equal(before.chroma_n, begins[j].chroma_n) and i != j
    ]
    held_out = corpus.valid[:tracks]

    def real(index: int) -> dict[str, np.ndarray]:
        progress(f"measuring how held-out track {index + 1} of {len(held_out)} goes on")
        wav_LC = corpus.track(held_out[index])
        at = round(share * len(wav_LC))
        stretches = [part(stretch_LC, corpus.sample_rate) for stretch_LC in (wav_LC[:at], wav_LC[at:])]
        return columns([agreement(*stretches)])

    rows[CORPUS] = [scores_of(one, 0) for one in each("continuation", len(held_out), real)]
    return {
        name: {key: interval([one[key] for one in measured]) for key in MEASURES}
        for name, measured in rows.items()
        if measured
    }


def _pair(song: Made) -> tuple[tuple[np.ndarray, int], tuple[np.ndarray, int]] | None:
    """What a song goes on from, and what it adds, each with its rate; None where there is no such thing."""
    told = song.facts.get("continues")
    if not isinstance(told, dict) or not isinstance(told.get("path"), str):
        return None
    try:
        with open(told["path"], "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != told.get("sha256"):
                raise UserError("is another sound by now")
        before_LC, rate = files.read(told["path"])
    except (OSError, UserError) as problem:
        warn(f"{song.name} goes on from {told['path']}, which cannot be compared with: {problem}")
        return None
    wav_LC, own = files.read(Path(song.paths[next(iter(song.paths))]))
    after_LC = wav_LC[round(len(before_LC) / rate * own) :]
    if min(len(before_LC) / rate, len(after_LC) / own) < _SHORTEST:
        return None
    return (before_LC, rate), (after_LC, own)
