"""HuBERT, CLAP and VGGish as others publish them, in and out."""

from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from hiermusic.errors import UserError
from hiermusic.pretrained import clap, encoder, hubert, names, vggish
from hiermusic.pretrained.kinds import Imported
from hiermusic.pretrained.source import Source

_PARTS = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


def read_hubert(source: Source) -> Imported:
    """HuBERT of any size: a transformers folder of HubertModel or of what is built on it, or fairseq's file.

    Raises:
      UserError: another model, or one that was fine-tuned by fairseq.
    """
    tensors = source.tensors
    if "post_extract_proj.weight" in tensors:
        with _at(source):
            config = hubert.of_fairseq({name: tensor.shape for name, tensor in tensors.items()})
        table, spare = hubert.fairseq_names(config), ("mask_emb", "final_proj.", "label_embs_concat")
    else:
        _of_type(source, "hubert")
        if any(name.startswith("hubert.") for name in tensors):  # with a head on it, which is left where it is
            tensors = {name[7:]: tensor for name, tensor in tensors.items() if name.startswith("hubert.")}
        with _at(source):
            config = hubert.of_transformers(source.config)
        table, spare = hubert.transformers_names(config), ("masked_spec_embed",)
    return _imported(config, names.take(tensors, table, encoder.shapes(config), str(source.where), spare))


def read_clap(source: Source) -> Imported:
    """CLAP, unfused, with HTSAT and RoBERTa: a transformers folder of ClapModel, or LAION's file.

    Raises:
      UserError: another model, or a fused one.
    """
    with _at(source):
        if source.where.is_dir():
            _of_type(source, "clap")
            front = clap.front_of(source.where)
            config, tensors = clap.of_transformers(source.config, front, source.tensors)
        else:
            config, tensors = clap.of_laion(source.tensors)
    weights = names.take(tensors, clap.transformers_names(config), encoder.shapes(config), str(source.where))
    words = clap.tokenizer_of(source.where) if source.where.is_dir() else None
    return Imported(encoder.to_fields(config), weights, {clap.TOKENIZER: words} if words else {})


def read_vggish(source: Source) -> Imported:
    """VGGish as torchvggish publishes it.

    Raises:
      UserError: another model.
    """
    with _at(source):
        config = vggish.of_torchvggish({name: tensor.shape for name, tensor in source.tensors.items()})
    shapes = encoder.shapes(config)
    weights = names.take(source.tensors, vggish.torchvggish_names(), shapes, str(source.where), ("pproc.",))
    return _imported(config, weights)


def write_hubert(imported: Imported) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The config.json and the weights of transformers' HubertModel."""
    config = encoder.of_fields(imported.config)
    tensors = names.give(imported.weights, hubert.transformers_names(config))
    return hubert.to_transformers(config), {_newer(name): tensor for name, tensor in tensors.items()}


def write_clap(imported: Imported) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The config.json and the weights of transformers' ClapModel; `clap.preprocessor` is what lies beside them."""
    config = encoder.of_fields(imported.config)
    return clap.to_transformers(config), names.give(imported.weights, clap.transformers_names(config))


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


@contextmanager
def _at(source: Source):
    """Tells of what is read of a configuration or of shapes where it lies."""
    try:
        yield
    except UserError as error:
        told = str(error)
        raise UserError(told if told.startswith(str(source.where)) else f"{source.where}: {told}") from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{source.where} cannot be understood ({type(error).__name__}: {error})") from error
