"""Words and progress: readable in a log, and no matter to the work when nobody can read them."""

import io
import os
import subprocess
import sys

import pytest

from hiermusic import console

ROOT = os.path.dirname(os.path.dirname(__file__))


class Broken(io.StringIO):
    def write(self, text):
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self):
        raise OSError(5, "Input/output error")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def count(total=1272):
    with console.bar("step", total, label="some") as bar:
        for _ in range(total):
            bar.update()


@pytest.mark.parametrize("terminal", [False, True])
def test_a_stream_that_takes_nothing_ends_nothing(monkeypatch, terminal):
    stream = Broken()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(console, "EVERY", 0.0)
    console.say("words")
    with console.bar("step", 2) as bar:
        bar.update()
        console.say("words")
    sys.stderr.close()
    console.say("words")


def test_a_log_gets_lines_and_few_of_them(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    count()
    assert sys.stderr.getvalue() == ""  # done within a minute
    monkeypatch.setattr(console, "EVERY", 0.0)
    count(3)
    lines = sys.stderr.getvalue().splitlines()
    assert [line.split(" [")[0] for line in lines[:4]] == [f"some: {n}/3" for n in ("0% 0", "33% 1", "67% 2", "100% 3")]
    assert "\r" not in sys.stderr.getvalue()


def test_a_terminal_gets_a_bar_below_the_words(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with console.bar("step", 2):
        console.say("words")
    drawn = sys.stderr.getvalue()
    assert "\rsome" not in drawn and drawn.count("\r") > 3 and "words\n\r" in drawn


def test_a_bar_that_is_not_shown_writes_nothing(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with console.bar("step", 2, shown=False) as bar:
        bar.update()
    assert sys.stderr.getvalue() == ""


def run(code: str, redirected: str) -> int:
    """The status of Python code with streams as a shell redirects them."""
    command = f"'{sys.executable}' -c '{code}' {redirected}"
    return subprocess.run(["bash", "-c", command], cwd=ROOT, check=False).returncode


def test_files_do_not_get_the_numbers_of_closed_streams():
    code = "import os; from hiermusic.console import *; open_closed_streams(); say(1); print(2); "
    code += "os._exit(os.open(os.devnull, os.O_RDONLY))"
    assert run(code, "<&- >&- 2>&-") > 2


def test_a_closed_stream_takes_words_of_this_process_and_of_those_it_starts():
    code = "import os, sys; from hiermusic.console import *; before = sys.stdout, sys.stderr; open_closed_streams(); "
    write = "sys.stdout.write(chr(97)); sys.stderr.write(chr(97)); "
    assert run(code + write + 'os._exit(os.system("echo a; echo a >&2"))', "<&- >&- 2>&-") == 0
    assert run(code + "os._exit(before != (sys.stdout, sys.stderr))", ">/dev/null") == 0


@pytest.mark.parametrize("redirected", ["2>/dev/full", "2>&-", ">/dev/null 2>&1"])
def test_a_verb_ends_well_whatever_becomes_of_its_words(redirected):
    code = "from hiermusic.cli import main; from hiermusic.verbs import flags; flags.say(1); main([])"
    assert run(code, redirected) == 0


def test_the_reader_of_an_answer_may_leave():
    code = "from hiermusic.verbs.flags import show; show(1000000 * chr(97)); show(chr(50)); raise SystemExit(7)"
    assert run(code, "| head -c 1 >/dev/null; exit ${PIPESTATUS[0]}") == 7


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_an_answer_that_a_disk_does_not_take_is_no_success():
    assert run("from hiermusic.verbs.flags import show; show(chr(49))", ">/dev/full 2>/dev/null") == 1
