"""Tokens of meaning: which of a few hundred clusters each frame's features are nearest to, one token a frame.

Features are those of HuBERT at a layer, or such as need no weights of others (`plain`). Letters: B batch, L samples,
T frames, D width, V clusters, N points.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from hiermusic.codec.codebook import (
    Averages,
    CodebookConfig,
    Codebooks,
    first_codes,
    health,
    nearest,
    revived,
    spread_points,
    tally,
)
from hiermusic.errors import UserError
from hiermusic.pretrained import encoder, export
from hiermusic.pretrained.encoder import WINDOW
from hiermusic.pretrained.hubert import HubertConfig
from hiermusic.pretrained.plain import FEATURES, ChromaConfig, LogMelConfig
from hiermusic.tokens.facts import TokenFacts
from hiermusic.tokens.hierarchy import Hierarchy

Features = HubertConfig | LogMelConfig | ChromaConfig
CHOICES = f"{', '.join(FEATURES)}, or a folder that `hiermusic import hubert` wrote"


@dataclass(frozen=True)
class SemanticConfig:
    """A tokenizer of meaning.

    Args:
      features: what is clustered.
      codes: V.
      window: seconds that are heard at once; see `encoder.embed`.
      dead_share: a cluster is moved to where points are once it has less than this share of what each would have.
    """

    features: Features = field(default_factory=LogMelConfig)
    codes: int = 500
    window: float = WINDOW
    dead_share: float = 0.02

    channels = 1

    @property
    def sample_rate(self) -> int:
        return self.features.sample_rate

    @property
    def facts(self) -> TokenFacts:
        """What a model of the tokens has to know."""
        c = self.features
        return TokenFacts(c.sample_rate, c.hop, "residual", 1, self.codes, c.width)


class Semantic(nnx.Module):
    """Features and the clusters that they are sorted into."""

    def __init__(self, config: SemanticConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.features = config.features.make(rngs=rngs)
        learning = CodebookConfig(codes=config.codes, dead_share=config.dead_share)
        self.clusters = Codebooks(learning, 1, config.features.width, rngs=rngs)

    @property
    def sample_rate(self) -> int:
        return self.config.sample_rate

    @property
    def channels(self) -> int:
        return self.config.channels

    @property
    def facts(self) -> TokenFacts:
        return self.config.facts

    @property
    def hierarchy(self) -> Hierarchy:
        return self.facts.hierarchy

    def encode_each(self, sounds: Iterable[Float[np.ndarray, "L C"]]) -> Iterator[Int[np.ndarray, "T 1"]]:
        """The tokens of sounds of any length, at `sample_rate`, one after the other: of 10 s, 499 at 50 Hz.

        Several sounds are taken before the tokens of the first are given, as `codec.chunked.encode_each` does.
        """
        graph, state = nnx.split(self)
        mono = (wav_LC.mean(axis=1) for wav_LC in sounds)
        return encoder.hear_each(partial(_encode, graph), state, self.features, mono, self.config.window)

    def learn(self, wav_BL: Float[Array, "B L"], key: PRNGKeyArray) -> dict[str, Array]:
        """Moves the clusters by one batch, in place: mini-batch k-means (Sculley 2010), each at the mean of its points.

        They begin at the first batch's own k-means (k-means++, then Lloyd's). A cluster that hardly any points are of
        begins anew beside one that many are of (`codebook.revived`).

        Returns:
          `loss`, the mean squared distance of the batch from the clusters as it found them; `grad_norm`, how far they
          moved; perplexity and usage.
        """
        config = self.clusters.config
        first_key, move_key = jax.random.split(key)
        points_ND = self.points(wav_BL)
        before = Averages(*(value[0] for value in self.clusters.averages))
        now = jax.lax.cond(
            self.clusters.initialised[...],
            lambda *_: before,
            lambda key, points_ND: first_codes(config, key, points_ND, draw=spread_points),
            first_key,
            points_ND,
        )
        codes_N = nearest(points_ND, now.book)
        sums_VD, hits_V = tally(points_ND, codes_N, self.config.codes)
        counts_V = now.counts + hits_V
        book_VD = now.book + (sums_VD - hits_V[:, None] * now.book) / jnp.maximum(counts_V, 1)[:, None]
        moved = Averages(book_VD, book_VD * counts_V[:, None], counts_V)
        moved = revived(config, moved, move_key, points_ND, codes_N)
        self.clusters.keep(Averages(*(value[None] for value in moved)))
        distance = self._distance(points_ND, now.book, codes_N)
        return {"loss": distance, "grad_norm": jnp.linalg.norm(moved.book - now.book), **self._health(moved.counts)}

    def measure(self, wav_BL: Float[Array, "B L"]) -> dict[str, Array]:
        """The same of a batch that is not learnt from; perplexity and usage are those of the batch."""
        points_ND, book_VD = self.points(wav_BL), self.clusters.codebooks[0]
        codes_N = nearest(points_ND, book_VD)
        hits_V = tally(points_ND, codes_N, self.config.codes)[1]
        return {"loss": self._distance(points_ND, book_VD, codes_N), **self._health(hits_V)}

    def points(self, wav_BL: Float[Array, "B L"]) -> Float[Array, "N D"]:
        """All frames of a batch of clips."""
        points_BTD = jax.lax.stop_gradient(self.features(wav_BL))
        return points_BTD.reshape(-1, points_BTD.shape[-1])

    def _distance(self, points_ND: Array, book_VD: Array, codes_N: Array) -> Float[Array, ""]:
        return jnp.mean(jnp.sum(jnp.square(points_ND - book_VD[codes_N]), axis=-1))

    def _health(self, counts_V: Array) -> dict[str, Array]:
        perplexity, usage = health(self.clusters.config, counts_V)
        return {"perplexity": perplexity, "usage": usage}


@partial(jax.jit, static_argnums=0)
def _encode(graph: nnx.GraphDef, state: nnx.State, wav_BL: Float[Array, "B L"]) -> Int[Array, "B T 1"]:
    model = nnx.merge(graph, state)
    return nearest(model.features(wav_BL), model.clusters.codebooks[0])[..., None]


def features_of(named: str, layer: int | None) -> Features:
    """What a configuration clusters: a name of `plain.FEATURES`, or the folder of an imported HuBERT, at a layer.

    Raises:
      UserError: no such folder, or an encoder that has no frames.
    """
    if named in FEATURES:
        return FEATURES[named]()
    if not Path(named).is_dir():
        raise UserError(f"no encoder at {named}: give {CHOICES}")
    config = encoder.at_layer(encoder.read_config(named), layer, named)
    if not isinstance(config, HubertConfig):
        raise UserError(f"{named} gives one vector for seconds of sound, not frames: give {CHOICES}")
    return config


def to_fields(config: Features) -> dict[str, Any]:
    """Features as a configuration keeps them."""
    for family, kind in FEATURES.items():
        if isinstance(config, kind):
            return {"family": family, "model": asdict(config)}
    told = encoder.to_fields(config)
    return {name: told[name] for name in ("family", "model")}


def of_fields(told: Any) -> Features:
    """What `to_fields` made of features; ValueError for anything else."""
    if told["family"] in FEATURES:
        return FEATURES[told["family"]](**told["model"])
    return encoder.of_fields(told)


def of_centroids(
    path: str | Path, centres_VD: Float[np.ndarray, "V D"], folder: str, layer: int | None
) -> tuple[SemanticConfig, dict[str, np.ndarray]]:
    """A tokenizer with clusters that somebody else has made of an encoder's features.

    Args:
      path: of their file.
      centres_VD: the clusters.
      folder: an imported HuBERT, or a name of `plain.FEATURES`.
      layer: whose features were clustered; the folder's own when left out.
    Returns:
      what it is, and its weights by dotted name.
    Raises:
      UserError: no such encoder or layer, or clusters of features of another width.
    """
    features = features_of(folder, layer)
    codes, width = centres_VD.shape
    if width != features.width:
        raise UserError(f"{path} has clusters of {width} numbers, the features of {folder} have {features.width}")
    model = encoder.load(folder, layer) if folder not in FEATURES else features.make(rngs=nnx.Rngs(0))
    weights = export.dotted({"features": nnx.to_pure_dict(nnx.state(model))})
    weights = {name: np.asarray(array) for name, array in weights.items()}
    ones = np.ones((1, codes), np.float32)
    weights |= {"clusters.codebooks": centres_VD[None], "clusters.ema_sums": centres_VD[None]}
    weights |= {"clusters.ema_counts": ones, "clusters.initialised": np.ones((), bool)}
    return SemanticConfig(features, codes), weights
