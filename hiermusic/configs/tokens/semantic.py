"""A tokenizer of meaning: k-means over an encoder's features, one token a frame of 20 ms (50 Hz).

    hiermusic import hubert FOLDER out/hubert
    hiermusic train --config=configs/tokens/semantic.py:hubert --workdir=out/semantic \\
      --config.model.encoder=out/hubert --config.data.path=FOLDER_OF_MUSIC
    hiermusic tokenize --stream=vocals/semantic:out/semantic --data=out/corpus --out=out/tokens

| preset  | what                                                                                            |
|---------|-------------------------------------------------------------------------------------------------|
| tiny    | 64 clusters of log-mel bands, on two CPU cores in seconds; needs no weights of others             |
| chroma  | 128 clusters of pitch classes, 25 a second, likewise: tokens of harmony, which know no phonemes     |
| log_mel | 500 clusters of log-mel bands: tokens of colour, which know no phonemes                          |
| hubert  | 500 clusters of HuBERT's features at layer 9, as HAFM has them; give the model by `model.encoder`  |

`model.encoder` is `log_mel`, `chroma` or the folder of an imported HuBERT, `model.layer` the layer whose features are
clustered. `data.stems` are those that are heard, of records or folders that have them: all that will be tokenized.
One step is one batch of mini-batch k-means: the first batch's own k-means, then each cluster at the mean of all points
that were ever its own. `model.window` is how many seconds are heard at once when sounds are tokenized; training hears
crops of `train.crop_seconds`.
"""

from ml_collections import ConfigDict

from hiermusic.configs import common
from hiermusic.errors import UserError


def get_config(preset: str = "tiny") -> ConfigDict:
    """The configuration of a preset: tiny, chroma, log_mel or hubert."""
    config = common.config("tokens", "semantic", preset)

    config.data = ConfigDict()
    config.data.path = "builtin:40"
    config.data.kind = "auto"
    config.data.valid_fraction = 0.1
    config.data.segment_seconds = 10.0
    config.data.stems = ("mix",)

    config.model = ConfigDict()
    config.model.encoder = "log_mel"
    config.model.layer = 9
    config.model.codes = 500
    config.model.window = 10.0
    config.model.dead_share = 0.02
    config.features = ConfigDict()  # what `model.encoder` is made of, learnt from its folder

    config.train.crop_seconds = 10.0
    config.train.steps = 2000
    config.train.batch_size = 20  # 9,980 frames: scikit-learn's mini-batches of 10,000
    config.train.valid_every = 200
    config.train.valid_batches = 4

    match preset:
        case "hubert":
            config.model.encoder = ""
        case "log_mel":
            pass
        case "chroma":
            config.model.encoder = "chroma"
            config.model.codes = 128
            config.train.crop_seconds = 4.0
            config.train.steps = 100
            config.train.batch_size = 32
            config.train.log_every = 10
            config.train.valid_every = 50
            config.train.valid_batches = 1
            config.train.checkpoint_every = 50
        case "tiny":
            config.model.codes = 64
            config.train.crop_seconds = 2.0
            config.train.steps = 50
            config.train.batch_size = 8
            config.train.log_every = 10
            config.train.valid_every = 25
            config.train.valid_batches = 1
            config.train.checkpoint_every = 25
        case _:
            presets = "tiny, chroma, log_mel or hubert"
            raise UserError(f"unknown preset '{preset}' of configs/tokens/semantic.py: choose {presets}")
    return config
