"""The SEANet trunk against the EnCodec of Hugging Face's transformers, with random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.codec.seanet import Encoder, SeanetConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIG = SeanetConfig(width=4, latent=6)

_apply = jax.jit(lambda trunk, x: trunk(x))


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    config = transformers.EncodecConfig(
        audio_channels=2,
        num_filters=CONFIG.width,
        hidden_size=CONFIG.latent,
        upsampling_ratios=list(CONFIG.strides[::-1]),
        use_causal_conv=False,
        norm_type="weight_norm",
        pad_mode="reflect",
        use_conv_shortcut=True,
        codebook_size=4,
        codebook_dim=CONFIG.latent,
    )
    model = transformers.EncodecModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms and biases away from what they start at
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def _array(parameter):
    return jnp.asarray(parameter.detach().numpy())


def _copy_conv(ours, theirs):
    weight = theirs.conv.parametrizations.weight
    axes = (2, 0, 1) if isinstance(theirs.conv, torch.nn.ConvTranspose1d) else (2, 1, 0)
    ours.weight_g[...] = _array(weight.original0).reshape(-1)
    ours.weight_v[...] = _array(weight.original1).transpose(axes)
    ours.bias[...] = _array(theirs.conv.bias)


def _copy_unit(ours, theirs):
    _copy_conv(ours.conv_in, theirs.block[1])
    _copy_conv(ours.conv_out, theirs.block[3])
    _copy_conv(ours.shortcut, theirs.shortcut)


def _copy_lstm(ours, theirs):
    for i, layer in enumerate(ours.layers):
        layer.weight_ih[...] = _array(getattr(theirs.lstm, f"weight_ih_l{i}")).T
        layer.weight_hh[...] = _array(getattr(theirs.lstm, f"weight_hh_l{i}")).T
        layer.bias[...] = _array(getattr(theirs.lstm, f"bias_ih_l{i}") + getattr(theirs.lstm, f"bias_hh_l{i}"))


def _layers(theirs):
    return iter([layer for layer in theirs.layers if not isinstance(layer, torch.nn.ELU)])


def _encoder(theirs):
    ours, layers = jax.jit(lambda: CONFIG.encoder(2, rngs=nnx.Rngs(0)))(), _layers(theirs)
    _copy_conv(ours.conv_in, next(layers))
    for block in ours.blocks:
        _copy_unit(block.units[0], next(layers))
        _copy_conv(block.down, next(layers))
    _copy_lstm(ours.lstm, next(layers))
    _copy_conv(ours.conv_out, next(layers))
    assert not list(layers)
    return ours


def _decoder(theirs):
    ours, layers = jax.jit(lambda: CONFIG.decoder(2, rngs=nnx.Rngs(0)))(), _layers(theirs)
    _copy_conv(ours.conv_in, next(layers))
    _copy_lstm(ours.lstm, next(layers))
    for block in ours.blocks:
        _copy_conv(block.up, next(layers))
        _copy_unit(block.units[0], next(layers))
    _copy_conv(ours.conv_out, next(layers))
    assert not list(layers)
    return ours


@pytest.fixture(scope="module", params=["encoder", "decoder"])
def halves(theirs, request):
    reference = getattr(theirs, request.param)
    return {"encoder": _encoder, "decoder": _decoder}[request.param](reference), reference


@pytest.mark.parametrize("frames", [1, 2, 9])  # 1 and 2 are shorter than what convolutions at the frame rate mirror
def test_trunk_is_encodecs(halves, frames):
    ours, reference = halves
    shape = (2, frames * CONFIG.hop, 2) if isinstance(ours, Encoder) else (2, frames, CONFIG.latent)
    x = np.random.default_rng(frames).normal(size=shape).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.from_numpy(x.swapaxes(1, 2))).numpy().swapaxes(1, 2)
    assert np.std(expected) > 0.05
    np.testing.assert_allclose(_apply(ours, x), expected, atol=1e-4)
