"""How the processes of a run find each other over plain TCP, and agree on how many they are."""

import errno
import ipaddress
import socket
import time
from contextlib import suppress

from hiermusic.console import warn
from hiermusic.errors import UserError, brief
from hiermusic.parallel.messages import HELLO_BYTES, Closed, is_closed, read_line, send
from hiermusic.parallel.places import Place


def listen(place: Place) -> socket.socket:
    """Process 0: listens at the coordinator's address alone, or everywhere where that is none of this host's.

    Which is so behind a translation of addresses, and where /etc/hosts gives the host's own name a loopback address.
    """
    host, port = place.address
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UserError(f"the coordinator {place.coordinator} is not known on this host: {error.strerror}") from error
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    family, *_, (address, *_) = found[0]
    if host in (address, "localhost") or not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        try:
            return socket.create_server((address, port), family=family)
        except OSError as error:
            if error.errno != errno.EADDRNOTAVAIL:
                raise _not_listening(port, error) from error
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise _not_listening(port, error) from error


def _not_listening(port: int, error: OSError) -> UserError:
    if error.errno == errno.EADDRINUSE:
        return UserError(
            f"port {port} is in use on this host: end what listens there, or give another with --coordinator"
        )
    return UserError(f"process 0 cannot listen on port {port}: {error.strerror}")


def gather(place: Place, timeout: float, listener: socket.socket) -> dict[int, socket.socket]:
    """Process 0: the connections of all others, once all are there and agree. Whoever is none of them is sent away."""
    peers: dict[int, socket.socket] = {}
    refused: list[str] = []
    deadline = time.monotonic() + timeout
    try:
        while True:
            for process in [i for i, peer in peers.items() if is_closed(peer)]:
                peers.pop(process).close()  # gone since it came, perhaps to be started again
            if len(peers) == place.processes - 1:
                break
            listener.settimeout(max(deadline - time.monotonic(), 0.001))
            peer, hello = None, None
            with suppress(TimeoutError, Closed):
                peer, _ = listener.accept()
                hello = read_line(peer, min(deadline, time.monotonic() + 2.0), HELLO_BYTES)
            if time.monotonic() >= deadline:
                absent = sorted(set(range(1, place.processes)) - peers.keys())
                raise UserError(
                    f"waited {timeout:g} s at {place.coordinator} for process {', '.join(map(str, absent))} of "
                    f"{place.processes}: start every process, with the same --coordinator and --processes"
                )
            match hello:
                case ["hiermusic", int(process), int(processes)]:
                    pass
                case _:  # whoever that was, it is none of ours
                    if peer is not None:
                        peer.close()
                    continue
            if fault := _fault(place, process, processes, peers):
                send(peer, ["refused", fault])
                peer.close()
                if len(refused) < 4 and fault not in refused:  # anybody may call, and as often as he likes
                    refused.append(fault)
                    warn(f"sent away at {place.coordinator}: {fault}")
                continue
            peers[process] = peer
    except UserError as error:
        for peer in peers.values():
            send(peer, ["refused", str(error)])
        raise
    for peer in peers.values():
        send(peer, ["go"])
    return peers


def _fault(place: Place, process: int, processes: int, peers: dict[int, socket.socket]) -> str | None:
    """Why a process is none of this run's; None where it is one."""
    if processes != place.processes:
        return brief(
            f"process {process} was started with --processes={processes}, process 0 with "
            f"--processes={place.processes}: give all the same"
        )
    if not 0 <= process < processes:
        return brief(f"process {process} is none of 0..{processes - 1}: number them from 0")
    if process == 0 or (process in peers and not is_closed(peers[process])):
        return f"two processes were started with --process={process}: number them from 0"
    return None


def call(place: Place, timeout: float) -> dict[int, socket.socket]:
    """Any other process: its connection to process 0, once all are there and agree."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            peer = socket.create_connection(place.address, timeout=max(deadline - time.monotonic(), 0.001))
            break
        except OSError as error:
            if time.monotonic() + 0.1 >= deadline:
                raise UserError(
                    f"process {place.process} waited {timeout:g} s for the coordinator at {place.coordinator} "
                    f"({error.strerror or error}): start process 0 there, or correct --coordinator"
                ) from error
            time.sleep(0.1)
    try:
        send(peer, ["hiermusic", place.process, place.processes])
        reply = read_line(peer, time.monotonic() + timeout + 1)  # process 0 may have begun to wait after this one
    except (TimeoutError, Closed):
        reply = None
    match reply:
        case ["go"]:
            return {0: peer}
        case ["refused", str(reason)]:
            raise UserError(" ".join(reason.split())[:400])
        case _:
            raise UserError(f"process 0 ended, or is none of this program's, at {place.coordinator}")
