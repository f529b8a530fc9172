"""Songs of any length through a codec in pieces of one shape.

Neighbouring pieces share what the trunk can reach, and only the samples that saw all of their context are kept:
nothing is cross-faded, because where two pieces meet nothing differs (next to nothing under an LSTM, whose memory has
no end). A song shorter than a piece is filled up, with silence or with its last packet, so its end may differ from
that of the whole, where each convolution pads by itself.

Pieces of one song are equally long, and of few different lengths over all songs, so that little is done twice and few
programs are compiled. The devices of this process take a piece each, of several songs where one has too few
(`encode_each`). A codec of segments codes these in their place, several at a time on a device.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from hiermusic.codec.codec import Codec
from hiermusic.codec.segments import SegmentsConfig, scale_of
from hiermusic.errors import UserError

# Of a piece, beside what it shares with its neighbours: the least, and the most for a codec of long reach, which does
# much twice unless a piece is many times what is shared.
_LEAST_SECONDS, _MOST_SECONDS = 30.0, 90.0
_TIMES = 32
_LEAST = 32  # frames
SEGMENTS = 8  # coded at once on a device
# of pieces, or SEGMENTS, that songs are gathered for: the last one, which may lack some, is then one of several
_ROUNDS = 4


class _Song(NamedTuple):
    """A song on its way through a codec.

    Attributes:
      size: of each piece; pieces of one size run in one program.
      count: of its pieces.
      piece: index of one -> the arrays that the program takes.
      join: what the program made of the pieces, in order -> what becomes of the song.
    """

    size: int
    count: int
    piece: Callable[[int], tuple[np.ndarray, ...]]
    join: Callable[[Sequence[np.ndarray]], np.ndarray]


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
    return _encode_together(codec, [wav_LC], chunk_seconds, levels)[0]


def encode_each(codec: Codec, sounds: Iterable[Float[np.ndarray, "L C"]]) -> Iterator[Int[np.ndarray, "P S"]]:
    """`encode_long` of sounds one after the other, the same codes.

    Where this process has several devices, several sounds are taken before the codes of the first are given: as many as
    keep all devices at work, of which pieces of one length, or segments, run side by side.
    """
    devices = len(jax.local_devices())
    if segments := codec.config.segments:
        samples = SEGMENTS * segments.samples
    else:
        samples = longest(codec.sample_rate, codec.packet, codec.config.encoder_margin) * codec.packet
    enough = 0 if devices == 1 else _ROUNDS * devices * samples
    waiting: list[np.ndarray] = []
    length = 0
    for wav_LC in sounds:
        waiting.append(wav_LC)
        length += len(wav_LC)
        if length >= enough:
            yield from _encode_together(codec, waiting)
            waiting, length = [], 0
    if waiting:
        yield from _encode_together(codec, waiting)


def _encode_together(
    codec: Codec, sounds: Sequence[np.ndarray], chunk_seconds: float | None = None, levels: int | None = None
) -> list[Int[np.ndarray, "P S"]]:
    if codec.config.segments:
        return _encode_segments(codec, codec.config.segments, sounds, levels)
    graph, state = nnx.split(codec)
    songs = [_to_encode(codec, wav_LC, chunk_seconds) for wav_LC in sounds]
    made = _run_songs(functools.partial(_encode, graph, levels), state, songs)
    return [codes_PS.astype(np.uint16) for codes_PS in made]


def _to_encode(codec: Codec, wav_LC: np.ndarray, chunk_seconds: float | None) -> _Song:
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
    total, codes_PS = len(codes_PS), _filled(codec, codes_PS, levels)
    if codec.config.segments:
        return _decode_segments(codec, codec.config.segments, codes_PS, scales_N)[:length]
    margin = codec.config.decoder_margin
    packets = _piece(codec, chunk_seconds, margin, total)
    graph, state = nnx.split(codec)
    run, spare = functools.partial(decode, graph), codec.config.spare
    # Behind the end of a song that is shorter than a piece, or of a ragged codec's, its last packet is held, so that it
    # does not meet an arbitrary code.
    codes_PS = np.pad(codes_PS, ((0, max(total, packets) + spare - total), (0, 0)), mode="edge")

    def cut(start: int) -> tuple[np.ndarray, ...]:
        piece_PS = codes_PS[start : start + packets + spare]
        return (piece_PS, np.int32(min(packets, total - start))) if spare else (piece_PS,)

    return _run_songs(run, state, [_in_pieces(cut, total, packets, margin, codec.packet)])[0][:length]


def longest(sample_rate: int, packet: int, margin: int) -> int:
    """Packets of the longest piece: 30 s, up to 90 where much is shared, and on either side what neighbours reach."""
    least, most = (int(seconds * sample_rate / packet) for seconds in (_LEAST_SECONDS, _MOST_SECONDS))
    return min(max(least, _TIMES * 2 * margin), most) + 2 * margin


@functools.partial(jax.jit, static_argnums=(0, 1))
def _encode(graph, levels, state, wav_BLC, ends_B=None):
    return nnx.merge(graph, state).encode(wav_BLC, levels, *(() if ends_B is None else (ends_B,)))


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
    return min(most, max(_rung(share, 32 if count > 1 else 16), -(-_LEAST * codec.hop // codec.packet)))


def _check(total: int) -> None:
    if total == 0:
        raise UserError("there is nothing to encode or decode: the input holds no samples")


def _rung(n: int, steps: int) -> int:
    """The least size >= n of a ladder that takes so many steps from a power of two to the next."""
    step = max((1 << n.bit_length() - 1) // steps, 1)
    return -(-n // step) * step


def _in_pieces(cut: Callable, total: int, packets: int, margin: int, scale: int) -> _Song:
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
        return np.concatenate([piece[(a - start) * scale : (b - start) * scale] for (start, a, b), piece in parts])

    return _Song(packets, len(kept), lambda i: cut(kept[i][0]), join)


def _encode_segments(
    codec: Codec, segments: SegmentsConfig, sounds: Sequence[np.ndarray], levels: int | None
) -> list[Int[np.ndarray, "P S"]]:
    for wav_LC in sounds:
        _check(len(wav_LC))
    cut = [segments.cut(wav_LC.astype(np.float32, copy=False)) for wav_LC in sounds]
    parts = list(chain.from_iterable(cut))

    def scaled(i: int) -> np.ndarray:
        return parts[i] / scale_of(parts[i])

    found = _run_segments(codec, lambda graph: functools.partial(_encode, graph, levels), len(parts), scaled, codec.hop)
    codes = (piece_PS[: -(-len(part_LC) // codec.hop)] for part_LC, piece_PS in zip(parts, found, strict=True))
    return [np.concatenate(list(islice(codes, len(own)))).astype(np.uint16) for own in cut]


def _decode_segments(
    codec: Codec, segments: SegmentsConfig, codes_PS: np.ndarray, scales_N: np.ndarray | None
) -> Float[np.ndarray, "L C"]:
    _check(len(codes_PS))
    parts = [codes_PS[start : start + segments.frames] for start in range(0, len(codes_PS), segments.frames)]
    scales_N = np.full(len(parts), segments.loudness) if scales_N is None else scales_N
    if len(scales_N) != len(parts):
        raise UserError(
            f"{len(codes_PS)} packets are {len(parts)} segments, for which there are {len(scales_N)} scales"
        )
    found = _run_segments(codec, lambda graph: functools.partial(decode, graph), len(parts), parts.__getitem__, 1)
    pairs = zip(parts, found, np.float32(scales_N), strict=True)
    return segments.join([piece_LC[: len(part_PS) * codec.hop] * scale for part_PS, piece_LC, scale in pairs])


def _run_segments(codec: Codec, program: Callable, count: int, part: Callable, hop: int) -> list[np.ndarray]:
    """What a program makes of segments: all in arrays of one length, with where each ends, so that one serves all."""
    graph, state = nnx.split(codec)
    length = (codec.config.segments.frames + codec.config.spare) * hop

    def cut(i: int) -> tuple[np.ndarray, ...]:
        x = part(i)
        return np.pad(x, ((0, length - len(x)), (0, 0))), np.int32(len(x))

    return _run(program(graph), state, count, cut, SEGMENTS)


def _run_songs(run: Callable, state: nnx.State, songs: Sequence[_Song]) -> list[np.ndarray]:
    """What becomes of each song; pieces of one size, whichever song they are of, run side by side."""
    found: list[list[np.ndarray]] = [[] for _ in songs]
    for size in sorted({song.size for song in songs}):
        places = [(at, i) for at, song in enumerate(songs) if song.size == size for i in range(song.count)]

        def cut(place: int, places=places) -> tuple[np.ndarray, ...]:
            at, i = places[place]
            return songs[at].piece(i)

        for (at, _), piece in zip(places, _run(run, state, len(places), cut), strict=True):
            found[at].append(piece)
    return [song.join(parts) for song, parts in zip(songs, found, strict=True)]


def _run(run: Callable, state: nnx.State, count: int, cut: Callable, each: int = 1) -> list[np.ndarray]:
    """What a program makes of pieces, up to `each` of them at once on a device of this process.

    Args:
      count: pieces.
      cut: index of a piece -> the arrays that the program takes; asked when it is its turn.
    """
    devices = jax.local_devices()[: 1 << (count - 1).bit_length()]  # few numbers of them: each has its own program
    while each > 1 and (each // 2) * len(devices) >= count:
        each //= 2
    place = None
    if len(devices) > 1:
        mesh = jax.sharding.Mesh(devices, "piece")
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        place = NamedSharding(mesh, PartitionSpec("piece"))
    found, size = [], each * len(devices)
    for first in range(0, count, size):
        group = [cut(i) for i in range(first, min(first + size, count))]
        whole = tuple(map(np.stack, zip(*group, *group[-1:] * (size - len(group)), strict=True)))
        made = np.asarray(run(state, *(whole if place is None else jax.device_put(whole, place))))
        found += list(made[: len(group)])
    return found
