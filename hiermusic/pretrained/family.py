"""What a family of published models offers to whoever brings one in, or takes one out again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hiermusic.pretrained.source import Source


@dataclass(frozen=True)
class Imported:
    """A published model in our terms.

    Args:
      config: of config.json; where the family names a configuration, fields of its `model`.
      weights: by dotted name, of our modules.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, np.ndarray]


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
    """

    title: str
    read: Callable[[Source], Imported]
    write: Callable[[Imported], tuple[dict[str, Any], dict[str, np.ndarray]]] | None = None
    config: str = ""
    use: str = ""
    owns: Callable[[Mapping[str, Any]], bool] = lambda config: False
