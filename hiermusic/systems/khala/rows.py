"""Khala's training rows: which part of a track, which prompt, which layout, and the mixture of tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import numpy as np
from ml_collections import ConfigDict

from hiermusic.console import warn
from hiermusic.data import pipeline
from hiermusic.data.token_records import TokenSource
from hiermusic.errors import UserError
from hiermusic.parallel.hosts import workers
from hiermusic.systems.khala.models import hierarchy, tokenizer
from hiermusic.tokens import pattern, sequence
from hiermusic.tokens.prompt import Prompt, compose, excess
from hiermusic.tokens.visibility import Visibility
from hiermusic.tokens.vocabulary import TextTokenizer

PROBED_LEVELS = (0, 1, 2, 4, 8, 16, 32, 63)
_LOOKED_AT = 1000  # prompts, for whether they fit


@dataclass(frozen=True)
class Rows:
    """Turns tracks into training rows of a token model: which part of the track, which prompt, which layout."""

    model: ConfigDict
    levels: int
    crop: str
    tokenizer: TextTokenizer

    def backbone(self, example: dict, rng: np.random.Generator) -> sequence.Row:
        """q0 q1 of every frame in turn, ended by EOS where the track ends within the row."""
        ids = self._prompt(example["meta"], rng)
        room = sequence.room(ids, self.model.length, shared=True, end=True)
        codes_TK, whole = self._crop(example["codes"], room // self.levels, rng)
        layout = pattern.flatten((len(codes_TK),) * self.levels)
        end = self.tokenizer.vocabulary.eos if whole else None
        return sequence.pack(ids, *layout.build(codes_TK.T), self.model.length, shared=True, end=end)

    def refinement(self, example: dict, rng: np.random.Generator, level: int) -> sequence.Row:
        """One level of every frame, read from the levels below it (Task 1)."""
        ids = self._marked(example["meta"], rng, level)
        codes_TK, _ = self._crop(example["codes"], self.model.length - len(ids), rng)
        layout = pattern.layer_pass((len(codes_TK),) * self.levels, level)
        return sequence.pack(ids, *layout.build(codes_TK.T), self.model.length, shared=False)

    def alignment(self, example: dict, rng: np.random.Generator) -> sequence.Row:
        """q0 of every frame in turn, read from the q0 before it (Task 0)."""
        ids = self._marked(example["meta"], rng, 0)
        room = sequence.room(ids, self.model.length, shared=True, end=False)
        codes_TK, _ = self._crop(example["codes"], room, rng)
        reads_S1, targets_S1 = pattern.flatten((len(codes_TK),)).build([codes_TK[:, 0]])
        others = ((0, 0), (0, self.levels - 1))
        reads_SK, targets_SK = (np.pad(x, others, constant_values=-1) for x in (reads_S1, targets_S1))
        return sequence.pack(ids, reads_SK, targets_SK, self.model.length, shared=True)

    def _prompt(self, meta: dict, rng: np.random.Generator) -> list[int]:
        prompt = _asked(meta)
        if rng.random() < self.model.get("prompt_dropout", 0.0):
            prompt = Prompt(seconds=prompt.seconds)
        return compose(
            prompt, self.tokenizer, keep_description=self.model.keep_description, limit=self.model.text_limit
        )

    def _marked(self, meta: dict, rng: np.random.Generator, level: int) -> list[int]:
        return [*self._prompt(meta, rng)[:-1], self.tokenizer.vocabulary.task_marker(level)]

    def _crop(self, codes_TK: np.ndarray, room: int, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
        """At most `room` frames, and whether the track's last frame is among them."""
        if room < 1:
            raise UserError(f"model.length={self.model.length} leaves no room behind the prompt: lower text_limit")
        spare = max(len(codes_TK) - room, 0)
        start = int(rng.integers(spare + 1)) if self.crop == "random" else 0
        return codes_TK[start : start + room], start == spare


def make_rows(config: ConfigDict) -> Rows:
    """The rows of a configuration; UserError for an unknown way to crop."""
    if config.data.crop not in ("start", "random"):
        raise UserError(f"data.crop is '{config.data.crop}': choose start or random")
    return Rows(config.model, len(hierarchy(config)), config.data.crop, tokenizer(config.model))


def tell_cut(config: ConfigDict) -> None:
    """Says of how many tracks that are trained on the prompt is longer than a model reads."""
    model = config.model
    words = tokenizer(config.model)
    tracks = TokenSource(config.data.path, slice(0, 1), "train").tracks
    looked_at = tracks[:: -(-len(tracks) // _LOOKED_AT) or 1]  # evenly spread: a corpus may hold millions
    how = {"keep_description": model.keep_description, "limit": model.text_limit}
    lost = [excess(_asked(track["meta"] | {"seconds": track["seconds"]}), words, **how) for track in looked_at]
    if (count := sum(map(bool, lost))) and workers()[0] == 0:
        warn(
            f"{config.data.path}: {count} of {len(looked_at)} prompts are longer than "
            f"model.text_limit={model.text_limit} ids, by {max(lost)} at most: the ends of their words are left out"
        )


def _asked(meta: dict) -> Prompt:
    return Prompt.from_json({name: meta[name] for name in Prompt.__dataclass_fields__ if name in meta})


def level_weights(levels: int, distribution: str) -> np.ndarray:
    """How often Task 1 trains each level; level 0 is Task 0's.

    Args:
      levels: K.
      distribution: "uniform" over 1..K-1 (VALL-E), or "low_biased": levels 1-16 twice as often as 17-32, four times as
        often as the rest (the density of SpectroStream's targets).
    """
    level_K = np.arange(levels)
    match distribution:
        case "uniform":
            weight_K = np.ones(levels)
        case "low_biased":
            weight_K = np.where(level_K <= 16, 1.0, np.where(level_K <= 32, 0.5, 0.25))
        case _:
            raise UserError(f"train.level_distribution is '{distribution}': choose uniform or low_biased")
    weight_K[0] = 0.0
    return weight_K / weight_K.sum()


def _batches(config: ConfigDict, split: str, rows: Sequence[int]):
    """These rows of batches of raw examples."""
    levels = slice(0, len(hierarchy(config)))
    return pipeline.example_batches(config.data.path, split, config.train.seed, levels, config.train.batch_size, rows)


def shapes(config: ConfigDict) -> list[tuple[Visibility, Mapping[str, jax.ShapeDtypeStruct]]]:
    """Every visibility that training a token model comes to, with the shapes of its global batch."""
    size, length, levels = config.train.batch_size, config.model.length, len(hierarchy(config))
    row = sequence.pack([0], *(np.zeros((0, levels), np.int32) for _ in range(2)), length, shared=False)
    batch = {name: jax.ShapeDtypeStruct((size, *value.shape), value.dtype) for name, value in row.items()}
    if config.stage == "backbone":
        return [(Visibility.causal(), batch)]
    batch["level"] = jax.ShapeDtypeStruct((size,), np.int32)
    share = config.train.task0_share
    return [(Visibility.causal(), batch)] * (share > 0) + [(Visibility.full(), batch)] * (share < 1)


def backbone_batches(config: ConfigDict, split: str, rows: Sequence[int]):
    """These rows of batch i of the backbone's causal rows: a function of (seed, i)."""
    make = make_rows(config)

    def build(index: int, examples: Sequence[dict]):
        rngs = pipeline.row_generators(config.train.seed, index, rows)
        return Visibility.causal(), sequence.stack([make.backbone(*pair) for pair in zip(examples, rngs, strict=True)])

    return _batches(config, split, rows).map_with_index(build)


def superres_batches(config: ConfigDict, split: str, rows: Sequence[int]):
    """These rows of batch i of the super-resolution mixture: one task a batch, and within Task 1 one level a row.

    In training the task is drawn from (seed, i), and so is an offset from which the batch's rows take levels at even
    steps of their distribution: each row's level is drawn from it, and no batch leaves a part of the hierarchy out.
    Held-out batches take turns from coarse levels to fine ones, all rows alike.
    """
    make = make_rows(config)
    size = config.train.batch_size
    levels = len(hierarchy(config))
    reach_K = np.cumsum(level_weights(levels, config.train.level_distribution))
    probes = [level for level in PROBED_LEVELS if level < levels]
    batches = _batches(config, split, rows)
    if split != "train":
        batches = batches.repeat(len(probes))

    def draw(index: int) -> list[int]:
        if split != "train":
            return [probes[index % len(probes)]] * len(rows)
        rng = np.random.default_rng((config.train.seed, index))
        if rng.random() < config.train.task0_share:
            return [0] * len(rows)
        places = (rng.random() + np.asarray(rows) / size) % 1.0
        return np.searchsorted(reach_K, places * reach_K[-1], side="right").tolist()

    def build(index: int, examples: Sequence[dict]):
        drawn_B = draw(index)
        drawn = zip(examples, pipeline.row_generators(config.train.seed, index, rows), drawn_B, strict=True)
        if drawn_B[0] == 0:
            visibility, rows_B = Visibility.causal(), [make.alignment(example, rng) for example, rng, _ in drawn]
        else:
            visibility, rows_B = Visibility.full(), [make.refinement(*one) for one in drawn]
        return visibility, sequence.stack(rows_B) | {"level": np.array(drawn_B, np.int32)}

    return batches.map_with_index(build)
