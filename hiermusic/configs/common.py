"""What the configurations of all stages begin with: the loop's fields, adapters, the mesh; each then says what it is.

A field that `hiermusic/train/settings.py` gives the loop is in every preset from there.
"""

from dataclasses import MISSING, asdict, fields

from ml_collections import ConfigDict

from hiermusic.parallel.settings import MeshConfig
from hiermusic.train.settings import LoopConfig

TARGETS = ("query", "key", "value", "out", "gate", "up", "down")  # the matrices of a transformer's layers


def config(system: str, stage: str, preset: str) -> ConfigDict:
    """A configuration without data, model and recipe.

    Args:
      system, stage, preset: what it is of, in the fields of these names.
    """
    loop = {field.name: field.default for field in fields(LoopConfig) if field.default is not MISSING}
    return ConfigDict(
        {
            "system": system,
            "stage": stage,
            "preset": preset,
            "init_from": "",
            "lora": {"rank": 0, "alpha": 16.0, "targets": TARGETS, "beside": ()},
            "train": {**loop, "decay_steps": 0, "ema_decay": 0.0, "freeze": (), "rates": ()},
            "mesh": asdict(MeshConfig()),
        }
    )
