"""Segments: how a sound is cut, coded one by one whatever its length, and put together again."""

import jax
import numpy as np
import pytest
from flax import nnx

from hiermusic.codec.chunked import decode_long, encode_each, encode_long
from hiermusic.codec.codec import Codec, CodecConfig
from hiermusic.codec.dac import DacConfig
from hiermusic.codec.residual import QuantiserConfig
from hiermusic.codec.seanet import SeanetConfig
from hiermusic.codec.segments import SegmentsConfig, scale_of
from hiermusic.errors import UserError

HOP = 12
SEGMENTS = SegmentsConfig(samples=240, overlap=0.05, hop=HOP, loudness=0.2)  # 20 frames, and a stride of 228 samples
TRUNK = SeanetConfig(
    strides=(2, 6), width=4, latent=6, norm="group", ragged=True, dilations=(1, 2), last_kernel=7, lstm_layers=1
)
CONFIG = CodecConfig(
    sample_rate=1200, channels=2, trunk=TRUNK, quantiser=QuantiserConfig(levels=3, codes=16), segments=SEGMENTS
)

_encode = jax.jit(lambda codec, wav_BLC: codec.encode(wav_BLC))
_decode = jax.jit(lambda codec, codes_BPS: codec.decode(codes_BPS))


@pytest.fixture(scope="module")
def codec():
    codec = nnx.jit(lambda: Codec(CONFIG, rngs=nnx.Rngs(0)))()
    rng = np.random.default_rng(0)
    params = nnx.state(codec, nnx.Param)
    nnx.update(codec, jax.tree.map(lambda w: w + 0.2 * rng.normal(size=w.shape).astype(np.float32), params))
    frames_TD = np.asarray(jax.jit(lambda codec, wav: codec.encoder(wav))(codec, rng.normal(size=(1, 960, 2))))[0]
    books = [0.5**k * rng.permutation(frames_TD)[:16] for k in range(3)]
    codec.quantiser.codebooks[...] = np.stack(books)
    return codec


def sound(length: int) -> np.ndarray:
    rng = np.random.default_rng(length)
    return ((0.1 + 0.3 * np.sin(np.arange(length) / 100)[:, None] ** 2) * rng.normal(size=(length, 2))).astype("f")


def test_a_segment_begins_at_every_stride():
    assert (SEGMENTS.stride, SEGMENTS.frames) == (228, 20)
    for length, parts in {1: [1], 228: [228], 229: [229, 1], 240: [240, 12], 457: [240, 229, 1]}.items():
        wav_LC = np.arange(2 * length).reshape(length, 2)
        cut = SEGMENTS.cut(wav_LC)
        assert list(map(len, cut)) == parts
        assert (cut[-1][0, 0], cut[-1][-1, 1]) == (456 * (len(parts) - 1), 2 * length - 1)
        assert SEGMENTS.packets(length) == sum(-(-part // HOP) for part in parts)


@pytest.mark.parametrize(
    ("samples", "overlap", "hop"), [(48_000, 0.01, 320), (100, 0.5, 10), (100, 0.75, 7), (9, 0, 4)]
)
def test_codes_tell_where_segments_meet(samples, overlap, hop):
    """All but the last have as many frames, however little of the sound the last one would have had for its own."""
    segments = SegmentsConfig(samples, overlap, hop, 0.1)
    fewest = max(3 * segments.stride - 400, 1)
    for length in range(fewest, fewest + 900):
        frames = [-(-len(part_L) // hop) for part_L in segments.cut(np.empty(length, np.int8))]
        assert set(frames[:-1]) <= {segments.frames} and sum(frames) == segments.packets(length)
        assert length <= segments.length(sum(frames))
    for packets in range(1, 4 * segments.frames):
        parts = [min(segments.frames, packets - start) for start in range(0, packets, segments.frames)]
        whole_LC = segments.join([np.ones((frames * hop, 1)) for frames in parts])
        assert len(whole_LC) == segments.length(packets) and segments.packets(len(whole_LC)) >= packets


def test_frames_are_counted_as_they_come():
    """Two of them are of the same sound where segments meet, so there are more than the hop tells."""
    facts = CONFIG.facts
    assert float(facts.frame_rate) == 1200 * 20 / 228 == float(CONFIG.hierarchy.rates[0])
    assert CONFIG.packets(1_000_000) / (1_000_000 / 1200) == pytest.approx(float(facts.frame_rate), rel=1e-4)
    assert CONFIG.packets(229) == 21 and CodecConfig().packets(2049) == 2


def test_scales_are_the_loudness_of_what_both_channels_share():
    wav_LC = np.stack([np.full(300, 0.4), np.full(300, 0.2)], axis=1)
    np.testing.assert_allclose(SEGMENTS.scales(wav_LC), [0.3, 0.3], rtol=1e-6)
    np.testing.assert_allclose(SEGMENTS.scales(wav_LC * [1, -2]), [1e-8, 1e-8], rtol=1e-3)
    assert SEGMENTS.scales(wav_LC).dtype == np.float32


def test_what_was_cut_is_joined_again():
    wav_LC = sound(228 * 4 + 100)
    np.testing.assert_allclose(SEGMENTS.join(SEGMENTS.cut(wav_LC)), wav_LC, atol=1e-6)
    # where two meet, one fades into the other
    two_LC = SEGMENTS.join([np.zeros((240, 1)), np.ones((240, 1))])[:, 0]
    assert not two_LC[:228].any() and (two_LC[240:] == 1).all() and (np.diff(two_LC[227:241]) > 0).all()


@pytest.mark.parametrize("length", [1, 5, HOP + 1, 100, 228, 229, 240, 241, 228 * 9 + 50])
def test_each_segment_is_coded_as_it_would_be_alone(codec, length):
    """At its own length and loudness, in a program of its own; here all are filled up to one length."""
    wav_LC = sound(length)
    parts = SEGMENTS.cut(wav_LC)
    alone = [np.asarray(_encode(codec, (part_LC / scale_of(part_LC))[None]))[0] for part_LC in parts]
    codes_PS = encode_long(codec, wav_LC)
    assert codes_PS.dtype == np.uint16 and (length < 100 or len(np.unique(codes_PS[:, 0])) > 3)
    np.testing.assert_array_equal(codes_PS, np.concatenate(alone))
    scales_N = SEGMENTS.scales(wav_LC)
    made = [np.asarray(_decode(codec, one_PS[None]))[0] * scale for one_PS, scale in zip(alone, scales_N, strict=True)]
    found_LC = decode_long(codec, codes_PS, scales_N=scales_N)
    np.testing.assert_allclose(found_LC, SEGMENTS.join(made), atol=2e-5 * np.abs(found_LC).max())
    assert decode_long(codec, codes_PS, length=length, scales_N=scales_N).shape == (length, 2)


def test_sounds_share_devices_and_have_the_codes_of_each_alone(codec, batches):
    """Nine sounds of 17 segments on eight devices: one run, where each by itself leaves devices without any."""
    sounds = [sound(length) for length in (240, 1, 239, 700, 240, 20, 500, 13, 100)]
    alone = [encode_long(codec, wav_LC) for wav_LC in sounds]
    batches.clear()
    found = list(encode_each(codec, iter(sounds)))
    for codes_PS, expected_PS in zip(found, alone, strict=True):
        np.testing.assert_array_equal(codes_PS, expected_PS)
        assert codes_PS.dtype == np.uint16
    assert sum(len(SEGMENTS.cut(wav_LC)) for wav_LC in sounds) == 17
    assert [shape[0] for shape in batches] == [32] and len(np.unique(np.concatenate(found))) > 4


def test_a_louder_sound_has_the_same_codes_and_other_scales(codec):
    wav_LC = sound(500)
    np.testing.assert_array_equal(encode_long(codec, 4 * wav_LC), encode_long(codec, wav_LC))
    np.testing.assert_allclose(SEGMENTS.scales(4 * wav_LC), 4 * SEGMENTS.scales(wav_LC), rtol=1e-6)
    forward = jax.jit(lambda codec, wav_BLC: codec.forward(wav_BLC).wav_BLC)
    one_BLC, four_BLC = (np.asarray(forward(codec, gain * wav_LC[None, :240])) for gain in (1, 4))
    np.testing.assert_allclose(four_BLC, 4 * one_BLC, rtol=1e-3, atol=1e-4)


def test_codes_without_scales_have_the_loudness_that_the_codec_names(codec):
    codes_PS = encode_long(codec, sound(500))
    named_LC = decode_long(codec, codes_PS, scales_N=np.full(3, 0.2, np.float32))
    np.testing.assert_array_equal(decode_long(codec, codes_PS), named_LC)


def test_what_cannot_be_is_told(codec):
    codes_PS = encode_long(codec, sound(500))
    with pytest.raises(UserError, match="44 packets are 3 segments, for which there are 2 scales"):
        decode_long(codec, codes_PS, scales_N=np.ones(2, np.float32))
    with pytest.raises(UserError, match="holds no samples"):
        encode_long(codec, sound(0))
    with pytest.raises(UserError, match="holds no samples"):
        decode_long(codec, codes_PS[:0])
    for samples in (0, 1 << 25):
        with pytest.raises(UserError, match="give 1 to 16,777,216 samples"):
            SegmentsConfig(samples=samples, overlap=0.1, hop=1, loudness=0.1)
    with pytest.raises(UserError, match="a share below 1"):
        SegmentsConfig(samples=10, overlap=1.0, hop=1, loudness=0.1)
    with pytest.raises(UserError, match="its trunk has to be ragged"):
        CodecConfig(trunk=DacConfig(), segments=SEGMENTS)
