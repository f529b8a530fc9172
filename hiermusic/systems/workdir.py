"""From a configuration or a training workdir to the thing itself: stage, codec, codes, songs, facts."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from hiermusic.codec.codec import Codec, CodecConfig
from hiermusic.console import warn
from hiermusic.data.streams import Tokenizer
from hiermusic.errors import UserError, brief, reading
from hiermusic.parallel.hosts import wait_for_all, workers
from hiermusic.parallel.mesh import shardings
from hiermusic.pretrained import export
from hiermusic.pretrained.semantic import Semantic, SemanticConfig
from hiermusic.systems import catalogue, token_facts
from hiermusic.systems.requests import Request
from hiermusic.systems.system import System
from hiermusic.tokens import packets
from hiermusic.train import checkpoint, stored
from hiermusic.train.stage import Stage

if TYPE_CHECKING:
    from hiermusic.data.records import Summary

TOKENIZERS = ("codec", "semantic")  # stages whose models make tokens of sound, of the systems that say so

_PLACES = ("data.codec", "init_from")  # fields that name what a model is made from, in every system
_MOST = 1 << 24  # of any size: as many levels as a stranger's configuration names would fill the memory


def system(config: ConfigDict, whose: str = "the configuration") -> System:
    """The system a configuration is of; UserError, of `whose`, where it is of no stage or its sizes are none."""
    systems = catalogue.systems()
    if (name := config.get("system")) not in systems:
        raise UserError(f"the configuration's system is '{name}'; there are {', '.join(systems)}")
    ours = systems[name]
    with _understood(whose):
        _check_sizes(config, ours.sizes)
    if (stage := config.get("stage")) not in ours.stages:
        raise UserError(f"{whose} is of the stage '{stage}'; {name} has {', '.join(ours.stages)}")
    return ours


def _check_sizes(config: ConfigDict, sizes: Collection[str]) -> None:
    for name, value in config.model.items():
        entries = value if isinstance(value, list | tuple) else (value,)
        if name in sizes and not all(type(entry) is int and entry > 0 for entry in entries):
            raise UserError(f"model.{name}={value}: give whole numbers of 1 or more")
        if any(type(entry) is int and entry > _MOST for entry in entries):
            raise UserError(f"model.{name}={value}: no size of a model exceeds {_MOST:,}")
    batch = config.train.batch_size
    if type(batch) is not int or batch < 1:
        raise UserError(f"train.batch_size={batch}: give a whole number of 1 or more")


@contextmanager
def _understood(whose: str, do: str = "") -> Iterator[None]:
    """Tells in one line what making things of a configuration stumbles over; nothing but settings goes in here."""
    try:
        yield
    except UserError:
        raise
    except (AttributeError, KeyError) as error:
        field = brief(str(error).replace("\\n", "; ")).replace("'", "").replace('"', "")
        raise UserError(f"{whose} has no field {field}{do}") from error
    except (ArithmeticError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{whose} cannot be used ({type(error).__name__}: {brief(error, 200)})") from error


def read(workdir: str | Path, *stages: str) -> ConfigDict:
    """The configuration a workdir was trained with; UserError when it is of none of `stages` (any, when left out)."""
    place = Path(workdir) / "config.json"
    with reading(place, "the configuration of a workdir", "give a folder that `hiermusic train` wrote"):
        config = ConfigDict(checkpoint.read_config(workdir))
    if not {"system", "stage"} & set(config):
        raise UserError(
            f"{place} names no system and no stage: give a folder that `hiermusic train` wrote, or what "
            "`hiermusic import` makes of a published model"
        )
    if not all(isinstance(config.get(name, ""), str) for name in ("system", "stage")):
        raise UserError(f"{place}: system and stage are no names: give a folder that `hiermusic train` wrote")
    if stages and config.get("stage") not in stages:
        wanted = " or ".join(stages)
        raise UserError(f"{workdir} was trained as a {config.get('stage')}: give the workdir of a {wanted}")
    if config.get("system") in catalogue.systems():
        ours = system(config, str(place))
        with _understood(str(place), ", as another version wrote it: train, export or import it anew with this one"):
            ours.rooms.make_model(config)
    if stages == TOKENIZERS and not makes_tokens(config):
        wanted = " or ".join(stages)
        raise UserError(f"{workdir} was trained as the {config.stage} of {ours.title}: give the workdir of a {wanted}")
    return config


def makes_tokens(config: ConfigDict) -> bool:
    """Whether what a configuration trains makes tokens of sound."""
    known = catalogue.systems().get(config.get("system"))
    return config.stage in (known.tokenizers if known else TOKENIZERS)


def _absolute(config: ConfigDict, places: Sequence[str]) -> None:
    """Makes paths whole that later commands follow from the workdir, wherever those are given."""
    for place in ("data.path", *_PLACES, *places):
        fields, name = _holder(config, place)
        found = Tokenizer.named(fields.get(name) or "")
        if found.workdir and Path(found.workdir).exists():
            fields[name] = str(found._replace(workdir=os.path.abspath(found.workdir)))


def _holder(config: ConfigDict, place: str) -> tuple[ConfigDict, str]:
    """What holds the field of a dotted name, and the field's own name."""
    *parents, name = place.split(".")
    return (config[parents[0]] if parents else config), name


def _field(config: ConfigDict, place: str) -> Any:
    """The field of a dotted name; None where there is none."""
    fields, name = _holder(config, place)
    return fields.get(name)


def _pinned(base: str, workdir: str | Path | None) -> str:
    """The run that adapters belong to, at a step: the one that `workdir` has, which may go on, or the newest."""
    run, step = Tokenizer.named(base)
    if step is None and run and workdir and (Path(workdir) / "config.json").is_file():
        old = Tokenizer.named(checkpoint.read_config(workdir).get("init_from") or "")
        step = old.step if old.workdir == run else None
    if run:
        checkpoint.read_config(run)
        step = checkpoint.exported_step(run, step) if export.is_export(run) else int(checkpoint.find(run, step).name)
    return str(Tokenizer(run, step))


def resolved(config: ConfigDict, workdir: str | Path | None = None) -> ConfigDict:
    """A configuration with whole paths and, of a token model, with what its token records say of its tokens.

    It also names the `licences` of published weights that the model is made from, be it their own, or the tokens or
    vectors that they make.

    Args:
      config: as a person has it.
      workdir: of a run that may stand there, and keeps the licences that it has named.
    """
    config, ours = config.copy_and_resolve_references(), system(config)
    with _understood("the configuration"):
        _absolute(config, ours.places)
        if config.get("lora", {}).get("rank"):
            config.init_from = _pinned(config.init_from, workdir)
        token_facts.learn(config)
        token_facts.learn_features(config)
    sources = [Tokenizer.named(_field(config, place) or "").workdir for place in (*_PLACES, *ours.places)]
    sources += [workdir, *token_facts.makers_of_prefix(config)]
    if licences := sorted({licence for source in sources if source for licence in _licences(Path(source))}):
        with config.unlocked():  # the command line locks what it makes
            config.licences = licences
    return config


def _licences(source: Path) -> list[str]:
    """Those that a workdir's configuration, or a file of vectors, names; whether it is one is asked elsewhere."""
    from hiermusic.data import arrays

    try:
        if source.is_file():
            return arrays.licences_of(source)
        return export.licences(source)
    except UserError:
        return []


def stage(config: ConfigDict, *, batch_size: int | None = None, remat: str | None = None) -> Stage:
    """The training stage of a configuration, to be looked at, checked or compiled; its data is still to be opened.

    Args:
      config: from `resolved`, or of a workdir.
      batch_size, remat: in place of the configuration's.
    """
    config = config.copy_and_resolve_references()
    if batch_size is not None:
        config.train.batch_size = batch_size
    if remat is not None and "remat" in config.model:
        config.model.remat = remat
    ours = system(config)
    with _understood("the configuration"):
        return ours.rooms.stage(config)


def open_data(stage: Stage, workdir: str | Path) -> None:
    """Finds the data that a stage is to be trained on in a workdir.

    Args:
      stage: of a configuration from `resolved`.
      workdir: new, or of the same configuration; gets the records that have to be made.
    Raises:
      UserError: bad data, or a workdir of another configuration, which is left as it is.
    """
    with reading(Path(workdir) / "config.json", "the configuration of a workdir", "take another workdir"):
        checkpoint.check(workdir, stage.config.fields, stage.config.places)
    stage.open(Path(workdir))


def load(
    workdir: str | Path, *stages: str, step: int | None = None, mesh: Mesh | None = None
) -> tuple[ConfigDict, nnx.Module]:
    """The configuration and the inference weights of a workdir, the newest or those of a step.

    They are spread over `mesh`, or lie on the first device without one. The processes of a run must all come here.
    """
    config = read(workdir, *stages)
    make = system(config).rooms.make_model(config)
    placed = partial(shardings, mesh=mesh) if mesh else None
    return config, checkpoint.load_model(workdir, lambda: make(nnx.Rngs(0)), step, shardings=placed)


def load_codec(workdir: str | Path, step: int | None = None) -> Codec:
    """The trained codec of a workdir, the newest or that of a step."""
    return load(workdir, "codec", step=step)[1]


# MARK: codes


def tokenise(
    codecs: Mapping[str, str], data: str, out: str, *, split_at: int, vocal_noise: float = 0.0
) -> "dict[str, Summary]":
    """Token records of `data` by trained codecs, one stream after the other; goes on where an earlier call stopped.

    Args:
      codecs: of each stream, by its name (see `data.streams`), the workdir, or WORKDIR@STEP, of its codec; the stream
        without a name is that of the mix.
      data: audio records, or music; records may have a higher rate and more channels than a codec hears.
      out: the folder of the streams.
      split_at: levels that lie apart from the finer ones; in a named stream of fewer levels they all do.
      vocal_noise: standard deviation of the noise that is added to vocals, and to no other stem.
    Returns:
      The summary of each stream.
    Raises:
      UserError: no such codec, or no such stem in the data; nothing is written then.
    """
    from hiermusic.data import records, stems, streams, tokenise

    made_by = {name: _codec_of(text) for name, text in codecs.items()}
    configs = {name: read(tokenizer.workdir, *TOKENIZERS) for name, tokenizer in made_by.items()}
    heard = [_codec_config(config) for config in configs.values()]
    audio_dir = _audio_for(configs, heard, data, Path(out) / "audio")
    shortest = max(_shortest(tokenizer) for tokenizer in heard)  # of all streams, which hold the same tracks
    for name, (workdir, step) in made_by.items():
        codec = load(workdir, *TOKENIZERS, step=step)[1]
        tokenise.tokenise(
            partial(encoded_each, codec),
            audio_dir,
            Path(out) / name,
            codec.hierarchy,
            min(split_at, len(codec.hierarchy)) if name or len(codec.hierarchy) == 1 else split_at,
            str(streams.Tokenizer(os.path.abspath(workdir), step)),
            facts=codec.facts,
            scales=partial(scales, codec),
            shortest=shortest,
            stem=streams.stem_of(name),
            sample_rate=codec.sample_rate,
            channels=codec.channels,
            noise=vocal_noise if streams.stem_of(name) == stems.VOCALS else 0.0,
            worker=workers(),
        )
        wait_for_all(f"tokens {Path(out) / name}")
    return {name: records.read_summary(Path(out) / name) for name in codecs}


def encoded(codec: Codec | Semantic, wav_LC: np.ndarray) -> packets.Streams:
    """The tokens of a sound of any length, at its tokenizer's rate and channels."""
    return next(iter(encoded_each(codec, [wav_LC])))


def encoded_each(codec: Codec | Semantic, sounds: Iterable[np.ndarray]) -> Iterator[packets.Streams]:
    """`encoded` of sounds one after the other, several of which are heard at once, on all devices of this process."""
    from hiermusic.codec.chunked import encode_each

    if isinstance(codec, Semantic):
        return codec.encode_each(sounds)
    return (packets.to_streams(codes_PS, codec.slots) for codes_PS in encode_each(codec, sounds))


def _codec_of(text: str) -> Tokenizer:
    """The codec that WORKDIR, or WORKDIR@STEP, names, its newest checkpoint where none is named."""
    workdir, step = Tokenizer.named(text)
    read(workdir, *TOKENIZERS)
    if export.is_export(workdir):
        return Tokenizer(workdir, checkpoint.exported_step(workdir, step))
    return Tokenizer(workdir, int(checkpoint.find(workdir, step).name))


def _codec_config(config: ConfigDict) -> CodecConfig | SemanticConfig:
    """What the codec of a configuration is, without its weights."""
    make = system(config).rooms.make_model(config)
    return nnx.eval_shape(lambda: make(nnx.Rngs(0))).config


def _shortest(config: CodecConfig | SemanticConfig) -> Fraction:
    """Seconds of the least sound of which there are tokens."""
    return Fraction(config.features.span, config.sample_rate) if isinstance(config, SemanticConfig) else Fraction(0)


def _audio_for(
    configs: Mapping[str, ConfigDict], heard: Sequence[CodecConfig | SemanticConfig], data: str, cache_dir: Path
) -> Path:
    """Audio records with the stems that streams are made of, at the highest rate that one of their codecs hears.

    Args:
      configs: of the codec of each stream, by its name.
      heard: what these codecs are.
      data: audio records, or music.
      cache_dir: for the records that have to be made.
    """
    from hiermusic.data import pipeline, stems, streams
    from hiermusic.data.audio_records import check_stems
    from hiermusic.data.records import read_info

    rate, channels = max(codec.sample_rate for codec in heard), max(codec.channels for codec in heard)
    used = {streams.stem_of(name) for name in configs}
    wanted = tuple(stem for stem in stems.NAMES if stem in used)
    if pipeline.is_records(data):
        info = read_info(data, "audio")
        check_stems(data, info, wanted)
        if info["sample_rate"] >= rate and info["channels"] >= channels:
            return Path(data)
    (first, config), *others = configs.items()
    for name, other in others:
        if other.data.valid_fraction != config.data.valid_fraction:
            raise UserError(
                f"the codecs of {first} and {name} hold out {config.data.valid_fraction} and "
                f"{other.data.valid_fraction} of the tracks: give audio records with splits that suit both as --data"
            )
    return pipeline.resolve(
        data,
        cache_dir,
        rate,
        channels,
        # the codec's own share, so that what it has not heard is held out from the token models too
        segment_seconds=config.data.segment_seconds,
        valid_fraction=config.data.valid_fraction,
        stems=wanted,
    )


def encode_file(codec_dir: str, source: str, target: str, levels: int | None) -> dict[str, Any]:
    """Codes [S, P] of an audio file (see `tokens.packets`), written as .npz with what decoding needs."""
    from hiermusic.audio import files
    from hiermusic.codec.chunked import encode_long
    from hiermusic.data.arrays import write_npz

    read(codec_dir, "codec")
    wav_LC, rate = files.read(source)  # before the weights, which take longer
    codec = load_codec(codec_dir)
    check_levels(codec, levels)
    if codec.channels == 1 and (odd := files.oddity(wav_LC)):
        warn(f"{source}: {odd}")
    wav_LC = files.resample(files.to_channels(wav_LC, codec.channels), rate, codec.sample_rate)
    codes_PS = encode_long(codec, wav_LC, levels=levels)
    beside = {} if (scales_N := scales(codec, wav_LC)) is None else {"scales": scales_N}
    write_npz(target, {"codes": codes_PS.T, "length": len(wav_LC), "sample_rate": codec.sample_rate, **beside})
    return {"out": target, "codes": list(codes_PS.T.shape), "seconds": len(wav_LC) / codec.sample_rate}


def decode_file(codec_dir: str, source: str, target: str, levels: int | None) -> dict[str, Any]:
    """The sound of a codes file written by `encode_file`, as long as what was encoded."""
    from hiermusic.audio import files
    from hiermusic.codec.chunked import decode_long
    from hiermusic.data.arrays import read_npz

    read(codec_dir, "codec")
    if not Path(source).exists():
        raise UserError(f"no codes at {source}")
    stored = read_npz(source, "a codes file", "give one that `hiermusic encode` wrote")
    with reading(source, "a codes file", "give one that `hiermusic encode` wrote"):
        codes_PS, length = stored["codes"].T, int(stored["length"])
        sample_rate, scales_N = int(stored["sample_rate"]), stored.get("scales")
    codec = load_codec(codec_dir)
    check_levels(codec, levels)
    check_codes(codec, codes_PS.T, source, codec_dir)
    whole = codec.length(len(codes_PS)) >= length and codec.packets(length) >= len(codes_PS)
    if sample_rate != codec.sample_rate or not whole:
        raise UserError(_foreign(source, codes_PS.T, codec_dir))
    check_scales(codec, scales_N, len(codes_PS), source)
    wav_LC = decode_long(codec, codes_PS.astype(np.int32), length=length, levels=levels, scales_N=scales_N)
    files.write(target, wav_LC, codec.sample_rate)
    return {"out": target, "seconds": len(wav_LC) / codec.sample_rate}


def scales(codec: Codec | Semantic, wav_LC: np.ndarray) -> np.ndarray | None:
    """What a codec of segments divides each segment of a sound by, to be kept beside its codes; None of others."""
    segments = codec.config.segments if isinstance(codec, Codec) else None
    return None if segments is None else segments.scales(wav_LC)


def check_scales(codec: Codec, scales_N: np.ndarray | None, packets: int, whose: str) -> None:
    """UserError, of `whose`, for scales that are no loudness of the segments of so many packets."""
    if scales_N is None:
        return
    if not codec.config.segments:
        raise UserError(f"{whose} holds scales of segments, and this codec has none: use the codec that made it")
    fits = scales_N.ndim == 1 and scales_N.dtype.kind in "iuf"
    if not fits or not np.isfinite(scales_N).all() or scales_N.min(initial=0) < 0:
        raise UserError(f"{whose} holds scales that are no loudness: one number of 0 or more for each segment")
    if len(scales_N) != (count := -(-packets // codec.config.segments.frames)):
        raise UserError(f"{whose} holds {len(scales_N)} scales for {count} segments: one belongs to each")


def check_levels(codec: Codec, levels: int | None) -> None:
    """UserError for a number of levels that a codec has not."""
    if levels is not None and not 0 < levels <= len(codec.hierarchy):
        raise UserError(f"{levels} levels were asked for: this codec has {len(codec.hierarchy)}")


def check_codes(codec: Codec, codes_SP: np.ndarray, whose: str, codec_dir: str) -> None:
    """UserError, of `whose`, for codes that no file or array of this codec's holds."""
    fits = codes_SP.ndim == 2 and codes_SP.dtype.kind in "iu" and codes_SP.shape[0] in np.cumsum(codec.slots)
    if not (fits and codes_SP.min(initial=0) >= 0 and codes_SP.max(initial=0) < max(codec.hierarchy.sizes)):
        raise UserError(_foreign(whose, codes_SP, codec_dir))


def _foreign(whose: str, codes_SP: np.ndarray, codec_dir: str) -> str:
    return f"{whose} holds codes {codes_SP.shape}, not those of {codec_dir}: use the codec that made it"


# MARK: songs and facts


def generate(
    requests: Sequence[Request],
    out: str,
    model: str,
    name: str | None,
    *,
    audio: str | None = None,
    mesh: Mapping[str, int] = MappingProxyType({}),
    rows: int | None = None,
    **given: Any,
) -> list[dict[str, Any]]:
    """Songs for requests.

    Args:
      requests: what to make.
      out: the folder.
      model: workdir of the model that begins.
      name: the system it must be of; None for whichever it is of.
      audio: file to go on from.
      mesh: axes and sizes to spread the models over; nothing for one device.
      rows: songs made at once; many, when left out.
      given: values of flags that systems declare.
    Raises:
      UserError: a workdir of another system, or of one to which one of `given` means nothing.
    """
    config = read(model)
    ours = system(config)
    if name and name != ours.name:
        raise UserError(f"--system={name}: {model} is of the system {ours.name}")
    kinds = {flag.name: flag.of for flag in ours.flags}
    if foreign := [flag for flag in given if flag not in kinds]:
        raise UserError(f"--{foreign[0]} means nothing to the system {ours.name}, which {model} is of")
    options = {flag: value for flag, value in given.items() if kinds[flag] == "sampling"}
    own = {flag: value for flag, value in given.items() if kinds[flag] in ("model", "else")}
    return ours.rooms.generate(requests, Path(out), options=options, audio=audio, mesh=mesh, rows=rows, **own)


def inspect(
    config: ConfigDict | None, workdir: str | None, step: int | None = None, weights: bool = False
) -> dict[str, Any]:
    """Parameter counts by component and the rates of a configuration, or of a workdir with what its checkpoint holds.

    Args:
      config: of any stage; None for that of `workdir`.
      workdir: a training run or an exported model; one of a system that is not known here is told of all the same.
      step: which checkpoint; default the newest.
      weights: lists every weight of the checkpoint.
    """
    if config is not None:
        return {"system": config.system, "stage": config.stage, **_facts(resolved(config), "the configuration")}
    config = read(workdir)
    facts = {"workdir": str(workdir), "system": config.get("system"), "stage": config.get("stage")}
    if config.get("system") in catalogue.systems():
        facts |= _facts(config, f"{workdir}/config.json")
    if step is not None or weights or checkpoint.steps(workdir):
        facts["checkpoint"] = stored.describe(workdir, step, weights)
    return facts


def _facts(config: ConfigDict, whose: str) -> dict[str, Any]:
    ours = system(config, whose)
    with _understood(whose):
        return ours.rooms.inspect(config)
