"""Puts single faults into a copy of the package and tells which of them the fast tests notice; run by hand.

    python tests/mutants.py --list                draws the faults and shows them
    python tests/mutants.py                       each fault against the tests of its room
    python tests/mutants.py --suite               what passed these, against the whole fast suite
    python tests/mutants.py --table               what was noticed, by room, and what passed, by name

`--count` faults are drawn by `--seed` from the operators below, over all rooms in proportion to their lines; those of
`mutants_by_hand.jsonl`, which reviewers found, come besides. Those in `mutants_equivalent.jsonl` change nothing that
could be noticed, as is argued there one by one, and do not count. `--out` keeps the draw and a log: the same command
goes on where it was stopped.

A fault can be noticed by what runs its line, so the tests are recorded first (`mutants_lines.py`, by coverage): a
fault's tests are those that run its line, cheapest first, then the others of their files.
"""

import argparse
import ast
import faulthandler
import importlib
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import mutants_lines
from mutants_faults import PACKAGE, Fault, draw, is_other, read_faults, source_of
from mutants_lines import Test

ROOT = Path(__file__).resolve().parents[1]
# Rooms that are tested under other names too.
ELSEWHERE = {"verbs": ("tests/test_cli.py", "tests/sweep/test_runs.py"), "demo": ("tests/test_cli.py",)}
NOT_COPIED = (".git", ".venv", ".jax_cache", ".hypothesis", ".ruff_cache", "__pycache__", "out", "shared")
NICENESS = 12
# A test's time limit in seconds of processor time: so many, and what it costs without a fault so many times. A clock's
# would depend on what else the machine does; a test that waits for ever has ten times as many of these.
SLACK, TIMES, WAITING = 60.0, 20.0, 10.0
BROKEN = 99  # exit status of a trial that failed itself
# What every trial would import anew.
WARM = ("jax", "flax.nnx", "optax", "orbax.checkpoint", "grain", "librosa", "matplotlib.pyplot", "ml_collections")
WARM += ("jaxtyping", "soundfile", "soxr", "scipy.signal", "sklearn.mixture", "tensorboardX", "absl.flags", "tqdm")


# MARK: tests


def test_files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in (root / "tests").rglob("test_*.py"))


def tests_of(root: Path, file: str) -> list[str]:
    """The test files of a module's room."""
    room, every = Fault(file, "", "").room, test_files(root)
    own = (f"tests/{room}/", f"tests/test_{room}.py", *ELSEWHERE.get(room, ()))
    return [test for test in every if test.startswith(own)]


def record(copy: "Copy", keep: Path, tests: Sequence[str]) -> None:
    """Runs the test files of which it is not known what they run, a folder at a time; all must pass."""
    wanted = mutants_lines.wanting(copy.root, keep, tests)
    for folder, group in groupby(wanted, lambda test: Path(test).parts[1] if test.count("/") > 1 else ""):
        some = list(group)
        say(f"without a fault: {len(some)} test files of tests/{folder}")
        with tempfile.TemporaryDirectory(prefix="mutants-lines-") as place:
            command, more = mutants_lines.command(copy.root, PACKAGE, Path(place), some)
            how = {"stdin": subprocess.DEVNULL, "text": True, "errors": "replace", "capture_output": True}
            done = subprocess.run(command, cwd=copy.root, env={**os.environ, **more}, **how)
            if done.returncode not in (0, 5):
                raise SystemExit(f"tests fail without a fault (exit status {done.returncode}):\n{done.stdout[-3000:]}")
            mutants_lines.collect(copy.root, Path(place), some, keep)


def place_of(text: str, fault: Fault) -> int | None:
    """The lines of the statement that a fault is in, as bits; None where it runs when the module is imported."""
    other = fault.put(text)
    same = next((i for i, (old, new) in enumerate(zip(text, other, strict=False)) if old != new), 0)
    line, bits, inside = text.count("\n", 0, same) + 1, 0, False
    for node in ast.walk(ast.parse(text)):  # the outer before the inner
        if not isinstance(node, ast.stmt) or not node.lineno <= line <= node.end_lineno:
            continue
        last = node.body[0].lineno - 1 if getattr(node, "body", None) else node.end_lineno
        inside |= isinstance(node, ast.FunctionDef) and line > max(last, node.lineno)
        span = range(node.lineno, max(last, node.lineno) + 1)
        bits = sum(1 << number for number in span) if line in span else 1 << line
    return bits if inside else None


def choose(text: str, fault: Fault, tests: Sequence[Test]) -> list[Test]:
    """What can notice a fault: tests that run it, then their files' others, which may use what JAX traced for those."""
    place = place_of(text, fault)
    runs = [test for test in tests if test.lines.get(fault.file, 0) & (-1 if place is None else place)]
    files = {test.file for test in runs}
    others = [test for test in tests if (place is None or test.file in files) and test not in runs]
    return [test for part in (runs, others) for test in sorted(part, key=lambda test: test.seconds)]


# MARK: a trial


@dataclass(frozen=True)
class Chosen:
    """A plugin of pytest: these tests alone, in this order, each within its time."""

    tests: Sequence[Test]
    said: int

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        order = {test.id: number for number, test in enumerate(self.tests)}
        items[:] = sorted((item for item in items if item.nodeid in order), key=lambda item: order[item.nodeid])

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        seconds = next(test.seconds for test in self.tests if test.id == item.nodeid)
        limit = SLACK + TIMES * seconds
        signal.setitimer(signal.ITIMER_PROF, limit)  # ends the process
        faulthandler.dump_traceback_later(WAITING * limit, exit=True, file=self.said)
        try:
            return (yield)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            faulthandler.cancel_dump_traceback_later()


@dataclass(frozen=True)
class Copy:
    """A copy of the tree, in which one fault at a time is put and tried."""

    root: Path

    @classmethod
    def of(cls, root: Path, place: Path) -> "Copy":
        shutil.copytree(root, place, ignore=shutil.ignore_patterns(*NOT_COPIED), symlinks=True)
        return cls(place)

    def try_out(self, fault: Fault, tests: Sequence[Test]) -> dict:
        """What became of a fault: noticed or not, by which test, in how many seconds."""
        path, whole = self.root / fault.file, source_of(self.root, fault.file)
        faulty, status, began = fault.put(whole), path.stat(), time.monotonic()
        try:
            path.write_text(faulty, encoding="utf-8")
            # times of their own: compiled files are told apart by seconds and size, which two faults may share
            os.utime(path, (status.st_atime, time.time_ns() % 10**9))
            code, words = self.run(tests) if tests else (5, "")
        finally:
            path.write_text(whole, encoding="utf-8")
            os.utime(path, (status.st_atime, status.st_mtime))
        found = re.search(r"^(?:FAILED|ERROR) (\S+)", words, re.MULTILINE)
        late = code == -signal.SIGPROF or re.search(r"Timeout \(\d+:\d\d:", words)
        by = "time limit" if late else found.group(1) if found else f"exit status {code}"
        noticed = code not in (0, 5)  # 5: there is no test
        facts = {"noticed": noticed, "by": by if noticed else None, "tests": len(tests)}
        return {**facts, "seconds": round(time.monotonic() - began, 1)}

    def run(self, tests: Sequence[Test]) -> tuple[int, str]:
        """Exit status of pytest over some tests, and what it said; in a fork of this process."""
        with tempfile.TemporaryFile("w+", errors="replace") as said:
            if not (child := os.fork()):
                self._test(tests, said.fileno())
            try:
                _, status = os.waitpid(child, 0)
            finally:
                for kill in (os.killpg, os.kill):  # what the tests started too
                    try:
                        kill(child, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            said.seek(0)
            words = said.read()
        shutil.rmtree(self.root / "tmp", ignore_errors=True)
        if (code := os.waitstatus_to_exitcode(status)) == BROKEN:
            raise SystemExit(f"a trial failed itself:\n{words[-3000:]}")
        return code, words

    def _test(self, tests: Sequence[Test], said: int) -> None:
        """Runs tests and ends this process, which is a fork."""
        code = BROKEN
        try:
            os.setsid()
            os.chdir(self.root)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            for stream in (1, 2):
                os.dup2(said, stream)
            for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
                del sys.modules[name]
            sys.path.insert(0, str(self.root))
            os.environ["PYTHONPATH"] = str(self.root)
            options = ("-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--basetemp", str(self.root / "tmp"))
            files = list(dict.fromkeys(test.file for test in tests))
            code = int(pytest.main([*options, *files], plugins=[Chosen(tests, os.dup(said))]))
        except BaseException:
            traceback.print_exc(file=open(said, "w", closefd=False))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


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


def warm(root: Path, cache: Path) -> None:
    """Imports what every trial imports, under the environment that the tests have."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    runpy.run_path(str(root / "tests" / "conftest.py"))
    for name in WARM:
        importlib.import_module(name)


def run(root: Path, out: Path, faults: Sequence[Fault], suite: bool, again: bool) -> None:
    """Tries what the log does not know yet: against its room, or with `suite`, what passed that, against all others."""
    log, which, keep = Log(out / "log.jsonl"), "suite" if suite else "room", out / "lines"
    done = log.read()
    wanted = [fault for fault in faults if _is_open(done, fault, which, again)]
    say(f"{len(wanted)} of {len(faults)} faults to try against {'the fast suite' if suite else 'their rooms'}")
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        copy = Copy.of(root, Path(place) / root.name)
        warm(copy.root, out.resolve() / "jax_cache")
        for fault in wanted:
            room = tests_of(root, fault.file)
            files = [test for test in test_files(root) if test not in room] if suite else room
            record(copy, keep, files)
            try:
                tests = choose(source_of(root, fault.file), fault, mutants_lines.read(copy.root, keep, files))
                facts = copy.try_out(fault, tests)
            except ValueError as error:
                say(f"passed over: {error}")
                continue
            log.add(f"{which} {fault.id}", **facts, fault=str(fault))
            say(f"{facts['by'] or 'PASSED'} ({facts['tests']} tests, {facts['seconds']:.0f} s)  {fault}")


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
        run(given.root, given.out, [f for f in faults if f.id not in equivalent], given.suite, given.again)


if __name__ == "__main__":
    main()
