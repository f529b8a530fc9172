import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hiermusic.errors import UserError
from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.param import parameter_counts
from hiermusic.nn.token_lm import TokenLM, TokenLMConfig
from hiermusic.parallel.counting import forward_flops
from hiermusic.tokens.visibility import Visibility

TRUNK = TransformerConfig(
    layers=1, width=16, heads=2, kv_heads=2, head_dim=8, ffn_width=24, dtype="float32", init_std=0.3
)
CONFIG = TokenLMConfig(TRUNK, levels=3, codes=8, text_size=11, end=4, z_loss=0.1)
KHALA = TransformerConfig(24, 2048, 32, 8, 64, 5632, bias="all", rope_base=500_000.0)
B, S = 2, 10


@functools.cache
def build(config):
    return jax.jit(lambda: TokenLM(config, rngs=nnx.Rngs(0)))()


def draw():
    """Rows whose positions read anything and predict a code of one level, of several, or the end."""
    rng = np.random.default_rng(0)
    targets = np.where(rng.random((B, S, 3)) < 0.5, rng.integers(0, 8, (B, S, 3)), -1)
    ends = np.where((targets < 0).all(-1), 4, -1)
    ends[0, -1], targets[0, -1] = 4, -1
    return {
        "text": rng.integers(-1, 11, (B, S)),
        "reads": rng.integers(-1, 8, (B, S, 3)),
        "targets": targets,
        "text_targets": ends,
        "valid": np.ones((B, S), bool),
    }


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


_loss = jax.jit(TokenLM.loss, static_argnames="visibility")
_embed = jax.jit(TokenLM.embed)


@functools.partial(jax.jit, static_argnames="levels")
def level_logits(model, batch, levels):
    hidden = model.hidden(batch, visibility=Visibility.causal())
    return hidden, [model.level_logits(hidden, level) for level in levels]


def loss(config, batch):
    return _loss(build(config), batch, visibility=Visibility.causal())


def test_embed_sums_rows():
    model, batch = build(CONFIG), draw()
    text, code = np.asarray(model.text_embed[...]), np.asarray(model.code_embed[...])
    expected = np.zeros((B, S, 16))
    for b, s in np.ndindex(B, S):
        expected[b, s] += text[batch["text"][b, s]] if batch["text"][b, s] >= 0 else 0
        for k, read in enumerate(batch["reads"][b, s]):
            expected[b, s] += code[k, read] if read >= 0 else 0
    np.testing.assert_allclose(_embed(model, batch["text"], batch["reads"]), expected, atol=1e-5)
    nothing = _embed(model, np.full((B, S), -1), np.full((B, S, 3), -1))
    np.testing.assert_array_equal(nothing, np.zeros((B, S, 16)))


@pytest.mark.parametrize(("head", "end"), [("window", 4), ("window", 0), ("full", 4)])
def test_loss_against_numpy(head, end):
    config = dataclasses.replace(CONFIG, head=head, end=end)
    model, batch = build(config), draw()
    batch["text_targets"] = np.where(batch["text_targets"] >= 0, end, -1)
    hidden = np.asarray(level_logits(model, batch, (0, 2))[0], np.float64)
    code = np.einsum("bsd,kvd->bskv", hidden, np.asarray(model.code_head[...]))
    text = hidden @ np.asarray(model.text_head[...]).T
    total, squares, hits, ce, count = 0.0, 0.0, 0, np.zeros(3), np.zeros(3)
    for b, s in np.ndindex(B, S):
        wanted = [(k, target) for k, target in enumerate(batch["targets"][b, s]) if target >= 0]
        wanted += [("end", end)] if batch["text_targets"][b, s] >= 0 else []
        for k, target in wanted:
            level = 0 if k == "end" else k
            if head == "full":
                row = np.concatenate([code[b, s].ravel(), text[b, s]])
                place = 24 + target if k == "end" else k * 8 + target
            else:
                row = np.append(code[b, s, level], text[b, s, end]) if level == 0 else code[b, s, level]
                place = 8 if k == "end" else target
            total -= log_softmax(row)[place]
            squares += np.log(np.exp(row).sum()) ** 2
            hits += row.argmax() == place
            ce[level] -= log_softmax(row)[place]
            count[level] += 1
    value, metrics = loss(config, batch)
    np.testing.assert_allclose(value, (total + 0.1 * squares) / count.sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["ce_K"], ce / count, rtol=1e-5)
    np.testing.assert_array_equal(metrics["count_K"], count)
    np.testing.assert_allclose(metrics["accuracy"], hits / count.sum(), rtol=1e-6)


def of_levels(batch, level_B):
    """Rows that predict a level each."""
    targets_BS = np.take_along_axis(batch["targets"], level_B[:, None, None], 2)[..., 0]
    return batch | {"targets": targets_BS, "level": level_B}


@pytest.mark.parametrize("head", ["window", "full"])
def test_a_traced_level_equals_the_scan_over_levels(head):
    batch, config = draw() | {"text_targets": np.full((B, S), -1)}, dataclasses.replace(CONFIG, head=head)
    for level in range(3):
        one = batch | {"targets": np.where(np.arange(3) == level, batch["targets"], -1)}
        whole, metrics = loss(config, one)
        window, traced = loss(config, of_levels(one, np.full(B, level, np.int32)))
        np.testing.assert_allclose(whole, window, rtol=1e-6)
        np.testing.assert_allclose(metrics["ce_K"], traced["ce_K"], rtol=1e-5)


@pytest.mark.parametrize("code_bias", [False, True])
def test_each_row_has_a_level_of_its_own(code_bias):
    """Rows of two levels in one batch cost what the scan over all levels says that they cost."""
    config = dataclasses.replace(CONFIG, code_bias=code_bias)
    model = build(config)
    if code_bias:
        model.code_bias[...] = jnp.asarray(np.random.default_rng(1).normal(size=model.code_bias.shape), jnp.float32)
    level_B = np.arange(B, dtype=np.int32) % 2 + 1
    batch = draw() | {"text_targets": np.full((B, S), -1)}
    batch["targets"] = np.where(np.arange(3) == level_B[:, None, None], batch["targets"], -1)
    run = jax.jit(functools.partial(TokenLM.loss, visibility=Visibility.full()))
    (whole, metrics), (window, by_row) = run(model, batch), run(model, of_levels(batch, level_B))
    np.testing.assert_allclose(whole, window, rtol=1e-6)
    for name in ("ce_K", "count_K"):
        np.testing.assert_allclose(metrics[name], by_row[name], rtol=1e-5)
    assert (np.asarray(metrics["count_K"])[1:] > 0).all()


def test_codes_that_are_read_may_come_in_fewer_bits():
    batch = draw()
    for one, two in zip(
        jax.tree.leaves(loss(CONFIG, batch)),
        jax.tree.leaves(loss(CONFIG, batch | {"reads": batch["reads"].astype(np.int16)})),
        strict=True,
    ):
        np.testing.assert_array_equal(one, two)


def test_blocks_of_the_full_softmax_change_nothing(monkeypatch):
    config = dataclasses.replace(CONFIG, head="full")
    whole, _ = loss(config, draw())
    monkeypatch.setattr("hiermusic.nn.token_lm._ROWS", 3)
    # a function of its own, because the program of whole rows is kept
    blocks, _ = jax.jit(functools.partial(TokenLM.loss, visibility=Visibility.causal()))(build(config), draw())
    np.testing.assert_allclose(whole, blocks, rtol=1e-6)


def test_nothing_to_predict_is_no_loss():
    batch = draw() | {"targets": np.full((B, S, 3), -1), "text_targets": np.full((B, S), -1)}
    value, metrics = loss(CONFIG, batch)
    assert value == 0 and metrics["count_K"].sum() == 0 and np.isfinite(metrics["ce_K"]).all()


def test_a_key_is_what_drops():
    """All the way down to the trunk: two keys drop differently, no key drops nothing."""
    config = dataclasses.replace(CONFIG, transformer=dataclasses.replace(TRUNK, dropout=0.5))
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: TokenLM(config, rngs=nnx.Rngs(0))))
    noisy = nnx.merge(graphdef, nnx.state(build(CONFIG)))
    run = jax.jit(functools.partial(TokenLM.loss, visibility=Visibility.causal()))
    one, again, other = (float(run(noisy, draw(), key=jax.random.key(seed))[0]) for seed in (1, 1, 2))
    calm = float(loss(CONFIG, draw())[0])
    assert one == again and len({one, other, calm}) == 3
    np.testing.assert_allclose(run(noisy, draw(), key=None)[0], calm, rtol=1e-6)


@pytest.mark.parametrize("rule", ["full", "causal"])
def test_what_padding_reads_changes_no_loss(rule):
    """Padding predicts nothing and is seen by nobody, whatever stands there."""
    batch = draw()
    valid_BS = np.arange(S) < np.array([[6], [S]])
    batch["valid"] = valid_BS
    batch["targets"] = np.where(valid_BS[..., None], batch["targets"], -1)
    batch["text_targets"] = np.where(valid_BS, batch["text_targets"], -1)
    other = batch | {
        "text": np.where(valid_BS, batch["text"], (batch["text"] + 2) % 11),
        "reads": np.where(valid_BS[..., None], batch["reads"], (batch["reads"] + 3) % 8),
    }
    run = functools.partial(_loss, build(CONFIG), visibility=getattr(Visibility, rule)())
    for one, two in zip(jax.tree.leaves(run(batch)), jax.tree.leaves(run(other)), strict=True):
        np.testing.assert_array_equal(one, two)
    seen = batch | {"valid": np.ones_like(valid_BS)}
    assert (float(run(seen)[0]) != float(run(batch)[0])) == (rule == "full")


def test_unpredicted_levels_get_no_head_gradient():
    batch = of_levels(draw(), np.full(B, 1, np.int32))
    grads = jax.jit(jax.grad(lambda model: model.loss(batch, visibility=Visibility.full())[0]))(build(CONFIG))
    moved = np.abs(np.asarray(grads.code_head[...])).max((1, 2)) > 0
    assert moved.tolist() == [False, True, False]


def test_no_array_of_all_levels_at_once():
    """64 levels: neither the embedding nor the window loss holds an array with positions, levels and width or codes."""
    levels, positions = 64, 12
    config = dataclasses.replace(CONFIG, levels=levels)
    model = nnx.eval_shape(lambda: TokenLM(config, rngs=nnx.Rngs(0)))
    ids = jax.ShapeDtypeStruct((B, positions), jnp.int32)
    codes = jax.ShapeDtypeStruct((B, positions, levels), jnp.int32)
    batch = {"text": ids, "reads": codes, "targets": codes, "text_targets": ids}
    step = jax.value_and_grad(lambda model, batch: model.loss(batch, visibility=Visibility.full())[0])
    text = jax.jit(step).lower(model, batch).compile().as_text()
    assert f"{B},{positions},{levels}]" in text
    for last in (config.codes, TRUNK.width):
        for shape in (f"{levels},{B},{positions},{last}", f"{B},{positions},{levels},{last}"):
            assert f"f32[{shape}]" not in text


def test_a_compact_model_is_the_same_to_the_bit():
    config = dataclasses.replace(CONFIG, transformer=dataclasses.replace(TRUNK, dtype="bfloat16", bias="all"))
    model = build(config)
    compact = model.compact()
    for one, other in zip(level_logits(model, draw(), (0, 2)), level_logits(compact, draw(), (0, 2)), strict=True):
        np.testing.assert_array_equal(np.asarray(one, np.float32), np.asarray(other, np.float32))
    layers = compact.unstack().trunk.layers
    small = [layers[0].attention.out, layers[0].ffn.down, compact.code_head, compact.text_head]
    whole = [compact.code_embed, compact.text_embed, layers[0].attention_norm.scale, layers[0].ffn.up_bias]
    assert {w[...].dtype for w in small} == {jnp.dtype("bfloat16")}
    assert {w[...].dtype for w in whole} == {jnp.dtype("float32")}
    assert compact.code_head.get_metadata() == model.code_head.get_metadata()
    assert model.code_head[...].dtype == jnp.float32


def test_unstacked_model_gives_the_same_logits():
    model, batch = build(CONFIG), draw()
    single = jax.jit(TokenLM.unstack)(model)
    assert len(single.trunk.layers) == TRUNK.layers
    for one, other in zip(*(level_logits(m, batch, (0, 2))[1] for m in (model, single)), strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert jax.eval_shape(lambda m: m.text_logits(jnp.ones((2, 16)), [4, 5]), model).shape == (2, 2)


@pytest.mark.parametrize(("levels", "billions"), [(2, 1.617), (64, 1.876)])
def test_khala_paper_sizes_without_allocating(levels, billions):
    config = TokenLMConfig(KHALA, levels, 1024, text_size=128_256)
    counts = parameter_counts(nnx.eval_shape(lambda: TokenLM(config, rngs=nnx.Rngs(0))))
    trunk = sum(count for name, count in counts.items() if name.startswith("trunk."))
    assert counts["code_head"] == levels * 1024 * 2048
    assert abs(trunk / 1e9 - 1.083) < 0.001
    assert abs(sum(counts.values()) / 1e9 - billions) < 0.001


E, U, SCALES = 5, 7, (1, 3, 6)
WIDE = dataclasses.replace(
    TRUNK, layers=2, norm="layer", adaptive=True, ffn="gelu", positions="learned", max_positions=S, qk_norm="unit",
    bias="all_but_key",
)  # fmt: skip
AAR = TokenLMConfig(
    WIDE, levels=3, codes=8, text_size=1, head="shared", reads=False, inputs=E, level_embed=True, cond=U
)


@functools.cache
def build_wide(config):
    """All weights drawn alike: adaptive norms start nearly shut, which would hide what passes through a layer."""
    graphdef, state = nnx.split(build(config))
    rng = np.random.default_rng(0)
    return nnx.merge(graphdef, jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), state))


def scales():
    rng = np.random.default_rng(0)
    levels_S = np.repeat(np.arange(3), SCALES)
    targets_BS = rng.integers(0, 8, (B, S))
    return {
        "text": np.broadcast_to(np.where(levels_S == 0, 0, -1), (B, S)),
        "inputs": rng.normal(size=(B, S, E)).astype(np.float32),
        "levels": np.broadcast_to(levels_S, (B, S)),
        "cond": rng.normal(size=(B, U)).astype(np.float32),
        "targets": np.where(np.arange(3) == levels_S[:, None], targets_BS[..., None], -1),
    }


_scale_logits = jax.jit(
    lambda model, batch: model.level_logits(model.hidden(batch, visibility=Visibility.block_causal(SCALES)), 0)
)


PREFIX = dataclasses.replace(CONFIG, text_size=1, end=None, z_loss=0.0, given=1, segments=(0, 1, 1), null=True)


def test_segments_and_the_null_are_added(reference):
    """A position belongs to the segment of what it reads, to the last where a row begins, to none without."""
    model = build(PREFIX)
    reads_SK = np.array([[3, -1, -1], [8, -1, -1], [-1, -1, -1], [-1, 5, -1], [-1, -1, 7], [-1, -1, -1]])
    text_S = np.array([-1, -1, 0, -1, -1, -1])
    found_SD = np.asarray(_embed(model, text_S[None], reads_SK[None])[0])
    expected_SD = reference.embed(PREFIX, reference.weights_of(model), text_S, reads_SK)
    np.testing.assert_allclose(found_SD, expected_SD, atol=1e-5)
    null_D, segments = np.asarray(model.null_embed[...]), np.asarray(model.segment_embed[...])
    np.testing.assert_allclose(found_SD[1], null_D + segments[0], atol=1e-5)
    assert not found_SD[-1].any() and segments.shape == (2, 16)


def test_given_levels_have_no_heads():
    """The loss of the levels behind them is that of a model with all heads, whose gradient for theirs is nothing."""
    whole = dataclasses.replace(PREFIX, given=0)
    batch = draw() | {"text": np.full((B, S), -1), "text_targets": np.full((B, S), -1)}
    batch["targets"][..., 0] = -1
    few, many = build(PREFIX), build(whole)
    state = nnx.state(many)
    state["code_head"] = state["code_head"].replace(state["code_head"].get_value()[1:])
    few = nnx.merge(nnx.graphdef(few), state)
    (loss_few, told_few), (loss_many, told_many) = (
        _loss(model, batch, visibility=Visibility.causal()) for model in (few, many)
    )
    assert few.code_head.shape == (2, 8, 16) and float(loss_few) == pytest.approx(float(loss_many), rel=1e-6)
    np.testing.assert_allclose(told_few["ce_K"], told_many["ce_K"], rtol=1e-6)
    np.testing.assert_array_equal(told_few["count_K"], told_many["count_K"])
    (_, one), (_, other) = (level_logits(model, batch, (1, 2)) for model in (few, many))
    np.testing.assert_allclose(one, other, atol=1e-6)
    for change in ({"head": "full"}, {"code_bias": True}, {"text_size": 3, "end": 2}):
        with pytest.raises(UserError, match=r"^heads of predicted levels alone go with the window form [^\n]+$"):
            dataclasses.replace(PREFIX, **change)


def test_inputs_levels_and_the_condition_are_added():
    model, batch = build_wide(AAR), scales()
    levels_1S = np.array([[3, -1, *batch["levels"][0, 2:]]])
    cond_BD = np.asarray(model.condition(batch["cond"]))
    hidden = batch["cond"] @ np.asarray(model.cond_in[...])
    tanh = np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3))
    np.testing.assert_allclose(cond_BD, hidden / 2 * (1 + tanh) @ np.asarray(model.cond_out[...]), atol=1e-5)
    expected = batch["inputs"] @ np.asarray(model.input_proj[...]) + np.asarray(model.input_bias[...])
    expected[:, 0] = np.asarray(model.text_embed[...])[0] + cond_BD
    rows = np.asarray(model.level_embed[...])[levels_1S[0]]
    expected += np.where(levels_1S[0][:, None] >= 0, rows, 0)
    made = _embed(model, batch["text"], inputs_BSE=batch["inputs"], levels_BS=levels_1S, cond_BD=cond_BD)
    np.testing.assert_allclose(made, expected, atol=1e-5)


@pytest.mark.parametrize("by_level", [False, True])
def test_a_shared_heads_loss_against_numpy(by_level):
    config = dataclasses.replace(AAR, z_loss=0.1, code_bias=by_level)
    model, batch = build_wide(config), scales()
    batch["targets"][1, 4:] = -1
    hidden = jax.jit(lambda model: model.hidden(batch, visibility=Visibility.block_causal(SCALES)))(model)
    row = np.asarray(hidden) @ np.asarray(model.code_head[...], np.float64).T
    biases_KV = np.broadcast_to(model.code_bias[...], (3, config.codes))
    for level, bias_V in enumerate(biases_KV):
        np.testing.assert_allclose(model.level_logits(hidden, level), row + bias_V, atol=1e-4)
    row = row + biases_KV[batch["levels"][0]]
    total, squares, hits, ce, count = 0.0, 0.0, 0, np.zeros(3), np.zeros(3)
    for b, s, k in np.argwhere(batch["targets"] >= 0):
        target, ln = batch["targets"][b, s, k], log_softmax(row[b, s])
        total, squares = total - ln[target], squares + np.log(np.exp(row[b, s]).sum()) ** 2
        hits, ce[k], count[k] = hits + (row[b, s].argmax() == target), ce[k] - ln[target], count[k] + 1
    value, metrics = _loss(model, batch, visibility=Visibility.block_causal(SCALES))
    np.testing.assert_allclose(value, (total + 0.1 * squares) / count.sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["ce_K"], ce / count, rtol=1e-5)
    np.testing.assert_array_equal(metrics["count_K"], count)
    np.testing.assert_allclose(metrics["accuracy"], hits / count.sum(), rtol=1e-6)


@pytest.mark.parametrize("level", [1, 2])
def test_an_input_of_a_scale_changes_no_coarser_prediction(level):
    model, batch = build_wide(AAR), scales()
    first = sum(SCALES[:level])
    moved = batch["inputs"].copy()
    moved[:, first] += 3
    one, other = _scale_logits(model, batch), _scale_logits(model, batch | {"inputs": moved})
    np.testing.assert_array_equal(one[:, :first], other[:, :first])
    assert (np.abs(one - other)[:, first:].max(-1) > 0).all()


def test_the_condition_reaches_every_block():
    model, batch = build_wide(AAR), scales()
    moved = batch["cond"] + np.array([[1.0], [0.0]], np.float32)
    one, other = _scale_logits(model, batch), _scale_logits(model, batch | {"cond": moved})
    assert (np.abs(one - other)[0].max(-1) > 0).all()
    np.testing.assert_array_equal(one[1], other[1])
    grad = jax.jit(jax.grad(lambda model: model.loss(batch, visibility=Visibility.block_causal(SCALES))[0]))(model)
    for part in (grad.trunk.layers.adapt.kernel, grad.trunk.layers.adapt.bias):  # [layer, ..., part, width]
        assert (np.abs(part[...]).max(-1).reshape(2, -1, 6).max(1) > 0).all()
    for part in (grad.trunk.final_adapt.kernel, grad.cond_in, grad.cond_out):
        assert np.abs(part[...]).max() > 0


@pytest.mark.parametrize(("depth", "millions"), [(8, 39.7), (12, 130.9), (16, 307.6), (20, 597.8), (24, 1030.1)])
def test_aar_sizes_without_allocating(depth, millions):
    width = 64 * depth
    sizes = {"layers": depth, "width": width, "heads": depth, "kv_heads": depth, "ffn_width": 4 * width}
    trunk = dataclasses.replace(WIDE, **sizes, head_dim=64, max_positions=455)
    config = dataclasses.replace(AAR, transformer=trunk, levels=16, codes=1024, inputs=128, cond=512)
    counts = parameter_counts(nnx.eval_shape(lambda: TokenLM(config, rngs=nnx.Rngs(0))))
    assert not {"text_head", "code_embed"} & set(counts)
    np.testing.assert_allclose(sum(counts.values()) / 1e6, millions, rtol=5e-4)


def test_heads_start_smaller():
    config = dataclasses.replace(AAR, head_init=0.02, transformer=dataclasses.replace(WIDE, width=64, init_std=0.3))
    model = build(config)
    np.testing.assert_allclose(np.std(model.code_head[...]), 0.3 * 0.02, rtol=0.1)
    np.testing.assert_allclose(np.std(model.cond_out[...]), 0.3, rtol=0.1)
    np.testing.assert_array_equal(model.code_bias[...], 0)


def test_a_flops_formula_with_inputs_and_a_condition():
    model, visibility = nnx.eval_shape(lambda: TokenLM(AAR, rngs=nnx.Rngs(0))), Visibility.full()

    def one(model, batch):
        return model.loss(batch, visibility=visibility)[0]

    batch = jax.eval_shape(lambda: {name: jnp.asarray(value[:1]) for name, value in scales().items()})
    assert forward_flops(one, model, batch) == AAR.flops(S, visibility, heads=1)


@pytest.mark.parametrize("change", [{"head": "half"}, {"end": 11}, {"head": "shared"}, {"transformer": WIDE}])
def test_bad_configs_are_refused_in_one_line(change):
    with pytest.raises(UserError, match=r"^[^\n]+$"):
        dataclasses.replace(CONFIG, **change)
