"""The toy's one configuration."""

from ml_collections import ConfigDict

from hiermusic.configs import common


def get_config(preset: str = "tiny") -> ConfigDict:
    config = common.config("toy", "chain", preset)
    config.data = ConfigDict({"path": "", "codec": "", "seeds": ""})
    config.model = ConfigDict({"levels": 1, "codes": 4, "rate": 1000, "length": 64})
    config.train.update({"steps": 40, "batch_size": 8, "learning_rate": 0.2, "schedule": "constant", "warmup_steps": 0})
    config.train.update({"optimiser": "adamw", "betas": (0.9, 0.95), "weight_decay": 0.0, "clip_norm": 0.0})
    config.train.update({"log_every": 20, "valid_every": 20, "checkpoint_every": 20})
    config.sampling = ConfigDict({"temperature": 1.0})
    return config
