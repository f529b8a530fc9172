"""The toy's model: which level follows which."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from ml_collections import ConfigDict


class Chain(nnx.Module):
    def __init__(self, codes: int):
        self.follows = nnx.Param(jnp.zeros((codes, codes)), axes=(None, None))

    def loss(self, batch: Mapping[str, Array], *, visibility, key=None):
        codes_BS = batch["codes"]
        log_p_VV = jax.nn.log_softmax(self.follows[...])
        loss = -jnp.mean(log_p_VV[codes_BS[:, :-1], codes_BS[:, 1:]])
        return loss, {"loss": loss, "ce_K": loss[None], "count_K": jnp.full(1, codes_BS[:, 1:].size)}


def make_model(config: ConfigDict) -> Callable[[nnx.Rngs], Chain]:
    codes = config.model.codes
    return lambda rngs: Chain(codes)
