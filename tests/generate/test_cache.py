"""A step writes into its cache and leaves the rest of it alone."""

import math
import re
from collections import Counter

import jax
import pytest
from flax import nnx

from hiermusic.generate import autoregressive
from hiermusic.nn.token_lm import TokenLM
from hiermusic.tokens import pattern

INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?\S+ = \w+\[([0-9,]+)\]\S* ([a-z][a-z0-9\-]*)\(", re.MULTILINE)
FREE = {"parameter", "get-tuple-element", "bitcast"}


@pytest.mark.parametrize("batch", [1, 2])
def test_a_step_copies_no_cache(model, batch):
    trunk = model.config.transformer
    lm = nnx.eval_shape(lambda: TokenLM(model.config, rngs=nnx.Rngs(0)).unstack())
    layouts = [pattern.flatten((300, 300, 300))] * batch
    run, arguments = autoregressive.chunk(lm, [[0]] * batch, layouts, seeds=range(batch), sizes=(12, 12, 12), top_k=4)
    cached = jax.tree.leaves(arguments[2].cache.keys)[0]
    hlo = run.func.lower(*arguments, **run.keywords).compile().as_text()
    large = Counter(op for shape, op in INSTRUCTION.findall(hlo) if _size(shape) >= cached.size // batch)
    updates = 2 * trunk.layers
    assert large["dynamic-update-slice"] == large["fusion"] == updates
    assert not set(large) - FREE - {"dynamic-update-slice", "fusion"}, large


def _size(shape: str) -> int:
    return math.prod(map(int, shape.split(",")))
