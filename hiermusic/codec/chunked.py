"""Songs of any length through a codec in pieces of one shape.

Neighbouring pieces share what the trunk can reach, and only the samples that saw all of their context are kept:
nothing is cross-faded, because where two pieces meet nothing differs (next to nothing under an LSTM, whose memory has
no end). A song shorter than a piece is filled up, with silence or with its last packet, so its end may differ from
that of the whole, where each convolution pads by itself.
"""

import functools

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from hiermusic.codec.codec import Codec
from hiermusic.errors import UserError

DECODED_SECONDS = 90.0  # of a piece that is decoded at once


def encode_long(
    codec: Codec, wav_LC: Float[np.ndarray, "L C"], chunk_seconds: float = 30.0, levels: int | None = None
) -> Int[np.ndarray, "P S"]:
    """Codes of a waveform of any length, uint16, in the codec's packets.

    Args:
      wav_LC: samples at the codec's rate and channels.
      chunk_seconds: length of the pieces.
      levels: how many to keep, all when left out.
    Raises:
      UserError: pieces too short for the codec's reach, no samples, or another number of channels.
    """
    total = -(-len(wav_LC) // codec.packet)
    margin = codec.config.encoder_margin
    packets = _chunk(codec, chunk_seconds, margin, total)
    wav_LC = np.pad(wav_LC, ((0, max(total, packets) * codec.packet - len(wav_LC)), (0, 0))).astype(np.float32)
    graph, state = nnx.split(codec)

    def piece(start):
        return _encode(graph, levels, state, wav_LC[None, start * codec.packet : (start + packets) * codec.packet])[0]

    return _assemble(piece, total, packets, margin, 1).astype(np.uint16)


def decode_long(
    codec: Codec,
    codes_PS: Int[np.ndarray, "P S"],
    chunk_seconds: float = DECODED_SECONDS,
    length: int | None = None,
    levels: int | None = None,
) -> Float[np.ndarray, "L C"]:
    """Waveform of codes of any length.

    Args:
      codes_PS: packets of codes; fewer levels than the codec has are fine.
      chunk_seconds: length of the pieces.
      length: samples to return, P * packet when left out.
      levels: how many to use, all that are there when left out.
    Raises:
      UserError: pieces too short for the codec's reach, or no codes.
    """
    total = len(codes_PS)
    margin = codec.config.decoder_margin
    packets = _chunk(codec, chunk_seconds, margin, total)
    # A short song is followed by a held last packet, so that its end does not meet an arbitrary code.
    codes_PS = codes_PS[:, : sum(codec.slots[:levels])]
    codes_PS = np.pad(codes_PS, ((0, max(0, packets - total)), (0, 0)), mode="edge").astype(np.int32)
    # Levels left out are there as -1: one program serves every number of levels.
    missing = sum(codec.slots) - codes_PS.shape[1]
    codes_PS = np.pad(codes_PS, ((0, 0), (0, missing)), constant_values=-1)
    graph, state = nnx.split(codec)

    def piece(start):
        return decode(graph, state, codes_PS[None, start : start + packets])[0]

    return _assemble(piece, total, packets, margin, codec.packet)[:length]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(graph, levels, state, wav_BLC):
    return nnx.merge(graph, state).encode(wav_BLC, levels)


@functools.partial(jax.jit, static_argnums=0)
def decode(graph: nnx.GraphDef, state: nnx.State, codes_BPS: Int[Array, "B P S"]) -> Float[Array, "B L C"]:
    """One piece: the program that decoding spends its time in."""
    return nnx.merge(graph, state).decode(codes_BPS)


def _chunk(codec: Codec, seconds: float, margin: int, total: int) -> int:
    """Packets of a piece: as asked, or the next power of two for what is shorter, so that few shapes are compiled."""
    if total == 0:
        raise UserError("there is nothing to encode or decode: the input holds no samples")
    packets = int(seconds * codec.sample_rate / codec.packet)
    if packets <= 2 * margin:
        raise UserError(
            f"pieces of {seconds:g} s are too short: this codec reaches "
            f"{margin * codec.packet / codec.sample_rate:.2g} s to either side"
        )
    least = -(-32 * codec.hop // codec.packet)
    return min(packets, max(least, 2 ** int(np.ceil(np.log2(total)))))


def _assemble(piece, total: int, packets: int, margin: int, scale: int) -> np.ndarray:
    """Runs `piece(start)` over `total` packets and joins what is exact; a packet is `scale` entries of its result."""
    kept, done = [], 0
    while done < total:
        start = max(0, min(done - margin, total - packets))
        result = np.asarray(piece(start))
        last = start + packets >= total
        stop = total if last else start + packets - margin
        kept.append(result[(done - start) * scale : (stop - start) * scale])
        done = stop
    return np.concatenate(kept)
