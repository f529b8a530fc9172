"""What docs/architecture.md says of the house: rooms in their order, and no system known by name outside its place."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from hiermusic.systems import catalogue

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hiermusic"
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
TEXT = (ROOT / "docs" / "architecture.md").read_text()
SYSTEMS = catalogue.systems()
# words of the whole house, though a stage or a flag of a system, or what its codec is, is called so too
COMMON = {"clap", "coarse", "codec", "fine", "lm", "pyramid", "semantic", "tokens"}


def rooms(heading: str) -> list[str]:
    """The rooms of the table below a heading, in its order."""
    table = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    names = [re.findall(r"`([\w/]+?)(?:/|\.py)?`", row) for row in re.findall(r"^\| (`[^|]+) \|", table, re.M)]
    return [name for row in names for name in row]


def imports(file: Path) -> Iterator[str]:
    """Every name of this package that a file imports, wherever in it, without `hiermusic.`."""
    for node in ast.walk(ast.parse((PACKAGE / file).read_text())):
        found = []
        if isinstance(node, ast.Import):
            found = [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file} imports from beside it without saying where"
            found = [f"{node.module}.{one.name}" for one in node.names]
        yield from (name.removeprefix("hiermusic.") for name in found if name.startswith("hiermusic."))


@pytest.mark.parametrize("file", [file for file in FILES if not file.name.startswith("__")], ids=str)
def test_a_room_imports_only_rooms_above_it(file):
    order = rooms("Rooms")
    own = order.index(file.parts[0].removesuffix(".py"))
    for name in imports(file):
        assert order.index(name.split(".")[0]) <= own, f"{file} imports hiermusic.{name}"


@pytest.mark.parametrize("file", [file for file in FILES if file.parts[0] == "systems"], ids=str)
def test_systems_know_no_other_and_their_own_rooms_have_an_order(file):
    """What they share knows none of them; the catalogue alone does."""
    order, system = rooms("A system's rooms"), file.parts[1] if len(file.parts) > 2 else None
    for name in imports(file):
        room, *inner = name.split(".")[:3]
        if room != "systems" or inner[0] not in SYSTEMS or file.name == "catalogue.py":
            continue
        assert inner[0] == system, f"{file} imports hiermusic.{name}"
        if file.name != "__init__.py":
            assert order.index(inner[1]) < order.index(file.stem), f"{file} imports hiermusic.{name}"


def test_systems_have_the_same_rooms():
    """Of their own, or of what their token models are settings of."""
    order = rooms("A system's rooms")
    shared = {path.stem for path in (PACKAGE / "systems" / "lm").glob("*.py")}
    for name in SYSTEMS:
        found = {path.stem for path in (PACKAGE / "systems" / name).glob("*.py")} - {"__init__"}
        assert found <= set(order) and set(order) - found - shared <= {"prior", "weights", "published"}, name


def words(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Identifiers and texts with their lines, but for docstrings, which may say whose design a thing is."""
    documented = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    docstrings = {id(node.body[0].value) for node in ast.walk(tree)
                  if isinstance(node, documented) and ast.get_docstring(node) is not None}  # fmt: skip
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant):
            if isinstance(node.value, str) and id(node) not in docstrings:
                yield line, node.value
            continue
        for value in (value for _, value in ast.iter_fields(node)):
            yield from ((line, one) for one in (value if isinstance(value, list) else [value]) if isinstance(one, str))


def own_words() -> set[str]:
    """Names of systems, of their stages, of the sounds they make, and of flags that only one of them has."""
    flags = [flag.name for system in SYSTEMS.values() for flag in system.flags if flag.of in ("model", "else")]
    theirs = {name for name in flags if flags.count(name) == 1}
    for system in SYSTEMS.values():
        theirs |= {system.name, *system.stages, *system.versions}
    return theirs - COMMON


def test_no_system_is_known_by_name_outside_its_place():
    theirs = own_words()
    assert {"khala", "aar", "superres", "backbone", "ar_baseline", "backbone_too"} <= theirs
    named = re.compile(rf"(?<![a-z])({'|'.join(sorted(theirs, key=len, reverse=True))})(?![a-z])", re.I)
    found = []
    for file in FILES:
        place = file.parts[0] == "configs" or file.parts[:2] in {("systems", name) for name in SYSTEMS}
        if not place and file != Path("systems/catalogue.py"):
            tree = ast.parse((PACKAGE / file).read_text())
            found += [f"{file}:{line}: {text[:60]}" for line, text in words(tree) if named.search(text)]
    assert found == []


def test_each_system_says_how_it_is_used():
    """A command for the card of each of its stages, and an example of each verb that leaves it to the system."""
    from hiermusic import cli

    asked = {name for name, verb in cli.VERBS.items() if not verb.example}
    for system in SYSTEMS.values():
        from_prompts = {"generate", "continue"} if system.flags else set()
        assert set(system.uses) == set(system.stages)
        assert set(system.examples) == asked - {"generate", "continue"} | from_prompts
        assert all(f"hiermusic {name} " in text for name, text in system.examples.items())
        assert len({flag.name for flag in system.flags}) == len(system.flags)
        assert any(flag.of == "model" for flag in system.flags) or not system.flags


def test_below_the_systems_a_configuration_has_been_read():
    """Into frozen dataclasses: no room above them knows what is set on the command line, nor reads a field of it."""
    order = rooms("Rooms")
    below = [file for file in FILES if file.parts[0] in order[: order.index("systems")]]
    assert len(below) > 80
    for file in below:
        text = (PACKAGE / file).read_text()
        assert "ml_collections" not in text and "ConfigDict" not in text, file
        assert not re.search(r"(?<!`)config\.(train|model|data|loss)\.", text), file


def test_entries_of_docstrings_stand_two_columns_in_from_their_heading():
    entries = re.compile(r"^( *)(?:Args|Attributes|Returns|Raises):\n( *)\S", re.M)
    found = [(file, *map(len, entry)) for file in FILES for entry in entries.findall((PACKAGE / file).read_text())]
    assert len(found) > 300 and [file for file, heading, entry in found if entry != heading + 2] == []
