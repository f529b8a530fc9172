"""What a token model begins with."""

from types import SimpleNamespace

import jax
import numpy as np
from flax import nnx

from hiermusic.parallel.mesh import make_mesh
from hiermusic.systems import start


def test_a_codec_on_one_device_is_read_under_a_mesh_of_many():
    rng, one = np.random.default_rng(0), jax.devices()[0]
    books_KVD = jax.device_put(rng.normal(size=(3, 8, 4)).astype(np.float32), one)
    counts_KV = jax.device_put(rng.uniform(1, 9, (3, 8)).astype(np.float32), one)
    codec = SimpleNamespace(quantiser=SimpleNamespace(codebooks=nnx.Param(books_KVD), ema_counts=nnx.Param(counts_KV)))
    trunk = SimpleNamespace(width=6)
    config = SimpleNamespace(levels=2, transformer=trunk, head="window", reads=True)
    mesh = make_mesh({"data": 8})
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    tables = {"code_head": rng.normal(size=(2, 8, 6)), "code_embed": np.zeros((2, 8, 6)), "code_bias": np.zeros((2, 8))}
    placed = {name: nnx.Param(jax.device_put(x.astype(np.float32), everywhere)) for name, x in tables.items()}
    model = SimpleNamespace(config=config, **placed)
    with jax.set_mesh(mesh):
        start.from_codec(codec, model)
    share_KV = (counts_KV[:2] + 0.5) / (counts_KV[:2] + 0.5).sum(1, keepdims=True)
    log_KV = np.log(share_KV)
    np.testing.assert_allclose(model.code_bias[...], log_KV - log_KV.mean(1, keepdims=True), rtol=1e-4, atol=1e-5)
