"""Khala's backbone: a causal transformer over the first two codec levels of a whole track, interleaved frame by frame.

    hiermusic train --config=configs/khala/backbone.py:tiny --workdir=out/backbone --config.data.path=TOKENS

| preset | where                      | expect                                                                  |
|--------|----------------------------|-------------------------------------------------------------------------|
| tiny   | two CPU cores, ~4 minutes  | 56 % of a unigram model's bits on held-out songs; chords, strokes, no beat |
| small  | one GPU, days              | untried; 12 layers of width 768                                           |
| paper  | 64 GPUs, 354 k steps       | 1.617 B parameters, 16,384 positions: about six minutes of music          |
| 3b     | a pod                      | 3.142 B parameters; not trained                                           |
| 7b     | a pod                      | 6.605 B parameters; not trained                                           |

The ladder above `paper` keeps its heads' size, batch and learning rate, and scales initialisation and step sizes by
width (`base_width`). What fits where stands in docs/scale.md.

`model.pattern` is the order of its codes: `flatten`, or in its place `delay`, `parallel` or `level_major`
(docs/patterns.md). In the last a song has the length that is asked for, in the others it ends itself.

`model.as_released` composes prompts as Khala's release does, which imported models have (docs/pretrained.md).

Learning rate, decay and betas are not in the paper: they are TinyLlama's, whose block and warm-up it shares.
"""

from ml_collections import ConfigDict

from hiermusic.configs import common
from hiermusic.configs.khala import codec
from hiermusic.errors import UserError


def get_config(preset: str = "tiny") -> ConfigDict:
    """The configuration of a preset: tiny, small, paper, 3b or 7b."""
    config = common.config("khala", "backbone", preset)

    config.data = ConfigDict()
    config.data.path = ""
    config.data.codec = ""
    config.data.crop = "start"

    config.model = ConfigDict()
    config.model.levels = 2
    config.model.pattern = "flatten"
    config.model.given = 0
    config.model.tokenizer = "llama31"
    config.model.tokenizer_file = ""
    config.model.duration_unit = 60.0
    config.model.text_limit = 4096
    config.model.keep_description = True
    config.model.as_released = False
    config.model.length = 16_384
    config.model.head = "window"
    config.model.z_loss = 0.0
    config.model.codec_tables = False
    config.model.prompt_dropout = 0.0
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

    config.train.steps = 354_000
    config.train.batch_size = 256
    config.train.learning_rate = 4e-4
    config.train.schedule = "cosine"
    config.train.warmup_steps = 2000
    config.train.final_share = 0.1
    config.train.optimiser = "adamw"
    config.train.betas = (0.9, 0.95)
    config.train.weight_decay = 0.1
    config.train.clip_norm = 1.0
    config.train.valid_every = 2000
    config.train.checkpoint_every = 2000

    config.sampling = ConfigDict({"temperature": 1.0, "top_k": 50, "top_p": 1.0, "guidance": 1.0})

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
            config.model.length = 8192
            config.model.text_limit = 2048
            config.train.steps = 100_000
            config.train.batch_size = 16
        case "tiny":
            config.model.codec_tables = True
            config.model.tokenizer = "bytes"
            config.model.duration_unit = 1.0
            config.model.text_limit = 128
            config.model.keep_description = False  # the built-in songs' tags say more in fewer letters
            config.model.length = 736
            config.model.layers = 3
            config.model.width = 128
            config.model.heads = 2
            config.model.kv_heads = 1
            config.model.head_dim = 64
            config.model.rope_base = 10_000.0
            config.model.ffn_width = 256
            config.model.dtype = "float32"
            config.model.remat = "none"
            config.sampling.top_k = 15
            config.train.steps = 240
            config.train.batch_size = 8
            config.train.optimiser = "muon"
            config.train.learning_rate = 6e-3
            config.train.warmup_steps = 20
            config.train.ema_decay = 0.98
            config.train.log_every = 10
            config.train.valid_every = 120
            config.train.valid_batches = 1
            config.train.checkpoint_every = 120
        case _:
            choices = "tiny, small, paper, 3b or 7b"
            raise UserError(f"unknown preset '{preset}' of configs/khala/backbone.py: choose {choices}")
    config.tokens = codec.tokens(preset)
    return config
