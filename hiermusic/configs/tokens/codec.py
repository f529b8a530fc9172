"""The codecs that the world has, to train, or to go on from: EnCodec (arXiv 2210.13438), DAC (arXiv 2306.06546),
SpectroStream (arXiv 2508.05207).

    hiermusic import encodec FOLDER out/encodec
    hiermusic train --config=configs/tokens/codec.py:encodec_24khz --workdir=out/mine --config.init_from=out/encodec \\
      --config.data.path=FOLDER_OF_MUSIC

| preset           | what                                                                                 |
|------------------|--------------------------------------------------------------------------------------|
| tiny             | two CPU cores, untried; DAC's design at 22 kHz, 4 levels of 256 codes at 43 frames/s   |
| encodec_24khz    | causal, 32 levels of 1024 codes at 75 frames/s: 8 of them are 6 kbit/s               |
| encodec_32khz    | MusicGen's, 4 levels of 2048 codes at 50 frames/s                                    |
| encodec_48khz    | stereo, 16 levels of 1024 codes at 151.5 frames/s, in segments of a second           |
| dac_16khz        | 12 levels of 1024 codes at 50 frames/s                                               |
| dac_24khz        | 32 levels of 1024 codes at 75 frames/s                                               |
| dac_44khz        | 9 levels of 1024 codes at 86.13 frames/s, 8 kbit/s                                   |
| dac_44khz_16kbps | 18 levels of 1024 codes at 86.13 frames/s                                            |
| spectrostream    | 48 kHz stereo, 64 levels of 1024 codes at 25 frames/s: 16 kbit/s                     |

Sizes are those of the releases. Recipes are their papers', and untried here: EnCodec's with its discriminator on STFTs
and its balancer, DAC's with its discriminators on periods and bands; SpectroStream's is not published, and EnCodec's
stands in its place.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from hiermusic.configs import common
from hiermusic.errors import UserError

_DAC = {
    "dac_16khz": (16_000, (2, 4, 5, 8), 12),
    "dac_24khz": (24_000, (2, 4, 5, 8), 32),
    "dac_44khz": (44_100, (2, 4, 8, 8), 9),
    "dac_44khz_16kbps": (44_100, (2, 4, 8, 8), 18),
}


def get_config(preset: str = "tiny") -> ConfigDict:
    """The configuration of a preset: tiny, or a release by its name and rate."""
    config = common.config("tokens", "codec", preset)

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
    config.model.latent = 128
    config.model.codes = 1024
    config.model.decay = 0.99
    config.model.dtype = "float32"
    config.model.remat = "none"

    config.discriminator = ConfigDict()
    config.discriminator.filters = 32

    config.loss = ConfigDict()
    config.loss.stft = 0.0
    config.loss.mel_windows = (32, 64, 128, 256, 512, 1024, 2048)
    config.loss.floor_db = -60.0

    config.train.warmup_steps = 0
    config.train.quantise_start = 0
    config.train.adversarial_start = 0
    config.train.decoder_start = placeholder(int)  # none: all is trained to the end
    config.train.log_every = 50
    config.train.valid_every = 5000
    config.train.checkpoint_every = 5000
    config.train.show_every = 5000
    config.train.steps = 400_000

    if preset.startswith("encodec_"):
        _encodec(config)
    elif preset == "spectrostream":
        _spectrostream(config)
    else:
        _dac(config)
    match preset:
        case "encodec_24khz" | "spectrostream":
            pass
        case "encodec_32khz":
            config.model.sample_rate = 32_000
            config.model.width = 64
            config.model.strides = (4, 4, 5, 8)
            config.model.causal = False
            config.model.shortcut = False
            config.model.codes = 2048
            config.model.levels = 4
            config.train.crop_frames = 50
        case "encodec_48khz":
            config.model.sample_rate = 48_000
            config.model.channels = 2
            config.model.causal = False
            config.model.norm = "group"
            config.model.levels = 16
            config.model.segment_seconds = 1.0
            config.model.overlap = 0.01
            config.train.crop_frames = 150
        case "dac_16khz" | "dac_24khz" | "dac_44khz" | "dac_44khz_16kbps":
            config.model.sample_rate, config.model.strides, config.model.levels = _DAC[preset]
            config.model.latent = 128 if preset == "dac_44khz_16kbps" else 1024
        case "tiny":
            config.model.sample_rate = 22_050
            config.model.fold = 32
            config.model.strides = (4, 4)
            config.model.dilations = (1, 3)
            config.model.encoder_width = 48
            config.model.decoder_width = 192
            config.model.init = "fan_in"
            config.model.tanh = False
            config.model.levels = 4
            config.model.codes = 256
            config.model.quantiser_dropout = 0.0
            config.model.kmeans_iterations = 10
            config.model.dead_share = 0.1
            config.discriminator.periods = (2,)
            config.discriminator.period_widths = (4, 4)
            config.discriminator.fft_sizes = (512,)
            config.discriminator.filters = 4
            config.loss.waveform = 10.0
            config.loss.mel = 0.2
            config.loss.mel_windows = (128, 512, 2048)
            config.loss.mel_bands = (20, 80, 320)
            config.loss.adversarial = 0.0
            config.loss.feature = 0.0
            config.train.steps = 800
            config.train.batch_size = 8
            config.train.learning_rate = 2e-3
            config.train.schedule = "cosine"
            config.train.warmup_steps = 50
            config.train.optimiser = "adam"
            config.train.ema_decay = 0.98
            config.train.quantise_start = 200
            config.train.log_every = 20
            config.train.valid_every = 400
            config.train.valid_batches = 2
            config.train.checkpoint_every = 400
            config.train.show_every = 800
        case _:
            names = ", ".join(("tiny", "encodec_24khz", "encodec_32khz", "encodec_48khz", *_DAC, "spectrostream"))
            raise UserError(f"unknown preset '{preset}' of configs/tokens/codec.py: choose one of {names}")
    return config


def _encodec(config: ConfigDict) -> None:
    config.model.trunk = "seanet"
    config.model.strides = (2, 4, 5, 8)
    config.model.dilations = (1,)
    config.model.width = 32
    config.model.kernel = 7
    config.model.last_kernel = 7
    config.model.residual_kernel = 3
    config.model.compress = 2
    config.model.lstm_layers = 2
    config.model.causal = True
    config.model.norm = "weight"
    config.model.shortcut = True
    config.model.ragged = True
    config.model.padding = "reflect"
    config.model.segment_seconds = 0.0
    config.model.overlap = 0.0
    config.model.loudness = 0.1
    config.model.init = "fan_in"
    config.model.quantiser = "residual"
    config.model.levels = 32
    config.model.level_dropout = "uniform"
    config.model.kmeans_iterations = 50
    config.model.dead_share = 0.02
    _encodec_recipe(config)


def _encodec_recipe(config: ConfigDict) -> None:
    config.discriminator.fft_sizes = (1024, 2048, 512, 256, 128)
    config.discriminator.hop = 0.25

    config.loss.waveform = 0.1
    config.loss.mel = 1.0
    config.loss.mel_bands = 64
    config.loss.adversarial = 3.0
    config.loss.feature = 3.0
    config.loss.commitment = 1.0
    config.loss.balance = True

    config.train.batch_size = 64
    config.train.crop_frames = 75
    config.train.learning_rate = 3e-4
    config.train.schedule = "constant"
    config.train.optimiser = "adam"
    config.train.betas = (0.5, 0.9)
    config.train.weight_decay = 0.0
    config.train.clip_norm = 0.0
    config.train.discriminator_updates = (2, 3)


def _spectrostream(config: ConfigDict) -> None:
    config.model.trunk = "spectro"
    config.model.sample_rate = 48_000
    config.model.channels = 2
    config.model.spectrum = 480
    config.model.strides = (2, 2, 3, 2, 2, 2, 1)
    config.model.time_strides = (1, 1, 1, 1, 1, 2, 2)
    config.model.width = 32
    config.model.latent = 256
    config.model.init = "fan_in"
    config.model.quantiser = "residual"
    config.model.levels = 64
    config.model.level_dropout = "low_biased"
    config.model.kmeans_iterations = 50
    config.model.dead_share = 0.02
    _encodec_recipe(config)
    config.train.crop_frames = 25


def _dac(config: ConfigDict) -> None:
    config.model.trunk = "dac"
    config.model.strides = (2, 4, 8, 8)
    config.model.dilations = (1, 3, 9)
    config.model.encoder_width = 64
    config.model.decoder_width = 1536
    config.model.init = "dac"
    config.model.tanh = True
    config.model.short = True
    config.model.quantiser = "factorised"
    config.model.code_width = 8
    config.model.levels = 9
    config.model.quantiser_dropout = 0.5
    config.model.kmeans_iterations = 0
    config.model.dead_share = 0.0

    config.discriminator.periods = (2, 3, 5, 7, 11)
    config.discriminator.period_widths = (32, 128, 512, 1024, 1024)
    config.discriminator.fft_sizes = (2048, 1024, 512)
    config.discriminator.bands = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)

    config.loss.waveform = 0.0
    config.loss.mel = 15.0
    config.loss.mel_bands = (5, 10, 20, 40, 80, 160, 320)
    config.loss.adversarial = 1.0
    config.loss.feature = 2.0
    config.loss.adversary = "least_squares"
    config.loss.commitment = 1.0
    config.loss.balance = False

    config.train.batch_size = 72
    config.train.crop_frames = 32
    config.train.learning_rate = 1e-4
    config.train.schedule = "exponential"
    config.train.gamma = 0.999996
    config.train.optimiser = "adamw"
    config.train.betas = (0.8, 0.99)
    config.train.weight_decay = 0.01
    config.train.clip_norm = 1000.0
    config.train.discriminator_clip_norm = 10.0
    config.train.discriminator_updates = (1, 1)
