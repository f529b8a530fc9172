"""Where configurations of the command line are known: below `systems/` they have become frozen dataclasses."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "hiermusic"
BELOW = ("audio", "tokens", "parallel", "nn", "codec", "pretrained", "data", "train", "generate")
FILES = [path for room in BELOW for path in sorted((ROOT / room).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """The packages that a module imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return {name.partition(".")[0] for name in names} | {
        node.module.partition(".")[0] for node in nodes if isinstance(node, ast.ImportFrom) and node.module
    }


def test_no_room_below_systems_knows_ml_collections():
    assert len(FILES) > 80
    assert [str(path) for path in FILES if "ml_collections" in imported(path)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_room_below_systems_speaks_of_a_config_dict(path):
    """By name or by reading the fields of a whole configuration, which is an object of unknown shape."""
    text = path.read_text()
    assert "ConfigDict" not in text and "config.train." not in text.replace("`config.train.", "")
