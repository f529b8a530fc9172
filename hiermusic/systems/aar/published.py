"""SAT and AAR as their authors have published them: PyTorch's checkpoints, codec and model of a window apart."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hiermusic.errors import UserError
from hiermusic.pretrained import export, names, pairs, pickles
from hiermusic.pretrained.family import Family, Imported
from hiermusic.pretrained.source import Source
from hiermusic.systems import workdir as workdirs
from hiermusic.systems.aar import weights
from hiermusic.systems.aar.models import codec_config
from hiermusic.tokens.scales import schedule
from hiermusic.train import checkpoint

_STATES = ("generator_state_dict", "model_state_dict")
_SAMPLE_RATE, _WINDOW = 24_000, 75  # which nothing tells


def open_checkpoint(path: str) -> Source:
    """The weights of a checkpoint of either model.

    Raises:
      UserError: another file.
    """
    where = Path(path)
    if not where.is_file():
        raise UserError(f"no weights at {where}: give the .pth file that was published")
    value = pickles.read(where, strangers=pickles.TRAINERS)
    state = value if isinstance(value, dict) else {}
    state = next((state[name] for name in _STATES if isinstance(state.get(name), dict)), state)
    found = {name: one for name, one in state.items() if isinstance(name, str) and isinstance(one, np.ndarray)}
    if not found:
        raise UserError(f"{where} holds no weights by name, be it at the top or under {', '.join(_STATES)}")
    return Source(where, {}, {name.removeprefix("module."): one for name, one in found.items()})


def read_sat(source: Source) -> Imported:
    """The codec; UserError where the weights are another model's."""
    with source.understood():
        model = _sizes(source)
        table = list(weights.codec(model))
        found = pairs.read(source, table)
        wide = 4 * model["width"] * 2 ** len(model["strides"])
        biases = weights.lstm_biases(model)
        for ours, halves in biases.items():
            found[ours] = sum(source.tensor(name, (wide,)) for name in halves)
    found["quantiser.initialised"] = np.ones((), bool)
    known = {*pairs.named(table)} | {name for halves in biases.values() for name in halves}
    pairs.check_known(source, known | set(weights.books(model, "inited")))
    return Imported(model, found, preset="configs/aar/codec.py:paper")


def _sizes(source: Source) -> dict[str, Any]:
    """Fields of `model`, as the shapes of the weights tell them."""
    shape = {name: tensor.shape for name, tensor in source.tensors.items()}
    if "encoder.model.0.conv.conv.weight_v" not in shape or "quantizer.vq.layers.0._codebook.embed" not in shape:
        raise UserError(f"{source.where} is no SAT: it has no encoder.model.0.conv.conv.weight_v, or no codebooks")
    width, channels, _ = shape["encoder.model.0.conv.conv.weight_v"]
    downs, place = [], 3
    while (
        f"encoder.model.{place}.conv.conv.weight_v" in shape
        and f"encoder.model.{place - 2}.shortcut.conv.conv.bias" in shape
    ):
        downs.append(shape[f"encoder.model.{place}.conv.conv.weight_v"][2] // 2)
        place += 3
    levels = names.count(shape, "quantizer.vq.layers.{}._codebook.embed")
    codes, code_latent = shape["quantizer.vq.layers.0._codebook.embed"]
    phis = names.count(shape, "quantizer.vq.quant_resi.qresi_ls.{}.weight")
    schedule("quadratic", _WINDOW, levels)  # which refuses more levels than a window has frames
    return {
        "sample_rate": _SAMPLE_RATE,
        "channels": channels,
        "strides": tuple(downs),
        "width": width,
        "lstm_layers": names.count(shape, f"encoder.model.{place - 2}.lstm.bias_ih_l{{}}"),
        "latent": shape["decoder.model.0.conv.conv.weight_v"][1],
        "levels": levels,
        "codes": codes,
        "window": _WINDOW,
        "code_latent": code_latent,
        "phi_count": phis,
        "phi_kernel": shape["quantizer.vq.quant_resi.qresi_ls.0.weight"][2],
    }


def read_aar(source: Source, codec: str = "") -> Imported:
    """The model of a window, over the codes of its SAT.

    Args:
      source: its weights.
      codec: folder of the imported SAT.
    Raises:
      UserError: weights of another model, or of one of other codes.
    """
    if not codec:
        raise UserError(f"{source.where} predicts the codes of a SAT: give --codec=FOLDER, that SAT imported before")
    theirs = workdirs.read(codec, "codec")
    if theirs.get("system") != "aar" or theirs.model.quantiser != "multiscale":
        raise UserError(f"{codec} is no SAT: give a folder that `hiermusic import sat` wrote")
    facts = codec_config(theirs.model).facts
    with source.understood():
        D, latent = _matrix(source, "word_embed.weight")
        depth, cond = D // weights.HEAD, _matrix(source, "class_emb.fc1.weight")[1]
        if latent != facts.latent:
            raise UserError(
                f"{source.where} reads latents of {latent} numbers, {codec} has {facts.latent}: another SAT?"
            )
        positions, levels = sum(facts.scales), facts.levels
        table = list(weights.prior(depth, cond, latent, facts.codes, positions, levels))
        found = pairs.read(source, table)
        level_KD = source.tensor("lvl_embed.weight", (levels, D))
        found["lm.level_embed"] = np.concatenate([level_KD, np.zeros((1, D))]).astype(np.float32)  # none for context
        fused = [f"blocks.{i}.{weights.FUSED}" for i in range(depth)]
        whole = np.stack([source.tensor(name, (3 * D, D)) for name in fused])
        parts = whole.reshape(depth, 3, depth, weights.HEAD, D).transpose(1, 0, 4, 2, 3)
        for name, part in zip(("query", "key", "value"), parts, strict=True):
            found[f"lm.trunk.layers.attention.{name}"] = np.ascontiguousarray(part, np.float32)
    spare = {f"blocks.{i}.{weights.SPARE_OF_BLOCK}" for i in range(depth)}
    pairs.check_known(source, {*pairs.named(table)} | {"lvl_embed.weight", *fused, *weights.SPARE} | spare)
    trained = export.dotted(checkpoint.load_weights(codec))
    found |= {f"quantiser.{name}": trained[f"quantiser.{name}"] for name in ("codebooks", "phi", "phi_bias")}
    if "quantiser.in_proj" in trained:
        raise UserError(
            f"{codec} has codes narrower than its frames, which no published AAR is trained on: give another"
        )
    model = {"depth": depth, "cond": cond, "listener": 0, "context": 0}
    fields = {"tokens": facts.to_json(), "data.codec": os.path.abspath(codec)}
    return Imported(model, found, preset="configs/aar/lm.py:paper", fields=fields)


def _matrix(source: Source, name: str) -> tuple[int, int]:
    if name not in source.tensors:
        raise UserError(f"{source.where} has no weight {name}: is it an AAR?")
    rows, columns = source.tensors[name].shape
    return rows, columns


FAMILIES: Mapping[str, Family] = {
    "sat": Family("SAT", read_sat, open=open_checkpoint),
    "aar": Family("AAR", read_aar, open=open_checkpoint, takes=("codec",)),
}
