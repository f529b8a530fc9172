import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.codec import chunked
from hiermusic.codec.chunked import _in_pieces, _piece, decode_long, encode_each, encode_long
from hiermusic.codec.codec import Codec, CodecConfig
from hiermusic.codec.dac import DacConfig
from hiermusic.codec.residual import QuantiserConfig
from hiermusic.codec.seanet import SeanetConfig
from hiermusic.errors import UserError
from hiermusic.parallel.pieces import run_all

CONFIG = CodecConfig(
    sample_rate=800,
    trunk=DacConfig(strides=(4, 2), dilations=(1, 3), encoder_width=4, decoder_width=16, latent=6),
    quantiser=QuantiserConfig(levels=3, codes=8, kmeans_iterations=2),
)
ECHO = partial(lambda state, rows_BP: rows_BP)


@pytest.fixture(scope="module", params=[(1, 0), (2, 0), (1, 3)], ids=["whole", "folded", "mel"])
def codec(request):
    fold, mel_bands = request.param
    strides = (4, 2)[fold - 1 :] + (2,) * (fold - 1)
    trunk = dataclasses.replace(CONFIG.trunk, strides=strides, fold=fold)
    config = dataclasses.replace(CONFIG, trunk=trunk, mel_bands=mel_bands)
    # Weights far from zero, so that a sample out of reach would show.
    codec = nnx.jit(lambda: Codec(config, rngs=nnx.Rngs(0)))()
    params = nnx.state(codec, nnx.Param)
    nnx.update(codec, jax.tree.map(lambda w: jnp.asarray(np.asarray(w) * 4) if w.ndim == 1 else w, params))
    return codec


@pytest.fixture(scope="module")
def wave():
    return (0.3 * np.random.default_rng(0).normal(size=(400 * 8 - 3, 2))).astype(np.float32)


@pytest.fixture(scope="module")
def codes():
    return np.random.default_rng(1).integers(0, 8, (400, 3)).astype(np.uint16)


def test_pieces_encode_as_the_whole_does(codec, wave):
    whole = np.asarray(nnx.jit(lambda codec, wav: codec.encode(wav))(codec, wave[None]))[0]
    pieces = encode_long(codec, wave, chunk_seconds=1.0)
    assert pieces.dtype == np.uint16 and len(np.unique(whole)) > 4
    np.testing.assert_array_equal(pieces, whole)
    np.testing.assert_array_equal(encode_long(codec, wave, chunk_seconds=1.3, levels=2), whole[:, :2])


def test_pieces_decode_as_the_whole_does(codec, codes):
    whole = np.asarray(nnx.jit(lambda codec, codes: codec.decode(codes))(codec, codes[None].astype(np.int32)))[0]
    assert whole.std() > 1e-6
    for seconds in (1.0, 1.28):
        pieces = decode_long(codec, codes, chunk_seconds=seconds)
        assert pieces.shape == whole.shape
        np.testing.assert_allclose(pieces, whole, atol=1e-4 * np.abs(whole).max())


def test_margins_are_the_true_reach(codec, codes):
    """A change of one frame reaches no further than the margin, and nearly that far."""
    decode = nnx.jit(lambda codec, codes: codec.decode(codes))
    changed = codes.copy()
    changed[200] = (codes[200] + 1) % 8
    a, b = (np.asarray(decode(codec, c[None].astype(np.int32)))[0] for c in (codes, changed))
    touched = np.flatnonzero(np.any(a != b, axis=1)) // 8
    margin = codec.config.decoder_margin
    assert 200 - margin <= touched.min() and touched.max() <= 200 + margin
    assert margin <= 200 - touched.min() + 2


def test_short_songs_and_asked_lengths(codec, codes):
    assert decode_long(codec, codes[:5], length=33).shape == (33, 2)
    assert decode_long(codec, codes[:5, :2], levels=1).shape == (40, 2)
    assert encode_long(codec, np.zeros((1, 2), np.float32)).shape == (1, 3)


def test_bad_input_is_refused(codec, wave, codes):
    with pytest.raises(UserError, match="too short"):
        encode_long(codec, wave, chunk_seconds=0.1)
    with pytest.raises(UserError, match="nothing"):
        decode_long(codec, codes[:0])


@pytest.mark.parametrize("margin", [0, 4, 11])
def test_pieces_do_little_twice_and_have_few_lengths(margin, batches):
    """A codec that does nothing, on eight devices: what is joined is what went in, and how much went in is counted."""
    codec = SimpleNamespace(sample_rate=1000, packet=50, hop=50)
    most, sizes = max(600, 64 * margin) + 2 * margin, set()
    for total in (1, 31, 32, 33, 599, 600, 601 + margin, 650, 900, 1201, 2500, 7000):
        packets = _piece(codec, None, margin, total)
        row_P = np.arange(max(total, packets))
        batches.clear()

        def cut(start, row_P=row_P, packets=packets):
            return (row_P[start : start + packets],)

        (made,) = run_all(ECHO, {}, [_in_pieces(cut, total, packets, margin, 1)], packets)
        np.testing.assert_array_equal(made, np.arange(total))
        assert packets <= most and all(shape[0] <= 8 and shape[1] == packets for shape in batches)
        if total >= 200:
            pieces = -(-(total - 2 * margin) // (most - 2 * margin))
            assert len(batches) == -(-pieces // 8)
            assert packets * pieces <= total * (1 + 1 / 16) + 2 * margin * pieces
        sizes.add(packets)
    assert len(sizes) <= 9


@pytest.mark.parametrize(
    ("rate", "packet", "margin"), [(24_000, 320, 79), (24_000, 320, 80), (44_100, 512, 11), (44_100, 2048, 11)]
)
def test_pieces_of_ten_seconds_to_ten_minutes_do_no_more_than_a_fifteenth_twice(rate, packet, margin):
    """EnCodec's, DAC's and Khala's reach, every length; the pieces stay bounded, and their lengths few."""
    codec, sizes, longest = SimpleNamespace(sample_rate=rate, packet=packet, hop=packet), set(), 0
    for total in range(10 * rate // packet, 600 * rate // packet):
        song = _in_pieces(None, total, _piece(codec, None, margin, total), margin, 1)
        assert song.size * song.count <= total * 16 / 15
        sizes.add(song.size)
        longest = max(longest, song.size)
    assert longest * packet <= min(max(30 * rate, 64 * margin * packet), 90 * rate) + 2 * margin * packet
    assert len(sizes) <= 64


def test_the_longest_piece_grows_with_the_reach_and_has_an_end():
    assert [chunked.longest(1000, 50, margin) for margin in (0, 9, 20, 40)] == [600, 618, 1320, 1880]


@pytest.mark.parametrize("ragged", [False, True])
def test_sounds_share_devices_and_have_the_codes_of_each_alone(ragged, batches):
    """Thirteen sounds on eight devices, one of them of three pieces: those of one length run side by side, two at a
    time on a device where there are more of them than devices."""
    trunk = dataclasses.replace(CONFIG.trunk, init="fan_in")
    if ragged:
        trunk = SeanetConfig(strides=(4, 2), width=4, latent=6, lstm_reach=4, ragged=True)
    codec = nnx.jit(lambda: Codec(dataclasses.replace(CONFIG, trunk=trunk), rngs=nnx.Rngs(0)))()
    draw = np.random.default_rng(3)
    lengths = (800, 1, 799, 800, 60_001, 798, 797, 796, 7, 795, 800, 794, 793)
    sounds = [draw.normal(size=(length, 2)).astype(np.float32) for length in lengths]
    alone = [encode_long(codec, wav_LC) for wav_LC in sounds]
    batches.clear()
    found = list(encode_each(codec, iter(sounds)))
    assert len(found) == len(alone) and len(np.unique(np.concatenate(alone))) > 4
    for codes_PS, expected_PS in zip(found, alone, strict=True):
        np.testing.assert_array_equal(codes_PS, expected_PS)
        assert codes_PS.dtype == np.uint16
    shared = batches.copy()
    batches.clear()
    for wav_LC in sounds:
        encode_long(codec, wav_LC)
    assert sorted(shape[0] for shape in shared) == [2, 4, 16] and sorted(shape[0] for shape in batches) == [1] * 12 + [
        4
    ]


def test_sounds_are_given_as_soon_as_devices_are_full(monkeypatch):
    """At four pieces each two devices hold four minutes of sound, one two minutes; as much again is taken meanwhile."""
    codec = nnx.jit(lambda: Codec(CONFIG, rngs=nnx.Rngs(0)))()
    sounds = [np.zeros((800 * 50, 2), np.float32)] * 12
    taken = []

    def each():
        for wav_LC in sounds:
            taken.append(wav_LC)
            yield wav_LC

    for devices, most in ((1, 3), (2, 5)):
        monkeypatch.setattr(chunked.jax, "local_devices", lambda devices=devices: jax.devices()[:devices])
        taken.clear()
        codes = encode_each(codec, each())
        assert next(codes).shape == (5000, 3)
        codes.close()
        assert len(taken) == 2 * most
