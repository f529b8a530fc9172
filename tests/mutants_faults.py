"""The faults that `mutants.py` knows to put into a package: edits of its text, at places that its syntax tree names."""

import ast
import hashlib
import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "hiermusic"

_COMPARED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
_COMPARED |= {"is": "is not", "is not": "is", "in": "not in", "not in": "in"}
_COMPUTED = {"+": "-", "-": "+", "*": "/", "/": "*", "//": "/", "%": "//", "**": "*", "@": "*", "<<": ">>", ">>": "<<"}
_DELETED = (ast.Expr, ast.AugAssign, ast.Delete, ast.Raise, ast.Assert, ast.Continue, ast.Break)


@dataclass(frozen=True)
class Fault:
    """In `file`, the text `old` becomes `new`: its occurrence number `at`, or, where that is None, the only one."""

    file: str
    old: str
    new: str
    at: int | None = None
    kind: str = "by hand"

    @property
    def id(self) -> str:
        whole = "\0".join((self.file, self.old, self.new, str(self.at)))
        return hashlib.sha256(whole.encode()).hexdigest()[:10]

    @property
    def room(self) -> str:
        return Path(self.file).relative_to(PACKAGE).parts[0].removesuffix(".py")

    def put(self, text: str) -> str:
        """The text with the fault; ValueError where what it changes is not there."""
        parts = text.split(self.old)
        if len(parts) < 2 or (self.at is None and len(parts) > 2) or (self.at or 0) > len(parts) - 2:
            raise ValueError(f"{self.file}: {len(parts) - 1} times {self.old!r}")
        at = (self.at or 0) + 1
        return self.old.join(parts[:at]) + self.new + self.old.join(parts[at:])

    def __str__(self) -> str:
        old, new = (" ".join(text.split()) for text in (self.old, self.new))
        return f"{self.file}: {old} -> {new}"


def faults_of(text: str, file: str) -> Iterator[Fault]:
    """Every fault that the operators know in a source: one edit of its text each, never the text of a tree."""
    source, tree = text.encode(), ast.parse(text)  # positions in a tree count bytes
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def place(node: ast.AST) -> tuple[int, int]:
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    for kind, start, stop, changed in _edits(tree, source, place):
        low = source.rfind(b"\n", 0, start) + 1
        low += len(source[low:start]) - len(source[low:start].lstrip())
        high = source.find(b"\n", stop)
        high = len(source) if high < 0 else high
        old, new = source[low:high].decode(), (source[low:start] + changed.encode() + source[stop:high]).decode()
        at = source[: low + len(old.encode())].count(old.encode()) - 1
        yield Fault(file, old, new, at, kind)


def is_other(fault: Fault, text: str) -> bool:
    """Whether a source is a program with the fault, and another one than without."""
    try:
        return ast.dump(ast.parse(fault.put(text))) != ast.dump(ast.parse(text))
    except (SyntaxError, ValueError):
        return False


def _edits(tree: ast.AST, source: bytes, place) -> Iterator[tuple[str, int, int, str]]:
    """(operator, first byte, last byte, text instead) of every change."""

    def text(node: ast.AST) -> str:
        start, stop = place(node)
        return source[start:stop].decode()

    def swapped(left: ast.AST, right: ast.AST, others: dict[str, str], kind: str):
        low, high = place(left)[1], place(right)[0]
        names = "|".join(sorted(map(re.escape, others), key=len, reverse=True)).replace(r"\ ", r"\s+")
        if found := re.search(names, source[low:high].decode()):  # positions are bytes: what lies between is ASCII
            yield kind, low + found.start(), low + found.end(), others[" ".join(found.group().split())]

    for node in _coded(tree):
        if isinstance(node, ast.Compare):
            for left, right in zip([node.left, *node.comparators], node.comparators, strict=False):
                yield from swapped(left, right, _COMPARED, "comparison")
        elif isinstance(node, ast.BinOp) and not any(_is_text(side) for side in (node.left, node.right)):
            yield from swapped(node.left, node.right, _COMPUTED, "arithmetic")
        elif isinstance(node, ast.Constant) and type(node.value) in (bool, int, float):
            changed = not node.value if isinstance(node.value, bool) else 2 * node.value or 1
            yield "constant", *place(node), str(changed)
        elif isinstance(node, ast.Call):
            given = [*node.args, *node.keywords]
            for argument in node.keywords if len(given) > 1 else ():
                if argument.arg == "strict":  # a check of our own code, where the lengths are the same
                    continue
                start, stop = place(argument)
                before, behind = source[:start].rstrip(), re.match(rb"\s*,\s*", source[stop:])
                if before.endswith(b","):
                    start = len(before) - 1
                elif behind:
                    stop += behind.end()
                yield "argument", start, stop, ""
            if getattr(node.func, "id", "") in ("range", "slice"):
                for argument in node.args:
                    if text(argument) != "None":
                        yield "off by one", *place(argument), f"{text(argument)} + 1"
        elif isinstance(node, ast.Slice):
            for bound in filter(None, (node.lower, node.upper)):
                yield "off by one", *place(bound), f"{text(bound)} + 1"
        if isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert):
            yield "condition", *place(node.test), f"not ({text(node.test)})"
        for test in getattr(node, "ifs", ()):
            yield "condition", *place(test), f"not ({text(test)})"
        stored = isinstance(node, ast.Assign) and not isinstance(node.targets[0], ast.Name | ast.Tuple)
        if stored or isinstance(node, _DELETED):
            yield "statement", *place(node), "pass"


def _coded(node: ast.AST) -> Iterator[ast.AST]:
    """All of a tree but docstrings, annotations, texts, the words of errors and the frozenness of dataclasses."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "exc", "cause", "msg", "decorator_list"):
            continue
        if isinstance(node, ast.keyword) and node.arg == "strict":
            continue
        for child in value if isinstance(value, list) else [value]:
            words = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant | ast.Yield)
            if isinstance(child, ast.AST) and not words and not isinstance(child, ast.JoinedStr):
                yield child
                yield from _coded(child)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str | bytes))


def source_of(root: Path, file: str) -> str:
    """The text of a module; nothing where it is gone."""
    return (root / file).read_text(encoding="utf-8") if (root / file).is_file() else ""


def draw(root: Path, count: int, seed: int) -> list[Fault]:
    """So many faults over all rooms in proportion to their lines: in each a kind at a time, then one of that kind."""
    kinds: dict[str, dict[str, list[Fault]]] = defaultdict(lambda: defaultdict(list))
    lines: Counter[str] = Counter()
    for path in sorted((root / PACKAGE).rglob("*.py")):
        text, file = path.read_text(encoding="utf-8"), path.relative_to(root).as_posix()
        for fault in faults_of(text, file):
            kinds[fault.room][fault.kind].append(fault)
        lines[Fault(file, "", "").room] += text.count("\n")
    lines = Counter({room: lines[room] for room in sorted(kinds)})
    exact = {room: count * size / lines.total() for room, size in lines.items()}
    shares = {room: int(share) for room, share in exact.items()}
    left = sorted(exact, key=lambda room: shares[room] - exact[room])[: count - sum(shares.values())]
    drawn: list[Fault] = []
    for room, share in shares.items():
        chance = random.Random(f"{seed} {room}")
        for _ in range(share + (room in left)):
            while open_kinds := sorted(kind for kind, faults in kinds[room].items() if faults):
                faults = kinds[room][chance.choice(open_kinds)]
                fault = faults.pop(chance.randrange(len(faults)))
                if is_other(fault, source_of(root, fault.file)):
                    drawn.append(fault)
                    break
    return drawn


def read_faults(path: Path) -> list[Fault]:
    """The faults of a file of JSON lines: file, old, new, and where needed at."""
    names = Fault.__dataclass_fields__
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [json.loads(line) for line in lines if line.strip()]
    return [Fault(**{name: value for name, value in row.items() if name in names}) for row in rows]
