"""Puts single faults into a copy of the package and tells which of them the fast tests notice; run by hand.

    python tests/mutants.py --list                draws the faults and shows them
    python tests/mutants.py --jobs=2              each fault against the tests of its room
    python tests/mutants.py --suite               what passed these, against the whole fast suite
    python tests/mutants.py --table               what was noticed, by room, and what passed, by name

`--count` faults are drawn by `--seed` from the operators below, over all rooms in proportion to their lines; those of
`mutants_by_hand.jsonl`, which reviewers found, come besides. Those in `mutants_equivalent.jsonl` change nothing that
could be noticed, as is argued there one by one, and do not count. `--out` keeps the draw and a log: the same command
goes on where it was stopped.
"""

import argparse
import ast
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as xml
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "hiermusic"
# Rooms that are tested under other names; the folders are long, and left to the second pass.
ELSEWHERE = {"verbs": ("tests/test_cli.py", "tests/sweep/test_runs.py"), "demo": ("tests/test_cli.py",)}
LONG = ("tests/systems/", "tests/scale/", "tests/parity/")
NOT_COPIED = (".git", ".venv", ".jax_cache", ".hypothesis", ".ruff_cache", "__pycache__", "out", "shared")
NICENESS = 12
SLACK, TIMES = 60.0, 3.0  # a fault's time limit in seconds: the baseline so many times, and so many more

_COMPARED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
_COMPARED |= {"is": "is not", "is not": "is", "in": "not in", "not in": "in"}
_COMPUTED = {"+": "-", "-": "+", "*": "/", "/": "*", "//": "/", "%": "//", "**": "*", "@": "*", "<<": ">>", ">>": "<<"}
_DELETED = (ast.Expr, ast.AugAssign, ast.Delete, ast.Raise, ast.Assert, ast.Continue, ast.Break)


# MARK: faults


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


# MARK: tests


def test_files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in (root / "tests").rglob("test_*.py"))


@cache
def _imported(path: Path) -> frozenset[str]:
    """The modules, and the names in them, that a test file imports; not for the error that every one names."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and [name.name for name in node.names] != ["UserError"]:
            found |= {node.module or "", *(f"{node.module}.{name.name}" for name in node.names)}
    return frozenset(found)


def tests_of(root: Path, file: str) -> list[str]:
    """The fast tests of a module, its own first: those of its room; where none of them imports it, others that do."""
    module = Path(file).with_suffix("")
    room, stem, dotted = module.parts[1], module.name, ".".join(module.parts)
    every = test_files(root)
    own = [test for test in every if test.startswith((f"tests/{room}/", f"tests/test_{room}"))]
    own += [test for test in ELSEWHERE.get(room, ()) if test in every and test not in own]
    others = [test for test in every if test not in own and not test.startswith(LONG)]
    others = [test for test in others if dotted in _imported(root / test)]
    if any(dotted in _imported(root / test) for test in own):
        others = []
    own.sort(key=lambda test: (f"test_{stem}" not in test, dotted not in _imported(root / test)))
    return own + others


@dataclass(frozen=True)
class Copy:
    """A copy of the tree, in which one fault at a time is put and tried."""

    root: Path
    cache: Path

    @classmethod
    def of(cls, root: Path, place: Path, cache: Path) -> "Copy":
        shutil.copytree(root, place, ignore=shutil.ignore_patterns(*NOT_COPIED), symlinks=True)
        return cls(place, cache)

    def run(self, tests: Sequence[str], limit: float, *more: str) -> tuple[int | None, str, float]:
        """Exit status (None: it was out of time), what pytest said, and the seconds it took."""
        environment = {"JAX_COMPILATION_CACHE_DIR": str(self.cache), **os.environ, "PYTHONPATH": str(self.root)}
        options = ("-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--basetemp", str(self.root / "tmp"))
        command = [sys.executable, "-m", "pytest", *options, *more, *tests]
        began = time.monotonic()
        with tempfile.TemporaryFile("w+", errors="replace") as said:
            how = {"stdout": said, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
            process = subprocess.Popen(command, cwd=self.root, env=environment, start_new_session=True, **how)
            try:
                status = process.wait(limit)
            except subprocess.TimeoutExpired:
                status = None
            finally:
                try:
                    os.killpg(process.pid, signal.SIGKILL)  # what the tests started too
                except ProcessLookupError:
                    pass
                process.wait()
            said.seek(0)
            words = said.read()
        shutil.rmtree(self.root / "tmp", ignore_errors=True)
        return status, words, time.monotonic() - began

    def try_out(self, fault: Fault, tests: Sequence[str], limit: float) -> dict:
        """What became of a fault: noticed or not, by which test, in how many seconds."""
        path, whole = self.root / fault.file, source_of(self.root, fault.file)
        faulty, status = fault.put(whole), path.stat()
        try:
            path.write_text(faulty, encoding="utf-8")
            # times of their own: compiled files are told apart by seconds and size, which two faults may share
            os.utime(path, (status.st_atime, time.time_ns() % 10**9))
            code, words, seconds = self.run(tests, limit)
        finally:
            path.write_text(whole, encoding="utf-8")
            os.utime(path, (status.st_atime, status.st_mtime))
        found = re.search(r"^(?:FAILED|ERROR) (\S+)", words, re.MULTILINE)
        by = "time limit" if code is None else found.group(1) if found else f"exit status {code}"
        noticed = code not in (0, 5)  # 5: there is no test
        return {"noticed": noticed, "by": by if noticed else None, "seconds": round(seconds, 1)}


# MARK: the run


@dataclass(frozen=True)
class Log:
    """A JSON object a line, the last of a name counts; a line that was cut short does not."""

    path: Path

    def read(self) -> dict[str, dict]:
        rows = {}
        for line in self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else ():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            rows[row["name"]] = row
        return rows

    def add(self, name: str, **facts: object) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * _is_cut(self.path) + json.dumps({"name": name, **facts}) + "\n")


def _is_cut(path: Path) -> bool:
    return path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")


def baseline(copy: Copy, log: Log, tests: Sequence[str]) -> dict[str, float]:
    """Seconds of each test file without a fault, measured where the log does not know them; all must pass."""
    known = {name: row["seconds"] for name, row in log.read().items() if name in tests}
    if wanted := [test for test in tests if test not in known]:
        say(f"without a fault: {len(wanted)} test files")
        report = copy.root / "baseline.xml"
        status, words, seconds = copy.run(wanted, 3 * 3600, f"--junitxml={report}")
        if status not in (0, 5):
            raise SystemExit(f"the tests fail without a fault (exit status {status}):\n{words[-3000:]}")
        spent: Counter[str] = Counter()
        for case in xml.parse(report).iter("testcase"):
            spent[case.get("classname", "").replace(".", "/") + ".py"] += float(case.get("time", 0))
        start = max(seconds - spent.total(), 0.0)  # until the first test runs
        for test in wanted:
            known[test] = round(spent[test] + start, 1)
            log.add(test, seconds=known[test])
    return known


def run(root: Path, out: Path, faults: Sequence[Fault], jobs: int, suite: bool, again: bool) -> None:
    """Tries what the log does not know yet: against its room, or with `suite`, what passed that, against all tests."""
    log, which = Log(out / "log.jsonl"), "suite" if suite else "room"
    done = log.read()
    wanted = [fault for fault in faults if _is_open(done, fault, which, again)]
    say(f"{len(wanted)} of {len(faults)} faults to try against {'the fast suite' if suite else 'their rooms'}")
    tests = {file: test_files(root) if suite else tests_of(root, file) for file in {fault.file for fault in wanted}}
    copies: SimpleQueue[Copy] = SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="mutants-") as place, ThreadPoolExecutor(jobs) as pool:
        for number in range(min(jobs, len(wanted))):
            copies.put(Copy.of(root, Path(place) / str(number) / root.name, out.resolve() / "jax_cache"))

        def try_out(fault: Fault) -> None:
            copy = copies.get()
            try:
                limit = SLACK + TIMES * jobs * sum(seconds[test] for test in tests[fault.file])
                facts = copy.try_out(fault, tests[fault.file], limit)
            except ValueError as error:
                say(f"passed over: {error}")
                return
            finally:
                copies.put(copy)
            log.add(f"{which} {fault.id}", **facts, fault=str(fault))
            say(f"{facts['by'] or 'PASSED'} ({facts['seconds']:.0f} s)  {fault}")

        if wanted:
            first = copies.get()
            seconds = baseline(first, log, sorted({test for files in tests.values() for test in files}))
            copies.put(first)
        try:
            for _ in pool.map(try_out, wanted):
                pass
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _is_open(done: dict[str, dict], fault: Fault, which: str, again: bool) -> bool:
    room, own = done.get(f"room {fault.id}"), done.get(f"{which} {fault.id}")
    if which == "suite" and (room is None or room["noticed"]):
        return False
    return own is None or (again and not own["noticed"])


def say(text: str) -> None:
    print(text, flush=True)


# MARK: the table


def table(faults: Sequence[Fault], done: dict[str, dict], equivalent: set[str]) -> str:
    """What was noticed by room, in Markdown; below it what passed, by name. Equivalent faults are taken off."""
    head = ("room", "faults", "equivalent", "tried", "by the room's tests", "by the suite", "passed", "noticed")
    rows: dict[str, Counter[str]] = {room: Counter() for room in sorted({fault.room for fault in faults})}
    rows["all"] = Counter()
    passed = []
    for fault in faults:
        room, suite = (done.get(f"{which} {fault.id}") for which in ("room", "suite"))
        facts = ["faults"]
        if fault.id in equivalent:
            facts.append("equivalent")
        elif room:
            noticed = "by the room's tests" if room["noticed"] else suite and suite["noticed"] and "by the suite"
            facts += ["tried", noticed or "passed"]
            if not noticed:
                passed.append(f"* {fault}" + ("" if suite else " (the suite not yet tried)"))
        for row in (rows[fault.room], rows["all"]):
            row.update(facts)
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for room, row in rows.items():
        share = f"{1 - row['passed'] / row['tried']:.0%}" if row["tried"] else "-"
        lines.append(f"| {room} | {' | '.join(str(row[name]) for name in head[1:-1])} | {share} |")
    return "\n".join([*lines, "", *passed])


def main(argv: Sequence[str] | None = None) -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--root", type=Path, default=ROOT, help="the tree")
    words.add_argument("--out", type=Path, default=ROOT / "out" / "mutants", help="the draw and the log")
    words.add_argument("--count", type=int, default=200)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--jobs", type=int, default=1, help="faults tried at a time")
    words.add_argument("--only", metavar="ROOM", action="append", help="of these rooms alone")
    words.add_argument("--suite", action="store_true", help="the second pass")
    words.add_argument("--again", action="store_true", help="what passed before, too")
    words.add_argument("--list", action="store_true")
    words.add_argument("--table", action="store_true")
    given = words.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    drawn = given.out / f"drawn-{given.seed}-{given.count}.jsonl"
    if not drawn.is_file():  # kept: after an edit of the package others would be drawn
        rows = [json.dumps(asdict(fault)) + "\n" for fault in draw(given.root, given.count, given.seed)]
        drawn.write_text("".join(rows), encoding="utf-8")
    beside = given.root / "tests"
    parts = {"drawn": read_faults(drawn), "by hand": read_faults(beside / "mutants_by_hand.jsonl")}
    if given.only:
        parts = {name: [fault for fault in faults if fault.room in given.only] for name, faults in parts.items()}
    faults = [fault for part in parts.values() for fault in part]
    equivalent = {fault.id for fault in read_faults(beside / "mutants_equivalent.jsonl")}
    if given.list:
        for fault in faults:
            there = is_other(fault, source_of(given.root, fault.file))
            say(f"{fault.id} {fault.kind}: {fault}" + ("" if there else " (no longer there)"))
    elif given.table:
        for name, part in parts.items():
            say(f"### {name}\n\n{table(part, Log(given.out / 'log.jsonl').read(), equivalent)}\n")
    else:
        os.nice(max(NICENESS - os.nice(0), 0))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the copies go and the tests end
        run(given.root, given.out, [f for f in faults if f.id not in equivalent], given.jobs, given.suite, given.again)


if __name__ == "__main__":
    main()
