"""Songs of any length through a codec in pieces of one shape.

Neighbouring pieces share what the trunk can reach, and only the samples that saw all of their context are kept:
nothing is cross-faded, because where two pieces meet nothing differs (next to nothing under an LSTM, whose memory has
no end). A song shorter than a piece is filled up, with silence or with its last packet, so its end may differ from
that of the whole, where each convolution pads by itself.

Pieces of one song are equally long, and of few different lengths over all songs, so that little is done twice and few
programs are compiled. The devices of this process take a piece each, of several songs where one has too few, or as many
short ones as are together no longer than the longest (`encode_each`, `parallel/pieces.py`). A codec of segments codes
these in their place, several at a time on a device.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from hiermusic.codec.codec import Codec
from hiermusic.codec.segments import SegmentsConfig, scale_of
from hiermusic.errors import UserError
from hiermusic.parallel.pieces import Whole, run_all, run_each, rung

# Of a piece, beside what it shares with its neighbours: the least, and the most for a codec of long reach, which does
# much twice unless a piece is many times what is shared.
_LEAST_SECONDS, _MOST_SECONDS = 30.0, 90.0
_TIMES = 32
_LEAST = 32  # frames
SEGMENTS = 8  # coded at once on a device


def encode_long(
    codec: Codec, wav_LC: Float[np.ndarray, "L C"], chunk_seconds: float | None = None, levels: int | None = None
) -> Int[np.ndarray, "P S"]:
    """Codes of a waveform of any length, uint16, in the codec's packets.

    Args:
      wav_LC: samples at the codec's rate and channels.
      chunk_seconds: the most that a piece lasts; as `longest` has it when left out.
      levels: how many to keep, all when left out.
    Raises:
      UserError: pieces too short for the codec's reach, no samples, or another number of channels.
    """
    graph, state = nnx.split(codec)
    whole = _to_encode(codec, wav_LC, chunk_seconds)
    (codes_PS,) = run_all(functools.partial(_encode, graph, levels), state, [whole], _at_once(codec, whole.size))
    return codes_PS


def encode_each(codec: Codec, sounds: Iterable[Float[np.ndarray, "L C"]]) -> Iterator[Int[np.ndarray, "P S"]]:
    """`encode_long` of sounds one after the other, the same codes.

    Several sounds are taken before the codes of the first are given: as many as keep all devices of this process at
    work, of which pieces of one length, or segments, run side by side.
    """
    graph, state = nnx.split(codec)
    most = longest(codec.sample_rate, codec.packet, codec.config.encoder_margin)
    wholes = (_to_encode(codec, wav_LC) for wav_LC in sounds)
    return run_each(functools.partial(_encode, graph, None), state, wholes, _at_once(codec, most))


def _at_once(codec: Codec, size: int) -> int:
    """What a device takes at once beside pieces of a size: a piece, or SEGMENTS."""
    return SEGMENTS * _segment(codec) if codec.config.segments else size


def _to_encode(codec: Codec, wav_LC: np.ndarray, chunk_seconds: float | None = None) -> Whole:
    if codec.config.segments:
        return _segments_to_encode(codec, codec.config.segments, wav_LC)
    total = -(-len(wav_LC) // codec.packet)
    margin, spare = codec.config.encoder_margin, codec.config.spare
    packets = _piece(codec, chunk_seconds, margin, total)
    length = len(wav_LC)
    wav_LC = np.pad(wav_LC, ((0, (max(total, packets) + spare) * codec.packet - length), (0, 0))).astype(np.float32)

    def cut(start: int) -> tuple[np.ndarray, ...]:
        piece = wav_LC[start * codec.packet : (start + packets + spare) * codec.packet]
        # where it ends within its last frame is told, so that one program serves all lengths
        return (piece, np.int32(min(packets * codec.packet, length - start * codec.packet))) if spare else (piece,)

    return _in_pieces(cut, total, packets, margin, 1)


def decode_long(
    codec: Codec,
    codes_PS: Int[np.ndarray, "P S"],
    chunk_seconds: float | None = None,
    length: int | None = None,
    levels: int | None = None,
    scales_N: Float[np.ndarray, "N"] | None = None,
) -> Float[np.ndarray, "L C"]:
    """Waveform of codes of any length.

    Args:
      codes_PS: packets of codes; fewer levels than the codec has are fine.
      chunk_seconds: as in `encode_long`.
      length: samples to return, P * packet when left out.
      levels: how many to use, all that are there when left out.
      scales_N: of a codec of segments, what each is multiplied by; its `loudness` when left out.
    Raises:
      UserError: pieces too short for the codec's reach, no codes, or scales that are not as many as the segments.
    """
    codes_PS = _filled(codec, codes_PS, levels)
    graph, state = nnx.split(codec)
    if codec.config.segments:
        whole = _segments_to_decode(codec, codec.config.segments, codes_PS, scales_N)
    else:
        whole = _to_decode(codec, codes_PS, chunk_seconds)
    (wav_LC,) = run_all(functools.partial(decode, graph), state, [whole], _at_once(codec, whole.size))
    return wav_LC[:length]


def _to_decode(codec: Codec, codes_PS: np.ndarray, chunk_seconds: float | None) -> Whole:
    total = len(codes_PS)
    margin, spare = codec.config.decoder_margin, codec.config.spare
    packets = _piece(codec, chunk_seconds, margin, total)
    # Behind the end of a song that is shorter than a piece, or of a ragged codec's, its last packet is held, so that it
    # does not meet an arbitrary code.
    codes_PS = np.pad(codes_PS, ((0, max(total, packets) + spare - total), (0, 0)), mode="edge")

    def cut(start: int) -> tuple[np.ndarray, ...]:
        piece_PS = codes_PS[start : start + packets + spare]
        return (piece_PS, np.int32(min(packets, total - start))) if spare else (piece_PS,)

    return _in_pieces(cut, total, packets, margin, codec.packet)


def longest(sample_rate: int, packet: int, margin: int) -> int:
    """Packets of the longest piece: 30 s, up to 90 where much is shared, and on either side what neighbours reach."""
    least, most = (int(seconds * sample_rate / packet) for seconds in (_LEAST_SECONDS, _MOST_SECONDS))
    return min(max(least, _TIMES * 2 * margin), most) + 2 * margin


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(graph, levels, state, wav_BLC, ends_B=None):
    codes_BPS = nnx.merge(graph, state).encode(wav_BLC, levels, *(() if ends_B is None else (ends_B,)))
    return codes_BPS.astype(jnp.uint16)


@functools.partial(jax.jit, static_argnums=0)
def decode(
    graph: nnx.GraphDef, state: nnx.State, codes_BPS: Int[Array, "B P S"], ends_B: Int[Array, "B"] | None = None
) -> Float[Array, "B L C"]:
    """Pieces, or segments and where they end: the program that decoding spends its time in."""
    return nnx.merge(graph, state).decode(codes_BPS, ends_B=ends_B)


def _filled(codec: Codec, codes_PS: np.ndarray, levels: int | None) -> Int[np.ndarray, "P S"]:
    """The codes of the first levels, and of the others as none."""
    codes_PS = codes_PS[:, : sum(codec.slots[:levels])].astype(np.int32)
    # Levels left out are there as -1, so that one program serves many numbers of levels; but for those of a finer
    # resolution, of which nothing is to be computed.
    ends = (sum(codec.slots[:levels]) for levels in codec.resolutions)
    missing = next(end for end in ends if end >= codes_PS.shape[1]) - codes_PS.shape[1]
    return np.pad(codes_PS, ((0, 0), (0, missing)), constant_values=-1)


def _piece(codec: Codec, seconds: float | None, margin: int, total: int) -> int:
    """Packets of each of the equal pieces of a song of `total`."""
    _check(total)
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
    # Several pieces also do twice what they share, and few lengths lie close to the longest: finer steps cost little.
    return min(most, max(rung(share, 32 if count > 1 else 16), -(-_LEAST * codec.hop // codec.packet)))


def _check(total: int) -> None:
    if total == 0:
        raise UserError("there is nothing to encode or decode: the input holds no samples")


def _in_pieces(cut: Callable, total: int, packets: int, margin: int, scale: int) -> Whole:
    """A song in pieces that together hold `total` packets, of which what is exact is joined.

    Args:
      cut: packet that a piece begins with -> the arrays that the program takes.
      scale: entries of what the program makes, a packet.
    """
    kept, done = [], 0
    while done < total:
        start = max(0, min(done - margin, total - packets))
        stop = total if start + packets >= total else start + packets - margin
        kept.append((start, done, stop))
        done = stop

    def join(found: Sequence[np.ndarray]) -> np.ndarray:
        parts = zip(kept, found, strict=True)
        exact = [piece[(a - start) * scale : (b - start) * scale] for (start, a, b), piece in parts]
        return np.concatenate(exact)

    return Whole(packets, len(kept), lambda i: cut(kept[i][0]), join)


def _segments_to_encode(codec: Codec, segments: SegmentsConfig, wav_LC: np.ndarray) -> Whole:
    _check(len(wav_LC))
    parts = segments.cut(wav_LC.astype(np.float32, copy=False))

    def join(found: Sequence[np.ndarray]) -> np.ndarray:
        pairs = zip(parts, found, strict=True)
        return np.concatenate([codes_PS[: -(-len(part_LC) // codec.hop)] for part_LC, codes_PS in pairs])

    return Whole(
        _segment(codec), len(parts), lambda i: _filled_up(codec, parts[i] / scale_of(parts[i]), codec.hop), join
    )


def _segments_to_decode(
    codec: Codec, segments: SegmentsConfig, codes_PS: np.ndarray, scales_N: np.ndarray | None
) -> Whole:
    _check(len(codes_PS))
    parts = [codes_PS[start : start + segments.frames] for start in range(0, len(codes_PS), segments.frames)]
    scales_N = np.full(len(parts), segments.loudness) if scales_N is None else scales_N
    if len(scales_N) != len(parts):
        raise UserError(
            f"{len(codes_PS)} packets are {len(parts)} segments, for which there are {len(scales_N)} scales"
        )

    def join(found: Sequence[np.ndarray]) -> np.ndarray:
        made = zip(parts, found, np.float32(scales_N), strict=True)
        return segments.join([piece_LC[: len(part_PS) * codec.hop] * scale for part_PS, piece_LC, scale in made])

    return Whole(_segment(codec), len(parts), lambda i: _filled_up(codec, parts[i], 1), join)


def _segment(codec: Codec) -> int:
    """Frames of the arrays that segments come in: all of one length, so that one program serves all."""
    return codec.config.segments.frames + codec.config.spare


def _filled_up(codec: Codec, x: np.ndarray, hop: int) -> tuple[np.ndarray, ...]:
    """A segment, of so many entries a frame, in the array that it comes in, and where it ends."""
    return np.pad(x, ((0, _segment(codec) * hop - len(x)), (0, 0))), np.int32(len(x))
