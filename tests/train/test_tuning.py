"""What a run trains and what it leaves: names, shares of the learning rate, adapters, and weights that are borrowed."""

import json
import shutil

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from hiermusic.errors import UserError
from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.param import Adapter, Frozen, Lent
from hiermusic.nn.token_lm import TokenLM, TokenLMConfig
from hiermusic.parallel.mesh import make_mesh, shardings
from hiermusic.pretrained import export
from hiermusic.systems import start
from hiermusic.tokens import pattern, sequence
from hiermusic.tokens.visibility import Visibility
from hiermusic.train import checkpoint, stored
from hiermusic.train.lent import borrowed, check, fingerprint
from hiermusic.train.lm import LMStage
from hiermusic.train.loop import abstract_state, run
from hiermusic.train.stage import RunConfig, Work
from hiermusic.train.tuning import TuningConfig, folded, merged

LENGTH = 12
TRUNK = TransformerConfig(
    layers=2, width=16, heads=2, kv_heads=1, head_dim=8, ffn_width=24, dtype="float32", remat="none"
)
TARGETS = ("query", "key", "value", "out", "gate", "up", "down")


def make_model(rngs):
    return TokenLM(TokenLMConfig(TRUNK, levels=2, codes=5, text_size=7, end=6), rngs=rngs)


def batch(index):
    draw = np.random.default_rng(index)
    rows = []
    for _ in range(4):
        codes_T = draw.integers(5, size=4)
        rows.append(sequence.pack([1, 2], pattern.flatten((4, 4)), [codes_T, codes_T], LENGTH, end=6))
    return Visibility.causal(), sequence.stack(rows)


def fields(steps, base="", lora=None, mesh=None, **train):
    told = {"learning_rate": 2e-2, "warmup_steps": 0, "schedule": "constant", "batch_size": 4, "seed": 1}
    told |= {"valid_every": 0, "checkpoint_every": 3, "ema_decay": 0.5, "steps": steps}
    of = {"init_from": base, "lora": {"rank": 0, "alpha": 8.0, "targets": TARGETS, "beside": (), **(lora or {})}}
    return {"train": told | train, **of} | ({"mesh": mesh} if mesh else {})


def stage_of(steps, base="", **options):
    return LMStage(
        RunConfig.of(json.loads(json.dumps(fields(steps, base, **options)))),
        make_model,
        train=lambda rows: grain.MapDataset.range(10**6).map(batch),
        valid=lambda rows: grain.MapDataset.range(10**6, 10**6 + 2).map(batch),
        examples=[],
        work=lambda task: Work(1.0, 1, 1.0),
        length=LENGTH,
        trunk=TRUNK,
        prepare=lambda module: start.from_run(base, module.model),
    )


def adapted(rngs=2, **options):
    told = {"rank": 2, "targets": TARGETS, "base": "base"} | options
    return TuningConfig(**told).apply(make_model(nnx.Rngs(0)), nnx.Rngs(rngs))


def learned(model):
    """The model with adapters that have learned something."""
    for path, adapter in nnx.to_flat_state(nnx.state(model, Adapter)):
        draw = np.random.default_rng(len(str(path)))
        adapter[...] = jnp.asarray(draw.normal(size=adapter.shape), jnp.float32)
    return model


def flat(model, kind=nnx.Variable):
    return {".".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(nnx.state(model, kind))}


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


# MARK: adapters


def test_a_fresh_adapter_changes_nothing_to_the_bit():
    plain, model = make_model(nnx.Rngs(0)), adapted()
    assert len(flat(model, Adapter)) == 2 * len(TARGETS) and not flat(model, nnx.Param).keys() - flat(model, Adapter)
    same(flat(merged(model)), flat(plain))


def test_merged_is_every_matrix_with_its_scaled_product_and_folded_says_the_same():
    model = learned(adapted(alpha=6.0, targets=("query", "out", "down", "code_head"), beside=("final_norm.scale",)))
    plain, found, own = flat(make_model(nnx.Rngs(0))), flat(merged(model)), flat(model, nnx.Param)
    layers = "trunk.layers."
    wanted = {
        f"{layers}attention.query": ("ldr,lrnh->ldnh", f"{layers}attention.query"),
        f"{layers}attention.out": ("lnhr,lrd->lnhd", f"{layers}attention.out"),
        f"{layers}ffn.down": ("lfr,lrd->lfd", f"{layers}ffn.down"),
        "code_head": ("kvr,rd->kvd", "code_head"),
    }
    for name, (sum_of, at) in wanted.items():
        added = 3.0 * np.einsum(sum_of, own[f"{at}_lora_a"], own[f"{at}_lora_b"])
        np.testing.assert_allclose(found[name], plain[name] + added, rtol=1e-5, atol=1e-5)
    untouched = plain.keys() - wanted.keys()
    same({name: found[name] for name in untouched}, {name: plain[name] for name in untouched})
    whole = folded(plain, own, 3.0)
    assert whole.keys() == found.keys()
    for name in found:
        np.testing.assert_allclose(whole[name], found[name], rtol=1e-5, atol=1e-5)


def test_what_is_made_of_a_base_in_16_bits_is_float32_all_of_it():
    """As the run has it: rounded back, a small adapter would be lost, and two types would lie in one export."""
    model = learned(adapted(targets=("query",), beside=("code_head",)))
    base = {name: weight.astype(jnp.bfloat16) for name, weight in flat(make_model(nnx.Rngs(0))).items()}
    whole = folded(base, flat(model, nnx.Param), 0.5)
    assert whole.keys() == base.keys() and {weight.dtype.name for weight in whole.values()} == {"float32"}
    np.testing.assert_array_equal(whole["text_embed"], base["text_embed"].astype(np.float32))


def test_gradients_go_to_adapters_and_what_is_trained_beside_them_alone():
    model = learned(adapted(targets=("query",), beside=("code_head",)))
    _, rows = batch(0)
    gradients = nnx.grad(lambda model: merged(model).loss(rows, visibility=Visibility.causal())[0])(model)
    found = dict(nnx.to_flat_state(gradients))
    assert {path[-1] for path in found} == {"query_lora_a", "query_lora_b", "code_head"}
    assert all(np.abs(np.asarray(value[...])).max() > 0 for value in found.values())


def test_adapters_lie_on_a_mesh_as_their_matrices_do():
    adapters = nnx.state(adapted(targets=("query", "down")), Adapter)
    placed = {
        path[-1]: sharding.get_value().spec
        for path, sharding in nnx.to_flat_state(shardings(adapters, make_mesh({"fsdp": 4, "tensor": 2})))
    }
    assert placed == {
        "query_lora_a": P(None, "fsdp", None),
        "query_lora_b": P(None, None, "tensor", None),
        "down_lora_a": P(None, "tensor", None),
        "down_lora_b": P(None, None, "fsdp"),
    }


# MARK: frozen and slower


def test_frozen_weights_keep_their_values_and_take_no_moments():
    config = TuningConfig(freeze=("text_embed", "attention.*"))
    model = config.apply(make_model(nnx.Rngs(0)), nnx.Rngs(1))
    still = {path.rpartition(".")[2] for path in flat(model, Frozen)}
    assert still == {"text_embed", "query", "key", "value", "out"} and not flat(model, Lent)
    transform = config.transform(optax.sgd(1.0), model)
    assert "text_embed" not in str(jax.tree_util.tree_structure(transform.init(nnx.state(model, nnx.Param))))


def test_weights_of_a_layer_have_a_rate_of_their_own_and_stand_still_where_they_are_frozen():
    config = TuningConfig(freeze=("trunk.layers.0.*",), rates=("trunk.*=0.5", "code_head=3", "layers.1.ffn.up=0.25"))
    model = config.apply(make_model(nnx.Rngs(0)), nnx.Rngs(1))
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    ones = jax.tree.map(jnp.ones_like, params)
    transform = config.transform(optax.sgd(1.0), model)
    moved = {
        ".".join(str(key.key) for key in keys): np.asarray(-update)
        for keys, update in jax.tree_util.tree_leaves_with_path(
            transform.update(ones, transform.init(params), params)[0]
        )
    }
    assert np.unique(moved["code_head"]).tolist() == [3] and np.unique(moved["text_embed"]).tolist() == [1]
    assert np.unique(moved["trunk.final_norm.scale"]).tolist() == [0.5]
    for name, rate in {"trunk.layers.ffn.up": 0.25, "trunk.layers.ffn.gate": 0.5}.items():
        assert [np.unique(layer).tolist() for layer in moved[name]] == [[0], [rate]]


def test_a_frozen_layer_has_no_part_in_the_norm_and_does_not_decay():
    config = TuningConfig(
        freeze=("trunk.layers.0.*", "text_*", "code_*", "final_norm.scale", "attention*", "ffn_norm*")
    )
    model = config.apply(make_model(nnx.Rngs(0)), nnx.Rngs(1))
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    big = jax.tree.map(lambda p: jnp.ones_like(p).at[0].set(1e6), params)

    def updates(*whole):
        transform = config.transform(optax.chain(*whole, optax.sgd(1.0)), model)
        return jax.tree.leaves(transform.update(big, transform.init(params), params)[0])

    clipped = updates(optax.clip_by_global_norm(1.0))
    assert sum(float(jnp.square(update).sum()) for update in clipped) == pytest.approx(1, rel=1e-4)
    assert clipped and all(np.all(update[0] == 0) for update in updates(optax.add_decayed_weights(0.1)))


def test_a_rate_by_an_adapters_or_its_matrix_name():
    config = TuningConfig(rank=2, targets=("query",), base="b", rates=("attention.query=0.5", "*_lora_b=4"))
    model = config.apply(make_model(nnx.Rngs(0)), nnx.Rngs(1))
    shares = {path[-1]: config._shares(path, v) for path, v in nnx.to_flat_state(nnx.state(model, Adapter))}
    assert np.unique(shares["query_lora_a"]).tolist() == [0.5] and np.unique(shares["query_lora_b"]).tolist() == [4]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"freeze": ("text",)}, r"train\.freeze: no weight is called 'text': print the names"),
        ({"rates": ("nothing=2",)}, r"train\.rates: no weight is called 'nothing'"),
        ({"rank": 2, "targets": ("q_proj",), "base": "b"}, r"lora\.targets: no weight is called 'q_proj'"),
        ({"rank": 2, "targets": ("query", "final_norm.scale"), "base": "b"}, r"final_norm\.scale is no matrix"),
        ({"rank": 2, "targets": ("query",), "beside": ("x",), "base": "b"}, r"lora\.beside: no weight is called 'x'"),
        ({"freeze": ("*",)}, r"train\.freeze leaves nothing to train"),
        ({"beside": ("code_head",)}, r"lora\.beside=.* goes with adapters"),
    ],
)
def test_names_that_fit_nothing_are_told(options, words):
    with pytest.raises(UserError, match=words):
        TuningConfig(**options).apply(make_model(nnx.Rngs(0)), nnx.Rngs(1))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rates": ("query",)}, r"'query' is no PATTERN=FACTOR"),
        ({"rates": ("query=-1",)}, r"'query=-1' is no PATTERN=FACTOR"),
        ({"rates": ("=0.1",)}, r"'=0\.1' is no PATTERN=FACTOR"),
        ({"freeze": (3,)}, r"train\.freeze=\(3,\): give texts"),
        ({"rank": -1}, r"lora\.rank=-1: give a whole number"),
        ({"rank": 2, "targets": ("query",)}, r"lora\.rank=2: adapters need a model to adapt: name its run with init"),
        ({"rank": 2, "base": "b"}, r"lora\.targets is empty"),
        ({"alpha": 0.0}, r"lora\.alpha=0\.0: give a finite number above 0"),
    ],
)
def test_settings_that_are_none_are_told(options, words):
    with pytest.raises(UserError, match=words):
        TuningConfig(**options)


# MARK: runs


def test_an_average_is_of_what_is_trained_and_borrows_the_rest_with_the_model():
    stage = stage_of(1, "base", lora={"rank": 2, "beside": ("code_head",)})
    flat = nnx.to_flat_state(abstract_state(stage, 0)[1])
    once = {path[1:] for path, variable in flat if isinstance(variable, Lent)}
    assert len(once) == sum(isinstance(variable, Lent) for _, variable in flat) > 0
    held = {part: {path[1:] for path, _ in flat if path[0] == part} - once for part in ("model", "ema")}
    assert held["ema"] == held["model"] and {path[-1] for path in held["ema"]} > {"code_head", "query_lora_a"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A base, and a run with adapters over it, ended early, kept as it was then, and gone on with."""
    root = tmp_path_factory.mktemp("runs")
    run(stage_of(3), root / "base", progress=False)
    lora = {"rank": 2, "beside": ("code_head",)}
    base = f"{root}/base@3"
    run(stage_of(6, base, lora=lora), root / "whole", progress=False)
    run(stage_of(3, base, lora=lora), root / "halves", progress=False)
    shutil.copytree(root / "halves", root / "half")
    run(stage_of(6, base, lora=lora), root / "halves", progress=False)
    return root


def test_a_run_goes_on_to_the_bit_and_keeps_adapters_alone(runs):
    path = checkpoint.find(runs / "whole")
    for part in ("model", "ema"):
        names = export.dotted(checkpoint.saved(path, part)).keys()
        assert {name.rpartition(".")[2] for name in names} == {
            "code_head",
            *(f"{target}_lora_{half}" for target in TARGETS for half in "ab"),
        }
    same(*(export.dotted(checkpoint.load_weights(runs / name)) for name in ("whole", "halves")))


def test_a_run_goes_on_upon_a_mesh(runs, tmp_path):
    lora, place = {"rank": 2, "beside": ("code_head",)}, shutil.copytree(runs / "half", tmp_path / "half")
    mesh = {"data": 1, "fsdp": 4, "context": 2, "tensor": 1}
    run(stage_of(6, f"{runs}/base@3", lora=lora, mesh=mesh), place, progress=False)
    one, other = (export.dotted(checkpoint.load_weights(at)) for at in (runs / "whole", place))
    for name in one:
        np.testing.assert_allclose(one[name], other[name], rtol=2e-3, atol=2e-4, err_msg=name)


def test_whoever_reads_the_run_has_the_merged_model(runs, tmp_path):
    base, whole = (export.dotted(checkpoint.load_weights(runs / name)) for name in ("base", "whole"))
    assert whole.keys() == base.keys()
    changed = {name.rpartition(".")[2] for name in base if not np.array_equal(base[name], whole[name])}
    assert changed == {*TARGETS, "code_head"}
    same(flat(checkpoint.load_model(runs / "whole", lambda: make_model(nnx.Rngs(5)))), whole)
    weights = stored.open_weights(runs / "whole", dtype="bfloat16")
    assert weights.shapes.keys() == base.keys() and weights.part == "ema"
    assert weights.read(["code_head"])["code_head"].dtype == jnp.bfloat16
    exported = tmp_path / "exported"
    weights = stored.open_weights(runs / "whole")
    export.write(exported, weights.shapes, weights.read, fields(6, "gone", lora={"rank": 2}), {"step": 6}, {})
    same(export.dotted(checkpoint.load_weights(exported)), whole)  # needs its base no more
    model = make_model(nnx.Rngs(7))
    start.from_run(str(runs / "whole"), model)
    same(flat(model), whole)


def test_a_base_that_is_gone_or_of_another_model_is_told(runs):
    (runs / "base").rename(runs / "moved")
    try:
        with pytest.raises(UserError, match=r"whole starts from .*base@3, which is not there: put it back"):
            checkpoint.load_weights(runs / "whole")
    finally:
        (runs / "moved").rename(runs / "base")
    with pytest.raises(UserError, match=r"other is of another model than the one that was adapted: it has no such "):
        abstract = nnx.state(nnx.Dict(model=adapted()))
        borrowed(abstract, {"code_embed": np.zeros((1, 5, 16))}, "other")


def test_a_base_that_has_changed_since_is_refused(runs, tmp_path):
    base, place = export.dotted(checkpoint.load_weights(runs / "base")), f"{tmp_path}/base@3"
    shutil.copytree(runs / "whole", tmp_path / "whole")
    checkpoint.write_config(tmp_path / "whole", checkpoint.read_config(runs / "whole") | {"init_from": place})

    def put(weights):
        shutil.rmtree(tmp_path / "base", ignore_errors=True)
        shapes = {name: export.shape(weight) for name, weight in weights.items()}
        read = lambda names: {name: weights[name] for name in names}  # noqa: E731
        export.write(tmp_path / "base", shapes, read, fields(3), {"step": 3}, {})

    put(base)
    same(*(export.dotted(checkpoint.load_weights(place / "whole")) for place in (tmp_path, runs)))
    other = base["text_embed"].copy()
    other[0, 0] = np.nextafter(other[0, 0], 1)
    words = r"whole was trained upon .*base@3, where 1 of \d+ weights are others by now, as text_embed: put back what"
    for weights in (base | {"text_embed": other}, base | {"text_embed": base["text_embed"].T}):
        put(weights)
        with pytest.raises(UserError, match=words):
            checkpoint.load_weights(tmp_path / "whole")
    with pytest.raises(UserError, match=words):
        run(stage_of(7, place, lora={"rank": 2, "beside": ("code_head",)}), tmp_path / "whole", progress=False)


def test_a_base_in_16_bits_is_known_again_on_any_mesh():
    """Where a run goes on, its mesh is in force while the base, which lies on the host, is held against what it was."""
    with jax.set_mesh(make_mesh({"fsdp": 4, "tensor": 2})):
        state = nnx.state(adapted())
        wide = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), nnx.filter_state(state, Lent))
        base = {".".join(map(str, path[1:])): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(wide)}
        known = fingerprint(wide)
        assert known
        check({name: weight.astype(jnp.bfloat16) for name, weight in base.items()}, known, "base", "run")


def test_of_a_base_in_32_bits_only_what_changes_is_copied():
    base = {"query": np.ones((4, 4), np.float32), "norm": np.ones(4, np.float32)}
    adapter = {"query_lora_a": np.ones((4, 1), np.float32), "query_lora_b": np.ones((1, 4), np.float32)}
    found = folded(base, adapter, 2.0)
    assert found["norm"] is base["norm"] and (found["query"] == 3).all() and (base["query"] == 1).all()


def test_what_is_borrowed_must_be_whole(monkeypatch):
    known = flat(make_model(nnx.Rngs(0)))
    known["code_embed"] = known["code_embed"][:1]
    monkeypatch.setattr(start.checkpoint, "load_weights", lambda run, step: export.nested(known))
    with pytest.raises(UserError, match=r"run knows 1 of 2 levels of code_embed: add it to lora\.beside"):
        start.from_run("run", adapted())
    start.from_run("run", model := adapted(beside=("code_embed",)))
    same(flat(merged(model)), flat(make_model(nnx.Rngs(0))))
