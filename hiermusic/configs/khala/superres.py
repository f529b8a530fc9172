"""Khala's super-resolution model: fills codec levels 2 to 63, one full-attention pass a level over the whole track.

    hiermusic train --config=configs/khala/superres.py:tiny --workdir=out/superres --config.data.path=TOKENS \\
      --config.init_from=out/backbone

| preset | where                      | expect                                                                      |
|--------|----------------------------|-----------------------------------------------------------------------------|
| tiny   | two CPU cores, ~2 minutes  | under a unigram model's bits on coarse levels, as many on the fine ones       |
| small  | one GPU, days              | untried; 12 layers of width 768                                               |
| paper  | 64 GPUs, 10 k steps        | 1.876 B parameters, 8,192 positions                                           |
| 3b     | a pod                      | 3.532 B parameters; not trained                                               |
| 7b     | a pod                      | 7.125 B parameters; not trained                                               |

A batch is one task: with probability `task0_share` causal prediction of q0 (Task 0), otherwise full-attention
prediction of a level that is drawn for each row (Task 1). The share is not in the paper; 0 is its negative ablation.
Without `init_from` the trunk starts at random. `model.levels` is how many levels of its tokens it knows, 0 for all.
`sampling.levels` is how many a song gets, 0 for all; `sampling.final_temperature` is that of the last, to which the
temperature goes evenly.
"""

from ml_collections import ConfigDict

from hiermusic.configs import common
from hiermusic.configs.khala import codec
from hiermusic.errors import UserError


def get_config(preset: str = "tiny") -> ConfigDict:
    """The configuration of a preset: tiny, small, paper, 3b or 7b."""
    config = common.config("khala", "superres", preset)

    config.data = ConfigDict()
    config.data.path = ""
    config.data.codec = ""
    config.data.crop = "start"

    config.model = ConfigDict()
    config.model.levels = 0
    config.model.pattern = "layer_wise"
    config.model.given = 2
    config.model.tokenizer = "llama31"
    config.model.tokenizer_file = ""
    config.model.duration_unit = 60.0
    config.model.text_limit = 2048
    config.model.keep_description = False
    config.model.as_released = False
    config.model.length = 8192
    config.model.head = "window"
    config.model.z_loss = 0.0
    config.model.codec_tables = False
    config.model.layers = 24
    config.model.width = 2048
    config.model.heads = 32
    config.model.kv_heads = 8
    config.model.head_dim = 64
    config.model.ffn_width = 5632
    config.model.bias = "all"
    config.model.qk_norm = "none"
    config.model.rope_base = 500_000.0
    config.model.base_width = 0
    config.model.dropout = 0.0
    config.model.dtype = "bfloat16"
    config.model.remat = "full"

    config.train.task0_share = 0.25
    config.train.level_distribution = "uniform"
    config.train.steps = 10_000
    config.train.batch_size = 256
    config.train.learning_rate = 2e-4
    config.train.schedule = "cosine"
    config.train.warmup_steps = 2000
    config.train.final_share = 0.1
    config.train.optimiser = "adamw"
    config.train.betas = (0.9, 0.95)
    config.train.weight_decay = 0.1
    config.train.clip_norm = 1.0
    config.train.valid_every = 1000
    config.train.checkpoint_every = 1000

    config.sampling = ConfigDict({"levels": 0, "temperature": 1.0, "final_temperature": 1.0, "top_k": 10, "top_p": 1.0})

    match preset:
        case "paper":
            pass
        case "3b":
            config.model.base_width = 2048
            config.model.width = 3072
            config.model.heads = 48
            config.model.ffn_width = 8192
        case "7b":
            config.model.base_width = 2048
            config.model.layers = 32
            config.model.width = 4096
            config.model.heads = 64
            config.model.ffn_width = 11_008
        case "small":
            config.model.layers = 12
            config.model.width = 768
            config.model.heads = 12
            config.model.kv_heads = 4
            config.model.ffn_width = 2048
            config.model.tokenizer = "bytes"
            config.model.length = 4096
            config.train.steps = 50_000
            config.train.batch_size = 16
        case "tiny":
            config.model.codec_tables = True
            config.model.tokenizer = "bytes"
            config.model.duration_unit = 1.0
            config.model.text_limit = 128
            config.model.length = 432
            config.model.layers = 3
            config.model.width = 128
            config.model.heads = 2
            config.model.kv_heads = 1
            config.model.head_dim = 64
            config.model.rope_base = 10_000.0
            config.model.ffn_width = 256
            config.model.dtype = "float32"
            config.model.remat = "none"
            config.sampling.levels = 6  # the others it predicts no better than counting does
            config.sampling.temperature = 0.0
            config.sampling.final_temperature = 0.0
            config.train.steps = 90
            config.train.batch_size = 8
            config.train.learning_rate = 2e-3
            config.train.warmup_steps = 20
            config.train.ema_decay = 0.98
            config.train.log_every = 10
            config.train.valid_every = 45
            config.train.valid_batches = 8
            config.train.checkpoint_every = 45
        case _:
            choices = "tiny, small, paper, 3b or 7b"
            raise UserError(f"unknown preset '{preset}' of configs/khala/superres.py: choose {choices}")
    config.tokens = codec.tokens(preset)
    return config
