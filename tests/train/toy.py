"""A stage small enough to run thousands of steps of; `python toy.py WORKDIR STEPS PAUSE` trains it."""

import sys
import time

import grain
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from hiermusic.train.loop import run
from hiermusic.train.optimiser import OptimiserConfig


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
    """Linear regression with noise from the step's key; two tasks take turns; batches in `poisoned` are all NaN."""

    def __init__(self, config, poisoned=(), pause=0.0):
        self.config, self.poisoned, self.pause = config, set(poisoned), pause
        self.optimiser = OptimiserConfig.of(config.train)
        self.shown = []

    def create(self, rngs):
        return State(rngs, self.config.model.width, self.optimiser, 100)

    def prepare(self, module):
        module.model.bias[...] = module.model.bias[...] + 0.5

    def _batch(self, index):
        time.sleep(self.pause)
        rows = self.config.train.batch_size
        draw = np.random.default_rng((self.config.train.seed, index))
        x_BD = draw.normal(size=(rows, self.config.model.width)).astype(np.float32)
        if index in self.poisoned:
            x_BD[:] = np.nan
        return ("mean" if index % 2 else "sum"), {"x": x_BD, "scale": np.float32(index % 3)}

    def train_batches(self):
        return grain.MapDataset.range(10**9).map(self._batch)

    def valid_batches(self):
        return grain.MapDataset.range(3).map(self._batch)

    def _loss(self, model, batch, task, key):
        y_BF = model(batch["x"]) - batch["scale"] - jax.random.normal(key, (1, 8))
        return jnp.mean(y_BF**2) if task == "mean" else jnp.sum(y_BF**2) / y_BF.size

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
    return ml_collections.ConfigDict(
        {
            "stage": "toy",
            "data": {"path": "nowhere"},
            "model": {"width": 4},
            "train": {
                **{"steps": 20, "batch_size": 8, "seed": 3, "log_every": 1, "valid_every": 0, "checkpoint_every": 5},
                **{"learning_rate": 1e-2, "warmup_steps": 3, "schedule": "constant"},
                **train,
            },
        }
    )


if __name__ == "__main__":
    workdir, steps, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    settings = config(steps=steps, checkpoint_every=2, valid_every=7)
    print("done", run(ToyStage(settings, pause=pause), settings, workdir, progress=False)["step"], flush=True)
