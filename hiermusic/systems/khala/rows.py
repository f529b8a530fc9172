"""Super-resolution's training rows: the passes of its pattern, and causal prediction of level 0 (Task 0)."""

from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from hiermusic.errors import UserError
from hiermusic.systems.lm import rows
from hiermusic.systems.lm.models import hierarchy
from hiermusic.systems.lm.rows import Rows, make_rows
from hiermusic.tokens import pattern, sequence
from hiermusic.tokens.visibility import Visibility


def alignment(make: Rows, example: dict, rng: np.random.Generator, level: int = 0) -> sequence.Row:
    """q0 of every frame in turn, read from the q0 before it (Task 0)."""
    ids, length = make.prompt(example["meta"], rng, level), make.config.model.length
    levels, _ = make.crop(example["codes"], sequence.room(ids, length, stepwise=True, end=False), rng)
    row = sequence.pack(ids, pattern.flatten(levels[0].shape), levels[:1], length, level=0, most=make.most)
    return {**row, "reads": np.pad(row["reads"], ((0, 0), (0, len(levels) - 1)), constant_values=-1)}


def level_weights(levels: int, distribution: str) -> np.ndarray:
    """How often Task 1 trains each level; level 0 is Task 0's.

    Args:
      levels: K.
      distribution: "uniform" over 1..K-1 (VALL-E), or "low_biased": levels 1-16 twice as often as 17-32, four times as
        often as the rest (the density of SpectroStream's targets).
    """
    level_K = np.arange(levels)
    match distribution:
        case "uniform":
            weight_K = np.ones(levels)
        case "low_biased":
            weight_K = np.where(level_K <= 16, 1.0, np.where(level_K <= 32, 0.5, 0.25))
        case _:
            raise UserError(f"train.level_distribution is '{distribution}': choose uniform or low_biased")
    weight_K[0] = 0.0
    return weight_K / weight_K.sum()


def shapes(config: ConfigDict) -> list[tuple[Visibility, Mapping[str, jax.ShapeDtypeStruct]]]:
    """Every visibility that training comes to, with the shapes of its global batch."""
    ((seen, batch),) = rows.shapes(config)
    share = config.train.task0_share
    return [(Visibility.causal(), batch)] * (share > 0) + [(seen, batch)] * (share < 1)


def batches(config: ConfigDict, split: str, which: Sequence[int]):
    """These rows of batch i of the mixture: one task a batch, and within Task 1 one level a row.

    In training the task is drawn from (seed, i); held-out batches take turns from level 0, Task 0, to fine ones.
    """
    make = make_rows(config)

    def row_of(level: int):
        if level == 0:
            return Visibility.causal(), lambda *one: alignment(make, *one)
        return Visibility.full(), make.row

    weight_K = level_weights(len(hierarchy(config)), config.train.level_distribution)
    return rows.level_batches(make, split, which, weight_K, row_of, first=0, first_share=config.train.task0_share)


def measured(make: Rows, example: dict, rng: np.random.Generator) -> Iterator[tuple[sequence.Row, Visibility]]:
    """The rows that a held-out track is measured by: Task 0, and every level above by Task 1."""
    yield alignment(make, example, rng), Visibility.causal()
    for level in range(1, len(make.pattern.slots)):
        yield make.row(example, rng, level), Visibility.full()
