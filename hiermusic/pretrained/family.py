"""What a family of published models offers to whoever brings one in, or takes one out again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hiermusic.pretrained.source import Source, read_source


@dataclass(frozen=True)
class Imported:
    """A published model in our terms.

    Args:
      config: of config.json; where the family names a configuration, fields of its `model`.
      weights: by dotted name, of our modules.
      files: texts to lie beside them, by name.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, np.ndarray]
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A family of published models.

    Args:
      title: as a sentence names it.
      read: published weights -> the model; UserError where they are of another family.
      write: the model -> its configuration and weights as transformers has them; UserError
        where it is none that transformers has; None for a family of which it has no class.
      config: the configuration, FILE.py:preset, that says how a model of the family is trained on; "" for none.
      use: the command that a model card shows, FOLDER being the model's place; "" for that of its stage.
      owns: whether a model of this configuration is one of the family.
      open: where they lie -> published weights.
      over_encoder: whether `read` also takes the folder of an imported `encoder` and a `layer` of it, by these names.
      beside: configuration and folder of a model -> texts that transformers wants beside its weights, by name.
    """

    title: str
    read: Callable[..., Imported]
    write: Callable[[Imported], tuple[dict[str, Any], dict[str, np.ndarray]]] | None = None
    config: str = ""
    use: str = ""
    owns: Callable[[Mapping[str, Any]], bool] = lambda config: False
    open: Callable[[str], Source] = read_source
    over_encoder: bool = False
    beside: Callable[[Mapping[str, Any], Path], dict[str, str]] = lambda config, folder: {}
