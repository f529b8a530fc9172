import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hiermusic.errors import UserError
from hiermusic.tokens.sampling import check, fold_keys, guide, sample, sample_keys, temperatures

LOGITS = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))


def draws(n=4000, **options):
    rows = jnp.broadcast_to(LOGITS, (n, 4))
    return np.bincount(np.asarray(sample(rows, sample_keys(jnp.arange(n)), **options)), minlength=4) / n


def test_frequencies_follow_the_distribution():
    np.testing.assert_allclose(draws(), [0.5, 0.3, 0.15, 0.05], atol=0.03)
    cold = np.array([0.5, 0.3, 0.15, 0.05]) ** 2
    np.testing.assert_allclose(draws(temperature=0.5), cold / cold.sum(), atol=0.03)


def test_top_k_and_top_p_cut_the_tail():
    np.testing.assert_allclose(draws(top_k=2), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(draws(top_p=0.6), [0.625, 0.375, 0, 0], atol=0.03)
    np.testing.assert_allclose(draws(top_p=1e-6), [1, 0, 0, 0])
    np.testing.assert_allclose(draws(top_k=3, top_p=0.9), np.array([0.5, 0.3, 0.15, 0]) / 0.95, atol=0.03)


@pytest.mark.parametrize("barred", [False, True])
@pytest.mark.parametrize("cut", [{}, {"top_k": 5}, {"top_p": 0.6}, {"top_k": 6, "top_p": 0.7}], ids=str)
def test_every_token_is_the_one_drawn_by_hand(cut, barred, reference):
    """Rows of random logits against candidates picked one by one in NumPy, with the same noise."""
    rows, keys = 3 * np.random.default_rng(0).normal(size=(40, 11)).astype(np.float32), sample_keys(jnp.arange(40))
    allowed = np.arange(11) % 3 != 1 if barred else np.ones(11, bool)
    run = jax.jit(functools.partial(sample, **cut))
    for temperature in (0.0, 0.5, 2.0):
        drawn = run(rows, keys, temperature=temperature, allowed=allowed[None])
        how = {"temperature": temperature, "allowed": allowed, **cut}
        assert drawn.tolist() == [reference.draw(row, key, **how) for row, key in zip(rows, keys, strict=True)]


def test_keys_are_of_the_seed_and_of_every_place(reference):
    keys = fold_keys(fold_keys(sample_keys(jnp.array([3, 5])), 12), 1)
    for key, seed in zip(keys, (3, 5), strict=True):
        same, turned = (jax.random.key_data(reference.key_of(seed, *at)) for at in ((12, 1), (1, 12)))
        assert (jax.random.key_data(key) == same).all() and (jax.random.key_data(key) != turned).any()


def test_ties_at_the_edge_are_kept():
    rows = jnp.zeros((500, 4))
    drawn = sample(rows, sample_keys(jnp.arange(500)), top_k=1)
    assert len(np.unique(drawn)) == 4


def test_only_allowed_tokens_even_when_the_rest_is_likelier():
    allowed = jnp.array([[False, False, True, True]])
    for options in ({}, {"top_k": 1}, {"top_p": 0.1}, {"temperature": 0.0}, {"temperature": 100.0}):
        assert draws(500, allowed=allowed, **options)[:2].sum() == 0


def test_zero_temperature_takes_the_likeliest_even_traced():
    hot = jax.jit(lambda t: sample(LOGITS[None], sample_keys(jnp.array([7])), temperature=t, top_p=0.9))
    assert hot(0.0) == 0
    assert draws(100, temperature=0.0)[0] == 1


def test_a_seed_draws_the_same_whatever_the_batch():
    rows = jax.random.normal(jax.random.key(0), (5, 64))
    seeds = jnp.array([3, 1, 4, 1, 2**32 - 1], jnp.uint32)
    keys = fold_keys(sample_keys(seeds), 12)
    together = sample(rows, keys, top_k=20)
    alone = [sample(rows[i : i + 1], fold_keys(sample_keys(seeds[i : i + 1]), 12), top_k=20)[0] for i in range(5)]
    np.testing.assert_array_equal(together, alone)
    assert (jax.random.key_data(keys[1]) == jax.random.key_data(keys[3])).all()


def test_guidance_moves_away_from_the_unconditional():
    cond, uncond = jnp.array([1.0, 0.0]), jnp.array([0.0, 0.5])
    np.testing.assert_allclose(guide(cond, uncond, 1.0), cond)
    np.testing.assert_allclose(guide(cond, uncond, 0.0), uncond)
    np.testing.assert_allclose(guide(cond, uncond, 3.0), [3.0, -1.0])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("temperature", -1, "a finite number of at least 0"),
        ("temperature", float("nan"), "a finite number of at least 0"),
        ("temperature", float("inf"), "a finite number of at least 0"),
        ("temperature", "hot", "a finite number of at least 0"),
        ("temperature", (0.8, 0.1), "a finite number of at least 0"),
        ("final_temperature", (0.8, 0.1), "a finite number of at least 0"),
        ("final_temperature", -0.1, "a finite number of at least 0"),
        ("final_temperature", float("nan"), "a finite number of at least 0"),
        ("top_k", -1, "a whole number of at least 0"),
        ("top_k", 2.5, "a whole number of at least 0"),
        ("top_k", 2.0, "a whole number of at least 0"),  # a shape, which no float is
        ("top_p", 0.0, "a number above 0, at most 1"),
        ("top_p", float("nan"), "a number above 0, at most 1"),
        ("guidance", float("nan"), "a finite number of at least 0"),
        ("guidance", -3.0, "a finite number of at least 0"),
        ("min_share", 1.5, "a number from 0 to 1"),
    ],
)
def test_settings_by_which_nothing_can_be_drawn_are_told(name, value, words):
    good = {"temperature": 0, "final_temperature": None, "top_k": 0, "top_p": 1, "guidance": 1.0, "levels": -1}
    check(good)
    check({})
    check({"temperature": np.float32(0.9), "top_k": np.int64(5), "top_p": np.float64(0.9), "guidance": 2})
    with pytest.raises(UserError, match=rf"^sampling\.{name}={re.escape(repr(value))}: give {words}$"):
        check(good | {name: value})


def test_temperature_goes_evenly_from_the_first_level_to_the_last():
    assert temperatures(1.0, 0.0, 3).tolist() == [1.0, 0.5, 0.0]
    assert temperatures(0.75, None, 3).tolist() == [0.75] * 3
    assert temperatures(1.0, 0.5, 4, given=1).tolist() == [0.0, 1.0, 0.75, 0.5]
    assert temperatures(0.75, 0.0, 2, given=1).tolist() == [0.0, 0.75] and temperatures(1.0, 0.0, 2).dtype == np.float32


def test_every_level_may_have_a_temperature_of_its_own():
    told = (0.75, 0.5, 0.0, 1.25)
    assert temperatures(told, None, 4).tolist() == temperatures(list(told), 0.3, 4).tolist() == list(told)
    assert temperatures(told, None, 2).tolist() == [0.75, 0.5]  # a song of the first two
    assert temperatures(told, None, 4, given=1).tolist() == [0.0, 0.5, 0.0, 1.25]
    assert temperatures((0.75,), None, 2).tolist() == [0.75, 0.75]
    with pytest.raises(UserError, match=r"^sampling.temperature has 4 numbers for 5 levels: give one for each, or one"):
        temperatures(told, None, 5)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ((0.8, -0.1), r"=\(0.8, -0.1\): give a finite number of at least 0, or one for each level$"),
        ([], r"=\[\]: give a finite number of at least 0, or one for each level$"),
        ((0.8, 0.1), " has 2 numbers for 3 levels: give one for each, or one for all$"),
    ],
)
def test_temperatures_of_levels_are_checked_before_anything_is_drawn(value, words):
    check({"temperature": (0.8, 0, 1.5)}, levels=3)
    check({"temperature": (0.8, 0, 1.5)}, levels=1)  # the stage of the first level, whose settings are those of all
    check({"temperature": [0.8]}, levels=3)
    with pytest.raises(UserError, match=rf"^sampling.temperature{words}"):
        check({"temperature": value}, levels=3)
