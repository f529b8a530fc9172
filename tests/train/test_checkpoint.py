import os
import random
import shutil
import subprocess
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from orbax.checkpoint import v1 as ocp

from hiermusic.errors import UserError
from hiermusic.parallel.mesh import make_mesh, shardings
from hiermusic.train import checkpoint
from hiermusic.train.checkpoint import Checkpoints, check, claim, latest_step, load_model, load_weights, read_config
from hiermusic.train.log import read_metrics


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    config = toy.config(steps=6, checkpoint_every=3)
    toy.run(toy.ToyStage(config), workdir, progress=False)
    return workdir


@pytest.fixture
def copy(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def make_model(toy, width=4):
    return lambda: toy.Linear(nnx.Rngs(0), width)


def test_load_model_prefers_the_average(toy, trained):
    averaged = load_model(trained, make_model(toy))
    plain = load_model(trained, make_model(toy), prefer_ema=False)
    older = load_model(trained, make_model(toy), step=3)
    for model, options in ((averaged, {}), (plain, {"prefer_ema": False}), (older, {"step": 3})):
        assert np.array_equal(model.weight[...], load_weights(trained, **options)["weight"])
        assert len(model.weight[...].devices()) == 1
    assert not np.array_equal(averaged.weight[...], plain.weight[...])
    assert not np.array_equal(averaged.weight[...], older.weight[...])


def test_load_model_over_a_mesh(toy, trained):
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    model = load_model(trained, make_model(toy), shardings=lambda abstract: shardings(abstract, mesh))
    assert model.weight[...].sharding.shard_shape((4, 8)) == (2, 4)
    assert np.array_equal(model.weight[...], load_model(trained, make_model(toy)).weight[...])


def test_a_save_in_flight_holds_the_weights_of_its_step(toy, tmp_path):
    checkpoints = Checkpoints(tmp_path)
    graphdef, state = nnx.split(toy.Linear(nnx.Rngs(0), 20000))
    expected = np.array(state["weight"][...])
    double = jax.jit(lambda state: jax.tree.map(lambda x: 2 * x, state), donate_argnums=0)

    checkpoints.save(1, nnx.state(Holder(nnx.merge(graphdef, state))), {"step": 1})
    for _ in range(5):
        state = double(state)
    checkpoints.close()
    assert np.array_equal(load_weights(tmp_path)["weight"], expected)


class Holder(nnx.Module):
    def __init__(self, model):
        self.model = model


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files as Linux does")
def test_saves_leave_neither_files_nor_threads_open(tmp_path):
    checkpoints, counts = Checkpoints(tmp_path), []
    state = nnx.state(Holder(nnx.Linear(2, 2, rngs=nnx.Rngs(0))))
    for step in range(1, 9):
        checkpoints.save(step, state, {"step": step})
        checkpoints.wait()
        counts.append((len(os.listdir("/proc/self/fd")), threading.active_count()))
    checkpoints.close()
    (files, threads), (files_then, threads_then) = counts[0], counts[-1]
    assert files_then < files + 3 and threads_then < threads + 3  # one may be about to end


def test_only_the_newest_and_every_nth_are_kept(toy, tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2, keep_every=4)
    state = nnx.state(Holder(toy.Linear(nnx.Rngs(0))))
    for step in range(1, 8):
        checkpoints.save(step, state, {"step": step})
    checkpoints.close()
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [4, 6, 7]


def test_none_to_keep_is_told(tmp_path):
    with pytest.raises(UserError, match=r"train\.keep is 0; at least 1"):
        Checkpoints(tmp_path, keep=0)


@pytest.mark.parametrize("left", [(), ("model",), ("_CHECKPOINT_METADATA", "train"), ("commit_success.txt", "ema")])
def test_an_older_step_whose_removal_was_cut_short_does_no_harm(toy, copy, left):
    for path in (copy / "checkpoints" / "3").iterdir():
        if path.name not in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (copy / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
    assert latest_step(copy) == 6
    config = toy.config(steps=9, checkpoint_every=3)
    toy.run(toy.ToyStage(config), copy, progress=False)
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == ["6", "9"]


def test_random_keys_and_lists_survive(tmp_path):
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(2)])
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

    state = nnx.state(Holder(Model(nnx.Rngs(1))))
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, state, {"step": 1})
    checkpoints.close()
    model = load_model(tmp_path, lambda: Model(nnx.Rngs(0)))
    same = jax.tree.map(lambda a, b: bool(jnp.all(a == b)), nnx.state(model), state["model"])
    assert all(jax.tree.leaves(same))


def data_files(checkpoint):
    return [
        path for path in checkpoint.rglob("*") if path.is_file() and path.parent.name == "d" and path.stat().st_size
    ]


def truncate(checkpoint):
    for path in data_files(checkpoint):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scramble(checkpoint):
    for path in data_files(checkpoint):
        path.write_bytes(b"garbage" * 30)


def lose_data(checkpoint):
    for path in data_files(checkpoint):
        path.unlink()


def scramble_metadata(checkpoint):
    for path in checkpoint.rglob("_METADATA"):
        path.write_text("{not json")


def lose_metadata(checkpoint):
    for path in checkpoint.rglob("_METADATA"):
        path.unlink()


def lose_parts(checkpoint):
    for name in ("model", "train", "ema"):
        shutil.rmtree(checkpoint / name)


def empty(checkpoint):
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


DAMAGE = [truncate, scramble, lose_data, scramble_metadata, lose_metadata, lose_parts, empty]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_in_one_line_and_an_older_step_still_loads(toy, copy, damage, capfd):
    damage(copy / "checkpoints" / "6")
    for use in (lambda: load_model(copy, make_model(toy)), lambda: load_weights(copy)):
        with pytest.raises(UserError, match=r"checkpoints/6 .*(cannot be read|is incomplete)") as caught:
            use()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert capfd.readouterr().err == ""
    load_model(copy, make_model(toy), step=3)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(toy, trained, copy, damage, capfd):
    damage(copy / "checkpoints" / "6")
    config = toy.config(steps=6, checkpoint_every=3)
    before = [record["loss"] for record in read_metrics(copy)]
    toy.run(toy.ToyStage(config), copy, progress=False)
    (said,) = capfd.readouterr().err.splitlines()
    assert said.startswith(f"checkpoint {copy}/checkpoints/6 ") and len(said) < 600
    assert said.endswith("it is now called 6.damaged, the run goes on from step 3")
    assert [record["loss"] for record in read_metrics(copy)] == before
    assert (copy / "checkpoints/6.damaged").is_dir()
    for name, weight in load_weights(copy).items():
        assert np.array_equal(weight, load_weights(trained)[name])


def test_where_no_checkpoint_is_whole_none_is_touched(toy, copy):
    config = toy.config(steps=9, checkpoint_every=3)
    for step in (3, 6):
        truncate(copy / "checkpoints" / str(step))
    with pytest.raises(UserError, match=r"checkpoints/6 .*: delete it"):
        toy.run(toy.ToyStage(config), copy, progress=False)
    assert sorted(path.name for path in (copy / "checkpoints").iterdir()) == ["3", "6"]


def test_no_flipped_bit_loads_as_other_weights(tmp_path):
    checkpoints = Checkpoints(tmp_path / "whole")
    checkpoints.save(1, nnx.state(Holder(nnx.Linear(64, 64, rngs=nnx.Rngs(0)))), {"step": 1})
    checkpoints.close()
    wanted, dice, told = load_weights(tmp_path / "whole"), random.Random(1), 0
    for trial in range(8):
        workdir = shutil.copytree(tmp_path / "whole", tmp_path / str(trial))
        path = max(data_files(workdir / "checkpoints/1/model"), key=lambda path: path.stat().st_size)
        data = bytearray(path.read_bytes())
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        path.write_bytes(data)
        try:
            found = load_weights(workdir)
        except UserError as error:
            told += "checkpoints/1 cannot be read" in str(error)
        else:  # what nothing reads
            assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert told > 5


def test_other_values_than_were_saved_are_told(trained, monkeypatch):
    load = ocp.load_checkpointables

    def flipped(path, targets):
        parts = load(path, targets)
        parts["ema"]["weight"].view(np.uint32)[0, 0] ^= 1
        return parts

    monkeypatch.setattr(ocp, "load_checkpointables", flipped)
    with pytest.raises(UserError, match=r"checkpoints/6 cannot be read \(the checksums of 1 .*, as of ema/weight\)"):
        load_weights(trained)


def test_another_model_is_named(toy, trained):
    with pytest.raises(UserError, match=r"another model: ema/weight is of shape \(4, 8\), expected \(5, 8\)"):
        load_model(trained, make_model(toy, 5))
    with pytest.raises(UserError, match=r"ema/model/bias is missing"):
        load_model(trained, lambda: Holder(toy.Linear(nnx.Rngs(0))))


def test_no_checkpoint_is_told(toy, tmp_path, trained):
    assert latest_step(tmp_path / "nowhere") is None
    with pytest.raises(UserError, match="holds no checkpoint: train"):
        load_model(tmp_path / "nowhere", make_model(toy))
    with pytest.raises(UserError, match="no checkpoint of step 4: it has 3, 6"):
        load_weights(trained, step=4)


def test_a_workdir_keeps_its_config(toy, tmp_path):
    claim(tmp_path, toy.config(steps=3))
    assert read_config(tmp_path)["train"]["steps"] == 3
    claim(tmp_path, toy.config(steps=5, log_every=7, checkpoint_every=1))
    assert read_config(tmp_path)["train"]["steps"] == 5
    with pytest.raises(UserError, match=r"train.seed=3, not 4"):
        claim(tmp_path, toy.config(seed=4))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        claim(tmp_path, toy.config())
    with pytest.raises(UserError, match="is not a training workdir"):
        read_config(tmp_path / "nowhere")


@pytest.mark.parametrize("field", ["batch_size", "seed", "learning_rate", "warmup_steps", "schedule"])
def test_a_run_is_not_resumed_as_another_training(toy, tmp_path, field):
    claim(tmp_path, toy.config())
    before = (tmp_path / "config.json").read_bytes()
    config = toy.config()
    value = config["train"][field] = "cosine" if field == "schedule" else 2 * config["train"][field]
    with pytest.raises(UserError, match=rf"train.{field}=.*, not {value!r}: take another") as told:
        claim(tmp_path, config)
    assert "\n" not in str(told.value) and (tmp_path / "config.json").read_bytes() == before


def test_another_model_or_other_data_is_no_resumed_run(toy, tmp_path):
    for part, name, value in (("model", "width", 5), ("data", "kind", "records")):
        claim(tmp_path / part, toy.config())
        config = toy.config()
        config[part][name] = value
        with pytest.raises(UserError, match=rf"{part}.{name}"):
            claim(tmp_path / part, config)


@pytest.fixture
def mounted(tmp_path):
    """Mounts a file system of 64 KiB with options."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join(("size=64k", *options)), "tmpfs", place]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode:
            pytest.skip(f"mounting is not permitted here: {made.stderr.strip()}")
        return place

    yield mount
    subprocess.run(["umount", "-l", place], capture_output=True, check=False)


def test_a_read_only_disk_is_told_first(toy, mounted):
    workdir = mounted("ro") / "deep" / "run"
    for use in (check, claim):
        with pytest.raises(UserError, match=r"deep/run cannot be written: Read-only file system; give another workdir"):
            use(workdir, toy.config())
    with pytest.raises(UserError, match="Read-only file system"):
        toy.run(toy.ToyStage(toy.config()), workdir, progress=False)


def test_a_full_disk_is_told_first(toy, mounted):
    disk = mounted()
    (disk / "filler").write_bytes(bytes(60 << 10))
    with pytest.raises(UserError, match=r"the disk is full: .*run cannot be written"):
        claim(disk / "run", toy.config())
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_what_writes_on_behind_a_failed_save_is_not_told():
    """TensorStore's threads tell nobody in particular that the loop that they were to tell is closed."""
    told = []
    hook = checkpoint._without_late_answers(told.append)
    late, busy = (RuntimeError(f"Event loop is {state}") for state in ("closed", "busy"))
    found = [
        SimpleNamespace(exc_value=error, object=whose) for error, whose in ((late, None), (busy, None), (late, hook))
    ]
    for one in found:
        hook(one)
    assert told == found[1:]


def test_a_file_where_the_workdir_belongs(toy, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/run cannot be written: Not a directory"):
        check(tmp_path / "file" / "run", toy.config())


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"7", b"\xff", b"[" * 99_999, b'{"a": 1'])
def test_a_config_that_is_none_is_told(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(UserError, match=r"config.json cannot be read as the configuration of a workdir \(") as told:
        read_config(tmp_path)
    assert "\n" not in str(told.value) and len(str(told.value)) < 400 + len(str(tmp_path))


def test_looking_leaves_nothing(toy, tmp_path):
    check(tmp_path / "run", toy.config())
    assert list(tmp_path.iterdir()) == []
