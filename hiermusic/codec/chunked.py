"""Songs of any length through a codec in pieces of one shape.

Neighbouring pieces share what the trunk can reach, and only the samples that saw all of their context are kept:
nothing is cross-faded, because where two pieces meet nothing differs (next to nothing under an LSTM, whose memory has
no end). A song shorter than a piece is filled up, with silence or with its last packet, so its end may differ from
that of the whole, where each convolution pads by itself.

Pieces of one song are equally long, and of few different lengths over all songs, so that little is done twice and few
programs are compiled. The devices of this process take a piece each.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from hiermusic.codec.codec import Codec
from hiermusic.codec.seanet import SPARE
from hiermusic.errors import UserError

SECONDS = 30.0  # of a piece, beside what it shares with its neighbours
_LEAST = 32  # frames


def encode_long(
    codec: Codec, wav_LC: Float[np.ndarray, "L C"], chunk_seconds: float | None = None, levels: int | None = None
) -> Int[np.ndarray, "P S"]:
    """Codes of a waveform of any length, uint16, in the codec's packets.

    Args:
      wav_LC: samples at the codec's rate and channels.
      chunk_seconds: the most that a piece lasts; SECONDS and what it shares with both neighbours when left out.
      levels: how many to keep, all when left out.
    Raises:
      UserError: pieces too short for the codec's reach, no samples, or another number of channels.
    """
    total = -(-len(wav_LC) // codec.packet)
    margin = codec.config.encoder_margin
    packets = _piece(codec, chunk_seconds, margin, total)
    graph, state = nnx.split(codec)
    run = functools.partial(_encode, graph, levels)
    if codec.config.ragged and total <= SPARE:
        return np.asarray(run(state, wav_LC[None].astype(np.float32)))[0].astype(np.uint16)
    length, spare = len(wav_LC), SPARE if codec.config.ragged else 0
    wav_LC = np.pad(wav_LC, ((0, (max(total, packets) + spare) * codec.packet - length), (0, 0))).astype(np.float32)

    def cut(start: int) -> tuple[np.ndarray, ...]:
        piece = wav_LC[start * codec.packet : (start + packets + spare) * codec.packet]
        # where it ends within its last frame is told, so that one program serves all lengths
        return (piece, np.int32(min(packets * codec.packet, length - start * codec.packet))) if spare else (piece,)

    return _assemble(run, state, cut, total, packets, margin, 1).astype(np.uint16)


def decode_long(
    codec: Codec,
    codes_PS: Int[np.ndarray, "P S"],
    chunk_seconds: float | None = None,
    length: int | None = None,
    levels: int | None = None,
) -> Float[np.ndarray, "L C"]:
    """Waveform of codes of any length.

    Args:
      codes_PS: packets of codes; fewer levels than the codec has are fine.
      chunk_seconds: as in `encode_long`.
      length: samples to return, P * packet when left out.
      levels: how many to use, all that are there when left out.
    Raises:
      UserError: pieces too short for the codec's reach, or no codes.
    """
    total = len(codes_PS)
    margin = codec.config.decoder_margin
    packets = _piece(codec, chunk_seconds, margin, total)
    # A short song is followed by a held last packet, so that its end does not meet an arbitrary code.
    codes_PS = codes_PS[:, : sum(codec.slots[:levels])]
    codes_PS = np.pad(codes_PS, ((0, max(0, packets - total)), (0, 0)), mode="edge").astype(np.int32)
    # Levels left out are there as -1, so that one program serves many numbers of levels; but for those of a finer
    # resolution, of which nothing is to be computed.
    ends = (sum(codec.slots[:levels]) for levels in codec.resolutions)
    missing = next(end for end in ends if end >= codes_PS.shape[1]) - codes_PS.shape[1]
    codes_PS = np.pad(codes_PS, ((0, 0), (0, missing)), constant_values=-1)
    graph, state = nnx.split(codec)

    def cut(start: int) -> tuple[np.ndarray, ...]:
        return (codes_PS[start : start + packets],)

    run = functools.partial(decode, graph)
    return _assemble(run, state, cut, total, packets, margin, codec.packet)[:length]


def longest(sample_rate: int, packet: int, margin: int) -> int:
    """Packets of the longest piece: SECONDS, and on either side what its neighbours reach."""
    return int(SECONDS * sample_rate / packet) + 2 * margin


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(graph, levels, state, wav_BLC, ends_B=None):
    return nnx.merge(graph, state).encode(wav_BLC, levels, *(() if ends_B is None else (ends_B,)))


@functools.partial(jax.jit, static_argnums=0)
def decode(graph: nnx.GraphDef, state: nnx.State, codes_BPS: Int[Array, "B P S"]) -> Float[Array, "B L C"]:
    """Pieces: the program that decoding spends its time in."""
    return nnx.merge(graph, state).decode(codes_BPS)


def _piece(codec: Codec, seconds: float | None, margin: int, total: int) -> int:
    """Packets of each of the equal pieces of a song of `total`."""
    if total == 0:
        raise UserError("there is nothing to encode or decode: the input holds no samples")
    most = longest(codec.sample_rate, codec.packet, margin)
    if seconds is not None:
        most = int(seconds * codec.sample_rate / codec.packet)
    if most <= 2 * margin:
        raise UserError(
            f"pieces of {seconds:g} s are too short: this codec reaches "
            f"{margin * codec.packet / codec.sample_rate:.2g} s to either side"
        )
    count = 1 if total <= most else -(-(total - 2 * margin) // (most - 2 * margin))
    share = -(-(total + 2 * margin * (count - 1)) // count)
    return min(most, max(_rung(share), -(-_LEAST * codec.hop // codec.packet)))


def _rung(n: int) -> int:
    """The least size >= n of a ladder with steps of 1/16 to 1/32 of n."""
    step = 1 << max(n.bit_length() - 5, 0)
    return -(-n // step) * step


def _assemble(
    run: Callable, state: nnx.State, cut: Callable, total: int, packets: int, margin: int, scale: int
) -> np.ndarray:
    """Runs pieces that together hold `total` packets, and joins what is exact; a packet is `scale` entries of it."""
    kept, done = [], 0
    while done < total:
        start = max(0, min(done - margin, total - packets))
        stop = total if start + packets >= total else start + packets - margin
        kept.append((start, done, stop))
        done = stop
    found = _run(run, state, [cut(start) for start, _, _ in kept])
    parts = zip(kept, found, strict=True)
    return np.concatenate([piece[(a - start) * scale : (b - start) * scale] for (start, a, b), piece in parts])


def _run(run: Callable, state: nnx.State, pieces: list[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    """What a program makes of pieces, each the arrays it takes, as many at a time as this process has devices."""
    devices = jax.local_devices()[: len(pieces)]
    if len(devices) == 1:
        return [np.asarray(run(state, *(part[None] for part in piece)))[0] for piece in pieces]
    mesh = jax.sharding.Mesh(devices, "piece")
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    found = []
    for first in range(0, len(pieces), len(devices)):
        group = pieces[first : first + len(devices)]
        whole = map(np.stack, zip(*group, *group[-1:] * (len(devices) - len(group)), strict=True))
        made = np.asarray(run(state, *jax.device_put(tuple(whole), NamedSharding(mesh, PartitionSpec("piece")))))
        found += list(made[: len(group)])
    return found
