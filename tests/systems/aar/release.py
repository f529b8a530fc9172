"""SAT and AAR as their authors publish them, in NumPy: names, shapes, and what the models compute.

Written from the layout of the published files, with none of the package's own tables.
"""

from types import SimpleNamespace

import numpy as np

SAT = SimpleNamespace(
    channels=1, width=32, strides=(2, 4, 5, 8), dim=1024, lat=64, levels=16, phis=6, taps=9, codes=1024,
    scales=(1, 2, 4, 6, 9, 12, 16, 20, 25, 31, 37, 43, 50, 58, 66, 75),
    phi_of=(0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 5),
)  # fmt: skip
SAT128 = SimpleNamespace(**{**vars(SAT), "dim": 128, "lat": 128})
TINY = SimpleNamespace(
    channels=1, width=4, strides=(2, 3), dim=12, lat=8, levels=5, phis=3, taps=5, codes=16,
    scales=(1, 8, 23, 45, 75), phi_of=(0, 0, 1, 2, 2),
)  # fmt: skip
TINY_EQUAL = SimpleNamespace(**{**vars(TINY), "dim": 8})
AAR = SimpleNamespace(depth=16, cond=512, lat=128, codes=1024, scales=SAT.scales)
TINY_AAR = SimpleNamespace(depth=2, cond=16, lat=8, codes=16, scales=TINY.scales)


def sat(s: SimpleNamespace) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the codec."""
    found, n, wide = {}, len(s.strides), s.width * 2 ** len(s.strides)

    def conv(name, out, inputs, taps, kind="conv"):
        name, first = f"{name}.{kind}.{kind}", out if kind == "conv" else inputs
        shape = (out, inputs, taps) if kind == "conv" else (inputs, out, taps)
        found.update({f"{name}.weight_v": shape, f"{name}.weight_g": (first, 1, 1), f"{name}.bias": (out,)})

    def unit(name, C):
        conv(f"{name}.block.1", C // 2, C, 3)
        conv(f"{name}.block.3", C, C // 2, 1)
        conv(f"{name}.shortcut", C, C, 1)

    def lstm(name):
        for i in range(2):
            found.update({f"{name}.lstm.weight_{way}_l{i}": (4 * wide, wide) for way in ("ih", "hh")})
            found.update({f"{name}.lstm.bias_{way}_l{i}": (4 * wide,) for way in ("ih", "hh")})

    conv("encoder.model.0", s.width, s.channels, 7)
    for b, stride in enumerate(s.strides):
        C = s.width * 2**b
        unit(f"encoder.model.{1 + 3 * b}", C)
        conv(f"encoder.model.{3 + 3 * b}", 2 * C, C, 2 * stride)
    lstm(f"encoder.model.{1 + 3 * n}")
    conv(f"encoder.model.{3 + 3 * n}", s.dim, wide, 7)
    conv("decoder.model.0", wide, s.dim, 7)
    lstm("decoder.model.1")
    for b, stride in enumerate(s.strides[::-1]):
        C = wide // 2**b
        conv(f"decoder.model.{3 + 3 * b}", C // 2, C, 2 * stride, "convtr")
        unit(f"decoder.model.{4 + 3 * b}", C // 2)
    conv(f"decoder.model.{3 + 3 * n}", s.channels, s.width, 7)
    if s.dim != s.lat:
        for way, shape in (("in", (s.lat, s.dim)), ("out", (s.dim, s.lat))):
            found |= {f"quantizer.vq.project_{way}.weight": shape, f"quantizer.vq.project_{way}.bias": shape[:1]}
    for p in range(s.phis):
        phi = f"quantizer.vq.quant_resi.qresi_ls.{p}"
        found |= {f"{phi}.weight": (s.lat, s.lat, s.taps), f"{phi}.bias": (s.lat,)}
    for k in range(s.levels):
        book = f"quantizer.vq.layers.{k}._codebook"
        found |= {f"{book}.embed": (s.codes, s.lat), f"{book}.embed_avg": (s.codes, s.lat)}
        found |= {f"{book}.cluster_size": (s.codes,), f"{book}.inited": (1,)}
    return found


def aar(s: SimpleNamespace) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the model of a window."""
    D, S, K = 64 * s.depth, sum(s.scales), len(s.scales)
    found = {
        "pos_start": (1, 1, D), "pos_1LC": (1, S, D), "lvl_embed.weight": (K, D), "lvl_1L": (1, S),
        "attn_bias_for_masking": (1, 1, S, S), "word_embed.weight": (D, s.lat), "word_embed.bias": (D,),
        "class_emb.fc1.weight": (D, s.cond), "class_emb.fc2.weight": (D, D), "uncond_embedding": (1, s.cond),
        "head_nm.ada_lin.1.weight": (2 * D, D), "head_nm.ada_lin.1.bias": (2 * D,),
        "head.weight": (s.codes, D), "head.bias": (s.codes,),
    }  # fmt: skip
    for i in range(s.depth):
        b = f"blocks.{i}"
        found |= {
            f"{b}.attn.mat_qkv.weight": (3 * D, D), f"{b}.attn.q_bias": (D,), f"{b}.attn.v_bias": (D,),
            f"{b}.attn.zero_k_bias": (D,), f"{b}.attn.scale_mul_1H11": (1, s.depth, 1, 1),
            f"{b}.attn.proj.weight": (D, D), f"{b}.attn.proj.bias": (D,), f"{b}.ffn.fc1.weight": (4 * D, D),
            f"{b}.ffn.fc1.bias": (4 * D,), f"{b}.ffn.fc2.weight": (D, 4 * D), f"{b}.ffn.fc2.bias": (D,),
            f"{b}.ada_lin.1.weight": (6 * D, D), f"{b}.ada_lin.1.bias": (6 * D,),
        }  # fmt: skip
    return found


def tensors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights that tell from each other."""
    rng, made = np.random.default_rng(seed), {}
    for name, shape in shapes.items():
        fan = np.prod(shape[1:]) if len(shape) > 1 else 1
        value = rng.normal(size=shape) * (0.2 if len(shape) == 1 or "pos" in name else fan**-0.5)
        if name.endswith("weight_g") or "cluster_size" in name:
            value = np.abs(value) + 0.5
        elif name.endswith("scale_mul_1H11"):
            value = 1 + value
        elif name.endswith(("embed", "embed_avg")):
            value = 3 * value * 0.8 ** int(name.split(".")[3])
        elif name.endswith("inited"):
            value = np.ones(shape)
        elif name.endswith("zero_k_bias"):
            value = np.zeros(shape)
        made[name] = value.astype(np.float32)
    return made


# MARK: what SAT computes, on x [C, T]


def _elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _normed(w, name):
    v = w[f"{name}.weight_v"].astype(np.float64)
    return w[f"{name}.weight_g"] * v / np.sqrt((v * v).sum((1, 2), keepdims=True))


def _conv(x, w, name, stride=1):
    kernel, bias = _normed(w, f"{name}.conv.conv"), w[f"{name}.conv.conv.bias"]
    total = kernel.shape[2] - stride
    x = np.pad(x, ((0, 0), (total - total // 2, total // 2)), mode="reflect") if total else x
    count = (x.shape[1] - kernel.shape[2]) // stride + 1
    taps = (kernel[:, :, j] @ x[:, j : j + (count - 1) * stride + 1 : stride] for j in range(kernel.shape[2]))
    return sum(taps) + bias[:, None]


def _up(x, w, name, stride):
    kernel, bias = _normed(w, f"{name}.convtr.convtr"), w[f"{name}.convtr.convtr.bias"]
    out = np.zeros((kernel.shape[1], (x.shape[1] + 1) * stride))
    for t in range(x.shape[1]):
        out[:, t * stride : (t + 2) * stride] += np.einsum("iok,i->ok", kernel, x[:, t])
    cut = stride - stride // 2
    return out[:, cut : cut + x.shape[1] * stride] + bias[:, None]


def _unit(x, w, name):
    return _conv(x, w, f"{name}.shortcut") + _conv(_elu(_conv(_elu(x), w, f"{name}.block.1")), w, f"{name}.block.3")


def _lstm(x, w, name):
    out = x.T
    for i in range(2):
        ih, hh = (w[f"{name}.lstm.weight_{way}_l{i}"].astype(np.float64) for way in ("ih", "hh"))
        bias = w[f"{name}.lstm.bias_ih_l{i}"].astype(np.float64) + w[f"{name}.lstm.bias_hh_l{i}"]
        h = c = np.zeros(hh.shape[1])
        steps = []
        for now in out:
            gates = np.split(ih @ now + hh @ h + bias, 4)
            begin, forget, last = (1 / (1 + np.exp(-gate)) for gate in (gates[0], gates[1], gates[3]))
            c = forget * c + begin * np.tanh(gates[2])
            h = last * np.tanh(c)
            steps.append(h)
        out = np.stack(steps)
    return x + out.T


def pooled(x, n):
    """Adaptive means over time."""
    T = x.shape[1]
    return np.stack([x[:, i * T // n : -(-(i + 1) * T // n)].mean(1) for i in range(n)], 1)


def stretched(x, T):
    """Linear interpolation between the middles of steps."""
    n = x.shape[1]
    at = np.clip((np.arange(T) + 0.5) * n / T - 0.5, 0, n - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, n - 1)
    return x[:, low] * (1 - (at - low)) + x[:, high] * (at - low)


def part(w, s, k, codes_n):
    """What a level's codes add to a window, [lat, T]."""
    up = stretched(w[f"quantizer.vq.layers.{k}._codebook.embed"][codes_n].T.astype(np.float64), s.scales[-1])
    phi = f"quantizer.vq.quant_resi.qresi_ls.{s.phi_of[k]}"
    kernel, aside = w[f"{phi}.weight"].astype(np.float64), s.taps // 2
    wide = np.pad(up, ((0, 0), (aside, aside)))
    heard = sum(kernel[:, :, j] @ wide[:, j : j + up.shape[1]] for j in range(s.taps)) + w[f"{phi}.bias"][:, None]
    return 0.5 * up + 0.5 * heard


def encode(w, s, wav_LC):
    """Latents [T, dim] and codes [S] of one window."""
    x = _conv(wav_LC.T.astype(np.float64), w, "encoder.model.0")
    for b, stride in enumerate(s.strides):
        x = _conv(_elu(_unit(x, w, f"encoder.model.{1 + 3 * b}")), w, f"encoder.model.{3 + 3 * b}", stride)
    n = len(s.strides)
    z = _conv(_elu(_lstm(x, w, f"encoder.model.{1 + 3 * n}")), w, f"encoder.model.{3 + 3 * n}")
    left, codes = z, []
    if s.dim != s.lat:
        left = w["quantizer.vq.project_in.weight"].astype(np.float64) @ z + w["quantizer.vq.project_in.bias"][:, None]
    for k, scale in enumerate(s.scales):
        book = w[f"quantizer.vq.layers.{k}._codebook.embed"].astype(np.float64)
        codes.append(np.argmin(((pooled(left, scale).T[:, None] - book) ** 2).sum(-1), 1))
        left = left - part(w, s, k, codes[-1])
    return z.T, np.concatenate(codes)


def decode(w, s, codes_S):
    """The waveform [L, C] of one window."""
    codes = np.split(codes_S, np.cumsum(s.scales)[:-1])
    x = sum(part(w, s, k, codes_n) for k, codes_n in enumerate(codes))
    if s.dim != s.lat:
        x = w["quantizer.vq.project_out.weight"].astype(np.float64) @ x + w["quantizer.vq.project_out.bias"][:, None]
    x = _lstm(_conv(x, w, "decoder.model.0"), w, "decoder.model.1")
    for b, stride in enumerate(s.strides[::-1]):
        x = _unit(_up(_elu(x), w, f"decoder.model.{3 + 3 * b}", stride), w, f"decoder.model.{4 + 3 * b}")
    return _conv(_elu(x), w, f"decoder.model.{3 + 3 * len(s.strides)}").T


# MARK: what AAR computes


def logits(w, s, codec, sizes, codes_S, cond_U):
    """Logits [S, V] of a window's codes, each scale read from what the coarser ones add up to; float64."""
    w = {name: value.astype(np.float64) for name, value in w.items()}
    D, N, scales = 64 * s.depth, s.depth, s.scales

    def gelu(x):
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    def norm(x):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def unit(x):
        return x / np.sqrt((x * x).sum(-1, keepdims=True))

    cond = gelu(cond_U @ w["class_emb.fc1.weight"].T) @ w["class_emb.fc2.weight"].T
    act = cond / (1 + np.exp(-cond))
    rows, total = [cond + w["pos_start"][0]], np.zeros((s.lat, scales[-1]))
    for k, codes_n in enumerate(np.split(codes_S, np.cumsum(scales)[:-1])[:-1]):
        total = total + part(codec, sizes, k, codes_n)
        rows.append(linear(pooled(total, scales[k + 1]).T, "word_embed"))
    level = np.repeat(np.arange(len(scales)), scales)
    x = np.concatenate(rows) + w["lvl_embed.weight"][level] + w["pos_1LC"][0]
    seen = level[:, None] >= level
    for i in range(s.depth):
        b = f"blocks.{i}"
        gate1, gate2, scale1, scale2, shift1, shift2 = np.split(linear(act, f"{b}.ada_lin.1"), 6)
        y = norm(x) * (1 + scale1) + shift1
        bias = np.concatenate([w[f"{b}.attn.q_bias"], w[f"{b}.attn.zero_k_bias"], w[f"{b}.attn.v_bias"]])
        q, k, v = (y @ w[f"{b}.attn.mat_qkv.weight"].T + bias).reshape(-1, 3, N, 64).transpose(1, 2, 0, 3)
        q = unit(q) * np.exp(np.minimum(w[f"{b}.attn.scale_mul_1H11"][0], np.log(100)))
        scores = np.where(seen, q @ unit(k).transpose(0, 2, 1), -np.inf)
        share = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (share / share.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(-1, D)
        x = x + gate1 * linear(mixed, f"{b}.attn.proj")
        y = norm(x) * (1 + scale2) + shift2
        x = x + gate2 * linear(gelu(linear(y, f"{b}.ffn.fc1")), f"{b}.ffn.fc2")
    scale, shift = np.split(linear(act, "head_nm.ada_lin.1"), 2)
    return linear(norm(x) * (1 + scale) + shift, "head")
