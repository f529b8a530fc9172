"""What the systems' stages have in common: how a run goes, and the training of a codec."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from flax import nnx
from ml_collections import ConfigDict

from hiermusic.codec.codec import Codec, CodecConfig
from hiermusic.codec.objective import ObjectiveConfig
from hiermusic.data import pipeline
from hiermusic.errors import UserError
from hiermusic.systems import catalogue
from hiermusic.systems.start import from_run
from hiermusic.train.codec import CodecStage, PhasesConfig
from hiermusic.train.stage import RunConfig


def run_config(config: ConfigDict) -> RunConfig:
    """How the run of a configuration goes."""
    return RunConfig.of(json.loads(config.to_json_best_effort()), catalogue.systems()[config.system].places)


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
    settings, data = config.train, config.data
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
    records: Path | None = None

    def open_records(workdir: Path) -> None:
        nonlocal records
        records = pipeline.resolve(
            data.path,
            workdir / "data",
            codec.sample_rate,
            codec.channels,
            kind=data.kind,
            segment_seconds=data.segment_seconds,
            valid_fraction=data.valid_fraction,
        )

    def batches(split: str, rows: Sequence[int]):
        return pipeline.waveform_batches(records, split, samples, settings.batch_size, settings.seed, rows)

    return CodecStage(
        run_config(config),
        PhasesConfig(settings.quantise_start, settings.adversarial_start, tuple(settings.discriminator_updates)),
        lambda rngs: Codec(codec, rngs=rngs),
        make_discriminator,
        objective,
        crop=(samples, codec.channels),
        discriminator_clip_norm=settings.get("discriminator_clip_norm"),
        train=lambda rows: batches("train", rows),
        valid=lambda rows: batches("valid", rows),
        prepare=lambda module: from_run(config.init_from, module.model),
        open=open_records,
    )
