"""A stage small enough to run thousands of steps of; `python toy.py WORKDIR STEPS PAUSE` trains it."""

import sys
import time
from functools import partial

import grain
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hiermusic.train.loop import run
from hiermusic.train.optimiser import begin_average
from hiermusic.train.stage import RunConfig, Work


class Linear(nnx.Module):
    def __init__(self, rngs, width=4):
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (width, 8)), axes=("embed", "mlp"))
        self.bias = nnx.Param(jnp.zeros(8), axes=("mlp",))

    def __call__(self, x_BD):
        return x_BD @ self.weight[...] + self.bias[...]


class State(nnx.Module):
    def __init__(self, rngs, width, optimiser, steps):
        self.model = Linear(rngs, width)
        self.ema = nnx.clone(self.model)
        self.optimiser = nnx.Optimizer(self.model, optimiser.transform(self.model, steps), wrt=nnx.Param)


class ToyStage:
    places, trunk, length = (), None, 0

    """Linear regression with noise from the step's key; two tasks take turns.

    Batches in `poisoned` are all NaN, those in `spiked` a hundred times too large.
    """

    def __init__(self, config, poisoned=(), pause=0.0, spiked=()):
        self.config, self.width = RunConfig.of(config), config["model"]["width"]
        self.poisoned, self.pause, self.spiked = set(poisoned), pause, set(spiked)
        self.shown = []

    def open(self, workdir):
        pass

    def create(self, rngs):
        return State(rngs, self.width, self.config.optimiser, 100)

    def prepare(self, module):
        begin_average(module.ema, module.model)  # over several processes too
        module.model.bias[...] = module.model.bias[...] + 0.5

    def _batch(self, rows, index):
        time.sleep(self.pause)
        size = self.config.loop.batch_size
        draw = np.random.default_rng((self.config.loop.seed, index))
        x_BD = draw.normal(size=(size, self.width)).astype(np.float32)[list(rows)]
        if index in self.poisoned:
            x_BD[:] = np.nan
        if index in self.spiked:
            x_BD *= 100
        return ("mean" if index % 2 else "sum"), {"x": x_BD, "scale": np.float32(index % 3)}

    def train_batches(self, rows):
        return grain.MapDataset.range(10**9).map(partial(self._batch, rows))

    def valid_batches(self, rows):
        return grain.MapDataset.range(3).map(partial(self._batch, rows))

    def check(self, mesh):
        pass

    def examples(self):
        x = jax.ShapeDtypeStruct((self.config.loop.batch_size, self.width), jnp.float32)
        return [(task, {"x": x, "scale": jax.ShapeDtypeStruct((), jnp.float32)}) for task in ("mean", "sum")]

    def work(self, task):
        size = self.config.loop.batch_size
        return Work(flops=6.0 * size * self.width * 8, tokens=size, seconds=1.0)

    def _loss(self, model, batch, task, key):
        y_BF = model(batch["x"]) - batch["scale"] - jax.random.normal(key, (1, 8))
        return jnp.mean(y_BF**2) if task == "mean" else jnp.sum(y_BF**2) / y_BF.size

    def held(self, batch):
        return 1.0, 1.0

    def step(self, module, batch, task, key):
        loss, gradients = nnx.value_and_grad(self._loss)(module.model, batch, task, key)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradients)))
        module.optimiser.update(module.model, gradients)
        for old, new in ((module.ema.weight, module.model.weight), (module.ema.bias, module.model.bias)):
            old[...] = 0.9 * old[...] + 0.1 * new[...]
        return {"loss": loss, "grad_norm": norm, "per_level": jnp.array([loss, jnp.nan])}

    def evaluate(self, module, batch, task, key):
        loss = self._loss(module.ema, batch, task, key)
        return {"loss": loss, "on_mean": jnp.where(task == "mean", loss, jnp.nan)}

    def showcase(self, module, log, step):
        self.shown.append(step)


def config(**train):
    return {
        "stage": "toy",
        "data": {"path": "nowhere"},
        "model": {"width": 4},
        "train": {
            **{"steps": 20, "batch_size": 8, "seed": 3, "log_every": 1, "valid_every": 0, "checkpoint_every": 5},
            **{"learning_rate": 1e-2, "warmup_steps": 3, "schedule": "constant"},
            **train,
        },
    }


SPIKED = (11, 16, 19, 20, 27)  # of the runs that are killed


def guarded(**train):
    """A config whose guard acts from the fifth step of a task on."""
    return config(spike_window=8, spike_sigma=6.0, **train)


if __name__ == "__main__":
    workdir, steps, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    settings = guarded(steps=steps, checkpoint_every=2, valid_every=7)
    stage = ToyStage(settings, pause=pause, spiked=SPIKED)
    print("done", run(stage, workdir, progress=False)["step"], flush=True)
