"""The processes of a run, one or more on each host: how they find each other, wait for each other, and end together.

JAX joins their devices, but it answers a wrong count of processes by hanging or by a crash, and tells of a process that
died a minute later. So they first meet over plain TCP at the coordinator's port, where what was asked of each is
compared, and keep these connections: they are what `wait_for_all` and `all_stop` go through, and as the kernel closes
those of a process that dies, the others know at once.
"""

import atexit
import errno
import ipaddress
import os
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import jax

from hiermusic.console import warn
from hiermusic.errors import UserError, brief
from hiermusic.parallel import relay
from hiermusic.parallel.messages import HELLO_BYTES, Closed, is_closed, keep_alive, read_line, send

START_SECONDS = 120.0
LOST = "was lost (killed, crashed or cut off)"

_link: "_Link | None" = None


def workers() -> tuple[int, int]:
    """(which, of how many) processes this one is."""
    return (_link.place.process, _link.place.processes) if _link else (0, 1)


def wait_for_all(name: str) -> None:
    """Returns when every process of the run has come to this point, which `name` tells from others."""
    if _link:
        _link.wait(name)


def all_stop(step: int, wanted: bool) -> bool:
    """Whether the run ends after this step because one of its processes was asked to; the same answer in all of them.

    JAX's own sync point cannot be used: a notice that comes before the first step of a resumed run is never agreed on.

    Args:
      step: every process calls this after every step, in which all take part.
      wanted: this process was asked to end.
    """
    return _link.stops(step, wanted) if _link else wanted


@contextmanager
def joined(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    timeout: float = START_SECONDS,
) -> Iterator[None]:
    """The block as one of the processes of a run; without any argument and outside a cluster, simply the block.

    TPU slices, SLURM, Open MPI and indexed Kubernetes jobs are recognised (by JAX) and need no argument. Must be
    entered before JAX touches a device. When another process dies or fails, this one says so in one line and exits with
    status 1; when the block itself fails, the others are told.

    Args:
      coordinator: HOST:PORT at which process 0 listens.
      processes: how many there are; 1 means just this one, whatever the cluster looks like.
      process: which of them this one is, from 0.
      timeout: seconds to wait for the others to start.
    Raises:
      UserError: only some of the arguments, a process out of range, a port in use, a coordinator that does not answer,
        processes that do not come, or that were told another count.
    """
    place = _asked(coordinator, processes, process) or (_detected(timeout) if processes is None else None)
    if place is None or place.processes == 1 or _link is not None:
        yield
        return
    _start(place, timeout)
    try:
        yield
    except SystemExit:
        _link.send_all(["bye"])
        raise
    except BaseException as error:
        # a collective that breaks because another process died is told by the connection to that one
        if not isinstance(error, UserError):
            _link.ended.wait(5.0)
        _link.failing = True
        _link.send_all(["failed"])
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
        atexit.register(_link.leave, status)  # the error has been told when this runs
        timer = threading.Timer(10.0, _link.leave, [status])  # a checkpoint may wait for those who do not come
        timer.daemon = True
        timer.start()
        raise
    _link.send_all(["bye"])


@dataclass(frozen=True)
class _Place:
    """Where a process stands among the others; `devices` are the local ones it may use, all when None."""

    coordinator: str
    processes: int
    process: int
    devices: tuple[int, ...] | None = None

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)


def _asked(coordinator: str | None, processes: int | None, process: int | None) -> _Place | None:
    """The place that the flags name; None without flags."""
    flags = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [name for name, value in flags.items() if value is None]
    if len(missing) == 3 or (processes == 1 and coordinator is None and not process):
        return None
    if missing:
        raise UserError(f"{', '.join(missing)} is needed too: --coordinator, --processes and --process go together")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator={coordinator}: give HOST:PORT, the same for every process")
    if processes < 1:
        raise UserError(f"--processes={processes}: there is at least one")
    if not 0 <= process < processes:
        raise UserError(f"--process={process}: with --processes={processes} it must lie in 0..{processes - 1}")
    return _Place(coordinator, processes, process)


def _detected(timeout: float) -> _Place | None:
    """The place that the cluster gives this process, as JAX recognises it; None outside of one."""
    # any other pod of Kubernetes, such as a notebook, is no cluster
    addresses = {"TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_PROCESS_ADDRESSES_PATH"}
    told = {"JOB_COMPLETION_INDEX", "SLURM_JOB_ID", *addresses}
    if "KUBERNETES_SERVICE_HOST" in os.environ and not told & os.environ.keys():
        return None
    try:
        # what jax.distributed.initialize asks when it is given nothing; no public name of JAX tells without starting
        from jax._src.clusters import ClusterEnv

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, int(timeout))
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the cluster does not say which processes run together ({reason}): give --coordinator, --processes and "
            "--process, or --processes=1 for this one alone"
        ) from error
    coordinator, processes, process, devices = found
    if coordinator is None:
        return None
    if os.environ.get("SLURM_STEP_NUM_NODES") == str(processes):
        devices = None  # one process a node has all of the node's devices; JAX would give it one
    return _Place(coordinator, processes, process, devices and tuple(devices))


def _start(place: _Place, timeout: float) -> None:
    global _link
    bind = None
    if place.process == 0:
        with _listener(place) as listener:
            host, port = listener.getsockname()[:2]
            bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            peers = _gather(place, timeout, listener)
    else:
        peers = _call(place, timeout)
    _link = _Link(place, peers)
    _part_streams(place)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from those who do not save on it
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.processes,
            place.process,
            coordinator_bind_address=bind,
            local_device_ids=place.devices,
            cluster_detection_method="deactivate",
            initialization_timeout=max(int(timeout), 1),
            shutdown_timeout_seconds=60,
        )
    except RuntimeError as error:
        raise UserError(f"JAX did not start at {place.coordinator}: {str(error).splitlines()[0]}") from error


def _part_streams(place: _Place) -> None:
    """Keeps native code off the streams that Python writes to: Gloo greets on standard output, the answer's place."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        getattr(sys, name).flush()
        own = os.fdopen(os.dup(number), "w", encoding="utf-8", errors="backslashreplace", buffering=1)
        setattr(sys, name, own)
    command = [sys.executable, "-S", "-E", relay.__file__, _words("another process", place, LOST)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    os.dup2(child.stdin.fileno(), 2)
    os.dup2(2, 1)
    child.stdin.close()


def _words(who: str, place: _Place, what: str) -> str:
    return f"hiermusic: {who} of {place.processes} {what}; run the same command to go on"


def _listener(place: _Place) -> socket.socket:
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


def _gather(place: _Place, timeout: float, listener: socket.socket) -> dict[int, socket.socket]:
    """Process 0: the connections of all others, once all are there and agree. Whoever is none of them is sent away."""
    peers: dict[int, socket.socket] = {}
    refused: list[str] = []
    deadline = time.monotonic() + timeout
    try:
        while len(peers) < place.processes - 1:
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


def _fault(place: _Place, process: int, processes: int, peers: dict[int, socket.socket]) -> str | None:
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


def _call(place: _Place, timeout: float) -> dict[int, socket.socket]:
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


class _Link:
    """The open connections of this process: process 0 has one to each other, and they one to process 0.

    Each is read by a thread of its own. What arrives: ["at", name] of a process that waits, ["pass", name] to all who
    wait; ["stopping"] of one that was asked to end, ["where"] to all, who answer ["here", step] and go no step further
    before ["stop", step]; ["bye"] before a good end, ["failed"] before a bad one, ["lost" or "failed", process].
    """

    def __init__(self, place: _Place, peers: dict[int, socket.socket]):
        self.place, self.peers = place, peers
        self.ended = threading.Event()  # never set: whoever waits for it is ended by the thread that learns why
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.waiting: dict[str, set[int]] = defaultdict(set)
        self.passed: dict[str, int] = defaultdict(int)
        self.turns: dict[str, int] = defaultdict(int)
        self.step, self.last_step = 0, None  # this process's, and that after which all stop
        self.asked, self.here = False, {}
        self.readers: list[threading.Thread] = []
        self.failing = False  # then it is no news that the others leave
        for process, peer in peers.items():
            peer.settimeout(None)
            keep_alive(peer)
            self.readers.append(threading.Thread(target=self._read, args=(process, peer), daemon=True))
        for reader in self.readers:
            reader.start()

    def wait(self, name: str) -> None:
        self.turns[name] += 1
        if self.place.process == 0:
            self._arrived(name, 0)
        else:
            self.send_all(["at", name])
        with self.changed:
            self.changed.wait_for(lambda: self.passed[name] >= self.turns[name])

    def stops(self, step: int, wanted: bool) -> bool:
        if wanted and self.place.process == 0:
            self._ask()
        elif wanted:
            self.send_all(["stopping"])
        with self.changed:
            self.step = step
            self.changed.wait_for(lambda: not self.asked or self.last_step is not None)
            return self.last_step is not None and step >= self.last_step

    def _ask(self) -> None:
        """Process 0: asks every process for its step, once."""
        with self.changed:
            if self.asked:
                return
            self.asked, self.here = True, {0: self.step}
        self.send_all(["where"])

    def _answer(self) -> None:
        with self.changed:
            self.asked = True
            step = self.step
        self.send_all(["here", step])

    def _heard(self, process: int, step: int) -> None:
        """Process 0: settles on the first step that nobody has passed, once all have told theirs."""
        with self.changed:
            self.here[process] = step
            if len(self.here) < self.place.processes:
                return
            last = max(self.here.values()) + 1
        self.send_all(["stop", last])
        self._settle(last)

    def _settle(self, last: int) -> None:
        with self.changed:
            self.last_step = last
            self.changed.notify_all()

    def send_all(self, message: list) -> None:
        for peer in self.peers.values():
            send(peer, message)

    def _arrived(self, name: str, process: int) -> None:
        with self.changed:
            self.waiting[name].add(process)
            if len(self.waiting[name]) < self.place.processes:
                return
            del self.waiting[name]
        self.send_all(["pass", name])
        self._pass(name)

    def _pass(self, name: str) -> None:
        with self.changed:
            self.passed[name] += 1
            self.changed.notify_all()

    def _read(self, process: int, peer: socket.socket) -> None:
        try:
            while True:
                match read_line(peer):
                    case ["at", str(name)]:
                        self._arrived(name, process)
                    case ["pass", str(name)]:
                        self._pass(name)
                    case ["stopping"]:
                        self._ask()
                    case ["where"]:
                        self._answer()
                    case ["here", int(step)]:
                        self._heard(process, step)
                    case ["stop", int(step)]:
                        self._settle(step)
                    case ["bye"]:
                        return
                    case ["failed"]:
                        self._end("failed", process)
                    case ["lost" | "failed" as how, int(which)]:
                        self._end(how, which)
                    case _:  # nothing that one of us would send
                        raise Closed
        except Closed:
            self._end("lost", process)

    def _end(self, how: str, process: int) -> None:
        """Ends this process because of another: at once, or JAX would say the same on a page, a minute later."""
        if self.failing:
            return
        if self.place.process == 0:
            for other, peer in self.peers.items():
                if other != process:
                    send(peer, [how, process])
        if how == "failed":
            time.sleep(2.0)  # what is wrong there is often wrong here too, and then better told by its own words
        line = _words(f"process {process}", self.place, LOST if how == "lost" else "failed, see what it says")
        with self.lock:  # held for ever: only one thread speaks
            with suppress(OSError):  # whoever read standard error may be gone
                os.write(2, f"{line}\n".encode())
            self.leave(1)

    def leave(self, status: int) -> None:
        """Exits without JAX's shutdown barrier, to which nobody comes; process 0 last, as JAX's service is in it."""
        if self.place.process == 0:
            until = time.monotonic() + 5.0
            for thread in self.readers:
                if thread is not threading.current_thread():
                    thread.join(max(until - time.monotonic(), 0.0))
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
