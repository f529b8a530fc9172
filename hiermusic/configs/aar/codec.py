"""SAT: a second of 24 kHz audio in 16 scales of 1 to 75 tokens (arXiv 2408.09027), or residual codes by its trunk.

    hiermusic train --config=configs/aar/codec.py:tiny --workdir=out/sat --config.data.path=FOLDER_OF_MUSIC

| preset   | where                    | expect                                                                     |
|----------|--------------------------|----------------------------------------------------------------------------|
| tiny     | two CPU cores, minutes   | the paper's scales of 256 codes each; built-in songs at 4.7 dB               |
| small    | one GPU, a day           | untried; half the paper's width                                             |
| paper    | GPUs, 100 epochs         | 21.63 M parameters, 455 tokens a second: the release with the best sound    |
| paper128 | as paper                 | 15.74 M parameters: the release whose tokens AAR models                     |

For the codec that the baseline reads: `--config.model.quantiser=residual --config.model.levels=10`, 750 tokens/s (at
`tiny` 6, 450 tokens/s). Its rows are frames, its codes as wide as `model.latent`, and each level learns from what was
left for it: `window`, `schedule`, `scales`, `code_latent`, `phi*`, `gamma`, `straight_through`, `quantiser_objective`
and `windowed` say nothing.

Where the paper and the released code (qiuk2/AAR) differ, the code's number stands and the paper's is told here:
  * `loss.mel` is 1 in the code, 3 in the paper.
  * `loss.adversarial` is 3 in both, but the code divides by the number of discriminators twice: 0.6 gives its effect.
  * `model.straight_through`: "per_level" passes the encoder the gradient 16 times over, as the code does by mistake.
  * `model.quantiser_objective`: "residual" compares each level with what was left for it, as the code does; "running"
    compares the sums so far with the whole, as in VAR (arXiv 2404.02905).
  * The code's restart of dead codes has no effect (it is overwritten); here it works, below `model.dead_share`.
"""

import math
from dataclasses import asdict

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from hiermusic.configs import common
from hiermusic.errors import UserError
from hiermusic.tokens.facts import TokenFacts
from hiermusic.tokens.scales import schedule


def get_config(preset: str = "tiny") -> ConfigDict:
    """The configuration of a preset: tiny, small, paper or paper128."""
    config = common.config("aar", "codec", preset)

    config.data = ConfigDict()
    config.data.path = "builtin:40"
    config.data.kind = "auto"
    config.data.valid_fraction = 0.1
    config.data.segment_seconds = 10.0
    config.data.stems = ("mix",)

    config.model = ConfigDict()
    config.model.sample_rate = 24_000
    config.model.channels = 1
    config.model.fold = 1
    config.model.strides = (2, 4, 5, 8)
    config.model.width = 32
    config.model.lstm_layers = 2
    config.model.latent = 1024
    config.model.init = "fan_in"
    config.model.quantiser = "multiscale"
    config.model.levels = 16
    config.model.codes = 1024
    config.model.window = 75
    config.model.schedule = "quadratic"
    config.model.scales = ()
    config.model.code_latent = 64
    config.model.phi = "partial"
    config.model.phi_count = 6
    config.model.phi_kernel = 9
    config.model.gamma = 0.5
    config.model.decay = 0.99
    config.model.kmeans_iterations = 50
    config.model.dead_share = 0.02
    config.model.straight_through = "once"
    config.model.quantiser_objective = "residual"
    config.model.windowed = True
    config.model.noise_db = ()
    config.model.mel_bands = 0
    config.model.dtype = "float32"
    config.model.remat = "none"

    config.discriminator = ConfigDict()
    config.discriminator.fft_sizes = (1024, 2048, 512, 256, 128)
    config.discriminator.filters = 32
    config.discriminator.hop = 0.25

    config.loss = ConfigDict()
    config.loss.waveform = 0.1
    config.loss.stft = 0.0
    config.loss.stft_sizes = (78, 126, 206, 334, 542, 876, 1418, 2296)
    config.loss.mel = 1.0
    config.loss.mel_windows = (32, 64, 128, 256, 512, 1024, 2048)
    config.loss.mel_bands = 64
    config.loss.mel_power = True
    config.loss.mel_square = 1.0
    config.loss.mel_center = False
    config.loss.adversarial = 3.0
    config.loss.feature = 3.0
    config.loss.rectify = True
    config.loss.commitment = 1.0
    config.loss.floor_db = -60.0
    config.loss.balance = False

    config.train.steps = 130_000
    config.train.batch_size = 1536
    config.train.crop_frames = 75
    config.train.learning_rate = 3e-4
    config.train.schedule = "cosine"
    config.train.warmup_steps = 2600
    config.train.final_share = 0.0
    config.train.optimiser = "adam"
    config.train.betas = (0.5, 0.9)
    config.train.weight_decay = 0.0
    config.train.clip_norm = 1.0
    config.train.quantise_start = 0
    config.train.adversarial_start = 0
    config.train.decoder_start = placeholder(int)  # none: all is trained to the end
    config.train.discriminator_updates = (2, 3)
    config.train.log_every = 50
    config.train.valid_every = 5000
    config.train.checkpoint_every = 5000
    config.train.show_every = 5000

    match preset:
        case "paper":
            pass
        case "paper128":
            config.model.latent = 128
            config.model.code_latent = 128
        case "small":
            config.model.width = 16
            config.model.latent = 128
            config.model.code_latent = 64
            config.train.steps = 100_000
            config.train.batch_size = 64
            config.train.warmup_steps = 1000
        case "tiny":
            config.model.fold = 16
            config.model.strides = (4, 5)
            config.model.width = 48
            config.model.lstm_layers = 1
            config.model.latent = 48
            config.model.code_latent = 48
            config.model.codes = 256
            config.model.decay = 0.97
            config.model.dead_share = 0.3
            config.model.kmeans_iterations = 10
            config.model.windowed = False
            config.model.noise_db = (-4.0, 20.0)
            config.model.mel_bands = 16
            config.discriminator.fft_sizes = (512, 128)
            config.discriminator.filters = 4
            config.loss.waveform = 10.0
            config.loss.mel = 0.1
            config.loss.mel_windows = (128, 512, 2048)
            config.loss.adversarial = 0.0
            config.loss.feature = 0.0
            config.train.steps = 400
            config.train.batch_size = 8
            config.train.learning_rate = 2e-3
            config.train.final_share = 0.1
            config.train.warmup_steps = 50
            config.train.ema_decay = 0.98
            config.train.quantise_start = 280
            config.train.log_every = 20
            config.train.valid_every = 200
            config.train.valid_batches = 2
            config.train.checkpoint_every = 200
            config.train.show_every = 400
        case _:
            raise UserError(f"unknown preset '{preset}' of configs/aar/codec.py: choose tiny, small, paper or paper128")
    return config


def tokens(preset: str, levels: int = 0) -> ConfigDict:
    """What a token model says of its tokens, those of the codec of this preset, until records say it.

    Args:
      preset: of the codec.
      levels: of a residual quantiser on the same trunk; 0 for the preset's own quantiser.
    """
    model = get_config(preset).model
    heard = (model.sample_rate, model.fold * math.prod(model.strides))
    if levels:
        return ConfigDict(asdict(TokenFacts(*heard, "residual", levels, model.codes, model.latent)))
    scales = tuple(model.scales) or schedule(model.schedule, model.window, model.levels)
    phi = (model.phi, model.phi_count, model.phi_kernel, model.gamma)
    facts = TokenFacts(*heard, "multiscale", model.levels, model.codes, model.code_latent, scales, *phi)
    return ConfigDict(asdict(facts))
