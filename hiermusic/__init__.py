"""Open, trainable acoustic-token music models in JAX: any token hierarchy, any order of prediction, one transformer."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from hiermusic.face import TrainedCodec, TrainedModel

__all__ = ["load"]


def load(folder: "str | Path", step: int | None = None) -> "TrainedCodec | TrainedModel":
    """A trained codec, which encodes and decodes, or a trained token model, which generates.

    Args:
      folder: a workdir of `hiermusic train`, or a folder written by `hiermusic export`.
      step: of a codec, which checkpoint; the newest when left out.
    Raises:
      UserError: a folder that is neither, a step that is not there, or one asked of a token model.
    """
    from hiermusic import face  # what is imported for it would slow every command down

    return face.load(folder, step)
