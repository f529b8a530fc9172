"""What the processes of a run say to each other: lists as JSON, one a line, over TCP."""

import json
import socket
import time
from contextlib import suppress

HELLO_BYTES, LINE_BYTES = 256, 4096  # of a first message, which may be anybody's, and of a later one


class Closed(Exception):
    """The other end is gone."""


def send(peer: socket.socket, message: list) -> None:
    with suppress(OSError):
        peer.sendall(json.dumps(message).encode() + b"\n")


def read_line(peer: socket.socket, deadline: float | None = None, limit: int = LINE_BYTES) -> object:
    """One message, byte by byte so that none of the next is taken; None when it is no message, or a longer one."""
    line = b""
    while not line.endswith(b"\n"):
        if len(line) == limit:
            return None
        if deadline is not None:
            peer.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            byte = peer.recv(1)
        except TimeoutError:
            raise
        except OSError as error:
            raise Closed from error
        if not byte:
            raise Closed
        line += byte
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def is_closed(peer: socket.socket) -> bool:
    """Whether a process that has only to wait is gone, perhaps to be started again."""
    peer.settimeout(0.0)
    try:
        return not peer.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def keep_alive(peer: socket.socket) -> None:
    """Lets the kernel close the connection half a minute after the other host has fallen silent."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, option):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
