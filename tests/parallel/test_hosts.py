"""Processes that cannot come together say so, each in one line, before JAX is started."""

import socket
import sys
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from hiermusic.errors import UserError
from hiermusic.parallel import hosts, meeting
from hiermusic.parallel.link import Link
from hiermusic.parallel.places import Place


def refused(*place, timeout=0.3):
    with pytest.raises(UserError) as caught, hosts.joined(*place, timeout=timeout):
        raise AssertionError("joined")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    return free


def connect(port):
    """A connection to a process 0 that may not be listening yet."""
    for _ in range(500):
        try:
            return socket.create_connection(("127.0.0.1", port))
        except ConnectionRefusedError:
            time.sleep(0.01)
    raise AssertionError("nobody listens")


@contextmanager
def gathering(port, processes, *, last=None):
    """Process 0 waits while the block runs, then the others (or only `last`) come: it finds all of them, each once."""
    places = [Place(f"127.0.0.1:{port}", processes, i) for i in range(processes)]
    found, come = [], range(1, processes) if last is None else [last]
    with meeting.listen(places[0]) as listener:
        threads = [
            threading.Thread(target=lambda: found.append(meeting.gather(places[0], 60.0, listener)), daemon=True)
        ]
        threads[0].start()
        yield
        for i in come:
            threads.append(
                threading.Thread(target=lambda i=i: found.append(meeting.call(places[i], 60.0)), daemon=True)
            )
            threads[-1].start()
        for thread in threads:
            thread.join(60)
    assert sorted(sorted(peers) for peers in found) == [*([0] for _ in come), list(range(1, processes))]
    for peers in found:
        for peer in peers.values():
            peer.close()


def test_one_process_needs_nothing():
    for place in ((), (None, 1), (None, 1, 0)):
        with hosts.joined(*place):
            assert hosts.workers() == (0, 1)
            hosts.wait_for_all("nobody else")


def test_the_flags_go_together():
    assert refused("a:1", 2).startswith("--process is needed too")
    assert refused(None, 2).startswith("--coordinator, --process is needed too")
    assert "HOST:PORT" in refused("localhost", 2, 0) and "HOST:PORT" in refused("localhost:99999", 2, 0)
    assert "must lie in 0..1" in refused("localhost:9", 2, 2)


def test_a_port_in_use_is_named():
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        assert refused(f"127.0.0.1:{taken}", 2, 0).startswith(f"port {taken} is in use on this host")


def test_those_who_do_not_come_are_named(port):
    start = time.monotonic()
    assert "for process 1, 2 of 3" in refused(f"127.0.0.1:{port}", 3, 0)
    said = refused(f"127.0.0.1:{port}", 3, 1)
    assert f"process 1 waited 0.3 s for the coordinator at 127.0.0.1:{port} (Connection refused)" in said
    assert time.monotonic() - start < 20


def test_what_answers_must_be_a_coordinator():
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].sendall(b"220 mail\n"), daemon=True).start()
        assert "none of this program's" in refused(f"127.0.0.1:{server.getsockname()[1]}", 2, 1)


@pytest.mark.parametrize("process", [1, 2])
def test_who_was_told_another_count_is_sent_away_and_process_0_says_so_and_waits_on(port, process, capsys):
    said = f"process {process} was started with --processes=3, process 0 with --processes=2: give all the same"
    with gathering(port, 2):
        for _ in range(2):
            assert refused(f"127.0.0.1:{port}", 3, process, timeout=20.0) == said
    assert capsys.readouterr().err == f"sent away at 127.0.0.1:{port}: {said}\n"  # once, however often


def test_whoever_calls_does_not_fill_the_log(port, capsys):
    with gathering(port, 2):
        for count in range(3, 30):
            with connect(port) as stranger:
                stranger.sendall(f'["hiermusic", 1, {count}]\n'.encode())
                stranger.recv(1)
    assert len(capsys.readouterr().err.splitlines()) == 4


def test_the_second_of_one_number_is_refused(port, capsys):
    twice, told, taken = "two processes were started with --process=1: number them from 0", [], []

    def call():
        try:
            taken.append(meeting.call(Place(f"127.0.0.1:{port}", 3, 1), 60.0))
        except UserError as error:
            told.append(str(error))

    threads = [threading.Thread(target=call, daemon=True) for _ in range(2)]
    with gathering(port, 3, last=2):
        for thread in threads:
            thread.start()
        while not told and any(thread.is_alive() for thread in threads):
            time.sleep(0.01)
    for thread in threads:
        thread.join(60)
    taken[0][0].close()
    assert (told, len(taken)) == ([twice], 1)
    assert capsys.readouterr().err == f"sent away at 127.0.0.1:{port}: {twice}\n"


@pytest.mark.parametrize("coordinator", ["localhost", "127.0.0.1"])
def test_nobody_else_is_listened_to_than_was_asked_for(port, coordinator):
    with meeting.listen(Place(f"{coordinator}:{port}", 2, 0)) as listener:
        assert listener.getsockname() == ("127.0.0.1", port)


def test_a_name_that_others_know_by_another_address_is_listened_to_everywhere(port, monkeypatch):
    """As where /etc/hosts gives the host's own name 127.0.1.1, or the address is translated on the way."""
    for address in ("127.0.1.1", "192.0.2.1"):
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, found=found, **__: found)
        with meeting.listen(Place(f"node7:{port}", 2, 0)) as listener:
            assert listener.getsockname()[0] in ("::", "0.0.0.0")


def test_a_coordinator_that_is_not_known_is_told(port):
    assert "is not known on this host" in refused(f"no-such-host.invalid:{port}", 2, 0)


STRANGE = [
    b"[]\n",
    b"null\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b'["hiermusic", "1", 3]\n',
    b'["hiermusic", {}, 3]\n',
    b'["hiermusic", [1], 3]\n',
    b'["hiermusic", 1]\n',
    b'["hiermusic", 1e99, 3]\n',
    b"\xff\xfe\n",
    b"[" * 5000 + b"\n",
    b"x" * 100_000,
]


@pytest.mark.parametrize("line", STRANGE)
def test_no_line_of_a_stranger_ends_process_0(port, line):
    with gathering(port, 3), connect(port) as stranger, suppress(OSError):
        stranger.sendall(line)
        stranger.settimeout(10)
        assert not stranger.recv(1)


@pytest.mark.parametrize("process", [3, 5, -1])
def test_a_number_out_of_range_is_refused(port, process):
    with gathering(port, 3), connect(port) as peer:
        peer.sendall(f'["hiermusic", {process}, 3]\n'.encode())
        assert f"process {process} is none of 0..2" in peer.makefile().readline()


@pytest.mark.parametrize("line", STRANGE[:-1])
def test_a_later_line_that_is_none_ends_the_connection_as_lost(links, monkeypatch, line):
    ended = threading.Event()
    monkeypatch.setattr(links[0], "_end", lambda how, process: (how, process) == ("lost", 1) and ended.set())
    for link in links[1:]:
        link.failing = True
    links[1].peers[0].sendall(line)
    assert ended.wait(20)


def test_a_standard_error_that_is_gone_keeps_no_process_from_ending(links, monkeypatch):
    def gone(number, data):
        raise OSError(5, "Input/output error")

    left = []
    monkeypatch.setattr(hosts.os, "write", gone)
    monkeypatch.setattr(links[0], "leave", left.append)
    for link in links[1:]:
        link.failing = True  # they live in this process, which would end with them
    links[0]._end("lost", 1)
    assert left == [1]


def test_one_that_was_started_again_takes_its_own_place(port):
    with gathering(port, 3):
        for _ in range(2):
            with connect(port) as gone:
                gone.sendall(b'["hiermusic", 1, 3]\n')


def test_one_that_is_gone_when_the_last_one_comes_is_waited_for(port):
    with gathering(port, 3, last=1):
        with connect(port) as gone:
            gone.sendall(b'["hiermusic", 1, 3]\n')
        second = connect(port)
        second.sendall(b'["hiermusic", 2, 3]\n')
    with second:
        assert second.recv(100) == b'["go"]\n'


def test_slurm_is_recognised(port, monkeypatch):
    step = {"JOB_ID": "7", "STEP_NODELIST": "127.0.0.1", "NTASKS": "2", "PROCID": "1", "LOCALID": "0"}
    for name, value in (step | {"STEP_NUM_NODES": "2"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("JAX_COORDINATOR_PORT", str(port))
    assert f"process 1 waited 0.3 s for the coordinator at 127.0.0.1:{port}" in refused()


def test_a_jax_that_recognises_no_clusters_is_told_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "jax._src.clusters", None)
    assert "or --processes=1 for this one alone" in refused()
    with hosts.joined(processes=1):
        assert hosts.workers() == (0, 1)


@pytest.mark.parametrize("name", ["JOB_COMPLETION_INDEX", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES_PATH"])
def test_a_pod_of_several_asks_jax(monkeypatch, name):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv(name, "0")
    monkeypatch.setitem(sys.modules, "jax._src.clusters", None)
    assert "the cluster does not say which processes run together" in refused()


def test_a_pod_that_is_no_job_runs_alone(monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with hosts.joined():
        assert hosts.workers() == (0, 1)


@pytest.fixture
def links():
    """Three processes' ends of their connections, in one process."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        pairs = [(socket.create_connection(server.getsockname()), server.accept()[0]) for _ in range(2)]
    place = [Place("localhost:1", 3, i) for i in range(3)]
    ends = [Link(place[0], {1: pairs[0][0], 2: pairs[1][0]})]
    ends += [Link(place[i], {0: pairs[i - 1][1]}) for i in (1, 2)]
    yield ends
    for link in ends:
        link.failing = True  # that the others are gone is no news then
    for link in ends:
        for peer in link.peers.values():
            with suppress(OSError):  # the other end may have closed it
                peer.shutdown(socket.SHUT_RDWR)
            peer.close()


def until_all_stop(links, steps, wanting, pause=0.002):
    """The step after which each process stops, if one of them is asked to at its first."""
    stopped = [None] * 3

    def train(which):
        for step in steps:
            time.sleep(pause * (which + 1))
            if links[which].stops(step, which == wanting):
                stopped[which] = step
                return

    threads = [threading.Thread(target=train, args=(which,)) for which in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return stopped


@pytest.mark.parametrize("wanting", [0, 1, 2])
@pytest.mark.parametrize("first", [1, 501])  # a run that goes on has no step before its first
def test_all_stop_after_the_same_step(links, wanting, first):
    stopped = until_all_stop(links, range(first, first + 200), wanting)
    assert len(set(stopped)) == 1 and first <= stopped[0] < first + 100


def test_nobody_passes_before_all_have_come(links):
    passed = []
    for which in (1, 2):
        threading.Thread(target=lambda i=which: (links[i].wait("a"), passed.append(i)), daemon=True).start()
    time.sleep(0.2)
    assert not passed
    links[0].wait("a")
    deadline = time.monotonic() + 10
    while len(passed) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sorted(passed) == [1, 2]
