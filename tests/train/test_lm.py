import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.data.pipeline import NoTracks
from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.token_lm import TokenLM, TokenLMConfig
from hiermusic.parallel.mesh import BatchPlacement, make_mesh, shardings
from hiermusic.tokens import pattern, sequence
from hiermusic.tokens.visibility import Visibility
from hiermusic.train.checkpoint import load_model, load_weights
from hiermusic.train.lm import LMStage, _gradients, _measured
from hiermusic.train.log import read_metrics
from hiermusic.train.loop import run
from hiermusic.train.stage import RunConfig, Work

LEVELS, CODES, LENGTH = 2, 5, 12
TRUNK = TransformerConfig(
    layers=1, width=16, heads=2, kv_heads=1, head_dim=8, ffn_width=24, dtype="float32", remat="none"
)


def make_model(rngs):
    return TokenLM(TokenLMConfig(TRUNK, levels=LEVELS, codes=CODES, text_size=7, end=6), rngs=rngs)


def batch(index):
    """Level 1 repeats level 0, so that it can be learned."""
    draw = np.random.default_rng(index)
    rows = []
    for _ in range(4):
        codes_T = draw.integers(CODES, size=4)
        layout = pattern.flatten((4, 4))
        rows.append(sequence.pack([1, 2], layout, [codes_T, codes_T], LENGTH, end=6))
    return Visibility.causal(), sequence.stack(rows)


def make_stage(steps, make_model=make_model, accumulate=1, **options):
    fields = {"optimiser": "adamw", "learning_rate": 2e-2, "schedule": "wsd", "warmup_steps": 5, "ema_decay": 0.9}
    loop = {"batch_size": 4, "seed": 1, "log_every": 10, "valid_every": 30, "checkpoint_every": 30}
    return LMStage(
        RunConfig.of({"train": {**fields, **loop, "steps": steps, "accumulate": accumulate}}),
        make_model,
        train=lambda rows: grain.MapDataset.range(10**6).map(batch),
        valid=lambda rows: grain.MapDataset.range(10**6, 10**6 + 2).map(batch),
        examples=[],
        work=lambda task: Work(1.0, 1, 1.0),
        length=LENGTH,
        trunk=TRUNK,
        **options,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("lm")
    return workdir, run(make_stage(60), workdir, progress=False)


def test_a_model_learns_what_can_be_learned(trained):
    workdir, final = trained
    assert final["valid/ce_K"][1] < 0.3 < 1.2 < final["valid/ce_K"][0]  # log(5) = 1.6 is the best for level 0
    first = read_metrics(workdir)[0]
    assert first["loss"] > final["loss"] and 0 < first["learning_rate"] < 2e-2 and first["grad_norm"] > 0


def test_no_track_held_out_is_no_validation():
    stage = make_stage(1)

    def absent(rows):
        raise NoTracks("records has no valid tracks (1 train)")

    stage._valid = absent
    assert stage.valid_batches(range(4)) is None


def test_only_what_is_predicted_counts_as_tokens():
    stage = make_stage(1)
    _, rows = batch(0)
    # of 12 positions: 1 of the prompt alone, 8 that predict codes, 1 that predicts the end, 2 of padding
    row = sequence.pack([1, 2], pattern.flatten((4, 4)), [np.zeros(4, int)] * 2, LENGTH, end=6)
    assert stage.held(sequence.stack([row])) == (9 / 12, 10 / 12)
    assert stage.held({"codes": rows["targets"]}) == (1.0, 1.0)


def test_the_average_is_what_is_loaded(trained):
    model = load_model(trained[0], lambda: make_model(nnx.Rngs(0)))
    plain = load_weights(trained[0], prefer_ema=False)
    assert model.code_embed[...].shape == plain["code_embed"].shape
    assert not np.array_equal(model.code_embed[...], plain["code_embed"])


def test_levels_without_targets_have_no_cross_entropy():
    measured = _measured({"loss": 2.0, "ce_K": jnp.array([0.0, 2.0]), "count_K": jnp.array([0.0, 7.0])})
    assert set(measured) == {"loss", "ce_K"}
    np.testing.assert_array_equal(measured["ce_K"], [np.nan, 2.0])


def uneven(rows=16, targets=6):
    """Rows of different lengths, so that pieces of the batch hold different numbers of targets."""
    draw = np.random.default_rng(5)
    layout = [pattern.flatten((frames, frames)) for frames in range(1, targets)]
    packed = []
    for row in range(rows):
        frames = row % (targets - 1) + 1
        codes_T = draw.integers(CODES, size=frames)
        packed.append(sequence.pack([1, 2], layout[frames - 1], [codes_T, codes_T], LENGTH, end=6))
    return sequence.stack(packed)


def close(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), one, other)


@pytest.mark.parametrize("pieces", [2, 4])
def test_pieces_of_a_batch_give_the_whole_batchs_loss_metrics_and_gradients(pieces):
    """Without dropout, whose masks are drawn for each piece."""
    model, batch, key = make_model(nnx.Rngs(0)), jax.tree.map(jnp.asarray, uneven()), jax.random.key(0)
    counts = [len(set(np.asarray(batch["targets"][start::pieces] >= 0).sum((1, 2)))) for start in range(pieces)]
    assert max(counts) > 1
    gradients = jax.jit(_gradients, static_argnums=(2, 4))
    close(*(gradients(model, batch, Visibility.causal(), key, n) for n in (1, pieces)))


def test_pieces_leave_every_row_on_its_device_and_need_less_memory():
    mesh = make_mesh({"data": 4, "fsdp": 2})
    model, batch, key = make_model(nnx.Rngs(0)), uneven(32), jax.random.key(0)
    whole = _gradients(model, jax.tree.map(jnp.asarray, batch), Visibility.causal(), key, 1)
    graphdef, state = nnx.split(model)
    state = jax.device_put(state, shardings(state, mesh))
    batch = BatchPlacement(mesh, 32).put(batch)

    def run(state, batch, key, pieces):
        return _gradients(nnx.merge(graphdef, state), batch, Visibility.causal(), key, pieces)

    with jax.set_mesh(mesh):
        compiled = {n: jax.jit(run, static_argnums=3).lower(state, batch, key, n).compile() for n in (1, 4)}
        close(whole, compiled[4](state, batch, key))
    memory = {n: program.memory_analysis().temp_size_in_bytes for n, program in compiled.items()}
    assert memory[4] < 0.6 * memory[1]
    # the look-up of text exchanges columns for rows, once a piece; to form pieces nothing is exchanged
    exchanges = {n: program.as_text().count(" all-to-all(") for n, program in compiled.items()}
    assert exchanges[4] == exchanges[1]


def test_a_run_in_pieces_is_a_run(tmp_path):
    finals = []
    for pieces in (1, 2):
        finals.append(run(make_stage(6, accumulate=pieces), tmp_path / str(pieces), progress=False))
    assert np.isclose(finals[0]["loss"], finals[1]["loss"], rtol=1e-3)


def test_what_belongs_to_no_row_is_given_with_every_piece():
    class Moved(Scale):
        def loss(self, batch, **how):
            return super().loss({"rows": batch["rows"] + batch["by"]}, **how)

    rows = {"rows": jnp.arange(4.0)[:, None], "by": jnp.float32(7)}
    for pieces in (1, 2):
        _, metrics = _gradients(Moved(nnx.Rngs(0)), rows, Visibility.causal(), jax.random.key(0), pieces)
        assert metrics["loss"] == 8.5


class Scale(nnx.Module):
    """Its loss tells what it was called with: the mean of its scale, and a draw of the key."""

    def __init__(self, rngs):
        self.scale = nnx.Param(jnp.zeros(3), axes=(None,))
        self.seen = nnx.Variable(jnp.zeros(3))

    def loss(self, batch, *, visibility, key=None):
        loss = self.scale[...].mean() + batch["rows"].mean()
        drawn = jnp.zeros(()) if key is None else jax.random.uniform(key)
        return loss, {"loss": loss, "draw": drawn, "square": drawn**2, "count_K": jnp.ones(1), "ce_K": loss[None]}


ROWS = {"rows": jnp.zeros((4, 1))}


def scaled(model=2.0, ema=5.0, **options):
    """A stage of `Scale` and its state, the average unlike the model."""
    stage = make_stage(10, Scale, **options)
    module = stage.create(nnx.Rngs(0))
    module.model.scale[...] = jnp.full(3, model)
    if hasattr(module, "ema"):
        module.ema.scale[...] = jnp.full(3, ema)
    return stage, module


def test_a_step_is_trained_with_its_key():
    """The same key draws alike, another one anew, and it is there at all."""
    stage, module = scaled()
    draws = [float(stage.step(module, ROWS, None, jax.random.key(seed))["draw"]) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2] and 0 not in draws


def test_every_piece_of_a_batch_draws_anew():
    _, module = scaled()
    _, metrics = _gradients(module.model, ROWS, None, jax.random.key(0), 4)
    assert float(metrics["square"] - metrics["draw"] ** 2) > 1e-3  # their variance


def test_validation_is_of_the_average_and_draws_nothing():
    stage, module = scaled()
    found = stage.evaluate(module, ROWS, None, jax.random.key(1))
    assert float(found["loss"]) == 5.0 and float(found["draw"]) == 0.0
    stage, module = scaled()
    stage.ema_decay = 0.0
    assert float(stage.evaluate(module, ROWS, None, jax.random.key(1))["loss"]) == 2.0


def test_a_step_moves_the_average_by_its_decay():
    """After one update of a young average a tenth of the past stays, and a decay below that is kept to."""
    for decay, past in ((0.9, 0.1), (0.05, 0.05)):
        stage, module = scaled()
        stage.ema_decay = decay
        stage.step(module, ROWS, None, jax.random.key(0))
        newest = np.asarray(module.model.scale[...])
        assert (newest < 2.0).all()
        np.testing.assert_allclose(module.ema.scale[...], past * 5.0 + (1 - past) * newest, rtol=1e-5)


def test_prepared_weights_reach_the_average():
    def prepare(module):
        module.model.scale[...] = module.model.scale[...] + 1.0
        module.model.seen[...] = module.model.seen[...] + 2.0

    stage = make_stage(1, Scale, prepare=prepare)
    module = stage.create(nnx.Rngs(0))
    stage.prepare(module)
    assert module.ema.scale[...].tolist() == [1.0] * 3 and module.ema.seen[...].tolist() == [2.0] * 3
