"""The script that puts faults into the package: what it changes, and that it knows a noticed fault from another."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("mutants.py")

SNIPPET = '''"""Text, with 1 < 2 in it."""

LIMIT: int = 3


def part(x: "Float[L 1]", é=2.5, *, deep=True):
    """One more."""
    if x < 0 and not deep:
        raise ValueError(f"{x} is below {0 + 0}")
    total = x - é
    x.flags[0] = 1
    x.sort(axis=None, kind="stable")
    return [max(total, y) for y in range(x) if y], x[LIMIT :]
'''

# operator -> what it makes of the snippet, in words on the line it changes
CHANGES = {
    "comparison": ["if x <= 0 and not deep:"],
    "arithmetic": ["total = x + é"],
    "constant": ["LIMIT: int = 6", "é=5.0, *, deep=True):", "é=2.5, *, deep=False):", "if x < 1 and", "x.flags[1] = 1"],
    "argument": ['x.sort(kind="stable")', "x.sort(axis=None)"],
    "off by one": ["range(x + 1)", "x[LIMIT + 1 :]"],
    "condition": ["if not (x < 0 and not deep):", "if not (y)]"],
    "statement": ["        pass", "    pass"],
}


@pytest.fixture(scope="module")
def mutants():
    spec = importlib.util.spec_from_file_location("mutants", SCRIPT)
    sys.modules["mutants"] = module = importlib.util.module_from_spec(spec)
    paths = list(sys.path)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = paths
    for name in ("mutants", "mutants_faults", "mutants_lines"):
        del sys.modules[name]


def test_every_operator_edits_the_text_and_nothing_that_is_only_read(mutants):
    from mutants_faults import faults_of

    found = list(faults_of(SNIPPET, "hiermusic/tokens/part.py"))
    assert {fault.kind for fault in found} == CHANGES.keys()
    changed = {fault: fault.put(SNIPPET) for fault in found}
    for kind, wanted in CHANGES.items():
        made = [text for fault, text in changed.items() if fault.kind == kind]
        for words in wanted:
            assert any(words in text for text in made), (kind, words)
    for fault, text in changed.items():
        assert mutants.is_other(fault, SNIPPET) and fault.room == "tokens"
        for kept in ('with 1 < 2 in it."""', '"""One more."""', '"Float[L 1]"'):
            assert kept in text
        assert "{0 + 0}" in text or fault.kind == "statement"
        lines = zip(SNIPPET.splitlines(), text.splitlines(), strict=True)
        assert sum(old != new for old, new in lines) == 1


def test_the_same_line_twice_is_changed_where_it_was_meant(mutants):
    from mutants_faults import faults_of

    text = "a = b + c\nd = 1\na = b + c\n"
    put = [fault.put(text) for fault in faults_of(text, "hiermusic/x.py") if fault.kind == "arithmetic"]
    assert put == ["a = b - c\nd = 1\na = b + c\n", "a = b + c\nd = 1\na = b - c\n"]
    with pytest.raises(ValueError, match="2 times"):
        mutants.Fault("hiermusic/x.py", "a = b + c", "a = b - c").put(text)
    with pytest.raises(ValueError, match="0 times"):
        mutants.Fault("hiermusic/x.py", "gone", "a").put(text)


def test_faults_are_drawn_by_the_seed_over_rooms_by_their_lines(mutants, project):
    drawn = mutants.draw(project, 7, seed=0)
    assert drawn == mutants.draw(project, 7, seed=0) != mutants.draw(project, 7, seed=1)
    assert [fault.room for fault in drawn] == ["small", *["tokens"] * 6]
    for fault in drawn:
        ast.parse(fault.put((project / fault.file).read_text()))


def test_the_tests_of_a_module_are_its_rooms(mutants, project):
    own = ["tests/tokens/test_all.py", "tests/tokens/test_count.py"]
    assert mutants.tests_of(project, "hiermusic/tokens/count.py") == own
    assert mutants.tests_of(project, "hiermusic/small.py") == ["tests/test_small.py"]


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("+= value", "-= value", {4}),
        ("for value in values:", "for value in values[1:]:", {3}),
        ("    total += value\n    return total", "    pass\n    return total", {4}),
        ("total = 0", "total = 1", {2}),
        ("(x)", "(x=1)", None),  # evaluated where the function is defined
        ("x + 2 * (", "x - 2 * (", {13, 14}),  # any line of the statement
        ("x > 3", "x < 3", {13, 14}),
    ],
)
def test_a_fault_is_where_its_statement_is(mutants, old, new, lines):
    at = mutants.Fault("hiermusic/tokens/count.py", old, new, at=0)
    bits = mutants.place_of(COUNT, at)
    assert bits == (None if lines is None else sum(1 << line for line in lines))


def test_what_runs_the_line_comes_first_then_the_others_of_its_files(mutants):
    file = "hiermusic/tokens/count.py"

    def test(name, seconds, *lines):
        return mutants.Test(name, seconds, {file: sum(1 << line for line in lines)})

    tests = [
        test("a::dear", 9.0, 3, 4),
        test("a::beside", 0.1, 13),
        test("a::nothing", 0.2),
        test("b::cheap", 1.0, 4),
        test("c::far", 0.1, 13),
    ]
    text = COUNT

    def chosen(old, new):
        return [test.id for test in mutants.choose(text, mutants.Fault(file, old, new, 0), tests)]

    assert chosen("+=", "-=") == ["b::cheap", "a::dear", "a::beside", "a::nothing"]
    assert chosen("x + 1", "x") == []
    assert chosen("(x)", "(x=1)") == ["a::beside", "c::far", "b::cheap", "a::dear", "a::nothing"]


COUNT = """def count(values):
    total = 0
    for value in values:
        total += value
    return total


def unused(x):
    return x + 1


def twice(x):
    return x + 2 * (
        x > 3)
"""


# a test that uses what others share, one that starts a process, and a slow one
TESTS = """import subprocess
import sys

import pytest

from hiermusic.tokens.count import count


@pytest.fixture(scope="module")
def three():
    return count([1, 2])


def test_three(three):
    assert three == 3


def test_count():
    assert count([1, 2]) == 3


def test_process():
    code = "from hiermusic.tokens.count import unused; unused(1)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_slow():
    raise NotImplementedError
"""


@pytest.fixture
def project(tmp_path):
    """A package of two rooms, whose tests see one of its faults in their room, one elsewhere, and one not at all."""
    files = {
        "hiermusic/small.py": "LIMIT = 1 + 1\nMORE = 2\n",
        "tests/conftest.py": "",
        "tests/test_small.py": "",
        "hiermusic/tokens/count.py": COUNT,
        "tests/tokens/test_all.py": "def test_all():\n    pass\n",
        "tests/tokens/test_count.py": TESTS,
        "tests/other/test_use.py": "from hiermusic.tokens import count, sum\n\n\ndef test_use():\n    assert count\n",
        "tests/systems/test_long.py": "from hiermusic.tokens.count import twice\n\n\n"
        "def test_long():\n    assert twice(4) == 6\n",
        "pyproject.toml": '[tool.pytest.ini_options]\nmarkers = ["slow"]\n'
        'addopts = "-ra --import-mode=importlib -p no:jaxtyping -p no:hypothesispytest"\n',
    }
    hand = [
        {"file": "hiermusic/tokens/count.py", "old": "total += value", "new": "total -= value"},
        {"file": "hiermusic/tokens/count.py", "old": "return x + 1", "new": "return x"},
        {"file": "hiermusic/tokens/count.py", "old": "2 * (\n        x > 3", "new": "(x > 3"},
    ]
    files["tests/mutants_by_hand.jsonl"] = "".join(json.dumps(row) + "\n" for row in hand)
    files["tests/mutants_equivalent.jsonl"] = ""
    for name, text in files.items():
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).write_text(text)
    return tmp_path / "project"


def quick(copy, tests):
    """What pytest would say of the copy, without its start."""
    scope = {}
    exec((copy.root / "hiermusic/tokens/count.py").read_text(), scope)
    right = {
        "tests/tokens/test_count.py": scope["count"]([1, 2]) == 3,
        "tests/systems/test_long.py": scope["twice"](4) == 6,
    }
    failed = [test for test in tests if not right.get(test.file, True)]
    return (1, f"FAILED {failed[0].id} - assert") if failed else (0, "")


def known(root, keep, files):
    """What would be recorded of each test file: it runs everything."""
    from mutants_lines import Test

    return [Test(f"{file}::test_it", 1.0, {"hiermusic/tokens/count.py": -1}) for file in files]


def test_a_run_tells_what_was_noticed_and_goes_on_where_it_was_stopped(mutants, monkeypatch, capsys, project):
    monkeypatch.setattr(mutants.Copy, "run", quick)
    monkeypatch.setattr(mutants, "record", lambda *_: None)
    monkeypatch.setattr(mutants, "warm", lambda *_: None)
    monkeypatch.setattr(mutants.mutants_lines, "read", known)
    monkeypatch.setattr(mutants.os, "nice", lambda increment: mutants.NICENESS)
    monkeypatch.setattr(mutants.signal, "signal", lambda *_: None)
    before = {path: path.read_text() for path in project.rglob("*") if path.is_file()}
    out = project.parent / "out"

    def run(*more):
        mutants.main([f"--root={project}", f"--out={out}", "--count=0", *more])
        return capsys.readouterr().out

    told = run()
    assert "3 of 3 faults to try" in told and told.count("PASSED (2 tests, ") == 2
    assert "tests/tokens/test_count.py::test_it (" in told
    log = out / "log.jsonl"
    rows = log.read_text().splitlines()
    log.write_text("\n".join(rows[:-1]) + "\n" + rows[-1][:20])  # stopped in the middle of a line
    assert "1 of 3 faults to try" in run()
    assert "0 of 3 faults to try" in run()
    assert "2 of 3 faults to try" in run("--again")
    assert "tests/systems/test_long.py::test_it (" in run("--suite")
    told = run("--table")
    assert "| tokens | 3 | 0 | 3 | 1 | 1 | 1 | 67% |" in told
    assert "* hiermusic/tokens/count.py: return x + 1 -> return x" in told
    (project / "tests/mutants_equivalent.jsonl").write_text(
        json.dumps({"file": "hiermusic/tokens/count.py", "old": "return x + 1", "new": "return x", "why": "unused"})
    )
    assert "| tokens | 3 | 1 | 2 | 1 | 1 | 0 | 100% |" in run("--table")
    (project / "tests/mutants_equivalent.jsonl").write_text("")
    assert before == {path: path.read_text() for path in before}


def begin(project, *arguments):
    """The script over the project, with nothing of this process."""
    code = "import os, sys; sys.argv[0] = 'mutants.py'; import mutants; mutants.WARM = (); mutants.main(sys.argv[1:])"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environment = clean | {"PYTHONPATH": str(SCRIPT.parent)}
    command = [sys.executable, "-c", code, f"--root={project}", f"--out={project.parent}/out", "--count=0", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_trial_runs_the_chosen_tests_in_their_order_and_ends_them_in_time(mutants, project, monkeypatch):
    """In a process of its own, which forks before it imports the package."""
    (project / "tests/tokens/test_all.py").write_text(
        "import time\nfrom hiermusic.tokens.count import count\n\n\n"
        "def test_all():\n    assert count([1])\n\n\ndef test_last():\n    time.sleep(99 * (count([1]) < 0))\n"
        "\n\ndef test_busy():\n    while count([1]) < 0:\n        pass\n"
    )
    code = """import sys
from pathlib import Path
import mutants
from mutants_lines import Test
mutants.SLACK, mutants.WAITING = 1.0, 3.0
file, copy = "hiermusic/tokens/count.py", mutants.Copy(Path(sys.argv[1]))
test = lambda name: Test("tests/tokens/test_all.py::" + name, 0.0, {})
fault = mutants.Fault(file, "total += value", "total -= value")
for names in (["test_all"], ["test_last", "test_all"], ["test_busy"]):
    print(copy.try_out(fault, [test(name) for name in names])["by"])
print(copy.try_out(mutants.Fault(file, "total += value", "total += 2 * value"), [test("test_last"), test("test_all")]))
print(copy.try_out(fault, [])["noticed"])
"""
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent)}
    done = subprocess.run([sys.executable, "-c", code, project], env=environment, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 5, done.stderr
    assert lines[0] == "None" and lines[1] == lines[2] == "time limit" and lines[4] == "False"
    assert "'noticed': False" in lines[3] and "'tests': 2" in lines[3]
    assert (project / "hiermusic/tokens/count.py").read_text() == COUNT


def test_lines_are_recorded_by_test_and_what_no_test_runs_passes_at_once(mutants, project):
    pytest.importorskip("coverage")
    done = begin(project)
    assert "test_count.py::test_" in done.stdout, done.stdout + done.stderr
    (row,) = (line for line in done.stdout.splitlines() if "(x > 3" in line)
    assert row.startswith("PASSED (0 tests")
    tests = {
        test.id.partition("::")[2]: test
        for test in mutants.mutants_lines.read(
            project, project.parent / "out" / "lines", mutants.tests_of(project, "hiermusic/tokens/count.py")
        )
    }
    assert tests.keys() == {"test_all", "test_count", "test_three", "test_process"}
    ran = {name: test.lines.get("hiermusic/tokens/count.py", 0) for name, test in tests.items()}
    assert all(ran[name] >> 4 & 1 for name in ("test_count", "test_three"))  # by its fixture
    assert ran["test_process"] >> 9 & 1 and not ran["test_count"] >> 9 & 1
    assert "without a fault" not in begin(project, "--again").stdout
