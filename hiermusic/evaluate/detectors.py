"""What can be heard of a song without knowing its prompt: tempo, and attributes that a corpus with tags teaches.

A detector is a logistic regression on one of three groups of features, fitted on the training songs of a corpus and
worth what it scores on the held-out ones: nothing is assumed of it.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy.signal import get_window

from hiermusic.audio import music
from hiermusic.audio.spectral import mel_filters

BASIS = {"drums": "timbre", "voice": "timbre", "mode": "harmony", "pace": "rhythm"}  # attribute -> features
FEWEST = 5  # examples of an answer that can be learnt

_DIATONIC = np.isin(np.arange(12), (0, 2, 4, 5, 7, 9, 11)).astype(float)
_REGISTERS = ((50.0, 220.0), (220.0, 2000.0))  # Hz: the bass says which of a scale's notes is home
_LAGS = np.geomspace(0.2, 1.6, 25)  # seconds

Features = Mapping[str, np.ndarray]


def hear(wav_LC: Float[np.ndarray, "L C"], sample_rate: int) -> dict[str, np.ndarray]:
    """Features of a song, its tempo in beats a minute (NaN where there is none) and its length in seconds.

    timbre: of 32 mel bands in dB under the song's mean: mean, deviation, mean rise, and what 2 % of the rises exceed.
    harmony: the twelve notes' shares in the bass and above it, turned so that the scale begins at its first note.
    rhythm: autocorrelation of the onset strength at 25 lags from 0.2 to 1.6 s.
    """
    wav_L = music.mono(wav_LC, sample_rate)
    rhythm = _rhythm(*music.onsets(wav_L[:, None], music.RATE))
    figures = {"tempo": music.tempo(wav_L[:, None], music.RATE), "length": len(wav_LC) / sample_rate}
    features = {"timbre": _timbre(wav_L), "harmony": _harmony(wav_L), "rhythm": rhythm}
    return features | {name: np.float64(value) for name, value in figures.items()}


def fit(features: Sequence[Features], labels: Sequence[str | None], attribute: str) -> Callable[[Features], str] | None:
    """A detector of an attribute of `BASIS`.

    Args:
      features: from `hear`, of training songs.
      labels: what is true of each; None where it is not known.
      attribute: which.
    Returns:
      features -> label; None where fewer than two answers have at least five examples.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = {label for label, count in Counter(labels).items() if label is not None and count >= FEWEST}
    if len(known) < 2:
        return None
    pairs = [(one[BASIS[attribute]], label) for one, label in zip(features, labels, strict=True) if label in known]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000))
    model.fit(*map(list, zip(*pairs, strict=True)))
    return lambda one: str(model.predict([one[BASIS[attribute]]])[0])


def _power(wav_L: np.ndarray, window: int, hop: int) -> Float[np.ndarray, "T F"]:
    wav_L = np.pad(wav_L, (0, max(window - len(wav_L), 0)))
    frames_TW = np.lib.stride_tricks.sliding_window_view(wav_L, window)[::hop]
    return np.abs(np.fft.rfft(frames_TW * get_window("hann", window), axis=1)) ** 2


def _timbre(wav_L: np.ndarray) -> Float[np.ndarray, "128"]:
    mel_TM = _power(np.pad(wav_L, (0, 2048)), 1024, 256) @ mel_filters(music.RATE, 1024, 32).T
    level_TM = np.maximum(10 * np.log10(np.maximum(mel_TM, 1e-10) / max(mel_TM.mean(), 1e-10)), -60)
    rise_TM = np.diff(level_TM, axis=0)
    parts = (level_TM.mean(0), level_TM.std(0), np.maximum(rise_TM, 0).mean(0), np.percentile(rise_TM, 98, axis=0))
    return np.concatenate(parts)


def _harmony(wav_L: np.ndarray) -> Float[np.ndarray, "24"]:
    power_TF = _power(wav_L, 8192, 2048)
    hertz_F = np.fft.rfftfreq(8192, 1 / music.RATE)
    note_F = np.rint(12 * np.log2(np.maximum(hertz_F, 1) / 440) + 9).astype(int) % 12
    registers = []
    for low, high in _REGISTERS:
        heard_F = (hertz_F >= low) & (hertz_F < high)
        chroma_nT = np.sqrt([power_TF[:, heard_F & (note_F == note)].sum(axis=1) for note in range(12)])
        registers.append((chroma_nT / np.maximum(chroma_nT.sum(axis=0), 1e-9)).mean(axis=1))
    first = max(range(12), key=lambda note: np.dot(np.roll(sum(registers), -note), _DIATONIC))
    return np.concatenate([np.roll(chroma_C, -first) for chroma_C in registers])


def _rhythm(onset_T: np.ndarray, frame: float) -> Float[np.ndarray, "25"]:
    if not onset_T.any():
        return np.zeros(len(_LAGS))
    onset_T = onset_T - onset_T.mean()
    lag_T = np.correlate(onset_T, onset_T, "full")[len(onset_T) - 1 :]
    lag_T = lag_T / max(lag_T[0], 1e-20) / np.clip(1 - np.arange(len(lag_T)) / len(onset_T), 0.2, None)
    return np.interp(_LAGS / frame, np.arange(len(lag_T)), lag_T)
