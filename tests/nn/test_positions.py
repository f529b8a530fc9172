import jax
import numpy as np
import pytest

from hiermusic.nn import positions
from hiermusic.tokens.pattern import SEGMENT

_bucket = jax.jit(positions.t5_bucket, static_argnums=(1, 2))


def test_t5_bucket_edges():
    """The distances at which a logarithmic bucket begins, for 32 buckets up to 128 (Hugging Face's causal buckets)."""
    buckets = np.asarray(_bucket(np.arange(-5, 2000), 32, 128))
    assert buckets[0] == 0  # of the distance -5
    buckets = buckets[5:]
    assert buckets[:16].tolist() == list(range(16))
    edges = (np.flatnonzero(np.diff(buckets)) + 1).tolist()[15:]
    assert edges == [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]
    assert buckets[-1] == 31


@pytest.mark.parametrize(("reach", "last"), [(1024, 790), (128, 113)])
def test_t5_saturates(reach, last):
    buckets = np.asarray(_bucket(np.arange(3 * reach), 32, reach))
    assert int(np.argmax(buckets == 31)) == last


def test_t5_bias_is_a_look_up():
    table = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    q, k = np.array([[7, 300]]), np.array([[0, 5, 290]])
    bias = jax.jit(positions.t5_bias, static_argnums=3)(table, q, k, 128)
    distance = np.maximum(q[0][:, None] - k[0], 0)
    expected = table[np.asarray(_bucket(distance, 32, 128))]
    np.testing.assert_allclose(bias[0], expected.transpose(2, 0, 1), atol=1e-6)


def test_an_aligned_bias_is_one_of_time_and_one_of_segments(reference):
    """Against NumPy, over keys behind, at and ahead of the query, to the last bucket; another row for every segment."""
    dice = np.random.default_rng(0)
    table, pairs = dice.normal(size=(64, 3)).astype(np.float32), dice.normal(size=(2, 2, 3)).astype(np.float32)
    q_tick, k_tick, q_of, k_of = np.array([0, 300]), np.arange(0, 620), np.array([1, 0]), np.arange(620) % 2
    q, k = (of * SEGMENT + tick for of, tick in ((q_of, q_tick), (k_of, k_tick)))
    bias = np.asarray(jax.jit(positions.aligned_bias, static_argnums=4)(table, pairs, q[None], k[None], 128))[0]
    for i, j in np.ndindex(2, 620):
        row = reference.aligned_row(32, 128, int(q_tick[i]), int(k_tick[j]))
        np.testing.assert_allclose(bias[:, i, j], table[row] + pairs[q_of[i], k_of[j]], atol=1e-5)
    ahead = [reference.aligned_row(32, 128, 0, tick) for tick in (0, 1, 15, 16, 112, 113, 619)]
    assert ahead == [0, 33, 47, 48, 62, 63, 63]


@pytest.mark.parametrize("base", [10_000.0, 100.0])
def test_rotation_turns_pairs_and_keeps_distances(base):
    x = np.random.default_rng(0).normal(size=(1, 1, 4, 8)).astype(np.float32)
    turn = jax.jit(lambda x, at: positions.rotate(x, positions.rotation(at, 8, base)))
    at = np.array([[0, 3, 3, 1000]])
    turned = np.asarray(turn(x, at))
    pairs = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * np.asarray(at)[0][:, None] * base ** (-np.arange(4) / 4))
    np.testing.assert_allclose(turned, np.concatenate([pairs.real, pairs.imag], -1), atol=2e-4)

    far = np.asarray(turn(x, at + 50))
    near, shifted = turned[0, 0] @ turned[0, 0].T, far[0, 0] @ far[0, 0].T
    np.testing.assert_allclose(near, shifted, atol=1e-3)


@pytest.mark.parametrize("how", [positions._added, positions._multiplied])
def test_what_is_given_to_each_row_is_summed_alike_on_every_platform(how):
    rng = np.random.default_rng(0)
    row_Bqk, given_BNqk = rng.integers(0, 5, (2, 3, 7)), rng.normal(size=(2, 4, 3, 7)).astype(np.float32)
    wanted_WN = np.zeros((6, 4))
    np.add.at(wanted_WN, row_Bqk, np.moveaxis(given_BNqk, 1, -1))
    np.testing.assert_allclose(how(6, row_Bqk, given_BNqk), wanted_WN, atol=1e-5)
