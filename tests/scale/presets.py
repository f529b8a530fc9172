"""Small versions of every stage, their batches, and a few steps of them on any mesh."""

from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from hiermusic import presets
from hiermusic.parallel.mesh import BatchPlacement, mesh_of, shardings
from hiermusic.systems import workdir
from hiermusic.tokens.pattern import SEGMENT
from hiermusic.tokens.scales import schedule
from hiermusic.train import loop
from hiermusic.train.codec import CodecStage

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = {
    "sat": "aar/codec",
    "lm": "aar/lm",
    "ar_baseline": "aar/ar_baseline",
    "pyramid": "pyramid/codec",
    "pyramid_lm": "pyramid/lm",
    "coarse": "hafm/coarse",
}  # the others are Khala's
WINDOW = {"window": 16, "levels": 4, "codes": 16}
PRIOR = {"depth": 4, "cond": 8, "listener": 8, "references": 2}
TOKENS = {"levels": 4, "codes": 16, "latent": 8}
TOKEN_LM = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 4, "head_dim": 8, "ffn_width": 64}
SIZES = {
    "backbone": {"model": TOKEN_LM | {"length": 64, "dropout": 0.0}, "tokens": TOKENS},
    "pyramid_lm": {
        "model": TOKEN_LM
        | {"length": 64, "shared_embed": True, "head": "shared", "norm": "layer"}
        | {"positions": "learned", "levels": 0},
        "tokens": TOKENS | {"levels": 3, "scales": (1, 2, 4)},
    },
    "coarse": {
        "model": TOKEN_LM | {"length": 64},
        "tokens": TOKENS | {"hop": 640},
        "prefix": {"0": {"codes": 16}, "1": {"codes": 16}},
    },
    "superres": {"model": TOKEN_LM | {"length": 64, "dropout": 0.0}, "tokens": TOKENS},
    "sat": {  # 16 codes are more than the coarsest scale has vectors: some would lie in one place, and rounding choose
        "model": WINDOW
        | {"codes": 8, "width": 4, "latent": 8, "code_latent": 6, "phi_count": 2, "kmeans_iterations": 4}
        | {"fold": 1, "strides": (4, 5)},
        "discriminator": {"fft_sizes": (64,), "filters": 8},
        "loss": {"mel_windows": (64,), "mel": 0.001, "waveform": 1.0, "adversarial": 0.1, "feature": 0.1},
        "train": {"crop_frames": 16, "quantise_start": 0, "adversarial_start": 1},
    },
    "pyramid": {
        "model": {
            "fold": 2,
            "strides": (4,),
            "dilations": (3,),
            "encoder_width": 8,
            "decoder_width": 16,
            "latent": 8,
            "books": (1, 2, 1),
            "codes": 16,
            "codebooks": "factorised",
            "code_width": 4,
            "residual": False,
            "kmeans_iterations": 4,
        },
        "discriminator": {"period_widths": (8, 8), "fft_sizes": (64,), "filters": 8},
        "loss": {
            **{"mel_windows": (64,), "mel_bands": (8,), "mel": 0.01, "waveform": 1.0},
            **{"adversarial": 0.01, "feature": 0.01},
        },
        "train": {"crop_frames": 16, "quantise_start": 0, "adversarial_start": 1},
    },
    "lm": {
        "model": PRIOR | {"context": 2},
        "tokens": TOKENS | {"scales": schedule("quadratic", 16, 4), "phi_count": 2},
    },
    "ar_baseline": {"model": PRIOR | {"window": 16}, "tokens": TOKENS},
    "codec": {
        "model": {
            "strides": (8,),
            "dilations": (3,),
            "encoder_width": 8,
            "decoder_width": 16,
            "latent": 8,
            "levels": 4,
            "codes": 16,
            "kmeans_iterations": 4,
            "quantiser_dropout": "uniform",
            "mel_bands": 0,  # a rounding there may turn a code over in the third step
        },
        "discriminator": {"fft_sizes": (78,), "filters": 8},
        "loss": {"stft": 0.1, "mel": 0.0, "waveform": 1.0, "balance": False},
        "train": {"crop_frames": 8, "quantise_start": 0, "adversarial_start": 1, "optimiser": "adam"},
    },
}


def load(stage: str, preset: str) -> ConfigDict:
    """The configuration of a stage of Khala, or of one of `FILES`."""
    return presets.read(f"configs/{FILES.get(stage, f'khala/{stage}')}.py:{preset}")


def small(stage: str, mesh: Mapping[str, int]) -> ConfigDict:
    """The tiny preset made smaller still, on a mesh."""
    config = load(stage, "tiny")
    config.update(SIZES[stage])
    # Adam's step is the sign of a gradient that is nothing but rounding, unless epsilon is above it.
    config.train.update({"optimiser": "adamw", "eps": 1e-3, "warmup_steps": 1, "batch_size": 8})
    config.mesh.update({"data": 1} | mesh)
    return config


def batches(stage, count: int) -> list:
    """(task, batch) of the first steps, the batches drawn at random."""
    rng = np.random.default_rng(0)
    examples = stage.examples()

    def draw(name, shape):
        if name == "wav":
            rates = rng.uniform(0.05, 0.6, (shape.shape[0], 1, shape.shape[2]))
            tone = np.sin(np.arange(shape.shape[1])[:, None] * rates)
            return (0.4 * tone + 0.1 * rng.normal(size=shape.shape)).astype(np.float32)
        if name == "valid":
            return np.arange(shape.shape[1]) < rng.integers(40, shape.shape[1] + 1, (shape.shape[0], 1))
        if name == "positions":
            return rng.integers(0, 3, shape.shape).astype(np.int32) * SEGMENT + rng.integers(0, 99, shape.shape)
        if name == "level":
            return rng.integers(1, 4, shape.shape).astype(np.int32)
        return rng.integers(-1, 16, shape.shape).astype(shape.dtype)

    made = []
    for index in range(count):
        task, shapes = examples[index % len(examples)]
        batch = {name: draw(name, shape) for name, shape in shapes.items()}
        if "level" in batch:  # a row of one level predicts no end
            batch["text_targets"][:] = -1
        made.append((stage.phase(index) if isinstance(stage, CodecStage) else task, batch))
    return made


class Placed:
    """A stage's fresh state and its update on a mesh of as many devices as the mesh names."""

    def __init__(self, config: ConfigDict):
        self.stage = workdir.stage(config)
        sizes = [size for size in config.mesh.to_dict().values() if isinstance(size, int)]
        self.mesh = mesh_of(self.stage.config.mesh, jax.devices()[: int(np.prod(sizes))])
        self.graphdef, self.abstract = loop.abstract_state(self.stage, 0)
        self.placement = shardings(self.abstract, self.mesh)
        self.update = loop.make_update(self.stage, self.graphdef, self.mesh, self.placement, 0)
        self.rows = BatchPlacement(self.mesh, config.train.batch_size)

    def arguments(self, state, index, task, batch) -> tuple:
        limits = np.full(2, np.inf, np.float32)
        return state, self.rows.put(batch), np.int32(index), limits, task

    def fresh(self) -> nnx.State:
        return jax.jit(lambda: nnx.state(self.stage.create(nnx.Rngs(0))), out_shardings=self.placement)()


def train(config: ConfigDict, steps: int = 3) -> tuple[list[tuple[float, float]], dict]:
    """Loss and gradient norm of the first steps, and the state after them on the host."""
    placed, measured = Placed(config), []
    with jax.set_mesh(placed.mesh):
        state = placed.fresh()
        for index, (task, batch) in enumerate(batches(placed.stage, steps)):
            state, metrics = placed.update(*placed.arguments(state, index, task, batch))
            measured.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    return measured, jax.device_get(nnx.to_pure_dict(state))
