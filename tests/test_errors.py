"""What a person reads: one line, bounded; and whose fault an error of reading is."""

import errno
import json
from functools import partial

import pytest

from hiermusic.errors import UserError, brief, is_passing, patiently, reading


def test_an_answer_is_one_bounded_line_that_keeps_both_ends():
    told = str(UserError("a\nb\r\u2028c\x00 \x1b[31m\udcff" + "x" * 200_000 + " give another"))
    assert len(told) <= 1000 and told.isprintable()
    assert told.startswith("a b c [31m\\udcff") and told.endswith("x give another")
    assert brief("a  b.wav: short") == "a  b.wav: short"


def deep(depth: int = 100_000) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize(
    ("stumble", "why"),
    [
        (lambda: json.loads("{"), "JSONDecodeError: Expecting property name"),
        (lambda: json.loads(deep()), "RecursionError"),
        (lambda: int("9" * 5000), "Exceeds the limit"),
        (lambda: [].pop("a", 1), "it holds other things"),
        (lambda: {}["weights"], "KeyError: 'weights'"),
        (lambda: open("a\0b"), "embedded null byte"),
        (lambda: open("/no/such/file"), "No such file or directory"),
        (lambda: bytearray(1 << 62), "it asks for more memory than there is"),
    ],
)
def test_whatever_reading_raises_is_one_line(stumble, why):
    with pytest.raises(UserError) as told, reading("list.json", "a list", "write another"):
        stumble()
    assert str(told.value).startswith(f"list.json cannot be read as a list ({why}")
    assert str(told.value).endswith("): write another") and len(str(told.value)) < 400


def test_the_machines_faults_are_not_the_files():
    for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE):
        with pytest.raises(OSError, match="the system"), reading("a.wav", "audio"):
            raise OSError(number, "the system")
    assert not is_passing(OSError(errno.ENOENT, "gone"))
    wrapped = RuntimeError("cannot open")
    wrapped.__cause__ = OSError(errno.EMFILE, "many")
    assert is_passing(wrapped)


def test_what_passes_is_tried_again_and_nothing_else(monkeypatch):
    pauses, tries = [], []
    monkeypatch.setattr("time.sleep", pauses.append)

    def stumble(number, times):
        tries.append(number)
        if len(tries) <= times:
            raise OSError(number, "the system")
        return "read"

    assert patiently(partial(stumble, errno.EMFILE, 2)) == "read" and len(tries) == 3
    assert pauses == sorted(pauses) and len(pauses) == 2
    for number, count in ((errno.EMFILE, 4), (errno.ENOENT, 1)):
        tries.clear()
        with pytest.raises(OSError):
            patiently(partial(stumble, number, 100))
        assert len(tries) == count
    assert pauses[2:] == [0.2, 1.0, 5.0]
