"""Whatever is in a file, it is taken or refused in one line, in bounded time and memory: files drawn by a seed.

`python tests/fuzz/cases.py SEED NUMBER` runs one case alone, with what it says.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CASES = Path(__file__).with_name("cases.py")
AT_ONCE = 2500  # cases of one process
RUN = "import sys; sys.path.insert(0, sys.argv[1]); import cases; "


@pytest.fixture(scope="module")
def cases():
    spec = importlib.util.spec_from_file_location("fuzz_cases", CASES)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wrongs(seed: int, first: int, stop: int, before: str = "") -> Iterator[tuple[int, str, str]]:
    """Number, kind and fault of every case in [first, stop) that was not taken well."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    while first < stop:
        end = min(first + AT_ONCE, stop)
        command = [sys.executable, "-c", f"{RUN}{before}cases.main({seed}, {first}, {end})", str(CASES.parent)]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
        )
        out, err = process.communicate()
        rows = [json.loads(line) for line in out.splitlines() if line.startswith('{"begun"')]
        done = [json.loads(line) for line in out.splitlines() if line.startswith('{"done"')]
        assert rows, err[-3000:]
        yield from (
            (row["done"], begun["kind"], row["wrong"]) for begun, row in zip(rows, done, strict=False) if row["wrong"]
        )
        if len(done) == len(rows):
            assert process.returncode == 0, err[-3000:]
            first = end
            continue
        number = -process.returncode
        how = "took too long" if number == signal.SIGPROF else f"ended the process ({number}): {err[-1000:]}"
        yield rows[-1]["begun"], rows[-1]["kind"], how
        first = rows[-1]["begun"] + 1


def told(found) -> str:
    return "\n\n".join(f"case {number}, {kind}: {wrong}" for number, kind, wrong in found)


def test_hostile_files_are_taken_or_refused_in_a_line():
    assert not (found := list(wrongs(0, 0, 300))), told(found)


@pytest.mark.slow
def test_ten_thousand_hostile_files():
    assert not (found := list(wrongs(0, 300, 10_000))), told(found)


def test_a_case_is_the_same_every_time_and_unlike_the_next(cases, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(cases, "KINDS", {"a": lambda chance, folder: seen.append(cases.spoil(chance, bytes(999)))})
    for number in (1, 1, 2):
        assert cases.case(0, number) == ("a", None)
    assert seen[0] == seen[1] != seen[2] and seen[0] != bytes(999)


@pytest.mark.parametrize(
    ("reader", "wrong"),
    [
        ("{}['weights']", "KeyError: 'weights'"),
        ("refuse('x' * 10**6)", None),
        ("refuse('')", "AssertionError: no line to read"),
        ("exit(3)", "SystemExit: 3"),
    ],
)
def test_what_is_no_answer_is_told(cases, monkeypatch, reader, wrong):
    from hiermusic.errors import UserError

    def refuse(words):
        raise UserError(words)

    monkeypatch.setattr(cases, "KINDS", {"a": lambda *_: eval(reader, {"refuse": refuse})})
    _, found = cases.case(0, 0)
    assert found is wrong or found.startswith(wrong)


def test_hunger_crashes_and_endless_loops_are_told():
    kinds = {
        "endless": "[None for _ in iter(int, 1) if False]",
        "crash": "__import__('os').abort()",
        "hunger": "len(b'1' * (60 << 20))",
        "well": "None",
    }
    pairs = ", ".join(f"'{name}': lambda *_: {action}" for name, action in kinds.items())
    before = f"cases.warm = lambda: None; cases.SECONDS = 1.0; cases.MEMORY = 30 << 20; cases.KINDS = {{{pairs}}}; "
    found = list(wrongs(0, 0, 4, before))
    assert [(number, kind) for number, kind, _ in found] == [(0, "endless"), (1, "crash"), (2, "hunger")]
    assert found[0][2] == "took too long" and "ended the process (6)" in found[1][2] and "grew by" in found[2][2]
