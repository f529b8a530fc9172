"""The loop that trains any stage: sharded, guarded, and resumed bit for bit.

Order within a step, on which exact resume rests: batch i, update i, read the metrics of update i - 1, and only then
validate, show and save what update i left. A checkpoint of step n is the state after n updates, so n is also the
index of the next batch and the whole of the data state; beside it lies what the guard remembers.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hiermusic.children import ending_signals
from hiermusic.console import bar, say
from hiermusic.errors import UserError
from hiermusic.parallel.hosts import all_stop
from hiermusic.parallel.mesh import BatchPlacement, batch_sharding, mesh_of, shardings
from hiermusic.train import origin
from hiermusic.train.checkpoint import Checkpoints, claim, latest_step, place, read_config
from hiermusic.train.guard import NAMES, Guard
from hiermusic.train.lock import owned
from hiermusic.train.log import Log
from hiermusic.train.meter import Meter
from hiermusic.train.profiler import Profiler
from hiermusic.train.stage import Batch, Metrics, RunConfig, Stage
from hiermusic.train.stop import StopRule
from hiermusic.train.watchdog import Watchdog

if TYPE_CHECKING:
    import grain

LIMITS = jax.ShapeDtypeStruct((2,), jnp.float32)  # of loss and gradient norm, as `make_update`'s function takes them


def run(
    stage: Stage, workdir: str | Path, progress: bool = True, mesh: jax.sharding.Mesh | None = None
) -> dict[str, Any]:
    """Trains `stage` in `workdir`, resuming from its newest checkpoint if it has one.

    Args:
      stage: what to train.
      workdir: gets config.json, checkpoints/, metrics.jsonl, TensorBoard events, samples/.
      progress: shows a progress bar on standard error.
      mesh: what `check` gave, where it has been asked already.
    Returns:
      The last logged record, its `step` that of the last checkpoint: below `train.steps` when a signal ended the run,
      or a rule to stop, which `stopped` then tells.
    Raises:
      UserError: a workdir of another config or in use by another process, a batch that does not divide, a damaged
        checkpoint, a full disk, or too many skipped steps in a row.
    """
    begin = time.time()
    mesh = mesh or check(stage)
    with owned(workdir):
        moved = _moved_rate(workdir, stage.config)
        options = stage.config.loop
        rows = BatchPlacement(mesh, options.batch_size).rows
        # before the workdir is this run's: a crop, a split or a batch that the data have not is told, and put right
        train, valid = stage.train_batches(rows), stage.valid_batches(rows) if options.valid_every else None
        if options.stop_worse and valid is None:
            raise UserError("train.stop_worse needs held-out tracks and train.valid_every: give both, or set it to 0")
        claim(workdir, stage.config.fields, stage.config.places)
        if moved:
            _tell(moved)
        with jax.set_mesh(mesh), _Stop() as stop:
            trainer = _Trainer(stage, mesh, Path(workdir), progress, begin, train, valid)
            try:
                if jax.process_index() == 0:
                    origin.note(Path(workdir), stage.config.data, trainer.tell)
                return trainer.train(stop)
            finally:
                trainer.close()


def check(stage: Stage, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The mesh of a run that can be made, or a UserError, before anything is read, written or allocated.

    Args:
      stage: what to train; its data is not touched.
      devices: to train on, which need not be there; all of this job's when left out.
    Raises:
      UserError: a mesh that does not fill the devices, or a batch, heads or widths that do not divide over it.
    """
    options = stage.config.loop
    mesh = mesh_of(stage.config.mesh, devices)
    BatchPlacement(mesh, options.batch_size)
    (rows,) = batch_sharding(mesh).shard_shape((options.batch_size,))
    if rows % options.accumulate:
        raise UserError(
            f"train.accumulate={options.accumulate} does not divide the {rows} rows that each device has of "
            f"train.batch_size={options.batch_size}: choose a divisor of {rows}"
        )
    stage.check(mesh)
    shardings(abstract_state(stage, options.seed)[1], mesh)
    return mesh


def _moved_rate(workdir: str | Path, config: RunConfig) -> str | None:
    """What becomes of the learning rate of a run that goes on to another length; None where nothing does."""
    step = latest_step(workdir)
    new = config.loop.steps
    old = read_config(workdir)["train"]["steps"] if step is not None else new
    if old == new:
        return None
    for at in sorted({step, max(step, min(old, new) - 1)}):
        before, after = (float(config.optimiser.rate(steps)(at)) for steps in (old, new))
        if not math.isclose(before, after, rel_tol=1e-3):
            return (
                f"{workdir}: train.steps was {old} and is {new}, which moves the {config.optimiser.schedule} schedule: "
                f"the learning rate after step {at} is {after:.3g}, it was to be {before:.3g} (a run begun with "
                "train.decay_steps keeps its schedule)"
            )
    return None


def abstract_state(stage: Stage, seed: int) -> tuple[nnx.GraphDef, nnx.State]:
    """A stage's training state as a graph and shapes: nothing is allocated."""
    return nnx.split(nnx.eval_shape(lambda: stage.create(nnx.Rngs(seed))))


class _Pending(NamedTuple):
    """An update under way: its task, the guard's limits for it, the shares of this process's rows that are no padding,
    and its metrics, perhaps still being computed."""

    task: Hashable
    limits: np.ndarray
    held: tuple[float, float]
    metrics: Metrics


class _Trainer:
    """The state of a run between two steps."""

    def __init__(
        self,
        stage: Stage,
        mesh: jax.sharding.Mesh,
        workdir: Path,
        progress: bool,
        begin: float,
        train_data: "grain.MapDataset",
        valid_data: "grain.MapDataset | None",
    ):
        options = stage.config.loop
        self.stage, self.options, self.mesh = stage, options, mesh
        self.train_data, self.valid_data = train_data, valid_data

        def create():
            return stage.create(nnx.Rngs(options.seed))

        self.graphdef, abstract = abstract_state(stage, options.seed)
        placement = shardings(abstract, mesh)
        self.place = BatchPlacement(mesh, options.batch_size)
        if options.valid_every and self.valid_data is None:
            _tell(f"{workdir}: no track is held out, so it trains without validation")
        self.guard = Guard(options.spike_window, options.spike_sigma, options.spike_patience, options.max_skipped)
        self.rule = StopRule(options.stop_worse, options.stop_loss)
        self.saved = latest_step(workdir)
        self.checkpoints = Checkpoints(workdir, options.keep, options.keep_every)
        if self.saved is None:
            self.step = 0
            # run once: optimising the many random draws takes XLA's CPU compiler minutes and saves no time
            quickly = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
            make = jax.jit(lambda: nnx.state(create()), out_shardings=placement, compiler_options=quickly)
            module = nnx.merge(self.graphdef, make())
            stage.prepare(module)
            self.state = jax.device_put(nnx.state(module), placement)
        else:
            tuning = stage.config.tuning
            base = tuning.base if tuning.rank else ""
            self.state, data = self.checkpoints.restore(place(abstract, placement), base=base)
            self.saved = self.step = data["step"]
            self.guard.load(data["guard"])
            self.rule.load(data["stop"])
            if options.stop_worse and self.rule.begun is None:
                raise UserError(
                    f"train.stop_worse={options.stop_worse}: {workdir} began without it, so step 0 was not measured: "
                    "set it to 0, or begin a new run"
                )
        self.update = make_update(stage, self.graphdef, mesh, placement, options.seed)
        self.evaluate = _make_evaluate(stage, self.graphdef, mesh, options.seed)
        self.log = Log(workdir, self.step)
        past = {name: self.log.last.get(name, 0.0) for name in ("goodput", "elapsed")}
        self.meter = Meter(stage, mesh, options.peak_tflops, self.log.started or begin, **past)
        self.profiler = Profiler(workdir, options.profile_step, options.profile_steps)
        self.pending: _Pending | None = None
        self.bar = bar("step", options.steps, done=self.step, shown=progress)
        self.watchdog = Watchdog(workdir, options.hang_seconds)

    def train(self, stop: "_Stop") -> dict[str, Any]:
        """Runs to the end or to a signal; returns the last record and the step reached."""
        options = self.options
        batches = _batches(self.train_data, self.step)
        if self.step == 0 and options.stop_worse:
            self._begin()
        while self.step < options.steps and not self.rule.reason(self.step):
            if self.profiler.begins(self.step + 1):
                self._settle()
                self.profiler.start()
            pending = self._dispatch(batches)
            self._settle()  # the update before, while the device works on this one
            self.step, self.pending = self.step + 1, pending
            self.bar.update()
            last = self.step >= options.steps
            ending = last or stop.requested(self.step)
            validating = self._due(options.valid_every) or (last and options.valid_every > 0)
            showing = self._due(options.show_every)
            saving = self._due(options.checkpoint_every) or ending
            if validating or showing or saving or self.profiler.ends(self.step):
                self._settle(validating)
                self._pause(showing, saving or bool(self.rule.reason(self.step)))
            if ending:
                break
        self.watchdog.progress("the last save", slow=True)
        if why := self.rule.reason(self.step):
            self._settle()
            self._save()
            self.tell(f"step {self.step}: {why}: the run ends")
        self.checkpoints.wait()
        return {**self.log.last, "step": self.step} | ({"stopped": why} if why else {})

    def _begin(self) -> None:
        """Measures what the run starts from."""
        valid = self._validate()
        self.rule.heard(0, float(valid["valid/loss"]))
        _tell(f"step 0: held-out loss {valid['valid/loss']:.4g}")
        self.log.write(0, valid)

    def tell(self, words: str) -> None:
        """Says, and logs, what came about before the next step."""
        _tell(words)
        self.log.event(self.step, words)

    def close(self) -> None:
        """Ends the bar, the watching, a trace, the log and a save still under way."""
        self.bar.close()
        self.watchdog.close()
        try:
            self.profiler.stop()
            self.log.close()
        finally:
            self.checkpoints.close()

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _dispatch(self, batches: Iterator[tuple[Hashable, Batch]]) -> _Pending:
        """Starts the next update."""
        with jax.profiler.StepTraceAnnotation("step", step_num=self.step + 1):
            with self.meter.waiting():
                task, batch = next(batches)
                held, batch = self.stage.held(batch), self.place.put(batch)
            self.watchdog.progress(f"step {self.step + 1}", slow=self.meter.is_new(task))
            limits = self.guard.limits(self.step, task)
            with self.meter.dispatching(task):
                self.state, metrics = self.update(self.state, batch, np.int32(self.step), limits, task)
        return _Pending(task, limits, held, metrics)

    def _settle(self, validating: bool = False) -> None:
        """Reads the pending metrics, lets the guard see them, and logs what is due, validation with it."""
        if self.pending is None:
            return
        (task, limits, held, metrics), self.pending = self.pending, None
        metrics = jax.device_get(metrics)
        skipped = bool(metrics.pop("skipped"))
        self.meter.done(task, held, counted=not skipped)
        self.watchdog.progress(f"step {self.step + 1}")
        cause = self.guard.observe(self.step - 1, task, metrics, limits, skipped)
        self.bar.set_postfix_str(f"loss {float(metrics['loss']):.4g}", refresh=False)
        if cause:
            metrics["skip_cause"] = cause
            _tell(f"step {self.step} skipped for {cause}; the weights are as before")
        else:
            self.rule.saw(self.step, float(metrics["loss"]))
        valid = self._validate() if validating else {}
        if "valid/loss" in valid:
            self.rule.heard(self.step, float(valid["valid/loss"]))
            _tell(f"step {self.step}: loss {float(metrics['loss']):.4g}, held-out loss {valid['valid/loss']:.4g}")
        if cause or valid or self.step == 1 or self._due(self.options.log_every) or self.step == self.options.steps:
            self.log.write(self.step, {**metrics, **self.meter.read(), "skipped": self.guard.skipped, **valid})
        if cause and (words := self.guard.check(self.step, task, cause)):
            self.tell(words)

    def _pause(self, showing: bool, saving: bool) -> None:
        """What is done between two steps."""
        with self.meter.out():
            if self.profiler.ends(self.step):
                self.profiler.stop()
            if showing:
                self.watchdog.progress(f"the showcase of step {self.step}", slow=True)
                self.stage.showcase(_module(self.graphdef, self.state), self.log, self.step)
            if saving:
                self.watchdog.progress(f"the save of step {self.step}", slow=True)
                self._save()
        self.watchdog.progress(f"step {self.step + 1}")

    def _validate(self) -> Metrics:
        data = self.valid_data
        count = min(len(data), self.options.valid_batches or len(data)) if data is not None else 0
        rows = []
        with self.meter.out():
            for index in range(count):
                self.watchdog.progress(f"validation after step {self.step}", slow=True)
                task, batch = _pair(data[index])
                rows.append(self.evaluate(self.state, self.place.put(batch), np.int32(index), task))
            rows = jax.device_get(rows)
        return {f"valid/{name}": _mean([row[name] for row in rows]) for name in (rows[0] if rows else ())}

    def _save(self) -> None:
        if self.saved != self.step:
            data = {"step": self.step, "guard": self.guard.dump(), "stop": self.rule.dump()}
            self.checkpoints.save(self.step, self.state, data)
            self.saved = self.step


def make_update(stage: Stage, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh, placement: Any, seed: int) -> Callable:
    """(state, batch, step, limits, task) -> (state, metrics); an update is written only if it is finite and its loss
    and gradient norm do not exceed `limits` (see `LIMITS`), else the state comes back as it was."""

    def update(state, batch, step, limits, task):
        module = _module(graphdef, state)
        metrics = dict(stage.step(module, batch, task, jax.random.fold_in(jax.random.key(seed), step)))
        told = [metrics[name] for name in (*NAMES, "learning_rate") if name in metrics]
        guarded = jnp.stack([metrics[name] for name in NAMES]).astype(jnp.float32)
        written = jnp.isfinite(jnp.stack(told)).all() & (guarded <= limits).all()
        state = jax.tree.map(lambda new, old: jnp.where(written, new, old), nnx.state(module), state)
        return state, {**metrics, "skipped": ~written}

    return jax.jit(update, donate_argnums=0, static_argnums=4, out_shardings=(placement, _everywhere(mesh)))


def _make_evaluate(stage: Stage, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh, seed: int) -> Callable:
    """(state, batch, index, task) -> metrics; the key depends on the batch's index alone, so runs of it compare."""

    def evaluate(state, batch, index, task):
        key = jax.random.fold_in(jax.random.key(seed + 1), index)
        return dict(stage.evaluate(_module(graphdef, state), batch, task, key))

    return jax.jit(evaluate, static_argnums=3, out_shardings=_everywhere(mesh))


def _module(graphdef: nnx.GraphDef, state: nnx.State) -> nnx.Module:
    # merge keeps the state's own Variables, so that a change to the module would change `state` as well
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf, state))


def _everywhere(mesh: jax.sharding.Mesh) -> jax.sharding.NamedSharding:
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def _batches(data: "grain.MapDataset", start: int) -> Iterator[tuple[Hashable, Batch]]:
    import grain

    for element in data[start:].to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)):
        yield _pair(element)
    raise UserError(f"the training data ended after {len(data)} batches: it holds too little, or does not repeat")


def _pair(element: Any) -> tuple[Hashable, Batch]:
    return (None, element) if isinstance(element, Mapping) else element


def _tell(words: str) -> None:
    """Says it from the first process of a run."""
    if jax.process_index() == 0:
        say(words)


def _mean(values: list[np.ndarray]) -> np.ndarray:
    """Mean over batches of what each of them measured (NaN = not measured)."""
    stacked = np.stack(values).astype(np.float64)
    measured = ~np.isnan(stacked)
    return np.where(measured, stacked, 0).sum(axis=0) / np.where(measured.any(axis=0), measured.sum(axis=0), np.nan)


class _Stop:
    """Catches the signals to end, so that a step is finished and saved before the process does; a second one kills."""

    def __enter__(self):
        self.caught = False
        self.previous = {}
        if threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._catch) for number in ending_signals()}
        return self

    def __exit__(self, *_):
        self._restore()

    def requested(self, step: int) -> bool:
        return all_stop(step, self.caught)

    def _catch(self, number, frame):
        self.caught = True
        self._restore()

    def _restore(self):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}
