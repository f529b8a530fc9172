"""Width transfer: models of all widths behave alike at one learning rate."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from hiermusic.errors import UserError
from hiermusic.nn.transformer import TransformerConfig

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


def test_activations_and_logits_move_alike_at_every_width(check):
    with_base, without = slopes(check, WIDTHS[0]), slopes(check, 0)
    assert abs(with_base["change of layer 1"]) < 0.2 and abs(with_base["change of logits"]) < 0.35
    assert without["change of layer 1"] > 0.6 and without["change of logits"] > 0.6


def test_a_model_of_the_base_width_is_the_one_without(check):
    batch = check.batch_of(0)
    off, on = (check.coordinates(check.model_of(32, base_width, 1, 0), batch) for base_width in (0, 32))
    jax.tree.map(np.testing.assert_array_equal, off, on)


def test_only_hidden_matrices_and_logits_change_with_the_base(check):
    off, on = (check.model_of(64, base_width, 1, 0) for base_width in (0, 16))
    for name in ("code_embed", "code_head"):
        np.testing.assert_array_equal(getattr(off, name)[...], getattr(on, name)[...])
    ratio = np.asarray(on.trunk.layers.ffn.down[...]) / np.asarray(off.trunk.layers.ffn.down[...])
    np.testing.assert_allclose(ratio, 0.5, rtol=1e-5)
    rates = {str(path[-1]): leaf.get_metadata()["rate"] for path, leaf in nnx.to_flat_state(nnx.state(on, nnx.Param))}
    assert rates["query"] == rates["down"] == 0.25 and rates["code_head"] == rates["scale"] == 1.0
    x = np.ones((1, 64), np.float32)
    np.testing.assert_allclose(on.level_logits(x, 0), 0.25 * off.level_logits(x, 0), rtol=1e-5)


def test_a_negative_base_is_told():
    sizes = {"layers": 1, "width": 16, "heads": 2, "kv_heads": 2, "head_dim": 8, "ffn_width": 16}
    with pytest.raises(UserError, match="base_width is -1"):
        TransformerConfig(**sizes, base_width=-1)
