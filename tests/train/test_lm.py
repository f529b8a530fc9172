import grain
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from hiermusic.nn.token_lm import TokenLM, TokenLMConfig
from hiermusic.nn.transformer import TransformerConfig
from hiermusic.tokens import pattern, sequence
from hiermusic.tokens.visibility import Visibility
from hiermusic.train.checkpoint import load_model, load_weights
from hiermusic.train.lm import LMStage, _measured
from hiermusic.train.log import read_metrics
from hiermusic.train.loop import run

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
        rows.append(sequence.pack([1, 2], *layout.build([codes_T, codes_T]), LENGTH, shared=True, end=6))
    return Visibility.causal(), sequence.stack(rows)


def make_stage(steps, make_model=make_model, **options):
    fields = {"optimiser": "adamw", "learning_rate": 2e-2, "schedule": "wsd", "warmup_steps": 5, "ema_decay": 0.9}
    loop = {"batch_size": 4, "seed": 1, "log_every": 10, "valid_every": 30, "checkpoint_every": 30}
    config = ml_collections.ConfigDict({"train": {**fields, **loop, "steps": steps}})
    stage = LMStage(
        config,
        make_model,
        train=lambda: grain.MapDataset.range(10**6).map(batch),
        valid=lambda: grain.MapDataset.range(10**6, 10**6 + 2).map(batch),
        **options,
    )
    return stage, config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("lm")
    stage, config = make_stage(60)
    return workdir, run(stage, config, workdir, progress=False)


def test_a_model_learns_what_can_be_learned(trained):
    workdir, final = trained
    assert final["valid/ce_K"][1] < 0.3 < 1.2 < final["valid/ce_K"][0]  # log(5) = 1.6 is the best for level 0
    first = read_metrics(workdir)[0]
    assert first["loss"] > final["loss"] and 0 < first["learning_rate"] < 2e-2 and first["grad_norm"] > 0


def test_the_average_is_what_is_loaded(trained):
    model = load_model(trained[0], lambda: make_model(nnx.Rngs(0)))
    plain = load_weights(trained[0], prefer_ema=False)
    assert model.code_embed[...].shape == plain["code_embed"].shape
    assert not np.array_equal(model.code_embed[...], plain["code_embed"])


def test_levels_without_targets_have_no_cross_entropy():
    measured = _measured({"loss": 2.0, "ce_K": jnp.array([0.0, 2.0]), "count_K": jnp.array([0.0, 7.0])})
    assert set(measured) == {"loss", "ce_K"}
    np.testing.assert_array_equal(measured["ce_K"], [np.nan, 2.0])


class Scale(nnx.Module):
    def __init__(self, rngs):
        self.scale = nnx.Param(jnp.zeros(3))
        self.seen = nnx.Variable(jnp.zeros(3))


def test_prepared_weights_reach_the_average():
    def prepare(module):
        module.model.scale[...] = module.model.scale[...] + 1.0
        module.model.seen[...] = module.model.seen[...] + 2.0

    stage, _ = make_stage(1, Scale, prepare=prepare)
    module = stage.create(nnx.Rngs(0))
    stage.prepare(module)
    assert module.ema.scale[...].tolist() == [1.0] * 3 and module.ema.seen[...].tolist() == [2.0] * 3
