"""Yardsticks any reader understands: a plain transform codec at the same bit rate, low-passed sound, silence.

The transform codec is what a textbook builds in an afternoon: an MDCT with a sine window (about 46 ms hop), mid/side
stereo, one uniform quantiser step for the whole clip (which is optimal for squared error), and an adaptive arithmetic
coder. It knows nothing of music or hearing and is trained on nothing.

How its rate is counted: the exact code length of an adaptive arithmetic coder that starts from uniform counts of 1/16
and learns, per channel and frequency band, how often each magnitude 0..14 or "larger" occurs; plus one bit of sign for
each non-zero coefficient, an Exp-Golomb code for the excess of larger ones, and 32 bits for the step. A decoder could
read it back: no table is sent and none is assumed known. Clip length and sample rate are taken as known, as they are
for the learned codec, whose rate is counted as log2(codes) bits a token.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.fft import dct
from scipy.special import gammaln

from hiermusic.evaluate.by_track import Each, Measured, columns, in_memory, scores_of
from hiermusic.evaluate.scores import audible, score, summarise

LARGEST = 15  # this magnitude and all beyond it share one symbol
DEAD_ZONE = 1 / 3  # rounding offset below 1/2: cheaper zeros buy more than they cost
BANDS = 20
SEARCH_STEPS = 18

Wave = Float[np.ndarray, "L C"]


class Coded(NamedTuple):
    """A baseline's output and what it costs."""

    wav_LC: np.ndarray
    bits_per_second: float


def _window(hop: int) -> np.ndarray:
    return np.sin(np.pi * (np.arange(2 * hop) + 0.5) / (2 * hop))


def mdct(wav_LC: Wave, hop: int) -> Float[np.ndarray, "T F C"]:
    """Orthonormal MDCT: `hop` coefficients each `hop` samples, sine window; frames = ceil(samples / hop) + 1."""
    frames = -(-len(wav_LC) // hop) + 1
    padded = np.zeros(((frames + 1) * hop, wav_LC.shape[1]))
    padded[hop : hop + len(wav_LC)] = wav_LC
    blocks = padded.reshape(frames + 1, hop, -1)
    windowed = np.concatenate([blocks[:-1], blocks[1:]], axis=1) * _window(hop)[:, None]
    a, b, c, d = np.split(windowed, 4, axis=1)
    return dct(np.concatenate([-c[:, ::-1] - d, a - b[:, ::-1]], axis=1), type=4, norm="ortho", axis=1)


def inverse_mdct(coefficients_TFC: Float[np.ndarray, "T F C"], length: int) -> Wave:
    """The waveform of `length` samples whose `mdct` this is: exact, since the windows' squares sum to one."""
    frames, hop, channels = coefficients_TFC.shape
    first, second = np.split(dct(coefficients_TFC, type=4, norm="ortho", axis=1), 2, axis=1)
    unfolded = np.concatenate([second, -second[:, ::-1], -first[:, ::-1], -first], axis=1) * _window(hop)[:, None]
    out = np.zeros((frames + 1, hop, channels))
    out[:-1] += unfolded[:, :hop]
    out[1:] += unfolded[:, hop:]
    return out.reshape(-1, channels)[hop : hop + length]


def _mid_side(wav_LC: np.ndarray) -> np.ndarray:
    """Its own inverse; mono passes through."""
    return wav_LC @ (np.array([[1, 1], [1, -1]]) / np.sqrt(2)) if wav_LC.shape[1] == 2 else wav_LC


def _code_bits(magnitudes: np.ndarray, context: np.ndarray) -> float:
    """Bits of the adaptive code described at the top of this file: Dirichlet-multinomial, per context."""
    symbols, prior = LARGEST + 1, 1 / (LARGEST + 1)
    counts = np.bincount(context * symbols + np.minimum(magnitudes, LARGEST), minlength=(context.max() + 1) * symbols)
    counts = counts.reshape(-1, symbols)
    nats = gammaln(counts.sum(axis=1) + 1) - np.sum(gammaln(counts + prior) - gammaln(prior), axis=1)
    excess = magnitudes[magnitudes >= LARGEST] - LARGEST
    golomb = np.sum(2 * np.floor(np.log2(excess + 1)) + 1)
    return float(nats.sum() / np.log(2) + np.count_nonzero(magnitudes) + golomb + 32)


def transform_codec(wav_LC: Wave, sample_rate: int, bits_per_second: float) -> Coded:
    """The MDCT codec of this file's docstring with the finest step whose code fits the rate.

    Args:
      wav_LC: float, [-1, 1].
      sample_rate: Hz.
      bits_per_second: upper bound; all channels together.
    Returns:
      the decoded waveform (same shape) and the rate used. Only where even an empty code (tens of bits) exceeds
      the bound, silence and its true rate.
    """
    seconds = len(wav_LC) / sample_rate
    hop = 2 ** round(np.log2(0.046 * sample_rate))
    coefficients = mdct(_mid_side(np.asarray(wav_LC, np.float64)), hop)
    edges = np.unique(np.round(hop * np.linspace(0, 1, BANDS + 1) ** 2))[1:]
    band_F = np.searchsorted(edges, np.arange(hop), side="right")
    channels = coefficients.shape[2]
    context = np.broadcast_to(band_F[:, None] * channels + np.arange(channels), coefficients.shape).ravel()
    absolute = np.abs(coefficients).ravel()

    def quantise(step: float) -> np.ndarray:
        return np.floor(absolute / step + DEAD_ZONE).astype(np.int64)

    silent = 2 * max(float(absolute.max()), 1e-9)
    fine, step = np.log2(silent) - 24, np.log2(silent)
    for _ in range(SEARCH_STEPS):
        middle = (fine + step) / 2
        fits = _code_bits(quantise(2**middle), context) <= bits_per_second * seconds
        fine, step = (fine, middle) if fits else (middle, step)
    magnitudes = quantise(2**step)
    decoded = (np.sign(coefficients) * magnitudes.reshape(coefficients.shape)) * 2**step
    wav = _mid_side(inverse_mdct(decoded, len(wav_LC))).astype(np.float32)
    return Coded(wav, _code_bits(magnitudes, context) / seconds)


def low_pass(wav_LC: Wave, sample_rate: int, cutoff: float) -> Wave:
    """The waveform without anything above `cutoff` Hz: an ideal zero-phase filter over the whole clip."""
    spectrum_FC = np.fft.rfft(wav_LC, axis=0)
    spectrum_FC[np.fft.rfftfreq(len(wav_LC), 1 / sample_rate) > cutoff] = 0
    return np.fft.irfft(spectrum_FC, n=len(wav_LC), axis=0).astype(np.float32)


def evaluate_baselines(
    clips: Sequence[Wave],
    sample_rate: int,
    rates: Sequence[float],
    *,
    cutoffs: Sequence[float] = (1000.0, 4000.0),
    gate_db: float = -60.0,
    seed: int = 0,
    progress: Callable[[str], None] = lambda words: None,
    each: Each = in_memory,
) -> dict:
    """Scores of the transform codec at each rate, of low-passed sound and of silence.

    Args:
      clips: waveforms at `sample_rate`, the ones given to `evaluate_codec`.
      rates: bits per second to hold the transform codec to: those of n levels of the learned codec.
      cutoffs: Hz of the low-pass rows, which make no claim about rate.
      gate_db: clips quieter than this (RMS, dBFS) are left out.
      seed: of the bootstrap.
      progress: called with one line of words per clip.
      each: how the clips are gone through (see `by_track`).
    Returns:
      JSON-able {transform: [row], low_pass: [row], silence: row}; a row holds `interval`s of each score, with
      `limit` and the mean `bits_per_second` used, or `cutoff`.
    """
    clips = audible(clips, gate_db)

    def measure(index: int) -> Measured:
        progress(f"measuring the yardsticks of clip {index + 1} of {len(clips)}")
        clip = clips[index]
        coded = [transform_codec(clip, sample_rate, rate) for rate in rates]
        filtered = [low_pass(clip, sample_rate, cutoff) for cutoff in cutoffs]
        versions = [*(c.wav_LC for c in coded), *filtered, np.zeros_like(clip)]
        scores = columns([score(clip, version, sample_rate) for version in versions])
        return {**scores, "bits_per_second": np.array([c.bits_per_second for c in coded])}

    measured = each("baselines", len(clips), measure)
    rows = [summarise([scores_of(m, k) for m in measured], seed) for k in range(len(rates) + len(cutoffs) + 1)]
    used = np.mean([m["bits_per_second"] for m in measured], axis=0)
    transform = [
        {"limit": float(rate), "bits_per_second": float(mean), **cells}
        for rate, mean, cells in zip(rates, used, rows[: len(rates)], strict=True)
    ]
    filtered = [
        {"cutoff": float(cutoff), **cells} for cutoff, cells in zip(cutoffs, rows[len(rates) : -1], strict=True)
    ]
    return {"transform": transform, "low_pass": filtered, "silence": rows[-1]}
