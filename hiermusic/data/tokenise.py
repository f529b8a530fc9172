"""Turning a stem of audio records into token records with a codec."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from fractions import Fraction

import numpy as np
from jaxtyping import Float

from hiermusic.audio import files
from hiermusic.data.audio_records import AudioSource
from hiermusic.data.codes import Codes
from hiermusic.data.records import Summary
from hiermusic.data.stems import MIX
from hiermusic.data.token_records import write_tokens
from hiermusic.errors import UserError
from hiermusic.tokens.facts import TokenFacts
from hiermusic.tokens.hierarchy import Hierarchy


def noisy(wav_LC: Float[np.ndarray, "L C"], noise: float, of: str) -> Float[np.ndarray, "L C"]:
    """A sound under Gaussian noise of standard deviation `noise`, which drowns what a separator has left in it.

    Args:
      wav_LC: float32, full scale is 1.
      noise: 0 for none.
      of: words that the noise is drawn from, such as a track's id: the same give the same.
    """
    if not noise:
        return wav_LC
    rng = np.random.default_rng(list(hashlib.sha256(of.encode()).digest()))
    return wav_LC + np.float32(noise) * rng.standard_normal(wav_LC.shape, np.float32)


def tokenise(
    encode: Callable[[Iterable[np.ndarray]], Iterable[Codes]],
    audio_dir: str | os.PathLike,
    out_dir: str | os.PathLike,
    hierarchy: Hierarchy,
    split_at: int,
    codec_id: str,
    *,
    facts: TokenFacts | None = None,
    scales: Callable[[np.ndarray], np.ndarray | None] = lambda wav_LC: None,
    shortest: Fraction = Fraction(0),
    stem: str = MIX,
    sample_rate: int | None = None,
    channels: int | None = None,
    noise: float = 0.0,
    shards: int | None = None,
    worker: tuple[int, int] = (0, 1),
    progress: bool = True,
) -> Summary | None:
    """Encodes every track of an audio record directory into token records, whole shards at a time.

    A run that was interrupted continues at its first missing shard and ends with the same files.

    Args:
      encode: waveforms float32 [L, C] -> of each in order codes int [T, K], or a tuple of such arrays, one a rate
        group, where the levels differ in rate. It may take several before it gives the first.
      audio_dir, out_dir: record directories; tracks keep their id, split and metadata.
      hierarchy: the codec's levels.
      split_at: levels below it go to the `coarse` files, the others to the `fine` ones.
      codec_id: names the codec and its weights (`streams.Tokenizer`); a directory begun with another is refused.
      facts: what the codec says of its tokens besides.
      scales: waveform -> float32 [N], what a codec of segments keeps beside their codes, for the tracks' entries.
      shortest: seconds of the least track of which there are tokens; what is shorter is skipped, and told.
      stem: which one is encoded; the shards of others are not opened.
      sample_rate, channels: Hz and number that `encode` takes; those of the records when left out.
      noise: standard deviation of the Gaussian noise that is added before (`noisy`), of each track its own.
      shards: files a stream; None for one every 32 tracks.
      worker: (which, of how many) processes that share the work; the one that ends last completes the directory.
    Returns:
      The summary, or None while shards of other workers are missing.
    Raises:
      UserError: no audio records there, none of `shortest` or more, or `out_dir` was begun with other settings.
    """
    source = AudioSource(audio_dir, stem)
    rate = sample_rate or source.sample_rate
    told = [source.info["fingerprint"], [(track["id"], track["samples"], track["split"]) for track in source.tracks]]
    fingerprint = hashlib.sha256(json.dumps(told).encode()).hexdigest()

    lasting = [Fraction(track["samples"], source.sample_rate) for track in source.tracks]
    long = [index for index, seconds in enumerate(lasting) if seconds >= shortest]
    reason = f"shorter than the {float(shortest):g} s of which there is a token"
    skipped = [(track["id"], reason) for track, s in zip(source.tracks, lasting, strict=True) if s < shortest]
    if skipped and not long:
        raise UserError(f"{audio_dir}: all of its {len(skipped)} tracks are {reason}: give longer ones")

    def load(place: int) -> tuple[np.ndarray, Mapping]:
        index = long[place]
        track = source.tracks[index]
        entry = {key: track[key] for key in ("id", "split", "seconds", "meta")}
        wav_LC = files.to_channels(source.track(index), channels or source.channels)
        return noisy(files.resample(wav_LC, source.sample_rate, rate), noise, track["id"]), entry

    def encode_tracks(loaded: Iterable[tuple[np.ndarray, Mapping]]) -> Generator[tuple[Codes, Mapping], None, None]:
        entries: deque[Mapping] = deque()

        def sounds() -> Iterator[np.ndarray]:
            for wav_LC, entry in loaded:
                beside = {} if (scales_N := scales(wav_LC)) is None else {"scales": scales_N.tolist()}
                entries.append({**entry, **beside})
                yield wav_LC

        for codes in encode(sounds()):
            yield codes, entries.popleft()

    settings = {"codec": codec_id, "audio": fingerprint, "sample_rate": rate}
    if facts:
        settings["tokens"] = facts.to_json()
    if stem != MIX:
        settings["stem"] = stem
    if noise:
        settings["noise"] = noise
    return write_tokens(
        len(long),
        encode_tracks,
        out_dir,
        hierarchy,
        split_at,
        settings=settings,
        load=load,
        skipped=skipped,
        shards=shards,
        worker=worker,
        progress=progress,
    )
