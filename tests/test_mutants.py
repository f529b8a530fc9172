"""The script that puts faults into the package: what it changes, and that it knows a noticed fault from another."""

import ast
import importlib.util
import json
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
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mutants"]


def test_every_operator_edits_the_text_and_nothing_that_is_only_read(mutants):
    found = list(mutants.faults_of(SNIPPET, "hiermusic/tokens/part.py"))
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
    text = "a = b + c\nd = 1\na = b + c\n"
    put = [fault.put(text) for fault in mutants.faults_of(text, "hiermusic/x.py") if fault.kind == "arithmetic"]
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


def test_the_tests_of_a_module_are_its_rooms_or_those_that_import_it(mutants, project):
    own = ["tests/tokens/test_count.py", "tests/tokens/test_all.py"]
    assert mutants.tests_of(project, "hiermusic/tokens/count.py") == own
    assert mutants.tests_of(project, "hiermusic/tokens/sum.py") == [*sorted(own), "tests/other/test_use.py"]
    assert mutants.tests_of(project, "hiermusic/small.py") == []


COUNT = """def count(values):
    total = 0
    for value in values:
        total += value
    return total


def unused(x):
    return x + 1


def twice(x):
    return x + 2 * (x > 3)
"""


@pytest.fixture
def project(tmp_path):
    """A package of two rooms, whose tests see one of its faults in their room, one elsewhere, and one not at all."""
    files = {
        "hiermusic/small.py": "LIMIT = 1 + 1\n",
        "hiermusic/tokens/count.py": COUNT,
        "tests/tokens/test_all.py": "def test_all():\n    pass\n",
        "tests/tokens/test_count.py": "from hiermusic.tokens.count import count\n\n\n"
        "def test_count():\n    assert count([1, 2]) == 3\n",
        "tests/other/test_use.py": "from hiermusic.tokens import count, sum\n\n\ndef test_use():\n    assert count\n",
        "tests/systems/test_long.py": "from hiermusic.tokens.count import twice\n\n\n"
        "def test_long():\n    assert twice(4) == 6\n",
        "pyproject.toml": '[tool.pytest.ini_options]\nmarkers = ["slow"]\n'
        'addopts = "-ra --import-mode=importlib -p no:jaxtyping -p no:hypothesispytest"\n',
    }
    hand = [
        {"file": "hiermusic/tokens/count.py", "old": "total += value", "new": "total -= value"},
        {"file": "hiermusic/tokens/count.py", "old": "return x + 1", "new": "return x"},
        {"file": "hiermusic/tokens/count.py", "old": "2 * (x > 3)", "new": "x > 3"},
    ]
    files["tests/mutants_by_hand.jsonl"] = "".join(json.dumps(row) + "\n" for row in hand)
    files["tests/mutants_equivalent.jsonl"] = ""
    for name, text in files.items():
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).write_text(text)
    return tmp_path / "project"


def quick(copy, tests, limit, *more):
    """What pytest would say of the copy, without its start."""
    scope = {}
    exec((copy.root / "hiermusic/tokens/count.py").read_text(), scope)
    if more:
        Path(more[0].removeprefix("--junitxml=")).write_text(
            '<testsuite><testcase classname="tests.tokens.test_count" time="2.5"/></testsuite>'
        )
    right = {
        "tests/tokens/test_count.py": scope["count"]([1, 2]) == 3,
        "tests/systems/test_long.py": scope["twice"](4) == 6,
    }
    failed = [test for test in tests if not right.get(test, True)]
    return (1, f"FAILED {failed[0]}::test_it - assert", 1.0) if failed else (0, "", 1.0)


def test_a_run_tells_what_was_noticed_and_goes_on_where_it_was_stopped(mutants, monkeypatch, capsys, project):
    monkeypatch.setattr(mutants.Copy, "run", quick)
    monkeypatch.setattr(mutants.os, "nice", lambda increment: mutants.NICENESS)
    monkeypatch.setattr(mutants.signal, "signal", lambda *_: None)
    before = {path: path.read_text() for path in project.rglob("*") if path.is_file()}
    out = project.parent / "out"

    def run(*more):
        mutants.main([f"--root={project}", f"--out={out}", "--count=0", *more])
        return capsys.readouterr().out

    told = run()
    assert "3 of 3 faults to try" in told and told.count("PASSED (") == 2
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


def test_a_fault_is_tried_by_pytest_itself_and_ends_when_its_time_is_over(mutants, project):
    copy = mutants.Copy.of(project, project.parent / "copy", project.parent / "cache")
    noticed = mutants.Fault("hiermusic/tokens/count.py", "total += value", "total -= value")
    told = copy.try_out(noticed, ["tests/tokens/test_count.py"], 600)
    assert told["noticed"] and told["by"] == "tests/tokens/test_count.py::test_count"
    assert copy.try_out(noticed, ["tests/tokens/test_count.py"], 0.001)["by"] == "time limit"
    assert (copy.root / noticed.file).read_text() == COUNT
