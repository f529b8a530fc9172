"""What the systems' stages have in common: the training of a codec, its facts, and weights to start from."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from hiermusic.codec import chunked
from hiermusic.codec.codec import Codec, CodecConfig
from hiermusic.codec.discriminator import Discriminator
from hiermusic.codec.objective import ObjectiveConfig
from hiermusic.data import pipeline
from hiermusic.errors import UserError
from hiermusic.nn.param import parameter_counts
from hiermusic.nn.transformer import TransformerConfig
from hiermusic.systems import catalogue
from hiermusic.tokens.hierarchy import Hierarchy
from hiermusic.train import checkpoint
from hiermusic.train.codec import CodecStage, PhasesConfig
from hiermusic.train.stage import RunConfig

_BY_LEVEL = {"code_embed": 3, "code_head": 3, "code_bias": 2}  # dimensions of tables that have a row for each level

USE_OF_A_CODEC = "hiermusic encode --codec=FOLDER in.wav codes.npz\nhiermusic decode --codec=FOLDER codes.npz out.wav"


class Generation(NamedTuple):
    """The program that generating with a stage's model spends its time in; see `programs.generation`.

    Attributes:
      name: what it does.
      function: a jitted function; its first argument is static, the second holds the weights.
      arguments: of it, in shapes.
      static: keyword arguments.
      positions: that go through the model in one row.
      tokens, seconds: that it makes, of all rows.
      trunk: of a token model.
    """

    name: str
    function: Callable
    arguments: tuple
    static: dict[str, Any]
    positions: int
    tokens: float
    seconds: float
    trunk: TransformerConfig | None = None


def decoding(codec: CodecConfig, rows: int) -> Generation:
    """The decoding of one piece of a song on every device of the batch, in shapes."""
    pieces = int(chunked.DECODED_SECONDS * codec.sample_rate / codec.row)
    graphdef, weights = nnx.split(nnx.eval_shape(lambda: Codec(codec, rngs=nnx.Rngs(0))))
    codes = jax.ShapeDtypeStruct((rows, pieces, sum(codec.quantiser.slots)), jnp.int32)
    seconds = rows * pieces * codec.row / codec.sample_rate
    tokens = rows * pieces * sum(codec.quantiser.slots)
    positions = pieces * codec.quantiser.frames
    arguments = (graphdef, weights, codes)
    return Generation("generate: decode a piece", chunked.decode, arguments, {}, positions, tokens, seconds)


def run_config(config: ConfigDict) -> RunConfig:
    """How the run of a configuration goes."""
    return RunConfig.of(json.loads(config.to_json_best_effort()), catalogue.systems()[config.system].places)


def codec_stage(
    config: ConfigDict,
    codec: CodecConfig,
    make_discriminator: Callable[[nnx.Rngs], Discriminator],
) -> CodecStage:
    """The training stage of a codec on crops of `train.crop_frames` frames.

    Args:
      config: of the codec.
      codec: what is trained.
      make_discriminator: what it is trained against.
    Raises:
      UserError: crops that are not whole rows of codes.
    """
    settings, data = config.train, config.data
    samples = settings.crop_frames * codec.hop
    if samples % codec.row:
        raise UserError(
            f"train.crop_frames={settings.crop_frames} is no multiple of the quantiser's window of "
            f"{codec.quantiser.frames} frames"
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
        ObjectiveConfig.of(config.loss.to_dict()),
        crop=(samples, codec.channels),
        train=lambda rows: batches("train", rows),
        valid=lambda rows: batches("valid", rows),
        prepare=lambda module: start_from(config.init_from, module.model),
        open=open_records,
    )


def start_from(source: str, model: nnx.Module) -> None:
    """Copies the weights of a run into a model, in place; nothing where `source` is empty.

    The run may know fewer levels than the model: rows of its tables (`_BY_LEVEL`) for the levels it does not know stay
    as they were.

    Raises:
      UserError: a run of another model.
    """
    if not source:
        return
    weights = checkpoint.load_weights(source)
    target = nnx.state(model)
    for path, variable in nnx.to_flat_state(target):
        found = weights
        for key in path:
            found = found.get(str(key), {}) if isinstance(found, dict) else {}
        if isinstance(found, dict):
            raise UserError(f"{source} has no weight {'.'.join(map(str, path))}: it is of another model")
        value = variable[...]
        rows = len(found) if value.ndim == _BY_LEVEL.get(path[-1]) else len(value) if value.ndim else None
        if found.shape[1:] != value.shape[1:] or (value.ndim and (len(found) != rows or rows > len(value))):
            name = ".".join(map(str, path))
            raise UserError(f"{source}: {name} is {found.shape}, this model's is {value.shape}")
        variable[...] = value.at[:rows].set(found) if value.ndim else jnp.asarray(found)
    nnx.update(model, target)


def start_from_codec(codec: Codec, model: nnx.Module, counts_KV: np.ndarray | None = None) -> None:
    """Lets a token model begin with what its codec knows, in place: what codes stand for and how often they are used.

    Codes that lie near each other begin near each other, in the table that is read and in the heads, and what is
    learned of one level serves the others, since all lie in the codec's one space of latent frames; heads begin at the
    codes' frequencies. Deep layers, each of which a short run sees a few times, would otherwise not get as far. A head
    that all levels share takes their frequencies alone: its row v stands for another code at each of them.

    Args:
      codec: with at least as many levels as the model's.
      model: a `TokenLM` with `code_bias`.
      counts_KV: how often each code stands in the tracks to learn from; the codec's averages when left out, which look
        back over too little where a batch holds a handful of a level's tokens.
    """
    levels, width = model.config.levels, model.config.transformer.width
    books_KVD = np.asarray(codec.quantiser.codebooks[...][:levels], np.float64)
    if counts_KV is None:
        counts_KV = np.asarray(codec.quantiser.ema_counts[...][:levels], np.float64)
    share_KV = (counts_KV + 0.5) / (counts_KV + 0.5).sum(1, keepdims=True)
    books_KVD = books_KVD - (share_KV[..., None] * books_KVD).sum(1, keepdims=True)
    size = max(width, books_KVD.shape[-1])
    # one rotation whatever the run's seed: tables of layers that a run adds lie as those that it begins with
    turn_DD = np.linalg.qr(np.random.default_rng(0).normal(size=(size, size)))[0]
    tables_KVD = books_KVD @ turn_DD[: books_KVD.shape[-1], :width]
    spread_K11 = np.sqrt(np.mean(np.square(tables_KVD), axis=(1, 2), keepdims=True)) + 1e-9
    drawn = float(jnp.std(model.code_head[...]))
    tables = {"code_bias": np.log(share_KV) - np.log(share_KV).mean(1, keepdims=True)}
    if model.config.head != "shared":  # the finer a level, the nearer its head begins to nothing but frequencies
        tables["code_head"] = drawn * tables_KVD / spread_K11[0]
    if model.config.reads:  # finer levels say less, but not as much less as their size
        tables["code_embed"] = drawn * tables_KVD / np.sqrt(spread_K11 * spread_K11[0])
    for name, table in tables.items():
        variable = getattr(model, name)
        variable[...] = variable[...].at[:].set(table.astype(np.float32))


def counts(module: nnx.Module) -> Counter[str]:
    """Trained parameters of each component of a module, which may be abstract."""
    found: Counter[str] = Counter()
    for name, count in parameter_counts(module).items():
        found[name.partition(".")[0]] += count
    return found


def facts(
    config: ConfigDict, params: dict[str, int], tokens: Hierarchy, frame_rate: float, length: int
) -> dict[str, Any]:
    """What `hiermusic inspect` tells of every stage."""
    return {
        "params": params,
        "sequence_length": length,
        "frame_rate_hz": frame_rate,
        "tokens_per_second": float(tokens.tokens_per_second),
        "levels": len(tokens),
        "codes": tokens.sizes[0],
        "batch_size": config.train.batch_size,
        "steps": config.train.steps,
    }
