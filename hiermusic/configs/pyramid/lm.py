"""PyramidCodec's language model: the whole coarse level, then the next, of what its codec makes (EMNLP Findings 2024).

    hiermusic train --config=configs/pyramid/lm.py:tiny --workdir=out/lm --config.data.path=TOKENS

| preset | where                  | expect                                                                |
|--------|------------------------|-----------------------------------------------------------------------|
| tiny   | two CPU cores, minutes | fewer bits than counting codes; takes tags                            |
| small  | one GPU, days          | untried; the paper's layers, half its context, words, rotary positions |
| paper  | one GPU, 500 k steps   | GPT-2's shape without words, 14,004 positions: 185.8 s of music       |

A row is `BOS level-0 MARK level-1 MARK level-2`, and lasts as long as `model.length` allows: of 14,004 positions the
codes take 14,000, and the last is that of the paper's end, which a song of a known length has no need of. A level's
mark stands where it begins (`model.separators`); like the end it is read and never predicted. The paper's three levels
share the ids of their codes (`model.shared_embed`, and `model.head=shared`, one table each); `small` and `tiny` give
every level its own. `model.positions` is learned or rotary, in `tiny` by the time at which a token sounds. Behind
14,004 learned positions the paper has 85,996 more that no row reaches, which are left out; its tables are tied, ours
are not.

The three-stage variant is a model for each level, of which the coarser ones are given: `--config.model.levels=1`, then
`--config.model.levels=2 --config.model.given=1`, then `--config.model.levels=3 --config.model.given=2`. Songs are made
by `hiermusic generate --lm=FIRST --finer_lms=SECOND,THIRD`.

Sampling is at temperature 1.0, of which the paper's listeners judged the songs (it measures 0.8 and 1.3 too), among the
100 likeliest codes, as its code draws them. `sampling.temperature` is one number, which may go evenly to
`sampling.final_temperature` at the last level, or one for each level (`tiny`).
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from hiermusic.configs import common
from hiermusic.configs.pyramid import codec
from hiermusic.errors import UserError


def get_config(preset: str = "tiny") -> ConfigDict:
    """The configuration of a preset: tiny, small or paper."""
    config = common.config("pyramid", "lm", preset)

    config.data = ConfigDict()
    config.data.path = ""
    config.data.codec = ""
    config.data.crop = "random"

    config.model = ConfigDict()
    config.model.levels = 0
    config.model.pattern = "level_major"
    config.model.separators = True
    config.model.given = 0
    config.model.tokenizer = "none"
    config.model.tokenizer_file = ""
    config.model.duration_unit = 60.0
    config.model.text_limit = 512
    config.model.keep_description = True
    config.model.length = 14_004
    config.model.shared_embed = True
    config.model.head = "shared"
    config.model.z_loss = 0.0
    config.model.codec_tables = False
    config.model.prompt_dropout = 0.0
    config.model.layers = 6
    config.model.width = 768
    config.model.heads = 8
    config.model.kv_heads = 8
    config.model.head_dim = 96
    config.model.norm = "layer"
    config.model.ffn = "gelu"
    config.model.ffn_width = 3072
    config.model.bias = "none"
    config.model.qk_norm = "none"
    config.model.positions = "learned"
    config.model.rope_base = 10_000.0
    config.model.base_width = 0
    config.model.dropout = 0.0
    config.model.dtype = "bfloat16"
    config.model.remat = "full"

    config.train.steps = 500_000
    config.train.batch_size = 6
    config.train.learning_rate = 6e-4
    config.train.schedule = "cosine"
    config.train.decay_steps = 600_000
    config.train.warmup_steps = 2000
    config.train.final_share = 0.1
    config.train.optimiser = "adamw"
    config.train.betas = (0.9, 0.95)
    config.train.weight_decay = 1e-3
    config.train.clip_norm = 1.0
    config.train.valid_every = 2000
    config.train.checkpoint_every = 2000

    config.sampling = ConfigDict({"temperature": 1.0, "top_k": 100, "top_p": 1.0, "guidance": 1.0, "levels": 0})
    config.sampling.final_temperature = placeholder(float)  # none: the same for all levels

    match preset:
        case "paper":
            pass
        case "small":
            config.model.tokenizer = "bytes"
            config.model.length = 7680
            config.model.shared_embed = False
            config.model.head = "window"
            config.model.norm = "rms"
            config.model.ffn = "swiglu"
            config.model.ffn_width = 2048
            config.model.positions = "rotary"
            config.model.prompt_dropout = 0.1
            config.train.steps = 100_000
            config.train.decay_steps = 0
            config.train.batch_size = 16
        case "tiny":
            config.data.crop = "start"
            config.model.tokenizer = "bytes"
            config.model.duration_unit = 1.0
            config.model.text_limit = 128
            config.model.keep_description = False  # the built-in songs' tags say more in fewer letters
            config.model.length = 970
            config.model.shared_embed = False
            config.model.head = "window"
            config.model.codec_tables = True
            config.model.layers = 3
            config.model.width = 128
            config.model.heads = 2
            config.model.kv_heads = 1
            config.model.head_dim = 64
            config.model.norm = "rms"
            config.model.ffn = "swiglu"
            config.model.ffn_width = 256
            config.model.positions = "rotary_aligned"
            config.model.dtype = "float32"
            config.model.remat = "none"
            # the finer of the waveform's codebooks are noise when drawn; of loudness the likeliest is that of no stroke
            with config.sampling.ignore_type():
                config.sampling.temperature = (0.8, 0.5, 0.2, 0.0, 1.0)
            config.sampling.top_k = 15
            config.train.steps = 200
            config.train.decay_steps = 0
            config.train.batch_size = 8
            config.train.optimiser = "muon"
            config.train.learning_rate = 6e-3
            config.train.warmup_steps = 20
            config.train.ema_decay = 0.98
            config.train.log_every = 10
            config.train.valid_every = 100
            config.train.valid_batches = 1
            config.train.checkpoint_every = 100
        case _:
            raise UserError(f"unknown preset '{preset}' of configs/pyramid/lm.py: choose tiny, small or paper")
    config.tokens = codec.tokens(preset)
    return config
