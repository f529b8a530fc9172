"""The processes of a run, one or more on each host: how they find each other, wait for each other, and end together.

JAX joins their devices, but it answers a wrong count of processes by hanging or by a crash, and tells of a process that
died a minute later. So they first meet over plain TCP at the coordinator's port, where what was asked of each is
compared, and keep these connections: they are what `wait_for_all` and `all_stop` go through, and as the kernel closes
those of a process that dies, the others know at once.
"""

import atexit
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from hiermusic.errors import UserError
from hiermusic.parallel import relay
from hiermusic.parallel.link import LOST, Link, words
from hiermusic.parallel.meeting import call, gather, listen
from hiermusic.parallel.places import Place, asked, detected

START_SECONDS = 120.0

_link: Link | None = None


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


def check_shared(workdir: str | os.PathLike) -> None:
    """UserError in a process that does not see what the first one writes into a workdir. Called by every process."""
    # a name that nobody has looked up yet, which no file system's cache can answer for
    token = multihost_utils.broadcast_one_to_all(np.random.default_rng().integers(2**31, dtype=np.int32))
    mark = Path(workdir) / f".shared-{int(token)}"
    if jax.process_index() == 0:
        mark.touch()
    wait_for_all(f"{mark.name} written")
    if not mark.exists():
        raise UserError(
            f"process {jax.process_index()} does not see what process 0 writes into {workdir}: give a workdir on a "
            "file system that all hosts share"
        )
    wait_for_all(f"{mark.name} seen")
    if jax.process_index() == 0:
        mark.unlink()


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
    place = asked(coordinator, processes, process) or (detected(timeout) if processes is None else None)
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


def _start(place: Place, timeout: float) -> None:
    global _link
    bind = None
    if place.process == 0:
        with listen(place) as listener:
            host, port = listener.getsockname()[:2]
            bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            peers = gather(place, timeout, listener)
    else:
        peers = call(place, timeout)
    _link = Link(place, peers)
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


def _part_streams(place: Place) -> None:
    """Keeps native code off the streams that Python writes to: Gloo greets on standard output, the answer's place."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        getattr(sys, name).flush()
        own = os.fdopen(os.dup(number), "w", encoding="utf-8", errors="backslashreplace", buffering=1)
        setattr(sys, name, own)
    command = [sys.executable, "-S", "-E", relay.__file__, words("another process", place, LOST)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    os.dup2(child.stdin.fileno(), 2)
    os.dup2(2, 1)
    child.stdin.close()
