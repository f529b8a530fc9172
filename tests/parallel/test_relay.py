"""Standard error by way of another process: native chatter is dropped, and a lost process is told in one line."""

import subprocess
import sys

import pytest

from hiermusic.parallel import relay

LOST = b"E0000 coordination_service_agent.cc:525] Terminating process\n"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([b"[Gloo] Rank 0 is connected to 1 peer ranks\n", b"E0000 odd: native\n"], ["E0000 odd: native"]),
        ([b"before\n", LOST, b"a page of\n", b"stack traces\n"], ["before", "it is gone"]),
        ([LOST, b"hiermusic: process 1 ended\n"], ["hiermusic: process 1 ended"]),
        ([b"hiermusic: a warning\n"], ["hiermusic: a warning"]),
    ],
)
def test_what_is_passed_on(given, told):
    command = [sys.executable, "-S", "-E", relay.__file__, "it is gone"]
    done = subprocess.run(command, input=b"".join(given), capture_output=True, check=True)
    assert (done.stdout, done.stderr.decode().splitlines()) == (b"", told)


def test_native_code_and_python_have_streams_of_their_own():
    code = (
        "import os, sys\n"
        "from hiermusic.parallel import hosts, places\n"
        "hosts._part_streams(places.Place('127.0.0.1:1', 2, 0))\n"
        "for stream in (1, 2):\n"
        "    os.write(stream, b'[Gloo] hello\\nnative %d\\n' % stream)\n"
        "print('answer')\n"
        "print('words', file=sys.stderr)\n"
        "os._exit(0)\n"  # nothing is flushed any more
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "answer\n" and sorted(done.stderr.splitlines()) == ["native 1", "native 2", "words"]
