"""What the systems' stages have in common: how a run goes, and the training of a codec."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from flax import nnx
from ml_collections import ConfigDict

from hiermusic.codec.codec import Codec, CodecConfig
from hiermusic.codec.objective import ObjectiveConfig
from hiermusic.data import pipeline
from hiermusic.data.stems import ALONE, NAMES
from hiermusic.errors import UserError
from hiermusic.systems import catalogue
from hiermusic.systems.start import from_run
from hiermusic.train.codec import CodecStage, PhasesConfig
from hiermusic.train.stage import RunConfig


def run_config(config: ConfigDict) -> RunConfig:
    """How the run of a configuration goes."""
    return RunConfig.of(json.loads(config.to_json_best_effort()), catalogue.systems()[config.system].places)


class Crops:
    """Crops of the audio that a run is trained on, which is found when the run begins.

    Args:
      config: of the run.
      sample_rate, channels: of what its model hears.
      samples: in a crop.
    """

    def __init__(self, config: ConfigDict, sample_rate: int, channels: int, samples: int):
        self._config, self._heard, self._samples = config, (sample_rate, channels), samples
        self._stems = stems_of(config)
        self._records: Path | None = None

    def open(self, workdir: Path) -> None:
        """Finds the audio records, or makes them in the workdir."""
        data = self._config.data
        how = {"kind": data.kind, "segment_seconds": data.segment_seconds, "valid_fraction": data.valid_fraction}
        how |= {"stems": self._stems}
        self._records = pipeline.resolve(data.path, workdir / "data", *self._heard, **how)

    def of(self, split: str, rows: Sequence[int]):
        """Batches of a split, float32 [B, L, C]."""
        train = self._config.train
        return pipeline.waveform_batches(
            self._records, split, self._samples, train.batch_size, train.seed, rows, self._stems
        )


def stems_of(config: ConfigDict) -> tuple[str, ...]:
    """What of its tracks a codec or a tokenizer hears, the mix where its configuration does not say."""
    wanted = tuple(config.data.get("stems", ALONE))
    if not wanted or len(set(wanted)) < len(wanted) or not set(wanted) <= set(NAMES):
        raise UserError(f"data.stems={wanted}: give stems, each once: {', '.join(NAMES)}")
    return wanted


def codec_stage(
    config: ConfigDict,
    codec: CodecConfig,
    make_discriminator: Callable[[nnx.Rngs], nnx.Module],
) -> CodecStage:
    """The training stage of a codec on crops of `train.crop_frames` frames.

    Args:
      config: of the codec.
      codec: what is trained.
      make_discriminator: what it is trained against.
    Raises:
      UserError: crops that are not whole packets of codes, or other weights of levels than there are levels.
    """
    settings = config.train
    samples = settings.crop_frames * codec.hop
    if samples % codec.packet:
        raise UserError(
            f"train.crop_frames={settings.crop_frames} is no multiple of the quantiser's packets of "
            f"{codec.quantiser.frames} frames"
        )
    objective = ObjectiveConfig.of(config.loss.to_dict())
    if 1 < len(codec.factors) != len(objective.level_weights):
        raise UserError(
            f"loss.level_weights has {len(objective.level_weights)} numbers for a codec of {len(codec.factors)} "
            "levels: give one for each"
        )
    if settings.decoder_start == 0 and not config.init_from:
        raise UserError(
            "train.decoder_start=0 trains the decoder of a codec that is there already: name its run with init_from, "
            "or give a later step"
        )
    crops = Crops(config, codec.sample_rate, codec.channels, samples)
    return CodecStage(
        run_config(config),
        PhasesConfig(
            settings.quantise_start,
            settings.adversarial_start,
            settings.decoder_start,
            tuple(settings.discriminator_updates),
        ),
        lambda rngs: Codec(codec, rngs=rngs),
        make_discriminator,
        objective,
        crop=(samples, codec.channels),
        discriminator_clip_norm=settings.get("discriminator_clip_norm"),
        train=lambda rows: crops.of("train", rows),
        valid=lambda rows: crops.of("valid", rows),
        prepare=lambda module: from_run(config.init_from, module.model),
        open=crops.open,
    )
