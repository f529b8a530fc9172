"""The transformer, the token model and the sampler in NumPy and float64, from the published definitions alone.

Tests hold the package's against these. Nothing of the package is used here but the names of its weights and settings.
Letters as in `hiermusic.nn.layer`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def weights_of(module) -> dict:
    """A module's weights as nested dicts of float64 arrays."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), nnx.to_pure_dict(nnx.state(module)))


def drawn(module, spread: float = 0.3, seed: int = 0):
    """The same module with all of its weights drawn alike: no scale is 1, no bias 0, no gate shut."""
    dice = np.random.default_rng(seed)
    graphdef, state = nnx.split(module)
    return nnx.merge(graphdef, jax.tree.map(lambda x: jnp.asarray(spread * dice.normal(size=x.shape), x.dtype), state))


def softmax(x):
    """Over the last axis."""
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    """The tanh form (arXiv 1606.08415, section 2)."""
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def norm(kind, x, w, eps, axes=(-1,)):
    """RMS norm (arXiv 1910.07467) or layer norm (arXiv 1607.06450); `w` may hold a scale and a bias."""
    if kind == "layer":
        x = x - x.mean(axes, keepdims=True)
    x = x / np.sqrt((x**2).mean(axes, keepdims=True) + eps) * w.get("scale", 1.0)
    return x + w.get("bias", 0.0)


def rotate(x_BSNH, at_BS, base):
    """Rotary positions (arXiv 2104.09864): pairs (i, i + H/2), as complex numbers, turned by position / base^(2i/H)."""
    half = x_BSNH.shape[-1] // 2
    angle = at_BS[:, :, None, None] * base ** (-np.arange(half) / half)
    turned = (x_BSNH[..., :half] + 1j * x_BSNH[..., half:]) * np.exp(1j * angle)
    return np.concatenate([turned.real, turned.imag], -1)


def t5_bucket(distance: int, buckets: int, furthest: int) -> int:
    """T5's bucket of a key so far behind its query, in a decoder (arXiv 1910.10683, section 2.1)."""
    exact = buckets // 2
    if distance < exact:
        return max(distance, 0)
    return min(exact + int(np.log(distance / exact) / np.log(furthest / exact) * (buckets - exact)), buckets - 1)


def aligned_row(buckets: int, furthest: int, q: int, k: int) -> int:
    """The row of a table for a key at tick k of a query at tick q: those behind and at it first, then those ahead."""
    return t5_bucket(abs(q - k), buckets, furthest) + buckets * (k > q)


def attention(config, w, x_BSD, sees_BSS, at_BS, table_WN, pairs_GGN=None):
    """One layer's attention, head by head; of places, segments are counted in 2^20."""
    c = config
    q, k, v = (
        np.einsum("bsd,dnh->bsnh", x_BSD, w[name]) + w.get(f"{name}_bias", 0.0) for name in ("query", "key", "value")
    )
    scale_N = np.full(c.heads, c.head_dim**-0.5)
    if c.qk_norm in ("rms", "layer"):
        axes = (-1,) if c.qk_norm == "rms" else (-2, -1)
        q, k = (norm(c.qk_norm, x, w[f"{name}_norm"], c.norm_eps, axes) for name, x in (("query", q), ("key", k)))
    if c.qk_norm == "unit":
        q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
        scale_N = np.minimum(np.exp(w["log_scale"]), 100.0)
    if c.positions.startswith("rotary"):
        q, k = (rotate(x, at_BS, c.rope_base) for x in (q, k))
    out = np.zeros(x_BSD.shape)
    for n in range(c.heads):
        m = n * c.kv_heads // c.heads  # grouped queries share a key-value head (arXiv 2305.13245)
        logits_BSS = np.einsum("bqh,bkh->bqk", q[:, :, n], k[:, :, m]) * scale_N[n]
        if table_WN is not None:
            q_BS1, k_B1S = at_BS[:, :, None], at_BS[:, None, :]
            bucket = np.vectorize(lambda q, k: t5_bucket(q - k, c.t5_buckets, c.t5_max_distance))
            if pairs_GGN is not None:
                (q_segment, q_BS1), (k_segment, k_B1S) = np.divmod(q_BS1, 2**20), np.divmod(k_B1S, 2**20)
                bucket = np.vectorize(lambda q, k: aligned_row(c.t5_buckets, c.t5_max_distance, q, k))
                logits_BSS = logits_BSS + pairs_GGN[q_segment, k_segment, n]
            logits_BSS = logits_BSS + table_WN[bucket(q_BS1, k_B1S), n]
        weights_BSS = softmax(np.where(sees_BSS, logits_BSS, -1e30))
        out += np.einsum("bqk,bkh->bqh", weights_BSS, v[:, :, m]) @ w["out"][n]
    return out + w.get("out_bias", 0.0)


def feed_forward(config, w, x):
    """SwiGLU and GEGLU (arXiv 2002.05202), or two matrices with GELU between them."""
    act = silu if config.ffn == "swiglu" else gelu
    hidden = x @ w["up"] + w.get("up_bias", 0.0)
    if config.ffn == "gelu":
        hidden = act(hidden)
    else:
        hidden = act(x @ w["gate"] + w.get("gate_bias", 0.0)) * hidden
    return hidden @ w["down"] + w.get("down_bias", 0.0)


def adaptation(w, cond_BD):
    """What Linear(SiLU(cond)) gives, part by part: [parts, B, 1, D] (arXiv 2212.09748)."""
    vectors_BnD = np.einsum("bd,dpe->bpe", silu(cond_BD), w["kernel"]) + w["bias"]
    return vectors_BnD.swapaxes(0, 1)[:, :, None]


def transformer(config, w, x_BSD, sees_SS, *, at_BS=None, valid_BS=None, cond_BD=None):
    """A pre-norm transformer: x + attention(norm(x)), then x + ffn(norm(x)), layer by layer, and a final norm.

    Args:
      config: a `TransformerConfig`.
      w: its weights, from `weights_of`, layers stacked.
      sees_SS: True where a query (row) sees a key (column).
      at_BS: positions, 0 .. S - 1 by default; valid_BS: False hides a key.
    """
    c, x_BSD = config, np.asarray(x_BSD, np.float64)
    B, S, _ = x_BSD.shape
    at_BS = np.broadcast_to(np.arange(S) if at_BS is None else at_BS, (B, S))
    sees_BSS = np.broadcast_to(sees_SS, (B, S, S))
    if valid_BS is not None:
        sees_BSS = sees_BSS & np.asarray(valid_BS)[:, None]
    if c.positions == "learned":
        x_BSD = x_BSD + w["absolute"][at_BS]
    tables = (w.get("distance"), w.get("pairs"))
    for index in range(c.layers):
        layer = _slice(w["layers"], index)
        gate1, gate2, scale1, scale2, shift1, shift2 = (1.0, 1.0, 0.0, 0.0, 0.0, 0.0)
        if c.adaptive:
            gate1, gate2, scale1, scale2, shift1, shift2 = adaptation(layer["adapt"], cond_BD)
        y = norm(c.norm, x_BSD, layer.get("attention_norm", {}), c.norm_eps) * (1 + scale1) + shift1
        x_BSD = x_BSD + gate1 * attention(c, layer["attention"], y, sees_BSS, at_BS, *tables)
        y = norm(c.norm, x_BSD, layer.get("ffn_norm", {}), c.norm_eps) * (1 + scale2) + shift2
        x_BSD = x_BSD + gate2 * feed_forward(c, layer["ffn"], y)
    x_BSD = norm(c.norm, x_BSD, w.get("final_norm", {}), c.norm_eps)
    if c.adaptive:
        scale, shift = adaptation(w["final_adapt"], cond_BD)
        x_BSD = x_BSD * (1 + scale) + shift
    return x_BSD


def _slice(tree, index):
    return {name: _slice(leaf, index) if isinstance(leaf, dict) else leaf[index] for name, leaf in tree.items()}


def embed(config, w, text_S, reads_SK=None, *, inputs_SE=None, levels_S=None, cond_D=None):
    """What each position of one row reads, added up one position after another; -1 = nothing."""
    x_SD = np.zeros((len(text_S), config.transformer.width))
    for s, text in enumerate(text_S):
        if text >= 0:
            x_SD[s] += w["text_embed"][text] + (0.0 if cond_D is None else cond_D)
        elif inputs_SE is not None:
            x_SD[s] += inputs_SE[s] @ w["input_proj"] + w["input_bias"]
        if levels_S is not None and levels_S[s] >= 0:
            x_SD[s] += w["level_embed"][levels_S[s]]
        for k, read in enumerate(() if reads_SK is None else reads_SK[s]):
            if read == config.codes:
                x_SD[s] += w["null_embed"]
            elif read >= 0:
                x_SD[s] += w["code_embed"][k, read]
        if config.segments and (text >= 0 or max(reads_SK[s]) >= 0):
            level = len(config.segments) - 1 if text >= 0 else int(np.argmax(np.asarray(reads_SK[s]) >= 0))
            x_SD[s] += w["segment_embed"][config.segments[level]]
    return x_SD


def condition(w, cond_U):
    """A condition as positions and adaptive norms take it."""
    return gelu(np.asarray(cond_U, np.float64) @ w["cond_in"]) @ w["cond_out"]


def row(config, w, text_S, reads_SK=None, *, sees_SS, inputs_SE=None, levels_S=None, cond_U=None, at_S=None):
    """The trunk's output [S, D] for one row of a token model, nothing of it padding."""
    cond_D = None if cond_U is None else condition(w, cond_U)
    x_SD = embed(config, w, text_S, reads_SK, inputs_SE=inputs_SE, levels_S=levels_S, cond_D=cond_D)
    cond_BD = cond_D[None] if config.transformer.adaptive else None
    return transformer(config.transformer, w["trunk"], x_SD[None], sees_SS, at_BS=at_S, cond_BD=cond_BD)[0]


def code_logits(config, w, x, level):
    """Logits of one level's codes."""
    if config.head == "shared":
        return x @ w["code_head"].T + (w["code_bias"][level] if config.code_bias else w["code_bias"])
    return x @ w["code_head"][level - config.given].T + (w["code_bias"][level] if config.code_bias else 0.0)


def draw(logits_V, key, *, temperature=1.0, top_k=0, top_p=1.0, allowed=None):
    """One token by the Gumbel-max trick, among the candidates that temperature, top-k and then top-p leave.

    Args:
      key: of `jax.random`, whose Gumbel noise is all that is taken from JAX.
      top_p: the smallest set of likeliest tokens that reaches this probability (arXiv 1904.09751, section 3.1).
    """
    logits_V = np.asarray(logits_V, np.float64)
    order = [v for v in np.argsort(-logits_V, kind="stable") if allowed is None or allowed[v]]
    if top_k:
        order = order[:top_k]
    if top_p < 1:
        share = softmax(logits_V[order] / max(temperature, 1e-6))
        kept, mass = [], 0.0
        for v, p in zip(order, share, strict=True):
            if mass >= top_p:
                break
            kept, mass = [*kept, v], mass + p
        order = kept
    noise_V = np.asarray(jax.random.gumbel(key, logits_V.shape), np.float64)
    return max(order, key=lambda v: logits_V[v] + temperature * noise_V[v])


def key_of(seed, *path):
    """A sample's key: of its seed, then folded with the step, level or frame of each draw."""
    key = jax.random.fold_in(jax.random.key(0), np.uint32(seed))
    for place in path:
        key = jax.random.fold_in(key, place)
    return key
