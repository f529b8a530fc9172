"""Weights spread over eight devices give the tokens of one."""

import jax
import numpy as np
from flax import nnx

from hiermusic.generate.autoregressive import generate
from hiermusic.generate.layerwise import refine
from hiermusic.parallel.mesh import make_mesh, shardings
from hiermusic.tokens import pattern


def test_eight_devices_draw_what_one_draws(model):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    graphdef, weights = nnx.split(model)
    spread = nnx.merge(graphdef, jax.device_put(weights, shardings(weights, mesh)))
    prompts, layouts = [[5, 6, 7], [8, 9]], [pattern.flatten((6, 6, 6)), pattern.flatten((4, 4, 4))]
    one = generate(model, prompts, layouts, seeds=[1, 2], sizes=(12, 12, 12))
    with jax.set_mesh(mesh):
        many = generate(spread, prompts, layouts, seeds=[1, 2], sizes=(12, 12, 12))
    for a, b in zip(one, many, strict=True):
        np.testing.assert_array_equal(a.codes, b.codes)

    request = {"markers": (39, 38, 37), "sizes": (12, 12, 12), "seeds": [1, 2]}
    coarse = [sample.codes[:, :1] for sample in one]
    with jax.set_mesh(mesh):
        many = refine(spread, prompts, coarse, **request)
    for a, b in zip(refine(model, prompts, coarse, **request), many, strict=True):
        np.testing.assert_array_equal(a, b)
