"""What a batch of mini-batch k-means amounts to."""

from types import SimpleNamespace

import pytest
from flax import nnx

from hiermusic.pretrained.plain import LogMelConfig
from hiermusic.pretrained.semantic import Semantic, SemanticConfig
from hiermusic.train.clusters import ClusterStage


def test_every_point_is_compared_with_every_cluster_and_added_to_one():
    """Two products of points and clusters, of a multiplication and an addition a number, besides the features."""
    config = SemanticConfig(LogMelConfig(width=2), 5)
    stage = SimpleNamespace(shape=(3, 8000, 1), points=100)
    stage.abstract = nnx.eval_shape(lambda: Semantic(config, rngs=nnx.Rngs(0)))
    few = ClusterStage.work(stage, None)
    stage.points = 350
    many = ClusterStage.work(stage, None)
    assert many.flops - few.flops == pytest.approx(2 * 2 * 250 * 5 * 2)
    assert (few.tokens, many.tokens) == (100, 350)
    assert few.seconds == many.seconds == 3 * 8000 / stage.abstract.sample_rate
