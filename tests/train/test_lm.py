import grain
import jax
import ml_collections
import numpy as np
import pytest
from flax import nnx

from hiermusic.nn.token_lm import TokenLM, TokenLMConfig
from hiermusic.nn.transformer import TransformerConfig
from hiermusic.tokens import pattern, sequence
from hiermusic.tokens.visibility import Visibility
from hiermusic.train.checkpoint import load_model, load_weights
from hiermusic.train.lm import LMStage
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


def only_level_one(index):
    visibility, rows = batch(index)
    return visibility, rows | {"level": np.int32(1), "text_targets": np.full_like(rows["text_targets"], -1)}


def make_stage(steps, make_batch=batch, **options):
    fields = {"optimiser": "adamw", "learning_rate": 2e-2, "schedule": "wsd", "warmup_steps": 5, "ema_decay": 0.9}
    loop = {"batch_size": 4, "seed": 1, "log_every": 10, "valid_every": 30, "checkpoint_every": 30}
    config = ml_collections.ConfigDict({"train": {**fields, **loop, "steps": steps}})
    stage = LMStage(
        config,
        make_model,
        train=lambda: grain.MapDataset.range(10**6).map(make_batch),
        valid=lambda: grain.MapDataset.range(10**6, 10**6 + 2).map(make_batch),
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


def test_levels_without_targets_have_no_cross_entropy(tmp_path):
    stage, config = make_stage(1, only_level_one)
    record = run(stage, config, tmp_path, progress=False)
    assert record["ce_K"][0] is None and np.isclose(record["ce_K"][1], record["loss"])
    assert record["valid/ce_K"][0] is None


def test_prepared_weights_reach_the_average():
    def prepare(module):
        module.model.code_embed[...] = module.model.code_embed[...] + 1.0

    stage, _ = make_stage(1, prepare=prepare)
    module = stage.create(nnx.Rngs(0))
    stage.prepare(module)
    leaves = zip(jax.tree.leaves(nnx.state(module.model)), jax.tree.leaves(nnx.state(module.ema)), strict=True)
    assert all(np.array_equal(*pair) for pair in leaves)
