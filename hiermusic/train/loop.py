"""The loop that trains any stage: sharded, guarded, and resumed bit for bit.

Order within a step, on which exact resume rests: batch i, update i, read the metrics of update i - 1, and only then
validate, show and save what update i left. A checkpoint of step n is the state after n updates, so n is also the
index of the next batch and the whole of the data state.
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from tqdm import tqdm

from hiermusic.errors import UserError
from hiermusic.parallel.mesh import make_mesh, put, shardings
from hiermusic.train.checkpoint import Checkpoints, claim, latest_step, place
from hiermusic.train.log import Log
from hiermusic.train.stage import Batch, Metrics, Stage


@dataclass(frozen=True)
class LoopConfig:
    """The fields of `config.train` that the loop reads; intervals are in steps, 0 = never.

    Args:
      steps: length of the run.
      batch_size: global batch; must divide over the mesh's data axes.
      seed: of the initial weights and of every step's key.
      log_every: metrics.jsonl and TensorBoard.
      valid_every: validation, over `valid_batches` batches (0 = all there are).
      checkpoint_every: checkpoints; the last step is always saved.
      show_every: the stage's showcase.
      keep: newest checkpoints kept, besides every `keep_every`-th step.
      max_skipped: consecutive non-finite steps after which the run stops.
    """

    steps: int
    batch_size: int
    seed: int = 0
    log_every: int = 20
    valid_every: int = 500
    valid_batches: int = 8
    checkpoint_every: int = 500
    show_every: int = 0
    keep: int = 2
    keep_every: int = 0
    max_skipped: int = 50

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> "LoopConfig":
        """The config of a mapping that may hold fields of others; raises UserError for a missing one."""
        for name in ("steps", "batch_size"):
            if name not in fields:
                raise UserError(f"the config has no train.{name}")
        config = cls(**{name: int(fields[name]) for name in cls.__dataclass_fields__ if name in fields})
        for name in ("steps", "batch_size"):
            if getattr(config, name) < 1:
                raise UserError(f"train.{name} is {getattr(config, name)}; it must be at least 1")
        if not 0 <= config.seed < 2**32:
            raise UserError(f"train.seed is {config.seed}; it must lie in 0..{2**32 - 1}")
        return config


def run(stage: Stage, config: Any, workdir: str | Path, progress: bool = True) -> dict[str, Any]:
    """Trains `stage` in `workdir`, resuming from its newest checkpoint if it has one.

    Args:
      stage: what to train.
      config: the run's ml_collections config, of which `train` (see `LoopConfig`) and, if there, `mesh` are read here.
      workdir: gets config.json, checkpoints/, metrics.jsonl, TensorBoard events, samples/.
      progress: shows a progress bar on standard error.
    Returns:
      The last logged record, its `step` that of the last checkpoint: below `train.steps` when a signal ended the run.
    Raises:
      UserError: a workdir of another config, a batch that does not divide, a damaged checkpoint, a full disk, or too
        many non-finite steps in a row.
    """
    options = LoopConfig.of(config.train)
    mesh = _mesh(config)
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    if options.batch_size % rows:
        raise UserError(f"train.batch_size={options.batch_size} does not divide over mesh data x fsdp = {rows} devices")
    claim(workdir, config)
    with jax.set_mesh(mesh), _Stop() as stop:
        trainer = _Trainer(stage, options, mesh, Path(workdir), progress)
        try:
            return trainer.train(stop)
        finally:
            trainer.close()


def _mesh(config: Any) -> jax.sharding.Mesh:
    if "mesh" not in config:
        return make_mesh({}, jax.devices()[:1])
    sizes = dict(config.mesh)
    if -1 not in sizes.values():
        sizes.setdefault("data", -1)
    return make_mesh(sizes)


class _Trainer:
    """The state of a run between two steps."""

    def __init__(self, stage: Stage, options: LoopConfig, mesh: jax.sharding.Mesh, workdir: Path, progress: bool):
        self.stage, self.options, self.mesh = stage, options, mesh

        def create():
            return stage.create(nnx.Rngs(options.seed))

        self.graphdef, abstract = nnx.split(nnx.eval_shape(create))
        placement = shardings(abstract, mesh)
        self.saved = latest_step(workdir)
        self.checkpoints = Checkpoints(workdir, options.keep, options.keep_every)
        if self.saved is None:
            self.step, self.skipped, self.skipped_in_row = 0, 0, 0
            # run once: optimising the many random draws takes XLA's CPU compiler minutes and saves no time
            quickly = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
            make = jax.jit(lambda: nnx.state(create()), out_shardings=placement, compiler_options=quickly)
            module = nnx.merge(self.graphdef, make())
            stage.prepare(module)
            self.state = jax.device_put(nnx.state(module), placement)
        else:
            self.state, data = self.checkpoints.restore(place(abstract, placement), self.saved)
            self.step, self.skipped, self.skipped_in_row = data["step"], data["skipped"], data["skipped_in_row"]
        self.update = _make_update(stage, self.graphdef, mesh, placement, options.seed)
        self.evaluate = _make_evaluate(stage, self.graphdef, mesh, options.seed)
        self.log = Log(workdir, self.step)
        self.pending: Metrics | None = None  # metrics of the newest update, perhaps still being computed
        self.clock = _Clock()
        self.bar = tqdm(total=options.steps, initial=self.step, disable=not progress, file=sys.stderr, unit="step")

    def train(self, stop: "_Stop") -> dict[str, Any]:
        """Runs to the end or to a signal; returns the last record and the step reached."""
        options = self.options
        batches = _batches(self.stage, self.step)
        while self.step < options.steps:
            with self.clock.waiting():
                task, batch = next(batches)
                batch = put(batch, self.mesh)
            self.state, metrics = self.update(self.state, batch, np.int32(self.step), task)
            self._settle()  # the update before, while the device works on this one
            self.step, self.pending = self.step + 1, metrics
            self.clock.steps += 1
            self.bar.update()
            last = self.step >= options.steps
            ending = last or stop.requested(self.step)
            validating = self._due(options.valid_every) or (last and options.valid_every > 0)
            showing = self._due(options.show_every)
            saving = self._due(options.checkpoint_every) or ending
            if validating or showing or saving:
                self._settle(validating)
                if showing:
                    self.stage.showcase(_module(self.graphdef, self.state), self.log, self.step)
                if saving:
                    self._save()
                self.clock.reset()
            if ending:
                break
        self.checkpoints.wait()
        return {**self.log.last, "step": self.step}

    def close(self) -> None:
        """Ends the bar, the log and a save still under way."""
        self.bar.close()
        try:
            self.log.close()
        finally:
            self.checkpoints.close()

    def _due(self, every: int) -> bool:
        return every > 0 and self.step % every == 0

    def _settle(self, validating: bool = False) -> None:
        """Reads the pending metrics, keeps count of skipped steps, and logs what is due, validation with it."""
        if self.pending is None:
            return
        metrics, self.pending = jax.device_get(self.pending), None
        skipped = bool(metrics.pop("skipped"))
        self.skipped, self.skipped_in_row = self.skipped + skipped, self.skipped_in_row + 1 if skipped else 0
        loss, grad_norm = float(metrics["loss"]), float(metrics["grad_norm"])
        self.bar.set_postfix_str(f"loss {loss:.4g}", refresh=False)
        times = self.clock.read()
        valid = self._validate() if validating else {}
        if skipped:
            cause = f"loss {loss}, gradient norm {grad_norm}, learning rate {metrics.get('learning_rate', 'not told')}"
            message = f"step {self.step} skipped: {cause}; the weights are as before"
            tqdm.write(message, file=sys.stderr)
        if skipped or valid or self.step == 1 or self._due(self.options.log_every) or self.step == self.options.steps:
            self.log.write(self.step, {**metrics, **times, "skipped": self.skipped, **valid})
            self.clock.reset()
        if self.skipped_in_row >= self.options.max_skipped:
            raise UserError(
                f"{self.skipped_in_row} steps in a row up to step {self.step} had a non-finite loss, gradient or rate: "
                "lower the learning rate, lengthen the warmup or look at the data"
            )

    def _validate(self) -> Metrics:
        data = self.stage.valid_batches()
        count = min(len(data), self.options.valid_batches or len(data)) if data is not None else 0
        rows = []
        for index in range(count):
            task, batch = _pair(data[index])
            rows.append(self.evaluate(self.state, put(batch, self.mesh), np.int32(index), task))
        rows = jax.device_get(rows)
        return {f"valid/{name}": _mean([row[name] for row in rows]) for name in (rows[0] if rows else ())}

    def _save(self) -> None:
        if self.saved != self.step:
            data = {"step": self.step, "skipped": self.skipped, "skipped_in_row": self.skipped_in_row}
            self.checkpoints.save(self.step, self.state, data)
            self.saved = self.step


def _make_update(stage: Stage, graphdef: nnx.GraphDef, mesh: jax.sharding.Mesh, placement: Any, seed: int) -> Callable:
    """(state, batch, step, task) -> (state, metrics); a non-finite update is never written."""

    def update(state, batch, step, task):
        module = _module(graphdef, state)
        metrics = dict(stage.step(module, batch, task, jax.random.fold_in(jax.random.key(seed), step)))
        told = [metrics[name] for name in ("loss", "grad_norm", "learning_rate") if name in metrics]
        finite = jnp.isfinite(jnp.stack(told)).all()
        state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), nnx.state(module), state)
        return state, {**metrics, "skipped": ~finite}

    return jax.jit(update, donate_argnums=0, static_argnums=3, out_shardings=(placement, _everywhere(mesh)))


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


def _batches(stage: Stage, start: int) -> Iterator[tuple[Hashable, Batch]]:
    data = stage.train_batches()
    for element in data[start:].to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)):
        yield _pair(element)
    raise UserError(f"the training data ended after {len(data)} batches: it holds too little, or does not repeat")


def _pair(element: Any) -> tuple[Hashable, Batch]:
    return (None, element) if isinstance(element, Mapping) else element


def _mean(values: list[np.ndarray]) -> np.ndarray:
    """Mean over batches of what each of them measured (NaN = not measured)."""
    stacked = np.stack(values).astype(np.float64)
    measured = ~np.isnan(stacked)
    return np.where(measured, stacked, 0).sum(axis=0) / np.where(measured.any(axis=0), measured.sum(axis=0), np.nan)


class _Clock:
    """Where the time went since the last reset."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self.start, self.waited, self.steps = time.perf_counter(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin

    def read(self) -> Metrics:
        seconds = time.perf_counter() - self.start
        return {"seconds_per_step": seconds / max(self.steps, 1), "data_wait": self.waited / seconds}


class _Stop:
    """Catches SIGTERM and SIGINT, so that a step is finished and saved before the process ends; a second one kills."""

    signals = (signal.SIGTERM, signal.SIGINT)

    def __enter__(self):
        self.caught = False
        self.previous = {}
        # with several processes JAX's coordination service agrees on the step; its own handler must stay in place
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self.previous = {number: signal.signal(number, self._catch) for number in self.signals}
        return self

    def __exit__(self, *_):
        self._restore()

    def requested(self, step: int) -> bool:
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.caught

    def _catch(self, number, frame):
        self.caught = True
        self._restore()

    def _restore(self):
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous = {}
