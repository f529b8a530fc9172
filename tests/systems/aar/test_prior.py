"""What AAR's model makes of a batch before the token model sees it: conditions, contexts, what is dropped of them."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hiermusic.systems.aar.prior import Prior
from hiermusic.tokens.visibility import Visibility

SLOTS, CONTEXT, WIDTH, ROWS = (1, 2), 2, 3, 512
NOTHING = np.full(WIDTH, -1.0, np.float32)


@pytest.fixture
def prior():
    """As much of a `Prior` as its loss needs, around a token model that keeps what it is given."""
    it = SimpleNamespace(given=[])

    def loss(rows, *, visibility, key):
        it.given.append((rows, visibility, key))
        return "loss", "metrics"

    class Quantiser:
        def decode(self, codes_BPS):  # a latent frame that is the packet's first code, and its number
            first_BP = codes_BPS[..., 0].astype(np.float32)
            return jnp.stack([first_BP[:, 0, None] + jnp.arange(4)] * WIDTH, -1)

        def inputs(self, codes_BS):
            return jnp.repeat(codes_BS[..., None].astype(jnp.float32), WIDTH, -1)

    settings = {"next_scale": True, "context": CONTEXT, "cond_dropout": 0.25, "context_dropout": 0.25}
    it.config = SimpleNamespace(quantiser=SimpleNamespace(slots=SLOTS, frames=4), **settings)
    it.lm, it.quantiser, it.listener = SimpleNamespace(loss=loss), Quantiser(), None
    it.unconditional = NOTHING
    it.context = lambda codes_BS: Prior.context(it, codes_BS)
    it._scales = lambda *arguments: Prior._scales(it, *arguments)
    it.loss = lambda batch, key=None: Prior.loss(it, batch, visibility=Visibility.full(), key=key)
    return it


def batch(told: bool = True) -> dict[str, np.ndarray]:
    """Rows whose condition and context are above 0."""
    draw = np.random.default_rng(0)
    before = draw.integers(1, 9, (ROWS, 3)) if told else np.full((ROWS, 3), -1)
    cond = draw.uniform(1, 2, (ROWS, WIDTH)).astype(np.float32)
    return {"codes": draw.integers(9, size=(ROWS, 3)), "before": before, "cond": cond}


def dropped(prior, batch, key) -> tuple[np.ndarray, np.ndarray]:
    """Which rows are conditioned on nothing and which are told of no window before."""
    prior.given.clear()
    assert prior.loss(batch, key=key) == ("loss", "metrics")
    rows = prior.given[0][0]
    gone_B = (np.asarray(rows["cond"]) == NOTHING).all(1)
    np.testing.assert_array_equal(rows["cond"][~gone_B], batch["cond"][~gone_B])
    context_BcE = np.asarray(rows["inputs"])[:, :CONTEXT]
    alone_B = (context_BcE == 0).all((1, 2))
    np.testing.assert_array_equal(context_BcE[~alone_B, 0, 0], batch["before"][~alone_B, 0] + 2)  # its last frames
    return gone_B, alone_B


def test_without_a_key_nothing_is_dropped(prior):
    prior.config.cond_dropout = prior.config.context_dropout = 1.0
    gone_B, alone_B = dropped(prior, batch(), None)
    assert not gone_B.any() and not alone_B.any() and prior.given[0][2] is None


@pytest.mark.parametrize("cond", [0.0, 1.0])
@pytest.mark.parametrize("context", [0.0, 1.0])
def test_dropout_of_0_and_1_is_the_conditioned_and_the_unconditioned_model(prior, cond, context):
    prior.config.cond_dropout, prior.config.context_dropout = cond, context
    gone_B, alone_B = dropped(prior, batch(), jax.random.key(0))
    assert (gone_B == bool(cond)).all() and (alone_B == bool(context)).all()


def test_a_share_of_rows_is_dropped_of_each_apart_from_the_other(prior):
    gone_B, alone_B = dropped(prior, batch(), jax.random.key(0))
    assert 0.18 < gone_B.mean() < 0.32 and 0.18 < alone_B.mean() < 0.32
    assert 0.02 < (gone_B & alone_B).mean() < 0.11
    other_B, apart_B = dropped(prior, batch(), jax.random.key(1))
    assert (gone_B != other_B).any() and (alone_B != apart_B).any()
    again_B, same_B = dropped(prior, batch(), jax.random.key(0))
    np.testing.assert_array_equal([gone_B, alone_B], [again_B, same_B])


def test_a_first_window_is_told_of_none_before(prior):
    for key in (None, jax.random.key(0)):
        assert dropped(prior, batch(told=False), key)[1].all()


def test_the_token_model_draws_with_a_key_of_its_own(prior):
    keys = []
    for seed in (0, 1):
        dropped(prior, batch(), jax.random.key(seed))
        keys.append(jax.random.key_data(prior.given[0][2]).tolist())
    assert keys[0] != keys[1] and prior.given[0][1] == Visibility.full()
    assert keys[1] != jax.random.key_data(jax.random.key(1)).tolist()


def test_a_row_reads_the_context_and_what_coarser_scales_add_up_to(prior):
    prior.loss(batch(), None)
    rows, given = prior.given[0][0], batch()
    np.testing.assert_array_equal(rows["text"][0], [-1, -1, 0, -1, -1])
    np.testing.assert_array_equal(rows["levels"], [[2, 2, 0, 1, 1]])
    np.testing.assert_array_equal(rows["inputs"][:, CONTEXT:, 0], given["codes"])
    expected = np.full((ROWS, 5, 2), -1)
    expected[:, 2, 0], expected[:, 3:, 1] = given["codes"][:, 0], given["codes"][:, 1:]
    np.testing.assert_array_equal(rows["targets"], expected)
    assert set(rows) == {"text", "inputs", "levels", "targets", "cond"}


def test_a_model_that_listens_is_conditioned_on_what_it_hears(prior):
    prior.listener = True
    prior.listen = lambda reference_BPS: jnp.asarray(reference_BPS[:, 0, :WIDTH], jnp.float32)
    references = np.random.default_rng(1).integers(5, 9, (ROWS, 2, WIDTH))
    prior.loss(batch() | {"reference": references}, None)
    np.testing.assert_array_equal(prior.given[0][0]["cond"], references[:, 0])


def test_the_baseline_is_given_its_row_as_it_is(prior):
    prior.config.next_scale = False
    row = {"text": np.zeros((ROWS, 4)), "reads": np.ones((ROWS, 4, 2)), "targets": np.full((ROWS, 4, 2), 2)}
    prior.loss(row | {"cond": batch()["cond"], "other": np.zeros(1)}, None)
    rows = prior.given[0][0]
    assert set(rows) == {"text", "reads", "targets", "cond"} and all(rows[name] is row[name] for name in row)
    gone = []
    for share in (0.0, 1.0):
        prior.config.cond_dropout = share
        prior.given.clear()
        prior.loss(row | {"cond": batch()["cond"]}, jax.random.key(0))
        gone.append((np.asarray(prior.given[0][0]["cond"]) == NOTHING).all())
    assert gone == [False, True]
