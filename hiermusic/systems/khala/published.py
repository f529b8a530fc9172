"""Khala's release, called Shao by now: in from the six files of its port or the codec's own checkpoint, and out again.

The original's token models are Megatron's shards, which PyTorch alone reads; the port's files hold the same numbers.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hiermusic.console import say
from hiermusic.errors import UserError, brief, reading
from hiermusic.pretrained import export, names, pairs, pickles
from hiermusic.pretrained.family import Family, Imported
from hiermusic.pretrained.later import Later, rows_of, safetensors
from hiermusic.pretrained.source import Source, licence_of
from hiermusic.systems.khala import measures, weights
from hiermusic.tokens.facts import TokenFacts
from hiermusic.tokens.vocabulary import TextTokenizer, Vocabulary

LICENCE = "cc-by-nc-4.0"
TOKENIZER = "tokenizer.json"
BIAS = 2  # times that the release's program adds the biases in front of the gate

_CODEC = ("decoder_weights.pt", "decoder_config.yaml")
_MODELS = {name: (f"khala_{name}.safetensors", f"{name}_megatron_args.json") for name in ("backbone", "superres")}
_AGAIN = "get the file again"
_PLACES = ("", "Tokenizer", "models/Tokenizer")  # of the tokenizer
_SAMPLE_RATE, _ROWS = 44_100, 128  # which nothing tells; rows of their tables come in so many
_NEAR = 0.01  # by so much an average may differ from a code that follows it
_TABLES = tuple(f"{kind}_{part}" for part in weights.TABLES for kind in ("text", "code"))
_VOCABULARY = Vocabulary.llama31()
# what their program could do otherwise, and ours could not
_ONLY = {
    "normalization": "RMSNorm",
    "position_embedding_type": "rope",
    "norm_epsilon": 1e-6,
    "rotary_percent": 1.0,
    "swiglu": True,
    "add_bias_linear": True,
    "untie_embeddings_and_output_weights": True,
}


@dataclass(frozen=True)
class Release:
    """What lies in a folder or file of the release.

    Args:
      where: the folder, or the codec's checkpoint.
      parts: stage -> its weights by the names of the six files, and what lies beside them.
      licence: an identifier.
    """

    where: Path
    parts: Mapping[str, Source]
    licence: str = field(default=LICENCE)


def open_release(path: str) -> Release:
    """The weights that lie at a place.

    Args:
      path: a folder with the six files, or with those of some of the models; or the codec's checkpoint alone.
    Raises:
      UserError: neither, shards that only PyTorch reads, or a file that lacks the one beside it.
    """
    where = Path(path)
    if where.is_file():
        return Release(where, {"codec": _checkpoint(where)})
    if not where.is_dir():
        raise UserError(f"no release at {where}: give the folder of its six files, or the codec's .ckpt file")
    parts = {}
    if (where / _CODEC[0]).is_file():
        parts["codec"] = _checkpoint(where / _CODEC[0])
    for name, (file, told) in _MODELS.items():
        if (where / file).is_file():
            parts[name] = Source(where / file, _arguments(where / told), safetensors(where / file))
    if parts:
        return Release(where, parts, licence_of(where, LICENCE))
    if shards := next((file for deep in ("", "*/", "*/*/") for file in where.glob(f"{deep}*.distcp")), None):
        raise UserError(
            f"{shards.parent} holds shards of Megatron's (.distcp), which only PyTorch reads: convert them with "
            "tools/gather_dcp.py and tools/convert_megatron_to_hf.py of github.com/pawel-mazurkiewicz/Khala-mac, or "
            "get its six files, Vinpolar/Khala-MusicGeneration-v1.0-MPS; the codec's .ckpt file comes in alone"
        )
    files = ", ".join([_CODEC[0], *(file for file, _ in _MODELS.values())])
    raise UserError(f"{where} holds none of {files}: give the folder of the release's six files")


def _arguments(path: Path) -> dict[str, Any]:
    with reading(path, "the arguments of a model", "get it, too: it lies beside the weights"):
        told = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(told, dict):
            raise ValueError("it is no object")
        return {name: value for name, value in told.items() if value is not None}


def _checkpoint(path: Path) -> Source:
    """The codec's weights, of a whole checkpoint those of what is no discriminator."""
    value = pickles.read(path, strangers=pickles.TRAINERS)
    state = value.get("state_dict", value) if isinstance(value, dict) else {}
    state = state if isinstance(state, dict) else {}
    found = {name: one for name, one in state.items() if isinstance(name, str) and isinstance(one, np.ndarray)}
    own = "generator."
    if any(name.startswith(own) for name in found):
        found = {name.removeprefix(own): one for name, one in found.items() if name.startswith(own)}
    return Source(path, {}, found)


# MARK: in


def read(release: Release, tokenizer: str = "", bias: int = 0, audio: str = "") -> dict[str, Imported]:
    """The models of a release, each as one of ours.

    Args:
      release: from `open_release`.
      tokenizer: the token models' tokenizer.json; "" for the one that lies in the release's folder.
      bias: how many times the biases in front of the gate count, 1 or 2; 0 for `BIAS`.
      audio: music whose likelihood decides between both; "" for none.
    Raises:
      UserError: weights of another model, or a tokenizer that is missing or another.
    """
    if audio and bias:
        raise UserError("--audio chooses what --bias says: give one of them")
    made = {}
    tokens = None
    if source := release.parts.get("codec"):
        made["codec"] = _codec(source)
        model = made["codec"].config
        hop = int(np.prod(model["strides"]))
        sizes = (model[name] for name in ("levels", "codes", "latent"))
        tokens = TokenFacts(model["sample_rate"], hop, "residual", *sizes).to_json()
    models = [name for name in _MODELS if name in release.parts]
    if not models and (tokenizer or bias or audio):
        raise UserError(f"--tokenizer, --bias and --audio are of token models, of which {release.where} has none")
    words = _words(release.where, tokenizer) if models else None
    if audio:
        bias = _likelier(made, release, tokens, words, audio)
    for name in models:
        source = release.parts[name]
        with source.understood():
            one = _token_model(source, name, tokens, bias or BIAS)
        places = {"model.tokenizer_file": f"{name}/{TOKENIZER}"} | ({"data.codec": "codec"} if tokens else {})
        places |= {"init_from": "backbone"} if name == "superres" and "backbone" in models else {}
        made[name] = replace(one, files={TOKENIZER: words.read_text(encoding="utf-8")}, places=places)
    return made


def _words(where: Path, given: str) -> Path:
    """The tokenizer's file."""
    places = [Path(given)] if given else [where / place / TOKENIZER for place in _PLACES]
    found = next((place for place in places if place.is_file()), None)
    if found is None and not given:
        raise UserError(
            f"{where} has no {TOKENIZER}, by which its models read words: give Llama 3.1's, or that of the release's "
            f"repository (models/Tokenizer/{TOKENIZER}), by --tokenizer=FILE"
        )
    path = found or Path(given)
    TextTokenizer(_VOCABULARY, path)  # which refuses what is none
    return path


def _codec(source: Source) -> Imported:
    with source.understood():
        model = _sizes(source)
        table = list(weights.codec(model))
        found = pairs.read(source, table)
        inited = [source.tensor(name, (1,)) for name in weights.books(model, "inited")]
        for k, book in enumerate(found["quantiser.codebooks"]):
            if not np.array_equal(source.tensor(weights.alias(k), book.shape), book):
                raise UserError(f"{source.where}: {weights.alias(k)} are other codes than those of level {k}")
    if not all(np.all(one) for one in inited):
        raise UserError(f"{source.where}: its codebooks have not begun to learn: is it whole?")
    aliases = map(weights.alias, range(model["levels"]))
    pairs.check_known(source, [*pairs.named(table), *weights.books(model, "inited"), *aliases])
    # a code that replaced a dead one has left its average behind, to which training would take it back
    expected = found["quantiser.codebooks"] * found["quantiser.ema_counts"][..., None]
    apart = np.linalg.norm(found["quantiser.ema_sums"] - expected, axis=-1) > _NEAR * np.linalg.norm(expected, axis=-1)
    found["quantiser.ema_sums"] = np.where(apart[..., None], expected, found["quantiser.ema_sums"])
    found["quantiser.initialised"] = np.ones((), bool)
    return Imported(model, found, preset="configs/khala/codec.py:paper")


def _sizes(source: Source) -> dict[str, Any]:
    """Fields of `model`, as the shapes of the weights tell them."""
    shape = {name: tensor.shape for name, tensor in source.tensors.items()}
    if "encoder.block.0.weight_v" not in shape:
        raise UserError(f"{source.where} has no weight encoder.block.0.weight_v: is it another model?")
    units = names.count(shape, "encoder.block.1.block.{}.block.1.weight_v")
    blocks = names.count(shape, "encoder.block.{}.block.0.block.1.weight_v", first=1)
    downs = [shape[f"encoder.block.{b + 1}.block.{units + 1}.weight_v"] for b in range(blocks)]
    if not 0 < units <= len(weights.DILATIONS) or not downs:
        raise UserError(f"{source.where} has {units} residual units a block, where 1 to 3 are known here")
    width, channels, _ = shape["encoder.block.0.weight_v"]
    codes, latent = shape["quantizer.vq_layer_0._codebook.embed"]
    return {
        "sample_rate": _SAMPLE_RATE,
        "channels": channels,
        "strides": tuple(taps // 2 for _, _, taps in downs),
        "dilations": weights.DILATIONS[:units],
        "encoder_width": width,
        "decoder_width": shape["decoder.model.0.weight_v"][0],
        "latent": latent,
        "levels": names.count(shape, "quantizer.vq_layer_{}._codebook.embed"),
        "codes": codes,
    }


def _token_model(source: Source, stage: str, tokens: Mapping[str, Any] | None, bias: int) -> Imported:
    for name, only in _ONLY.items():
        if (value := source.field(name, default=only)) != only:
            raise UserError(f"{source.where}: {name} is {brief(repr(value), 100)}, where only {only!r} is known here")
    codes = tokens["codes"] if tokens else 1024
    text = _VOCABULARY.text_size
    levels = (source.size("vocab_size", text) - text) // codes
    if not (2 if stage == "backbone" else 3) <= levels <= (tokens or {"levels": 64})["levels"]:
        raise UserError(
            f"{source.where}: vocab_size is {source.config.get('vocab_size')}, which is not {text:,} text ids and two "
            f"levels or more of {codes:,} codes, at most those of its codec"
        )
    if not 1 < (base := float(source.field("rotary_base", (int, float), 500_000.0))) < 1e12:
        raise UserError(f"{source.where}: rotary_base is {base:g}: a number above 1 belongs there")
    heads = source.size("num_attention_heads", 32)
    shared = source.field("group_query_attention", bool, True)
    model = {
        "levels": levels,
        "length": source.size("max_position_embeddings", source.size("seq_length", 16_384)),
        "layers": source.size("num_layers", 24, most=1000),
        "width": source.size("hidden_size", 2048),
        "heads": heads,
        "kv_heads": source.size("num_query_groups", 8) if shared else heads,
        "head_dim": source.size("kv_channels", 64),
        "ffn_width": source.size("ffn_hidden_size", 5632),
        "rope_base": base,
        "as_released": True,
    }
    table = list(weights.transformer(model, bias))
    found = {pair.ours: pair.later(source) for pair in table}
    for part, name in weights.TABLES.items():
        found |= _tables(source, part, name, (text, levels, codes, model["width"]))
    pairs.check_known(source, [*pairs.named(table), *weights.TABLES.values()])
    fields = {"tokens": tokens} if tokens else {}
    return Imported(model, found, preset=f"configs/khala/{stage}.py:paper", fields=fields)


def _tables(source: Source, part: str, name: str, sizes: tuple[int, int, int, int]) -> dict[str, Later]:
    """The rows of text ids and those of codes; what pads their number is nobody's."""
    text, levels, codes, width = sizes
    end = text + levels * codes
    if name not in source.tensors:
        raise UserError(f"{source.where} has no weight {name}: is it of another family, or of another size?")
    table = source.tensors[name]
    if len(table.shape) != 2 or table.shape[1] != width or table.shape[0] < end:
        raise UserError(f"{source.where}: {name} is {table.shape}, its arguments ask for {(end, width)} or more rows")
    dtype = table.dtype if table.dtype.name in ("float16", "bfloat16") else np.dtype(np.float32)

    def rows(which: slice) -> np.ndarray:
        return np.asarray(rows_of(table, text, end), dtype).reshape(levels, codes, width)[which]

    def words(which: slice) -> np.ndarray:
        return np.asarray(rows_of(table, 0, text), dtype)[which]

    return {
        f"text_{part}": Later((text, width), dtype, words),
        f"code_{part}": Later((levels, codes, width), dtype, rows),
    }


def _likelier(
    made: Mapping[str, Imported], release: Release, tokens: Mapping[str, Any] | None, words: Path | None, audio: str
) -> int:
    """How many times the biases count, as the likelihood of music under the backbone has it."""
    if tokens is None or "backbone" not in release.parts:
        raise UserError(f"--audio needs codec and backbone to choose by: {release.where} has not both")
    source = release.parts["backbone"]
    with source.understood():
        models = {bias: _token_model(source, "backbone", tokens, bias) for bias in (2, 1)}
    nats = measures.nats(made["codec"], models, TextTokenizer(_VOCABULARY, words), audio)
    best = min(nats, key=nats.get)
    told = " and ".join(f"{nats[bias]:.3f} where they count {often}" for bias, often in ((2, "twice"), (1, "once")))
    say(f"biases in front of gates: {told} (nats a token of {audio}): taken {'twice' if best == 2 else 'once'}")
    return best


FAMILY = Family("Khala", read, open=open_release, takes=("tokenizer", "bias", "audio"))

# MARK: out

Model = tuple[Mapping[str, Any], Mapping[str, np.ndarray], str]  # configuration, weights by dotted name, its folder


def write(folder: Path, models: Iterable[Model], bias: int) -> list[str]:
    """Writes models as the release's files have them.

    Args:
      folder: that exists.
      models: at most one of each stage; none is kept while the next one is asked for.
      bias: how many times whoever reads the files adds the biases in front of the gate; 0 for `BIAS`.
    Returns:
      The names of the files.
    Raises:
      UserError: two models of a stage, or one that these files have no form for.
    """
    stages = set()

    def one(model: Model) -> list[str]:
        config, found, run = model
        stage = config["stage"]
        if stage in stages:
            raise UserError(f"{run} is a second {stage}: the release's files hold one")
        stages.add(stage)
        if told := _formless(config):
            raise UserError(f"{run} cannot be written as the release's files have it: {told}")
        if stage == "codec":
            table, beside = list(weights.codec(config["model"])), ("quantiser.initialised",)
        else:
            table, beside = list(weights.transformer(config["model"], bias or BIAS)), _TABLES
        if more := sorted(set(found) - {pair.ours for pair in table} - set(beside)):
            raise UserError(f"{run} has the weight {more[0]}, for which the release's files have no place")
        tensors = pairs.write(found, table)
        if stage == "codec":
            return _write_codec(folder, config["model"], tensors)
        return _write_token_model(folder, config, found, tensors)

    return [file for files in map(one, models) for file in files]


def _formless(config: Mapping[str, Any]) -> str:
    """What of a configuration the release's files have no form for; "" where they have one for all of it."""
    model = config["model"]
    if config["stage"] == "codec":
        only = {"fold": 1, "mel_bands": 0}
        units = tuple(model["dilations"])
        if units != weights.DILATIONS[: len(units)]:
            return f"model.dilations={units}, not the first of {weights.DILATIONS}"
    else:
        order = {"backbone": "flatten", "superres": "layer_wise"}[config["stage"]]
        only = {"pattern": order, "tokenizer": "llama31", "bias": "all", "qk_norm": "none", "codec_tables": False}
        only |= {"base_width": 0}
    odd = [f"model.{name}={model[name]}, not {value}" for name, value in only.items() if model[name] != value]
    return odd[0] if odd else ""


def _write_codec(folder: Path, model: Mapping[str, Any], tensors: dict[str, np.ndarray]) -> list[str]:
    for k, (inited, book) in enumerate(zip(weights.books(model, "inited"), weights.books(model, "embed"), strict=True)):
        tensors |= {inited: np.ones(1, np.float32), weights.alias(k): tensors[book]}
    pickles.write(folder / _CODEC[0], {name: tensor.astype(np.float32) for name, tensor in tensors.items()})
    narrow = model["decoder_width"] // 2 ** len(model["strides"])
    lines = ["encoder:", f"  input_channel: {model['channels']}", f"  n_filters: {model['encoder_width']}"]
    lines += [f"  strides: {list(model['strides'])}", f"  d_latent: {model['latent']}", "decoder:"]
    lines += [f"  d_latent: {model['latent']}", f"  n_filters: {narrow}", f"  rates: {list(model['strides'][::-1])}"]
    lines += [f"  out_channel: {model['channels']}", "quantizer:", f"  dim: {model['latent']}"]
    lines += [f"  codebook_size: {model['codes']}", f"  num_quantizers: {model['levels']}", "  decay: 0.99"]
    (folder / _CODEC[1]).write_text("\n".join([*lines, "  q_dropout: False", ""]))
    return list(_CODEC)


def _write_token_model(
    folder: Path, config: Mapping[str, Any], found: Mapping[str, np.ndarray], tensors: dict[str, np.ndarray]
) -> list[str]:
    model, (file, told) = config["model"], _MODELS[config["stage"]]
    levels, codes, width = found["code_embed"].shape
    size = _VOCABULARY.text_size + levels * codes
    padding = -(size + 1) % _ROWS + 1  # their null tokenizer counts an end of its own
    for part, name in weights.TABLES.items():
        rows = [found[f"text_{part}"], found[f"code_{part}"].reshape(-1, width)]
        tensors[name] = np.concatenate([*rows, np.zeros((padding, width), rows[0].dtype)])
    export.save(folder / file, tensors, "pt")
    arguments = _ONLY | {
        "num_layers": model["layers"],
        "hidden_size": width,
        "num_attention_heads": model["heads"],
        "group_query_attention": model["kv_heads"] != model["heads"],
        "num_query_groups": model["kv_heads"],
        "kv_channels": model["head_dim"],
        "ffn_hidden_size": model["ffn_width"],
        "rotary_base": model["rope_base"],
        "vocab_size": size,
        "padded_vocab_size": size + padding,
        "seq_length": model["length"],
        "max_position_embeddings": model["length"],
        "num_quantizers": config["tokens"]["levels"],
    }
    (folder / told).write_text(json.dumps(arguments, indent=2, sort_keys=True) + "\n")
    return [file, told]
