import numpy as np

from hiermusic.generate.batching import bucket, padded


def test_buckets_hold_enough_waste_little_and_are_few():
    sizes = range(1, 20000)
    assert all(bucket(n) >= n and bucket(n) - n < max(64, n / 7) for n in sizes)
    assert len({bucket(n) for n in sizes}) < 100 and bucket(0) == 0
    assert all(bucket(bucket(n)) == bucket(n) for n in sizes)


def test_padding_goes_to_the_side_asked_for():
    np.testing.assert_array_equal(padded([[1, 2], [3]], 3, left=True), [[-1, 1, 2], [-1, -1, 3]])
    np.testing.assert_array_equal(padded([[1, 2], []], 3, left=False), [[1, 2, -1], [-1, -1, -1]])
