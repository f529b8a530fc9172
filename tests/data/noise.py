"""Tracks of noise, their records, and codes for them."""

import hashlib
from fractions import Fraction
from pathlib import Path

import numpy as np

from hiermusic.data.audio_records import write_audio
from hiermusic.data.tracks import Track
from hiermusic.tokens.hierarchy import Hierarchy

RATE = 8000
UNIFORM = Hierarchy.uniform(5, Fraction(RATE, 100), 1024)


def noise(seed: int, samples: int, channels: int = 1) -> np.ndarray:
    """16-bit samples as floats, so that records must return them exactly."""
    pcm_LC = np.random.default_rng(seed).integers(-32768, 32768, (samples, channels))
    return (pcm_LC / 32768).astype(np.float32)


def tracks(count: int, samples: int = 2000, **kwargs) -> list[Track]:
    def loader(index: int):
        return lambda: (noise(index, samples + index, 1), RATE, {"tags": f"tag {index}", "lyrics": "ü\nö"})

    return [Track(f"t{index:03d}", loader(index), **kwargs) for index in range(count)]


def write(out, given, **kwargs):
    defaults = {"sample_rate": RATE, "channels": 1, "segment_seconds": 0.1, "progress": False}
    return write_audio(given, out, **(defaults | kwargs))


def digests(path: Path) -> dict[str, str]:
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def encode_uniform(wav_LC: np.ndarray) -> np.ndarray:
    frames_TH = wav_LC[: len(wav_LC) // 100 * 100, 0].reshape(-1, 100)
    return (np.abs(frames_TH[:, :5]) * 1023).astype(np.int32)
