"""RoBERTa (arXiv 1907.11692): text to one vector, the half of CLAP that reads.

Letters: B batch, S ids of a text, D width.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from hiermusic.nn.param import weight
from hiermusic.pretrained import names
from hiermusic.pretrained.layers import Block, Linear, SelfAttention, check_blocks, layer_norm
from hiermusic.pretrained.names import Rename


@dataclass(frozen=True)
class RobertaConfig:
    """Sizes; the defaults are those of RoBERTa base.

    Args:
      ids: of the vocabulary.
      width, layers, heads, ffn_width: of the transformer.
      positions: rows of the table of positions; two more than the longest text has ids.
      pad: the id that fills texts up.
      eps: of the norms.
    Raises:
      ValueError: sizes that do not fit each other.
    """

    ids: int = 50265
    width: int = 768
    layers: int = 12
    heads: int = 12
    ffn_width: int = 3072
    positions: int = 514
    pad: int = 1
    eps: float = 1e-12

    def __post_init__(self):
        check_blocks(self.layers, self.width, self.heads)
        if self.longest < 1:
            raise ValueError(f"it has {self.positions} positions, which leaves none for a text")

    @property
    def longest(self) -> int:
        """Ids of the longest text."""
        return self.positions - self.pad - 1


class Roberta(nnx.Module):
    """Text to what its first id has gathered of it."""

    def __init__(self, config: RobertaConfig, *, rngs: nnx.Rngs):
        c = self.config = config
        self.words = weight(rngs, (c.ids, c.width), (None, None))
        self.places = weight(rngs, (c.positions, c.width), (None, None))
        self.kinds = weight(rngs, (1, c.width), (None, None))
        self.norm = layer_norm(c.width, c.eps, rngs=rngs)
        sizes = {"norm_first": False, "eps": c.eps}
        self.blocks = nnx.List([Block(c.width, c.heads, c.ffn_width, **sizes, rngs=rngs) for _ in range(c.layers)])
        self.pool = Linear(c.width, c.width, rngs=rngs)

    def __call__(self, ids_BS: Int[Array, "B S"]) -> Float[Array, "B D"]:
        """`ids_BS`: texts, filled up with `pad` at their ends."""
        pad = self.config.pad
        there_BS = ids_BS != pad
        at_BS = jnp.cumsum(there_BS, axis=1) * there_BS + pad
        x_BSD = self.norm(self.words[...][ids_BS] + self.kinds[...] + self.places[...][at_BS])
        bias = jnp.where(there_BS, 0.0, -jnp.inf)[:, None, None]

        def attend(attention: SelfAttention, x_BSD: Array) -> Array:
            return attention(x_BSD, bias)

        for block in self.blocks:
            x_BSD = block(x_BSD, attend)
        return jnp.tanh(self.pool(x_BSD[:, 0]))


def transformers_names(config: RobertaConfig, ours: str, theirs: str) -> list[Rename]:
    """The weights of a tower at `ours` by the names of transformers' ClapTextModel at `theirs`."""
    embeddings = {"words": "word_embeddings", "places": "position_embeddings", "kinds": "token_type_embeddings"}
    found = [Rename(f"{ours}.{own}", f"{theirs}.embeddings.{name}.weight") for own, name in embeddings.items()]
    found += names.norm(f"{ours}.norm", f"{theirs}.embeddings.LayerNorm")
    for i in range(config.layers):
        here, there = f"{ours}.blocks.{i}", f"{theirs}.encoder.layer.{i}"
        for name in ("query", "key", "value"):
            found += names.linear(f"{here}.attention.{name}", f"{there}.attention.self.{name}")
        found += names.linear(f"{here}.attention.out", f"{there}.attention.output.dense")
        found += names.norm(f"{here}.attention_norm", f"{there}.attention.output.LayerNorm")
        found += names.linear(f"{here}.ffn.up", f"{there}.intermediate.dense")
        found += names.linear(f"{here}.ffn.down", f"{there}.output.dense")
        found += names.norm(f"{here}.ffn_norm", f"{there}.output.LayerNorm")
    return found + names.linear(f"{ours}.pool", f"{theirs}.pooler.dense")
