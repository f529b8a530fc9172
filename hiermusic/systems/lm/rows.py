"""Training rows of a token model: which part of a track, which prompt, which layout."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import jax
import numpy as np
from ml_collections import ConfigDict

from hiermusic.console import warn
from hiermusic.data import pipeline
from hiermusic.data.token_records import TokenSource
from hiermusic.errors import UserError
from hiermusic.parallel.hosts import workers
from hiermusic.systems import token_facts
from hiermusic.systems.lm import models
from hiermusic.systems.lm.models import hierarchy, pattern_of, tokenizer, visibility
from hiermusic.tokens import packets, sequence
from hiermusic.tokens.pattern import Pattern, layer_pass
from hiermusic.tokens.prompt import Prompt, compose, excess
from hiermusic.tokens.visibility import Visibility
from hiermusic.tokens.vocabulary import TextTokenizer

PROBED_LEVELS = (0, 1, 2, 4, 8, 16, 32, 63)
_LOOKED_AT = 1000  # prompts, for whether they fit

Codes = packets.Streams | Mapping[str, packets.Streams]  # of one stream, or of several by where their records lie


def levels_of(codes: Codes) -> list[np.ndarray]:
    """One array a level, stream after stream."""
    parts = codes.values() if isinstance(codes, Mapping) else [codes]
    return [codes_T for part in parts for codes_T in packets.levels_of(part)]


def wanted(config: ConfigDict, path: str) -> slice | dict[str, str | slice]:
    """The levels that a model reads of the records at `path`, or of them and those of the streams in front."""
    levels = slice(0, len(models.own(config)))
    others, own = token_facts.prefix_places(config, path), os.path.abspath(token_facts.own_place(config, path))
    return dict.fromkeys(others, "all") | {own: levels} if others else levels


@dataclass(frozen=True)
class Rows:
    """Turns tracks into training rows.

    Args:
      config: of the model.
      pattern: its order.
      tokenizer: of its words, None for a model without.
      end: the id that ends a song, None where none does.
      window: packets of every row that is predicted scale by scale.
      most: codes of a level, the null of a prefix that is left out among them.
      dropout: the share of rows whose prefix is left out.
    """

    config: ConfigDict
    pattern: Pattern
    tokenizer: TextTokenizer | None
    end: int | None
    window: int
    most: int
    dropout: float = 0.0

    def row(self, example: dict, rng: np.random.Generator, level: int | None = None) -> sequence.Row:
        """As much of a track as fits behind its prompt, ended where the track ends within the row.

        Args:
          example: the track.
          rng: of what is drawn.
          level: that the row predicts, where each pass is a row of its own.
        """
        ids, length = self.prompt(example["meta"], rng, level), self.config.model.length
        if self.window:
            ids = models.fill(self.config, ids)
        room = sequence.room(ids, length, stepwise=self.pattern.stepwise, end=self.end is not None)
        levels, whole = self.crop(example["codes"], self.window or self.pattern.most(room), rng)
        order, places = self.pattern, None
        if level is not None:
            layout = layer_pass([len(codes_T) for codes_T in levels], level)
        else:
            layout = order.layout(self.window or order.packets([len(codes_T) for codes_T in levels]))
            places = models.places(self.config, order, layout)
            levels = [
                np.pad(codes_T.astype(np.int32), (0, count - len(codes_T)), constant_values=-1)
                for codes_T, count in zip(levels, layout.lengths, strict=True)
            ]
        end, markers = self.end if whole else None, models.markers(self.config) if layout.marks else ()
        how = {"end": end, "markers": markers, "level": level, "most": self.most, "places": places}
        row = sequence.pack(ids, layout, levels, length, **how)
        return self.bare(row) if self.dropout and rng.random() < self.dropout else row

    def bare(self, row: sequence.Row) -> sequence.Row:
        """A row whose prefix is left out: in place of each token of it the model reads its null."""
        reads_SK = row["reads"].copy()
        given_SK = reads_SK[:, : self.pattern.given]
        given_SK[given_SK >= 0] = self.most - 1
        return row | {"reads": reads_SK}

    def prompt(self, meta: dict, rng: np.random.Generator, level: int | None = None) -> list[int]:
        """The ids of a track's prompt, ending in the marker of `level` if there is one."""
        model = self.config.model
        if self.tokenizer is None:
            return [sequence.START if level is None else models.marker(model, level)]
        prompt = _asked(meta)
        if rng.random() < model.get("prompt_dropout", 0.0):
            prompt = Prompt(seconds=prompt.seconds)
        ids = compose(prompt, self.tokenizer, **models.prompting(model))
        return ids if level is None else [*ids[:-1], models.marker(model, level)]

    def crop(self, codes: Codes, most: int | Fraction, rng: np.random.Generator) -> tuple[list[np.ndarray], bool]:
        """The levels of at most `most` packets, and whether the track's last one is among them."""
        if most < 1:
            length = self.config.model.length
            raise UserError(f"model.length={length} leaves no room behind the prompt: lower text_limit")
        levels, order = levels_of(codes), self.pattern
        count = order.packets([len(codes_T) for codes_T in levels])
        spare = int(max(count - most, 0))  # whole packets, in which all streams begin together
        start = int(rng.integers(spare + 1)) if self.config.data.crop == "random" else 0
        parts = zip(levels, order.slots, order.lengths(min(most, count - start)), strict=True)
        return [codes_T[start * slot :][:length] for codes_T, slot, length in parts], start == spare

    def measured(self, example: dict, rng: np.random.Generator) -> Iterator[tuple[sequence.Row, Visibility]]:
        """The rows that a held-out track is measured by, and who sees whom in each."""
        seen = visibility(self.config)
        if not self.pattern.isolated:
            yield self.row(example, rng), seen
            return
        for level in range(self.pattern.given, len(self.pattern.slots)):
            yield self.row(example, rng, level), seen


def make_rows(config: ConfigDict) -> Rows:
    """The rows of a configuration; UserError for an unknown way to crop."""
    if config.data.crop not in ("start", "random"):
        raise UserError(f"data.crop is '{config.data.crop}': choose start or random")
    order = pattern_of(config)
    whole = 0 if order.stepwise or order.isolated else models.window(config)
    return Rows(config, order, tokenizer(config.model), models.end_of(config), whole, _codes(config))


def _codes(config: ConfigDict) -> int:
    return max(hierarchy(config).sizes) + (models.null_of(config) is not None)


def tell_cut(config: ConfigDict) -> None:
    """Says of how many tracks that are trained on the prompt is longer than a model reads."""
    model, words = config.model, tokenizer(config.model)
    if words is None:
        return
    tracks = TokenSource(token_facts.own_place(config, config.data.path), slice(0, 1), "train").tracks
    looked_at = tracks[:: -(-len(tracks) // _LOOKED_AT) or 1]  # evenly spread: a corpus may hold millions
    how = models.prompting(model)
    lost = [excess(_asked(track["meta"] | {"seconds": track["seconds"]}), words, **how) for track in looked_at]
    if (count := sum(map(bool, lost))) and workers()[0] == 0:
        warn(
            f"{config.data.path}: {count} of {len(looked_at)} prompts are longer than "
            f"model.text_limit={model.text_limit} ids, by {max(lost)} at most: the ends of their words are left out"
        )


def _asked(meta: dict) -> Prompt:
    return Prompt.from_json({name: meta[name] for name in Prompt.__dataclass_fields__ if name in meta})


# MARK: batches


def shapes(config: ConfigDict) -> list[tuple[Visibility, Mapping[str, jax.ShapeDtypeStruct]]]:
    """Every visibility that training a token model comes to, with the shapes of its global batch."""
    size, length, tokens = config.train.batch_size, config.model.length, hierarchy(config)
    layout, codes = layer_pass((1,) * len(tokens), 0), np.zeros((len(tokens), 1), np.int32)
    level = 0 if pattern_of(config).isolated else None
    places = None if models.steps(config) is None else np.zeros(1, np.int32)
    row = sequence.pack([0], layout, codes, length, level=level, most=_codes(config), places=places)
    batch = {name: jax.ShapeDtypeStruct((size, *value.shape), value.dtype) for name, value in row.items()}
    return [(visibility(config), batch)]


def batches(config: ConfigDict, split: str, rows: Sequence[int]):
    """These rows of batch i: a function of (seed, i)."""
    make, seen = make_rows(config), visibility(config)
    if split == "train":
        make = replace(make, dropout=config.model.get("prefix_dropout", 0.0))
    if make.pattern.isolated:
        open_K = np.arange(len(make.pattern.slots)) >= make.pattern.given
        return level_batches(make, split, rows, open_K.astype(float), lambda level: (seen, make.row))

    def build(index: int, examples: Sequence[dict]):
        rngs = pipeline.row_generators(config.train.seed, index, rows)
        return seen, sequence.stack([make.row(*pair) for pair in zip(examples, rngs, strict=True)])

    return example_batches(config, split, rows).map_with_index(build)


def example_batches(config: ConfigDict, split: str, rows: Sequence[int]):
    """These rows of batches of raw examples."""
    path, settings = config.data.path, config.train
    levels = wanted(config, path)
    place = path if isinstance(levels, dict) else token_facts.own_place(config, path)
    return pipeline.example_batches(place, split, settings.seed, levels, settings.batch_size, rows)


def level_batches(
    make: Rows,
    split: str,
    rows: Sequence[int],
    weight_K: np.ndarray,
    row_of: Callable[[int], tuple[Visibility, Callable[..., sequence.Row]]],
    first: int | None = None,
    first_share: float = 0.0,
):
    """These rows of batches in which each row predicts one level: in training one of its own, held-out ones by turns.

    In training an offset is drawn from (seed, i) from which the batch's rows take levels at even steps of their
    distribution: each row's level is drawn from it, and no batch leaves a part of the hierarchy out. Held-out batches
    take turns from coarse levels to fine ones, all rows alike.

    Args:
      make: the rows.
      split, rows: as for `batches`.
      weight_K: how often each level is trained.
      row_of: level -> who sees whom in its rows, and (example, rng, level) -> such a row.
      first: the first level that is measured on held-out tracks, that of the pattern when left out.
      first_share: of batches whose rows all predict level 0, drawn beforehand.
    """
    config, reach_K = make.config, np.cumsum(weight_K)
    size = config.train.batch_size
    first = make.pattern.given if first is None else first
    probes = [level for level in sorted({first, *PROBED_LEVELS}) if first <= level < len(weight_K)]
    data = example_batches(config, split, rows)
    if split != "train":
        data = data.repeat(len(probes))

    def draw(index: int) -> list[int]:
        if split != "train":
            return [probes[index % len(probes)]] * len(rows)
        rng = np.random.default_rng((config.train.seed, index))
        if rng.random() < first_share:
            return [0] * len(rows)
        places = (rng.random() + np.asarray(rows) / size) % 1.0
        return np.searchsorted(reach_K, places * reach_K[-1], side="right").tolist()

    def build(index: int, examples: Sequence[dict]):
        drawn_B = draw(index)
        seen, row = row_of(drawn_B[0])
        drawn = zip(examples, pipeline.row_generators(config.train.seed, index, rows), drawn_B, strict=True)
        return seen, sequence.stack([row(*one) for one in drawn])

    return data.map_with_index(build)
