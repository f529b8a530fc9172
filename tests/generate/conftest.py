"""Small token models whose logits differ enough for a wrong one to change tokens."""

import jax
import numpy as np
import pytest
from flax import nnx

from hiermusic.nn.config import TransformerConfig
from hiermusic.nn.token_lm import TokenLM, TokenLMConfig

TRUNK = TransformerConfig(
    layers=2, width=32, heads=4, kv_heads=2, head_dim=8, ffn_width=48, dtype="float32", init_std=0.3
)
CONFIG = TokenLMConfig(TRUNK, levels=3, codes=12, text_size=40, end=1)


@pytest.fixture(scope="session")
def model():
    return TokenLM(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture(scope="session")
def conditioned():
    """Makes a token model with AAR's transformer, adaptive norms that are wide open, and conditions of six numbers."""

    def make(positions: int, **choices) -> TokenLM:
        trunk = TransformerConfig(
            layers=2,
            width=32,
            heads=4,
            kv_heads=4,
            head_dim=8,
            ffn_width=48,
            norm="layer",
            adaptive=True,
            ffn="gelu",
            positions="learned",
            max_positions=positions,
            qk_norm="unit",
            bias="all_but_key",
            dtype="float32",
        )
        config = TokenLMConfig(trunk, codes=12, text_size=1, cond=6, **choices)
        graphdef, state = nnx.split(jax.jit(lambda: TokenLM(config, rngs=nnx.Rngs(0)))())
        rng = np.random.default_rng(0)
        return nnx.merge(graphdef, jax.tree.map(lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), state))

    return make
