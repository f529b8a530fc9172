"""Weights and caches spread over eight devices give the tokens of one, and no device holds more than its share."""

import gc
from collections import Counter

import jax
import numpy as np
from flax import nnx

from hiermusic.generate import autoregressive
from hiermusic.generate.autoregressive import generate
from hiermusic.generate.layerwise import refine
from hiermusic.parallel.mesh import make_mesh, shardings
from hiermusic.tokens import pattern


def test_eight_devices_draw_what_one_draws_and_each_holds_its_share(model, monkeypatch):
    before = list(jax.live_arrays())  # held, so that no array of below is given the identity of one of them
    held = {}

    def look(name: str) -> None:
        held[name] = Counter()
        gc.collect()  # models that nobody holds any more, but for the circles in them
        for array in jax.live_arrays():
            if not any(array is other for other in before) and jax.numpy.issubdtype(array.dtype, jax.numpy.floating):
                held[name].update({shard.device.id: shard.data.nbytes for shard in array.addressable_shards})

    mesh = make_mesh({"fsdp": 4, "tensor": 2})
    graphdef, weights = nnx.split(model.unstack())
    one_device = jax.tree.map(jax.numpy.copy, weights)
    prompts, layouts = [[5, 6, 7], [8, 9]] * 2, [pattern.flatten((n, n, n)) for n in (6, 4, 5, 6)]
    request = {"seeds": [1, 2, 3, 4], "sizes": (12, 12, 12)}
    one = generate(nnx.merge(graphdef, one_device), prompts, layouts, progress=lambda *_: look("one"), **request)
    del one_device
    spread = nnx.merge(graphdef, jax.device_put(weights, shardings(weights, mesh)))
    before += jax.tree.leaves(weights)
    prefill = autoregressive._prefill

    def begun(*arguments):
        look("begun")
        return prefill(*arguments)

    monkeypatch.setattr(autoregressive, "_prefill", begun)
    with jax.set_mesh(mesh):
        many = generate(spread, prompts, layouts, progress=lambda *_: look("many"), **request)
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a.codes, b.codes)
    (whole,) = held["one"].values()
    for name in ("begun", "many"):
        assert len(held[name]) == 8 and max(held[name].values()) < 0.3 * whole


def test_eight_devices_refine_as_one_does(model):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    graphdef, weights = nnx.split(model)
    spread = nnx.merge(graphdef, jax.device_put(weights, shardings(weights, mesh)))
    request = {"markers": (39, 38, 37), "sizes": (12, 12, 12), "seeds": [1, 2]}
    prompts = [[5, 6, 7], [8, 9]]
    coarse = [np.arange(n, dtype=np.int32)[:, None] % 12 for n in (6, 4)]
    with jax.set_mesh(mesh):
        many = refine(spread, prompts, coarse, **request)
    for a, b in zip(refine(model, prompts, coarse, **request), many, strict=True):
        np.testing.assert_array_equal(a, b)
