"""AAR: a transformer that predicts all tokens of a scale at once, from SAT's coarser scales (arXiv 2408.09027).

    hiermusic train --config=configs/aar/lm.py:tiny --workdir=out/aar --config.data.path=TOKENS

| preset | where                   | expect                                                                       |
|--------|-------------------------|------------------------------------------------------------------------------|
| tiny   | two CPU cores, minutes  | fewer bits than counting codes on held-out songs; pitches held, no beat yet     |
| small  | one GPU, days           | untried; d8, 39.7 M parameters                                                |
| paper  | GPUs, 100 epochs        | d16, 307.6 M parameters; `--config.model.depth` is 8 to 24 in the release     |

`model.listener` is the width of the encoder of reference windows that learns along; 0 takes CLAP vectors of 512 numbers
from `data.clap`, as the paper does. `model.context` is how many latent frames of the window before a window reads: the
paper has none and stops at one second; with it longer music hangs together. Decay of the weights is constant here, the
release lowers it to 0 along a cosine. The batch is the one the checkpoint's name tells. `sampling.guidance` is that of
the finest scale, to which it grows from 1 (none) at the coarsest: 1 + t for the release's t. `model.codec_tables`
gives the shared head a bias for each scale, which begins at how often its codes stand in the training tracks; the paper
has one bias for all, so that a scale's own frequencies have to be learned by the trunk.
"""

from ml_collections import ConfigDict

from hiermusic.configs import common
from hiermusic.configs.aar import codec
from hiermusic.errors import UserError


def get_config(preset: str = "tiny") -> ConfigDict:
    """The configuration of a preset: tiny, small or paper."""
    config = common.config("aar", "lm", preset)

    config.data = ConfigDict()
    config.data.path = ""
    config.data.codec = ""
    config.data.clap = ""

    config.model = ConfigDict()
    config.model.depth = 16
    config.model.pattern = "next_scale"
    config.model.context = 0
    config.model.context_dropout = 0.1
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

    config.sampling = ConfigDict({"temperature": 1.0, "top_k": 200, "top_p": 0.95, "guidance": 5.0})

    match preset:
        case "paper":
            pass
        case "small":
            config.model.depth = 8
            config.model.context = 75
            config.model.codec_tables = True
            config.train.batch_size = 64
        case "tiny":
            config.model.depth = 2
            config.model.context = 25
            config.sampling.top_k = 0
            config.sampling.temperature = 0.6
            config.sampling.guidance = 3.0
            config.model.cond = 64
            config.model.listener = 32
            config.model.references = 4
            config.model.dtype = "float32"
            config.model.codec_tables = True
            config.train.steps = 400
            config.train.batch_size = 8
            config.train.learning_rate = 2e-3
            config.train.warmup_steps = 20
            config.train.final_share = 0.1
            config.train.log_every = 10
            config.train.valid_every = 200
            config.train.valid_batches = 2
            config.train.checkpoint_every = 200
        case _:
            raise UserError(f"unknown preset '{preset}' of configs/aar/lm.py: choose tiny, small or paper")
    config.tokens = codec.tokens("paper128" if preset == "paper" else preset)
    return config
