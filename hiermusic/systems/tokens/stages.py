"""What trains the codecs, tokenizers of meaning and token models that are of no system of their own."""

from flax import nnx
from ml_collections import ConfigDict

from hiermusic.pretrained import encoder
from hiermusic.pretrained.plain import FEATURES
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
    tokenizer = semantic_config(config)
    samples = round(config.train.crop_seconds * tokenizer.sample_rate)
    crops = stages.Crops(config, tokenizer.sample_rate, tokenizer.channels, samples)

    def prepare(module: nnx.Module) -> None:
        if config.model.encoder not in FEATURES:
            nnx.update(module.model.features, nnx.state(encoder.load(config.model.encoder, config.model.layer)))
        from_run(config.init_from, module.model)

    return ClusterStage(
        stages.run_config(config),
        make_model(config),
        samples=samples,
        train=lambda rows: crops.of("train", rows),
        valid=lambda rows: crops.of("valid", rows),
        prepare=prepare,
        open=crops.open,
    )
