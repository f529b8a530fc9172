import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hiermusic.nn import positions


def test_t5_bucket_edges():
    """The distances at which a logarithmic bucket begins, for 32 buckets up to 128 (Hugging Face's causal buckets)."""
    buckets = np.asarray(positions.t5_bucket(jnp.arange(2000), 32, 128))
    assert buckets[:16].tolist() == list(range(16))
    edges = (np.flatnonzero(np.diff(buckets)) + 1).tolist()[15:]
    assert edges == [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
    assert buckets[-1] == 31
    assert positions.t5_bucket(jnp.array([-5]), 32, 128)[0] == 0


@pytest.mark.parametrize(("reach", "last"), [(1024, 790), (128, 113)])
def test_t5_saturates(reach, last):
    buckets = np.asarray(positions.t5_bucket(jnp.arange(3 * reach), 32, reach))
    assert int(np.argmax(buckets == 31)) == last


def test_t5_bias_is_a_look_up():
    table = jax.random.normal(jax.random.key(0), (32, 3))
    q, k = jnp.array([[7, 300]]), jnp.array([[0, 5, 290]])
    bias = positions.t5_bias(table, q, k, 128)
    distance = np.maximum(np.asarray(q)[0][:, None] - np.asarray(k)[0], 0)
    expected = np.asarray(table)[np.asarray(positions.t5_bucket(jnp.asarray(distance), 32, 128))]
    np.testing.assert_allclose(bias[0], expected.transpose(2, 0, 1), atol=1e-6)


def test_rotation_turns_pairs_and_keeps_distances():
    x = np.random.default_rng(0).normal(size=(1, 1, 4, 8)).astype(np.float32)
    at = jnp.array([[0, 3, 3, 1000]])
    turned = np.asarray(positions.rotate(jnp.asarray(x), positions.rotation(at, 8, 10_000.0)))
    pairs = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * np.asarray(at)[0][:, None] * 10_000.0 ** (-np.arange(4) / 4))
    np.testing.assert_allclose(turned, np.concatenate([pairs.real, pairs.imag], -1), atol=2e-4)

    far = np.asarray(positions.rotate(jnp.asarray(x), positions.rotation(at + 50, 8, 10_000.0)))
    near, shifted = turned[0, 0] @ turned[0, 0].T, far[0, 0] @ far[0, 0].T
    np.testing.assert_allclose(near, shifted, atol=1e-3)
