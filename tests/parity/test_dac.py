"""The baseline against transformers' DacModel on random weights: trunks, factorised quantiser, the whole codec."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.codec.codec import Codec, CodecConfig
from hiermusic.codec.dac import DacConfig
from hiermusic.codec.factorised import FactorisedConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

STRIDES, BOOKS, CODES, WIDTH = (2, 4), 3, 32, 4


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    config = transformers.DacConfig(
        encoder_hidden_size=4,
        downsampling_ratios=list(STRIDES),
        upsampling_ratios=list(STRIDES[::-1]),
        decoder_hidden_size=16,
        n_codebooks=BOOKS,
        codebook_size=CODES,
        codebook_dim=WIDTH,
        sampling_rate=8000,
    )
    model = transformers.DacModel(config).eval()
    for name, parameter in model.named_parameters():  # biases and frequencies too are such that an exchange shows
        torch.nn.init.uniform_(parameter, 0.5, 1.5) if "alpha" in name else torch.nn.init.normal_(parameter, std=0.12)
    return model


def numbers(tensor):
    return jnp.asarray(tensor.detach().numpy())


def take_conv(conv, source):
    """A convolution's weights, its norm made explicit; transposed ones have inputs first, in PyTorch as here."""
    transposed = isinstance(source, torch.nn.ConvTranspose1d)
    weight = numbers(source.weight).transpose((2, 0, 1) if transposed else (2, 1, 0))
    conv.weight_v[...] = weight
    conv.weight_g[...] = jnp.sqrt(jnp.sum(jnp.square(weight), (0, 2) if transposed else (0, 1)))
    conv.bias[...] = numbers(source.bias)


def take_snake(snake, source):
    snake.alpha[...] = numbers(source.alpha)[0, :, 0]


def take_unit(unit, source):
    take_snake(unit.snake_in, source.snake1)
    take_conv(unit.conv_in, source.conv1)
    take_snake(unit.snake_out, source.snake2)
    take_conv(unit.conv_out, source.conv2)


def take_block(block, source, strided):
    for unit, name in zip(block.units, ("res_unit1", "res_unit2", "res_unit3"), strict=True):
        take_unit(unit, getattr(source, name))
    take_snake(block.snake, source.snake1)
    take_conv(getattr(block, strided), source.conv1 if strided == "down" else source.conv_t1)


@pytest.fixture(scope="module")
def ours(theirs):
    trunk = DacConfig(STRIDES, encoder_width=4, decoder_width=16, latent=theirs.config.hidden_size, tanh=True)
    quantiser = FactorisedConfig(levels=BOOKS, codes=CODES, width=WIDTH)
    config = CodecConfig(8000, 1, trunk, quantiser)
    codec = nnx.jit(lambda: Codec(config, rngs=nnx.Rngs(0)))()
    for half, source in ((codec.encoder, theirs.encoder), (codec.decoder, theirs.decoder)):
        take_conv(half.conv_in, source.conv1)
        take_snake(half.snake, source.snake1)
        take_conv(half.conv_out, source.conv2)
        for block, other in zip(half.blocks, source.block, strict=True):
            take_block(block, other, "down" if half is codec.encoder else "up")
    for k, one in enumerate(theirs.quantizer.quantizers):
        codec.quantiser.codebooks[k] = numbers(one.codebook.weight)
        for way in ("in", "out"):
            weight = numbers(getattr(one, f"{way}_proj").weight)[..., 0].T
            values = {"proj": weight, "gain": jnp.linalg.norm(weight, axis=0)}
            values["bias"] = numbers(getattr(one, f"{way}_proj").bias)
            for name, value in values.items():
                getattr(codec.quantiser, f"{way}_{name}")[k] = value
    return codec


def test_the_quantiser_is_dacs(ours, theirs):
    z_BTD = np.random.default_rng(0).normal(size=(2, 30, theirs.config.hidden_size)).astype(np.float32)
    with torch.no_grad():
        quantised, codes, _, commitment, codebook = theirs.quantizer(torch.tensor(z_BTD).transpose(1, 2))
    out = nnx.jit(lambda codec, z: codec.quantiser(z))(ours, z_BTD)
    np.testing.assert_array_equal(out.codes_BPS, codes.transpose(1, 2))
    np.testing.assert_allclose(out.z_q_BTD, quantised.transpose(1, 2), rtol=1e-4, atol=1e-4)
    total = float(codebook.mean() + 0.25 * commitment.mean())
    assert float(out.commitment) == pytest.approx(total, rel=1e-4)
    assert len(np.unique(out.codes_BPS)) > 10


def test_the_whole_codec_is_dac(ours, theirs):
    wav = np.random.default_rng(1).normal(size=(2, 40 * 8, 1)).astype(np.float32)
    with torch.no_grad():
        found = theirs(torch.tensor(wav).transpose(1, 2))
    out = nnx.jit(lambda codec, wav: codec.forward(wav))(ours, wav)
    np.testing.assert_array_equal(out.codes_BPS, found.audio_codes.transpose(1, 2))
    theirs_BL = found.audio_values.reshape(2, -1).numpy()
    np.testing.assert_allclose(out.wav_BLC[..., 0], theirs_BL, atol=1e-4)
    assert 0.01 < np.abs(theirs_BL).max() < 0.99
