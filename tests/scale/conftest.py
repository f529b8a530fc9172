"""Commands run as one to four processes on this host, each with devices of its own."""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker.py")
sys.path.insert(0, str(WORKER.parent))  # the tests import what the processes run


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Processes:
    """One command as several processes; `end` waits for them and tells how each ended."""

    def __init__(self, command, count: int, devices: int = 1):
        flags = os.environ["XLA_FLAGS"].replace("device_count=8", f"device_count={devices}")
        environment = os.environ | {"XLA_FLAGS": flags}
        where = [f"--coordinator=127.0.0.1:{free_port()}", f"--processes={count}"] if count > 1 else []
        # files, since a process that waits for room in a pipe would keep the others waiting
        self.said = [[tempfile.TemporaryFile("w+") for _ in range(2)] for _ in range(count)]
        self.all = [
            subprocess.Popen(
                [sys.executable, *map(str, command), *where, *([f"--process={i}"] if where else [])],
                env=environment,
                stdout=out,
                stderr=errors,
            )
            for i, (out, errors) in enumerate(self.said)
        ]

    def end(self, seconds: float = 120.0):
        """(exit status, standard output, standard error) of each."""
        try:
            for process in self.all:
                process.wait(seconds)
        finally:
            for process in self.all:
                process.kill()
        return [(process.returncode, *map(_read, said)) for process, said in zip(self.all, self.said, strict=True)]


def _read(file) -> str:
    file.seek(0)
    return file.read()


@pytest.fixture
def train():
    """(workdir, processes, options...) -> the toy stage in training."""

    def start(workdir, count, *options, devices=1):
        return Processes([WORKER, workdir, *options], count, devices)

    return start


@pytest.fixture
def decoder():
    """(processes, devices of each) -> a small token model that decodes over all of them."""
    return lambda count, devices: Processes([WORKER.with_name("decoder.py")], count, devices)


@pytest.fixture
def verb():
    """(processes, verb and arguments...) -> a verb at work."""
    return lambda count, *arguments, devices=1: Processes(["-m", "hiermusic", *arguments], count, devices)
