"""The transformer against its published definitions in NumPy, all of its weights drawn at random."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.errors import UserError
from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.norms import Norm, modulate, unit
from hiermusic.nn.transformer import Transformer
from hiermusic.tokens.pattern import SEGMENT
from hiermusic.tokens.visibility import Visibility

B, S = 2, 14
LLAMA = TransformerConfig(
    layers=2, width=16, heads=4, kv_heads=2, head_dim=4, ffn_width=24, rope_base=70.0, norm_eps=1e-3, dtype="float32"
)
CONFIGS = {
    "llama": LLAMA,
    "biased": dataclasses.replace(LLAMA, bias="all", qk_norm="rms"),
    "t5": dataclasses.replace(LLAMA, ffn="geglu", positions="t5", t5_buckets=8, t5_max_distance=20),
    "aar": dataclasses.replace(
        LLAMA, norm="layer", adaptive=True, ffn="gelu", positions="learned", max_positions=S, qk_norm="unit",
        bias="all_but_key",
    ),
    "musicgen": dataclasses.replace(LLAMA, norm="layer", ffn="gelu", positions="none", qk_norm="layer", bias="all"),
}  # fmt: skip
RULES = {
    "causal": (Visibility.causal(), np.tri(S, dtype=bool)),
    "full": (Visibility.full(), np.ones((S, S), bool)),
    "groups": (Visibility.block_causal((2, 5, 7)), np.repeat([2, 7, 14], (2, 5, 7))[:, None] > np.arange(S)),
}
RULE_OF = {"llama": "causal", "biased": "full", "t5": "causal", "aar": "groups", "musicgen": "causal"}

_forward = jax.jit(Transformer.__call__, static_argnames="visibility")


@functools.cache
def abstract(config):
    return nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def build(reference):
    """Makes the transformer of a configuration, every weight drawn anew."""
    return functools.cache(lambda config: reference.drawn(abstract(config)))


def inputs(config):
    dice = np.random.default_rng(0)
    x_BSD, cond_BD = dice.normal(size=(B, S, config.width)), dice.normal(size=(B, config.width))
    return x_BSD.astype(np.float32), cond_BD.astype(np.float32) if config.adaptive else None


def forward(model, config, rule, **where):
    x_BSD, cond_BD = inputs(config)
    return np.asarray(_forward(model, x_BSD, visibility=RULES[rule][0], cond_BD=cond_BD, **where))


def changed(model, path, change):
    """The same model with one weight changed, a dotted name."""
    graphdef, state = nnx.split(model)
    state = jax.tree.map(lambda x: x, state)
    leaf = functools.reduce(lambda tree, name: tree[name], path.split("."), state)
    leaf.set_value(change(leaf.get_value()))
    return nnx.merge(graphdef, state)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_choice_is_what_its_paper_says(name, build, reference):
    config, rule = CONFIGS[name], RULE_OF[name]
    model, (x_BSD, cond_BD) = build(config), inputs(config)
    expected = reference.transformer(config, reference.weights_of(model), x_BSD, RULES[rule][1], cond_BD=cond_BD)
    assert 0.1 < np.std(expected) < 10
    np.testing.assert_allclose(forward(model, config, rule), expected, atol=2e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_weight_is_left_out(name, build):
    """Each alone, moved, moves what comes out: scales and biases of norms, biases of projections, tables."""
    config, rule = CONFIGS[name], RULE_OF[name]
    model = build(config)
    before, still = forward(model, config, rule), set()
    for path, leaf in nnx.to_flat_state(nnx.state(model)):
        dotted = ".".join(map(str, path))
        moved = np.arange(leaf.get_value().size).reshape(leaf.get_value().shape) % 3 * np.float32(0.5)
        after = forward(changed(model, dotted, lambda x, moved=moved: np.asarray(x) + moved), config, rule)
        if np.abs(after - before).max() < 1e-3:
            still.add(dotted)
    # what all keys have more, without places to turn it, a softmax over keys does not see
    assert still == ({"layers.attention.key_norm.bias"} if name == "musicgen" else set())


@pytest.mark.parametrize("name", ["llama", "musicgen"])
@pytest.mark.parametrize(("part", "last"), [("attention", "out"), ("ffn", "down")])
def test_what_a_sub_layer_reads_is_normed(name, part, last, build):
    """Where its norm leaves nothing, a sub-layer without biases adds nothing, as where its last matrix does."""
    config = dataclasses.replace(CONFIGS[name], bias="none")
    nothing = [
        forward(changed(build(config), f"layers.{path}", jnp.zeros_like), config, "causal")
        for path in (f"{part}_norm.scale", f"{part}.{last}")
    ]
    np.testing.assert_allclose(*nothing, atol=1e-6)
    assert (np.abs(nothing[0] - forward(build(config), config, "causal")) > 1e-3).any()


def test_what_comes_out_is_normed(build):
    model = build(LLAMA)
    x_BSD = forward(changed(model, "final_norm.scale", jnp.ones_like), LLAMA, "causal")
    np.testing.assert_allclose(np.mean(x_BSD**2, -1), 1, rtol=0.01)
    assert not forward(changed(model, "final_norm.scale", jnp.zeros_like), LLAMA, "causal").any()


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_only_distances_count(name, build):
    """Queries and keys are told of their places alike: shifting all changes nothing, drawing them apart does."""
    config, model = CONFIGS[name], build(CONFIGS[name])
    at_1S = np.arange(S)[None]
    here, shifted, apart = (forward(model, config, "causal", positions_BS=at) for at in (at_1S, at_1S + 5, at_1S * 3))
    np.testing.assert_allclose(here, shifted, atol=1e-4)
    assert np.abs(here - apart).max() > 1e-2


@pytest.mark.parametrize("rule", ["causal", "groups"])
def test_aligned_positions_are_distances_in_time_and_pairs_of_segments(rule, build, reference):
    """Places of two segments that run side by side, of which the second is told of the first's time to come too."""
    config = dataclasses.replace(LLAMA, positions="t5_aligned", t5_buckets=8, t5_max_distance=20, segments=2)
    model, (x_BSD, _) = build(config), inputs(config)
    at_BS = np.stack([np.r_[3 * np.arange(6), SEGMENT + 2 * np.arange(8)], np.r_[np.arange(7), SEGMENT + np.arange(7)]])
    expected = reference.transformer(config, reference.weights_of(model), x_BSD, RULES[rule][1], at_BS=at_BS)
    found = forward(model, config, rule, positions_BS=at_BS)
    np.testing.assert_allclose(found, expected, atol=2e-4)
    for path in ("distance", "pairs"):  # each bias counts
        moved = changed(model, path, lambda x: x + 0.5 * np.arange(x.size).reshape(x.shape) % 3)
        assert np.abs(forward(moved, config, rule, positions_BS=at_BS) - found).max() > 1e-3
    with pytest.raises(UserError, match=r"t5_aligned positions need segments"):
        dataclasses.replace(config, segments=0)


def test_the_rotary_base_counts(build):
    model = build(LLAMA)
    config = dataclasses.replace(LLAMA, rope_base=10_000.0)
    other = nnx.merge(nnx.graphdef(abstract(config)), nnx.state(model))
    assert np.abs(forward(model, LLAMA, "causal") - forward(other, config, "causal")).max() > 1e-2


@pytest.mark.parametrize("rule", ["full", "causal"])
def test_padding_is_seen_by_none(rule, build, reference):
    model, (x_BSD, _) = build(LLAMA), inputs(LLAMA)
    valid_BS = np.arange(S) < np.array([[9], [S]])
    expected = reference.transformer(LLAMA, reference.weights_of(model), x_BSD, RULES[rule][1], valid_BS=valid_BS)
    np.testing.assert_allclose(forward(model, LLAMA, rule, valid_BS=valid_BS)[valid_BS], expected[valid_BS], atol=2e-4)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms_by_their_definition(kind, reference):
    dice = np.random.default_rng(0)
    made = reference.drawn(Norm(nnx.Rngs(0), kind, (3, 4), (None, None), eps=0.3, over=2, bias=True), spread=1.0)
    x = dice.normal(2, 1, (5, 3, 4)).astype(np.float32)
    expected = reference.norm(kind, x.astype(np.float64), reference.weights_of(made), 0.3, (-2, -1))
    np.testing.assert_allclose(made(x), expected, atol=1e-5)
    assert (made.bias is None) == (kind == "rms")  # which has no mean to move


def test_modulation_and_unit_length():
    dice = np.random.default_rng(0)
    x_BSD, scale_BD, shift_BD = (dice.normal(size=shape).astype(np.float32) for shape in ((2, 3, 4), (2, 4), (2, 4)))
    expected = np.stack([x_BSD[b] * (1 + scale_BD[b]) + shift_BD[b] for b in range(2)])
    np.testing.assert_allclose(modulate(x_BSD, scale_BD, shift_BD), expected, atol=1e-6)
    np.testing.assert_allclose(unit(x_BSD), x_BSD / np.linalg.norm(x_BSD, axis=-1, keepdims=True), atol=1e-6)
    assert not unit(jnp.zeros(3)).any()
