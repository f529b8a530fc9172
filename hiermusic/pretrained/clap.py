"""CLAP (arXiv 2211.06687, LAION): music and words as vectors of one space, of unit length.

Of the published forms, the unfused ones with HTSAT for an ear and RoBERTa for words. Letters: B batch, L samples, T
frames, M mel bands, S ids of a text, U numbers of a vector.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from hiermusic.audio import spectral
from hiermusic.errors import UserError, reading
from hiermusic.nn.norms import unit
from hiermusic.pretrained import names, roberta, swin
from hiermusic.pretrained.layers import Linear
from hiermusic.pretrained.names import Arrays, Rename
from hiermusic.pretrained.roberta import Roberta, RobertaConfig
from hiermusic.pretrained.swin import Swin, SwinConfig

TOKENIZER = "tokenizer.json"
# what both towers carry besides: temperatures of training, and tables that follow from sizes
_SPARE = re.compile(r"logit_scale.*|.*(relative_position_index|num_batches_tracked|position_ids|token_type_ids)")


@dataclass(frozen=True)
class ClapConfig:
    """Sizes of both towers and of what the ear is given; the defaults are those of HTSAT tiny.

    Args:
      audio, text: of the towers.
      width: U.
      seconds: of a clip, which a shorter one is repeated to fill.
      n_fft, hop, fmin, fmax: of the mel spectrum, samples and Hz.
    """

    audio: SwinConfig = field(default_factory=SwinConfig)
    text: RobertaConfig = field(default_factory=RobertaConfig)
    width: int = 512
    seconds: float = 10.0
    n_fft: int = 1024
    hop: int = 480
    fmin: float = 0.0
    fmax: float = 14000.0

    sample_rate = 48000

    @property
    def span(self) -> int:
        """Samples of a clip."""
        return round(self.seconds * self.sample_rate)

    def make(self, *, rngs: nnx.Rngs) -> "Clap":
        return Clap(self, rngs=rngs)


class Projection(nnx.Module):
    """Two linear maps with a ReLU between them."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.first, self.second = Linear(inputs, outputs, rngs=rngs), Linear(outputs, outputs, rngs=rngs)

    def __call__(self, x: Float[Array, "B D"]) -> Float[Array, "B U"]:
        return self.second(jnp.maximum(self.first(x), 0))


class Clap(nnx.Module):
    """Both towers."""

    def __init__(self, config: ClapConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        self.audio, self.text = Swin(c.audio, rngs=rngs), Roberta(c.text, rngs=rngs)
        self.audio_out = Projection(c.audio.out, c.width, rngs=rngs)
        self.text_out = Projection(c.text.width, c.width, rngs=rngs)

    @property
    def width(self) -> int:
        """U of the vectors."""
        return self.config.width

    def __call__(self, wav_BL: Float[Array, "B L"]) -> Float[Array, "B U"]:
        """Vectors of clips of `config.span` samples: mono, 48 kHz, about [-1, 1]."""
        return self.hear(self.mel(wav_BL))

    def mel(self, wav_BL: Float[Array, "B L"]) -> Float[Array, "B T M"]:
        """What the ear is given: a mel spectrum in dB (Slaney's filters, power, floor at -100)."""
        c = self.config
        power_BTM = spectral.mel(
            wav_BL, c.sample_rate, c.n_fft, c.hop, c.audio.bands, fmin=c.fmin, fmax=c.fmax, squared=True
        )
        return 10 * jnp.log10(jnp.maximum(power_BTM, 1e-10))

    def hear(self, mel_BTM: Float[Array, "B T M"]) -> Float[Array, "B U"]:
        """Vectors of mel spectra."""
        return unit(self.audio_out(self.audio(mel_BTM)))

    def read(self, ids_BS: Int[Array, "B S"]) -> Float[Array, "B U"]:
        """Vectors of texts, filled up with `config.text.pad` at their ends."""
        return unit(self.text_out(self.text(ids_BS)))

    def clips(self, wav_L: Float[np.ndarray, "L"]) -> Float[np.ndarray, "B L"]:
        """A sound of any length as clips, one behind the other; the last ends where the sound does.

        A shorter sound is repeated as often as it fits, and silence follows.
        """
        span = self.config.span
        if len(wav_L) < span:
            repeated = np.tile(wav_L, span // len(wav_L))
            return np.pad(repeated, (0, span - len(repeated)))[None]
        starts = [*range(0, len(wav_L) - span + 1, span)]
        if starts[-1] + span < len(wav_L):
            starts.append(len(wav_L) - span)
        return np.stack([wav_L[start : start + span] for start in starts])


def ids_of(texts: Sequence[str], folder: str | Path, config: RobertaConfig) -> Int[np.ndarray, "B S"]:
    """Texts as a CLAP's text tower takes them, by the tokenizer that lies in its folder.

    Args:
      texts: words, the ends of those that are too long left out.
      folder: an imported CLAP.
      config: of its text tower.
    Raises:
      UserError: no tokenizer there, or `tokenizers` is not installed.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise UserError("words need the package tokenizers: pip install 'hiermusic[text]'") from error
    path = Path(folder) / TOKENIZER
    with reading(path, "a tokenizer", "import the CLAP again, from a folder with tokenizer.json or vocab.json"):
        tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        tokenizer.enable_truncation(config.longest)
        tokenizer.no_padding()
        rows = [one.ids for one in tokenizer.encode_batch(list(texts))]
        if not all(0 <= number < config.ids for row in rows for number in row):
            raise ValueError("its ids are beyond the model's")
    longest = max(map(len, rows))
    return np.array([row + [config.pad] * (longest - len(row)) for row in rows], np.int32)


def tokenizer_of(folder: Path) -> str | None:
    """The text of tokenizer.json in a folder of published weights, made of vocab.json and merges.txt where need be."""
    path = folder / TOKENIZER
    if path.is_file():
        with reading(path, "a tokenizer", "get the file again"):
            return path.read_text(encoding="utf-8")
    if not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        return None
    try:
        from tokenizers import ByteLevelBPETokenizer
        from tokenizers.processors import RobertaProcessing
    except ImportError as error:
        raise UserError("words need the package tokenizers: pip install 'hiermusic[text]'") from error
    with reading(folder / "vocab.json", "a vocabulary with merges.txt beside it", "get both files again"):
        made = ByteLevelBPETokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
        ends = {name: made.token_to_id(name) for name in ("</s>", "<s>")}
        made.post_processor = RobertaProcessing(*((name, number) for name, number in ends.items()))
        return made.to_str()


# MARK: names elsewhere


def transformers_names(config: ClapConfig) -> list[Rename]:
    """Our weights by the names of transformers' ClapModel."""
    found = swin.transformers_names(config.audio, "audio", "audio_model.audio_encoder")
    found += roberta.transformers_names(config.text, "text", "text_model")
    for tower in ("audio", "text"):
        found += names.linear(f"{tower}_out.first", f"{tower}_projection.linear1")
        found += names.linear(f"{tower}_out.second", f"{tower}_projection.linear2")
    return found


def of_transformers(config: Mapping[str, Any], front: Mapping[str, Any], tensors: Arrays) -> tuple[ClapConfig, Arrays]:
    """A published CLAP: its configuration, and its weights as `transformers_names` has them.

    Args:
      config: of its config.json.
      front: of its preprocessor_config.json, empty where there is none.
      tensors: its weights, with the patches as a convolution's.
    Raises:
      UserError: a fused model, or choices that are not LAION's.
    """
    audio, text = dict(config.get("audio_config") or {}), dict(config.get("text_config") or {})
    if audio.get("enable_fusion") or front.get("truncation") == "fusion":
        raise UserError("this is a fused CLAP, which hears long sounds in another way: take an unfused one")
    names.supported(audio, hidden_act="gelu", qkv_bias=True, enable_patch_layer_norm=True, flatten_patch_embeds=True)
    names.supported(audio, patch_embed_input_channels=1, projection_hidden_act="relu")
    names.supported(text, hidden_act="gelu", projection_hidden_act="relu", type_vocab_size=1)
    names.supported(config, projection_hidden_act="relu")
    names.supported(front, sampling_rate=48000, padding="repeatpad", top_db=None)
    patch, stride = ({*np.ravel(audio.get(name, 4)).tolist()} for name in ("patch_size", "patch_stride"))
    if patch != stride or len(patch) != 1:
        raise UserError(f"its patches are {patch}, {stride} apart, where only square ones side by side can be imported")
    c, t, f = audio.get, text.get, front.get
    found = ClapConfig(
        SwinConfig(
            bands=c("num_mel_bins", 64),
            side=c("spec_size", 256),
            patch=patch.pop(),
            width=c("patch_embeds_hidden_size", 96),
            depths=tuple(c("depths", (2, 2, 6, 2))),
            heads=tuple(c("num_attention_heads", (4, 8, 16, 32))),
            window=c("window_size", 8),
            mlp_ratio=c("mlp_ratio", 4.0),
            eps=c("layer_norm_eps", 1e-5),
        ),
        RobertaConfig(
            ids=t("vocab_size", 50265),
            width=t("hidden_size", 768),
            layers=t("num_hidden_layers", 12),
            heads=t("num_attention_heads", 12),
            ffn_width=t("intermediate_size", 3072),
            positions=t("max_position_embeddings", 514),
            pad=t("pad_token_id", 1),
            eps=t("layer_norm_eps", 1e-12),
        ),
        width=config.get("projection_dim", 512),
        seconds=float(f("max_length_s", 10)),
        n_fft=f("fft_window_size", 1024),
        hop=f("hop_length", 480),
        fmin=float(f("frequency_min", 0)),
        fmax=float(f("frequency_max", 14000)),
    )
    return found, {name: tensor for name, tensor in tensors.items() if not _SPARE.fullmatch(name)}


def to_transformers(config: ClapConfig) -> dict[str, Any]:
    """The config.json with which transformers' ClapModel takes the weights."""
    a, t = config.audio, config.text
    audio = {
        "model_type": "clap_audio_model",
        "num_mel_bins": a.bands,
        "spec_size": a.side,
        "patch_size": a.patch,
        "patch_stride": [a.patch, a.patch],
        "patch_embeds_hidden_size": a.width,
        "depths": list(a.depths),
        "num_attention_heads": list(a.heads),
        "num_hidden_layers": len(a.depths),
        "window_size": a.window,
        "mlp_ratio": a.mlp_ratio,
        "layer_norm_eps": a.eps,
        "hidden_size": a.out,
        "projection_dim": config.width,
        "enable_fusion": False,
    }
    text = {
        "model_type": "clap_text_model",
        "vocab_size": t.ids,
        "hidden_size": t.width,
        "num_hidden_layers": t.layers,
        "num_attention_heads": t.heads,
        "intermediate_size": t.ffn_width,
        "max_position_embeddings": t.positions,
        "pad_token_id": t.pad,
        "layer_norm_eps": t.eps,
        "type_vocab_size": 1,
        "projection_dim": config.width,
    }
    top = {"model_type": "clap", "architectures": ["ClapModel"], "projection_dim": config.width}
    return {**top, "audio_config": audio, "text_config": text}


def preprocessor(config: ClapConfig) -> dict[str, Any]:
    """The preprocessor_config.json that goes with it."""
    return {
        "feature_extractor_type": "ClapFeatureExtractor",
        "feature_size": config.audio.bands,
        "sampling_rate": config.sample_rate,
        "hop_length": config.hop,
        "max_length_s": int(config.seconds),
        "fft_window_size": config.n_fft,
        "frequency_min": config.fmin,
        "frequency_max": config.fmax,
        "truncation": "rand_trunc",
        "padding": "repeatpad",
    }


def front_of(folder: Path) -> dict[str, Any]:
    """What lies in a folder as preprocessor_config.json; nothing where it is not there."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        return {}
    with reading(path, "a configuration", "get the file again"):
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is no object")
        return value


# MARK: LAION's own files

_LAION = (
    ("audio_branch.", "audio_model.audio_encoder."),
    ("text_branch.", "text_model."),
    (".attn.proj.", ".attention.output.dense."),
    (".attn.relative", ".attention.self.relative"),
    (".mlp.fc1.", ".intermediate.dense."),
    (".mlp.fc2.", ".output.dense."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".bn0.", ".batch_norm."),
    ("_projection.0.", "_projection.linear1."),
    ("_projection.2.", "_projection.linear2."),
)
_LAION_SPARE = re.compile(
    r"logit_scale|(audio|text)_transform\.|.*(spectrogram_extractor|logmel_extractor|tscam_conv|attn_mask|\.head\.)"
    r"|.*num_batches_tracked|.*position_ids|.*relative_position_index"
)


def of_laion(tensors: Arrays) -> tuple[ClapConfig, Arrays]:
    """A CLAP as LAION's own program saves it, by transformers' names.

    Raises:
      UserError: a fused model, or one with another ear or another reader.
    """
    found: dict[str, np.ndarray] = {}
    for full, tensor in tensors.items():
        name = full.removeprefix("module.")
        if _LAION_SPARE.match(name):
            continue
        for old, new in _LAION:
            name = name.replace(old, new)
        if ".attn.qkv." in name:
            for part, piece in zip(("query", "key", "value"), np.split(tensor, 3), strict=True):
                found[name.replace(".attn.qkv.", f".attention.self.{part}.")] = piece
        else:
            found[name] = tensor
    ear, reader = "audio_model.audio_encoder.", "text_model."
    if any("fusion_model" in name or "mel_conv2d" in name for name in found):
        raise UserError("this is a fused CLAP, which hears long sounds in another way: take an unfused one")
    try:
        depths = []
        while depth := names.count(found, f"{ear}layers.{len(depths)}.blocks.{{}}.layernorm_before.weight"):
            depths.append(depth)
        tables = [
            found[f"{ear}layers.{i}.blocks.0.attention.self.relative_position_bias_table"] for i in range(len(depths))
        ]
        patches, words = found[f"{ear}patch_embed.proj.weight"], found[f"{reader}embeddings.word_embeddings.weight"]
        text = RobertaConfig(
            ids=len(words),
            width=words.shape[1],
            layers=names.count(found, f"{reader}encoder.layer.{{}}.intermediate.dense.weight"),
            heads=max(words.shape[1] // 64, 1),
            ffn_width=len(found[f"{reader}encoder.layer.0.intermediate.dense.weight"]),
            positions=len(found[f"{reader}embeddings.position_embeddings.weight"]),
            eps=1e-5,  # RoBERTa's own
        )
        audio = SwinConfig(
            bands=len(found[f"{ear}batch_norm.weight"]),
            patch=patches.shape[-1],
            width=len(patches),
            depths=tuple(depths),
            heads=tuple(table.shape[1] for table in tables),
            window=(round(len(tables[0]) ** 0.5) + 1) // 2,
        )
        width = len(found["audio_projection.linear1.weight"])
    except (KeyError, IndexError) as error:
        raise UserError(f"it has not what LAION's CLAP with HTSAT and RoBERTa has ({error})") from error
    return ClapConfig(audio, text, width=width, fmin=50.0), found
