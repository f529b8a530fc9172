import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.codec.seanet import SeanetConfig
from hiermusic.errors import UserError
from hiermusic.parallel.mesh import make_mesh, shardings

TINY = SeanetConfig(strides=(2, 3), width=4, latent=6)

_apply = jax.jit(lambda trunk, x: trunk(x))
_gradient = jax.jit(jax.grad(lambda trunk, x: jnp.mean(jnp.square(trunk[1](trunk[0](x)) - x))))


def _make(config, channels=1):
    rngs = nnx.Rngs(0)
    return config.encoder(channels, rngs=rngs), config.decoder(channels, rngs=rngs)


def _build(config, channels=1):
    return jax.jit(lambda: _make(config, channels))()


def _noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _parameters(half):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(half)))


@pytest.mark.parametrize(("latent", "millions"), [(1024, 10.64), (128, 7.43)])
def test_paper_sizes_are_sats(latent, millions):
    """The two released settings; PyTorch's second bias of every LSTM layer is counted as the release counts it."""
    config = SeanetConfig(latent=latent)
    second_biases = config.lstm_layers * 4 * 512
    for half in nnx.eval_shape(lambda: _make(config)):
        assert _parameters(half) + second_biases == pytest.approx(millions * 1e6, abs=0.005e6)
    assert config.hop == 320


def _shapes(config, length):
    def run(wav):
        encoder, decoder = _make(config, channels=2)
        latents = encoder(wav)
        return latents, decoder(latents)

    return jax.eval_shape(run, jax.ShapeDtypeStruct((3, length, 2), jnp.float32))


@pytest.mark.parametrize("frames", [1, 2, 40])
@pytest.mark.parametrize(("fold", "strides", "hop"), [(1, (2, 3), 6), (1, (2, 4, 5, 8), 320), (16, (4, 5), 320)])
def test_a_frame_for_every_hop_and_back(fold, strides, hop, frames):
    config = dataclasses.replace(TINY, fold=fold, strides=strides)
    assert config.hop == hop
    latents, wav = _shapes(config, frames * hop)
    assert latents.shape == (3, frames, 6)
    assert wav.shape == (3, frames * hop, 2)


def test_folded_samples_are_channels():
    """Folding is the trunk of as many channels, over the same samples in the same order."""
    wav = _noise(2, 8 * TINY.hop, 6)
    encoder, decoder = trunk = _build(TINY, channels=6)
    folded = nnx.eval_shape(lambda: _make(dataclasses.replace(TINY, fold=3), channels=2))
    folding, unfolding = nnx.merge(nnx.graphdef(folded), nnx.state(trunk))
    latents = _apply(encoder, wav)
    np.testing.assert_array_equal(_apply(folding, wav.reshape(2, -1, 2)), latents)
    np.testing.assert_array_equal(_apply(unfolding, latents).reshape(wav.shape), _apply(decoder, latents))


@pytest.mark.parametrize(
    "changes",
    [
        {"strides": (3, 2), "dilations": (1, 2), "kernel": 3},
        {"strides": (2, 4, 5, 8)},
        {"strides": (4, 5), "fold": 4},
    ],
)
def test_margins_of_the_convolutions_are_honest_and_no_wider_than_needed(changes):
    config = dataclasses.replace(TINY, lstm_layers=0, width=2, **changes)
    encoder, decoder = _build(config)
    frames, middle = 25, 12
    latents, wav = _noise(1, frames, 6), _noise(1, frames * config.hop, 1)

    def reach(trunk, x, size, frame):
        """Frames on either side that change what `frame` comes to, when all further ones do."""
        whole = np.asarray(_apply(trunk, x)).reshape(frames, -1)[frame]
        for margin in range(frames):
            changed = -x.reshape(frames, size, -1)
            changed[max(frame - margin, 0) : frame + margin + 1] *= -1
            if np.array_equal(np.asarray(_apply(trunk, changed.reshape(x.shape))).reshape(frames, -1)[frame], whole):
                return margin
        raise AssertionError("everything depends on everything")

    assert reach(encoder, wav, config.hop, middle) == config.encoder_margin
    assert config.decoder_margin - 1 <= reach(decoder, latents, 1, middle) <= config.decoder_margin
    assert reach(encoder, wav, config.hop, 0) <= config.encoder_margin  # where the signal is mirrored
    assert reach(decoder, latents, 1, frames - 1) <= config.decoder_margin


def test_a_piece_with_margins_agrees_closely_where_there_is_an_lstm():
    (encoder, decoder), hop = _build(TINY), TINY.hop
    wav, latents = _noise(1, 250 * hop, 1), _noise(1, 250, 6)
    start, stop = 110 - TINY.encoder_margin, 130 + TINY.encoder_margin
    piece = _apply(encoder, wav[:, start * hop : stop * hop])[:, TINY.encoder_margin :][:, :20]
    np.testing.assert_allclose(piece, _apply(encoder, wav)[:, 110:130], atol=1e-5)
    start, stop = 110 - TINY.decoder_margin, 130 + TINY.decoder_margin
    piece = _apply(decoder, latents[:, start:stop])[:, TINY.decoder_margin * hop :][:, : 20 * hop]
    np.testing.assert_allclose(piece, _apply(decoder, latents)[:, 110 * hop : 130 * hop], atol=1e-5)


def test_narrow_trunks_keep_the_signals_size():
    encoder, decoder = _build(SeanetConfig(width=4, latent=8))
    latents = _apply(encoder, _noise(4, 10 * 320, 1))
    wav = _apply(decoder, latents)
    assert 0.2 < np.std(latents) < 2 and 0.1 < np.std(wav) < 2


def test_every_weight_learns():
    for leaf in jax.tree.leaves(_gradient(_build(TINY), _noise(2, 8 * TINY.hop, 1))):
        assert np.isfinite(leaf).all() and np.any(leaf)


def test_recomputing_blocks_changes_no_gradient():
    trunk, wav = _build(TINY), _noise(2, 8 * TINY.hop, 1)
    graph = nnx.graphdef(nnx.eval_shape(lambda: _make(dataclasses.replace(TINY, remat="full"))))
    again = _gradient(nnx.merge(graph, nnx.state(trunk)), wav)
    for a, b in zip(jax.tree.leaves(_gradient(trunk, wav)), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_computes_in_the_type_it_is_told():
    for dtype in ("float32", "bfloat16"):
        assert [x.dtype for x in _shapes(dataclasses.replace(TINY, dtype=dtype), 12)] == [dtype, dtype]


@pytest.mark.parametrize("sizes", [{"fsdp": 2, "tensor": 2, "data": 2}, {"data": 2, "context": 4}])
def test_any_mesh_gives_the_same_gradient(sizes):
    config = dataclasses.replace(TINY, strides=(2,), lstm_layers=1)
    trunk, wav = _build(config), _noise(4, 16 * config.hop, 1)
    expected, mesh = _gradient(trunk, wav), make_mesh(sizes)
    with jax.set_mesh(mesh):
        result = _gradient(jax.device_put(trunk, shardings(trunk, mesh)), wav)
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("field", ["dtype", "init", "remat"])
def test_unknown_choices_are_refused(field):
    with pytest.raises(UserError, match=f"codec {field} is 'half': choose from"):
        dataclasses.replace(TINY, **{field: "half"})


def test_a_fold_below_one_is_refused():
    with pytest.raises(UserError, match="fold is 0"):
        dataclasses.replace(TINY, fold=0)
