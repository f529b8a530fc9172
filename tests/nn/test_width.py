"""Width transfer: models of all widths behave alike at one learning rate."""

import dataclasses
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from hiermusic.errors import UserError
from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.token_lm import TokenLM, TokenLMConfig

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "coordinate_check.py"
WIDTHS = [32, 128]


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("coordinate_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def slopes(check, base_width):
    settings = {"steps": 2, "layers": 1, "learning_rate": 3e-3, "optimiser": "adamw", "seed": 0}
    last = [check.sizes(width, base_width, **settings)[-1] for width in WIDTHS]
    return {name: check.slope(WIDTHS, [row[name] for row in last]) for name in last[0]}


@pytest.mark.slow
def test_activations_and_logits_move_alike_at_every_width(check):
    with_base, without = slopes(check, WIDTHS[0]), slopes(check, 0)
    assert abs(with_base["change of layer 1"]) < 0.2 and abs(with_base["change of logits"]) < 0.35
    assert without["change of layer 1"] > 0.6 and without["change of logits"] > 0.6


def test_a_model_of_the_base_width_is_the_one_without(check):
    batch = check.batch_of(0)
    off, on = (check.coordinates(check.model_of(32, base_width, 1, 0), batch) for base_width in (0, 32))
    jax.tree.map(np.testing.assert_array_equal, off, on)


HIDDEN = {"query", "key", "value", "out", "gate", "up", "down"}


def test_only_hidden_matrices_and_logits_change_with_the_base(check):
    """A quarter of the base: half the spread and a quarter of the rate for each hidden matrix, all else as it was."""
    off, on = (check.model_of(64, base_width, 1, 0) for base_width in (0, 16))
    pairs = zip(*(nnx.to_flat_state(nnx.state(model, nnx.Param)) for model in (off, on)), strict=True)
    seen = set()
    for (path, one), (_, other) in pairs:
        hidden = path[-1] in HIDDEN
        seen |= {path[-1]} & HIDDEN
        assert other.get_metadata()["rate"] == (0.25 if hidden else 1.0), path
        np.testing.assert_allclose(other.get_value(), (0.5 if hidden else 1.0) * one.get_value(), rtol=1e-5)
    assert seen == HIDDEN
    x = np.random.default_rng(0).normal(size=(1, 3, 64)).astype(np.float32)
    for logits in (lambda model: model.level_logits(x, 0), lambda model: model.row_logits(x, np.array([1]))):
        np.testing.assert_allclose(logits(on), 0.25 * logits(off), rtol=1e-5, atol=1e-6)


def test_the_condition_is_a_hidden_layer_too(check):
    """What drives adaptive norms grows with the width as other matrices do; what a condition comes in by does not."""
    trunk = dataclasses.replace(
        check.model_of(64, 16, 1, 0).config.transformer, adaptive=True, norm="layer", ffn="gelu", bias="all"
    )
    config = TokenLMConfig(trunk, levels=2, codes=4, text_size=1, head="shared", inputs=3, level_embed=True, cond=5)
    params = nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: TokenLM(config, rngs=nnx.Rngs(0))), nnx.Param))
    slowed = {path[-1] for path, leaf in params if leaf.get_metadata()["rate"] == 0.25}
    assert slowed == HIDDEN - {"gate"} | {"kernel", "cond_out"}
    assert all(leaf.get_metadata()["rate"] in (0.25, 1.0) for _, leaf in params)


def test_a_negative_base_is_told():
    sizes = {"layers": 1, "width": 16, "heads": 2, "kv_heads": 2, "head_dim": 8, "ffn_width": 16}
    with pytest.raises(UserError, match="base_width is -1"):
        TransformerConfig(**sizes, base_width=-1)
