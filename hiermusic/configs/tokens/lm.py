"""A token model of any records in any order of prediction: the codes of one codec in the order of another.

    hiermusic train --config=configs/tokens/lm.py:tiny --workdir=out/lm --config.data.path=TOKENS \\
      --config.model.pattern=delay

| preset | where                   | expect                                                                       |
|--------|-------------------------|------------------------------------------------------------------------------|
| tiny   | two CPU cores, minutes  | fewer bits than counting codes                                                |
| small  | one GPU, days           | untried; 12 layers of width 768                                               |
| base   | GPUs                    | untried; 24 layers of width 1024, as MusicGen's small model                   |

`model.pattern` is `flatten`, `delay`, `parallel`, `level_major`, `layer_wise` or `next_scale` (docs/patterns.md).
Tokens may be of any codec; a pattern that cannot take their levels says so. `model.levels` is how many levels the model
knows, 0 for all, `model.given` how many of them are known beforehand: it reads those in front of what it predicts, or,
level by level, below it. `data.path` is token records, or a folder of streams of which `data.stream` is predicted;
`data.prefix` names the records of other streams of the same tracks, seen from `data.path`, which are read whole in
front, one after the other (without `model.codec_tables`). `model.tokenizer` is `bytes`, `llama31`, or `none` for a
model without words. A model of words ends its songs itself in the patterns that go by time through levels of one
length; in all others a song has the length that is asked for. A next-scale row is a window of `model.length` positions,
`model.text_limit` of them the prompt's.
"""

from ml_collections import ConfigDict

from hiermusic.configs import common
from hiermusic.configs.khala import codec
from hiermusic.errors import UserError


def get_config(preset: str = "tiny") -> ConfigDict:
    """The configuration of a preset: tiny, small or base."""
    config = common.config("tokens", "lm", preset)

    config.data = ConfigDict()
    config.data.path = ""
    config.data.codec = ""
    config.data.stream = ""
    config.data.prefix = ()
    config.data.prefix_codecs = ()
    config.data.prefix_noise = ()
    config.data.crop = "random"

    config.model = ConfigDict()
    config.model.levels = 4
    config.model.pattern = "delay"
    config.model.separators = False
    config.model.given = 0
    config.model.tokenizer = "bytes"
    config.model.tokenizer_file = ""
    config.model.duration_unit = 1.0
    config.model.text_limit = 512
    config.model.keep_description = True
    config.model.length = 2048
    config.model.shared_embed = False
    config.model.head = "window"
    config.model.open_heads = False
    config.model.segments = False
    config.model.prefix_dropout = 0.0
    config.model.z_loss = 0.0
    config.model.codec_tables = False
    config.model.prompt_dropout = 0.1
    config.model.layers = 24
    config.model.width = 1024
    config.model.heads = 16
    config.model.kv_heads = 16
    config.model.head_dim = 64
    config.model.norm = "rms"
    config.model.ffn = "swiglu"
    config.model.ffn_width = 2816
    config.model.bias = "none"
    config.model.qk_norm = "none"
    config.model.positions = "rotary"
    config.model.ticks = 150
    config.model.rope_base = 10_000.0
    config.model.base_width = 0
    config.model.dropout = 0.0
    config.model.dtype = "bfloat16"
    config.model.remat = "none"

    config.train.steps = 200_000
    config.train.batch_size = 128
    config.train.learning_rate = 3e-4
    config.train.schedule = "cosine"
    config.train.warmup_steps = 2000
    config.train.final_share = 0.1
    config.train.optimiser = "adamw"
    config.train.betas = (0.9, 0.95)
    config.train.weight_decay = 0.1
    config.train.clip_norm = 1.0
    config.train.valid_every = 2000
    config.train.checkpoint_every = 2000

    config.sampling = ConfigDict({"temperature": 1.0, "top_k": 250, "top_p": 1.0, "guidance": 1.0})

    match preset:
        case "base":
            pass
        case "small":
            config.model.layers = 12
            config.model.width = 768
            config.model.heads = 12
            config.model.kv_heads = 4
            config.model.ffn_width = 2048
            config.train.steps = 100_000
            config.train.batch_size = 16
        case "tiny":
            config.data.crop = "start"
            config.model.levels = 2
            config.model.codec_tables = True
            config.model.text_limit = 128
            config.model.keep_description = False
            config.model.prompt_dropout = 0.0
            config.model.length = 736
            config.model.layers = 3
            config.model.width = 128
            config.model.heads = 2
            config.model.kv_heads = 1
            config.model.ffn_width = 256
            config.model.dtype = "float32"
            config.sampling.top_k = 15
            config.train.steps = 320
            config.train.batch_size = 8
            config.train.optimiser = "muon"
            config.train.learning_rate = 6e-3
            config.train.warmup_steps = 20
            config.train.ema_decay = 0.98
            config.train.log_every = 10
            config.train.valid_every = 160
            config.train.valid_batches = 1
            config.train.checkpoint_every = 160
        case _:
            raise UserError(f"unknown preset '{preset}' of configs/tokens/lm.py: choose tiny, small or base")
    config.prefix = ConfigDict()
    config.tokens = codec.tokens("tiny" if preset == "tiny" else "small")
    return config
