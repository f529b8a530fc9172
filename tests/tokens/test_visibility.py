import jax
import numpy as np

from hiermusic.tokens.visibility import Visibility


def seen(visibility, n):
    return np.asarray(visibility.mask(np.arange(n), np.arange(n)))


def test_masks_by_hand():
    np.testing.assert_array_equal(seen(Visibility.causal(), 3), np.tri(3, dtype=bool))
    assert seen(Visibility.full(), 3).all()
    np.testing.assert_array_equal(seen(Visibility.block_causal((1, 2)), 3), [[1, 0, 0], [1, 1, 1], [1, 1, 1]])
    np.testing.assert_array_equal(seen(Visibility.prefix(2, 4), 4), [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1] * 4])


def test_a_rule_that_is_causal_or_full_is_called_so():
    causal = Visibility.causal()
    assert Visibility.block_causal((1, 1, 1)) == Visibility.prefix(1, 3) == Visibility.prefix(0, 3) == causal
    assert Visibility.block_causal((5,)) == Visibility.prefix(3, 3) == Visibility.full()
    assert len({causal, Visibility.of_groups([0, 1])}) == 1


def test_positions_may_be_traced_and_batched():
    rule = Visibility.block_causal((1, 2, 4))
    rows = jax.jit(lambda start: rule.mask(start + np.arange(2), np.arange(7)))(3)
    np.testing.assert_array_equal(rows, seen(rule, 7)[3:5])
    assert rule.mask(np.zeros((5, 2), int), np.zeros((5, 7), int)).shape == (5, 2, 7)
