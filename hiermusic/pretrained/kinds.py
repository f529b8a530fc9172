"""The families of published models that can be brought in, by name. A further one takes a line in `KINDS`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hiermusic.pretrained.source import Source


@dataclass(frozen=True)
class Imported:
    """A published model in our terms.

    Args:
      config: of config.json; where the kind names a configuration, its fields of `model`.
      weights: by dotted name, of our modules.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Kind:
    """A family of published models.

    Args:
      title: as a sentence names it.
      read: published weights -> the model; UserError where they are of another family.
      write: the model -> its configuration and weights as transformers has them; None where it has no such class.
      config: the configuration, FILE.py:preset, that says how a model of the family is trained on; "" for none.
      use: the command that a model card shows, FOLDER being the model's place.
    """

    title: str
    read: Callable[[Source], Imported]
    write: Callable[[Imported], tuple[dict[str, Any], dict[str, np.ndarray]]] | None = None
    config: str = ""
    use: str = ""


KINDS: dict[str, Kind] = {}
