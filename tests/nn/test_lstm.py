import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.nn.lstm import LSTM, recurrence
from hiermusic.parallel.mesh import make_mesh, shardings


def _random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _lstm(width, layers, **options):
    return jax.jit(lambda: LSTM(width, layers, **options, rngs=nnx.Rngs(0)))()


_apply = jax.jit(lambda lstm, x: lstm(x))


def _steps(inputs_TBG, w_DG):
    """The recurrence as it is written in books, step by step; works on numpy and on jax arrays."""
    h = c = jnp.zeros((inputs_TBG.shape[1], len(w_DG)))
    outputs = []
    for inputs_BG in inputs_TBG:
        i, f, g, o = jnp.split(inputs_BG + h @ w_DG, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        outputs.append(h)
    return jnp.stack(outputs)


def test_layers_are_the_definition_one_over_the_other():
    lstm, x = _lstm(5, 2), _random(0, 3, 7, 5)
    for seed, layer in enumerate(lstm.layers, 1):  # they begin at nought
        layer.bias[...] = jnp.asarray(_random(seed, 20))
    y = _apply(lstm, x)
    for layer in lstm.layers:
        layer_inputs = x @ np.asarray(layer.weight_ih[...]) + np.asarray(layer.bias[...])
        x = np.asarray(_steps(layer_inputs.swapaxes(0, 1), layer.weight_hh[...])).swapaxes(0, 1)
    np.testing.assert_allclose(y, x, atol=1e-5)


def test_gradient_is_the_derived_one():
    inputs, w, g = _random(0, 6, 3, 20), _random(1, 5, 20), _random(2, 6, 3, 5)
    ours, derived = (
        jax.jit(jax.grad(lambda inputs, w, f=f: jnp.sum(f(inputs, w) * g), argnums=(0, 1)))(inputs, w)
        for f in (recurrence, _steps)
    )
    for a, b in zip(ours, derived, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_step_sees_only_those_before():
    lstm, x = _lstm(4, 2), _random(0, 1, 9, 4)
    changed = x.copy()
    changed[:, 5:] = 0
    y, z = np.asarray(_apply(lstm, x)), np.asarray(_apply(lstm, changed))
    np.testing.assert_array_equal(y[:, :5], z[:, :5])
    assert np.all(y[:, 5:] != z[:, 5:])


def test_state_stays_float32_where_products_do_not():
    half, x = _lstm(8, 1, dtype="bfloat16"), _random(0, 2, 50, 8)
    whole = nnx.merge(nnx.split(_lstm(8, 1))[0], nnx.state(half))
    y = _apply(half, x)
    assert y.dtype == jnp.bfloat16 and half.layers[0].weight_hh[...].dtype == jnp.float32
    np.testing.assert_allclose(y.astype(np.float32), _apply(whole, x), atol=0.02)


@pytest.mark.parametrize("sizes", [{"fsdp": 4, "tensor": 2}, {"data": 2, "context": 4}])
def test_any_mesh_gives_the_same_output_and_gradient(sizes):
    lstm, x = _lstm(8, 2), _random(0, 8, 12, 8)

    def loss(lstm, x):
        return jnp.sum(jnp.square(lstm(x)))

    expected = jax.jit(jax.value_and_grad(loss))(lstm, x)
    mesh = make_mesh(sizes)
    with jax.set_mesh(mesh):
        placed = jax.device_put(lstm, shardings(lstm, mesh))
        value = jax.jit(jax.value_and_grad(loss))(placed, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), value, expected)
