"""What a family of published models offers to whoever brings one in, or takes one out again."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hiermusic.pretrained.later import Later
from hiermusic.pretrained.source import Source, read_source


@dataclass(frozen=True)
class Imported:
    """A published model in our terms.

    Args:
      config: of config.json; where the family names a configuration, fields of its `model`.
      weights: by dotted name, of our modules.
      files: texts to lie beside them, by name.
      preset: the configuration, FILE.py:preset, that says how it is trained on; "" for that of its family.
      fields: of the configuration outside of its `model`, by dotted name.
      places: fields that name folders or files of models that are brought in with it: dotted name -> PART or PART/FILE.
    """

    config: Mapping[str, Any]
    weights: Mapping[str, np.ndarray | Later]
    files: Mapping[str, str] = field(default_factory=dict)
    preset: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """A family of published models.

    Args:
      title: as a sentence names it.
      read: published weights -> the model, or those that are published together, each by the name of its folder;
        UserError where they are of another family.
      write: the model -> its configuration and weights as transformers has them; UserError
        where it is none that transformers has; None for a family of which it has no class.
      config: the configuration, FILE.py:preset, that says how a model of the family is trained on; "" for none.
      use: the command that a model card shows, FOLDER being the model's place; "" for that of its stage.
      owns: whether a model of this configuration is one of the family.
      open: where they lie -> published weights.
      takes: what `read` is also given by name, where flags of these names are.
      beside: configuration and folder of a model -> texts that transformers wants beside its weights, by name.
    """

    title: str
    read: Callable[..., Imported | Mapping[str, Imported]]
    write: Callable[[Imported], tuple[dict[str, Any], dict[str, np.ndarray]]] | None = None
    config: str = ""
    use: str = ""
    owns: Callable[[Mapping[str, Any]], bool] = lambda config: False
    open: Callable[[str], Source] = read_source
    takes: tuple[str, ...] = ()
    beside: Callable[[Mapping[str, Any], Path], dict[str, str]] = lambda config, folder: {}
