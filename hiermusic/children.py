"""Processes that this one starts: they get the signals that it gets, and end when it does."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

_PARENT = "HIERMUSIC_PARENT"  # number of the process with which one is to end


def ending_signals() -> tuple[signal.Signals, ...]:
    """The signals that ask a process to end; not the terminal's, where `nohup` has it ignored."""
    kept = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return (signal.SIGTERM, signal.SIGINT, *(() if kept else (signal.SIGHUP,)))


def run(arguments: Sequence[str]) -> tuple[int, int]:
    """Runs a `hiermusic` command in a process of its own, from the main thread.

    Args:
      arguments: what follows `hiermusic`.
    Returns:
      Its exit status, and the most memory it had, in the units of `resource.getrusage`.
    Raises:
      KeyboardInterrupt: a signal to this process or to that one ended it; it has saved.
    """
    command = [sys.executable, "-m", "hiermusic", *arguments]
    environment = os.environ | {_PARENT: str(os.getpid())}
    process: subprocess.Popen | None = None
    caught, waiting = [], deque()

    def pass_on() -> None:
        with suppress(IndexError, ProcessLookupError):
            while process:
                os.kill(process.pid, waiting.popleft())

    def catch(number, frame):
        caught.append(number)
        waiting.append(number)
        pass_on()

    previous = {number: signal.signal(number, catch) for number in ending_signals()}
    try:
        # a group of its own: what a terminal sends to a whole group would come twice, and a second signal kills
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment, process_group=0)
        pass_on()  # what came while it began
        # not in one wait: a signal that came just before it would be heard when it is over
        while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
            time.sleep(0.05)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    _, status, usage = ended
    process.returncode = os.waitstatus_to_exitcode(status)
    if caught or process.returncode == 130:
        raise KeyboardInterrupt
    return process.returncode, usage.ru_maxrss


def end_with_parent() -> None:
    """Where `run` started this process: ends it, as SIGTERM does, once the one that did is gone."""
    if parent := os.environ.pop(_PARENT, None):
        end_with(int(parent))


def end_with(parent: int) -> None:
    """Ends this process, as SIGTERM does, once its parent is gone.

    Args:
      parent: number of the process that started this one.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="parent", daemon=True).start()
