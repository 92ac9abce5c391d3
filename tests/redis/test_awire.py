"""Awaited connections: their deadline, how many there are, and that none is lost, shared or used twice."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from memo import StoreError
from memo.stores.redis import awire as awire_module
from memo.stores.redis.awire import AsyncWire, _abort, _cut, _ended, _heard
from memo.stores.redis.commands import NoConnection, Refusal, WrongAnswer
from memo.stores.redis.wire import AT_ONCE

LONG = 20.0
"""Seconds after which a test that hangs fails."""

ANY = (Exception,)
"""Which one it is, the client library and the moment decide."""


def soon(seconds=LONG):
    return time.monotonic() + seconds


@pytest.fixture
async def wires():
    made = []

    def make(url, connect_timeout=LONG):
        made.append(AsyncWire(url, connect_timeout))
        return made[-1]

    yield make
    for each in made:
        for pool in each._pools.values():
            pool.close()
    await asyncio.sleep(0)


async def pool_of(wire):
    await wire.call([("GET", b"k")], soon())
    return wire._pools[id(asyncio.get_running_loop())]


async def settled(pool):
    """Wait until nothing connects."""
    while pool._connecting:
        await asyncio.wait(pool._connecting, timeout=LONG)
        await asyncio.sleep(0)


async def gathered(count, make):
    return await asyncio.gather(*(make() for _ in range(count)), return_exceptions=True)


# -- deadlines ---------------------------------------------------------------------------------------------------------


async def test_a_peer_that_says_nothing_is_waited_for_until_the_deadline(peers, wires):
    wire = wires(peers.silent().url, connect_timeout=0.5)
    with pytest.raises(TimeoutError):
        await wire.call([("GET", b"k")], soon(0.1))


@pytest.mark.parametrize("password", ["", ":password@"])
async def test_a_peer_that_drips_makes_neither_an_operation_nor_connecting_longer(peers, wires, password):
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
        await wire.call([("GET", b"k")], soon(0.2))
    (pool,) = wire._pools.values()
    await settled(pool)
    assert time.monotonic() - begin < LONG / 2  # to drip it all takes half an hour
    assert not pool._idle
    stop.set()


async def test_an_answer_that_does_not_come_in_time_is_waited_for_until_the_deadline(redis_server, wires):
    wire = wires(redis_server.url)
    pool = await pool_of(wire)
    redis_server.pause()
    with pytest.raises(TimeoutError, match="in time"):
        await wire.call([("GET", b"k")], soon(0.1))
    redis_server.resume()
    assert not pool._all
    assert await wire.call([("GET", b"k")], soon()) == [None]


async def test_tasks_make_few_connections_while_a_server_hangs(peers, wires):
    peer = peers.silent()
    wire = wires(peer.url.replace("//", "//:password@"), connect_timeout=1)
    results = await gathered(100, lambda: wire.call([("GET", b"k")], soon(0.2)))
    assert {type(each) for each in results} == {TimeoutError}
    assert peer.accepted <= AT_ONCE
    (pool,) = wire._pools.values()
    assert not pool._waiters
    await settled(pool)
    assert not pool._all


async def test_what_fails_to_connect_fails_all_who_wait_for_it_at_once(closed_port, wires):
    wire = wires(f"redis://127.0.0.1:{closed_port}/0")
    results = await gathered(20, lambda: wire.call([("GET", b"k")], soon()))
    assert {type(each) for each in results} == {NoConnection}
    assert {each.kind for each in results} == {"ConnectionError"}


# -- how many there are ------------------------------------------------------------------------------------------------


async def test_many_tasks_share_one_connection_and_each_has_its_turn(redis_server, wires):
    wire = wires(f"{redis_server.url}?max_connections=1")
    order = []

    async def work(name):
        for _ in range(5):
            assert await wire.call([("SET", b"k", b"v"), ("GET", b"k")], soon()) == [b"OK", b"v"]
            order.append(name)

    await asyncio.gather(*(work(name) for name in range(50)))
    (pool,) = wire._pools.values()
    assert len(pool._all) == len(pool._idle) == 1
    assert sorted(order[:50]) == list(range(50))  # whoever has had one answer waits until all others have one


async def test_an_exhausted_pool_says_so_and_loses_nothing(redis_server, wires):
    wire = wires(f"{redis_server.url}?max_connections=1")
    pool = await pool_of(wire)
    connection = await pool._take(soon())
    results = await gathered(8, lambda: wire.call([("GET", b"k")], soon(0.05)))
    assert {type(each) for each in results} == {StoreError}
    assert not pool._waiters
    pool._offer(connection)
    assert await wire.call([("GET", b"k")], soon()) == [None]
    assert len(pool._all) == 1


async def test_more_connections_are_made_while_tasks_wait_and_no_more_than_allowed(redis_server, wires):
    wire = wires(f"{redis_server.url}?max_connections=6")
    pool = await pool_of(wire)
    taken = await gathered(6, lambda: pool._take(soon()))
    assert len({id(each) for each in taken}) == 6
    waiting = asyncio.ensure_future(pool._take(soon()))
    await asyncio.sleep(0)
    assert len(pool._all) == 6
    pool._drop(taken[0], alone=True)  # there is room for another one
    assert (await waiting) not in taken
    assert len(pool._all) == 6


@pytest.mark.parametrize("rounds", range(6))
async def test_a_connection_that_is_handed_to_a_task_which_is_cancelled_goes_to_the_next(redis_server, wires, rounds):
    wire = wires(f"{redis_server.url}?max_connections=1")
    pool = await pool_of(wire)
    connection = await pool._take(soon())
    first, second = (asyncio.ensure_future(pool._take(soon())) for _ in range(2))
    await asyncio.sleep(0)
    pool._offer(connection)
    if rounds % 2:
        first.cancel()
    else:
        first.cancel()
        second.cancel()
    for _ in range(rounds):
        await asyncio.sleep(0)
    await asyncio.wait([first, second], timeout=LONG)
    assert second.cancelled() or second.result() is connection
    if second.cancelled():
        assert pool._idle == [connection]


async def test_a_connection_that_ends_while_it_is_handed_to_a_task_fails_it_at_once(redis_server, wires):
    """1. it ends   2. it is handed to a waiter   3. its end is told   4. the waiter asks: nobody tells it again."""
    wire = wires(f"{redis_server.url}?max_connections=1")
    pool = await pool_of(wire)
    connection = await pool._take(soon())
    task = asyncio.create_task(wire.call([("GET", b"k")], soon()))
    await asyncio.sleep(0)
    assert pool._waiters
    connection._writer.transport.abort()
    pool._offer(connection)
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(task, LONG / 4)
    assert await wire.call([("GET", b"k")], soon()) == [None]


async def test_a_waiter_that_was_cancelled_is_passed_over(redis_server, wires):
    wire = wires(f"{redis_server.url}?max_connections=1")
    pool = await pool_of(wire)
    connection = await pool._take(soon())
    first, second = (asyncio.ensure_future(pool._take(soon())) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()  # it has not run yet, and is still among those who wait
    pool._offer(connection)
    assert await second is connection
    third = asyncio.ensure_future(pool._take(soon()))
    await asyncio.sleep(0)
    third.cancel()
    pool._refuse("over")
    (waiter,) = [asyncio.get_running_loop().create_future()]
    waiter.set_result(connection)
    pool._late(waiter)  # it has got one just now
    assert waiter.result() is connection


async def test_a_task_that_is_cancelled_while_it_connects_leaves_the_connection_to_others(redis_server, wires):
    wire = wires(redis_server.url)
    for count in range(30):
        task = asyncio.ensure_future(wire.call([("GET", b"k")], soon()))
        for _ in range(count):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=LONG)
    (pool,) = wire._pools.values()
    await settled(pool)
    assert not pool._waiters
    assert len(pool._all) == len(pool._idle) <= 2
    assert await wire.call([("GET", b"k")], soon()) == [None]


async def test_whoever_cancels_all_tasks_takes_no_place(peers, wires):
    wire = wires(f"{peers.silent().url.replace('//', '//:password@')}?max_connections=1")
    task = asyncio.ensure_future(wire.call([("GET", b"k")], soon()))
    await asyncio.sleep(0)
    (pool,) = wire._pools.values()
    for each in pool._connecting:
        each.cancel()
    with pytest.raises(NoConnection, match="CancelledError"):
        await task
    assert not pool._all


# -- connections that are over -----------------------------------------------------------------------------------------


async def test_a_server_that_was_restarted_is_used_again(redis_server, wires):
    wire = wires(redis_server.url)
    pool = await pool_of(wire)
    for each in await gathered(3, lambda: pool._take(soon())):
        pool._offer(each)
    redis_server.restart()
    with pytest.raises(ANY):
        await wire.call([("GET", b"k")], soon())  # the loop has not heard of it yet
    assert not pool._idle
    assert await wire.call([("GET", b"k")], soon()) == [None]
    redis_server.restart()
    until = soon()
    while not _ended(pool._idle[0]) and time.monotonic() < until:
        await asyncio.sleep(0.01)
    assert await wire.call([("GET", b"k")], soon()) == [None]  # now it has


async def test_a_value_that_is_too_large_for_the_server_is_refused_and_the_connection_not_used_again(
    redis_servers, wires
):
    server = redis_servers("--proto-max-bulk-len", "1mb")
    wire = wires(server.url)
    for size in (2**20 + 1, 8 * 2**20):
        replies = await wire.call([("SET", b"k", bytes(size)), ("GET", b"k")], soon())
        assert [each.kind for each in replies] == ["ERR", "ERR"]
        (pool,) = wire._pools.values()
        assert not pool._all
        assert await wire.call([("SET", b"k", bytes(2**20 - 1)), ("UNLINK", b"k")], soon()) == [b"OK", 1]


async def test_an_answer_that_cannot_be_one_ends_the_connection(redis_server, wires, monkeypatch):
    wire = wires(redis_server.url)
    pool = await pool_of(wire)

    async def answer(**_):
        return 7

    pool._idle[0]._writer.transport.set_protocol(pool._idle[0]._writer._protocol)  # as without hiredis
    pool._idle[0].listener = None
    monkeypatch.setattr(pool._idle[0], "read_response", answer)
    with pytest.raises(WrongAnswer):
        await wire.call([("GET", b"k")], soon())
    assert not pool._all


async def test_bytes_that_are_no_answer_are_an_error_of_who_waits_and_of_nobody_else(redis_server, peers, wires):
    garbled, complaints = threading.Event(), []
    peer = peers.between(redis_server, lambda data, send: send(b"garbage\r\n" if garbled.is_set() else data))
    wire = wires(peer.url)
    pool = await pool_of(wire)
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    garbled.set()
    with pytest.raises(ANY) as caught:
        await wire.call([("GET", b"k")], soon())
    assert not isinstance(caught.value, TimeoutError)
    garbled.clear()
    assert not pool._all
    assert await wire.call([("GET", b"k")], soon()) == [None]
    assert complaints == []


async def test_closing_closes_what_is_idle_at_once_and_what_is_used_when_it_comes_back(redis_server, wires):
    wire = wires(redis_server.url)
    pool = await pool_of(wire)
    first, second = await gathered(2, lambda: pool._take(soon()))
    pool._offer(first)
    await wire.aclose()
    assert first._writer is None
    heard = second.listener.hear(1) if second.listener else _heard(second, 1)
    await second.send_command("PING")
    assert await heard == [b"PONG"]
    pool._offer(second)
    assert second._writer is None
    assert not pool._all
    assert await wire.call([("GET", b"k")], soon()) == [None]  # it is opened again when needed
    await wire.aclose()
    await AsyncWire(redis_server.url, LONG).aclose()


async def test_whoever_waits_when_a_loop_ends_is_told(peers, wires):
    wire = wires(peers.silent().url.replace("//", "//:password@"))
    task = asyncio.ensure_future(wire.call([("GET", b"k")], soon()))
    await asyncio.sleep(0)
    (pool,) = wire._pools.values()
    pool.close()
    with pytest.raises(NoConnection):
        await task
    await asyncio.sleep(0)


async def test_what_cannot_be_cut_is_let_go_of(redis_server, wires):
    wire = wires(redis_server.url)
    _cut(wire.connection())  # it was never connected
    pool = await pool_of(wire)
    (connection,) = pool._idle
    writer = connection._writer

    class Foreign:
        """As of an event loop that has transports of its own kind."""

        transport = object()

    connection._writer = Foreign
    pool.abandon()
    assert pool.closed
    assert not pool._all
    writer.transport.abort()


async def test_a_connection_on_which_something_came_unasked_is_not_used_again(redis_server, wires):
    wire = wires(redis_server.url)
    pool = await pool_of(wire)
    connection = pool._idle[0]
    connection._writer.write(b"PING\r\n")  # as if an answer had been left for whoever comes next
    until = soon()
    while not _ended(connection) and time.monotonic() < until:
        await asyncio.sleep(0.01)
    assert await wire.call([("GET", b"k")], soon()) == [None]
    assert pool._idle[0] is not connection


async def test_a_deadline_holds_where_the_transport_says_nothing(redis_server, wires, monkeypatch):
    wire = wires(redis_server.url)
    pool = await pool_of(wire)
    connection = pool._idle[0]
    monkeypatch.setattr(awire_module, "_abort", lambda each: None)
    with pytest.raises(TimeoutError):
        await wire.call([("BLPOP", b"p", 0)], soon(0.05))
    monkeypatch.undo()
    _abort(connection)


async def test_a_deadline_holds_where_the_client_library_reads(redis_server, wires):
    wire = wires(redis_server.url)
    pool = await pool_of(wire)
    connection = pool._idle[0]
    connection._writer.transport.set_protocol(connection._writer._protocol)  # as without hiredis
    connection.listener = None
    with pytest.raises(TimeoutError):
        await wire.call([("BLPOP", b"p", 0)], soon(0.05))
    assert not pool._all


async def test_one_late_answer_ends_one_connection_and_no_other(redis_server, wires):
    """One timer watches over all connections: whoever has more time goes on."""
    wire = wires(redis_server.url)
    pool = await pool_of(wire)
    patient = asyncio.ensure_future(wire.call([("BLPOP", b"q", 0)], soon()))
    await asyncio.sleep(0)
    for _ in range(2):
        with pytest.raises(TimeoutError):
            await wire.call([("BLPOP", b"p", 0)], soon(0.05))
    # The later of two is not forgotten over the earlier.
    ends = [soon(0.05), soon(0.2)]
    both = gathered(2, lambda: wire.call([("BLPOP", b"p", 0)], ends.pop(0)))
    assert [type(each) for each in await asyncio.wait_for(both, LONG)] == [TimeoutError, TimeoutError]
    assert not patient.done()
    assert len(pool._all) == 1
    assert await wire.call([("RPUSH", b"q", b"v")], soon()) == [1]
    assert await patient == [[b"q", b"v"]]
    assert not pool._asked


async def test_an_answer_that_has_just_come_when_its_time_is_over_is_an_answer(redis_server, wires, monkeypatch):
    """1. the last answer comes   2. the timer ends the connection   3. the task goes on, and makes no other use it."""
    wire = wires(redis_server.url)
    pool = await pool_of(wire)
    (connection,) = pool._idle
    real = awire_module.check

    def check(commands, replies):
        real(commands, replies)
        pool._asked[connection] = 0.0
        pool._give_up()

    monkeypatch.setattr(awire_module, "check", check)
    assert await wire.call([("GET", b"k")], soon()) == [None]
    assert (pool._idle, pool._all, pool._asked) == ([], set(), {})
    monkeypatch.undo()
    assert await wire.call([("GET", b"k")], soon()) == [None]
    assert pool._idle[0] is not connection


@pytest.mark.parametrize("reads", ["hiredis if it is there", "the client library"])
async def test_an_error_that_the_server_answers_is_an_answer(redis_server, wires, reads, monkeypatch):
    if reads == "the client library":
        monkeypatch.setattr(awire_module, "answers_of", lambda connection: None)
    wire = wires(redis_server.url)
    redis_server.client().rpush("list", "x")
    replies = await wire.call([("SET", b"k", b"v"), ("GET", b"list"), ("GET", b"k")], soon())
    assert isinstance(replies[1], Refusal)
    assert replies[1].kind == "WRONGTYPE"
    assert [replies[0], replies[2]] == [b"OK", b"v"]
    (pool,) = wire._pools.values()
    assert len(pool._idle) == 1
