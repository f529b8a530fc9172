"""Khala's codec: 64 residual vector quantisers at 21.53 frames a second over 44.1 kHz stereo.

    hiermusic train --config=configs/khala/codec.py:tiny --workdir=out/codec --config.data.path=FOLDER_OF_MUSIC

| preset | where                      | expect                                                                    |
|--------|----------------------------|---------------------------------------------------------------------------|
| tiny   | two CPU cores, ~5 minutes  | 22 kHz mono, 43 frames/s; built-in songs at 10.5 dB SI-SDR with all levels |
| music  | as tiny, ~10 minutes       | tiny for music that was recorded: 32 recordings at 14.8 dB with all levels  |
| small  | one GPU, days              | untried; a third to a quarter of the paper's widths, its whole objective   |
| paper  | a pod, 2.49 M steps        | the published sizes: encoder 78.56 M, decoder 177.71 M, quantiser 8.39 M   |
| 3b, 7b | as paper                   | the codec that the token models of that name read: paper's                 |

Figures measured for each preset stand in docs/results.md. Loss weights, learning rate and crop are not in the paper:
they follow EnCodec's published recipe, which it builds on. Dead codes are replaced below a share of their uniform use;
the release's absolute threshold of 2 would be `model.dead_share=0.74` at this batch and is not the default.
`tiny` is for the demo's songs, whose strokes have to reach the first two levels; what it does for them costs recorded
music 7 dB, and `music` leaves it out. Token models of either are `tiny`.
"""

import math
from dataclasses import asdict

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from hiermusic.configs import common
from hiermusic.errors import UserError
from hiermusic.tokens.facts import TokenFacts


def get_config(preset: str = "tiny") -> ConfigDict:
    """The configuration of a preset: tiny, small or paper; 3b and 7b are token models that read the codec of paper."""
    config = common.config("khala", "codec", preset)

    config.data = ConfigDict()
    config.data.path = "builtin:40"
    config.data.kind = "auto"
    config.data.valid_fraction = 0.1
    config.data.segment_seconds = 10.0
    config.data.stems = ("mix",)

    config.model = ConfigDict()
    config.model.sample_rate = 44100
    config.model.channels = 2
    config.model.fold = 1
    config.model.strides = (4, 8, 8, 8)
    config.model.dilations = (1, 3, 9)
    config.model.encoder_width = 128
    config.model.decoder_width = 3072
    config.model.latent = 128
    config.model.init = "dac"
    config.model.levels = 64
    config.model.codes = 1024
    config.model.decay = 0.99
    config.model.dead_share = 0.3
    config.model.kmeans_iterations = 50
    config.model.quantiser_dropout = "off"
    config.model.noise_db = ()
    config.model.mel_bands = 0
    config.model.dtype = "float32"
    config.model.remat = "none"

    config.discriminator = ConfigDict()
    config.discriminator.fft_sizes = (78, 126, 206, 334, 542, 876, 1418, 2296)
    config.discriminator.filters = 128

    config.loss = ConfigDict()
    config.loss.waveform = 0.1
    config.loss.stft = 2.0
    config.loss.stft_sizes = config.discriminator.fft_sizes
    config.loss.mel = 0.0
    config.loss.adversarial = 4.0
    config.loss.feature = 4.0
    config.loss.commitment = 1.0
    config.loss.floor_db = -60.0
    config.loss.balance = True

    config.train.steps = 2_490_000
    config.train.batch_size = 64
    config.train.crop_frames = 43
    config.train.learning_rate = 3e-4
    config.train.schedule = "constant"
    config.train.warmup_steps = 1000
    config.train.final_share = 1.0
    config.train.optimiser = "adam"
    config.train.betas = (0.5, 0.9)
    config.train.weight_decay = 0.0
    config.train.clip_norm = 0.0
    config.train.ema_decay = 0.999
    config.train.quantise_start = 0
    config.train.adversarial_start = 0
    config.train.decoder_start = placeholder(int)  # none: all is trained to the end
    config.train.discriminator_updates = (1, 1)
    config.train.log_every = 50
    config.train.valid_every = 5000
    config.train.checkpoint_every = 5000
    config.train.show_every = 5000

    match preset:
        case "paper" | "3b" | "7b":
            pass
        case "small":
            config.model.encoder_width = 48
            config.model.decoder_width = 768
            config.discriminator.filters = 32
            config.train.steps = 400_000
            config.train.batch_size = 32
        case "tiny" | "music":
            config.model.sample_rate = 22_050
            config.model.channels = 1
            config.model.fold = 32
            config.model.strides = (4, 4)
            config.model.dilations = (1, 3)
            config.model.encoder_width = 48
            config.model.decoder_width = 192
            config.model.init = "fan_in"
            config.model.codes = 256
            config.model.decay = 0.97
            config.model.noise_db = (-4.0, 20.0)
            config.model.mel_bands = 16
            config.model.kmeans_iterations = 10
            config.discriminator.fft_sizes = (206, 1418)
            config.discriminator.filters = 4
            config.loss.waveform = 10.0
            config.loss.stft = 0.0
            config.loss.stft_sizes = config.discriminator.fft_sizes
            config.loss.mel = 0.08
            config.loss.adversarial = 0.0
            config.loss.feature = 0.0
            config.loss.balance = False
            config.train.steps = 800
            config.train.batch_size = 8
            config.train.crop_frames = 32
            config.train.learning_rate = 2e-3
            config.train.schedule = "cosine"
            config.train.final_share = 0.1
            config.train.warmup_steps = 50
            config.train.ema_decay = 0.98
            config.train.quantise_start = 550
            config.train.log_every = 20
            config.train.valid_every = 400
            config.train.valid_batches = 2
            config.train.checkpoint_every = 400
            config.train.show_every = 800
        case _:
            choices = "tiny, music, small, paper, 3b or 7b"
            raise UserError(f"unknown preset '{preset}' of configs/khala/codec.py: choose {choices}")
    if preset == "music":
        config.model.noise_db = ()
        config.model.mel_bands = 0
        config.train.spike_sigma = 6.0
        config.loss.mel = 0.2
        config.train.steps = 1000
        config.train.quantise_start = 650
        config.train.valid_every = 500
        config.train.checkpoint_every = 500
        config.train.show_every = 1000
    return config


def tokens(preset: str) -> ConfigDict:
    """What a token model says of its tokens, those of the codec of this preset, until records say it."""
    model = get_config(preset).model
    hop = model.fold * math.prod(model.strides)
    facts = TokenFacts(model.sample_rate, hop, "residual", model.levels, model.codes, model.latent)
    return ConfigDict(asdict(facts))
