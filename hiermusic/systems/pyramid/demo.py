"""PyramidCodec's demo."""

from pathlib import Path

from hiermusic.systems.demos import Demo


def demo(folder: Path, configs: Path) -> Demo:
    """Everything of PyramidCodec at toy size."""
    raise NotImplementedError
