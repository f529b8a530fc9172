"""HAFM's first stage (arXiv 2604.09054): what the accompaniment means, behind what the vocal means.

    hiermusic tokenize --stream=vocals/semantic:SEMANTIC --stream=instrumental/semantic:SEMANTIC \\
      --stream=instrumental/codes:CODEC --vocal_noise=0.01 --data=CORPUS --out=out/tokens
    hiermusic train --config=configs/hafm/semantic.py:tiny --workdir=out/semantic --config.data.path=out/tokens

| preset | where                  | expect                                                          |
|--------|------------------------|-----------------------------------------------------------------|
| tiny   | two CPU cores, minutes | a third of the bits of counting codes; 7 s                      |
| small  | one GPU, days          | untried; 10 s, a model of 38 M parameters                       |
| paper  | GPUs, 200 k steps      | untried; 10 s, 998 positions, 86 M parameters                   |

`data.path` is a folder of streams, `data.stream` the one that is predicted, `data.prefix` those that are read in front.
The next stages are `coarse.py` and `fine.py`; their recipes are this one's. The paper tells neither sizes nor recipe:
they are taken from its relatives, and told apart in docs/hafm.md from what it does tell.

`model.positions` is `t5` or `t5_aligned`: T5's buckets of distances between positions, as the paper has them, or
between moments of a grid of `model.ticks` a second, with a bias for every pair of streams besides.
`model.prefix_dropout` is the chance that a row's whole prefix is left out, for which the model learns a null: what
guidance moves away from.
"""

from dataclasses import asdict

from ml_collections import ConfigDict

from hiermusic.configs import common
from hiermusic.errors import UserError
from hiermusic.tokens.facts import TokenFacts

VOCAL, SEMANTIC, CODES = "vocals/semantic", "instrumental/semantic", "instrumental/codes"
_MEANING = {  # until records say it: tokens of HuBERT, or of pitch classes
    "tiny": TokenFacts(16_000, 640, "residual", 1, 128, 14),
    "paper": TokenFacts(16_000, 320, "residual", 1, 500, 768),
}
_SOUND = {  # EnCodec's, or those of configs/khala/codec.py:tiny at 25 frames a second
    "tiny": TokenFacts(16_000, 640, "residual", 4, 256, 128),
    "paper": TokenFacts(24_000, 320, "residual", 8, 1024, 128),
}


def get_config(preset: str = "tiny") -> ConfigDict:
    """The configuration of a preset: tiny, small or paper."""
    config = base("semantic", preset)
    config.data.stream = SEMANTIC
    config.data.prefix = (VOCAL,)
    config.model.length = 350 if preset == "tiny" else 998
    config.tokens, config.prefix = meaning(preset), ConfigDict({"0": meaning(preset)})
    return config


def meaning(preset: str) -> ConfigDict:
    """What a preset says of its semantic tokens, until records say it."""
    return ConfigDict(asdict(_MEANING["tiny" if preset == "tiny" else "paper"]))


def sound(preset: str) -> ConfigDict:
    """What a preset says of its acoustic codes, until records say it."""
    return ConfigDict(asdict(_SOUND["tiny" if preset == "tiny" else "paper"]))


def base(stage: str, preset: str) -> ConfigDict:
    """What all three stages are like; each then says what it reads and predicts, and in how many positions."""
    config = common.config("hafm", stage, preset)

    config.data = ConfigDict()
    config.data.path = ""
    config.data.codec = ""
    config.data.prefix_codecs = ()
    config.data.prefix_noise = ()
    config.data.crop = "random"

    config.model = ConfigDict()
    config.model.levels = 0
    config.model.given = 0
    config.model.pattern = "flatten"
    config.model.tokenizer = "none"
    config.model.head = "window"
    config.model.open_heads = True
    config.model.segments = True
    config.model.prefix_dropout = 0.1
    config.model.codec_tables = False
    config.model.z_loss = 0.0
    config.model.layers = 12
    config.model.width = 768
    config.model.heads = 12
    config.model.kv_heads = 12
    config.model.head_dim = 64
    config.model.norm = "rms"
    config.model.ffn = "geglu"
    config.model.ffn_width = 2048
    config.model.bias = "none"
    config.model.qk_norm = "rms"
    config.model.positions = "t5"
    config.model.ticks = 150
    config.model.rope_base = 10_000.0
    config.model.base_width = 0
    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"
    config.model.remat = "none"

    config.train.steps = 200_000
    config.train.batch_size = 32
    config.train.learning_rate = 3e-4
    config.train.schedule = "cosine"
    config.train.warmup_steps = 3000
    config.train.final_share = 0.0
    config.train.optimiser = "adamw"
    config.train.betas = (0.9, 0.95)
    config.train.weight_decay = 0.01
    config.train.clip_norm = 1.0
    config.train.valid_every = 2000
    config.train.checkpoint_every = 2000

    config.sampling = ConfigDict({"temperature": 0.9, "top_k": 250, "top_p": 1.0, "guidance": 3.0})

    match preset:
        case "paper":
            pass
        case "small":
            config.model.layers = 12
            config.model.width = 512
            config.model.heads = 8
            config.model.kv_heads = 8
            config.model.ffn_width = 1344
            config.train.steps = 100_000
            config.train.batch_size = 16
        case "tiny":
            config.model.layers = 3
            config.model.width = 128
            config.model.heads = 4
            config.model.kv_heads = 4
            config.model.head_dim = 32
            config.model.ffn_width = 256
            config.model.positions = "t5_aligned"
            config.model.dropout = 0.0
            config.model.dtype = "float32"
            config.sampling.top_k = 30
            config.train.steps = {"semantic": 300, "coarse": 300, "fine": 120}[stage]
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
            raise UserError(f"unknown preset '{preset}' of configs/hafm/{stage}.py: choose tiny, small or paper")
    return config
