"""The compile check: a slice of TPUs on this machine, without one."""

import json
import math
from functools import partial

import jax
import pytest

from hiermusic import cli
from hiermusic.parallel.chips import CHIPS, chip_of
from hiermusic.parallel.mesh import mesh_of, shardings
from hiermusic.parallel.roofline import predict
from hiermusic.parallel.topology import topology
from hiermusic.systems import programs, workdir
from hiermusic.train import compile, loop
from hiermusic.train.loop import abstract_state
from tests.scale.presets import CONFIGS, load, small

SLOW = [pytest.param(stage, marks=pytest.mark.slow) for stage in ("codec", "sat", "ar_baseline")]
STAGES = [*SLOW, "backbone", "superres", "lm"]
BACKBONE = f"--config={CONFIGS}/khala/backbone.py:tiny"


@pytest.fixture
def run(monkeypatch, capsys):
    """Verb `compile`: exit status, standard output, standard error."""
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")  # put back afterwards

    def run(*arguments):
        status = 0
        try:
            cli.main(["compile", *arguments])
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--topology=v6e:15x15"], "v6e slices are 1x1, 2x2"),
        (["--topology=gpu:8"], "topology 'gpu:8' is unknown: choose from v4"),
        (["--topology=v5e:4x4", "--slices=0"], "at least one slice"),
        (["--topology=v5e:4x4", "--config.mesh.fsdp=3"], "3 does not divide the 16 devices"),
        (["--topology=v5e:4x4", "--config.mesh.tensor=8"], "do not divide over 8 devices"),
        (["--topology=v5e:4x4", "--config.train.batch_size=8"], "make it a multiple of 16"),
        (["--topology=v5e:4x4", "--fit", "--generate"], "leave --generate out"),
        (["--topology=v5e:4x4", "--effort=-1"], "value should be one of <O0|O1|O2|O3>"),
        ([], "--topology is needed"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_compiled(run, arguments, words):
    pytest.importorskip("libtpu")
    status, out, err = run(BACKBONE, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("hiermusic")]
    assert status == 1 and out == "" and len(lines) == 1 and words in lines[0] and "Traceback" not in err


def test_the_effort_is_told_to_the_compiler(run):
    for words, level in (["--effort=O0"], "O0"), ([], "UNKNOWN"):
        run(BACKBONE, "--topology=v5e:4x4", "--fit", "--generate", *words)
        assert jax.config.jax_optimization_level == level


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_lowers_for_a_slice(stage):
    pytest.importorskip("libtpu")
    devices = topology("v5e:2x2")
    config = small(stage, {"data": -1, "tensor": 2})
    mesh = loop.check(workdir.stage(config), devices)
    found = compile.jobs(partial(workdir.stage, config), mesh)
    with jax.set_mesh(mesh):
        modules = [job.lower().as_text() for job in found]
    assert [job.name for job in found] == {
        "codec": ["train quantise"],
        "backbone": ["train causal"],
        "superres": ["train causal", "train full"],
        "sat": ["train quantise adversarial discriminate", "train quantise adversarial"],
        "lm": ["train groups"],
        "ar_baseline": ["train causal"],
    }[stage]
    assert all("mhlo.num_partitions = 4" in module for module in modules)


def test_a_model_of_vectors_lowers_without_them():
    pytest.importorskip("libtpu")
    config = small("lm", {"data": -1, "tensor": 2})
    config.model.listener = 0
    mesh = loop.check(workdir.stage(config), topology("v5e:2x2"))
    (job,) = compile.jobs(partial(workdir.stage, config), mesh)
    with jax.set_mesh(mesh):
        assert "mhlo.num_partitions = 4" in job.lower().as_text()
    assert any(transfer.axis == "tensor" for transfer in job.load().transfers)  # what activations cost is told too


@pytest.mark.parametrize("stage", STAGES)
def test_generation_lowers_for_a_slice(stage):
    pytest.importorskip("libtpu")
    devices = topology("v5e:2x2")
    config = small(stage, {"data": -1, "tensor": 2})
    if "text_limit" in config.model:
        config.model.text_limit = 16
    mesh = loop.check(workdir.stage(config), devices)
    (job,) = programs.generation(config, mesh)
    with jax.set_mesh(mesh):
        assert "mhlo.num_partitions = 4" in job.lower().as_text()
    told = predict(job.load(), mesh, chip_of(devices[0]))
    assert 0 < told.mfu < 1 and told.step_seconds > 0 and told.audio_seconds_per_second > 0


def test_recomputing_costs_the_forward_pass_it_repeats():
    pytest.importorskip("libtpu")
    devices = topology("v5e:2x2")
    loads = {}
    for policy in compile.POLICIES:
        config = small("backbone", {"data": -1})
        config.model.update({"remat": policy, "length": 256})  # long enough for the attention kernel
        mesh = loop.check(workdir.stage(config), devices)
        (job,) = compile.jobs(partial(workdir.stage, config), mesh)
        loads[policy] = job.load()
    assert len({load.flops for load in loads.values()}) == 1
    assert loads["none"].recomputed == 0 < loads["dots"].recomputed < loads["full"].recomputed
    # What is recomputed is at most the forward pass, a third of the whole.
    assert loads["full"].recomputed < loads["full"].flops / 3
    assert loads["none"].memory < loads["full"].memory


class Memory:
    """A compiler that needs `fixed` bytes and `slope` for every example, of 1000."""

    def __init__(self, fixed, slope, told=True):
        self.fixed, self.slope, self.told, self.batches = fixed, slope, told, []

    def __call__(self, batch):
        self.batches.append(batch)
        wanted = self.fixed + self.slope * batch
        told = wanted if self.told or wanted <= 1000 else None
        return {"fits": wanted <= 1000, "wanted": told, "available": 1000}


@pytest.mark.parametrize(("fixed", "slope"), [(100, 1), (500, 2.5), (0, 63), (800, 6), (100, 0.01)])
@pytest.mark.parametrize("told", [True, False])
def test_the_largest_batch_is_found_in_few_steps(fixed, slope, told):
    memory = Memory(fixed, slope, told)
    largest = compile._largest(memory, unit=8, first=32, memory=1020)
    exact = math.floor((1000 - fixed) / slope / 8) * 8
    assert exact * 31 / 32 <= largest <= exact and (largest == exact or exact > 32 * 8)
    assert len(memory.batches) == len(set(memory.batches)) <= 5


def test_no_batch_fits():
    memory = Memory(2000, 1)
    assert compile._largest(memory, unit=8, first=32, memory=1000) == 0
    assert 8 in memory.batches


def test_fit_tells_the_largest_batch_of_every_policy(run, monkeypatch):
    pytest.importorskip("libtpu")
    slopes = {"none": 2.0, "dots": 1.0, "full": 0.25}  # GiB an example

    def examine(trial, mesh, chip):
        batch, remat = trial
        wanted = (1 + slopes[remat] * batch / mesh.size) * 2**30
        facts = {"fits": wanted <= chip.memory, "compile_seconds": 1.0}
        if facts["fits"]:
            return facts | {"bytes_per_chip": {"peak": wanted}, "prediction": {"tokens_per_second": 1e6}}
        return facts | {"bytes_per_chip": {"memory": "HBM", "wanted": wanted, "available": chip.memory}}

    monkeypatch.setattr(compile, "jobs", lambda build, mesh, batch, remat: [(batch, remat)])
    monkeypatch.setattr(compile, "examine", examine)
    where = ["--topology=v5e:2x2", "--config.train.batch_size=32", "--fit"]
    status, text, err = run(BACKBONE, *where, "--json")
    fit = json.loads(text)["fit"]
    assert status == 0 and "remat none, batch 32: does not fit, 17.00 GiB a chip" in err
    assert fit["largest"] == {"none": 28, "dots": 60, "full": 240} and fit["cheapest"] == "dots" and fit["unit"] == 4
    status, text, _ = run(BACKBONE, *where)
    assert "batches are multiples of 4; batch 32 fits from remat dots on" in text and "1,000,000" in text
    monkeypatch.setitem(slopes, "full", 99.0)
    monkeypatch.setitem(slopes, "none", 99.0)
    monkeypatch.setitem(slopes, "dots", 99.0)
    status, text, _ = run(BACKBONE, *where)
    assert status == 3 and "fits under no remat policy" in text


@pytest.mark.slow
def test_facts_of_a_compiled_step(run, tmp_path):
    pytest.importorskip("libtpu")
    mesh = ["--config.mesh.data=2", "--config.mesh.fsdp=4", "--config.mesh.tensor=2"]
    out = tmp_path / "facts.json"
    where = ["--topology=v5e:4x4", *mesh, "--config.train.batch_size=16", "--config.model.kv_heads=2"]
    status, text, _ = run(BACKBONE, *where, "--json", f"--out={out}")
    facts = json.loads(text)
    assert status == 0 and json.loads(out.read_text()) == facts
    assert facts["fits"] and facts["mesh"] == {"data": 2, "fsdp": 4, "context": 1, "tensor": 2}
    (program,) = facts["programs"]
    config = load("backbone", "tiny")
    config.mesh.update({"data": 2, "fsdp": 4, "tensor": 2})
    config.model.kv_heads = 2
    stage = workdir.stage(config)
    _, state = abstract_state(stage, 0)
    placement = shardings(state, mesh_of(stage.config.mesh, topology("v5e:4x4")))
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(placement), strict=True)
    held = sum(leaf.dtype.itemsize * math.prod(split.shard_shape(leaf.shape)) for leaf, split in leaves)
    # Arrays are padded to tiles of 8 by 128; the batch is small beside the state.
    assert held <= program["bytes_per_chip"]["arguments"] <= 2 * held
    kinds = {row["kind"] for row in program["collectives"]}
    assert {"all-reduce", "all-gather"} <= kinds and all(row["loops_known"] for row in program["collectives"])
    assert program["prediction"]["step_seconds"] > 0 and 0 < program["prediction"]["mfu"] < 1


@pytest.mark.slow
def test_what_does_not_fit_says_so_in_the_compilers_words(run):
    pytest.importorskip("libtpu")
    status, text, err = run(BACKBONE, "--topology=v5e:1x1", "--config.train.batch_size=8192", "--json")
    facts = json.loads(text)
    assert status == 3 and not facts["fits"] and "Traceback" not in err
    (program,) = facts["programs"]
    assert "RESOURCE_EXHAUSTED" in program["error"]
    sizes = program["bytes_per_chip"]
    assert sizes["memory"] == "HBM" and sizes["wanted"] > sizes["available"] > 0.9 * CHIPS["v5e"].memory
