import dataclasses
import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.codec import chunked
from hiermusic.codec.codec import Codec, CodecConfig, quantiser_of
from hiermusic.codec.dac import DacConfig
from hiermusic.codec.factorised import FactorisedConfig
from hiermusic.codec.pyramid import PyramidConfig
from hiermusic.codec.residual import QuantiserConfig
from hiermusic.errors import UserError
from hiermusic.parallel.counting import forward_flops

WIDTH = 6
BOOK = FactorisedConfig(codes=8, width=3)
PLAIN = PyramidConfig(books=(1, 2, 1), book=BOOK, init="fan_in")
HEAVY = dataclasses.replace(PLAIN, strides=(2, 3, 2), dilations=(1, 2))
KINDS = {"plain": PLAIN, "heavy": HEAVY, "residual": dataclasses.replace(PLAIN, residual=True)}
KINDS["averaged"] = dataclasses.replace(KINDS["residual"], book=QuantiserConfig(codes=8))


@functools.cache
def make(kind):
    return nnx.jit(lambda: KINDS[kind].make(WIDTH, rngs=nnx.Rngs(0)))()


def frames(config, packets=3, batch=2, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, packets * config.frames, WIDTH)).astype(np.float32)


@functools.cache
def passed(kind):
    """Frames and what a pass makes of them."""
    x = frames(KINDS[kind])
    return x, nnx.jit(lambda quantiser, x: quantiser(x))(make(kind), x)


@pytest.mark.parametrize(
    ("books", "strides", "rates", "total"),
    [
        ((1, 1, 1), (2, 2, 1), [10.77, 21.53, 43.07], 75.37),
        ((5, 5, 5), (2, 2, 1), [10.77] * 5 + [21.53] * 5 + [43.07] * 5, 376.8),
        ((1, 2, 1), (2, 2, 1), [10.77, 21.53, 21.53, 43.07], 96.90),
        ((2,), (1,), [43.07, 43.07], 86.13),
        ((1, 1, 1, 1, 1), (2, 2, 2, 2, 1), [2.69, 5.38, 10.77, 21.53, 43.07], 83.44),
    ],
)
def test_rates_are_the_papers(books, strides, rates, total):
    """Of the paper's 22,050 Hz and hop of 512, by any number of levels and codebooks."""
    facts = PyramidConfig(books=books, strides=strides).facts(22_050, 512, 1024)
    np.testing.assert_allclose([float(rate) for rate in facts.hierarchy.rates], rates, atol=0.005)
    assert float(facts.hierarchy.tokens_per_second) == pytest.approx(total, abs=0.04)
    assert facts.hierarchy.rates[-1] == facts.frame_rate == Fraction(22_050, 512)


def test_a_trunk_of_twice_the_rate_makes_the_same_tokens():
    """As in the released code, which has one more stride between trunk and levels."""
    released = PyramidConfig(strides=(2, 2, 2))
    assert released.frames == 8 and released.facts(22_050, 256, 1024) == PyramidConfig().facts(22_050, 512, 1024)
    assert released.factors == PyramidConfig().factors == (4, 2, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_encoding_and_decoding_are_nested(kind):
    """Algorithms 1 and 2 of the paper, one level after the other."""
    config = KINDS[kind]
    x, out = passed(kind)

    @nnx.jit
    def by_hand(quantiser, x):
        features = [x]
        for down in list(quantiser.downs)[::-1]:
            features.append(down(features[-1]))
        features = features[::-1][: len(config.books)]
        bend = [quantiser.posts, quantiser.pres] if config.dilations else [[lambda x: x] * 3] * 2
        said, sums, codes = 0.0, [], []
        for i, post, pre in zip(range(3), *bend, strict=True):
            heard = post(features[i]) - said if config.residual else post(features[i]) + said
            codes.append(quantiser.books[i].encode(heard))
            q = quantiser.books[i].decode(codes[-1])
            sums = [quantiser.ups[i - 1](one) for one in sums]
            sums.append(pre(q) + sums[-1] if sums else pre(q))
            said = quantiser.raises[i](q) if i < 2 else None
        return [quantiser.ups[2](one) for one in sums] if len(quantiser.ups) == 3 else sums, codes

    sums, codes = by_hand(make(kind), x)
    codes = [np.asarray(part) for part in codes]
    for made, wanted in zip((*out.coarser, out.z_q_BTD), sums, strict=True):
        np.testing.assert_allclose(made, wanted, atol=1e-4)
    packet = np.asarray(out.codes_BPS)[1, 2]  # the third of the second item, codebook after codebook
    counts, start = config.counts, 0
    for i, book in ((0, 0), (1, 0), (1, 1), (2, 0)):
        there = codes[i][1, 2 * counts[i] : 3 * counts[i], book]
        np.testing.assert_array_equal(packet[start : start + counts[i]], there)
        start += counts[i]
    assert start == out.codes_BPS.shape[-1] == sum(config.slots)
    assert len(np.unique(codes[2])) > 2


@pytest.mark.parametrize("kind", ["plain", "heavy"])
def test_fewer_levels_are_the_first_ones(kind):
    quantiser, config = make(kind), KINDS[kind]
    x, out = passed(kind)
    codes, slots = np.asarray(out.codes_BPS), np.cumsum(config.slots)
    encode = nnx.jit(lambda quantiser, x, levels: quantiser.encode(x, levels), static_argnums=2)
    decode = nnx.jit(lambda quantiser, codes, levels: quantiser.decode(codes, levels), static_argnums=2)
    for levels in (1, 2, 4) if kind == "plain" else (3,):
        first = codes[..., : slots[levels - 1]]
        np.testing.assert_array_equal(encode(quantiser, x, levels), first)
        sound = decode(quantiser, codes, levels)
        np.testing.assert_allclose(sound, decode(quantiser, first, None), atol=1e-5)
        silent = np.where(np.arange(slots[-1]) < slots[levels - 1], codes, -1)
        np.testing.assert_allclose(sound, decode(quantiser, silent, None), atol=1e-4)
        whole = {1: out.coarser[0], 3: out.coarser[1], 4: out.z_q_BTD}  # the second level has two codebooks
        if levels in whole:
            np.testing.assert_allclose(sound, whole[levels], atol=1e-4)
    with pytest.raises(ValueError, match="hold no whole number of levels"):
        quantiser.decode(codes[..., :2])


def test_fewer_levels_cost_less():
    """To encode: no codebook and no upsampler of the finer ones; to decode: no convolution towards them."""
    quantiser, x = make("heavy"), passed("heavy")[0]
    codes = np.asarray(passed("heavy")[1].codes_BPS)
    z = [jnp.zeros((2, 3 * count, WIDTH)) for count in HEAVY.counts]

    def differences(function, first):
        made = [forward_flops(lambda first, n=n: function(first, n), first) for n in (1, 3, 4)]
        return np.diff(made)

    for i, saved in enumerate(differences(quantiser.encode, x)):
        assert saved > forward_flops(quantiser.raises[i], z[i]) + forward_flops(quantiser.posts[i + 1], z[i + 1])
    for i, saved in enumerate(differences(quantiser.decode, codes)):
        assert saved > forward_flops(quantiser.pres[i + 1], z[i + 1])


def test_each_level_has_its_own_loss_and_statistics():
    _, out = passed("plain")
    assert out.commitment.shape == (3,) and np.all(out.commitment > 0)
    assert {name: value.shape for name, value in out.stats.items()} == dict.fromkeys(
        ("commitment_K", "perplexity_K", "usage_K"), (4,)
    )
    quantiser = make("plain")
    assert quantiser.codebooks.shape == (4, 8, 3) and quantiser.ema_counts.shape == (4, 8)


def test_past_the_codebooks_goes_a_pyramid_too():
    """Whatever a level's maps let through, without an error of codes."""

    @nnx.jit
    def both(quantiser, finest):
        middle = quantiser.downs[1](finest)
        q0 = quantiser.books[0].bypass(quantiser.downs[0](middle))[0]
        q1 = quantiser.books[1].bypass(middle + quantiser.raises[0](q0))[0]
        q2 = quantiser.books[2].bypass(finest + quantiser.raises[1](q1))[0]
        first, second = quantiser.ups[0](q0), quantiser.ups[0](q0) + q1
        sums = (quantiser.ups[1](first), quantiser.ups[1](second), quantiser.ups[1](second) + q2)
        return quantiser.bypass(finest), sums

    for made, wanted in zip(*both(make("plain"), passed("plain")[0]), strict=True):
        np.testing.assert_allclose(made, wanted, atol=1e-4)


def test_every_weight_learns_from_some_level():
    quantiser, x = make("heavy"), passed("heavy")[0]
    graph, weights, rest = nnx.split(quantiser, nnx.Param, ...)

    def loss(weights):
        out = nnx.merge(graph, weights, rest)(x)
        return sum(jnp.sum(jnp.square(z)) for z in (*out.coarser, out.z_q_BTD)) + jnp.sum(out.commitment)

    found = jax.jit(jax.grad(loss))(weights)
    still = [path for path, leaf in nnx.to_flat_state(found) if not np.any(leaf[...])]
    assert still == []


CODEC = CodecConfig(
    sample_rate=8000,
    channels=1,
    trunk=DacConfig(strides=(2, 2), dilations=(1,), encoder_width=2, decoder_width=8, latent=WIDTH, init="fan_in"),
    quantiser=PLAIN,
)


@functools.cache
def codec():
    return nnx.jit(lambda: Codec(CODEC, rngs=nnx.Rngs(0)))()


def wave(packets):
    return np.random.default_rng(1).normal(size=(2, packets * CODEC.packet, 1)).astype(np.float32)


HEARING = dataclasses.replace(CODEC, mel_bands=4, quantiser=dataclasses.replace(PLAIN, mel_finest=True))
BANDED = {
    kind: dataclasses.replace(HEARING, quantiser=dataclasses.replace(KINDS[kind], mel_finest=True)) for kind in KINDS
}


@functools.cache
def hearing(kind="plain"):
    return nnx.jit(lambda: Codec(BANDED[kind], rngs=nnx.Rngs(0)))()


@functools.cache
def unlike(kind):
    """A codec like that one, but for what its finest level makes of the bands."""
    other = nnx.clone(hearing(kind))
    gain_D = other.mel_branch.conv.weight_g
    gain_D[...] = -gain_D[...]
    return other


@pytest.mark.parametrize("kind", ["plain", "heavy"])
def test_the_finest_level_alone_hears_the_bands(kind):
    wav = np.random.default_rng(3).normal(size=(2, 3 * hearing(kind).packet - 5, 1)).astype(np.float32)

    @nnx.jit
    def run(codec, wav):
        return codec.forward(wav, coarser=True), codec.forward(wav, quantise=False, coarser=True), codec.encode(wav)

    coarse = sum(KINDS[kind].slots[:-1])
    (*ours, codes), (*others, _) = run(hearing(kind), wav), run(unlike(kind), wav)
    for a, b in zip(ours, others, strict=True):
        np.testing.assert_array_equal(a.codes_BPS[..., :coarse], b.codes_BPS[..., :coarse])
        assert np.any(a.codes_BPS[..., coarse:] != b.codes_BPS[..., coarse:])
        for one, other in zip(a.coarser, b.coarser, strict=True):
            np.testing.assert_array_equal(one, other)
        assert np.abs(a.wav_BLC - b.wav_BLC).max() > 1e-3
    np.testing.assert_array_equal(codes, ours[0].codes_BPS)


@pytest.mark.parametrize("kind", ["plain", "heavy", "residual"])
def test_the_finest_level_hears_nothing_else(kind):
    """Of the trunk's frames, or of the levels above it."""
    quantiser, config = hearing(kind).quantiser, KINDS[kind]
    own = np.random.default_rng(5).normal(size=(2, 3 * config.counts[-1], WIDTH)).astype(np.float32)
    encode = nnx.jit(lambda quantiser, x, own: quantiser.encode(x, None, own))
    one, other = (encode(quantiser, frames(config, seed=seed), own) for seed in (0, 1))
    coarse = sum(config.slots[:-1])
    assert np.any(one[..., :coarse] != other[..., :coarse])
    np.testing.assert_array_equal(one[..., coarse:], other[..., coarse:])
    assert len(quantiser.raises) == 1 and len(np.unique(one[..., coarse:])) > 2


def test_the_bands_have_a_frame_for_each_token_of_the_finest_level():
    """Also where the trunk has two."""
    assert HEARING.mel_hop == HEARING.hop == hearing().mel_branch.hop == 4
    assert BANDED["heavy"].mel_hop == 2 * BANDED["heavy"].hop == hearing("heavy").mel_branch.hop == 8
    everyone = dataclasses.replace(BANDED["heavy"], quantiser=HEAVY)
    assert everyone.mel_hop == everyone.hop == 4


def test_codes_of_the_coarser_levels_cost_no_bands():
    wav = wave(3)

    def cost(codec, levels):
        return forward_flops(lambda wav: codec.encode(wav, levels), wav)

    assert cost(hearing(), 3) == cost(codec(), 3)
    assert cost(hearing(), 4) > cost(hearing(), 3) + forward_flops(hearing().mel_branch, wav) > cost(hearing(), 3)


def test_pieces_are_coded_with_bands_as_the_whole_is():
    codec = hearing("averaged")
    rng = np.random.default_rng(4)
    loud = np.repeat(10 ** rng.uniform(-3, 0, (150, 1)), codec.packet, axis=0)
    wav = (loud * rng.normal(size=loud.shape))[:-3].astype(np.float32)
    whole = np.asarray(nnx.jit(lambda codec, wav: codec.encode(wav))(codec, wav[None]))[0]
    np.testing.assert_array_equal(chunked.encode_long(codec, wav, chunk_seconds=0.15), whole)
    assert len(np.unique(whole[:, -4:])) > 3


def test_bands_for_no_level_are_refused():
    with pytest.raises(UserError, match="mel_finest is True: give mel_bands"):
        dataclasses.replace(HEARING, mel_bands=0)
    with pytest.raises(UserError, match=r"^model\.mel_finest=True leaves no level for .*: give two levels or more"):
        PyramidConfig(books=(2,), strides=(1,), mel_finest=True)


def test_a_codec_rebuilds_each_resolution_in_one_pass():
    wav = wave(3)[:, :-5]

    @nnx.jit
    def both(codec, wav):
        codes = codec.encode(wav)
        return codec.forward(wav, coarser=True), codes, [codec.decode(codes, wav.shape[1], n) for n in (1, 3, 4)]

    out, codes, decoded = both(codec(), wav)
    np.testing.assert_array_equal(out.codes_BPS, codes)
    assert CODEC.packet == 16 and CODEC.factors == (4, 2, 1)
    for made, wanted in zip((*out.coarser, out.wav_BLC), decoded, strict=True):
        np.testing.assert_allclose(made, wanted, atol=1e-4)
    past = jax.eval_shape(lambda wav: codec().forward(wav, quantise=False, coarser=True), wav)
    assert len(past.coarser) == 2 and past.commitment.shape == (3,)
    assert jax.eval_shape(lambda wav: codec().forward(wav), wav).coarser == ()  # where nobody asks


def test_long_songs_compute_no_level_that_was_not_asked_for(monkeypatch):
    """By one program for each resolution, whatever the number of levels."""
    codes = np.random.default_rng(2).integers(0, 8, (9, sum(PLAIN.slots)))
    packets, programs = [], []

    def decode(graph, state, codes_BPS):
        packets.append(np.asarray(codes_BPS))
        programs.append(forward_flops(lambda state, codes: nnx.merge(graph, state).decode(codes), state, codes_BPS))
        return np.zeros((*codes_BPS.shape[:1], codes_BPS.shape[1] * CODEC.packet, 1))

    monkeypatch.setattr(chunked, "decode", decode)
    for levels in (1, 2, 3, 4, None):
        chunked.decode_long(codec(), codes, levels=levels)
    held = packets[0].shape[1]
    whole = jnp.zeros((1, held, sum(PLAIN.slots)), jnp.int32)
    needed = [forward_flops(lambda codes, n=n: codec().decode(codes, levels=n), whole) for n in (1, 3, 4)]
    assert programs == [needed[i] for i in (0, 1, 1, 2, 2)] and needed[0] < needed[1] < needed[2]
    assert [part.shape[-1] for part in packets] == [1, 5, 5, 9, 9]
    assert np.all(packets[1][..., 3:] == -1) and np.all(packets[2] >= 0)
    for part in packets:
        there = part[0, :9] >= 0
        np.testing.assert_array_equal(part[0, :9][there], codes[:, : part.shape[-1]][there])


@pytest.mark.parametrize("kind", ["plain", "heavy"])
def test_no_code_and_no_sample_reaches_beyond_the_margin(kind):
    trunk = dataclasses.replace(CODEC.trunk, strides=(2,), encoder_width=3, decoder_width=6)
    config = dataclasses.replace(CODEC, trunk=trunk, quantiser=KINDS[kind])
    reaching = nnx.eval_shape(lambda: Codec(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(reaching)
    state = jax.tree.map(lambda x: jnp.full(x.shape, 0.1, x.dtype), state)
    packets = 2 * max(config.encoder_margin, config.decoder_margin) + 3
    middle = packets // 2

    def touched(function, x, packet):
        """First and last packet that the middle one of what is made depends on."""
        gradient = jax.jit(jax.grad(lambda x: jnp.sum(function(x)[packet])))(x)
        places = np.flatnonzero(np.abs(gradient.reshape(packets, -1)).max(1))
        return middle - places.min(), places.max() - middle

    def latents(wav):
        made = nnx.merge(graph, state)
        z = made.quantiser.bypass(made._latents(wav[None]))  # through what every level reads
        return sum(z)[0].reshape(packets, -1)

    quantiser = config.quantiser

    def sound(z):
        made = nnx.merge(graph, state)
        spoken, start = [], 0
        for count in quantiser.counts:
            spoken.append(z[:, start : start + count].reshape(1, -1, WIDTH))
            start += count
        return made._waveform(made.quantiser._summed(spoken)[-1], None)[0].reshape(packets, -1)

    wav = jnp.asarray(wave(1)[:1, :1, 0]) + jnp.sin(jnp.arange(packets * config.packet))[:, None]
    before, behind = touched(latents, wav, middle)
    # what codes depend on goes up to them again, never on to the trunk's frames
    assert 0 < max(before, behind) <= config.encoder_margin + -(-quantiser.decoder_reach // quantiser.frames)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(packets, sum(quantiser.counts), WIDTH)), jnp.float32)
    before, behind = touched(sound, z, middle)
    assert 0 < max(before, behind) <= config.decoder_margin


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"books": ()}, "model.books=()"),
        ({"books": (1, 0, 1)}, "model.books=(1, 0, 1)"),
        ({"books": (1, 1)}, "model.level_strides has 3 numbers for the 2 levels of model.books"),
        ({"strides": (2, 1, 1)}, "model.level_strides=(2, 1, 1): a level has at least 2 tokens"),
        ({"strides": (2, 2, 0)}, "model.level_strides=(2, 2, 0)"),
    ],
)
def test_what_cannot_be_is_one_line(wrong, words):
    with pytest.raises(UserError) as told:
        PyramidConfig(**wrong)
    assert words in str(told.value)


def test_a_pyramid_cannot_be_made_of_its_facts():
    with pytest.raises(UserError, match=r"tokens\.quantiser is 'pyramid'"):
        quantiser_of(PyramidConfig().facts(22_050, 512, 1024))


def test_bare_trunks_end_where_the_pyramid_begins():
    trunk = DacConfig(strides=(2, 2), encoder_width=2, decoder_width=8, latent=8, bare=True)
    encoder = nnx.eval_shape(lambda: trunk.encoder(1, rngs=nnx.Rngs(0)))
    assert not hasattr(encoder, "conv_out")
    with pytest.raises(UserError, match="ends with 8 channels and begins again with 16: make"):
        dataclasses.replace(trunk, decoder_width=16)
