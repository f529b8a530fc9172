"""Passes on what native code of a process writes to its standard error, but for JAX's page on a lost process.

A process whose coordinator dies is aborted by JAX's runtime at once, from a thread that no Python code comes before and
with a stack trace: only another process can still say it in one line. Run as a script, with that line as its argument.
"""

import re
import signal
import sys

GREETING = re.compile(rb"^\[Gloo\]|connected peer ranks")
RUNTIME = re.compile(rb"coordination_service|distributed service detected fatal errors")
OURS = b"hiermusic: "


def main(message: str) -> None:
    """Copies standard input to standard error until the runtime gives up; then only our own lines, or `message`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # ends with the process it serves, never before
    lost, told = False, False
    for line in sys.stdin.buffer:
        lost, told = lost or bool(RUNTIME.search(line)), told or line.startswith(OURS)
        if line.startswith(OURS) or not (lost or GREETING.search(line)):
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
    if lost and not told:
        print(message, file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1])
