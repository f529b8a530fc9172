"""The toy's stage: rows of tracks, cut where they begin."""

import jax
import numpy as np
from ml_collections import ConfigDict

from hiermusic.data import pipeline
from hiermusic.systems import stages
from hiermusic.tokens.visibility import Visibility
from hiermusic.train.lm import LMStage
from hiermusic.train.stage import Work

from .models import make_model


def stage(config: ConfigDict) -> LMStage:
    train, length = config.train, config.model.length

    def batches(split: str, rows):
        found = pipeline.example_batches(config.data.path, split, train.seed, slice(0, 1), train.batch_size, rows)
        return found.map_with_index(lambda index, tracks: (Visibility.causal(), row_of(tracks)))

    def row_of(tracks) -> dict[str, np.ndarray]:
        return {"codes": np.stack([track["codes"][:length, 0] for track in tracks]).astype(np.int32)}

    shapes = {"codes": jax.ShapeDtypeStruct((train.batch_size, length), np.int32)}
    return LMStage(
        stages.run_config(config),
        make_model(config),
        train=lambda rows: batches("train", rows),
        valid=lambda rows: batches("valid", rows),
        examples=[(Visibility.causal(), shapes)],
        work=lambda visibility: Work(1.0, train.batch_size * length, train.batch_size * length / config.model.rate),
        length=length,
        trunk=None,
    )
