import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from hiermusic.errors import UserError
from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.transformer import Transformer
from hiermusic.parallel.mesh import make_mesh, shardings
from hiermusic.train.optimiser import OptimiserConfig, average, begin_average, decay_mask, muon_dimensions


class Model(nnx.Module):
    def __init__(self):
        self.matrix = nnx.Param(jnp.ones((4, 3)), axes=("embed", "mlp"))
        self.stacked_bias = nnx.Param(jnp.ones((2, 3)), axes=("layers", "mlp"))
        self.plain_kernel = nnx.Param(jnp.ones((3, 3)))
        self.scale = nnx.Param(jnp.ones(3))


def rates(steps=20, upto=24, **fields):
    rate = OptimiserConfig(learning_rate=1.0, warmup_steps=4, **fields).rate(steps)
    return np.array([rate(step) for step in range(upto)])


def test_every_schedule_warms_up_without_an_idle_step():
    for schedule in ("constant", "cosine", "wsd", "exponential"):
        np.testing.assert_allclose(rates(schedule=schedule)[:5], [0.25, 0.5, 0.75, 1, 1], rtol=1e-6)


def test_schedules_end_where_they_should():
    assert (rates(schedule="constant")[4:] == 1).all()
    cosine = rates(schedule="cosine", final_share=0.1)
    assert np.isclose(cosine[12], 0.55) and np.allclose(cosine[20:], 0.1) and (np.diff(cosine[4:21]) < 0).all()
    wsd = rates(schedule="wsd", decay_share=0.2, final_share=0.0)
    assert (wsd[4:17] == 1).all() and np.allclose(wsd[17:21], [0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(rates(schedule="exponential", gamma=0.5)[4:7], [1, 0.5, 0.25])


def test_decay_steps_overrule_the_length_of_the_run():
    np.testing.assert_array_equal(rates(steps=1000, decay_steps=20), rates(steps=20))


def test_where_the_decoder_is_trained_alone_the_schedule_begins_anew():
    twice = np.concatenate([rates(steps=n, upto=upto, schedule="cosine") for n, upto in ((12, 12), (8, 12))])
    np.testing.assert_allclose(rates(schedule="cosine", decoder_start=12), twice, rtol=1e-6)
    np.testing.assert_allclose(rates(steps=99, decay_steps=20, schedule="cosine", decoder_start=12), twice, rtol=1e-6)
    for never in (0, 20, 99):
        np.testing.assert_array_equal(rates(schedule="cosine", decoder_start=never), rates(schedule="cosine"))


@pytest.mark.parametrize("warmup", [0, 1])
def test_short_warmups(warmup):
    rate = OptimiserConfig(learning_rate=1.0, warmup_steps=warmup, schedule="cosine").rate(1)
    assert rate(0) == 1.0


def test_weight_decay_spares_vectors_stacked_or_not():
    mask = decay_mask(Model())
    assert dict(mask) == {"matrix": True, "stacked_bias": False, "plain_kernel": True, "scale": False}


def test_updates_decay_and_clip():
    config = OptimiserConfig(learning_rate=0.1, warmup_steps=0, schedule="constant", weight_decay=0.5)
    model = Model()
    optimiser = nnx.Optimizer(model, config.transform(model, 10), wrt=nnx.Param)
    nnx.jit(lambda o, m: o.update(m, jax.tree.map(jnp.zeros_like, nnx.state(m, nnx.Param))))(optimiser, model)
    np.testing.assert_allclose(model.matrix[...], 0.95, rtol=1e-6)
    np.testing.assert_allclose(model.stacked_bias[...], 1.0)

    params = nnx.as_pure(nnx.state(model, nnx.Param))
    huge = jax.tree.map(lambda x: 1e3 * np.ones_like(x), params)
    clipping = OptimiserConfig(clip_norm=1.0).transform(model, 10)
    _, state = jax.jit(lambda huge: clipping.update(huge, clipping.init(huge), params))(huge)
    squares = jax.tree.leaves(optax.tree.get(state, "nu"))
    np.testing.assert_allclose(sum(leaf.sum() for leaf in squares), 0.05, rtol=1e-4)  # (1 - b2) |g|^2 with |g| = 1


def trunk(base_width=0):
    sizes = {"layers": 2, "width": 16, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn_width": 24}
    config = TransformerConfig(**sizes, qk_norm="rms", bias="all", dtype="float32", base_width=base_width)
    return Transformer(config, rngs=nnx.Rngs(0))


def updated(model, gradients, **fields):
    """What one update adds to every weight."""
    fixed = {"learning_rate": 1.0, "warmup_steps": 0, "schedule": "constant", "weight_decay": 0.0}
    config = OptimiserConfig(**{**fixed, **fields})
    before = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    optimiser = nnx.Optimizer(model, config.transform(model, 10), wrt=nnx.Param)
    nnx.jit(lambda optimiser, model: optimiser.update(model, gradients))(optimiser, model)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return jax.tree.map(lambda a, b: np.asarray(a - b), after, before)


def noise(model):
    keys = iter(jax.random.split(jax.random.key(1), 100))
    return jax.tree.map(lambda leaf: jax.random.normal(next(keys), leaf.shape), nnx.state(model, nnx.Param))


def orthogonal(matrix):
    """Five steps of Muon's Newton-Schulz iteration (kellerjordan.github.io/posts/muon)."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


def test_muon_orthogonalises_every_layers_matrix_by_itself_and_leaves_the_rest_to_adam():
    gradients = noise(trunk())
    muon, adam = (updated(trunk(), gradients, optimiser=name) for name in ("muon", "adamw"))
    given = nnx.to_pure_dict(gradients)["layers"]
    matrices = {"query": (16, 32), "key": (16, 16), "value": (16, 16), "out": (32, 16)}
    places = [("attention", name, shape) for name, shape in matrices.items()]
    for part, name, shape in [*places, ("ffn", "up", (16, 24)), ("ffn", "down", (24, 16))]:
        for layer in range(2):
            wanted = -0.2 * np.sqrt(max(shape)) * orthogonal(np.asarray(given[part][name][layer], float).reshape(shape))
            moved = muon["layers"][part][name][layer].reshape(shape)
            np.testing.assert_allclose(moved, wanted, atol=2e-3)
    for part, name in [("attention", "query_bias"), ("attention_norm", "scale"), ("ffn", "down_bias")]:
        np.testing.assert_array_equal(muon["layers"][part][name], adam["layers"][part][name])


def test_muon_on_a_mesh_moves_weights_as_on_one_device():
    gradients = noise(trunk())
    one = updated(trunk(), gradients, optimiser="muon")
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    graphdef, state = nnx.split(trunk())
    placed = jax.device_put(state, shardings(state, mesh))
    with jax.set_mesh(mesh):
        eight = updated(nnx.merge(graphdef, placed), gradients, optimiser="muon")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one, eight)


def test_muon_moments_are_split_like_the_weights():
    def create():
        model = trunk()
        return nnx.Optimizer(model, OptimiserConfig(optimiser="muon").transform(model, 10), wrt=nnx.Param)

    state = nnx.split(nnx.eval_shape(create))[1]
    placed = shardings(state, make_mesh({"data": 2, "fsdp": 2, "tensor": 2}))
    specs = {
        jax.tree_util.keystr(path): sharding.spec for path, sharding in jax.tree_util.tree_leaves_with_path(placed)
    }
    (query,) = [spec for path, spec in specs.items() if "['query']" in path and "'mu'" in path]
    assert tuple(query) == (None, "fsdp", "tensor", None)


def test_hidden_matrices_are_told_by_their_axes():
    dimensions = muon_dimensions(Model())
    assert tuple(dimensions["matrix"]) == ((0,), (1,))
    assert not any(tuple(dimensions[name]) for name in ("stacked_bias", "plain_kernel", "scale"))
    assert tuple(muon_dimensions(trunk())["layers"]["attention"]["out"]) == ((1, 2), (3,))

    class Head(nnx.Module):  # from the width, yet to no inner axis
        def __init__(self):
            self.codes = nnx.Param(jnp.ones((3, 4)), axes=("embed", "codes"))

    assert not tuple(muon_dimensions(Head())["codes"])


def test_muon_wants_hidden_matrices():
    class Vector(nnx.Module):
        def __init__(self):
            self.scale = nnx.Param(jnp.ones(3), axes=(None,))

    with pytest.raises(UserError, match='"muon", but the model has no hidden matrices'):
        OptimiserConfig(optimiser="muon").transform(Vector(), 10)


@pytest.mark.parametrize(("optimiser", "factor"), [("adamw", 0.5), ("muon", 0.5**0.5)])
def test_wide_matrices_learn_slower_and_vectors_do_not(optimiser, factor):
    gradients = noise(trunk())
    off, base, wide = (
        updated(trunk(base_width), gradients, optimiser=optimiser)["layers"] for base_width in (0, 16, 8)
    )
    jax.tree.map(np.testing.assert_array_equal, off, base)
    np.testing.assert_allclose(wide["ffn"]["up"], factor * off["ffn"]["up"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(wide["attention"]["out"], factor * off["attention"]["out"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(wide["ffn"]["up_bias"], off["ffn"]["up_bias"], rtol=1e-5, atol=1e-6)


def test_weight_decay_is_the_same_at_every_width():
    for base_width in (0, 8):
        model = trunk(base_width)
        before = np.asarray(model.layers.ffn.up[...])
        still = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
        moved = updated(model, still, optimiser="adamw", learning_rate=0.1, weight_decay=0.5)
        np.testing.assert_allclose(moved["layers"]["ffn"]["up"], -0.05 * before, rtol=1e-4)


class Averaged(nnx.Module):
    def __init__(self, value):
        self.weight, self.book = nnx.Param(jnp.full(2, value)), nnx.Variable(jnp.full(2, value))


def test_an_average_begins_as_a_copy_that_no_program_makes(caplog):
    """And with memory of its own: a step may reuse the model's."""
    mesh = make_mesh({"data": 8})
    ema, model = Averaged(1.0), Averaged(3.0)
    model.weight = nnx.Param(jax.device_put(np.full(8, 3.0, np.float32), NamedSharding(mesh, PartitionSpec("data"))))
    with jax.log_compiles():
        begin_average(ema, model)
        assert "Compiling" not in caplog.text
        average(ema, model, 0.0, 1)
        assert "Compiling" in caplog.text  # such words are heard
    begin_average(ema, model)
    for old, new in ((ema.weight, model.weight), (ema.book, model.book)):
        np.testing.assert_array_equal(old[...], new[...])
        assert old[...].sharding == new[...].sharding
        places = [{part.data.unsafe_buffer_pointer() for part in array[...].addressable_shards} for array in (old, new)]
        assert not places[0] & places[1]


@pytest.mark.parametrize(("updates", "past"), [(0, 0.0), (1, 0.1), (9, 0.5), (71, 0.8), (72, 0.8), (10_000, 0.8)])
def test_a_young_average_forgets_faster_and_a_grown_one_by_its_decay(updates, past):
    past = min(past, updates / (9 + updates))
    ema, model = Averaged(1.0), Averaged(3.0)
    average(ema, model, 0.8, updates)
    np.testing.assert_allclose(ema.weight[...], past * 1.0 + (1 - past) * 3.0, rtol=1e-6)
    np.testing.assert_array_equal(ema.book[...], 3.0)  # what no gradient trains is the newest
    np.testing.assert_array_equal(model.weight[...], 3.0)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"optimiser": "sgd"}, "adamw, adam, muon"),
        ({"schedule": "step"}, "constant, cosine, wsd, exponential"),
        ({"learning_rate": -1}, "negative"),
        ({"learning_rate": float("nan")}, "train.learning_rate is nan"),
        ({"weight_decay": float("inf")}, "train.weight_decay is inf"),
        ({"eps": float("nan")}, "train.eps is nan"),
        ({"final_share": float("nan")}, "between 0 and 1"),
        ({"betas": (float("nan"), 0.9)}, "betas"),
        ({"gamma": 1.5}, "between 0 and 1"),
        ({"betas": (0.9, 1.0)}, "betas"),
    ],
)
def test_bad_fields_are_named(fields, word):
    with pytest.raises(UserError, match=word):
        OptimiserConfig.of(fields)
