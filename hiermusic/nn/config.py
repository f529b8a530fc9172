"""Sizes and choices of the transformer."""

from dataclasses import dataclass

from hiermusic.errors import UserError
from hiermusic.tokens.visibility import Visibility

_CHOICES = {
    "norm": ("rms", "layer"),
    "ffn": ("swiglu", "geglu", "gelu"),
    "positions": ("rotary", "rotary_aligned", "t5", "t5_aligned", "learned", "none"),
    "qk_norm": ("none", "rms", "unit", "layer"),
    "bias": ("none", "all", "all_but_key"),
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "dots", "full"),
}


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and choices of a transformer.

    Args:
      layers, width, heads, kv_heads, head_dim, ffn_width: sizes; heads is a multiple of kv_heads.
      norm: "rms" or "layer"; a layer norm has a bias unless `bias` is "none".
      adaptive: scale, shift and gate of every sub-layer come from a condition of size width (adaLN); needs `cond_BD`.
      ffn: "swiglu", "geglu" or "gelu" (tanh form; the last without gate).
      positions: "rotary" (full head dim), "t5" (one bias table for all layers), "learned" (absolute) or "none";
        "rotary_aligned" turns by where a position stands in time, "t5_aligned" has a bias of distances in time, to keys
        ahead too, and one for every pair of segments.
      rope_base, t5_buckets, t5_max_distance, max_positions: of those, the last for "learned".
      segments: of a row, for "t5_aligned".
      qk_norm: "none"; "rms" over each head with learned scale (ViT-22B); "unit" length with a learned temperature for
        each head (AAR); "layer" norm over all heads together (MusicGen).
      bias: of the projections: "none", "all", or "all_but_key".
      dropout: of what each sub-layer adds; drop_path: chance to skip the last layer's, growing linearly from 0.
      dtype: of activations and matrix products; parameters, norms, softmax and rotary angles are float32.
      remat: what a training step keeps of a layer: "none" recomputes nothing, "dots" all but
        matrix products, "full" everything.
      init_std: of all weights; those that write to the residual stream are divided by sqrt(2 layers).
      base_width: the width that learning rate and `init_std` were tuned at; 0 = they are this model's own. Wider models
        then train alike (muP: Tensor Programs V, arXiv:2203.03466, table 8, for Adam): with s = base_width / width,
        hidden matrices are drawn with variance and trained with learning rate times s, and logits are multiplied by s;
        embeddings, heads' weights and vectors are as ever. Widen by heads and ffn_width in proportion, at one head_dim:
        the scale of attention's logits is then right for either rule.
    Raises:
      UserError: for a word that is no choice or sizes that do not fit.
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int
    norm: str = "rms"
    norm_eps: float = 1e-6
    adaptive: bool = False
    ffn: str = "swiglu"
    positions: str = "rotary"
    rope_base: float = 10_000.0
    t5_buckets: int = 32
    t5_max_distance: int = 128
    segments: int = 0
    max_positions: int = 0
    qk_norm: str = "none"
    bias: str = "none"
    dropout: float = 0.0
    drop_path: float = 0.0
    dtype: str = "bfloat16"
    remat: str = "none"
    init_std: float = 0.02
    base_width: int = 0

    def __post_init__(self):
        for field, words in _CHOICES.items():
            if getattr(self, field) not in words:
                raise UserError(f"transformer {field} is '{getattr(self, field)}': choose from {', '.join(words)}")
        if self.heads % self.kv_heads:
            raise UserError(f"{self.heads} heads cannot share {self.kv_heads} key-value heads: choose a divisor")
        if self.positions.startswith("rotary") and self.head_dim % 2:
            raise UserError(f"rotary positions turn pairs: head_dim {self.head_dim} must be even")
        if self.positions == "learned" and self.max_positions < 1:
            raise UserError("learned positions need max_positions: the length of the longest row")
        if self.positions == "t5_aligned" and self.segments < 1:
            raise UserError("t5_aligned positions need segments: how many a row has")
        if self.base_width < 0:
            raise UserError(f"transformer base_width is {self.base_width}: a width, or 0 for none")

    @property
    def width_share(self) -> float:
        """base_width / width, 1 without a base."""
        return self.base_width / self.width if self.base_width else 1.0

    @property
    def itemsize(self) -> int:
        """Bytes of a number in the compute type."""
        return 2 if self.dtype == "bfloat16" else 4

    def cache_bytes(self, positions: int) -> int:
        """What one row of so many positions leaves in a cache: keys and values."""
        return 2 * self.layers * self.kv_heads * self.head_dim * positions * self.itemsize

    def pass_bytes(self, positions: int) -> int:
        """About the most that a forward pass over one row holds at once: the residual stream twice, and beside it
        queries, keys and values with a block of logits and its weights, or what the feed-forward sub-layer computes."""
        projected = 2 * (self.heads + 2 * self.kv_heads) * self.head_dim * self.itemsize
        looked_at = 2 * 4 * self.heads * max(positions // 16, 128)
        return positions * (2 * 4 * self.width + max(projected + looked_at, 3 * self.ffn_width * self.itemsize))

    def flops(self, positions: int, visibility: Visibility) -> float:
        """Floating-point operations of one row's forward pass: matrix products, and the pairs attended to."""
        attention = self.width * self.head_dim * 2 * (self.heads + self.kv_heads)
        ffn = self.width * self.ffn_width * (2 if self.ffn == "gelu" else 3)
        pairs = 4.0 * self.heads * self.head_dim * visibility.pairs(positions)
        adapt = 2.0 * self.width**2 * (6 * self.layers + 2) if self.adaptive else 0.0
        return self.layers * (2.0 * positions * (attention + ffn) + pairs) + adapt
