import dataclasses
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.codec.codec import Codec, CodecConfig, with_noise
from hiermusic.codec.dac import DacConfig, Decoder, Encoder
from hiermusic.codec.residual import QuantiserConfig, ResidualQuantiser
from hiermusic.errors import UserError

HOP, LENGTH = 32, 100
TINY = CodecConfig(
    trunk=DacConfig(strides=(4, 8), dilations=(3,), encoder_width=4, decoder_width=16, latent=6),
    quantiser=QuantiserConfig(levels=3, codes=8, kmeans_iterations=2),
)


_train = nnx.jit(lambda codec, wav, key: codec.forward(wav, key=key, train=True))
_forward = nnx.jit(lambda codec, wav: codec.forward(wav))
_encode = nnx.jit(lambda codec, wav: codec.encode(wav))
_decode = nnx.jit(lambda codec, codes, length, levels: codec.decode(codes, length, levels), static_argnums=(2, 3))


@nnx.jit
def _gradients(codec, wav):
    def loss(codec):
        out = codec.forward(wav)
        return jnp.mean((out.wav_BLC - wav) ** 2) + out.commitment

    return nnx.grad(loss)(codec)


@pytest.fixture(scope="module")
def codec():
    codec = nnx.jit(lambda: Codec(TINY, rngs=nnx.Rngs(0)))()
    _train(codec, _noise(12 * HOP), jax.random.key(0))
    return codec


def _twin(codec, **changes):
    """Another codec with the same weights."""
    config = dataclasses.replace(TINY, trunk=dataclasses.replace(TINY.trunk, **changes))
    graph, _ = nnx.split(nnx.eval_shape(lambda: Codec(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, nnx.state(codec))


def _noise(length, batch=2, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(batch, length, 2)) * 0.3, jnp.float32)


def _parameters(make):
    model = nnx.eval_shape(make)
    return sum(math.prod(v.shape) for _, v in nnx.to_flat_state(nnx.state(model)))


def test_paper_sizes_are_khalas():
    """Weights, weight_g, biases and Snake frequencies all counted, as the spec of the release counts them."""
    strides, dilations = (4, 8, 8, 8), (1, 3, 9)
    assert _parameters(lambda: Encoder(2, 128, strides, dilations, 128, rngs=nnx.Rngs(0))) == 78_560_640
    assert _parameters(lambda: Decoder(2, 3072, strides[::-1], dilations, 128, rngs=nnx.Rngs(0))) == 177_710_596
    quantiser = nnx.eval_shape(lambda: ResidualQuantiser(128, QuantiserConfig(), rngs=nnx.Rngs(0)))
    assert math.prod(quantiser.codebooks.shape) == 8_388_608


def test_defaults_are_the_paper_configuration():
    config = CodecConfig()
    assert config.hop == 2048
    assert config.hierarchy.sizes == (1024,) * 64
    assert config.hierarchy.rates == (Fraction(44_100, 2048),) * 64


@pytest.mark.parametrize("length", [1, HOP - 1, HOP, HOP + 1, 800])
def test_any_length_comes_back_exactly(codec, length):
    codes = jax.eval_shape(codec.encode, _noise(length))
    assert codes.shape == (2, -(-length // HOP), 3)
    wav = jax.eval_shape(lambda codes: codec.decode(codes, length), codes)
    assert wav.shape == (2, length, 2) and wav.dtype == jnp.float32


def test_one_sample_is_a_clip(codec):
    wav = _forward(codec, _noise(1)).wav_BLC
    assert wav.shape == (2, 1, 2) and np.isfinite(wav).all()


def test_forward_is_encode_then_decode(codec):
    wav = _noise(LENGTH)
    out, codes = _forward(codec, wav), _encode(codec, wav)
    np.testing.assert_array_equal(codes, out.codes_BPS)
    np.testing.assert_allclose(_decode(codec, codes, LENGTH, None), out.wav_BLC, atol=1e-5)
    fewer = _decode(codec, codes, LENGTH, 2)
    np.testing.assert_allclose(fewer, _decode(codec, codes[..., :2], LENGTH, None), atol=1e-6)
    assert np.any(fewer != out.wav_BLC)


@pytest.mark.parametrize("strides", [(2, 4, 5), (3, 5)])
def test_odd_strides_lose_no_sample(strides):
    config = dataclasses.replace(TINY, trunk=dataclasses.replace(TINY.trunk, strides=strides, dilations=(1,)))
    codec = nnx.eval_shape(lambda: Codec(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(codec)
    codes = jax.eval_shape(lambda state, wav: nnx.merge(graph, state).encode(wav), state, _noise(3 * config.hop - 1))
    assert codes.shape[1] == 3
    wav = jax.eval_shape(lambda state, codes: nnx.merge(graph, state).decode(codes), state, codes)
    assert wav.shape[1] == 3 * config.hop


def test_folded_samples_lie_side_by_side():
    """A trunk that folds is the one that does not, on samples laid out as channels by hand."""
    plain = DacConfig(strides=(4,), dilations=(1,), encoder_width=4, decoder_width=8, latent=6)
    folding = dataclasses.replace(plain, fold=8)
    wav = _noise(4 * 32)
    run = nnx.jit(lambda trunk, x: trunk(x))
    wide, folded = plain.encoder(16, rngs=nnx.Rngs(0)), folding.encoder(2, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(run(wide, wav.reshape(2, -1, 16)), frames := run(folded, wav))
    wide, folded = plain.decoder(16, rngs=nnx.Rngs(0)), folding.decoder(2, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(run(wide, frames).reshape(2, -1, 2), again := run(folded, frames))
    assert frames.shape == (2, 4, 6) and again.shape == wav.shape
    with pytest.raises(UserError, match="fold is 0"):
        DacConfig(fold=0)


def test_gradients_reach_both_trunks_and_no_codebook(codec):
    flat = dict(nnx.to_flat_state(_gradients(codec, _noise(LENGTH))))
    assert all(float(jnp.abs(g[...]).max()) > 0 for path, g in flat.items())
    assert {path[0] for path in flat} == {"encoder", "decoder"}


def test_remat_changes_no_number(codec):
    plain, again = (_gradients(c, _noise(LENGTH)) for c in (codec, _twin(codec, remat="full")))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_bfloat16_stays_near_float32(codec):
    codes = _encode(codec, _noise(LENGTH))
    wide, narrow = (_decode(c, codes, LENGTH, None) for c in (codec, _twin(codec, dtype="bfloat16")))
    assert narrow.dtype == jnp.float32
    assert float(jnp.linalg.norm(wide - narrow) / jnp.linalg.norm(wide)) < 0.05


def test_wrong_audio_is_refused(codec):
    with pytest.raises(UserError, match="2-channel"):
        codec.encode(jnp.zeros((1, 100, 1)))
    with pytest.raises(UserError, match="0 samples"):
        codec.encode(jnp.zeros((1, 0, 2)))


def test_noise_lies_so_far_below_the_latents():
    x_BTD = jax.random.normal(jax.random.key(0), (4, 500, 64)) * 3 + 7  # what all frames share says nothing
    noise_BTD = with_noise(jax.random.key(1), x_BTD, (5, 5)) - x_BTD
    ratio_B = 20 * jnp.log10(3 / jnp.std(noise_BTD, axis=(1, 2)))
    np.testing.assert_allclose(ratio_B, 5, atol=0.2)
    ratio_B = 20 * jnp.log10(3 / jnp.std(with_noise(jax.random.key(1), x_BTD, (-10, 20)) - x_BTD, axis=(1, 2)))
    assert len(set(np.round(np.asarray(ratio_B), 1))) == 4 and -10.3 < ratio_B.min() < ratio_B.max() < 20.3


def test_no_scale_of_the_latents_escapes_the_noise():
    def signal_to_noise(scale):
        x_BTD = scale * jax.random.normal(jax.random.key(0), (2, 50, 8))
        noise_BTD = with_noise(jax.random.key(1), x_BTD, (0, 10)) - x_BTD
        return jnp.sum(x_BTD**2) / jnp.sum(noise_BTD**2)

    assert jax.grad(signal_to_noise)(2.0) == pytest.approx(0, abs=1e-4)


def test_noise_is_for_training_past_the_codebooks(codec):
    noisy = nnx.merge(nnx.graphdef(codec), nnx.state(codec))
    noisy.config = dataclasses.replace(TINY, noise_db=(0.0, 10.0))
    wav, key = _noise(4 * HOP), jax.random.key(3)

    def differ(**how):
        return not np.array_equal(*(one.forward(wav, key=key, **how).wav_BLC for one in (codec, noisy)))

    assert differ(train=True, quantise=False)
    assert not differ(quantise=False) and not differ(train=False)


def test_past_the_codebooks_nothing_of_them_moves_or_is_paid():
    """However often the trunk is warmed up in training, the codebooks neither start nor cost."""
    codec = nnx.jit(lambda: Codec(TINY, rngs=nnx.Rngs(0)))()
    before = jax.tree.map(np.asarray, nnx.state(codec.quantiser))
    out = nnx.jit(lambda codec, wav, key: codec.forward(wav, key=key, train=True, quantise=False))(
        codec, _noise(12 * HOP), jax.random.key(0)
    )
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, nnx.state(codec.quantiser)))
    assert not codec.quantiser.initialised[...] and float(out.commitment) == 0
    heard = nnx.jit(lambda codec, wav: codec.decoder(codec.encoder(wav)))(codec, _noise(12 * HOP))
    np.testing.assert_allclose(out.wav_BLC, heard, atol=1e-5)


@pytest.mark.parametrize("noise_db", [(3.0,), (10.0, 0.0), (1.0, 2.0, 3.0)])
def test_noise_is_a_rising_pair(noise_db):
    with pytest.raises(UserError, match="give the lowest and the highest"):
        CodecConfig(noise_db=noise_db)
