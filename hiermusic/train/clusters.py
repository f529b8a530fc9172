"""Trains tokenizers of meaning: one step is one batch of mini-batch k-means over an encoder's features."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from hiermusic.data.pipeline import NoTracks
from hiermusic.errors import UserError
from hiermusic.parallel.counting import forward_flops
from hiermusic.pretrained.encoder import frame_count
from hiermusic.pretrained.semantic import Semantic
from hiermusic.train.log import Log
from hiermusic.train.stage import Batch, Metrics, RunConfig, Work

if TYPE_CHECKING:
    import grain


class ClusterState(nnx.Module):
    """A tokenizer; its clusters' sums and counts are all that training needs besides."""

    def __init__(self, model: Semantic):
        self.model = model


class ClusterStage:
    """Trains the clusters of a tokenizer, whose encoder stays as it is; see `stage.Stage`.

    The points of a batch lie on the device that has its clip; sums and counts are taken over all of them.

    Args:
      config: of the run.
      make_model: rngs -> tokenizer.
      samples: of a clip.
      train: rows of a batch -> an endless data set of those rows, float32 [B, L, 1] in [-1, 1].
      valid: the same for a finite one; raises NoTracks where no track is held out.
      prepare: called with the fresh state, to load the encoder's weights into `.model`.
      open: called with the workdir, to find and check the data before the first batch.
    Raises:
      UserError: clips or batches that hold fewer points than there are clusters.
    """

    def __init__(
        self,
        config: RunConfig,
        make_model: Callable[[nnx.Rngs], Semantic],
        *,
        samples: int,
        train: Callable[[Sequence[int]], "grain.MapDataset"],
        valid: Callable[[Sequence[int]], "grain.MapDataset"],
        prepare: Callable[[nnx.Module], None] = lambda module: None,
        open: Callable[[Path], None] = lambda workdir: None,
    ):
        self.config, self.open, self.prepare = config, open, prepare
        self.make_model = make_model
        self.train, self.valid = train, valid
        self.trunk, self.length = None, 0
        self.shape = (config.loop.batch_size, samples, 1)
        self.abstract = nnx.eval_shape(lambda: make_model(nnx.Rngs(0)))
        codes, frames = self.abstract.config.codes, frame_count(self.abstract.features.config, samples)
        if (points := config.loop.batch_size * max(frames, 0)) < codes:
            raise UserError(
                f"a batch holds {points} frames, fewer than the {codes} clusters that begin in it: raise "
                "train.batch_size or train.crop_seconds"
            )
        self.points = points
        config.tuning.check_whole("a tokenizer of meaning")
        if config.tuning.freeze or config.tuning.rates:
            raise UserError(
                "train.freeze and train.rates are for what gradients train: clusters are not, leave them out"
            )
        for name, wanted in (("accumulate", 1), ("ema_decay", 0.0)):
            found = config.loop.accumulate if name == "accumulate" else config.ema_decay
            if found != wanted:
                raise UserError(
                    f"train.{name} is {found}: clusters are means of all their points: set it to {wanted:g}"
                )

    def create(self, rngs: nnx.Rngs) -> ClusterState:
        return ClusterState(self.make_model(rngs))

    def train_batches(self, rows: Sequence[int]) -> "grain.MapDataset":
        return self.train(rows).map(lambda wav_BLC: (None, {"wav": wav_BLC}))

    def valid_batches(self, rows: Sequence[int]) -> "grain.MapDataset | None":
        try:
            return self.valid(rows).map(lambda wav_BLC: (None, {"wav": wav_BLC}))
        except NoTracks:
            return None

    def check(self, mesh: jax.sharding.Mesh) -> None:
        for axis in ("context", "tensor"):
            if mesh.shape[axis] > 1:
                raise UserError(f"mesh.{axis}={mesh.shape[axis]}: clips are heard whole: set it to 1, and mesh.data up")

    def examples(self) -> list[tuple[None, Mapping[str, jax.ShapeDtypeStruct]]]:
        return [(None, {"wav": jax.ShapeDtypeStruct(self.shape, jnp.float32)})]

    def work(self, task: None) -> Work:
        wav = jax.ShapeDtypeStruct(self.shape[:2], jnp.float32)
        flops = forward_flops(lambda model, wav: model.features(wav), self.abstract, wav)
        flops += 4 * self.points * self.abstract.config.codes * self.abstract.config.features.width
        return Work(flops, self.points, self.shape[0] * self.shape[1] / self.abstract.sample_rate)

    def held(self, batch: Batch) -> tuple[float, float]:
        return 1.0, 1.0

    def step(self, module: ClusterState, batch: Mapping[str, jax.Array], task: None, key: jax.Array) -> Metrics:
        return module.model.learn(batch["wav"][..., 0], key)

    def evaluate(self, module: ClusterState, batch: Mapping[str, jax.Array], task: None, key: jax.Array) -> Metrics:
        return module.model.measure(batch["wav"][..., 0])

    def showcase(self, module: ClusterState, log: Log, step: int) -> None:
        """Nothing: clusters make no sound."""
