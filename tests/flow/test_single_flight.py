"""One load per key at a time, in a process, for threads, tasks and event loops alike."""

from __future__ import annotations

import asyncio
import threading

import pytest

from memo import MISSING, cache_aside, drivers
from memo.flight import Flight, Outcome


def test_sixty_four_threads_make_one_load(cached, spawn, result, until, look, source):
    f = cached(source.read)
    source.hold()
    calls = [spawn(f, 7) for _ in range(64)]
    until(lambda: f.stats().waits == 63)
    source.gate.set()
    assert [result(call) for call in calls] == [0] * 64
    assert source.reads == 1
    stats = f.stats()
    assert (stats.hits, stats.misses, stats.loads, stats.waits) == (0, 64, 1, 63)
    look(f).clean()


async def test_a_thousand_tasks_make_one_load(cached, look, source, quiet_loop):
    f = cached(source.aread)
    source.hold()
    calls = [asyncio.create_task(f(7)) for _ in range(1_000)]
    while f.stats().waits < 999:
        await asyncio.sleep(0)
    source.gate.set()
    assert await asyncio.gather(*calls) == [0] * 1_000
    assert source.reads == 1
    stats = f.stats()
    assert (stats.hits, stats.misses, stats.loads, stats.waits) == (0, 1_000, 1, 999)
    look(f).clean()


def test_tasks_of_loops_in_eight_threads_make_one_load(cached, spawn, result, until, look, source):
    f = cached(source.aread)
    source.hold()

    async def ask():
        return await asyncio.gather(*[f(7) for _ in range(10)])

    loops = [spawn(asyncio.run, ask()) for _ in range(8)]
    until(lambda: f.stats().waits == 79)
    source.gate.set()
    assert [result(loop) for loop in loops] == [[0] * 10] * 8
    assert source.reads == 1
    look(f).clean()


def test_other_keys_do_not_wait(cached, spawn, result, source):
    f = cached(lambda x: source.read() if x == 1 else x)
    source.hold()
    slow = spawn(f, 1)
    source.arrived()
    assert f(2) == 2
    source.gate.set()
    assert result(slow) == 0


def test_two_functions_of_one_store_and_name_do_not_wait_for_each_other(store, spawn, result, source):
    f = cache_aside(store=store, key="same")(source.read)
    g = cache_aside(store=store, key="same")(lambda: "g")
    source.hold()
    slow = spawn(f)
    source.arrived()
    assert g() == "g"
    source.gate.set()
    assert result(slow) == 0


@pytest.mark.parametrize("renew", [False, True], ids=["lookup", "refresh"])
def test_the_value_can_be_read_before_the_key_is_free(cached, look, renew):
    """Else a caller that comes in between finds neither value nor flight, and loads again."""
    seen = []
    f = cached(lambda x: "value")
    f.invalidate(7)
    space = look(f).space

    class Table(dict):
        def __delitem__(self, key):
            seen.append(f.peek(7))
            super().__delitem__(key)

    space.flights = Table()
    assert (f.refresh if renew else f)(7) == "value"
    assert seen == ["value"]


async def test_the_value_can_be_read_before_the_key_is_free_async(cached, look):
    seen = []

    async def load(x):
        return "value"

    f = cached(load)
    await f.invalidate(7)
    space = look(f).space

    class Table(dict):
        def __delitem__(self, key):
            seen.append(space.peek(key))
            super().__delitem__(key)

    space.flights = Table()
    assert await f(7) == "value"
    assert seen == ["value"]


def test_without_single_flight_every_caller_loads(cached, spawn, result, look, source):
    f = cached(source.read, single_flight=None)
    source.hold()
    calls = [spawn(f, 7) for _ in range(5)]
    source.arrived(5)
    assert look(f).flights == {}
    source.gate.set()
    assert [result(call) for call in calls] == [0] * 5
    assert (source.reads, f.stats().waits, f.stats().misses) == (5, 0, 5)
    assert f(7) == 0
    assert f.stats().hits == 1
    look(f).clean()


async def test_without_single_flight_every_task_loads(cached, look, source, quiet_loop):
    f = cached(source.aread, single_flight=None)
    source.hold()
    calls = [asyncio.create_task(f(7)) for _ in range(5)]
    while source.reads < 5:
        await asyncio.sleep(0)
    assert look(f).flights == {}
    source.gate.set()
    assert await asyncio.gather(*calls) == [0] * 5
    look(f).clean()


async def test_without_single_flight_a_cancelled_task_leaves_nothing(cached, look, source, quiet_loop):
    f = cached(source.aread, single_flight=None)
    source.hold()
    call = asyncio.create_task(f(7))
    while not source.reads:
        await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    look(f).clean()
    source.gate.set()
    assert await f(7) == 0


def test_refresh_without_single_flight_registers_nothing(cached, spawn, result, look, source):
    f = cached(source.read, single_flight=None)
    source.hold()
    call = spawn(f.refresh, 7)
    source.arrived()
    assert look(f).flights == {}
    source.gate.set()
    assert result(call) == 0


def test_a_follower_that_has_waited_long_enough_loads_by_itself(cached, spawn, result, look, source):
    f = cached(
        lambda x: source.read() if threading.current_thread() is not threading.main_thread() else "own",
        wait_timeout=0.01,
    )
    source.hold()
    slow = spawn(f, 7)
    source.arrived()
    assert f(7) == "own"
    assert f.stats().waits == 1
    assert f(7) == "own"
    assert len(look(f).flights) == 1
    assert look(f).followers() == 0
    source.gate.set()
    # The leader has the lease that the follower had, who was first: the value is there already.
    assert result(slow) == 0
    assert f(7) == "own"
    assert f.stats().refused_fills == 1
    look(f).clean()


async def test_a_task_that_has_waited_long_enough_loads_by_itself(cached, look, source, quiet_loop):
    first, alone = True, []

    async def load(x):
        nonlocal first
        if first:
            first = False
            return await source.aread()
        alone.append(asyncio.current_task())
        return "own"

    f = cached(load, wait_timeout=0.01)
    source.hold()
    slow = asyncio.create_task(f(7))
    while not source.reads:
        await asyncio.sleep(0)
    assert await f(7) == "own"
    assert len(look(f).flights) == 1
    assert look(f).followers() == 1  # the leader's caller
    assert alone == [asyncio.current_task()]  # nobody else can be waiting for it
    source.gate.set()
    assert await slow == 0
    look(f).clean()


async def test_a_task_whose_flight_lands_in_time_has_its_result(cached, look, source, quiet_loop):
    f = cached(source.aread, wait_timeout=20)
    source.hold()
    calls = [asyncio.create_task(f(7)) for _ in range(3)]
    while f.stats().waits < 2:
        await asyncio.sleep(0)
    source.gate.set()
    assert await asyncio.gather(*calls) == [0, 0, 0]
    assert source.reads == 1


def test_a_thread_whose_flight_lands_in_time_has_its_result(cached, spawn, result, until, look, source):
    f = cached(source.read, wait_timeout=20)
    source.hold()
    calls = [spawn(f, 7) for _ in range(3)]
    until(lambda: look(f).followers() == 2)
    source.gate.set()
    assert [result(call) for call in calls] == [0, 0, 0]
    assert source.reads == 1


def test_the_waker_of_a_follower_may_be_gone_when_it_gives_up(cached, look):
    """It times out at the moment at which the leader wakes everyone."""
    f = cached(lambda x: x)
    flight = f._self_memoized._flight(look(f).space, "key", (1,), {})
    drivers._forget(flight, print)
    assert flight.wakers == []


def test_a_caller_whose_read_came_before_the_load_waits_all_the_same(cached, spawn, result, until, look, source):
    """Its own read saw no lease, the flight has one: it reads again, and then joins."""
    f = cached(source.read)
    source.hold()
    leader = spawn(f, 7)
    source.arrived()
    follower = spawn(f, 7)
    until(lambda: look(f).followers() == 1)
    source.gate.set()
    assert result(leader) == result(follower) == 0
    assert source.reads == 1


def test_the_second_look_finds_what_another_flight_has_just_brought(cached, look):
    """A reads, finds nothing; B's load fills the key and is gone; A must not load again."""
    f = cached(lambda x: pytest.fail("loaded again"))
    f.invalidate(7)
    space = look(f).space

    class Table(dict):
        def setdefault(self, key, flight):
            f.set("of B", 7)
            return super().setdefault(key, flight)

    space.flights = Table()
    assert f(7) == "of B"
    stats = f.stats()
    assert (stats.hits, stats.misses, stats.loads) == (0, 1, 0)
    look(f).clean()


def test_giving_back_a_lease_takes_away_no_other(cached, look):
    """A load that stores nothing gives its lease back; the lease of the next load, taken at that very moment, stands.

    1. A's load is over, its lease is taken away   2. B finds nothing and takes a lease, which needs no lock
    3. A removes the older value, and nothing else: without its lease B's load could not be joined, and C would load too
    """
    f = cached(lambda x: None)
    f.invalidate(7)
    space = look(f).space
    taken = []

    class Leases(dict):
        def pop(self, key, *default):
            lease = super().pop(key, *default)
            if not taken:
                taken.append(space.take(key, (), False))
            return lease

    space.leases = Leases()
    f(7)
    assert taken == list(space.leases.values()) != []


def test_a_value_that_comes_while_a_doubted_flight_is_looked_at_is_served(
    monkeypatch, cached, spawn, result, look, source
):
    f = cached(lambda x: source.read())
    source.hold()
    doomed = spawn(f, 7)
    source.arrived()
    f.invalidate(7)
    space = look(f).space
    may_join = Flight.may_join

    def fills(self, reading):
        f.set("newer", 7)
        return may_join(self, reading)

    monkeypatch.setattr(Flight, "may_join", fills)
    assert f(7) == "newer"
    source.gate.set()
    assert result(doomed) == 0
    assert f(7) == "newer"
    assert space.leases == {}


def test_a_doubted_flight_that_has_landed_is_not_replaced(monkeypatch, cached, spawn, result, look, source):
    """Between the second read and the exchange."""
    f = cached(lambda x: source.read())
    source.hold()
    doomed = spawn(f, 7)
    source.arrived()
    f.invalidate(7)
    flights = look(f).flights
    (key,) = flights
    seen = []

    def lands(self, reading):
        seen.append(self)
        if len(seen) == 2:
            del flights[key]
        return False

    monkeypatch.setattr(Flight, "may_join", lands)
    source.gate.set()
    source.version = 1
    assert f(7) == 1
    assert result(doomed) == 0
    assert f.peek(7) == 1
    look(f).clean()


def test_of_two_callers_that_doubt_a_flight_the_slower_waits_for_the_faster(
    monkeypatch, cached, spawn, result, until, look, source
):
    """Its exchange comes too late: it must not throw out the flight that stands there now."""
    f = cached(lambda x: source.read())
    source.hold()
    doomed = spawn(f, 7)
    source.arrived()
    f.invalidate(7)
    flights = look(f).flights
    ((key, flight),) = flights.items()
    faster = f._self_memoized._flight(look(f).space, key, (7,), {})
    seen = []

    def overtaken(self, reading):
        if self is not flight:
            return may_join(self, reading)
        seen.append(self)
        if len(seen) == 2:
            flights[key] = faster
        return False

    may_join = Flight.may_join
    monkeypatch.setattr(Flight, "may_join", overtaken)
    slower = spawn(f, 7)
    until(lambda: len(seen) == 2 and (faster.wakers or slower.done()))
    faster.settle(Outcome("of the faster"))
    assert result(slower) == "of the faster"
    source.gate.set()
    assert result(doomed) == 0
    assert source.reads == 1
    look(f).clean()


def test_a_follower_that_leaves_at_once_does_not_take_the_flight_from_its_leader(cached, spawn, result, look):
    """A follower from another loop may come and go between the leader's registration and its own first wait."""
    gone = []

    async def load(x):
        return "value"

    f = cached(load, wait_timeout=0.001)

    async def joined():
        (flight,) = look(f).flights.values()
        assert flight.enter()
        flight.leave()
        gone.append(flight)

    async def lead():
        loop = asyncio.get_running_loop()

        def factory(loop, coro, **kwargs):
            if coro.__name__ == "_load_task":
                result(spawn(asyncio.run, joined()))
            return asyncio.Task(coro, loop=loop, **kwargs)

        loop.set_task_factory(factory)
        return await f(7)

    assert asyncio.run(lead()) == "value"
    assert len(gone) == 1
    look(f).clean()


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="eager tasks came with Python 3.12")
async def test_eager_tasks(cached, look, source, quiet_loop):
    quiet_loop.set_task_factory(asyncio.eager_task_factory)
    f = cached(source.aread)
    assert await f(1) == 0
    source.hold()
    calls = [asyncio.create_task(f(7)) for _ in range(10)]
    assert f.stats().waits == 9
    calls[0].cancel()
    calls[5].cancel()
    await asyncio.sleep(0)
    source.gate.set()
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in done].count(asyncio.CancelledError) == 2
    assert [each for each in done if not isinstance(each, BaseException)] == [0] * 8
    assert source.reads == 2
    look(f).clean()


def test_peek_never_waits(cached, spawn, result, source):
    f = cached(source.read)
    source.hold()
    call = spawn(f, 7)
    source.arrived()
    assert f.peek(7) is MISSING
    source.gate.set()
    assert result(call) == 0
