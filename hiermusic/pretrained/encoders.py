"""HuBERT, CLAP and VGGish as others publish them, in and out, and k-means over the first."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hiermusic.errors import UserError
from hiermusic.pretrained import centroids, clap, encoder, hubert, names, semantic, vggish
from hiermusic.pretrained.family import Family, Imported
from hiermusic.pretrained.plain import FEATURES
from hiermusic.pretrained.source import Source

_CENTRES = "cluster_centers_"
_PARTS = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


def read_hubert(source: Source) -> Imported:
    """HuBERT of any size: a transformers folder of HubertModel or of what is built on it, or fairseq's file.

    Raises:
      UserError: another model, or one that was fine-tuned by fairseq.
    """
    tensors = source.tensors
    if "post_extract_proj.weight" in tensors:
        with source.understood():
            config = _checked(hubert.of_fairseq({name: tensor.shape for name, tensor in tensors.items()}))
        table, spare = hubert.fairseq_names(config), ("mask_emb", "final_proj.", "label_embs_concat")
    else:
        _of_type(source, "hubert")
        if any(name.startswith("hubert.") for name in tensors):  # with a head on it, which is left where it is
            tensors = {name[7:]: tensor for name, tensor in tensors.items() if name.startswith("hubert.")}
        with source.understood():
            config = _checked(hubert.of_transformers(source.config))
        table, spare = hubert.transformers_names(config), ("masked_spec_embed",)
    return _imported(config, names.take(tensors, table, encoder.shapes(config), str(source.where), spare))


def read_clap(source: Source) -> Imported:
    """CLAP, unfused, with HTSAT and RoBERTa: a transformers folder of ClapModel, or LAION's file.

    Raises:
      UserError: another model, or a fused one.
    """
    with source.understood():
        if source.where.is_dir():
            _of_type(source, "clap")
            front = clap.front_of(source.where)
            config, tensors = clap.of_transformers(source.config, front, source.tensors)
        else:
            config, tensors = clap.of_laion(source.tensors)
        config = _checked(config)
    weights = names.take(tensors, clap.transformers_names(config), encoder.shapes(config), str(source.where))
    words = clap.tokenizer_of(source.where) if source.where.is_dir() else None
    return Imported(encoder.to_fields(config), weights, {clap.TOKENIZER: words} if words else {})


def read_vggish(source: Source) -> Imported:
    """VGGish as torchvggish publishes it.

    Raises:
      UserError: another model.
    """
    with source.understood():
        config = vggish.of_torchvggish({name: tensor.shape for name, tensor in source.tensors.items()})
    shapes = encoder.shapes(config)
    weights = names.take(source.tensors, vggish.torchvggish_names(), shapes, str(source.where), ("pproc.",))
    return _imported(config, weights)


def open_kmeans(path: str) -> Source:
    """The centres of somebody else's clusters (`centroids.read`) as published weights."""
    return Source(Path(path), {}, {_CENTRES: centroids.read(path)})


def read_kmeans(source: Source, encoder: str = "", layer: int | None = None) -> Imported:
    """A tokenizer of these clusters and an encoder's features; see `semantic.of_centroids`."""
    if not encoder:
        raise UserError(f"{source.where} says nothing of what it clusters: give --encoder=HUBERT, an imported folder")
    if encoder in FEATURES and layer is not None:
        raise UserError(f"--layer={layer}: {encoder} has no layers: leave it out")
    config, weights = semantic.of_centroids(source.where, source.tensors[_CENTRES], encoder, layer)
    place = os.path.abspath(encoder) if os.path.isdir(encoder) else encoder
    heard = {} if encoder in FEATURES else {"layer": config.features.layer}
    return Imported({"encoder": place, "codes": config.codes, **heard}, weights)


def write_hubert(imported: Imported) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The config.json and the weights of transformers' HubertModel."""
    config = encoder.of_fields(imported.config)
    tensors = names.give(imported.weights, hubert.transformers_names(config))
    return hubert.to_transformers(config), {_newer(name): tensor for name, tensor in tensors.items()}


def write_clap(imported: Imported) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The config.json and the weights of transformers' ClapModel; `clap.preprocessor` is what lies beside them."""
    config = encoder.of_fields(imported.config)
    return clap.to_transformers(config), names.give(imported.weights, clap.transformers_names(config))


def beside_clap(config: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """What transformers' ClapProcessor wants beside the weights, the tokenizer as far as it is there."""
    front = json.dumps(clap.preprocessor(encoder.of_fields(config)), indent=2) + "\n"
    words = clap.tokenizer_of(folder)
    return {"preprocessor_config.json": front} | ({clap.TOKENIZER: words} if words else {})


def _checked(config: encoder.Config) -> encoder.Config:
    """The same configuration; ValueError where it is not what its folder will be read back as."""
    return encoder.of_fields(json.loads(json.dumps(encoder.to_fields(config))))


def _newer(name: str) -> str:
    stem, _, last = name.rpartition(".")
    return f"{stem}.{_PARTS[last]}" if last in _PARTS else name


def _imported(config: encoder.Config, weights: Mapping[str, np.ndarray]) -> Imported:
    return Imported(encoder.to_fields(config), weights)


def _of_type(source: Source, wanted: str) -> None:
    if (found := source.config.get("model_type")) != wanted:
        raise UserError(
            f"{source.where}: its config.json is of a {found}, not of a {wanted}: give another KIND or folder"
        )


def _owns(family: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda config: (config.get("stage"), config.get("family")) == (encoder.STAGE, family)


_EMBED = "hiermusic embed --model=FOLDER in.wav out.npy"
FAMILIES = {
    "hubert": Family("HuBERT", read_hubert, write_hubert, use=_EMBED, owns=_owns("hubert")),
    "clap": Family("CLAP", read_clap, write_clap, use=_EMBED, owns=_owns("clap"), beside=beside_clap),
    "vggish": Family("VGGish", read_vggish, use=_EMBED, owns=_owns("vggish")),
    "kmeans": Family(
        "k-means", read_kmeans, config="configs/tokens/semantic.py:hubert", open=open_kmeans, takes=("encoder", "layer")
    ),
}
