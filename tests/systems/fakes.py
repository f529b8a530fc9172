"""What the tests of this room put in place of data, and what they share."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
import soundfile
from flax import nnx
from ml_collections import ConfigDict

from hiermusic import presets
from hiermusic.systems.requests import Request
from hiermusic.tokens.prompt import Prompt


def configuration(name: str, tokens: Mapping[str, Any] = MappingProxyType({}), **model: Any) -> ConfigDict:
    """The configuration of SYSTEM/STAGE:PRESET with fields of its model, and of what it says of its tokens, changed."""
    file, _, preset = name.partition(":")
    config = presets.read(f"configs/{file}.py:{preset}")
    config.model.update(model)
    if tokens:
        config.tokens.update(tokens)
    return config


class Batches:
    """As much of a Grain data set as rows are made with: element i is get(i)."""

    def __init__(self, get: Callable[[int], Any], count: int):
        self._get, self._count = get, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return self._get(index)

    def map_with_index(self, function: Callable[[int, Any], Any]) -> "Batches":
        return Batches(lambda index: function(index, self[index]), len(self))

    def repeat(self, times: int) -> "Batches":
        return Batches(lambda index: self[index % len(self)], len(self) * times)


class Tracks:
    """Token records: (path, levels, split) -> the tracks of a split; what was asked for stands in `asked`."""

    def __init__(self, splits: dict[str, Sequence[dict]]):
        self._splits, self.asked = splits, []

    def __call__(self, path: str, levels: slice = slice(None), split: str | None = None) -> Sequence[dict]:
        self.asked.append((path, levels, split))
        return [example | {"codes": example["codes"][:, levels]} for example in self._splits[split]]


def awake(model: nnx.Module) -> nnx.Module:
    """The model with gates that are open, which an untrained one's nearly are not."""
    for path, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        if path[-1] in ("kernel", "code_head", "cond_out"):
            leaf[...] = 0.2 * jax.random.normal(jax.random.key(len(str(path))), leaf.shape)
    return model


def write_clip(path: Path, seconds: float = 2.0, rate: int = 8000) -> Path:
    time = np.arange(round(seconds * rate)) / rate
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 220 * time), rate)
    return path


def request(name: str, seed: int, seconds: float = 2.0, like: str = "", **words) -> Request:
    """A song to make, as a file of prompts or the command line asks for it."""
    return Request(name, Prompt(seconds=seconds, **words), seed, like)
