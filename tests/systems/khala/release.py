"""Khala's release as its authors and its port describe it, in NumPy: names, shapes, files, and what its models compute.

Written from the layout of the published files, with none of the package's own tables.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import ml_dtypes
import numpy as np

from ...pretrained.torch_files import save, tensor

TEXT, EOS = 128_256, 128_001

PAPER = SimpleNamespace(
    layers=24, width=2048, heads=32, kv_heads=8, head_dim=64, ffn=5632, codes=1024, levels=64, base=500_000.0,
    channels=2, strides=(4, 8, 8, 8), encoder=128, decoder=3072, latent=128,
)  # fmt: skip
TINY = SimpleNamespace(
    layers=2, width=16, heads=4, kv_heads=2, head_dim=4, ffn=24, codes=16, levels=5, base=10_000.0,
    channels=2, strides=(4, 2), encoder=4, decoder=16, latent=8,
)  # fmt: skip
MODELS = ("backbone", "superres")
FILES = (
    "decoder_config.yaml",
    "decoder_weights.pt",
    *(f"{name}_megatron_args.json" for name in MODELS),
    *(f"khala_{name}.safetensors" for name in MODELS),
)


def rows(levels: int, codes: int) -> int:
    """Of the tables: their null tokenizer counts one id more, and the sum is filled up to a multiple of 128."""
    return -(-(TEXT + levels * codes + 1) // 128) * 128


def transformer(s: SimpleNamespace, levels: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a token model."""
    D, q, kv = s.width, s.heads * s.head_dim, s.kv_heads * s.head_dim
    table = (rows(levels, s.codes), D)
    found = {"embed.weight": table, "lm_head.weight": table, "norm.weight": (D,)}
    for i in range(s.layers):
        one = {"input_norm.weight": (D,), "post_attn_norm.weight": (D,)}
        for name, out, inputs in (
            ("attn.q_proj", q, D), ("attn.k_proj", kv, D), ("attn.v_proj", kv, D), ("attn.o_proj", D, q),
            ("mlp.gate_proj", s.ffn, D), ("mlp.up_proj", s.ffn, D), ("mlp.down_proj", D, s.ffn),
        ):  # fmt: skip
            one |= {f"{name}.weight": (out, inputs), f"{name}.bias": (out,)}
        found |= {f"layers.{i}.{name}": shape for name, shape in one.items()}
    return found


def codec(s: SimpleNamespace) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the codec."""
    found = {}

    def conv(name, out, inputs, taps):
        found.update({f"{name}.weight_v": (out, inputs, taps), f"{name}.weight_g": (out, 1, 1), f"{name}.bias": (out,)})

    def unit(name, C):
        found[f"{name}.block.0.alpha"] = found[f"{name}.block.2.alpha"] = (1, C, 1)
        conv(f"{name}.block.1", C, C, 7)
        conv(f"{name}.block.3", C, C, 1)

    n = len(s.strides)
    conv("encoder.block.0", s.encoder, s.channels, 7)
    for b, stride in enumerate(s.strides, 1):
        C = s.encoder * 2 ** (b - 1)
        for u in range(3):
            unit(f"encoder.block.{b}.block.{u}", C)
        found[f"encoder.block.{b}.block.3.alpha"] = (1, C, 1)
        conv(f"encoder.block.{b}.block.4", 2 * C, C, 2 * stride)
    found[f"encoder.block.{n + 1}.alpha"] = (1, s.encoder * 2**n, 1)
    conv(f"encoder.block.{n + 2}", s.latent, s.encoder * 2**n, 3)
    conv("decoder.model.0", s.decoder, s.latent, 7)
    for b, stride in enumerate(s.strides[::-1], 1):
        C = s.decoder // 2 ** (b - 1)
        found[f"decoder.model.{b}.block.0.alpha"] = (1, C, 1)
        name = f"decoder.model.{b}.block.1"  # transposed: inputs first, and a norm for each of them
        found |= {f"{name}.weight_v": (C, C // 2, 2 * stride), f"{name}.weight_g": (C, 1, 1), f"{name}.bias": (C // 2,)}
        for u in range(3):
            unit(f"decoder.model.{b}.block.{u + 2}", C // 2)
    found[f"decoder.model.{n + 1}.alpha"] = (1, s.decoder // 2**n, 1)
    conv(f"decoder.model.{n + 2}", s.channels, s.decoder // 2**n, 7)
    for k in range(s.levels):
        book = f"quantizer.vq_layer_{k}._codebook"
        found[f"{book}.embed"] = found[f"{book}.embed_avg"] = found[f"quantizer.embed_{k}"] = (s.codes, s.latent)
        found |= {f"{book}.cluster_size": (s.codes,), f"{book}.inited": (1,)}
    return found


def arguments(s: SimpleNamespace, levels: int, length: int) -> dict:
    size = TEXT + levels * s.codes
    return {
        "hidden_size": s.width, "num_layers": s.layers, "num_attention_heads": s.heads, "num_query_groups": s.kv_heads,
        "group_query_attention": True, "kv_channels": s.head_dim, "ffn_hidden_size": s.ffn, "swiglu": True,
        "norm_epsilon": 1e-6, "rotary_base": s.base, "rotary_percent": 1.0, "vocab_size": size,
        "padded_vocab_size": rows(levels, s.codes), "seq_length": length, "add_bias_linear": True,
        "untie_embeddings_and_output_weights": True, "normalization": "RMSNorm", "position_embedding_type": "rope",
        "tokenizer_type": "NullTokenizer", "lr": 4e-4,
    }  # fmt: skip


# MARK: a release of the tiny sizes, with random weights


def tensors(s: SimpleNamespace = TINY) -> dict[str, dict[str, np.ndarray]]:
    """Of each model; padding rows are zeros, and the token models' numbers such as bfloat16 holds."""
    rng = np.random.default_rng(0)
    made = {}
    for name, levels in (("backbone", 2), ("superres", s.levels)):
        made[name] = {}
        for one, shape in transformer(s, levels).items():
            spread = 0.4 if "bias" in one else 0.3 if len(shape) == 1 else shape[-1] ** -0.5
            value = rng.normal(size=shape) * spread + (1 if "norm" in one else 0)
            if shape[0] == rows(levels, s.codes):
                value = value * s.width**0.5
                value[TEXT + levels * s.codes :] = 0
            made[name][one] = value.astype(ml_dtypes.bfloat16)
    found = {one: rng.normal(size=shape).astype(np.float32) for one, shape in codec(s).items()}
    for one, value in found.items():
        if "alpha" in one:
            value[...] = np.abs(value) + 0.5
        elif "weight_g" in one:
            value[...] = np.abs(value) * (0.2 if ".block.3." in one else 1.0) + 0.1
        elif "bias" in one:
            value *= 0.1
    # codes of which many are chosen
    spread = encode(found, s, rng.normal(size=(50 * int(np.prod(s.strides)), s.channels)))[0].std(0)
    for k in range(s.levels):
        book = f"quantizer.vq_layer_{k}._codebook"
        found[f"{book}.embed"] *= (spread * 0.7**k).astype(np.float32)
        found[f"{book}.cluster_size"] = counts = np.abs(found[f"{book}.cluster_size"]) + 1
        found[f"{book}.embed_avg"] = found[f"{book}.embed"] * counts[:, None] * np.float32(1.0001)
        found[f"{book}.inited"][...] = 1
        found[f"quantizer.embed_{k}"] = found[f"{book}.embed"]
    return made | {"codec": found}


def words() -> str:
    """A tokenizer.json, of a few words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    made = Tokenizer(WordLevel({"<unk>": 3, "slow": 5, "piano": 6, "jazz": 7}, unk_token="<unk>"))
    made.pre_tokenizer = Whitespace()
    return made.to_str()


def write(folder: Path, made: dict[str, dict[str, np.ndarray]], s: SimpleNamespace = TINY) -> None:
    """The six files, and a tokenizer; `torch_files.stand_in` must be in force."""
    from safetensors.numpy import save_file

    folder.mkdir(exist_ok=True)
    for name, levels, length in (("backbone", 2, 1536), ("superres", s.levels, 768)):
        save_file(made[name], folder / f"khala_{name}.safetensors")
        (folder / f"{name}_megatron_args.json").write_text(json.dumps(arguments(s, levels, length)))
    save({name: tensor(value) for name, value in made["codec"].items()}, folder / "decoder_weights.pt")
    (folder / "decoder_config.yaml").write_text("encoder:\n  input_channel: 2\n")
    (folder / "tokenizer.json").write_text(words())


# MARK: what the models compute


def hidden(w: dict[str, np.ndarray], s: SimpleNamespace, x_SD: np.ndarray, causal: bool) -> np.ndarray:
    """The trunk, float64: biases in front of the gate count twice."""
    S, H = len(x_SD), s.head_dim
    angle = np.arange(S)[:, None] * s.base ** (-np.arange(0, H, 2) / H)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]

    def norm(x, scale):
        return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6) * scale

    def linear(x, name, times=1):
        return x @ w[f"{name}.weight"].T + times * w[f"{name}.bias"]

    def turned(x_SNH):
        a, b = x_SNH[..., : H // 2], x_SNH[..., H // 2 :]
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    for i in range(s.layers):
        at = f"layers.{i}"
        y = norm(x_SD, w[f"{at}.input_norm.weight"])
        q = turned(linear(y, f"{at}.attn.q_proj").reshape(S, s.heads, H))
        k = turned(linear(y, f"{at}.attn.k_proj").reshape(S, s.kv_heads, H))
        v = linear(y, f"{at}.attn.v_proj").reshape(S, s.kv_heads, H)
        mixed = np.zeros((S, s.heads, H))
        for n in range(s.heads):
            m = n // (s.heads // s.kv_heads)
            scores = q[:, n] @ k[:, m].T / np.sqrt(H)
            scores = np.where(np.tri(S, dtype=bool), scores, -np.inf) if causal else scores
            share = np.exp(scores - scores.max(1, keepdims=True))
            mixed[:, n] = share / share.sum(1, keepdims=True) @ v[:, m]
        x_SD = x_SD + linear(mixed.reshape(S, -1), f"{at}.attn.o_proj")
        y = norm(x_SD, w[f"{at}.post_attn_norm.weight"])
        gate = linear(y, f"{at}.mlp.gate_proj", 2)
        x_SD = x_SD + linear(gate / (1 + np.exp(-gate)) * linear(y, f"{at}.mlp.up_proj", 2), f"{at}.mlp.down_proj")
    return norm(x_SD, w["norm.weight"])


def _conv(x_CL, w, name, stride=1, dilation=1):
    v, taps = w[f"{name}.weight_v"], w[f"{name}.weight_v"].shape[2]
    kernel = w[f"{name}.weight_g"] * v / np.sqrt((v * v).sum((1, 2), keepdims=True))
    aside = -(-stride // 2) if stride > 1 else dilation * (taps - 1) // 2
    x_CL = np.pad(x_CL, ((0, 0), (aside, aside)))
    count = (x_CL.shape[1] - dilation * (taps - 1) - 1) // stride + 1
    out = sum(kernel[:, :, j] @ x_CL[:, j * dilation :][:, : (count - 1) * stride + 1 : stride] for j in range(taps))
    return out + w[f"{name}.bias"][:, None]


def _transposed(x_CL, w, name, stride):
    v = w[f"{name}.weight_v"]
    kernel = w[f"{name}.weight_g"] * v / np.sqrt((v * v).sum((1, 2), keepdims=True))
    out = np.zeros((v.shape[1], (x_CL.shape[1] + 1) * stride))
    for t in range(x_CL.shape[1]):
        out[:, t * stride : (t + 2) * stride] += np.einsum("iok,i->ok", kernel, x_CL[:, t])
    cut = -(-stride // 2)
    return out[:, cut : cut + x_CL.shape[1] * stride] + w[f"{name}.bias"][:, None]


def _snake(x_CL, w, name):
    alpha = w[f"{name}.alpha"][0]
    return x_CL + np.sin(alpha * x_CL) ** 2 / (alpha + 1e-9)


def _unit(x, w, name, dilation):
    y = _conv(_snake(x, w, f"{name}.block.0"), w, f"{name}.block.1", dilation=dilation)
    return x + _conv(_snake(y, w, f"{name}.block.2"), w, f"{name}.block.3")


def encode(w: dict[str, np.ndarray], s: SimpleNamespace, wav_LC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latents [T, D] and codes [T, K] of whole frames."""
    x = _conv(wav_LC.T.astype(np.float64), w, "encoder.block.0")
    for b, stride in enumerate(s.strides, 1):
        for u, dilation in enumerate((1, 3, 9)):
            x = _unit(x, w, f"encoder.block.{b}.block.{u}", dilation)
        x = _conv(_snake(x, w, f"encoder.block.{b}.block.3"), w, f"encoder.block.{b}.block.4", stride)
    n = len(s.strides)
    left = x = _conv(_snake(x, w, f"encoder.block.{n + 1}"), w, f"encoder.block.{n + 2}").T
    codes = []
    for k in range(s.levels):
        book = w[f"quantizer.vq_layer_{k}._codebook.embed"]
        codes.append(np.argmin(((left[:, None] - book) ** 2).sum(-1), 1))
        left = left - book[codes[-1]]
    return x, np.stack(codes, 1)


def decode(w: dict[str, np.ndarray], s: SimpleNamespace, codes_TK: np.ndarray) -> np.ndarray:
    """The waveform [L, C]."""
    x = sum(w[f"quantizer.vq_layer_{k}._codebook.embed"][codes_TK[:, k]] for k in range(codes_TK.shape[1])).T
    x = _conv(x.astype(np.float64), w, "decoder.model.0")
    for b, stride in enumerate(s.strides[::-1], 1):
        x = _transposed(_snake(x, w, f"decoder.model.{b}.block.0"), w, f"decoder.model.{b}.block.1", stride)
        for u, dilation in enumerate((1, 3, 9)):
            x = _unit(x, w, f"decoder.model.{b}.block.{u + 2}", dilation)
    n = len(s.strides)
    return _conv(_snake(x, w, f"decoder.model.{n + 1}"), w, f"decoder.model.{n + 2}").T
