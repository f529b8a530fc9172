"""Songs of any length through a codec in pieces of one shape.

Neighbouring pieces share what the convolutions can reach, and only the samples that saw all of their context are kept:
nothing is cross-faded, because where two pieces meet nothing differs. A song shorter than a piece is filled up, with
silence or with its last frame, so its end may differ from that of the whole, where each convolution pads with zeros.
"""

import functools

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from hiermusic.codec.codec import Codec
from hiermusic.errors import UserError


def encode_long(
    codec: Codec, wav_LC: Float[np.ndarray, "L C"], chunk_seconds: float = 30.0, layers: int | None = None
) -> Int[np.ndarray, "T K"]:
    """Codes of a waveform of any length, uint16.

    Args:
      wav_LC: samples at the codec's rate and channels.
      chunk_seconds: length of the pieces.
      layers: levels to keep, all when left out.
    Raises:
      UserError: pieces too short for the codec's reach, no samples, or another number of channels.
    """
    hop, margin = codec.hop, codec.config.encoder_margin
    total = -(-len(wav_LC) // hop)
    frames = _chunk(int(chunk_seconds * codec.sample_rate / hop), margin, total)
    wav_LC = np.pad(wav_LC, ((0, max(total, frames) * hop - len(wav_LC)), (0, 0))).astype(np.float32)
    graph, state = nnx.split(codec)

    def piece(start):
        return _encode(graph, layers, state, wav_LC[None, start * hop : (start + frames) * hop])[0]

    return _assemble(piece, total, frames, margin, 1).astype(np.uint16)


def decode_long(
    codec: Codec,
    codes_TK: Int[np.ndarray, "T K"],
    frames: int = 1920,
    length: int | None = None,
    layers: int | None = None,
) -> Float[np.ndarray, "L C"]:
    """Waveform of codes of any length.

    Args:
      codes_TK: codes; fewer levels than the codec has are fine.
      frames: length of the pieces (Khala's release: 1920, 89 s).
      length: samples to return, T * hop when left out.
      layers: levels to use, all that are there when left out.
    Raises:
      UserError: pieces too short for the codec's reach, or no codes.
    """
    total, margin = len(codes_TK), codec.config.decoder_margin
    frames = _chunk(frames, margin, total)
    # A short song is followed by a held last frame, so that its end does not meet an arbitrary code.
    codes_TK = np.pad(codes_TK[:, :layers], ((0, max(0, frames - total)), (0, 0)), mode="edge").astype(np.int32)
    # Levels left out are there as -1: one program serves every number of layers.
    missing = len(codec.hierarchy) - codes_TK.shape[1]
    codes_TK = np.pad(codes_TK, ((0, 0), (0, missing)), constant_values=-1)
    graph, state = nnx.split(codec)

    def piece(start):
        return _decode(graph, state, codes_TK[None, start : start + frames])[0]

    return _assemble(piece, total, frames, margin, codec.hop)[:length]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(graph, layers, state, wav_BLC):
    return nnx.merge(graph, state).encode(wav_BLC, layers)


@functools.partial(jax.jit, static_argnums=0)
def _decode(graph, state, codes_BTK):
    return nnx.merge(graph, state).decode(codes_BTK)


def _chunk(frames: int, margin: int, total: int) -> int:
    """Frames of a piece: as asked, or the next power of two for what is shorter, so that few shapes are compiled."""
    if total == 0:
        raise UserError("there is nothing to encode or decode: the input holds no samples")
    if frames <= 2 * margin:
        raise UserError(f"pieces of {frames} frames are too short: this codec reaches {margin} frames to either side")
    return min(frames, max(32, 2 ** int(np.ceil(np.log2(total)))))


def _assemble(piece, total: int, frames: int, margin: int, scale: int) -> np.ndarray:
    """Runs `piece(start)` over `total` frames and joins what is exact; a frame is `scale` entries of its result."""
    kept, done = [], 0
    while done < total:
        start = max(0, min(done - margin, total - frames))
        result = np.asarray(piece(start))
        last = start + frames >= total
        stop = total if last else start + frames - margin
        kept.append(result[(done - start) * scale : (stop - start) * scale])
        done = stop
    return np.concatenate(kept)
