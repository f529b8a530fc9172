"""What a token model begins with."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.errors import UserError
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


class Tables(nnx.Module):
    def __init__(self):
        self.code_embed, self.norm, self.gain = (nnx.Param(jnp.zeros(shape)) for shape in ((3, 8, 4), 4, ()))


def test_levels_that_a_run_does_not_know_stay_as_they_were(monkeypatch):
    stored = {"code_embed": np.ones((2, 8, 4)), "norm": np.full(4, 2.0), "gain": np.array(5.0)}
    monkeypatch.setattr(start.checkpoint, "load_base", lambda source: stored if source == "run" else {})
    model = Tables()
    start.from_run("", model)
    assert not model.norm.any()
    start.from_run("run", model)
    assert [float(level.mean()) for level in model.code_embed] == [1, 1, 0]
    assert model.norm.tolist() == [2] * 4 and float(model.gain[...]) == 5
    for name, shape in (("norm", 3), ("norm", 5), ("code_embed", (4, 8, 4)), ("code_embed", (2, 8, 5))):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match=f"^run: {name} is "):
            patch.setitem(stored, name, np.zeros(shape))
            start.from_run("run", model)
    with pytest.raises(UserError, match="another has no weight code_embed: it is of another model"):
        start.from_run("another", model)


def test_weights_are_taken_over_where_they_lie_and_without_a_program(monkeypatch, caplog):
    """As many shapes as a model has would otherwise be as many programs."""
    mesh = make_mesh({"data": 8})
    rows, model = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")), Tables()
    model.norm = nnx.Param(jax.device_put(np.zeros((8, 2), jnp.bfloat16), rows))
    stored = {"code_embed": np.ones((3, 8, 4)), "norm": np.arange(16.0).reshape(8, 2), "gain": np.array(5.0)}
    monkeypatch.setattr(start.checkpoint, "load_base", lambda source: stored)
    with jax.set_mesh(mesh), jax.log_compiles():
        start.from_run("run", model)
    assert "Compiling" not in caplog.text
    for name, table in stored.items():
        np.testing.assert_array_equal(np.asarray(getattr(model, name)[...], np.float32), table)
    assert model.norm[...].sharding == rows and model.norm[...].dtype == jnp.bfloat16
