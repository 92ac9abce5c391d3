"""Blocking connections: their deadline, how many there are, and that none is lost, shared or used twice."""

from __future__ import annotations

import gc
import logging
import random
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from memo import StoreError
from memo.stores.redis import wire as wire_module
from memo.stores.redis.commands import NoConnection, Refusal
from memo.stores.redis.wire import AT_ONCE, TimedSocket, Wire

LONG = 20.0
"""Seconds after which a test that hangs fails."""

ANY = (Exception,)
"""Which one it is, the client library and the moment decide."""


def soon(seconds=LONG):
    return time.monotonic() + seconds


@pytest.fixture
def wires():
    made = []

    def make(url, connect_timeout=LONG):
        made.append(Wire(url, connect_timeout))
        return made[-1]

    yield make
    for each in made:
        each.close()


def settled(wire):
    """Wait until no thread of a wire connects."""
    for thread in threading.enumerate():
        if thread.name == "memo-connect":
            thread.join(LONG)
            assert not thread.is_alive()
    assert not wire._connecting


def at_once(count, work):
    """Do work in many threads; return what came of each."""
    results = [None] * count
    barrier = threading.Barrier(count)

    def run(index):
        barrier.wait(LONG)
        try:
            results[index] = work()
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(3 * LONG)
        assert not thread.is_alive()
    return results


# -- deadlines ---------------------------------------------------------------------------------------------------------


class Socket:
    """In the place of a socket: each call takes a second and does a byte."""

    def __init__(self, now):
        self.now = now
        self.timeouts = []

    def settimeout(self, value):
        self.timeouts.append(value)

    def recv(self, count):
        self.now[0] += 1
        return b"x"

    def recv_into(self, buffer):
        self.now[0] += 1
        return 1

    def send(self, data):
        self.now[0] += 1
        return 1

    def fileno(self):
        return 7


@pytest.fixture
def now(monkeypatch):
    time = [1000.0]
    monkeypatch.setattr(wire_module.time, "monotonic", lambda: time[0])
    return time


def test_each_call_of_a_socket_has_what_is_left_of_the_deadline(now):
    inner = Socket(now)
    sock = TimedSocket(inner, 1005.0)
    assert sock.recv(10) == b"x"
    assert sock.recv_into(bytearray(10)) == 1
    sock.sendall(b"abc")
    assert inner.timeouts == [5, 4, 3, 2, 1]
    for late in (lambda: sock.recv(1), lambda: sock.recv_into(bytearray(1)), lambda: sock.sendall(b"a")):
        with pytest.raises(TimeoutError):
            late()
    assert sock.fileno() == 7


def test_a_large_value_is_sent_within_one_deadline_whatever_pieces_the_peer_takes(now):
    sock = TimedSocket(Socket(now), 1005.0)
    with pytest.raises(TimeoutError):
        sock.sendall(b"abcdefghij")
    assert now == [1005.0]


def test_without_a_deadline_a_socket_has_its_own_timeout_and_with_one_that_of_nobody_else(now):
    inner = Socket(now)
    sock = TimedSocket(inner, None)
    sock.recv(1)
    assert inner.timeouts == []
    sock.settimeout(3)
    sock.deadline = 1010.0
    sock.settimeout(99)
    assert inner.timeouts == [3]


def test_a_peer_that_says_nothing_is_waited_for_until_the_deadline(peers, wires):
    wire = wires(peers.silent().url, connect_timeout=1)
    with pytest.raises(ANY):
        wire.call([("GET", b"k")], soon(0.1))
    assert wire._waiting == 0


@pytest.mark.parametrize("password", ["", ":password@"])
def test_a_peer_that_drips_makes_neither_an_operation_nor_connecting_longer(peers, wires, password):
    stop = threading.Event()

    def drip(connection):
        connection.recv(65536)
        for byte in b"$100000\r\n" + 100000 * b"x":
            connection.sendall(bytes([byte]))
            if stop.wait(0.02):
                return

    peer = peers.serving(drip)
    wire = wires(peer.url.replace("//", f"//{password}"), connect_timeout=0.3)
    begin = time.monotonic()
    with pytest.raises(ANY):
        wire.call([("GET", b"k")], soon(0.2))
    settled(wire)
    assert time.monotonic() - begin < LONG / 2  # to drip it all takes half an hour
    assert not wire._idle
    stop.set()


def test_threads_do_not_pile_up_while_a_server_hangs(peers, wires):
    peer = peers.silent()
    wire = wires(peer.url.replace("//", "//:password@"), connect_timeout=2)
    results = at_once(30, lambda: wire.call([("GET", b"k")], soon(0.2)))
    assert {type(each) for each in results} <= {TimeoutError, NoConnection}
    assert peer.accepted <= AT_ONCE
    settled(wire)
    assert not wire._all


def test_what_fails_to_connect_fails_all_who_wait_for_it_at_once(closed_port, wires):
    wire = wires(f"redis://127.0.0.1:{closed_port}/0")
    results = at_once(8, lambda: wire.call([("GET", b"k")], soon()))
    assert {each.kind for each in results} == {"ConnectionError"}
    settled(wire)


# -- how many there are ------------------------------------------------------------------------------------------------


def test_many_threads_share_one_connection_where_no_more_are_allowed(redis_server, wires):
    wire = wires(f"{redis_server.url}?max_connections=1")

    def work():
        return [wire.call([("SET", b"k", b"v"), ("GET", b"k")], soon()) for _ in range(20)]

    assert at_once(16, work) == [[[b"OK", b"v"]] * 20] * 16
    assert len(wire._all) == len(wire._idle) == 1
    assert wire._waiting == 0


def test_an_exhausted_pool_says_so_and_loses_nothing(redis_server, wires):
    wire = wires(f"{redis_server.url}?max_connections=1")
    connection = wire._take(soon())
    results = at_once(8, lambda: wire.call([("GET", b"k")], soon(0.05)))
    assert {type(each) for each in results} == {StoreError}
    assert "in use" in str(results[0])
    wire._give_back(connection)
    assert wire.call([("GET", b"k")], soon()) == [None]
    assert len(wire._all) == 1


def test_more_connections_are_made_while_callers_wait_and_no_more_than_allowed(redis_server, wires):
    wire = wires(f"{redis_server.url}?max_connections=6")
    taken = at_once(6, lambda: wire._take(soon()))
    assert len({id(each) for each in taken}) == 6
    settled(wire)
    assert len(wire._all) == 6
    for each in taken:
        wire._give_back(each)
    assert len(wire._idle) == 6


def test_a_connection_that_a_caller_has_lost_counts_no_more(redis_server, wires):
    wire = wires(f"{redis_server.url}?max_connections=1")
    connection = wire._take(soon())
    del connection
    gc.collect()
    assert wire.call([("GET", b"k")], soon()) == [None]


def test_whoever_is_woken_and_leaves_wakes_the_next(redis_server, wires, monkeypatch):
    wire = wires(f"{redis_server.url}?max_connections=1")
    connection = wire._take(soon())
    first = threading.Event()
    real = wire._free.wait

    def wait(timeout):
        leaves = not first.is_set()
        first.set()
        real(timeout)
        if leaves:
            raise KeyboardInterrupt  # it was woken, and is interrupted before it has looked

    monkeypatch.setattr(wire._free, "wait", wait)
    left = []

    def leaver():
        try:
            wire._take(soon())
        except KeyboardInterrupt:
            left.append(True)

    served = []
    threads = [threading.Thread(target=leaver)]
    threads[0].start()
    assert first.wait(LONG)
    threads.append(threading.Thread(target=lambda: served.append(wire._take(soon()))))
    threads[1].start()
    while wire._waiting < 2 or len(wire._free._waiters) < 2:
        pass
    wire._give_back(connection)
    for thread in threads:
        thread.join(LONG)
    assert left == [True]
    assert served == [connection]


def test_a_ctrl_c_at_any_line_leaves_connections_in_order(redis_server, wires, untraced):
    wire = wires(f"{redis_server.url}?max_connections=2")
    wire.call([("SET", b"k", b"v")], soon())
    lines = [0]
    step = [0]

    # No interrupt comes between the end of a block and the release of its lock, nor where a `try` begins: for CPython
    # there is no step between.
    source = Path(wire_module.__file__).read_text().splitlines()
    blocks = {number for number, line in enumerate(source, 1) if line.strip() in ("with self._lock:", "try:")}

    def trace(frame, event, _):
        if frame.f_code.co_filename != wire_module.__file__:
            return None

        def local(frame, event, _):
            if event == "line" and frame.f_lineno not in blocks:
                lines[0] += 1
                if lines[0] == step[0]:
                    raise KeyboardInterrupt
            return local

        return local

    interrupted = 0
    for count in range(1, 200):
        lines[0], step[0] = 0, count
        sys.settrace(trace)
        try:
            wire.call([("GET", b"k"), ("PTTL", b"k")], soon())
        except KeyboardInterrupt:
            interrupted += 1
        else:
            break
        finally:
            sys.settrace(None)
        assert not wire._lock._is_owned()
        gc.collect()
        assert wire.call([("GET", b"k"), ("PTTL", b"k")], soon()) == [b"v", -1]
        assert len(wire._all) <= 2
    assert interrupted > 20
    settled(wire)


@pytest.mark.parametrize("without_hiredis", [False, True])
def test_an_answer_that_an_interrupted_caller_has_not_read_is_nobody_elses(
    redis_server, wires, monkeypatch, without_hiredis
):
    wire = wires(f"{redis_server.url}?max_connections=1")
    wire.call([("SET", b"a", b"of a"), ("SET", b"b", b"of b")], soon())

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    for _ in range(10):
        connection = wire._take(soon())
        monkeypatch.setattr(connection, "read_response", interrupt)
        connection.answers = None if without_hiredis else SimpleNamespace(take=interrupt)
        wire._give_back(connection)
        del connection
        with pytest.raises(KeyboardInterrupt):
            wire.call([("GET", b"a")], soon())
        assert wire.call([("GET", b"b")], soon()) == [b"of b"]


def test_a_thread_that_cannot_be_started_is_an_error_and_takes_no_place(redis_server, wires, monkeypatch):
    wire = wires(f"{redis_server.url}?max_connections=1")

    def refuse(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr("threading.Thread.start", refuse)
        with pytest.raises(RuntimeError):
            wire.call([("GET", b"k")], soon())
    assert not wire._connecting
    assert wire.call([("GET", b"k")], soon()) == [None]


# -- connections that are over -----------------------------------------------------------------------------------------


def test_a_server_that_was_restarted_fails_one_operation_and_is_used_again(redis_server, wires):
    wire = wires(redis_server.url)
    for each in at_once(3, lambda: wire._take(soon())):
        wire._give_back(each)
    redis_server.restart()
    with pytest.raises(ANY):
        wire.call([("GET", b"k")], soon())
    assert not wire._idle
    assert wire.call([("GET", b"k")], soon()) == [None]


def test_a_connection_that_nobody_has_used_for_a_while_is_looked_at_first(redis_server, wires, monkeypatch):
    monkeypatch.setattr(wire_module, "IDLE", 0)
    wire = wires(redis_server.url)
    assert wire.call([("GET", b"k")], soon()) == [None]
    (connection, _) = wire._idle[0]
    assert wire.call([("GET", b"k")], soon()) == [None]
    assert wire._idle[0][0] is connection  # it is well
    redis_server.restart()
    assert wire.call([("GET", b"k")], soon()) == [None]
    assert wire._idle[0][0] is not connection
    wire._idle[0][0].disconnect()
    assert wire.call([("GET", b"k")], soon()) == [None]


def test_closing_closes_what_is_idle_at_once_and_what_is_used_when_it_comes_back(redis_server, wires):
    wire = wires(redis_server.url)
    first, second = at_once(2, lambda: wire._take(soon()))
    settled(wire)
    wire._give_back(first)
    wire.close()
    assert first._sock is None
    second._sock.deadline = soon()
    second.send_command("PING")
    assert second.read_response() == b"PONG"
    wire._give_back(second)
    assert second._sock is None
    assert not wire._idle
    assert wire.call([("GET", b"k")], soon()) == [None]  # it is opened again when needed


@pytest.mark.parametrize("works", [True, False])
def test_a_connection_that_is_made_while_the_wire_is_closed_is_closed(redis_server, closed_port, wires, works):
    wire = wires(redis_server.url if works else f"redis://127.0.0.1:{closed_port}/0")
    begun, go = threading.Event(), threading.Event()
    made = []

    class Slow(wire._connection):
        def connect(self):
            made.append(self)
            begun.set()
            assert go.wait(LONG)
            super().connect()

    quick, wire._connection = wire._connection, Slow
    with pytest.raises(TimeoutError):
        wire.call([("GET", b"k")], soon(0.05))
    assert begun.wait(LONG)
    wire.close()
    wire._connection = quick
    go.set()
    settled(wire)
    assert made[0]._sock is None
    assert not wire._all
    assert wire._failed == 0


def test_a_connection_that_cannot_be_closed_is_let_go_of(redis_server, wires, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    wire = wires(redis_server.url)
    wire.call([("GET", b"k")], soon())
    connection = wire._idle[0][0]
    real = connection.disconnect

    def fail(*_):
        raise OSError("it is gone")

    monkeypatch.setattr(connection, "disconnect", fail)
    wire.close()
    assert "could not be closed (OSError)" in caplog.text
    real()


# -- peers that are no servers, and values too large -------------------------------------------------------------------

GARBAGE = [
    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"$5\r\nab",
    b"*2\r\n$1\r\na\r\n",
    b"$-7\r\n",
    b":abc\r\n",
    b"*1\r\n" * 3000,
    b":1\r\n",
    b"+OK",
    b"\x15\x03\x01\x00\x02\x02\x16",
    b"",
]


@pytest.mark.parametrize("said", [*GARBAGE, *range(60)], ids=lambda said: str(said)[:20])
def test_of_a_peer_that_is_no_server_nothing_is_kept_and_no_connection_is_used_again(peers, wires, said):
    if isinstance(said, int):
        said = random.Random(said).randbytes(300)
    peer = peers.saying(said)
    wire = wires(peer.url, connect_timeout=1)
    # Some of redis-py's versions ask something when they connect: then there is no connection at all.
    with pytest.raises(ANY):
        for _ in range(2):
            wire.call([("GET", b"k"), ("PTTL", b"k")], soon(1))
    assert not wire._idle


def test_a_value_that_is_too_large_for_the_server_is_refused_and_the_connection_not_used_again(redis_servers, wires):
    server = redis_servers("--proto-max-bulk-len", "1mb")
    wire = wires(server.url)
    for size in (2**20 + 1, 30 * 2**20):
        replies = wire.call([("SET", b"k", bytes(size)), ("GET", b"k")], soon())
        assert [each.kind for each in replies] == ["ERR", "ERR"]
        assert not wire._idle
        assert wire.call([("SET", b"k", bytes(2**20 - 1)), ("UNLINK", b"k")], soon()) == [b"OK", 1]


def test_a_peer_that_reads_nothing_is_waited_for_until_the_deadline(peers, wires):
    stop = threading.Event()

    def serve(connection):
        stop.wait(LONG)

    peer = peers.serving(serve)
    wire = wires(peer.url, connect_timeout=0.5)
    connection = wire._connection(**wire._options)
    connection._sock = TimedSocket(socket.create_connection(("127.0.0.1", peer.port)), None)
    wire._all.add(connection)
    wire._idle.append((connection, time.monotonic()))
    with pytest.raises(TimeoutError):
        wire.call([("SET", b"k", bytes(64 * 2**20))], soon(0.2))
    stop.set()
    assert not wire._all


def test_a_connection_that_cannot_even_be_made_is_an_error(redis_server, wires, monkeypatch):
    wire = wires(redis_server.url)

    def fail(**_):
        raise MemoryError

    monkeypatch.setattr(wire, "_connection", fail)
    with pytest.raises(NoConnection, match="MemoryError"):
        wire.call([("GET", b"k")], soon())


def test_in_a_child_everything_is_let_go_of_and_made_anew(redis_server, wires):
    wire = wires(f"{redis_server.url}?max_connections=2")
    used, idle = at_once(2, lambda: wire._take(soon()))
    wire._give_back(idle)
    wire._waiting = 3  # callers of the parent that are nowhere here
    wire._connecting.add(object())
    wire.forget()
    assert used._sock is idle._sock is None
    assert wire._waiting == 0
    assert wire.call([("GET", b"k")], soon()) == [None]
    assert len(wire._all) == 1


def test_a_peer_that_takes_nothing_and_says_nothing_is_an_error(peers, wires, monkeypatch):
    peer = peers.silent()
    wire = wires(peer.url, connect_timeout=1)

    class Deaf:
        deadline = None

        def sendall(self, piece):
            raise BrokenPipeError("it takes no more")

    class Connection:
        _sock = Deaf()
        answers = None

        def read_response(self):
            return b"v"

        def disconnect(self):
            pass

    connection = Connection()
    wire._all.add(connection)
    wire._idle.append((connection, time.monotonic()))
    with pytest.raises(BrokenPipeError):
        wire.call([("GET", b"k")], soon())
    assert not wire._idle


@pytest.mark.parametrize("reads", ["hiredis if it is there", "the client library"])
def test_an_error_that_the_server_answers_is_an_answer(redis_server, wires, reads, monkeypatch):
    if reads == "the client library":
        monkeypatch.setattr(wire_module, "answers_of", lambda connection: None)
    wire = wires(redis_server.url)
    redis_server.client().rpush("list", "x")
    replies = wire.call([("SET", b"k", b"v"), ("GET", b"list"), ("GET", b"k")], soon())
    assert isinstance(replies[1], Refusal)
    assert replies[1].kind == "WRONGTYPE"
    assert [replies[0], replies[2]] == [b"OK", b"v"]
    assert len(wire._idle) == 1
