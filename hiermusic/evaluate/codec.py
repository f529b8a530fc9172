"""How well a codec rebuilds held-out clips from its first n levels, and how well it uses its codes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

from hiermusic.errors import UserError
from hiermusic.evaluate import music
from hiermusic.evaluate.by_track import Each, Measured, columns, in_memory, scores_of
from hiermusic.evaluate.scores import audible, clips_hash, protocol_hash, score, summarise
from hiermusic.tokens.hierarchy import Hierarchy
from hiermusic.tokens.packets import levels_of, like

Wave = Float[np.ndarray, "L C"]


@dataclass(frozen=True)
class Coder:
    """A codec as its measurement sees it: two functions on whole clips, and what they speak."""

    encode: Callable[[Wave], Any]  # wav_LC -> streams (see `tokens.packets`)
    decode: Callable[[Any, int, Wave], Wave]  # (codes, how many levels of them, what they are of) -> wav_LC
    sample_rate: int
    channels: int
    hierarchy: Hierarchy
    targets: Mapping[int, Callable[[Wave], Wave]] = field(default_factory=dict)  # levels -> what they are to rebuild


@dataclass(frozen=True)
class Protocol:
    """The settings of one evaluation; figures compare only where these are equal."""

    levels: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    gate_db: float = -60.0  # clips quieter than this (RMS, dBFS) are left out
    seed: int = 0  # of the bootstrap and of the random codes
    mel: str = field(default="DAC library defaults: windows 2048, 512; 150, 80 bands", init=False)
    stft: str = field(default="DAC library defaults: windows 2048, 512", init=False)


def code_statistics(codes: Sequence[Any], hierarchy: Hierarchy) -> list[dict[str, float]]:
    """How much of each level's codebook is used, over all clips together.

    Args:
      codes: one entry a clip, in a form that `tokens.packets.levels_of` takes.
      hierarchy: of the codec.
    Returns:
      per level {level, tokens, usage, perplexity, entropy_bits, bits, efficiency}: share of codes seen at all,
      exp of the empirical entropy, that entropy in bits, log2(codes), and their ratio. The plug-in entropy cannot
      exceed log2(tokens): with few tokens it says more about the sample than about the codec.
    """
    rows = []
    for level, (spec, *streams) in enumerate(zip(hierarchy.levels, *map(levels_of, codes), strict=True)):
        counts = np.bincount(np.concatenate(streams).astype(np.int64), minlength=spec.size)
        p = counts[counts > 0] / counts.sum()
        entropy = float(-np.sum(p * np.log2(p))) + 0.0
        rows.append(
            {
                "level": level,
                "tokens": int(counts.sum()),
                "usage": len(p) / spec.size,
                "perplexity": 2**entropy,
                "entropy_bits": entropy,
                "bits": float(np.log2(spec.size)),
                "efficiency": entropy / float(np.log2(spec.size)),
            }
        )
    return rows


def _random_like(codes, hierarchy: Hierarchy, generator: np.random.Generator):
    pairs = zip(hierarchy.levels, levels_of(codes), strict=True)
    streams = [generator.integers(level.size, size=len(stream)) for level, stream in pairs]
    return like(codes, streams)


def _score(ref_LC: Wave, est_LC: Wave, coder: Coder) -> dict[str, float]:
    """Over the length both have; a decoder may add or drop a fraction of one coarsest token, no more."""
    length = min(len(ref_LC), len(est_LC))
    if len(ref_LC) - length > coder.sample_rate / float(min(coder.hierarchy.rates)):
        raise UserError(f"the decoder gave {len(est_LC)} of {len(ref_LC)} samples; it must return whole clips")
    return score(ref_LC[:length], est_LC[:length], coder.sample_rate)


def evaluate_codec(
    coder: Coder,
    clips: Sequence[Wave],
    protocol: Protocol = Protocol(),
    progress: Callable[[str], None] = lambda words: None,
    each: Each = in_memory,
) -> dict:
    """Reconstruction for each number of levels, anchors that bound the scale, and code statistics.

    Args:
      coder: the codec.
      clips: held-out waveforms [L, C] at the coder's rate and channels; equal lengths are not needed.
      protocol: settings; numbers of levels beyond the codec's are dropped and all of them together always added.
      progress: called with one line of words per clip.
      each: how the clips are gone through (see `by_track`).
    Returns:
      JSON-able
      {protocol, protocol_hash, clips, clips_hash, silent_clips, seconds,
       reconstruction: [{levels, bits_per_second, effective_bits_per_second, efficiency,
                         si_sdr, sdr, mel, stft, silence}], and the same scores as `own_target` where the coder has a
           target for so many levels,
       anchors: {random_codes, shuffled_clips}, codes: [`code_statistics`],
       music: {row: {measure: interval}} of the clips, their anchors and each number of levels (see `music`), harmony
           and beats beside those of the clips}
      Scores are {mean, low, high, count, values}: over clips with a 95 % bootstrap interval, and of each clip.
      `bits_per_second` counts log2(codes) a token; `effective_` counts the empirical entropy of each level. Random
      codes are the floor; shuffled clips (another clip's best reconstruction) show what a score gives to unrelated
      music.
    Raises:
      UserError: clips of the wrong number of channels, or when none is audible.
    """
    for number, clip in enumerate(clips):
        if clip.ndim != 2 or clip.shape[1] != coder.channels:
            raise UserError(f"clip {number} has shape {clip.shape}; this codec takes [samples, {coder.channels}]")
    given, clips = len(clips), audible(clips, protocol.gate_db)
    depth = len(coder.hierarchy)
    depths = sorted({n for n in protocol.levels if n < depth} | {depth, *coder.targets})

    def measure(index: int) -> Measured:
        progress(f"measuring clip {index + 1} of {len(clips)}")
        clip = clips[index]
        codes = coder.encode(clip)
        versions = [coder.decode(codes, levels, clip) for levels in depths]
        generator = np.random.default_rng((protocol.seed, index))
        versions.append(coder.decode(_random_like(codes, coder.hierarchy, generator), depth, clip))
        made = dict(zip(depths, versions, strict=False))
        own = [_score(target(clip), made[levels], coder) for levels, target in coder.targets.items()]
        levels = {f"level {level}": stream for level, stream in enumerate(levels_of(codes))}
        rate = coder.sample_rate
        heard = [*music.anchored(clip, rate, index).values(), *versions[:-1]]
        led = music.lead(clip, rate)

        def describe(sound_LC: Wave) -> dict[str, float]:
            return music.describe(sound_LC, rate) | music.agreement(led, music.lead(sound_LC, rate))

        return {
            **columns([_score(clip, est, coder) for est in versions]),
            **(columns(own, "own") if own else {}),
            **columns([describe(sound_LC) for sound_LC in heard], "music"),
            **levels,
            "whole": versions[-2],
        }

    measured = each("codec", len(clips), measure)
    statistics = code_statistics([[m[f"level {k}"] for k in range(depth)] for m in measured], coder.hierarchy)
    rates = [float(rate) for rate in coder.hierarchy.rates]

    table = []
    for version, levels in enumerate(depths):
        nominal = sum(rate * level["bits"] for rate, level in zip(rates, statistics[:levels], strict=False))
        effective = sum(rate * level["entropy_bits"] for rate, level in zip(rates, statistics[:levels], strict=False))
        table.append(
            {
                "levels": levels,
                "bits_per_second": nominal,
                "effective_bits_per_second": effective,
                "efficiency": effective / nominal,
                **summarise([scores_of(m, version) for m in measured], protocol.seed),
            }
        )
        if levels in coder.targets:
            place = list(coder.targets).index(levels)
            table[-1]["own_target"] = summarise([scores_of(m, place, "own") for m in measured], protocol.seed)
    anchors = {"random_codes": [scores_of(m, len(depths)) for m in measured]}
    if len(clips) > 1:
        whole = [m["whole"] for m in measured]
        pairs = [(a[: len(b)], b[: len(a)]) for a, b in zip(clips, whole[1:] + whole[:1], strict=True)]
        anchors["shuffled_clips"] = [score(a, b, coder.sample_rate) for a, b in pairs]
    sounds = ("the clips themselves", *music.ANCHORS, *map(levels_name, depths))
    heard = {name: [scores_of(m, version, "music") for m in measured] for version, name in enumerate(sounds)}
    settings = {**asdict(protocol), "sample_rate": coder.sample_rate, "channels": coder.channels}
    return {
        "protocol": settings,
        "protocol_hash": protocol_hash(settings),
        "clips": len(clips),
        "clips_hash": clips_hash(clips),
        "silent_clips": given - len(clips),
        "seconds": sum(len(clip) for clip in clips) / coder.sample_rate,
        "reconstruction": table,
        "anchors": {name: summarise(rows, protocol.seed) for name, rows in anchors.items()},
        "codes": statistics,
        "music": music.table(heard, protocol.seed),
    }


def levels_name(levels: int) -> str:
    """How tables call what so many levels rebuild."""
    return f"{levels} level{'s' * (levels > 1)}"
