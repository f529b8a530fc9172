"""Configurations, sweep files and losses that the tests of sweeps share."""

from pathlib import Path

import numpy as np

from hiermusic.sweep import runs

ROOT = Path(__file__).parents[2]
BACKBONE = f"{ROOT}/configs/khala/backbone.py:tiny"
SUPERRES = f"{ROOT}/configs/khala/superres.py:tiny"


def sweep_file(folder: Path, body: str, config: str = BACKBONE, head: str = "") -> str:
    path = folder / "some.py"
    path.write_text(f'CONFIG = "{config}"\n{head}\ndef get_hyper(hyper):\n    return {body}\n')
    return str(path)


def one_run(settings: dict, config: str = BACKBONE, workdir: str = "none") -> runs.Run:
    return runs.Run("r", settings, config, {}, workdir)


def law(compute, noise=0.0, seed=0):
    """Losses that follow a known law, with noise of this spread."""
    exact = 1.7 + 400 * compute**-0.15
    return exact * np.exp(noise * np.random.default_rng(seed).standard_normal(len(compute)))
