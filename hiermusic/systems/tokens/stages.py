"""What trains the codecs, tokenizers of meaning and token models that are of no system of their own."""

from collections.abc import Sequence
from pathlib import Path

from flax import nnx
from ml_collections import ConfigDict

from hiermusic.data import pipeline
from hiermusic.pretrained import encoder, semantic
from hiermusic.systems import stages
from hiermusic.systems.lm import stages as lm
from hiermusic.systems.start import from_run
from hiermusic.systems.tokens.models import codec_config, make_discriminator, make_model, semantic_config
from hiermusic.train.clusters import ClusterStage
from hiermusic.train.codec import CodecStage
from hiermusic.train.lm import LMStage


def stage(config: ConfigDict) -> CodecStage | ClusterStage | LMStage:
    """The training stage of a configuration, its data still to be opened."""
    if config.stage == "codec":
        return stages.codec_stage(config, codec_config(config.model), make_discriminator(config))
    return _semantic(config) if config.stage == "semantic" else lm.stage(config)


def _semantic(config: ConfigDict) -> ClusterStage:
    settings, data, tokenizer = config.train, config.data, semantic_config(config)
    samples = round(settings.crop_seconds * tokenizer.sample_rate)
    records: Path | None = None

    def open_records(workdir: Path) -> None:
        nonlocal records
        records = pipeline.resolve(
            data.path,
            workdir / "data",
            tokenizer.sample_rate,
            tokenizer.channels,
            kind=data.kind,
            segment_seconds=data.segment_seconds,
            valid_fraction=data.valid_fraction,
        )

    def batches(split: str, rows: Sequence[int]):
        return pipeline.waveform_batches(records, split, samples, settings.batch_size, settings.seed, rows)

    def prepare(module: nnx.Module) -> None:
        if config.model.encoder != semantic.LOG_MEL:
            nnx.update(module.model.features, nnx.state(encoder.load(config.model.encoder, config.model.layer)))
        from_run(config.init_from, module.model)

    return ClusterStage(
        stages.run_config(config),
        make_model(config),
        samples=samples,
        train=lambda rows: batches("train", rows),
        valid=lambda rows: batches("valid", rows),
        prepare=prepare,
        open=open_records,
    )
