import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hiermusic import console
from hiermusic.errors import UserError
from hiermusic.train import loop
from hiermusic.train.checkpoint import latest_step, load_weights
from hiermusic.train.log import read_log, read_metrics
from hiermusic.train.stage import RunConfig


def train(toy, workdir, poisoned=(), spiked=(), **fields):
    config = toy.config(**fields)
    stage = toy.ToyStage(config, poisoned=poisoned, spiked=spiked)
    return toy.run(stage, workdir, progress=False), stage


def test_an_interrupted_run_ends_in_the_same_bits(toy, tmp_path):
    train(toy, tmp_path / "whole", steps=16)
    train(toy, tmp_path / "parts", steps=7)
    train(toy, tmp_path / "parts", steps=16)
    for prefer_ema in (False, True):
        whole, parts = (load_weights(tmp_path / name, prefer_ema=prefer_ema) for name in ("whole", "parts"))
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, whole, parts)))
    told = ("step", "loss", "grad_norm", "per_level", "skipped")
    whole, parts = (
        [{name: record[name] for name in told} for record in read_metrics(tmp_path / name)]
        for name in ("whole", "parts")
    )
    assert whole == parts


def test_a_finished_run_is_left_alone(toy, tmp_path):
    first, _ = train(toy, tmp_path, steps=5)
    again, _ = train(toy, tmp_path, steps=5)
    assert again == first and latest_step(tmp_path) == 5


def test_a_run_that_is_told_worse_than_at_step_0_ends_and_says_so_again(toy, tmp_path):
    how = {"steps": 8, "valid_every": 2, "stop_worse": 1, "learning_rate": 10.0, "warmup_steps": 0, "spike_sigma": 0.0}
    first, _ = train(toy, tmp_path, **how)
    assert first["step"] == latest_step(tmp_path) == 2 and "of step 0 for 1 validations" in first["stopped"]
    again, _ = train(toy, tmp_path, **how)
    assert (again["step"], again["stopped"]) == (2, first["stopped"])


def test_a_rule_cannot_begin_where_step_0_was_not_measured(toy, tmp_path):
    train(toy, tmp_path, steps=2)
    with pytest.raises(UserError, match=r"train\.stop_worse=1: .* began without it, so step 0 was not measured"):
        train(toy, tmp_path, steps=4, valid_every=1, stop_worse=1)


def test_a_non_finite_step_leaves_no_trace_but_its_record(toy, tmp_path):
    final, _ = train(toy, tmp_path, poisoned=[9], steps=10, checkpoint_every=9)
    assert final["loss"] is None and final["skipped"] == 1
    before, after = (load_weights(tmp_path, step=step, prefer_ema=False) for step in (9, 10))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before, after)))
    final, _ = train(toy, tmp_path, poisoned=[9], steps=12, checkpoint_every=9)
    assert final["step"] == 12 and np.isfinite(final["loss"]) and final["skipped"] == 1


def test_a_learning_rate_that_is_no_number_skips_the_step(toy, tmp_path):
    config = toy.config(steps=3, checkpoint_every=1, keep=3)
    stage = toy.ToyStage(config)
    step = stage.step

    def with_rate(module, batch, task, key):
        return step(module, batch, task, key) | {"learning_rate": jnp.where(batch["scale"] == 2, jnp.nan, 0.1)}

    stage.step = with_rate
    assert toy.run(stage, tmp_path, progress=False)["skipped"] == 1
    first, before, after = (load_weights(tmp_path, step=step, prefer_ema=False) for step in (1, 2, 3))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before, after)))
    assert not np.array_equal(first["weight"], before["weight"])


def test_a_run_of_non_finite_steps_stops(toy, tmp_path):
    with pytest.raises(UserError, match="4 steps in a row up to step 7"):
        train(toy, tmp_path, poisoned=range(3, 50), steps=40, max_skipped=4)


def test_a_spiking_step_leaves_no_trace_but_its_record(toy, tmp_path, capsys):
    guard = {"spike_window": 8, "checkpoint_every": 21}
    final, _ = train(toy, tmp_path, spiked=[21], steps=22, **guard)
    assert final["skipped"] == 1 and final["skip_cause"].startswith("loss") and final["loss"] > 100
    assert "step 22 skipped for loss" in capsys.readouterr().err
    before, after = (load_weights(tmp_path, step=step, prefer_ema=False) for step in (21, 22))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before, after)))
    final, _ = train(toy, tmp_path, spiked=[21], steps=30, **guard)
    assert final["skipped"] == 1 and final["loss"] < 20 and "skip_cause" not in final


def test_where_checkpoints_lie_does_not_change_what_is_skipped(toy, tmp_path):
    """The guard of a step may know no more than it does when the step before is still under way."""
    guard = {"spike_window": 4, "spike_sigma": 2.0}
    for name, every in (("often", 1), ("never", 50)):
        train(toy, tmp_path / name, spiked=[9, 14, 15], steps=20, checkpoint_every=every, **guard)
    often, never = (
        [(record["loss"], record.get("skip_cause")) for record in read_metrics(tmp_path / name)]
        for name in ("often", "never")
    )
    assert often == never and sum(cause is not None for _, cause in often) > 3


def test_a_lasting_rise_ends_the_run(toy, tmp_path):
    with pytest.raises(UserError, match=r"4 steps in a row up to step 24 were skipped, the last for loss .* above"):
        train(toy, tmp_path, spiked=range(20, 50), steps=50, spike_window=8, max_skipped=4)
    assert read_metrics(tmp_path)[-1]["step"] == 24


def test_a_rise_that_skipping_does_not_end_is_trained_on(toy, tmp_path, monkeypatch):
    """Told once, and the same whether the run is whole or was cut where that is decided."""
    batch = toy.ToyStage._batch
    monkeypatch.setattr(toy.ToyStage, "_batch", lambda stage, rows, index: ("sum", batch(stage, rows, index)[1]))
    rise = {"spiked": range(20, 50), "spike_window": 8, "spike_patience": 3}
    final, _ = train(toy, tmp_path / "whole", steps=46, checkpoint_every=46, **rise)
    for steps in (23, 24, 46):  # where the patience is used up, and before steps are written again
        train(toy, tmp_path / "parts", steps=steps, checkpoint_every=46, **rise)
    assert final["skipped"] == 4 and final["loss"] > 100
    whole, parts = (
        [(record["step"], record.get("loss"), record.get("skip_cause"), record.get("event")) for record in records]
        for records in (read_log(tmp_path / name) for name in ("whole", "parts"))
    )
    assert parts == whole
    assert [step for step, _, cause, _ in whole if cause] == [21, 22, 23, 24]
    ((step, event),) = [(step, event) for step, _, _, event in whole if event]
    assert step == 23 and event.startswith("the last 3 steps of one task up to step 23 were spikes")
    one, other = (load_weights(tmp_path / name, prefer_ema=False) for name in ("whole", "parts"))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def test_a_task_that_only_spikes_ends_the_run(toy, tmp_path):
    with pytest.raises(UserError, match="3 steps in a row of one task up to step 25"):
        train(toy, tmp_path, spiked=range(20, 50, 2), steps=50, spike_window=8, max_skipped=3)


def test_every_record_has_step_and_loss_and_lines_are_json(toy, tmp_path):
    train(toy, tmp_path, steps=6, poisoned=[2], log_every=2)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4, 6]  # the skipped step 3 is always told
    named = {"loss", "grad_norm", "skipped", "seconds_per_step", "data_wait", "tokens_per_second", "audio_per_second"}
    named |= {"tflops", "process_gib", "compile_seconds", "goodput", "elapsed", "time"}
    assert all(named <= set(record) for record in records)
    assert all(0 < record["goodput"] < 1 and 0 <= record["data_wait"] <= 1 for record in records)


def test_the_profiler_traces_the_steps_it_is_told(toy, tmp_path):
    # in a process of its own: where another test has loaded libtpu, JAX's profiler crashes
    steps = "toy.config(steps=6, profile_step=3, profile_steps=2)"
    program = f"import sys, toy; c = {steps}; toy.run(toy.ToyStage(c), sys.argv[1], progress=False)"
    subprocess.run([sys.executable, "-c", program, tmp_path], cwd=Path(__file__).parent, check=True)
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 0
    train(toy, tmp_path / "other", steps=2)
    assert not (tmp_path / "other" / "profile").exists()


def told(stage, evaluate):
    """The stage, its validation measuring what `evaluate` makes of (batch, task, key)."""
    stage.evaluate = lambda module, batch, task, key: evaluate(batch, task, key)
    return stage


def test_validation_is_the_exact_mean_of_what_each_batch_measured(toy, tmp_path):
    """Batches 0, 1 and 2 measure 1, 4 and 16, and one thing only where the task is the mean, as in batch 1."""

    def measured(batch, task, key):
        value = 4.0 ** batch["scale"]
        return {"loss": value, "on_mean": jnp.where(task == "mean", value, jnp.nan), "never": jnp.full(2, jnp.nan)}

    for steps, batches in ((2, 0), (4, 2)):
        config = toy.config(steps=steps, valid_every=2, valid_batches=batches, show_every=3)
        stage = told(toy.ToyStage(config), measured)
        toy.run(stage, tmp_path, progress=False)
    _, all_three, nothing, first_two = read_metrics(tmp_path)
    assert all_three["valid/loss"] == 7.0 and first_two["valid/loss"] == 2.5 and "valid/loss" not in nothing
    assert all_three["valid/on_mean"] == first_two["valid/on_mean"] == 4.0
    assert all_three["valid/never"] == [None, None]
    assert stage.shown == [3]


def test_every_step_draws_anew_and_every_validation_alike(toy, tmp_path):
    draws = {}
    for seed in (3, 4):
        config = toy.config(steps=6, valid_every=3, seed=seed)
        stage = told(
            toy.ToyStage(config),
            lambda batch, task, key: {"loss": jax.random.uniform(key), "square": jax.random.uniform(key) ** 2},
        )
        step = stage.step
        stage.step = lambda *inputs, step=step: step(*inputs) | {"draw": jax.random.uniform(inputs[3])}
        toy.run(stage, tmp_path / str(seed), progress=False)
        records = read_metrics(tmp_path / str(seed))
        draws[seed] = [record["draw"] for record in records]
        once, again = (records[step - 1] for step in (3, 6))
        assert once["valid/loss"] == again["valid/loss"]
        assert once["valid/square"] - once["valid/loss"] ** 2 > 1e-4  # each of its batches has a draw of its own
    assert len({*draws[3], *draws[4]}) == 12


def sent(toy, number, at=5, steps=400):
    """A stage that gets a signal while its batch `at` is made."""
    stage = toy.ToyStage(toy.config(steps=steps, checkpoint_every=0), pause=0.01)
    batch = stage._batch
    stage._batch = lambda rows, index: (os.kill(os.getpid(), number) if index == at else None, batch(rows, index))[1]
    return stage


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_saves_and_ends(toy, tmp_path, number):
    stage = sent(toy, number)
    before = signal.getsignal(number)
    step = toy.run(stage, tmp_path, progress=False)["step"]
    assert 0 < step < 400 and latest_step(tmp_path) == step and signal.getsignal(number) is before


def test_nohup_is_heeded(toy, tmp_path):
    stage = sent(toy, signal.SIGHUP, steps=20)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert toy.run(stage, tmp_path, progress=False)["step"] == 20
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_lost_standard_error_ends_nothing(toy, tmp_path, monkeypatch):
    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(console, "EVERY", 0.0)
    monkeypatch.setattr(sys, "stderr", Broken())
    config = toy.config(steps=8, valid_every=2, checkpoint_every=8)
    assert toy.run(toy.ToyStage(config, poisoned=[3]), tmp_path)["step"] == latest_step(tmp_path) == 8


def test_without_held_out_tracks_it_trains_and_says_so_before_the_first_step(toy, tmp_path, capsys):
    config = toy.config(steps=4, valid_every=2)
    stage = toy.ToyStage(config)
    stage.valid_batches = lambda rows: None
    stage.create, said = lambda rngs: said.append(capsys.readouterr().err) or toy.ToyStage.create(stage, rngs), []
    assert toy.run(stage, tmp_path, progress=False)["step"] == 4
    assert "no track is held out, so it trains without validation\n" in "".join(said)
    assert capsys.readouterr().err == "" and not any("valid/loss" in record for record in read_metrics(tmp_path))


def test_data_that_do_not_fit_leave_the_workdir_to_the_next_start(toy, tmp_path):
    stage = toy.ToyStage(toy.config(steps=1))
    stage.train_batches = lambda rows: (_ for _ in ()).throw(UserError("a crop that does not fit"))
    with pytest.raises(UserError, match="a crop that does not fit"):
        toy.run(stage, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_what_was_checked_is_not_checked_again(toy, tmp_path, monkeypatch):
    stage = toy.ToyStage(toy.config(steps=1))
    mesh = loop.check(stage)
    monkeypatch.setattr(loop, "check", None)
    assert toy.run(stage, tmp_path, progress=False, mesh=mesh)["step"] == 1


def test_held_out_tracks_are_looked_up_once_and_their_loss_is_told(toy, tmp_path, capsys):
    config = toy.config(steps=6, valid_every=2)
    stage, asked = toy.ToyStage(config), []
    stage.valid_batches = lambda rows: asked.append(rows) or toy.ToyStage.valid_batches(stage, rows)
    toy.run(stage, tmp_path, progress=False)
    lines = capsys.readouterr().err.splitlines()
    assert len(asked) == 1 and [line.split(":")[0] for line in lines] == ["step 2", "step 4", "step 6"]
    assert all("held-out loss" in line for line in lines)


def test_a_schedule_that_moves_with_the_length_is_told(toy, tmp_path, capsys):
    def moved(**fields):
        return loop._moved_rate(tmp_path, RunConfig.of(toy.config(**fields)))

    train(toy, tmp_path, steps=6, schedule="cosine")
    said = moved(steps=12, schedule="wsd", decay_share=0.5)
    assert "wsd schedule: the learning rate after step 6 is 0.01, it was to be 0.001" in said
    assert moved(steps=12, schedule="cosine", decay_steps=9) is moved(steps=12) is None
    assert moved(steps=6, schedule="cosine") is None
    capsys.readouterr()
    train(toy, tmp_path, steps=12, schedule="cosine")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "train.steps was 6 and is 12, which moves the cosine schedule" in said
    assert "learning rate after step 6 is 0.00775, it was to be 0.001 " in said


@pytest.mark.parametrize(("steps", "told"), [(1_000_001, False), (1_010_000, True)])
def test_a_rate_that_moves_by_less_than_a_thousandth_is_not_told(toy, monkeypatch, steps, told):
    monkeypatch.setattr(loop, "latest_step", lambda workdir: 500_000)
    monkeypatch.setattr(loop, "read_config", lambda workdir: {"train": {"steps": 1_000_000}})
    config = RunConfig.of(toy.config(steps=steps, schedule="cosine"))
    assert (loop._moved_rate("run", config) is not None) == told


def test_all_that_a_run_holds_is_closed_with_it():
    closed = []

    def part(name: str) -> SimpleNamespace:
        return SimpleNamespace(**dict.fromkeys(("close", "stop"), lambda: closed.append(name)))

    names = ["bar", "watchdog", "profiler", "log", "checkpoints"]
    loop._Trainer.close(SimpleNamespace(**{name: part(name) for name in names}))
    assert closed == names


def test_data_that_change_under_a_run_are_told_and_logged(toy, tmp_path, capsys):
    config, records, said = toy.config(steps=2), tmp_path / "records", []
    config["data"] = {"path": str(records)}
    records.mkdir()
    (records / "tracks.jsonl").touch()
    for text in ("{}", "{}", '{"tracks": 2}', '{"tracks": 2}'):
        (records / "info.json").write_text(text)
        result = toy.run(toy.ToyStage(config), tmp_path / "run", progress=False)
        assert result["step"] == 2 and "loss" in result
        said.append(capsys.readouterr().err)
    assert said == ["", "", said[2], ""] and f"{records} holds other data than this run was last trained on" in said[2]
    assert [line for line in read_log(tmp_path / "run") if "event" in line] == [{"step": 2, "event": said[2].strip()}]


def test_a_mesh_of_eight_devices_trains_the_same_model(toy, tmp_path):
    train(toy, tmp_path / "one", steps=6)
    one = load_weights(tmp_path / "one")
    for name, mesh in (("rows", {}), ("mixed", {"data": 2, "fsdp": 2, "tensor": 2})):
        config = toy.config(steps=6)
        config["mesh"] = mesh
        toy.run(toy.ToyStage(config), tmp_path / name, progress=False)
        eight = load_weights(tmp_path / name)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, eight)


def test_a_run_moves_to_another_mesh(toy, tmp_path):
    config = toy.config(steps=4)
    config["mesh"] = {"data": 4, "fsdp": 2}
    toy.run(toy.ToyStage(config), tmp_path / "moved", progress=False)
    train(toy, tmp_path / "moved", steps=8)
    train(toy, tmp_path / "stayed", steps=8)
    moved, stayed = (load_weights(tmp_path / name) for name in ("moved", "stayed"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), moved, stayed)


def test_a_batch_must_divide_over_the_mesh(toy, tmp_path):
    config = toy.config(batch_size=6)
    config["mesh"] = {"data": 4, "tensor": 2}
    with pytest.raises(UserError, match=r"train.batch_size=6 does not divide .* 4 devices"):
        toy.run(toy.ToyStage(config), tmp_path)


def test_pieces_must_divide_the_rows_of_a_device(toy, tmp_path):
    config = toy.config(batch_size=8, accumulate=2)
    config["mesh"] = {"data": 8}
    with pytest.raises(UserError, match=r"train.accumulate=2 does not divide the 1 rows .* train.batch_size=8"):
        toy.run(toy.ToyStage(config), tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [("accumulate", 0), ("spike_window", 1), ("spike_sigma", float("nan")), ("hang_seconds", -1.0), ("seed", 2**32)],
)
def test_settings_out_of_range_are_named(toy, tmp_path, field, value):
    config = toy.config(**{field: value})
    with pytest.raises(UserError, match=f"train.{field} is {value}"):
        toy.run(toy.ToyStage(config), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_workdir_of_another_config_is_refused(toy, tmp_path):
    train(toy, tmp_path, steps=2)
    config = toy.config(steps=4)
    config["train"]["learning_rate"] = 2e-2
    with pytest.raises(UserError, match=r"train.learning_rate=0.01, not 0.02"):
        toy.run(toy.ToyStage(config), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["train"]["learning_rate"] == 1e-2


def test_missing_fields_are_named(toy, tmp_path):
    with pytest.raises(UserError, match=r"train\.batch_size"):
        RunConfig.of({"train": {"steps": 3}})


def test_a_run_is_read_from_a_whole_configuration(toy):
    fields = toy.config(ema_decay=0.5, betas=[0.8, 0.9]) | {"mesh": {"fsdp": 2}}
    fields["model"] |= {"dtype": "bfloat16", "remat": "dots"}
    run = RunConfig.of(fields, ("data.clap",))
    assert (run.loop.steps, run.optimiser.betas, run.ema_decay) == (20, (0.8, 0.9), 0.5)
    assert (run.dtype, run.remat, run.fields, run.places) == ("bfloat16", "dots", fields, ("data.clap",))
    assert run.mesh.sizes == {"data": -1, "fsdp": 2, "context": 1, "tensor": 1}
    plain = RunConfig.of(toy.config())
    assert (plain.mesh, plain.dtype, plain.remat, plain.ema_decay) == (None, "float32", None, 0.0)
    for decay in (1.0, -0.1, float("nan")):
        with pytest.raises(UserError, match=rf"train.ema_decay is {decay}; it must lie in \[0, 1\)"):
            RunConfig.of(toy.config(ema_decay=decay))


@pytest.mark.parametrize(
    ("mesh", "words"),
    [
        ({"rows": 2}, "mesh axis 'rows' is unknown: choose from data, fsdp, context, tensor"),
        ({"across": "rows"}, "mesh axis 'rows' is unknown"),
        ({"data": -1, "fsdp": -1}, "only one may be -1"),
        ({"data": 0}, "sizes are counts of devices"),
        ({"data": "two"}, "sizes are counts of devices"),
    ],
)
def test_a_mesh_that_is_none_is_told_when_it_is_read(toy, mesh, words):
    with pytest.raises(UserError, match=words):
        RunConfig.of(toy.config() | {"mesh": mesh})


def test_data_that_ends_is_told(toy, tmp_path):
    config = toy.config(steps=9)
    stage = toy.ToyStage(config)
    endless = stage.train_batches
    stage.train_batches = lambda rows: endless(rows)[:5]
    with pytest.raises(UserError, match="ended after 5 batches"):
        toy.run(stage, tmp_path, progress=False)


def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(toy, tmp_path, monkeypatch):
    train(toy, tmp_path, steps=5)
    from orbax.checkpoint import v1 as ocp

    def full(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: writing ocdbt/d/1: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ocp.training.Checkpointer, "save_checkpointables_async", full)
        with pytest.raises(UserError, match="the disk is full"):
            train(toy, tmp_path, steps=10)
    assert latest_step(tmp_path) == 5
    final, _ = train(toy, tmp_path, steps=10)
    assert final["step"] == 10
