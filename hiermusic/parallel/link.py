"""The connections that processes of a run keep: they wait for each other, stop and end together through them."""

import os
import socket
import sys
import threading
import time
from collections import defaultdict
from contextlib import suppress

from hiermusic.parallel.messages import Closed, keep_alive, read_line, send
from hiermusic.parallel.places import Place

LOST = "was lost (killed, crashed or cut off)"


def words(who: str, place: Place, what: str) -> str:
    """The one line with which a process ends because of another."""
    return f"hiermusic: {who} of {place.processes} {what}; run the same command to go on"


class Link:
    """The open connections of this process: process 0 has one to each other, and they one to process 0.

    Each is read by a thread of its own. What arrives: ["at", name] of a process that waits, ["pass", name] to all who
    wait; ["stopping"] of one that was asked to end, ["where"] to all, who answer ["here", step] and go no step further
    before ["stop", step]; ["bye"] before a good end, ["failed"] before a bad one, ["lost" or "failed", process].
    """

    def __init__(self, place: Place, peers: dict[int, socket.socket]):
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
        line = words(f"process {process}", self.place, LOST if how == "lost" else "failed, see what it says")
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
