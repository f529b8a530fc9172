"""Which lines of the package each test runs, and what it costs: a pytest plugin of `mutants.py`, and what it keeps.

What a fixture that tests share does counts as done by each test that uses it, and so does what the processes do that a
test starts. Coverage follows both; its context is the test or the fixture that is at work.
"""

import json
import os
import resource
import sys
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

CONTEXT = "MUTANTS_CONTEXT"  # of the processes that tests start
CONFIG = """[run]
include = {root}/{package}/*
data_file = {out}/data
parallel = true
context = ${{{context}-}}
core = ctrace
sigterm = true
patch = _exit
"""


@dataclass(frozen=True)
class Test:
    """A test by its id, what it costs with its fixtures in seconds of processor time, and its lines as bits by file."""

    id: str
    seconds: float
    lines: dict[str, int]

    @property
    def file(self) -> str:
        return self.id.partition("::")[0]


def crc(path: Path) -> int:
    """What a text is known by; nought where it is gone."""
    return zlib.crc32(path.read_bytes()) if path.is_file() else 0


# MARK: in pytest


class Recorder:
    """Tells coverage what is at work, and notes what it cost and which shared fixtures a test used."""

    def __init__(self, out: Path):
        from coverage import Coverage

        self.out, self.coverage = out, Coverage.current()
        self.spent: dict[str, float] = defaultdict(float)
        self.shared: dict[str, tuple[str, str]] = {}  # context of a fixture -> its name, and where it may be used
        self.used: dict[str, list[str]] = {}
        self.at = ""
        self.since = _seconds()

    def switch(self, context: str) -> str:
        before, now = self.at, _seconds()
        self.spent[before] += now - self.since
        self.at, self.since = context, now
        self.coverage.switch_context(context)
        os.environ[CONTEXT] = context
        return before

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.used[item.nodeid] = list(item.fixturenames)
        self.switch(item.nodeid)
        try:
            return (yield)
        finally:
            self.switch("")

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        if fixturedef.scope == "function":
            return (yield)
        context = f"fixture {fixturedef.argname} of {fixturedef.baseid}"
        self.shared[context] = fixturedef.argname, fixturedef.baseid
        before = self.switch(context)
        try:
            return (yield)
        finally:
            self.switch(before)

    def pytest_sessionfinish(self, exitstatus):
        self.switch("")
        rows = []
        for test, names in self.used.items():
            fixtures = [c for c, (name, base) in self.shared.items() if name in names and test.startswith(base)]
            rows.append({"id": test, "fixtures": fixtures})
        self.out.write_text(json.dumps({"spent": self.spent, "tests": rows}), encoding="utf-8")


def _seconds() -> float:
    """Processor time of this process and of those it has waited for."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(time.ru_utime + time.ru_stime for time in spent)


def pytest_configure(config):
    """As a plugin by name: the environment says where what was noted goes."""
    config.pluginmanager.register(Recorder(Path(os.environ["MUTANTS_NOTES"])))


# MARK: what is kept


def command(root: Path, package: str, out: Path, tests: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """What records test files, as a command and its environment; `collect` reads what it leaves in `out`."""
    (out / "coveragerc").write_text(CONFIG.format(root=root, package=package, out=out, context=CONTEXT))
    environment = {"COVERAGE_PROCESS_START": str(out / "coveragerc"), "MUTANTS_NOTES": str(out / "notes.json")}
    search = (str(root), str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")]))
    environment["PYTHONPATH"] = os.pathsep.join(search)
    options = ("-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "mutants_lines", "--basetemp", str(out / "tmp"))
    return [sys.executable, "-m", "pytest", *options, *tests], environment


def collect(root: Path, out: Path, tests: Sequence[str], keep: Path) -> None:
    """Writes what was recorded of each test file to a file of its own in `keep`."""
    from coverage import CoverageData

    data = CoverageData(str(out / "whole"))
    for part in out.glob("data.*"):
        data.update(_read(part))
        part.unlink()
    lines: dict[str, dict[str, int]] = defaultdict(dict)
    for file in data.measured_files():
        name = Path(file).relative_to(root).as_posix()
        for line, contexts in data.contexts_by_lineno(file).items():
            for context in contexts:
                lines[context][name] = lines[context].get(name, 0) | 1 << line
    notes = json.loads((out / "notes.json").read_text(encoding="utf-8"))
    rows: dict[str, list[dict]] = {test: [] for test in tests}
    for test in notes["tests"]:
        ran: dict[str, int] = {}
        for context in (test["id"], *test["fixtures"]):
            for file, bits in lines[context].items():
                ran[file] = ran.get(file, 0) | bits
        seconds = sum(notes["spent"].get(context, 0.0) for context in (test["id"], *test["fixtures"]))
        row = {"id": test["id"], "seconds": round(seconds, 2), "lines": {name: f"{ran[name]:x}" for name in ran}}
        rows[test["id"].partition("::")[0]].append(row)
    keep.mkdir(parents=True, exist_ok=True)
    for test, found in rows.items():
        texts = {file: crc(root / file) for file in sorted({file for row in found for file in row["lines"]})}
        whole = {"file": test, "crc": crc(root / test), "texts": texts, "tests": found}
        _place(keep, test).write_text(json.dumps(whole), encoding="utf-8")
    data.erase()


def _read(part: Path):
    from coverage import CoverageData

    data = CoverageData(str(part))
    data.read()
    return data


def _place(keep: Path, test: str) -> Path:
    return keep / (test.replace("/", ".") + ".json")


def wanting(root: Path, keep: Path, tests: Sequence[str]) -> list[str]:
    """Those of some test files that were not recorded, or have changed since."""
    return [test for test in tests if _known(keep, test).get("crc") != crc(root / test)]


def _known(keep: Path, test: str) -> dict:
    place = _place(keep, test)
    return json.loads(place.read_text(encoding="utf-8")) if place.is_file() else {}


def read(root: Path, keep: Path, tests: Sequence[str]) -> list[Test]:
    """What is known of the tests of some files; of a text that changed since, every line counts as run."""
    found = []
    for known in (_known(keep, test) for test in tests):
        changed = {file for file, was in known.get("texts", {}).items() if crc(root / file) != was}
        for row in known.get("tests", ()):
            lines = {file: -1 if file in changed else int(bits, 16) for file, bits in row["lines"].items()}
            found.append(Test(row["id"], row["seconds"], lines))
    return found
