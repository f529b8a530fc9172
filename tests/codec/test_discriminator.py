import math

import jax
import numpy as np
import pytest
from flax import nnx

from hiermusic.codec.discriminator import GOLDEN_SIZES, Discriminator, DiscriminatorConfig


def _build(sizes):
    return nnx.jit(lambda: Discriminator(2, DiscriminatorConfig(sizes=sizes, filters=2), rngs=nnx.Rngs(0)))()


def _noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def _parameters(config):
    model = nnx.eval_shape(lambda: Discriminator(2, config, rngs=nnx.Rngs(0)))
    return sum(math.prod(v.shape) for _, v in nnx.to_flat_state(nnx.state(model)))


def test_sizes_are_khalas_and_encodecs():
    assert _parameters(DiscriminatorConfig()) == pytest.approx(11.93e6, rel=0.002)
    assert _parameters(DiscriminatorConfig(sizes=GOLDEN_SIZES[:5], filters=32)) == pytest.approx(0.481e6, rel=0.005)


@pytest.mark.parametrize("length", [1, 700])  # shorter than any window, longer than all
def test_every_scale_judges_clips_of_any_length(length):
    logits, features = nnx.jit(lambda model, wav: tuple(model(wav)))(_build((78, 334)), _noise(3, length, 2))
    assert [len(maps) for maps in features] == [5, 5]
    for size, scale, maps in zip((78, 334), logits, features, strict=True):
        frames = 1 + max(length - size, 0) // (size // 2)
        assert scale.shape[:2] == (3, frames) and scale.shape[-1] == 1
        # Three convolutions of stride 2 run over frequency only.
        assert maps[0].shape == (3, frames, size // 2 + 1, 2)
        assert maps[-1].shape[1] == frames and maps[-1].shape[2] == -(-(size // 2 + 1) // 8)
        assert np.isfinite(scale).all()


def test_both_channels_are_heard():
    discriminator = _build((78,))
    gradient = jax.jit(jax.grad(lambda wav: discriminator(wav).logits[0].sum()))(_noise(1, 300, 2))
    assert np.all(np.abs(gradient).max(axis=(0, 1)) > 0)
