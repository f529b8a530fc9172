"""Weights are drawn and put in place as flax does it, without what it asks of programs that are being traced."""

import jax
import numpy as np
from flax import nnx

from hiermusic.nn import param
from hiermusic.nn.conv import Conv


def test_keys_are_those_of_the_stream():
    ours, flaxs = nnx.Rngs(3), nnx.Rngs(3)
    for _ in range(3):
        np.testing.assert_array_equal(jax.random.key_data(param.key(ours)), jax.random.key_data(flaxs.params()))


def test_what_is_put_keeps_what_is_told_of_it():
    variable = param.ones(nnx.Rngs(0), (2,), ("channels",))
    told = variable.get_metadata()
    param.put(variable, variable[...] + 1)
    np.testing.assert_array_equal(variable[...], [2, 2])
    assert variable.get_metadata() == told and told["axes"] == ("channels",)


def test_nothing_asks_a_traced_array_for_its_sharding(monkeypatch):
    """The answer is an error whose message takes the longer the larger the program is."""
    asked = []

    def sharding(self):
        asked.append(self)
        raise AttributeError("sharding")

    def make():
        conv = Conv(2, 3, (3,), rngs=nnx.Rngs(0))
        kind = type(conv.bias.get_value())
        there = next(base for base in kind.__mro__ if "sharding" in vars(base))
        assert issubclass(kind, jax.core.Tracer)
        with monkeypatch.context() as patch:
            patch.setattr(there, "sharding", property(sharding))
            return Conv(2, 3, (3,), rngs=nnx.Rngs(0))

    nnx.eval_shape(make)
    assert not asked
