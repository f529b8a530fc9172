"""What is told and measured of a token model."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import jax
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from hiermusic.data.streams import TokenStreams
from hiermusic.data.token_records import TokenSource
from hiermusic.nn.token_lm import TokenLM
from hiermusic.systems import measures
from hiermusic.systems.lm.models import given_streams, hierarchy, make_model
from hiermusic.systems.lm.rows import Rows, levels_of, make_rows, wanted
from hiermusic.systems.token_facts import check_records, facts_of, own_place
from hiermusic.tokens import sequence
from hiermusic.tokens.visibility import Visibility

Each = Callable[[str, int, Callable[[int], dict[str, np.ndarray]]], list]
Measured = Callable[[Rows, dict, np.random.Generator], Iterator[tuple[sequence.Row, Visibility]]]

Change = Callable[[Callable[[int], dict], int], dict | None]  # (track of an index, index) -> it as changed, or nothing

CROPS_MEASURED = 4  # of each held-out track, where training too takes crops from anywhere


def inspect(config: ConfigDict) -> dict:
    """Parameters of each component, rates and sequence length, from abstract shapes alone."""
    params = measures.counts(nnx.eval_shape(lambda: make_model(config)(nnx.Rngs(0))))
    params["total"] = sum(params.values())
    told = measures.facts(
        config, dict(params), hierarchy(config), float(facts_of(config).frame_rate), config.model.length
    )
    return told | {"pattern": config.model.pattern}


def cross_entropy(
    config: ConfigDict,
    model: TokenLM,
    path: str,
    tracks: int,
    each: Each,
    step: Callable[[], None],
    measured: Measured = Rows.measured,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Teacher-forced cross-entropy of every level on held-out tracks, and what to set beside it.

    Args:
      config: of a token model.
      model: its weights.
      path: token records.
      tracks: at most so many of them.
      each: (name, tracks, measurement of a track) -> what was measured of every track.
      step: called after every batch.
      measured: the rows of a track, as `Rows.measured`.
    Returns:
      of each track, nats of all predicted tokens of each level [N, K] and how often each code was one of them
      [N, K, V]; and how often it stands in the training tracks [K, V].
    """
    one = _Teacher(config, model, path, measured, step)
    found = each("tokens", min(len(one.valid), tracks), lambda index: one.measure(index, one.valid[index]))
    train = _source(config, path, "train")
    trained_KV = sum(one.counts(levels_of(train[index]["codes"])[one.first :]) for index in range(len(train)))
    return *(np.stack([track[name] for track in found]) for name in ("sums", "counts")), trained_KV


def likelihood(
    config: ConfigDict,
    model: TokenLM,
    path: str,
    tracks: int,
    each: Each,
    step: Callable[[], None],
    changes: Mapping[str, Change],
    measured: Measured = Rows.measured,
) -> dict[str, np.ndarray]:
    """Teacher-forced cross-entropy of held-out tracks as they are and as they were changed.

    Args:
      config, model, path, tracks, each, step, measured: as for `cross_entropy`.
      changes: by name, what becomes of a track.
    Returns:
      by name, "real" among them, nats a predicted token of each track [N]; NaN where nothing was to change.
    """
    one = _Teacher(config, model, path, measured, step)

    def track(index: int) -> dict:
        return one.valid[index % len(one.valid)]

    def nats(change: Change, index: int) -> dict[str, np.ndarray]:
        example = change(track, index)
        if example is None:
            return {"nats": np.array(np.nan)}
        found = one.measure(index, example)
        return {"nats": found["sums"].sum() / max(found["counts"].sum(), 1)}

    def measured_by(name: str, change: Change) -> np.ndarray:
        kept = each(f"likelihood {name}", min(len(one.valid), tracks), partial(nats, change))
        return np.array([float(track["nats"]) for track in kept])

    as_it_is = {"real": lambda track, index: track(index)}
    return {name: measured_by(name, change) for name, change in {**as_it_is, **changes}.items()}


class _Teacher:
    """What a model spends on the tokens of held-out tracks.

    Args:
      config, model, path, measured, step: as for `cross_entropy`.
    """

    def __init__(self, config: ConfigDict, model: TokenLM, path: str, measured: Measured, step: Callable[[], None]):
        check_records(config, path)
        self.config, self.rows, self.known = config, make_rows(config), hierarchy(config)
        self.valid = _source(config, path, "valid")
        self.first = sum(given_streams(config))  # levels of the streams in front are nobody's to predict
        self._measured, self._step = measured, step
        graphdef, self._weights = nnx.split(model)

        @partial(jax.jit, static_argnums=2)
        def loss(weights, batch, visibility):
            return nnx.merge(graphdef, weights).loss(batch, visibility=visibility)[1]

        self._loss = loss

    def counts(self, levels) -> np.ndarray:
        """How often each code stands in each level."""
        size = max(self.known.sizes)
        return np.stack([np.bincount(codes_T[codes_T >= 0], minlength=size) for codes_T in levels])

    def measure(self, index: int, example: dict) -> dict[str, np.ndarray]:
        """Nats of all predicted tokens of each level, and how often each code was one of them."""
        rng = np.random.default_rng((self.config.train.seed, index))
        sums_K = np.zeros(len(self.known))
        counts_KV = np.zeros((len(self.known), max(self.known.sizes)), np.int64)
        for _ in range(CROPS_MEASURED if self.config.data.crop == "random" else 1):
            for row, seen in self._measured(self.rows, example, rng):
                batch = sequence.stack([row])
                batch.pop("text_targets")  # the end is no code, and level 0 would answer for it
                metrics = self._loss(self._weights, batch, seen)
                sums_K += np.asarray(metrics["ce_K"] * metrics["count_K"])
                if "level" in row:
                    counts_KV[row["level"]] += self.counts([row["targets"]])[0]
                else:
                    counts_KV += self.counts(row["targets"].T)
                self._step()
        return {"sums": sums_K[self.first :], "counts": counts_KV[self.first :]}


def _source(config: ConfigDict, path: str, split: str) -> TokenSource | TokenStreams:
    levels = wanted(config, path)
    if isinstance(levels, dict):
        return TokenStreams(path, levels, split)
    return TokenSource(own_place(config, path), levels, split)
