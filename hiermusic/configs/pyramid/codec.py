"""PyramidCodec's codec: three levels of codes at 10.77, 21.53 and 43.07 Hz over 22.05 kHz mono (EMNLP Findings 2024).

    hiermusic train --config=configs/pyramid/codec.py:tiny --workdir=out/codec --config.data.path=FOLDER_OF_MUSIC

| preset | where                  | expect                                                                       |
|--------|------------------------|------------------------------------------------------------------------------|
| tiny   | two CPU cores, minutes | the paper's levels, 108 tokens of 256 codes a second; no discriminator       |
| small  | one GPU, days          | untried; half the widths of paper                                            |
| paper  | GPUs                   | plain transposed convolutions and no mel branch, as large as DAC             |
| code   | as paper               | the released code: heavy upsamplers and a mel branch                         |
| dac    | as paper               | the baseline: DAC at 22.05 kHz, 76.65 M parameters, 9 codebooks at 43.07 Hz  |
"""

import math
from dataclasses import asdict

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from hiermusic.configs import common
from hiermusic.errors import UserError
from hiermusic.tokens.facts import TokenFacts


def get_config(preset: str = "tiny") -> ConfigDict:
    """The configuration of a preset: tiny, small, paper, code or dac."""
    config = common.config("pyramid", "codec", preset)

    config.data = ConfigDict()
    config.data.path = "builtin:40"
    config.data.kind = "auto"
    config.data.valid_fraction = 0.1
    config.data.segment_seconds = 10.0
    config.data.stems = ("mix",)

    config.model = ConfigDict()
    config.model.sample_rate = 22_050
    config.model.channels = 1
    config.model.fold = 1
    config.model.strides = (4, 4, 4, 4, 2)
    config.model.dilations = (1, 3, 9)
    config.model.encoder_width = 48
    config.model.decoder_width = 1536
    config.model.latent = 512
    config.model.init = "dac"
    config.model.tanh = True
    config.model.quantiser = "pyramid"
    config.model.books = (1, 1, 1)
    config.model.level_strides = (2, 2, 1)
    config.model.heavy = False
    config.model.residual = False
    config.model.codebooks = "factorised"
    config.model.codes = 1024
    config.model.code_width = 8
    config.model.decay = 0.99
    config.model.kmeans_iterations = 0
    config.model.dead_share = 0.0
    config.model.quantiser_dropout = 0.0
    config.model.noise_db = ()
    config.model.mel_bands = 0
    config.model.mel_width = 0
    config.model.mel_finest = False
    config.model.dtype = "float32"
    config.model.remat = "none"

    config.discriminator = ConfigDict()
    config.discriminator.periods = (2, 3, 5, 7, 11)
    config.discriminator.period_widths = (32, 128, 512, 1024, 1024)
    config.discriminator.fft_sizes = (2048, 1024, 512)
    config.discriminator.bands = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
    config.discriminator.filters = 32

    config.loss = ConfigDict()
    config.loss.waveform = 0.0
    config.loss.stft = 0.0
    config.loss.mel = 10.0
    config.loss.mel_start = 2.0
    config.loss.mel_steps = 10_000
    config.loss.mel_windows = (32, 64, 128, 256, 512, 1024, 2048)
    config.loss.mel_bands = (5, 10, 20, 40, 80, 160, 320)
    config.loss.adversarial = 1.0
    config.loss.feature = 2.0
    config.loss.adversary = "least_squares"
    config.loss.commitment = 1.0
    config.loss.level_weights = (0.2, 0.3, 0.5)
    config.loss.floor_db = -60.0
    config.loss.balance = False

    config.train.steps = 400_000
    config.train.batch_size = 16
    config.train.crop_frames = 160
    config.train.learning_rate = 1e-4
    config.train.schedule = "exponential"
    config.train.gamma = 0.999996
    config.train.warmup_steps = 0
    config.train.optimiser = "adamw"
    config.train.betas = (0.8, 0.99)
    config.train.weight_decay = 0.01
    config.train.clip_norm = 1000.0
    config.train.discriminator_clip_norm = 10.0
    config.train.quantise_start = 0
    config.train.adversarial_start = 0
    config.train.decoder_start = placeholder(int)  # none: all is trained to the end
    config.train.discriminator_updates = (1, 1)
    config.train.log_every = 50
    config.train.valid_every = 5000
    config.train.checkpoint_every = 5000
    config.train.show_every = 5000

    match preset:
        case "paper":
            pass
        case "code":
            config.model.strides = (4, 4, 4, 4)
            config.model.level_strides = (2, 2, 2)
            config.model.encoder_width = 64
            config.model.decoder_width = 1024
            config.model.latent = 1024
            config.model.heavy = True
            config.model.mel_bands = 100
            config.model.mel_width = 64
            config.train.crop_frames = 320
        case "dac":
            config.model.quantiser = "residual"
            config.model.strides = (2, 4, 8, 8)
            config.model.encoder_width = 64
            config.model.latent = 1024
            config.model.books = (9,)
            config.model.quantiser_dropout = 0.5
            config.loss.mel = config.loss.mel_start = 15.0
            config.loss.level_weights = (1.0,)
        case "small":
            config.model.encoder_width = 24
            config.model.decoder_width = 768
            config.model.latent = 256
        case "tiny":
            config.model.fold = 32
            config.model.strides = (4, 4)
            config.model.dilations = (1, 3)
            config.model.decoder_width = 192
            config.model.latent = 128
            config.model.init = "fan_in"
            config.model.tanh = False
            config.model.books = (2, 2, 1)
            config.model.residual = True
            config.model.mel_bands = 16
            config.model.mel_finest = True
            config.model.codebooks = "averaged"
            config.model.codes = 256
            config.model.decay = 0.97
            config.model.kmeans_iterations = 10
            config.model.dead_share = 0.1
            config.discriminator.periods = (2,)
            config.discriminator.period_widths = (4, 4)
            config.discriminator.fft_sizes = (512,)
            config.discriminator.filters = 4
            config.loss.waveform = 10.0
            config.loss.mel = 0.3
            config.loss.mel_start = 0.0  # else noise is learnt before the waveform, and stands in its way
            config.loss.mel_steps = 300
            config.loss.mel_windows = (128, 512, 2048)
            config.loss.mel_bands = (20, 80, 320)
            config.loss.adversarial = 0.0
            config.loss.feature = 0.0
            config.train.steps = 1100
            config.train.batch_size = 8
            config.train.crop_frames = 32
            config.train.learning_rate = 2e-3
            config.train.schedule = "cosine"
            config.train.warmup_steps = 50
            config.train.optimiser = "adam"
            config.train.ema_decay = 0.98
            config.train.quantise_start = 500
            config.train.decoder_start = 800
            config.train.log_every = 20
            config.train.valid_every = 400
            config.train.valid_batches = 2
            config.train.checkpoint_every = 400
            config.train.show_every = 1100
        case _:
            raise UserError(
                f"unknown preset '{preset}' of configs/pyramid/codec.py: choose tiny, small, paper, code or dac"
            )
    return config


def tokens(preset: str) -> ConfigDict:
    """What a token model says of its tokens, those of the codec of this preset, until records say it."""
    model = get_config(preset).model
    hop = model.fold * math.prod(model.strides)
    levels, codes, latent = sum(model.books), model.codes, model.latent
    if model.quantiser == "residual":
        return ConfigDict(asdict(TokenFacts(model.sample_rate, hop, "residual", levels, codes, latent)))
    counts = [math.prod(model.level_strides[:level]) for level in range(len(model.books))]
    scales = tuple(n for n, books in zip(counts, model.books, strict=True) for _ in range(books))
    finest = hop * model.level_strides[-1]
    return ConfigDict(asdict(TokenFacts(model.sample_rate, finest, "pyramid", levels, codes, latent, scales)))
