"""A small token model whose logits differ enough for a wrong one to change tokens."""

import pytest
from flax import nnx

from hiermusic.nn.token_lm import TokenLM, TokenLMConfig
from hiermusic.nn.transformer import TransformerConfig

TRUNK = TransformerConfig(layers=2, width=32, heads=4, kv_heads=2, head_dim=8, ffn_width=48, dtype="float32",
                          init_std=0.3)
CONFIG = TokenLMConfig(TRUNK, levels=3, codes=12, text_size=40, end=1)


@pytest.fixture(scope="session")
def model():
    return TokenLM(CONFIG, rngs=nnx.Rngs(0))
