import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from hiermusic.errors import UserError
from hiermusic.train.optimiser import OptimiserConfig, decay_mask


class Model(nnx.Module):
    def __init__(self):
        self.matrix = nnx.Param(jnp.ones((4, 3)), axes=("embed", "mlp"))
        self.stacked_bias = nnx.Param(jnp.ones((2, 3)), axes=("layers", "mlp"))
        self.plain_kernel = nnx.Param(jnp.ones((3, 3)))
        self.scale = nnx.Param(jnp.ones(3))


def rates(steps=20, upto=24, **fields):
    rate = OptimiserConfig(learning_rate=1.0, warmup_steps=4, **fields).rate(steps)
    return np.array([rate(step) for step in range(upto)])


def test_every_schedule_warms_up_without_an_idle_step():
    for schedule in ("constant", "cosine", "wsd", "exponential"):
        np.testing.assert_allclose(rates(schedule=schedule)[:5], [0.25, 0.5, 0.75, 1, 1], rtol=1e-6)


def test_schedules_end_where_they_should():
    assert (rates(schedule="constant")[4:] == 1).all()
    cosine = rates(schedule="cosine", final_share=0.1)
    assert np.isclose(cosine[12], 0.55) and np.allclose(cosine[20:], 0.1) and (np.diff(cosine[4:21]) < 0).all()
    wsd = rates(schedule="wsd", decay_share=0.2, final_share=0.0)
    assert (wsd[4:17] == 1).all() and np.allclose(wsd[17:21], [0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(rates(schedule="exponential", gamma=0.5)[4:7], [1, 0.5, 0.25])


def test_decay_steps_overrule_the_length_of_the_run():
    np.testing.assert_array_equal(rates(steps=1000, decay_steps=20), rates(steps=20))


@pytest.mark.parametrize("warmup", [0, 1])
def test_short_warmups(warmup):
    rate = OptimiserConfig(learning_rate=1.0, warmup_steps=warmup, schedule="cosine").rate(1)
    assert rate(0) == 1.0


def test_weight_decay_spares_vectors_stacked_or_not():
    mask = decay_mask(Model())
    assert dict(mask) == {"matrix": True, "stacked_bias": False, "plain_kernel": True, "scale": False}


def test_updates_decay_and_clip():
    config = OptimiserConfig(learning_rate=0.1, warmup_steps=0, schedule="constant", weight_decay=0.5)
    model = Model()
    optimiser = nnx.Optimizer(model, config.transform(model, 10), wrt=nnx.Param)
    nnx.jit(lambda o, m: o.update(m, jax.tree.map(jnp.zeros_like, nnx.state(m, nnx.Param))))(optimiser, model)
    np.testing.assert_allclose(model.matrix[...], 0.95, rtol=1e-6)
    np.testing.assert_allclose(model.stacked_bias[...], 1.0)

    params = nnx.pure(nnx.state(model, nnx.Param))
    huge = jax.tree.map(lambda x: 1e3 * np.ones_like(x), params)
    clipping = OptimiserConfig(clip_norm=1.0).transform(model, 10)
    _, state = jax.jit(lambda huge: clipping.update(huge, clipping.init(huge), params))(huge)
    squares = jax.tree.leaves(optax.tree.get(state, "nu"))
    np.testing.assert_allclose(sum(leaf.sum() for leaf in squares), 0.05, rtol=1e-4)  # (1 - b2) |g|^2 with |g| = 1


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"optimiser": "sgd"}, "adamw, adam"),
        ({"schedule": "step"}, "constant, cosine, wsd, exponential"),
        ({"learning_rate": -1}, "negative"),
        ({"learning_rate": float("nan")}, "train.learning_rate is nan"),
        ({"weight_decay": float("inf")}, "train.weight_decay is inf"),
        ({"eps": float("nan")}, "train.eps is nan"),
        ({"final_share": float("nan")}, "between 0 and 1"),
        ({"betas": (float("nan"), 0.9)}, "betas"),
        ({"gamma": 1.5}, "between 0 and 1"),
        ({"betas": (0.9, 1.0)}, "betas"),
    ],
)
def test_bad_fields_are_named(fields, word):
    with pytest.raises(UserError, match=word):
        OptimiserConfig.of(fields)
