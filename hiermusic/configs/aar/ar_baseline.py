"""The baseline of AAR: the same transformer over residual codes of the same trunk, one token after another.

    hiermusic train --config=configs/aar/ar_baseline.py:tiny --workdir=out/ar --config.data.path=TOKENS

| preset | where                   | expect                                                                       |
|--------|-------------------------|------------------------------------------------------------------------------|
| tiny   | two CPU cores, minutes  | fewer bits than counting codes                                                |
| small  | one GPU, days           | untried; d8                                                                   |
| paper  | GPUs, 100 epochs        | d16 over 10 levels at 75 Hz: 750 tokens a second                              |

`model.pattern` is "flatten" (one token a position), "delay" (MusicGen's), "parallel" or "level_major". Tokens come from
a codec trained with `--config.model.quantiser=residual`. The paper does not say how its own baseline was guided: a
`sampling.guidance` of 3 is the mean of AAR's, which grows from 1 to 5. With `model.codec_tables` the tables of codes
begin as the codec's, near each other where its codes are, and the heads at how often they are used. `tiny` has 6
levels, 450 tokens a second, hardly fewer than SAT's 455.
"""

from ml_collections import ConfigDict

from hiermusic.configs import common
from hiermusic.configs.aar import codec
from hiermusic.errors import UserError


def get_config(preset: str = "tiny") -> ConfigDict:
    """The configuration of a preset: tiny, small or paper."""
    config = common.config("aar", "ar_baseline", preset)

    config.data = ConfigDict()
    config.data.path = ""
    config.data.codec = ""
    config.data.clap = ""

    config.model = ConfigDict()
    config.model.depth = 16
    config.model.pattern = "flatten"
    config.model.window = 75
    config.model.cond = 512
    config.model.cond_dropout = 0.1
    config.model.listener = 128
    config.model.references = 10
    config.model.drop_path = 0.1
    config.model.codec_tables = False
    config.model.z_loss = 0.0
    config.model.dtype = "bfloat16"
    config.model.remat = "none"

    config.train.steps = 100_000
    config.train.batch_size = 2048
    config.train.learning_rate = 1e-4
    config.train.schedule = "wsd"
    config.train.warmup_steps = 500
    config.train.decay_share = 0.945
    config.train.final_share = 0.01
    config.train.optimiser = "adamw"
    config.train.betas = (0.9, 0.95)
    config.train.weight_decay = 0.05
    config.train.clip_norm = 2.0
    config.train.valid_every = 2000
    config.train.checkpoint_every = 2000

    config.sampling = ConfigDict({"temperature": 1.0, "top_k": 200, "top_p": 0.95, "guidance": 3.0})

    match preset:
        case "paper":
            pass
        case "small":
            config.model.depth = 8
            config.model.codec_tables = True
            config.train.batch_size = 64
        case "tiny":
            config.model.depth = 2
            config.sampling.top_k = 0
            config.sampling.guidance = 2.0
            config.model.cond = 64
            config.model.listener = 32
            config.model.references = 4
            config.model.dtype = "float32"
            config.model.codec_tables = True
            config.train.steps = 200
            config.train.batch_size = 8
            config.train.learning_rate = 2e-3
            config.train.warmup_steps = 20
            config.train.final_share = 0.1
            config.train.log_every = 10
            config.train.valid_every = 100
            config.train.valid_batches = 2
            config.train.checkpoint_every = 100
        case _:
            raise UserError(f"unknown preset '{preset}' of configs/aar/ar_baseline.py: choose tiny, small or paper")
    levels = 6 if preset == "tiny" else 10
    config.tokens = codec.tokens("paper128" if preset == "paper" else preset, levels)
    return config
